"""Planted faults of special tokens in runs as people write them, and the sound runs beside them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from audit_helpers import (
    CHATML,
    SENTENCES,
    arguments,
    byte_tokenizer,
    causal_trainer,
    chats,
    sft_trainer,
    tiny_llama,
    token_rows,
)
from datasets import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaForSequenceClassification,
    Trainer,
)

from hf_tfm import preflight


def codes(report: Any, level: str) -> set[str]:
    return {found.code for found in report.of_level(level)}


def text_trainer(folder: Path, tokenizer: Any, texts: list[str], model: Any = None, **options: Any) -> Trainer:
    rows = [{"input_ids": tokenizer(text, **options)["input_ids"]} for text in texts]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return causal_trainer(folder, rows, collator, model or tiny_llama(tokenizer), tokenizer)


def test_rendered_chats_tokenized_with_a_second_begin_token(tmp_path: Path) -> None:
    """huggingface/trl#1400, OpenRLHF/OpenRLHF#393: the template writes a begin token and so does the tokenizer."""
    tokenizer = byte_tokenizer(add_bos=True, chat_template="{{ bos_token }}" + CHATML)
    texts = [tokenizer.apply_chat_template(record["messages"], tokenize=False) for record in chats()]
    assert "P001" in codes(preflight(text_trainer(tmp_path, tokenizer, texts), show=None), "error")
    sound = preflight(text_trainer(tmp_path, tokenizer, texts, add_special_tokens=False), show=None)
    assert not sound.codes & {"P001", "P002"}


def test_second_begin_token_in_packed_documents(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    tokenizer = byte_tokenizer(add_bos=True, eos_token="</s>")
    texts = [{"text": f"<s>{text}"} for text in SENTENCES * 2]
    report = preflight(sft_trainer(tmp_path, texts, tokenizer=tokenizer, packing=True, max_length=128), show=None)
    assert "P001" in codes(report, "error")


def test_texts_without_the_begin_token_of_their_tokenizer(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(add_bos=True, eos_token="</s>")
    texts = [text + "</s>" for text in SENTENCES]
    report = preflight(text_trainer(tmp_path, tokenizer, texts, add_special_tokens=False), show=None)
    assert "P002" in codes(report, "warning")
    assert not preflight(text_trainer(tmp_path, tokenizer, texts), show=None).codes & {"P001", "P002"}


def test_chat_template_that_leaves_out_the_begin_token_is_a_note(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(add_bos=True)
    collator = DataCollatorForSeq2Seq(tokenizer)
    rows = token_rows(tokenizer, chats())
    report = preflight(causal_trainer(tmp_path, rows, collator, tiny_llama(tokenizer), tokenizer), show=None)
    assert "P002" in codes(report, "note") and "P002" not in report.codes


def test_padding_token_added_without_resizing_the_embeddings(tmp_path: Path) -> None:
    """meta-llama/llama-cookbook#189: CUDA fails with a device-side assert."""
    tokenizer = byte_tokenizer(eos_token="</s>")
    model = tiny_llama(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    texts = [text + "</s>" for text in SENTENCES]
    assert "P010" in codes(preflight(text_trainer(tmp_path, tokenizer, texts, model), show=None), "error")
    model.resize_token_embeddings(len(tokenizer))
    assert "P010" not in preflight(text_trainer(tmp_path, tokenizer, texts, model), show=None).codes


def test_unused_ids_beyond_the_embeddings_are_no_error(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(eos_token="</s>")
    model = tiny_llama(tokenizer)
    tokenizer.add_tokens(["unused"])
    report = preflight(text_trainer(tmp_path, tokenizer, [text + "</s>" for text in SENTENCES], model), show=None)
    assert "P010" in codes(report, "note") and "P010" not in report.codes


def test_unknown_tokens(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(specials=("<pad>", "<s>", "</s>", "<unk>"), unk_token="<unk>", eos_token="</s>")
    texts = [text + "</s>" for text in SENTENCES]
    assert "P011" not in preflight(text_trainer(tmp_path, tokenizer, texts), show=None).codes
    report = preflight(text_trainer(tmp_path, tokenizer, ["<unk><unk> " + text for text in texts]), show=None)
    assert "P011" in codes(report, "warning")


def classifier_trainer(folder: Path, tokenizer: Any, collator: Any) -> Trainer:
    torch.manual_seed(0)
    settings = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_labels=2)
    model = LlamaForSequenceClassification(LlamaConfig(vocab_size=len(tokenizer), **settings))
    rows = [{**tokenizer(text), "label": number % 2} for number, text in enumerate(SENTENCES)]
    return Trainer(model, arguments(folder), collator, Dataset.from_list(rows), processing_class=tokenizer)


def test_classifier_padded_with_another_token_than_its_own(tmp_path: Path) -> None:
    """huggingface/transformers#35911: a decoder reads its answer at the last token that is not pad_token_id."""
    tokenizer, other = byte_tokenizer(), byte_tokenizer(pad_token="</s>")
    report = preflight(classifier_trainer(tmp_path, tokenizer, DataCollatorWithPadding(other)), show=None)
    assert "P021" in codes(report, "error")
    trainer = classifier_trainer(tmp_path, tokenizer, DataCollatorWithPadding(tokenizer))
    sound = preflight(trainer, show=None)
    assert not sound.codes & {"P019", "P021"}
    assert trainer.model.config.pad_token_id is None, "the preflight changed the model's configuration"


def test_padding_token_that_ends_texts_is_a_note(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(pad_token="<|im_end|>")
    rows = token_rows(tokenizer, chats())
    model = tiny_llama(tokenizer)
    report = preflight(causal_trainer(tmp_path, rows, DataCollatorForSeq2Seq(tokenizer), model, tokenizer), show=None)
    assert "P018" in codes(report, "note") and not report.errors


def test_begin_token_in_front_of_each_answer(tmp_path: Path) -> None:
    """Prompts and answers that are tokenized apart both get the tokenizer's begin token."""
    tokenizer = byte_tokenizer(add_bos=True, eos_token="</s>", chat_template=None)

    def report_of(adds_begin: bool) -> Any:
        rows = []
        for number, text in enumerate(SENTENCES):
            prompt = tokenizer(f"Question {number}\nAnswer: ")["input_ids"]
            answer = tokenizer(text, add_special_tokens=adds_begin)["input_ids"] + [tokenizer.eos_token_id]
            rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
        model = tiny_llama(tokenizer)
        collator = DataCollatorForSeq2Seq(tokenizer)
        return preflight(causal_trainer(tmp_path, rows, collator, model, tokenizer), show=None)

    assert "P001" in codes(report_of(True), "error")
    assert not report_of(False).codes
