"""The codes of findings: what each means, why it matters and how it is mended."""

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
        "This tokenizer begins texts with one, so rows differ from pretraining and from generation.",
        "Tokenize with add_special_tokens=True, or write bos_token in the chat template.",
    ),
    "P003": Entry(
        "answers end without a token to stop at",
        "error",
        "The model never learns to stop.",
        "Write eos_token or an end-of-turn token behind each answer, in the chat template or the text.",
    ),
    "P004": Entry(
        "the chat template drops messages",
        "error",
        "The model is trained on conversations without them, and no error says so.",
        "Use a template that writes these messages, or leave them out of the data.",
    ),
    "P005": Entry(
        "the chat template drops a part of messages",
        "warning",
        "The model is trained without it.",
        "Use a template that writes it, or leave the field out of the data.",
    ),
    "P006": Entry(
        "the chat template changes the content of messages",
        "note",
        "The model sees other text than the record has.",
        "Nothing, if it only strips blanks on purpose.",
    ),
    "P007": Entry(
        "the chat template refuses records",
        "error",
        "Such records stop the run, or are skipped.",
        "Use another template, or change the records' roles and order.",
    ),
    "P008": Entry(
        "the generation prompt is not how training rows go on",
        "error",
        "In training the answer follows other tokens than in generation.",
        "Make the template write the same text before an answer in both cases.",
    ),
    "P009": Entry(
        "markers of the chat template are not tokens",
        "warning",
        "The tokenizer cuts them into pieces, which nothing can stop at.",
        "Add them as special tokens and resize the embeddings, or use the template that belongs to the tokenizer.",
    ),
    "P010": Entry(
        "token ids beyond the embeddings",
        "error",
        "The model fails on such a row, or on a GPU reads other memory.",
        "Call model.resize_token_embeddings(len(tokenizer)), or use the tokenizer that belongs to the model.",
    ),
    "P011": Entry(
        "unknown tokens",
        "warning",
        "The model cannot see what was written there.",
        "Use a tokenizer that knows these characters.",
    ),
    "P012": Entry(
        "no chat template",
        "error",
        "Conversations cannot be written as tokens.",
        "Set tokenizer.chat_template, or give a file by --template.",
    ),
    "P013": Entry(
        "special tokens in the text of messages",
        "warning",
        "A message can end its own turn, or speak for another role.",
        "Take them out of the data.",
    ),
    "P014": Entry(
        "the chat template does not mark the assistant's tokens",
        "error",
        "A loss on the assistant's tokens finds none, or all.",
        "Put {% generation %} around answers in the template.",
    ),
    "P015": Entry(
        "the chat template depends on the date",
        "note",
        "Rows made on another day differ.",
        "Nothing, or write the date into the records.",
    ),
    "P016": Entry(
        "generation does not stop at the token that ends answers",
        "error",
        "The model ends its answer, and generation goes on.",
        "Add the token to model.generation_config.eos_token_id.",
    ),
    "P017": Entry(
        "a chat is rendered twice",
        "error",
        "Markers of the template stand inside a message.",
        "Give the raw messages, or the rendered text to a trainer that applies no template.",
    ),
    "P018": Entry(
        "the padding token is the token that ends texts",
        "note",
        "A collator that finds padding by its id also hides the end of answers.",
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
        "The loss misses a part of the answers, or trains what others said.",
        "Put {% generation %} around the answer and the token that ends it, and around nothing else.",
    ),
    "P021": Entry(
        "the model and the tokenizer name different special tokens",
        "warning",
        "Padding, stopping and decoding go by the one or the other.",
        "Set the ids of model.config and model.generation_config to the tokenizer's.",
    ),
    # Labels
    "P101": Entry(
        "no token is trained", "error", "Such rows teach nothing.", "Mend the labels or the mask of the answers."
    ),
    "P102": Entry(
        "prompts are trained, though the settings ask for answers only",
        "error",
        "The model learns to write the user's turns.",
        "Let the labels of prompts be -100, and see that no collator overwrites them.",
    ),
    "P103": Entry(
        "padding is trained",
        "error",
        "The model learns to write padding.",
        "Let the labels be -100 wherever the attention mask is 0.",
    ),
    "P104": Entry(
        "the token that ends answers is not trained",
        "error",
        "The model never learns to stop.",
        "Include it in the labels. If it is also the padding token, let the collator mask by length and not by id.",
    ),
    "P106": Entry(
        "labels are shifted twice",
        "error",
        "The model learns to predict the token after the next one.",
        "Let labels be equal to input_ids: the model shifts them itself.",
    ),
    "P107": Entry(
        "labels are not the tokens of the row",
        "error",
        "The model learns other text than it reads.",
        "Build labels from the same ids, with -100 where nothing is trained.",
    ),
    "P108": Entry(
        "answers are cut off",
        "warning",
        "The model learns to stop in the middle, or never sees an end.",
        "Raise max_length, shorten the prompts, or leave such rows out.",
    ),
    "P109": Entry(
        "rows without a trained token",
        "warning",
        "They cost time and teach nothing.",
        "Leave them out, or see why their labels are all -100 (often truncation of a long prompt).",
    ),
    "P110": Entry(
        "parts of answers are not trained",
        "error",
        "The model never learns to begin an answer, or to go on.",
        "Mend the edges of the mask.",
    ),
    "P111": Entry(
        "masked tokens are not as usual",
        "error",
        "The masked model learns nothing, or only special tokens.",
        "Use DataCollatorForLanguageModeling with mlm_probability between 0.1 and 0.5.",
    ),
    "P112": Entry(
        "labels out of range",
        "error",
        "The loss fails, or on a GPU the process dies.",
        "Set num_labels, or mend the numbers of the labels.",
    ),
    "P113": Entry(
        "chosen and rejected answers are equal",
        "warning",
        "Such a pair teaches nothing.",
        "Leave it out; if truncation made them equal, raise max_length.",
    ),
    "P114": Entry(
        "the answers of chosen and rejected pairs are cut off",
        "warning",
        "What makes one better may be in the part that is lost.",
        "Raise max_length.",
    ),
    "P115": Entry(
        "tokens of other roles are trained",
        "note",
        "The model also learns to write the user's or the system's turns.",
        "Nothing, if the whole conversation shall be learned; else mask them.",
    ),
    "P116": Entry(
        "the trained share is small",
        "note",
        "Most of the computed tokens teach nothing.",
        "Nothing, if prompts are long; else see the rows above.",
    ),
    "P117": Entry(
        "only one label occurs",
        "error",
        "The model learns to say this label always.",
        "See how labels are read; shuffle sorted files before they are cut.",
    ),
    "P118": Entry(
        "names of labels are not those of the model",
        "warning",
        "Predictions bear other names than the data.",
        "Set id2label and label2id when the model is loaded.",
    ),
    "P119": Entry(
        "chosen and rejected answers have different prompts",
        "error",
        "The model learns which prompt is better, and not which answer.",
        "Give the prompt of both answers in the column prompt.",
    ),
    # Batches
    "P200": Entry(
        "a batch cannot be made or computed",
        "error",
        "The run would stop here.",
        "See the message.",
    ),
    "P201": Entry(
        "padding changes the outputs",
        "error",
        "What the model computes for a row depends on the length of its neighbours.",
        "Give an attention_mask that is 0 on padding, and position_ids that count tokens only.",
    ),
    "P202": Entry(
        "other rows change the outputs",
        "error",
        "What the model computes for a row depends on the rows beside it.",
        "See that nothing in the model mixes the rows of a batch.",
    ),
    "P203": Entry(
        "packed documents see one another",
        "error",
        "Each document is trained with others as its context.",
        "Use an attention that keeps packed documents apart by position_ids, without a mask, or do not pack.",
    ),
    "P204": Entry(
        "positions beyond what the model has",
        "error",
        "The model fails, or repeats positions it never saw.",
        "Lower max_length to max_position_embeddings.",
    ),
    "P205": Entry(
        "the attention mask does not fit the padding",
        "error",
        "Padding is read as text, or text is hidden.",
        "Let the mask be 1 on tokens and 0 on padding.",
    ),
    "P206": Entry(
        "the first token of packed documents is trained",
        "warning",
        "It is predicted from another document.",
        "Let the first label of each document be -100.",
    ),
    "P207": Entry(
        "the trainer drops columns",
        "note",
        "The model's forward does not take them, so that the collator never sees them.",
        "Set remove_unused_columns=False if the collator or the loss needs them.",
    ),
    "P208": Entry(
        "documents are packed without their edges",
        "note",
        "They see one another, as is usual in pretraining.",
        "For fine-tuning, give position_ids that start again with each document.",
    ),
    "P209": Entry(
        "positions do not count the tokens",
        "error",
        "The model reads the tokens at other places than in generation.",
        "Let position_ids start at 0 with each document and go up by one, padding left out.",
    ),
    # Loss
    "P301": Entry(
        "accumulation multiplies the loss",
        "error",
        "Gradients are as many times too large as there are accumulation steps.",
        "Divide by num_items_in_batch in the loss, or set the trainer's loss_is_scaled_for_ga as the loss is.",
    ),
    "P302": Entry(
        "accumulation weighs rows by their batch",
        "warning",
        "Tokens of short rows count more, so that the result depends on how the batch is divided.",
        "Sum the loss over tokens and divide by num_items_in_batch.",
    ),
    "P303": Entry(
        "the loss is not finite", "error", "The first step ruins the weights.", "See the rows and the dtype."
    ),
    "P304": Entry(
        "the loss does not predict the next token",
        "error",
        "Labels are compared with outputs at the same place, so that the model learns to copy its input.",
        "Let the model compute the loss from labels, or shift once in your own loss.",
    ),
    "P305": Entry(
        "the model sees the tokens that it shall predict",
        "error",
        "The loss falls to zero, and generation fails.",
        "Use a causal attention mask.",
    ),
    "P306": Entry(
        "the loss does not depend on the labels",
        "error",
        "Nothing of the data is learned.",
        "See the trainer's compute_loss.",
    ),
    "P307": Entry(
        "the loss is not the mean over trained tokens",
        "warning",
        "Its size depends on padding, prompts or the number of rows, and so do the steps.",
        "Divide the sum over trained tokens by their number.",
    ),
    "P308": Entry(
        "the first loss is no better than chance",
        "error",
        "Trained weights would know better: they were not loaded, or the tokenizer is not the model's.",
        "See the messages of from_pretrained, and load the model's own tokenizer.",
    ),
    "P309": Entry(
        "the first loss is far above chance",
        "warning",
        "A new model starts near the logarithm of the number of tokens or classes.",
        "See the initialization, the learning rate of the last run, and the labels.",
    ),
    "P310": Entry(
        "the first loss of a new model is below chance",
        "error",
        "A model that knows nothing cannot predict: it sees its labels.",
        "See the attention mask and how labels are made.",
    ),
    "P311": Entry(
        "the reference model is not the model at its start",
        "warning",
        "Preferences are measured against another model than the one that is trained.",
        "Give no ref_model, or load it from the same checkpoint; put the adapter on after loading.",
    ),
    # Weights
    "P401": Entry(
        "weights that shall learn get no gradient",
        "error",
        "They stay as they are, without an error.",
        "See what is detached on the way; with gradient checkpointing, call model.enable_input_require_grads().",
    ),
    "P402": Entry(
        "the head is new and frozen",
        "error",
        "Random weights stay random, and the rest must fit itself to them.",
        "Name it in modules_to_save of the adapter's configuration, or let it require gradients.",
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
        "Input and output embeddings drift apart in training, and one of them is lost in saving.",
        "Call model.tie_weights(), or set tie_word_embeddings=False.",
    ),
    "P405": Entry(
        "weights of the model's body are new",
        "error",
        "They were not in the checkpoint, or under another name, and are random.",
        "See the messages of from_pretrained.",
    ),
    "P406": Entry(
        "embeddings of new tokens are not trained",
        "error",
        "They stay random, in the input and in the output.",
        "Name them in trainable_token_indices, or the embeddings and head in modules_to_save.",
    ),
    "P407": Entry(
        "the optimizer does not hold the weights that learn",
        "error",
        "They stay as they are.",
        "Create the optimizer after the model has its adapter, its size and its device.",
    ),
    "P408": Entry("nothing is trainable", "error", "The run changes nothing.", "Let weights require gradients."),
    "P409": Entry(
        "few weights learn",
        "note",
        "All others are frozen.",
        "Nothing, if this is meant.",
    ),
    "P410": Entry(
        "the merged adapter is another model",
        "error",
        "What is merged and served differs from what was trained.",
        "Untie the embeddings before an adapter on them, and merge in fp32.",
    ),
    "P411": Entry(
        "the adapter is not active",
        "error",
        "The model is trained or measured without it.",
        "Call model.set_adapter(...), and load with is_trainable=True.",
    ),
    "P412": Entry(
        "weights trained in half precision with a gradient scaler",
        "error",
        "fp16 gradients cannot be unscaled.",
        "Load the model in fp32 for fp16=True, or use bf16.",
    ),
    "P413": Entry(
        "a saved adapter would lack trained weights",
        "error",
        "They are trained, but no part of the adapter, so that loading gives the old ones.",
        "Name them in modules_to_save.",
    ),
    # Generation
    "P501": Entry(
        "generation with a cache is not as without",
        "error",
        "The model is trained for other text than it generates.",
        "See the cache, its positions and masks.",
    ),
    "P502": Entry(
        "generation in batches is not as of single prompts",
        "warning",
        "Padding changes what the model writes, in evaluation and in use.",
        "See how the model makes positions from the attention mask, and pad prompts on the left.",
    ),
    # Data
    "P601": Entry("empty records", "warning", "They teach nothing.", "Leave them out."),
    "P602": Entry("duplicates", "warning", "They count several times, and are learned by heart.", "Keep one of each."),
    "P603": Entry(
        "near duplicates", "note", "They count almost several times.", "Keep one of each, if this is not meant."
    ),
    "P604": Entry(
        "splits overlap",
        "error",
        "What is measured was trained, so that the figures are too good.",
        "Take the common records out of one of them.",
    ),
    "P605": Entry(
        "labels are out of balance",
        "note",
        "Accuracy is high for a model that says the most frequent label always.",
        "Measure macro-F1.",
    ),
    "P606": Entry(
        "labels occur in one split only",
        "warning",
        "They are never learned, or never measured.",
        "Divide the data anew, so that each label is in all splits.",
    ),
    "P607": Entry(
        "text decoded with a wrong encoding",
        "warning",
        "The model learns these characters, and reads none that people write.",
        "Read the file with its own encoding, or repair the text.",
    ),
    "P608": Entry(
        "control characters in texts",
        "warning",
        "They are seldom meant, and take tokens.",
        "Take them out.",
    ),
    "P609": Entry(
        "the tokenizer cuts a script into bytes",
        "warning",
        "Rows are several times longer than in scripts it knows, and slower to learn.",
        "Use a tokenizer that was trained on this script.",
    ),
    "P610": Entry(
        "one word tells the label",
        "warning",
        "The model can be right without reading the text.",
        "See whether this word is also there when the model is used.",
    ),
    "P611": Entry(
        "texts are longer than the limit",
        "warning",
        "The rest is lost.",
        "Raise the limit, or divide the texts.",
    ),
    "P612": Entry("records that cannot be read", "error", "They are missing in the training.", "See the reasons."),
    "P613": Entry(
        "equal texts with different labels",
        "warning",
        "No model can be right on all of them.",
        "Keep one label for each text.",
    ),
    "P614": Entry(
        "a field tells the label",
        "warning",
        "The model can be right without reading the text.",
        "Leave the field out.",
    ),
    "P615": Entry("answers repeat their prompt", "warning", "The model learns to copy.", "Leave such records out."),
    "P616": Entry(
        "records are sorted by label",
        "note",
        "A part of the file has few of the labels, and batches of a run that does not shuffle have one.",
        "Shuffle before records are divided or cut off.",
    ),
    "P617": Entry(
        "remnants of HTML",
        "note",
        "The model learns to write them.",
        "Convert the page to text, unless the texts are about HTML.",
    ),
    "P618": Entry(
        "most answers are equal",
        "warning",
        "The model learns to give this answer always.",
        "See how answers are read.",
    ),
    "P619": Entry(
        "the length tells the better answer",
        "note",
        "The model may learn to write long answers rather than good ones.",
        "Add pairs whose better answer is the shorter one.",
    ),
    "P620": Entry(
        "tags break their scheme",
        "warning",
        "Entities are counted otherwise than they are meant.",
        "Let each entity begin with B-, and continue with I- of the same type.",
    ),
    # Finished runs and resuming
    "P701": Entry(
        "the loss diverged",
        "error",
        "The weights are worse than before.",
        "Go back to an earlier checkpoint with a lower rate, longer warm-up or smaller max_grad_norm.",
    ),
    "P702": Entry(
        "the loss or its gradient is not finite", "error", "The weights are lost.", "As P701; see the dtype."
    ),
    "P703": Entry(
        "the learning rate is not as planned",
        "error",
        "The run had another schedule than its settings say.",
        "See the number of steps, resumed optimizers and custom schedulers.",
    ),
    "P704": Entry(
        "the loss is flat from the beginning",
        "error",
        "Nothing was learned.",
        "See that the weights that shall learn get gradients: preflight(trainer).",
    ),
    "P705": Entry(
        "the evaluation was never better than at the start",
        "error",
        "The run made the model worse, or measures something else.",
        "Lower the rate; see that evaluation and training prepare texts alike.",
    ),
    "P706": Entry(
        "the evaluation was best long before the end",
        "warning",
        "The later steps made it worse.",
        "Take the best checkpoint (load_best_model_at_end=True), or stop there.",
    ),
    "P707": Entry(
        "much time went into evaluation and saving",
        "warning",
        "The run could have trained in it.",
        "Evaluate and save less often, or on fewer records.",
    ),
    "P708": Entry(
        "the run ended before its last step",
        "warning",
        "The schedule did not come to its end.",
        "Resume it.",
    ),
    "P709": Entry(
        "the last loss is almost zero",
        "warning",
        "The records are learned by heart, or the labels can be seen.",
        "See the validation loss, and fewer epochs.",
    ),
    "P710": Entry(
        "gradients are always clipped",
        "note",
        "The steps follow max_grad_norm more than the rate.",
        "Raise max_grad_norm or lower the rate, if this is not meant.",
    ),
    "P711": Entry(
        "the resumed run is another run",
        "error",
        "Steps, data and rate no longer fit together: batches are seen twice or skipped.",
        "Resume with the same batch size, accumulation, processes and data.",
    ),
    "P712": Entry(
        "the checkpoint lacks a part that resuming needs",
        "error",
        "It is made anew without an error: the rate starts again, momentum is lost, or data are drawn otherwise.",
        "Save with save_only_model=False, and resume from a complete checkpoint.",
    ),
    "P713": Entry(
        "the checkpoint holds weights that are not finite or not the model's",
        "error",
        "The resumed run cannot recover.",
        "Take an earlier checkpoint.",
    ),
    "P714": Entry(
        "gradients are zero",
        "error",
        "Nothing was learned.",
        "See that the loss has trained tokens: preflight(trainer).",
    ),
    "P715": Entry(
        "the training loss jumps at each epoch",
        "note",
        "Records of the last epoch are remembered.",
        "Nothing; the validation loss tells whether it goes too far.",
    ),
    # Settings of the run
    "P801": Entry(
        "the run makes no step", "error", "Nothing is trained.", "Raise the epochs, or lower batch size × accumulation."
    ),
    "P802": Entry(
        "the learning rate is zero, or far from what is usual",
        "warning",
        "Nothing is learned, or all is forgotten.",
        "See TrainingArguments.learning_rate.",
    ),
    "P803": Entry(
        "the warm-up is as long as the run",
        "warning",
        "The rate never comes to its value.",
        "Lower warmup_steps.",
    ),
    "P804": Entry(
        "records are cut at the end of each epoch",
        "note",
        "dataloader_drop_last leaves them out.",
        "Nothing, or another batch size.",
    ),
    "P805": Entry(
        "the best checkpoint is chosen by the wrong end",
        "error",
        "The worst one is kept.",
        "Set greater_is_better to fit metric_for_best_model.",
    ),
}
