#!/usr/bin/env python
"""
Baseline of the speedrun: Llama and ModernBERT of plain transformers, trained with AdamW by the Trainer.

4 blocks of width 256, 5.3 million parameters; learning rate and schedule are the best of the sweep in training/LOG.md
("Time to the tuned opponent's loss").
"""

import argparse
import itertools
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)


# Steps, rows, tokens in a row, and whether the best checkpoint by documents that are held out is the result.
RUNS = {
    "causal": (1000, 8, 256, False),
    "masked": (600, 32, 128, False),
    "small_text": (6000, 8, 256, True),
    "test": (4, 4, 64, False),
    "test_masked": (4, 4, 64, False),
}
SHAPE = dict(num_hidden_layers=4, hidden_size=256, num_attention_heads=4, intermediate_size=704, vocab_size=8192)


def has_fast_bf16() -> bool:
    return torch.cuda.is_available() or "avx512_bf16" in Path("/proc/cpuinfo").read_text()


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE."""
    names = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"],
        special_tokens=list(names.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def cut_rows(tokenizer: PreTrainedTokenizerFast, texts: list[str], length: int, masked: bool) -> list[dict]:
    """Return rows of the joined documents; for masked tokens each between [CLS] and [SEP]."""
    documents = tokenizer(texts, add_special_tokens=False)["input_ids"]
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if not masked:
        documents = [[begin, *ids, end] for ids in documents]
    joined, width = list(itertools.chain.from_iterable(documents)), length - 2 * masked
    rows = [joined[start : start + width] for start in range(0, len(joined) - width + 1, width)]
    return [{"input_ids": [begin, *row, end] if masked else row} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("--track", "--train", "--output", "--seed", "--tokenizer"):
        parser.add_argument(option)
    args = parser.parse_args()
    seed, masked = int(args.seed), args.tokenizer is not None
    steps, batch_size, length, keeps_best = RUNS[args.track]
    with open(args.train, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer) if masked else train_tokenizer(texts)
    ids = dict(pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id)
    ids |= dict(eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=True)
    if masked:
        ids |= dict(cls_token_id=tokenizer.cls_token_id, sep_token_id=tokenizer.sep_token_id)
        model = ModernBertForMaskedLM(ModernBertConfig(**SHAPE, **ids, max_position_embeddings=512))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, **ids, max_position_embeddings=1024))
    held_out = texts[::20] if keeps_best else []
    if keeps_best:
        del texts[::20]
    rows = cut_rows(tokenizer, texts, length, masked)
    test = args.track.startswith("test")
    arguments = TrainingArguments(
        output_dir=f"{args.output}-checkpoints",
        seed=seed,
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=1e-3,
        weight_decay=0.1,
        adam_beta2=0.95,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": steps // 2, "decay_type": "linear", "min_lr_ratio": 0.02},
        warmup_steps=steps // 20,
        bf16=has_fast_bf16(),
        use_cpu=not torch.cuda.is_available(),
        torch_compile=not test,
        eval_strategy="steps" if keeps_best else "no",
        save_strategy="steps" if keeps_best else "no",
        eval_steps=250,
        save_steps=250,
        save_total_limit=1,
        load_best_model_at_end=keeps_best,
        logging_steps=50,
        report_to="none",
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=cut_rows(tokenizer, held_out, length, masked) if keeps_best else None,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=masked, mlm_probability=0.15),
    )
    trainer.train()
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main()
