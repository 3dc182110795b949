"""Tiny tokenizers, models, records and trainers for tests of the preflight."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from hf_tfm import preflight


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCES = [
    "the cat sat on the mat",
    "rain fell on the roof while the kettle sang",
    "seven ships sailed south",
    "who reads the last page first knows how it ends, and who does not must wait",
    "every answer begins with a question",
    "a small model learns what a small text can teach",
    "the moon is far away",
    "six of them came home before the winter, and the last one in spring",
]


def byte_tokenizer(
    specials: Sequence[str] = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<mask>"),
    add_bos: bool = False,
    chat_template: str | None = CHATML,
    **options: Any,
) -> PreTrainedTokenizerFast:
    """Returns a tokenizer with a token for each byte and special tokens in front of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    names = dict(pad_token="<pad>", bos_token="<s>", eos_token="<|im_end|>", mask_token="<mask>") | options
    names = {name: token for name, token in names.items() if token in vocabulary or not name.endswith("_token")}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    wrapped.chat_template = chat_template
    return wrapped


def tiny_llama(tokenizer: PreTrainedTokenizerFast, seed: int = 0, **options: Any) -> LlamaForCausalLM:
    """Returns a new Llama of 2 layers and width 32 whose generation stops at the tokenizer's end token."""
    torch.manual_seed(seed)
    settings = dict(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(LlamaConfig(**settings | options))


def tiny_bert(tokenizer: PreTrainedTokenizerFast, labels: int = 0, seed: int = 0, **options: Any) -> Any:
    """Returns a new BERT of 2 layers and width 32: a classifier of `labels` classes, or a masked LM."""
    torch.manual_seed(seed)
    settings = dict(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
    )
    if labels:
        return BertForSequenceClassification(BertConfig(**settings | {"num_labels": labels} | options))
    return BertForMaskedLM(BertConfig(**settings | options))


def train_shortly(model: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """Moves all weights a little, so that the model does not look new."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01 * torch.randn_like(weight))
    return model


def chats(count: int = 16, system: bool = False, turns: int = 1) -> list[dict[str, Any]]:
    """Returns conversations of `turns` questions with answers, perhaps with a system message."""
    records = []
    for number in range(count):
        messages = [{"role": "system", "content": "Answer in one line."}] if system else []
        for turn in range(turns):
            messages.append({"role": "user", "content": f"{number}: tell me of {SENTENCES[(number + turn) % 8]}"})
            messages.append({"role": "assistant", "content": SENTENCES[(number * 3 + turn + 1) % 8].capitalize()})
        records.append({"messages": messages})
    return records


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    """Returns arguments of a short run on the CPU."""
    settings = dict(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        max_steps=4,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
    )
    return TrainingArguments(**settings | options)


def sft_trainer(folder: Path, records: Sequence[dict[str, Any]] | None = None, **options: Any) -> Any:
    """Returns an SFTTrainer on tiny chats; options of `SFTConfig`, or `model`, `tokenizer`, `peft_config`."""
    from trl import SFTConfig, SFTTrainer

    tokenizer = options.pop("tokenizer", None) or byte_tokenizer()
    model = options.pop("model", None) or tiny_llama(tokenizer)
    settings = dict(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        max_steps=4,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
    )
    peft_config = options.pop("peft_config", None)
    return SFTTrainer(
        model=model,
        args=SFTConfig(**settings | {"bf16": False, "max_length": 256} | options),
        train_dataset=Dataset.from_list(list(records or chats())),
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def token_rows(tokenizer: PreTrainedTokenizerFast, records: Sequence[dict[str, Any]]) -> list[dict[str, list[int]]]:
    """Returns conversations as tokens, whose labels are -100 outside of the assistant's answers."""
    rows = []
    for record in records:
        encoded = tokenizer.apply_chat_template(record["messages"], return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = encoded["input_ids"], encoded["assistant_masks"]
        rows.append({"input_ids": ids, "labels": [token if spoken else -100 for token, spoken in zip(ids, mask)]})
    return rows


def causal_trainer(
    folder: Path, rows: Sequence[dict[str, Any]], collator: Any, model: Any, tokenizer: Any, **options: Any
) -> Trainer:
    """Returns a plain Trainer on rows of tokens."""
    return Trainer(
        model=model,
        args=arguments(folder, **options),
        train_dataset=Dataset.from_list(list(rows)),
        data_collator=collator,
        processing_class=tokenizer,
    )


def find_nothing_wrong(trainer: Any) -> None:
    """Assert that a preflight of a trainer has no error, at most one warning, and no check that crashes."""
    report = preflight(trainer, show=None)
    assert not report.errors, report.errors
    assert len(report.warnings) <= 1, report.warnings
    assert not [unseen for unseen in report.unseen if " failed: " in unseen]
