"""The codes of findings, with the meaning, the consequence and the mending of each."""

from typing import NamedTuple


class Entry(NamedTuple):
    """A kind of finding: its title, its usual level, why it matters, how to mend it."""

    title: str
    level: str
    why: str
    mend: str


# Codes are stable, because people silence them. Hundreds: 0 tokens and chat templates, 1 labels, 2 batches, 3 loss,
# 4 weights, 5 generation, 6 data, 7 finished runs and resuming, 8 settings of the run.
CATALOGUE: dict[str, Entry] = {
    # Tokens and chat templates
    "P001": Entry(
        "two begin tokens",
        "error",
        "The model never saw two begin tokens in its pretraining, and generation starts with one.",
        "Tokenize rendered chats with add_special_tokens=False, or by apply_chat_template(tokenize=True).",
    ),
    "P002": Entry(
        "no begin token",
        "warning",
        "The tokenizer begins texts with this token, so training rows differ from pretraining and from generation.",
        "Tokenize with add_special_tokens=True, or write bos_token in the chat template.",
    ),
    "P003": Entry(
        "answers end without a token to stop at",
        "error",
        "The model never learns to stop.",
        "Write eos_token or an end-of-turn token after each answer, in the chat template or in the text.",
    ),
    "P004": Entry(
        "the chat template drops messages",
        "error",
        "The model is trained without these messages, and no error is raised.",
        "Use a template that writes these messages, or remove them from the data.",
    ),
    "P005": Entry(
        "the chat template drops a part of messages",
        "warning",
        "The model is trained without the dropped part.",
        "Use a template that writes this part, or remove the field from the data.",
    ),
    "P006": Entry(
        "the chat template changes the content of messages",
        "note",
        "The model is trained on a text that differs from the record.",
        "Nothing needs to change if the template only strips whitespace on purpose.",
    ),
    "P007": Entry(
        "the chat template refuses records",
        "error",
        "These records stop the run, or are skipped.",
        "Use another template, or change the records' roles and order.",
    ),
    "P008": Entry(
        "the generation prompt differs from the training rows",
        "error",
        "In training, the answer follows other tokens than in generation.",
        "Make the template write the same text before an answer in both cases.",
    ),
    "P009": Entry(
        "markers of the chat template are not tokens",
        "warning",
        "The tokenizer splits the markers into several tokens, and generation cannot stop at them.",
        "Add the markers as special tokens and resize the embeddings, or use the tokenizer's own template.",
    ),
    "P010": Entry(
        "token ids beyond the embeddings",
        "error",
        "The model raises an error for these rows, or a GPU reads memory outside of the table.",
        "Call model.resize_token_embeddings(len(tokenizer)), or use the tokenizer that belongs to the model.",
    ),
    "P011": Entry(
        "unknown tokens",
        "warning",
        "The model cannot read the characters that became unknown tokens.",
        "Use a tokenizer that knows these characters.",
    ),
    "P012": Entry(
        "no chat template",
        "error",
        "Conversations cannot be converted to tokens.",
        "Set tokenizer.chat_template, or name a file with --template.",
    ),
    "P013": Entry(
        "special tokens in the text of messages",
        "warning",
        "A message can end its own turn, or begin a turn of another role.",
        "Remove the special tokens from the data.",
    ),
    "P014": Entry(
        "the chat template does not mark the assistant's tokens",
        "error",
        "A loss on the assistant's tokens covers no tokens, or all of them.",
        "Put {% generation %} around answers in the template.",
    ),
    "P015": Entry(
        "the chat template depends on the date",
        "note",
        "Rows that are rendered on different days differ.",
        "If rows must be reproducible, pass a fixed date to the template.",
    ),
    "P016": Entry(
        "generation does not stop at the token that ends answers",
        "error",
        "Generation continues after the model ends its answer.",
        "Add the token to model.generation_config.eos_token_id.",
    ),
    "P017": Entry(
        "a chat is rendered twice",
        "error",
        "The template wraps a text that already contains its markers, so the rows contain them twice.",
        "Pass the raw messages, or pass the rendered text to a trainer that applies no template.",
    ),
    "P018": Entry(
        "the padding token is the token that ends texts",
        "note",
        "A collator that recognises padding by its id also masks the end of answers.",
        "Set another pad_token; the rows below say whether the end is trained.",
    ),
    "P019": Entry(
        "no padding token",
        "error",
        "Rows of different lengths cannot be batched.",
        "Set tokenizer.pad_token and model.config.pad_token_id.",
    ),
    "P020": Entry(
        "marked tokens are not the assistant's answer",
        "error",
        "The loss misses a part of the answers, or includes tokens of other roles.",
        "Put {% generation %} around the answer and the token that ends it, and around nothing else.",
    ),
    "P021": Entry(
        "the model and the tokenizer name different special tokens",
        "warning",
        "Padding, stopping and decoding may use different tokens.",
        "Set the ids of model.config and model.generation_config to the tokenizer's.",
    ),
    # Labels
    "P101": Entry(
        "no token is trained",
        "error",
        "Rows without labels teach nothing.",
        "Correct the labels or the mask of the answers.",
    ),
    "P102": Entry(
        "prompts are trained, though the settings ask for answers only",
        "error",
        "The model learns to generate the user's turns.",
        "Set the labels of prompts to -100, and check that no collator overwrites them.",
    ),
    "P103": Entry(
        "padding is trained",
        "error",
        "The model learns to generate padding.",
        "Set the labels to -100 wherever the attention mask is 0.",
    ),
    "P104": Entry(
        "the token that ends answers is not trained",
        "error",
        "The model never learns to stop.",
        "Include the token in the labels; if it is also the padding token, mask padding by length instead of by id.",
    ),
    "P106": Entry(
        "labels are shifted twice",
        "error",
        "The model learns to predict the token after the next one.",
        "Set labels to input_ids, because the model shifts them itself.",
    ),
    "P107": Entry(
        "labels are not the tokens of the row",
        "error",
        "The model learns a text that differs from the text it reads.",
        "Build labels from the same ids, with -100 where nothing is trained.",
    ),
    "P108": Entry(
        "answers are cut off",
        "warning",
        "The model learns to stop in the middle of an answer, or never learns to stop.",
        "Raise max_length, shorten the prompts, or remove these rows.",
    ),
    "P109": Entry(
        "rows without a trained token",
        "warning",
        "These rows cost time and teach nothing.",
        "Remove these rows, or find out why their labels are all -100; often a long prompt was truncated.",
    ),
    "P110": Entry(
        "parts of answers are not trained",
        "error",
        "The model does not learn the parts of an answer that have no labels.",
        "Correct the start and the end of the mask of the answers.",
    ),
    "P111": Entry(
        "the masked tokens are unusual",
        "error",
        "The model learns little or nothing from these masks.",
        "Use DataCollatorForLanguageModeling with mlm_probability between 0.1 and 0.5.",
    ),
    "P112": Entry(
        "labels out of range",
        "error",
        "The loss fails, or on a GPU the process dies.",
        "Set num_labels, or correct the values of the labels.",
    ),
    "P113": Entry(
        "chosen and rejected answers are equal",
        "warning",
        "A pair of equal answers teaches nothing.",
        "Remove these pairs; if truncation made the answers equal, raise max_length.",
    ),
    "P114": Entry(
        "the answers of chosen and rejected pairs are cut off",
        "warning",
        "The difference between the answers may be in the part that is cut off.",
        "Raise max_length, or shorten the prompts.",
    ),
    "P115": Entry(
        "tokens of other roles are trained",
        "note",
        "The model also learns to generate the user's or the system's turns.",
        "Mask these tokens, unless the model should learn the whole conversation.",
    ),
    "P116": Entry(
        "the trained share is small",
        "note",
        "Most of the computation is spent on tokens that have no loss.",
        "If the prompts are not long, look at the labels in the rows above.",
    ),
    "P117": Entry(
        "only one label occurs",
        "error",
        "The model learns to predict always this label.",
        "Check how labels are read, and shuffle sorted files before a part of them is selected.",
    ),
    "P118": Entry(
        "the names of labels differ from those of the model",
        "warning",
        "Predictions have other names than the data.",
        "Set id2label and label2id when the model is loaded.",
    ),
    "P119": Entry(
        "chosen and rejected answers have different prompts",
        "error",
        "The model learns which prompt is better, and not which answer.",
        "Put the common prompt of both answers into the column `prompt`.",
    ),
    # Batches
    "P200": Entry(
        "a batch cannot be made or computed",
        "error",
        "The run would stop here.",
        "Correct the error in the message.",
    ),
    "P201": Entry(
        "padding changes the outputs",
        "error",
        "The outputs of a row depend on the length of the other rows in its batch.",
        "Pass an attention_mask that is 0 on padding, and position_ids that count only tokens.",
    ),
    "P202": Entry(
        "other rows change the outputs",
        "error",
        "The outputs of a row depend on the content of the other rows in its batch.",
        "Find the operation of the model that mixes the rows of a batch.",
    ),
    "P203": Entry(
        "packed documents attend to one another",
        "error",
        "Each document is trained with unrelated documents as its context.",
        "Use an attention implementation that separates packed documents by position_ids, or do not pack.",
    ),
    "P204": Entry(
        "positions beyond the model's limit",
        "error",
        "The model raises an error, or computes with positions that it never saw in training.",
        "Lower max_length to max_position_embeddings.",
    ),
    "P205": Entry(
        "the attention mask does not fit the padding",
        "error",
        "The model reads padding as text, or does not read a part of the text.",
        "Set the mask to 1 on tokens and to 0 on padding.",
    ),
    "P206": Entry(
        "the first token of packed documents is trained",
        "warning",
        "The first token of a document is predicted from another document.",
        "Set the first label of each document to -100.",
    ),
    "P207": Entry(
        "the trainer drops columns",
        "note",
        "The model's forward does not accept these columns, so the collator never gets them.",
        "Set remove_unused_columns=False if the collator or the loss needs them.",
    ),
    "P208": Entry(
        "packed documents are not separated",
        "note",
        "Packed documents attend to one another, as is usual in pretraining.",
        "For fine-tuning, pass position_ids that start again with each document.",
    ),
    "P209": Entry(
        "positions do not count the tokens",
        "error",
        "The model reads the tokens at other positions than in generation.",
        "Start position_ids at the first position in each document, and count only tokens.",
    ),
    # Loss
    "P301": Entry(
        "accumulation multiplies the loss",
        "error",
        "The gradients are multiplied by the number of accumulation steps.",
        "Divide by num_items_in_batch in the loss, or set the trainer's loss_is_scaled_for_ga as the loss is.",
    ),
    "P302": Entry(
        "accumulation weights rows by their batch",
        "warning",
        "Tokens of short rows count more, so the result depends on how the batch is divided.",
        "Sum the loss over tokens and divide by num_items_in_batch.",
    ),
    "P303": Entry(
        "the loss is not finite",
        "error",
        "The first step makes all weights useless.",
        "Look for rows without labels, wrong inputs, and overflow in half precision.",
    ),
    "P304": Entry(
        "the loss does not predict the next token",
        "error",
        "The loss compares labels with outputs at the wrong position.",
        "Let the model compute the loss from labels, or shift once in your own loss.",
    ),
    "P305": Entry(
        "the model sees the tokens that it should predict",
        "error",
        "The loss falls to zero, and generation fails.",
        "Use a causal attention mask.",
    ),
    "P306": Entry(
        "the loss does not depend on the labels",
        "error",
        "The model learns nothing from the data.",
        "Correct the trainer's compute_loss.",
    ),
    "P307": Entry(
        "the loss is not the mean over trained tokens",
        "warning",
        "The size of the loss, and of the steps, depends on padding, on prompts or on the number of rows.",
        "Divide the sum over trained tokens by their number.",
    ),
    "P308": Entry(
        "the first loss is no better than chance",
        "error",
        "Trained weights would predict better, so they were not loaded, or the tokenizer belongs to another model.",
        "Read the messages of from_pretrained, and load the model's own tokenizer.",
    ),
    "P309": Entry(
        "the first loss is far above chance",
        "warning",
        "A new model starts near the logarithm of the number of tokens or classes.",
        "Check the initialization, the learning rate of the previous run, and the labels.",
    ),
    "P310": Entry(
        "the first loss of a new model is below chance",
        "error",
        "An untrained model cannot predict better than chance, so it sees its labels.",
        "Check the attention mask and the code that makes the labels.",
    ),
    "P311": Entry(
        "the reference model is not the model at its start",
        "warning",
        "The loss compares the trained model with a reference that differs from its starting point.",
        "Pass no ref_model, or load it from the same checkpoint.",
    ),
    # Weights
    "P401": Entry(
        "trainable weights get no gradient",
        "error",
        "These weights never change, and no error is raised.",
        "Find the operation that detaches them; with gradient checkpointing, call model.enable_input_require_grads().",
    ),
    "P402": Entry(
        "the head is new and frozen",
        "error",
        "The head stays random.",
        "Name the head in modules_to_save of the adapter's configuration, or make it trainable.",
    ),
    "P403": Entry(
        "steps are smaller than the precision of the weights",
        "warning",
        "Most of the updates round to nothing.",
        "Keep the trained weights in fp32 and compute in bf16 (bf16=True), or raise the rate.",
    ),
    "P404": Entry(
        "tied weights are not tied",
        "error",
        "The input and the output embeddings become different in training, and saving keeps only one of them.",
        "Call model.tie_weights(), or set tie_word_embeddings=False.",
    ),
    "P405": Entry(
        "weights of the model's body are new",
        "error",
        "The checkpoint lacks these weights, or has them under other names, so they are random.",
        "Read the messages of from_pretrained.",
    ),
    "P406": Entry(
        "embeddings of new tokens are not trained",
        "error",
        "The embeddings of new tokens stay random.",
        "Name the tokens in trainable_token_indices, or the embeddings and the head in modules_to_save.",
    ),
    "P407": Entry(
        "the optimizer lacks trainable weights",
        "error",
        "Weights that the optimizer lacks never change.",
        "Create the optimizer after the adapter is added, the embeddings are resized and the model is on its device.",
    ),
    "P408": Entry(
        "nothing is trainable",
        "error",
        "The run changes nothing.",
        "Set requires_grad=True for the weights that should learn.",
    ),
    "P409": Entry(
        "few weights are trainable",
        "note",
        "All other weights are frozen.",
        "Nothing needs to change if this is intended.",
    ),
    "P410": Entry(
        "the merged adapter is another model",
        "error",
        "The merged model differs from the trained one.",
        "Untie the embeddings before an adapter is added to them, and merge in fp32.",
    ),
    "P411": Entry(
        "the adapter is not active",
        "error",
        "The model is trained or evaluated without the adapter.",
        "Call model.set_adapter(...), and load with is_trainable=True.",
    ),
    "P412": Entry(
        "weights trained in half precision with a gradient scaler",
        "error",
        "The gradient scaler cannot unscale fp16 gradients, and raises an error.",
        "Load the model in fp32 for fp16=True, or use bf16.",
    ),
    "P413": Entry(
        "a saved adapter would lack trained weights",
        "error",
        "These weights are trained but not saved, so the loaded model has their old values.",
        "Name the modules of these weights in modules_to_save.",
    ),
    # Generation
    "P501": Entry(
        "generation with a cache differs from generation without it",
        "error",
        "The model computes other probabilities in generation than in training.",
        "Correct the model's cache, its positions and its masks.",
    ),
    "P502": Entry(
        "generation in batches differs from generation of single prompts",
        "warning",
        "Padding changes the generated text.",
        "Pad prompts on the left, and compute positions from the attention mask.",
    ),
    # Data
    "P601": Entry("empty records", "warning", "Empty records teach nothing.", "Remove the empty records."),
    "P602": Entry("duplicates", "warning", "The model memorizes repeated records.", "Keep one copy of each record."),
    "P603": Entry(
        "near duplicates",
        "note",
        "Similar records have more weight than others.",
        "Keep one record of each group, unless this is intended.",
    ),
    "P604": Entry(
        "splits overlap",
        "error",
        "The model is evaluated on records of its training, so the metrics are too good.",
        "Remove the common records from one of the splits.",
    ),
    "P605": Entry(
        "labels are out of balance",
        "note",
        "A model that always predicts the most frequent label has a high accuracy.",
        "Report macro-F1 besides accuracy.",
    ),
    "P606": Entry(
        "labels occur in one split only",
        "warning",
        "These labels are never learned, or never evaluated.",
        "Split the data again, so that each label is in all splits.",
    ),
    "P607": Entry(
        "text decoded with a wrong encoding",
        "warning",
        "The model learns wrong characters instead of those that people write.",
        "Read the file with its own encoding, or repair the text.",
    ),
    "P608": Entry(
        "control characters in texts",
        "warning",
        "Control characters are seldom intended, and cost tokens.",
        "Remove the control characters.",
    ),
    "P609": Entry(
        "the tokenizer cuts a script into bytes",
        "warning",
        "Texts in this script need several times more tokens, and are harder to learn.",
        "Use a tokenizer that was trained on this script.",
    ),
    "P610": Entry(
        "one word predicts the label",
        "warning",
        "The model can be right without reading the text.",
        "Check whether this word is also present when the model is used, and remove it if not.",
    ),
    "P611": Entry(
        "texts are longer than the limit",
        "warning",
        "The part beyond the limit is lost.",
        "Raise the limit, or split the texts.",
    ),
    "P612": Entry(
        "records that cannot be read",
        "error",
        "The training lacks these records.",
        "Correct the records for the reported reasons.",
    ),
    "P613": Entry(
        "equal texts with different labels",
        "warning",
        "No model can predict all of these labels correctly.",
        "Keep one label for each text.",
    ),
    "P614": Entry(
        "a field predicts the label",
        "warning",
        "The model can be right without reading the text.",
        "Remove the field from the inputs.",
    ),
    "P615": Entry(
        "answers repeat their prompt", "warning", "The model learns to copy the prompt.", "Remove these records."
    ),
    "P616": Entry(
        "records are sorted by label",
        "note",
        "A part of the file has only some of the labels, and so have batches without shuffling.",
        "Shuffle the records before they are split or truncated.",
    ),
    "P617": Entry(
        "remnants of HTML",
        "note",
        "The model learns to generate HTML.",
        "Convert the pages to text, unless the texts are about HTML.",
    ),
    "P618": Entry(
        "most answers are equal",
        "warning",
        "The model learns to give always the same answer.",
        "Check how answers are read from the file.",
    ),
    "P619": Entry(
        "the length predicts the better answer",
        "note",
        "The model may learn to write long answers rather than good ones.",
        "Add pairs whose better answer is the shorter one.",
    ),
    "P620": Entry(
        "tags break their scheme",
        "warning",
        "The evaluation counts other entities than the tags intend.",
        "Begin each entity with B-, and continue it with I- of the same type.",
    ),
    # Finished runs and resuming
    "P701": Entry(
        "the loss diverged",
        "error",
        "The weights are worse than those of an earlier step.",
        "Resume from an earlier checkpoint with a lower learning rate, a longer warm-up or a smaller max_grad_norm.",
    ),
    "P702": Entry(
        "the loss or its gradient is not finite",
        "error",
        "The weights are useless.",
        "Resume from an earlier checkpoint with a lower learning rate, or compute in bf16 or fp32.",
    ),
    "P703": Entry(
        "the learning rate is not as planned",
        "error",
        "The schedule of the run differs from its settings.",
        "Check the number of steps, resumed optimizers and custom schedulers.",
    ),
    "P704": Entry(
        "the loss is flat from the beginning",
        "error",
        "The model learned nothing.",
        "Check with preflight(trainer) that the trainable weights get gradients.",
    ),
    "P705": Entry(
        "the evaluation was never better than at the start",
        "error",
        "The run made the model worse, or the evaluation measures something else.",
        "Lower the learning rate, and check that evaluation and training prepare texts in the same way.",
    ),
    "P706": Entry(
        "the evaluation was best long before the end",
        "warning",
        "The later steps made the model worse.",
        "Use the best checkpoint (load_best_model_at_end=True), or stop earlier.",
    ),
    "P707": Entry(
        "much time went into evaluation and saving",
        "warning",
        "The run could have used this time for training.",
        "Evaluate and save less often, or on fewer records.",
    ),
    "P708": Entry(
        "the run ended before its last step",
        "warning",
        "The learning rate did not reach the end of its schedule.",
        "Resume the run.",
    ),
    "P709": Entry(
        "the last loss is almost zero",
        "warning",
        "The model memorized the records, or sees its labels.",
        "Check the validation loss, and train for fewer epochs.",
    ),
    "P710": Entry(
        "gradients are always clipped",
        "note",
        "The size of steps depends on max_grad_norm more than on the gradients.",
        "Raise max_grad_norm or lower the learning rate, unless this is intended.",
    ),
    "P711": Entry(
        "the resumed run differs from the saved run",
        "error",
        "Steps, data and learning rate no longer fit together, so batches are repeated or skipped.",
        "Resume with the same batch size, accumulation, processes and data.",
    ),
    "P712": Entry(
        "the checkpoint lacks a part that resuming needs",
        "error",
        "The missing part starts again without an error: the schedule, the momentum, or the order of the data.",
        "Save with save_only_model=False, and resume from a complete checkpoint.",
    ),
    "P713": Entry(
        "the checkpoint has weights that are not finite or not the model's",
        "error",
        "The resumed run starts with wrong weights.",
        "Resume from an earlier checkpoint.",
    ),
    "P714": Entry(
        "gradients are zero",
        "error",
        "The model learned nothing.",
        "Check with preflight(trainer) that rows have trained tokens.",
    ),
    "P715": Entry(
        "the training loss jumps at each epoch",
        "note",
        "The model memorizes records of the previous epoch.",
        "Train for fewer epochs if the validation loss rises.",
    ),
    # Settings of the run
    "P801": Entry(
        "the run makes no step",
        "error",
        "The run trains nothing.",
        "Raise the number of epochs, or lower the batch size or the accumulation steps.",
    ),
    "P802": Entry(
        "the learning rate is zero, or far from usual values",
        "warning",
        "The model learns nothing, or forgets its pretraining.",
        "Correct TrainingArguments.learning_rate.",
    ),
    "P803": Entry(
        "the warm-up is as long as the run",
        "warning",
        "The learning rate never reaches its full value.",
        "Lower warmup_steps.",
    ),
    "P804": Entry(
        "records are cut at the end of each epoch",
        "note",
        "dataloader_drop_last removes the last incomplete batch of each epoch.",
        "Set dataloader_drop_last=False, unless this is intended.",
    ),
    "P805": Entry(
        "the selection of the best checkpoint prefers the worst metric",
        "error",
        "The run keeps the worst checkpoint.",
        "Set greater_is_better to fit metric_for_best_model.",
    ),
}
