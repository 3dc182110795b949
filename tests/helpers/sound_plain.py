"""Trainers of transformers that are set up without a fault."""

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from audit_helpers import SENTENCES, arguments, tiny_bert, train_shortly
from chat_tokenizers import FAMILIES
from datasets import Dataset, IterableDataset


TEXTS = [f"{number}. {text.capitalize()}." for number, text in enumerate(SENTENCES * 2)]
# What makes a tiny model of most architectures.
_SMALL = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    max_position_embeddings=512,
)  # fmt: skip
_GPT2 = dict(n_embd=32, n_layer=2, n_head=4, n_positions=512)
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Bloom": dict(hidden_size=32, n_layer=2, n_head=4),
    "Cohere": _SMALL,
    "DeepseekV3": _SMALL | dict(
        moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, n_group=2,
        topk_group=1,
        first_k_dense_replace=1, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
        num_key_value_heads=4,
    ),
    "Falcon": dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=False),
    "GPT2": _GPT2,
    "GPTNeoX": _SMALL,
    "Gemma": _SMALL,
    "Gemma2": _SMALL | dict(sliding_window=16, query_pre_attn_scalar=8),
    "Gemma3": _SMALL | dict(sliding_window=16, query_pre_attn_scalar=8),
    "GptOss": _SMALL | dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=16),
    "Granite": _SMALL | dict(embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22),
    "Lfm2": _SMALL | dict(layer_types=["conv", "full_attention"]),
    "Llama": _SMALL,
    "Mamba": dict(hidden_size=32, num_hidden_layers=2, state_size=4),
    "Mistral": _SMALL | dict(sliding_window=16),
    "Mixtral": _SMALL | dict(num_local_experts=4, num_experts_per_tok=2),
    "Nemotron": _SMALL,
    "OPT": dict(hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4),
    "Olmo2": _SMALL,
    "Phi": _SMALL,
    "Phi3": _SMALL,
    "Qwen2": _SMALL,
    "Qwen2Moe": _SMALL | dict(moe_intermediate_size=32, num_experts=4, shared_expert_intermediate_size=32),
    "Qwen3": _SMALL,
    "Qwen3Moe": _SMALL | dict(moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2),
    "SmolLM3": _SMALL,
    "StableLm": _SMALL,
    "Starcoder2": _SMALL | dict(sliding_window=16),
}  # fmt: skip


def architecture(name: str, tokenizer: Any, kind: str = "ForCausalLM", **options: Any) -> Any:
    """Returns a new tiny model of an architecture."""
    torch.manual_seed(0)
    ids = {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("pad", "bos", "eos")}
    settings = dict(vocab_size=len(tokenizer)) | ids | ARCHITECTURES.get(name, _SMALL) | options
    config = getattr(hf, f"{name}Config", None) or getattr(hf, f"{name}TextConfig")
    config = hf.Gemma3TextConfig if name == "Gemma3" else config
    return getattr(hf, "GPT2LMHeadModel" if name == "GPT2" else f"{name}{kind}")(config(**settings))


def bert_base(tokenizer: Any, labels: int = 0) -> Any:
    """Returns a new BERT without a head, or with one of `labels` outputs."""
    model = tiny_bert(tokenizer, labels=labels)
    return model if labels else hf.BertModel(model.config)


def trainer(folder: Path, model: Any, rows: Any, collator: Any, tokenizer: Any, **options: Any) -> hf.Trainer:
    """Returns a plain Trainer."""
    dataset = Dataset.from_list(rows) if isinstance(rows, list) else rows
    return hf.Trainer(
        model=model, args=arguments(folder, **options), train_dataset=dataset, data_collator=collator,
        processing_class=tokenizer, eval_dataset=dataset if options.get("eval_strategy") else None,
    )  # fmt: skip


def causal(folder: Path, name: str, family: str = "llama2", **options: Any) -> Any:
    """Returns the training of an architecture on texts of different lengths."""
    tokenizer = FAMILIES[family].tokenizer()
    rows = [{"input_ids": tokenizer(text + tokenizer.eos_token).input_ids} for text in TEXTS]
    collator = hf.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return trainer(folder, architecture(name, tokenizer), rows, collator, tokenizer, **options)


def causal_labels(folder: Path, family: str = "llama3_base", **options: Any) -> Any:
    """Returns a training in which pad = eos, and the labels are in the rows so that their end is trained."""
    tokenizer = FAMILIES[family].tokenizer()
    rows = []
    for text in TEXTS:
        ids = tokenizer(text + tokenizer.eos_token).input_ids
        rows.append({"input_ids": ids, "labels": list(ids)})
    collator = hf.DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8)
    return trainer(folder, FAMILIES[family].model(tokenizer), rows, collator, tokenizer, **options)


def answers(folder: Path, family: str = "llama3_base", collator: str = "seq2seq", **options: Any) -> Any:
    """Returns a training on questions with answers, of which the answers are trained."""
    tokenizer = FAMILIES[family].tokenizer()
    rows = []
    for number, text in enumerate(TEXTS):
        prompt = tokenizer(f"Question {number}?\nAnswer:").input_ids
        answer = tokenizer(f" {text}", add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    made = hf.DataCollatorWithFlattening() if collator == "flattening" else hf.DataCollatorForSeq2Seq(tokenizer)
    return trainer(folder, train_shortly(FAMILIES[family].model(tokenizer)), rows, made, tokenizer, **options)


def blocks(folder: Path, family: str = "gpt2", model: str = "GPT2", dataset: str = "list", **options: Any) -> Any:
    """Returns a pretraining on blocks of equal length, cut from all texts behind one another, as run_clm does it."""
    tokenizer = FAMILIES[family].tokenizer()
    ids = [token for text in TEXTS * 2 for token in tokenizer(text + tokenizer.eos_token).input_ids]
    rows = [{"input_ids": ids[start : start + 32], "attention_mask": [1] * 32, "labels": ids[start : start + 32]}
            for start in range(0, len(ids) - 32, 32)]  # fmt: skip
    made: Any = rows
    if dataset == "stream":
        made = Dataset.from_list(rows).to_iterable_dataset()
    elif dataset == "generator":
        made = IterableDataset.from_generator(lambda: iter(rows))
    elif dataset == "torch":
        made = [{name: torch.tensor(value) for name, value in row.items()} for row in rows]
        made = Rows(made)
    return trainer(folder, architecture(model, tokenizer), made, hf.default_data_collator, tokenizer, **options)


class Rows(torch.utils.data.Dataset):
    """Records as a dataset of torch."""

    def __init__(self, rows: list[Any]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Any:
        return self.rows[place]


def transformed(folder: Path) -> Any:
    """Returns a training whose dataset tokenizes texts when they are read, by `set_transform`."""
    tokenizer = FAMILIES["llama2"].tokenizer()
    dataset = Dataset.from_list([{"text": text} for text in TEXTS])
    dataset.set_transform(lambda rows: tokenizer([text + "</s>" for text in rows["text"]]))
    collator = hf.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    model = FAMILIES["llama2"].model(tokenizer)
    return trainer(folder, model, dataset, collator, tokenizer, remove_unused_columns=False)


def masked(
    folder: Path, name: str = "Bert", whole_words: bool = False, probability: float = 0.15, **options: Any
) -> Any:
    """Returns the training of a masked language model."""
    family = "roberta" if name in ("Roberta", "ModernBert", "XLMRoberta") else "bert"
    tokenizer = FAMILIES[family].tokenizer()
    full = (
        dict(return_offsets_mapping=True, padding="max_length", max_length=48, truncation=True) if whole_words else {}
    )
    encoded = [tokenizer(text, **full) for text in TEXTS * 2]
    rows = [
        {name: row[name] for name in ("input_ids", "attention_mask", "offset_mapping") if name in row}
        for row in encoded
    ]
    collator = hf.DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability, whole_word_mask=whole_words)
    sizes = {
        "DistilBert": dict(dim=32, hidden_dim=64, n_layers=2, n_heads=4),
        "Albert": dict(embedding_size=16),
        "ModernBert": dict(local_attention=16),
        "Roberta": dict(max_position_embeddings=514),
    }
    model = architecture(name, tokenizer, "ForMaskedLM", **sizes.get(name, {}))
    options = {"remove_unused_columns": not whole_words} | options
    return trainer(folder, model, rows, collator, tokenizer, **options)


def classification(
    folder: Path, name: str = "Bert", problem: str = "classes", trained: bool = False, **options: Any
) -> Any:
    """Returns the training of a classifier: two classes, a number (regression), or several labels at once."""
    family = {"Bert": "bert", "DistilBert": "bert"}.get(name, "llama2" if name in ("Llama", "Mistral") else "gpt2")
    tokenizer = FAMILIES[family].tokenizer()
    rows = []
    for number, text in enumerate(TEXTS):
        label: Any = number % 2
        if problem == "regression":
            label = number / 8
        elif problem == "labels":
            label = [float(number % 2), float(number % 3 == 0), 1.0]
        rows.append(dict(tokenizer(text)) | {"label": label})
    problems = {"regression": "regression", "labels": "multi_label_classification"}
    count = {"classes": 2, "regression": 1, "labels": 3}[problem]
    sizes = {"DistilBert": dict(dim=32, hidden_dim=64, n_layers=2, n_heads=4)}
    kind = "ForSequenceClassification"
    if name == "GPT2":
        torch.manual_seed(0)
        config = hf.GPT2Config(vocab_size=len(tokenizer), **_GPT2, pad_token_id=tokenizer.pad_token_id)
        config.num_labels, config.problem_type = count, problems.get(problem)
        model: Any = hf.GPT2ForSequenceClassification(config)
    else:
        options_of_model = sizes.get(name, {}) | {"num_labels": count, "problem_type": problems.get(problem)}
        model = architecture(name, tokenizer, kind, **options_of_model)
    if trained:
        train_shortly(model)
    return trainer(folder, model, rows, hf.DataCollatorWithPadding(tokenizer), tokenizer, **options)


def classifier_of(folder: Path, name: str, sizes: dict[str, Any]) -> Any:
    """Returns the training of a classifier of an architecture that reads texts in both directions."""
    tokenizer = FAMILIES["bert"].tokenizer()
    rows = [
        {"input_ids": tokenizer(text).input_ids, "label": number % 2, "attention_mask": tokenizer(text).attention_mask}
        for number, text in enumerate(TEXTS)
    ]
    model = architecture(name, tokenizer, "ForSequenceClassification", **sizes)
    return trainer(folder, model, rows, hf.DataCollatorWithPadding(tokenizer), tokenizer)


def tags(folder: Path) -> Any:
    """Returns the training of a tagger; the first piece of each word has a label."""
    tokenizer = FAMILIES["bert"].tokenizer()
    rows = []
    for text in TEXTS:
        encoded = tokenizer(text.split(), is_split_into_words=True)
        words = encoded.word_ids()
        labels = [
            -100 if word is None or word == words[place - 1] else len(text.split()[word]) % 3
            for place, word in enumerate(words)
        ]
        rows.append(dict(encoded) | {"labels": labels})
    model = architecture("Bert", tokenizer, "ForTokenClassification", num_labels=3)
    return trainer(folder, model, rows, hf.DataCollatorForTokenClassification(tokenizer), tokenizer)


def questions(folder: Path) -> Any:
    """Returns the training of a reader that finds an answer in a context, as run_qa does it."""
    tokenizer = FAMILIES["bert"].tokenizer()
    rows = []
    for text in TEXTS:
        word = text.split()[2]
        encoded = tokenizer(f"where is {word}?", text, padding="max_length", max_length=64, truncation="only_second")
        place = next(p for p, kind in enumerate(encoded.token_type_ids) if kind == 1) + 2
        rows.append(dict(encoded) | {"start_positions": place, "end_positions": place + 1})
    model = architecture("Bert", tokenizer, "ForQuestionAnswering")
    return trainer(folder, model, rows, hf.default_data_collator, tokenizer)


def choices(folder: Path) -> Any:
    """Returns the training of a model that takes one of several ends of a text."""
    tokenizer = FAMILIES["bert"].tokenizer()
    rows = []
    for number, text in enumerate(TEXTS):
        words = text.split()
        ends = [" ".join(words[2:]), TEXTS[number - 1]]
        label = number % 2
        encoded = tokenizer([" ".join(words[:2])] * 2, ends[::-1] if label else ends)
        rows.append(dict(encoded) | {"label": label})
    model = architecture("Bert", tokenizer, "ForMultipleChoice")
    return trainer(folder, model, rows, hf.DataCollatorForMultipleChoice(tokenizer), tokenizer)


def sequences(folder: Path, name: str = "T5", **options: Any) -> Any:
    """Returns the training of a model that writes a text for a text, by Seq2SeqTrainer."""
    tokenizer = FAMILIES["t5" if name == "T5" else "roberta"].tokenizer()
    torch.manual_seed(0)
    ids = dict(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, vocab_size=len(tokenizer))
    if name == "T5":
        small = dict(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        model: Any = hf.T5ForConditionalGeneration(
            hf.T5Config(**small, **ids, decoder_start_token_id=ids["pad_token_id"])
        )
    else:
        small = {f"{side}_{part}": size for side in ("encoder", "decoder")
                 for part, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))}  # fmt: skip
        start = dict(bos_token_id=tokenizer.bos_token_id, decoder_start_token_id=tokenizer.eos_token_id)
        config = hf.BartConfig(d_model=32, **small, **ids, **start, forced_eos_token_id=tokenizer.eos_token_id)
        model = hf.BartForConditionalGeneration(config)
    rows = [dict(tokenizer(text, text_target=" ".join(reversed(text.split())))) for text in TEXTS]
    args = hf.Seq2SeqTrainingArguments(
        **dict(output_dir=str(folder), per_device_train_batch_size=4, max_steps=4, use_cpu=True, report_to=[],
               save_strategy="no", predict_with_generate=True) | options
    )  # fmt: skip
    return hf.Seq2SeqTrainer(
        model, args, hf.DataCollatorForSeq2Seq(tokenizer, model), Dataset.from_list(rows), processing_class=tokenizer
    )


def train_a_little(folder: Path) -> Any:
    """Returns a second training of a model whose loss has really fallen in a first one."""
    first = causal_labels(folder / "first", learning_rate=1e-2, max_steps=40)
    first.train()
    return hf.Trainer(
        model=first.model, args=arguments(folder), train_dataset=first.train_dataset, data_collator=first.data_collator,
        processing_class=first.processing_class,
    )  # fmt: skip


def own_model(folder: Path, masked_model: bool) -> Any:
    """Returns the training of this package's decoder or encoder by a plain Trainer."""
    from tiny import build, build_tokenizer

    tokenizer = build_tokenizer()
    ids = [tokenizer(text).input_ids for text in TEXTS * 2]
    model = build("TfmEncoderForMaskedLM" if masked_model else "TfmDecoderForCausalLM", max_position_embeddings=256)
    collator = hf.DataCollatorForLanguageModeling(tokenizer, mlm=masked_model)
    return trainer(folder, model, [{"input_ids": row} for row in ids], collator, tokenizer)
