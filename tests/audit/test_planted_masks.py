"""
Faults of loss masks, special tokens and chat templates that people reported, planted in runs as they wrote them.

Each run is also checked without its fault.
"""

import pytest
from audit_helpers import CHATML, SENTENCES, byte_tokenizer, causal_trainer, chats, sft_trainer, tiny_llama, token_rows
from datasets import Dataset
from planted import assert_found, assert_sound, padded, planted
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq, PreTrainedTokenizerFast


PLAIN_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PROMPT_END = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def finetune(folder, tokenizer, rows, collator=None, model=None, **options):
    """A plain Trainer on rows of tokens with labels."""
    collator = collator or DataCollatorForSeq2Seq(tokenizer)
    return causal_trainer(folder, rows, collator, model or tiny_llama(tokenizer), tokenizer, **options)


def spans_of_answers(tokenizer, messages):
    """Yields the first and last place of each answer with its end token, as scripts find them by rendered prefixes."""
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            prefix = tokenizer.apply_chat_template(messages[:number], tokenize=False, add_generation_prompt=True)
            start = len(tokenizer(prefix, add_special_tokens=False).input_ids)
            yield start, start + len(tokenizer(message["content"], add_special_tokens=False).input_ids) + 1


def answers_labelled(tokenizer, records, first=0, last=0):
    """Rows whose labels are the answers, with borders that are moved by `first` and `last` tokens."""
    rows = []
    for record in records:
        ids = tokenizer.apply_chat_template(record["messages"], return_dict=True)["input_ids"]
        labels = [-100] * len(ids)
        for start, end in spans_of_answers(tokenizer, record["messages"]):
            labels[start + first : end + last] = ids[start + first : end + last]
        rows.append({"input_ids": ids, "labels": labels})
    return rows


# The mask of the assistant's tokens


def mask_without_markers(folder, fault):
    """The stock template has no {% generation %}, so that the mask from which labels are made is all zeros."""
    tokenizer = byte_tokenizer(chat_template=PLAIN_CHATML if fault else CHATML)
    return finetune(folder, tokenizer, token_rows(tokenizer, chats()))


def every_turn_marked(folder, fault):
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{% generation %}{{ message.content }}<|im_end|>"
        "{% endgeneration %}\n{% endfor %}" + PROMPT_END
    )
    tokenizer = byte_tokenizer(chat_template=template if fault else CHATML)
    return sft_trainer(folder, chats(), tokenizer=tokenizer, assistant_only_loss=True)


def end_outside_of_the_mark(folder, fault):
    template = CHATML.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    tokenizer = byte_tokenizer(chat_template=template if fault else CHATML)
    return sft_trainer(folder, chats(turns=2), tokenizer=tokenizer, assistant_only_loss=True)


def last_answer_marked(folder, fault):
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{% if message.role == 'assistant' and loop.last %}{% generation %}{{ message.content }}<|im_end|>"
        "{% endgeneration %}{% else %}{{ message.content }}<|im_end|>{% endif %}\n{% endfor %}" + PROMPT_END
    )
    tokenizer = byte_tokenizer(chat_template=template if fault else CHATML)
    return sft_trainer(folder, chats(turns=3), tokenizer=tokenizer, assistant_only_loss=True, max_length=None)


def end_of_turn_is_not_eos(folder, fault):
    """As Gemma: turns end with <end_of_turn>, and the script labels the content and eos_token only."""
    template = (
        "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ 'model' if message.role == 'assistant' else "
        "message.role }}\n{{ message.content }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    specials = ("<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
    names = dict(bos_token="<bos>", eos_token="<eos>")
    tokenizer = byte_tokenizer(specials, chat_template=template, **names)
    model = tiny_llama(tokenizer)
    model.generation_config.eos_token_id = [2, 4]
    return finetune(folder, tokenizer, answers_labelled(tokenizer, chats(), last=-1 if fault else 0), model=model)


def first_token_masked(folder, fault):
    tokenizer = byte_tokenizer(chat_template=PLAIN_CHATML)
    return finetune(folder, tokenizer, answers_labelled(tokenizer, chats(), first=int(fault)))


def mask_one_token_early(folder, fault):
    """The mask is cut on its left, and the loss on its right: the last token of the prompt is trained, the end not."""
    tokenizer = byte_tokenizer(chat_template=PLAIN_CHATML)
    early = -1 if fault else 0
    return finetune(folder, tokenizer, answers_labelled(tokenizer, chats(turns=2), first=early, last=early))


def mask_two_tokens_late(folder, fault):
    tokenizer = byte_tokenizer(chat_template=PLAIN_CHATML)
    late = 2 if fault else 0
    return finetune(folder, tokenizer, answers_labelled(tokenizer, chats(turns=2), first=late, last=late))


def marker_in_other_tokens(folder, fault):
    """A collator looks for the tokens of "Answer: ", which are others where a word follows the blank."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    texts = [f"Question: {one}?\nAnswer: {two}" for one in SENTENCES for two in SENTENCES]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<pad>", "</s>"]
    core.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")
    marker = tokenizer("Answer: " if fault else "Answer:").input_ids

    def collate(rows):
        batch = padded(tokenizer, rows)
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for number, row in enumerate(rows):
            ids = row["input_ids"]
            places = [place for place in range(len(ids)) if ids[place : place + len(marker)] == marker]
            batch["labels"][number, : places[-1] + len(marker) if places else None] = -100
        return batch

    rows = [{"input_ids": tokenizer(text + "</s>").input_ids} for text in texts[:24]]
    return finetune(folder, tokenizer, rows, collate, tiny_llama(tokenizer, bos_token_id=None))


def completions_cut_away(folder, fault):
    """Rows are cut to a length that long prompts fill alone."""
    tokenizer = byte_tokenizer(eos_token="</s>", chat_template=None)
    rows = []
    for number in range(16):
        question = tokenizer(f"{number}: say it again: " + f"{SENTENCES[number % 8]} " * (1 + number % 3)).input_ids
        answer = tokenizer("yes</s>").input_ids
        length = 60 if fault else 400
        rows.append({"input_ids": (question + answer)[:length], "labels": ([-100] * len(question) + answer)[:length]})
    return finetune(folder, tokenizer, rows)


def ends_cut_away(folder, fault):
    return sft_trainer(folder, chats(), assistant_only_loss=True, max_length=120 if fault else None)


def prompts_trained(folder, fault):
    """The trainer is told to train completions only, and the script's own collator makes labels of all tokens."""
    tokenizer = byte_tokenizer()

    def collate(rows):
        batch = padded(tokenizer, rows)
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return batch

    records = [{"prompt": f"say {one}:", "completion": f" {one.upper()}"} for one in SENTENCES * 2]
    trainer = sft_trainer(folder, records, tokenizer=tokenizer, completion_only_loss=True)
    if fault:
        trainer.data_collator = collate
    return trainer


def stock_collator_hides_ends(folder, fault):
    """The padding token is the end token, and the collator finds padding by its id."""
    tokenizer = byte_tokenizer(pad_token="</s>" if fault else "<pad>", eos_token="</s>", chat_template=None)
    rows = [{"input_ids": tokenizer(text + tokenizer.eos_token).input_ids} for text in SENTENCES * 2]
    return finetune(folder, tokenizer, rows, DataCollatorForLanguageModeling(tokenizer, mlm=False))


def own_collator_hides_ends(folder, fault):
    tokenizer = byte_tokenizer(pad_token="<|im_end|>" if fault else "<pad>")

    def collate(rows):
        batch = DataCollatorForSeq2Seq(tokenizer)(rows)
        batch["labels"][batch["labels"] == tokenizer.pad_token_id] = -100
        return batch

    return finetune(folder, tokenizer, token_rows(tokenizer, chats()), collate)


# Begin and end tokens


def begin_written_twice(folder, fault):
    """The template writes the begin token, and the tokenizer adds it again to the rendered text."""
    tokenizer = byte_tokenizer(add_bos=True, chat_template="{{ bos_token }}" + PLAIN_CHATML)

    def tokenize(record):
        text = tokenizer.apply_chat_template(record["messages"], tokenize=False)
        ids = tokenizer(text, add_special_tokens=fault).input_ids
        return {"input_ids": ids, "labels": ids}

    rows = Dataset.from_list(chats()).map(tokenize, remove_columns=["messages"])
    return finetune(folder, tokenizer, rows)


def begin_written_twice_by_trl(folder, fault):
    """Rendered chats are given to SFTTrainer as texts, which it tokenizes with the begin token."""
    template = PLAIN_CHATML if not fault else "{{ bos_token }}" + PLAIN_CHATML
    tokenizer = byte_tokenizer(add_bos=True, chat_template=template)
    texts = [{"text": tokenizer.apply_chat_template(one["messages"], tokenize=False)} for one in chats()]
    return sft_trainer(folder, texts, tokenizer=tokenizer)


def begin_left_out(folder, fault):
    tokenizer = byte_tokenizer(add_bos=True, chat_template="{{ bos_token }}" + PLAIN_CHATML)
    rows = []
    for record in chats():
        text = tokenizer.apply_chat_template(record["messages"], tokenize=False)
        ids = tokenizer(text.replace("<s>", "") if fault else text, add_special_tokens=False).input_ids
        rows.append({"input_ids": ids, "labels": ids})
    return finetune(folder, tokenizer, rows)


def instructions_without_end(folder, fault):
    tokenizer = byte_tokenizer(eos_token="</s>", chat_template=None)
    end = "" if fault else tokenizer.eos_token
    rows = []
    for one, two in zip(SENTENCES, SENTENCES[1:] + SENTENCES[:1]):
        prompt = tokenizer(f"### Instruction:\ngo on: {one}\n\n### Response:\n").input_ids
        answer = tokenizer(two + end).input_ids
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return finetune(folder, tokenizer, rows * 2)


def turns_without_end(folder, fault):
    end = "" if fault else "{{ eos_token }}"
    template = (
        "{% for message in messages %}{% if message.role == 'user' %}### User:\n{{ message.content }}\n\n"
        "{% else %}### Assistant:\n{{ message.content }}" + end + "\n\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
    )
    tokenizer = byte_tokenizer(chat_template=template, eos_token="</s>")
    return sft_trainer(folder, chats(turns=2), tokenizer=tokenizer)


def turns_closed_by_the_next(folder, fault):
    """As GLM: a turn ends where the marker of the next role begins, and the last one does not end."""
    template = (
        "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% elif " + ("false" if fault else "true") + " %}<eos>{% endif %}"
    )
    specials = ("<pad>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>")
    tokenizer = byte_tokenizer(specials, chat_template=template, eos_token="<eos>")
    model = tiny_llama(tokenizer, bos_token_id=None)
    model.generation_config.eos_token_id = [1, 3]
    return sft_trainer(folder, chats(), tokenizer=tokenizer, model=model)


def stop_is_another_token(folder, fault):
    """As Llama 3 at its release: turns end with <|eot_id|>, and generation waits for <|end_of_text|>."""
    tokenizer = byte_tokenizer(eos_token="</s>")
    model = tiny_llama(tokenizer)
    model.generation_config.eos_token_id = [2] if fault else [2, 4]
    return sft_trainer(folder, chats(), tokenizer=tokenizer, model=model)


def markers_are_pieces(folder, fault):
    specials = ("<pad>", "<s>", "</s>") if fault else ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
    tokenizer = byte_tokenizer(specials, eos_token="</s>" if fault else "<|im_end|>")
    return sft_trainer(folder, chats(), tokenizer=tokenizer)


# What the template makes of the records


def system_dropped(folder, fault):
    template = (
        "{% for message in messages %}{% if message.role == 'user' %}<|im_start|>user\n{{ message.content }}"
        "<|im_end|>\n{% elif message.role == 'assistant' %}<|im_start|>assistant\n{{ message.content }}<|im_end|>\n"
        "{% endif %}{% endfor %}" + PROMPT_END
    )
    tokenizer = byte_tokenizer(chat_template=template if fault else CHATML)
    return sft_trainer(folder, chats(system=True), tokenizer=tokenizer)


def unknown_roles_dropped(folder, fault):
    """Roles of ShareGPT are taken over as they stand; the template knows user and assistant."""
    template = (
        "{% for message in messages %}{% if message.role == 'system' %}<|im_start|>system\n{{ message.content }}"
        "<|im_end|>\n{% elif message.role == 'user' %}<|im_start|>user\n{{ message.content }}<|im_end|>\n"
        "{% elif message.role == 'assistant' %}<|im_start|>assistant\n{{ message.content }}<|im_end|>\n"
        "{% endif %}{% endfor %}" + PROMPT_END
    )
    names = {"user": "human", "assistant": "gpt", "system": "system"} if fault else {}
    records = [
        {"messages": [message | {"role": names.get(message["role"], message["role"])} for message in one["messages"]]}
        for one in chats(system=True)
    ]
    return sft_trainer(folder, records, tokenizer=byte_tokenizer(chat_template=template))


def reasoning_stripped(folder, fault):
    """As DeepSeek-R1-Distill: the template cuts each answer behind </think>, the trained one too."""
    cut = "{{ message.content.split('</think>')[-1] }}" if fault else "{{ message.content }}"
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' %}"
        + cut
        + "{% else %}{{ message.content }}{% endif %}<|im_end|>\n{% endfor %}"
        + PROMPT_END
    )
    records = chats()
    for record in records:
        answer = record["messages"][-1]
        answer["content"] = f"<think>\nlet me see: {answer['content'].lower()}\n</think>\n{answer['content']}"
    return sft_trainer(folder, records, tokenizer=byte_tokenizer(chat_template=template), max_length=None)


def tool_calls_dropped(folder, fault):
    calls = (
        "{% for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
        if not fault
        else ""
    )
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
        "{% if message.tool_calls %}" + calls + "{% endif %}<|im_end|>\n{% endfor %}" + PROMPT_END
    )
    records = []
    for number in range(12):
        call = {"type": "function", "function": {"name": "weather", "arguments": {"day": number}}}
        records.append(
            {
                "messages": [
                    {"role": "user", "content": f"how is the weather on day {number}?"},
                    {"role": "assistant", "content": "", "tool_calls": [call]},
                    {"role": "tool", "content": "rain"},
                    {"role": "assistant", "content": "It rains."},
                ]
            }
        )
    return sft_trainer(folder, records, tokenizer=byte_tokenizer(chat_template=template), max_length=None)


def other_generation_prompt(folder, fault):
    prompt = "<|im_start|>assistant: " if fault else "<|im_start|>assistant\n"
    template = CHATML.replace(PROMPT_END, "{% if add_generation_prompt %}" + prompt + "{% endif %}")
    return sft_trainer(folder, chats(), tokenizer=byte_tokenizer(chat_template=template))


def rendered_twice(folder, fault):
    """A map renders the chats, and its text is put into a message that the trainer renders again."""
    tokenizer = byte_tokenizer(chat_template=PLAIN_CHATML)
    records = chats()
    if fault:
        for record in records:
            prompt = tokenizer.apply_chat_template(record["messages"][:1], tokenize=False, add_generation_prompt=True)
            record["messages"][0]["content"] = prompt
    return sft_trainer(folder, records, tokenizer=tokenizer, max_length=None)


FAULTS = [
    planted("marin-community/marin#7237", mask_without_markers, "P101"),
    planted("NVIDIA-NeMo/Megatron-Bridge#3927", every_turn_marked, "P020", "P102"),
    planted("huggingface/trl#5988", end_outside_of_the_mark, "P104", "P020"),
    planted("zai-org/GLM-4#803", last_answer_marked, "P020"),
    planted("axolotl-ai-cloud/axolotl#3754", end_of_turn_is_not_eos, "P104"),
    planted("OpenRLHF/OpenRLHF#973", first_token_masked, "P110"),
    planted("verl-project/verl#3562", mask_one_token_early, "P104"),
    planted("axolotl-ai-cloud/axolotl#2089", mask_two_tokens_late, "P110"),
    planted("huggingface/trl#1920", marker_in_other_tokens, "P101"),
    planted("huggingface/trl#6668", completions_cut_away, "P109"),
    planted("allenai/open-instruct#1876", ends_cut_away, "P108"),
    planted("huggingface/trl#1507", prompts_trained, "P102"),
    planted("huggingface/transformers#23530", stock_collator_hides_ends, "P104"),
    planted("huggingface/trl#976", own_collator_hides_ends, "P104"),
    planted("OpenRLHF/OpenRLHF#393", begin_written_twice, "P001"),
    planted("MakazhanAlpamys/Soup#785", begin_written_twice_by_trl, "P001"),
    planted("RLHFlow/RLHF-Reward-Modeling#16", begin_left_out, "P002"),
    planted("huggingface/transformers#22794", instructions_without_end, "P003", "P104"),
    planted("hiyouga/LlamaFactory#2516", turns_without_end, "P003"),
    planted("huggingface/trl#6044", turns_closed_by_the_next, "P003"),
    planted("meta-llama/llama3#104", stop_is_another_token, "P016"),
    planted("imoneoi/openchat#104", markers_are_pieces, "P009"),
    planted("raullenchai/Rapid-MLX#1765", system_dropped, "P004"),
    planted("NVIDIA-NeMo/Megatron-Bridge#5078", unknown_roles_dropped, "P004"),
    planted("huggingface/trl#6766", reasoning_stripped, "P005"),
    planted("hiyouga/LlamaFactory#10773", tool_calls_dropped, "P004", "P005"),
    planted("huggingface/trl#4147", other_generation_prompt, "P008"),
    planted("huggingface/trl#1400", rendered_twice, "P017"),
]


@pytest.mark.parametrize(("build", "codes"), FAULTS)
def test_finds_the_reported_fault(build, codes, tmp_path):
    assert_found(build(tmp_path, True), codes)


@pytest.mark.parametrize(("build", "codes"), FAULTS)
def test_is_silent_without_the_fault(build, codes, tmp_path):
    assert_sound(build(tmp_path, False))
