"""
Faults of labels that people reported, planted in runs as they wrote them.

Each run is also checked without its fault.
"""

import pytest
import torch
from audit_helpers import SENTENCES, arguments, byte_tokenizer, causal_trainer, chats, tiny_bert, tiny_llama, token_rows
from datasets import ClassLabel, Dataset, Features, Value
from planted import assert_found, assert_sound, padded, planted
from transformers import (
    BertConfig,
    BertForTokenClassification,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
)


def classifier_trainer(folder, dataset, labels=2, **options):
    tokenizer = byte_tokenizer(chat_template=None)
    dataset = dataset.map(lambda row: tokenizer(row["text"]), remove_columns=["text"])
    return Trainer(
        model=tiny_bert(tokenizer, labels=labels, **options),
        args=arguments(folder),
        train_dataset=dataset,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )


def shifted_twice(folder, fault):
    """The script shifts labels as in a loop of its own, and the model shifts them again."""
    tokenizer = byte_tokenizer()

    def collate(rows):
        batch = DataCollatorForSeq2Seq(tokenizer)(rows)
        if fault:
            batch["labels"] = shift(batch["labels"])
        return batch

    return causal_trainer(folder, token_rows(tokenizer, chats()), collate, tiny_llama(tokenizer), tokenizer)


def shift(labels):
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], 1)


def inputs_cut_and_labels_too(folder, fault):
    """As nanoGPT: x is all but the last token, y all but the first; the model shifts y once more."""
    tokenizer = byte_tokenizer(chat_template=None)
    stream = tokenizer("<|im_end|>".join(SENTENCES * 3)).input_ids
    rows = []
    for start in range(0, 16 * 32, 32):
        block = stream[start : start + 33]
        rows.append({"input_ids": block[:-1], "labels": block[1:] if fault else block[:-1]})
    return causal_trainer(folder, rows, DataCollatorForSeq2Seq(tokenizer), tiny_llama(tokenizer), tokenizer)


def labels_of_another_text(folder, fault):
    """As for an encoder-decoder: the prompt is read, and the answer, padded to its length, is the label."""
    tokenizer = byte_tokenizer(chat_template=None)
    rows = []
    for number in range(16):
        prompt = f"{number}: translate {SENTENCES[number % 8]}"
        answer = SENTENCES[(3 * number + 1) % 8].upper() + "<|im_end|>"
        if fault:
            read = tokenizer(prompt, padding="max_length", max_length=110)
            labels = tokenizer(answer, padding="max_length", max_length=110).input_ids
            rows.append(dict(read) | {"labels": [-100 if one == tokenizer.pad_token_id else one for one in labels]})
        else:
            ids, answer_ids = tokenizer(prompt).input_ids, tokenizer(answer).input_ids
            rows.append({"input_ids": ids + answer_ids, "labels": [-100] * len(ids) + answer_ids})
    return causal_trainer(folder, rows, DataCollatorForSeq2Seq(tokenizer), tiny_llama(tokenizer), tokenizer)


def half_of_a_sorted_file(folder, fault):
    rows = [{"text": f"{SENTENCES[number % 8]} {number}", "label": int(number >= 40)} for number in range(80)]
    dataset = Dataset.from_list(rows)
    return classifier_trainer(folder, (dataset if fault else dataset.shuffle(seed=0)).select(range(40)))


def names_in_another_order(folder, fault):
    features = Features(
        {"text": Value("string"), "label": ClassLabel(names=["entailment", "neutral", "contradiction"])}
    )
    rows = [{"text": f"{SENTENCES[number % 8]} {number}", "label": number % 3} for number in range(24)]
    names = ["contradiction", "neutral", "entailment"] if fault else ["entailment", "neutral", "contradiction"]
    options = dict(id2label=dict(enumerate(names)), label2id={name: number for number, name in enumerate(names)})
    return classifier_trainer(folder, Dataset.from_list(rows, features=features), labels=3, **options)


def labels_count_from_one(folder, fault):
    rows = [{"text": f"{SENTENCES[n % 8]} {n}", "label": n % 3 + int(fault)} for n in range(24)]
    return classifier_trainer(folder, Dataset.from_list(rows), labels=3)


def tags_of_no_word(folder, fault):
    """Words are tokenized as one text, so that no token belongs to a word and each label is -100."""
    tokenizer = byte_tokenizer(chat_template=None)
    tags = {"cat": 1, "ships": 2, "moon": 2}

    def align(row):
        words = row["words"]
        if fault:
            encoded = tokenizer(" ".join(words))
            places = [None] * len(encoded.input_ids)
        else:
            encoded = tokenizer(words, is_split_into_words=True)
            places = encoded.word_ids()
        previous, labels = None, []
        for place in places:
            labels.append(-100 if place is None or place == previous else tags.get(words[place], 0))
            previous = place
        return {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask, "labels": labels}

    dataset = Dataset.from_list([{"words": one.split()} for one in SENTENCES * 2]).map(align, remove_columns=["words"])
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=3,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Trainer(
        model=BertForTokenClassification(config),
        args=arguments(folder),
        train_dataset=dataset,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        processing_class=tokenizer,
    )


def padded_targets(folder, fault):
    """Targets of an encoder-decoder are padded with the padding token, whose loss counts."""
    tokenizer = byte_tokenizer(chat_template=None, eos_token="</s>")
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            pad_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=0,
        )
    )

    def tokenize(row):
        encoded = tokenizer(row["text"], padding="max_length", max_length=90)
        labels = tokenizer(row["target"] + "</s>", padding="max_length", max_length=90).input_ids
        encoded["labels"] = labels if fault else [-100 if one == tokenizer.pad_token_id else one for one in labels]
        return encoded

    rows = [{"text": one, "target": one.upper()} for one in SENTENCES * 2]
    dataset = Dataset.from_list(rows).map(tokenize, remove_columns=["text", "target"])
    return Trainer(model=model, args=arguments(folder), train_dataset=dataset, processing_class=tokenizer)


def every_word_labelled(folder, fault):
    """A collator masks whole words, and forgets to take the labels of the other words away."""
    tokenizer = byte_tokenizer(chat_template=None)
    generator = torch.Generator().manual_seed(0)

    def collate(rows):
        batch = padded(tokenizer, rows)
        is_text = batch["attention_mask"] == 1
        chosen = (torch.rand(is_text.shape, generator=generator) < 0.2) & is_text
        batch["labels"] = batch["input_ids"].masked_fill(~is_text if fault else ~chosen, -100)
        batch["input_ids"] = batch["input_ids"].masked_fill(chosen, tokenizer.mask_token_id)
        return batch

    rows = [{"input_ids": tokenizer(text).input_ids} for text in SENTENCES * 2]
    return causal_trainer(folder, rows, collate, tiny_bert(tokenizer), tokenizer)


FAULTS = [
    planted("GanjinZero/RRHF#49", shifted_twice, "P106"),
    planted("huggingface/transformers#44642", inputs_cut_and_labels_too, "P106"),
    planted("huggingface/transformers#1464", labels_of_another_text, "P107"),
    planted("google-research/bert#154", half_of_a_sorted_file, "P117"),
    planted("huggingface/datasets#2457", names_in_another_order, "P118"),
    planted("huggingface/transformers#10449", labels_count_from_one, "P112"),
    planted("huggingface/transformers#8870", tags_of_no_word, "P101"),
    planted("huggingface/transformers#16455", padded_targets, "P103"),
    planted("huggingface/course#291", every_word_labelled, "P111"),
]


@pytest.mark.parametrize(("build", "codes"), FAULTS)
def test_finds_the_reported_fault(build, codes, tmp_path):
    assert_found(build(tmp_path, True), codes)


@pytest.mark.parametrize(("build", "codes"), FAULTS)
def test_is_silent_without_the_fault(build, codes, tmp_path):
    assert_sound(build(tmp_path, False))
