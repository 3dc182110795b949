"""Trainings by transformers' Trainer that are unusual and right: own models, losses, collators, other heads."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import sound_plain as plain
import torch
import transformers as hf
from audit_helpers import tiny_bert, train_shortly
from chat_tokenizers import FAMILIES
from datasets import Dataset
from torch import nn


ODD: dict[str, Callable[[Path], Any]] = {}


def odd(build: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Register a run under the name of its function."""
    ODD[build.__name__.replace("_", "-")] = build
    return build


class _Perceptron(nn.Module):
    """A model that is none of transformers': it has no configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, values: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.layers(values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@odd
def a_module_of_torch(folder: Path) -> Any:
    torch.manual_seed(0)
    rows = [{"values": torch.randn(4).tolist(), "labels": number % 2} for number in range(16)]
    return plain.trainer(folder, _Perceptron(), rows, hf.default_data_collator, None)


@odd
def pictures(folder: Path) -> Any:
    torch.manual_seed(0)
    config = hf.ViTConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                          image_size=16, patch_size=8, num_labels=2)  # fmt: skip
    rows = plain.Rows([{"pixel_values": torch.randn(3, 16, 16), "labels": number % 2} for number in range(16)])
    return plain.trainer(folder, hf.ViTForImageClassification(config), rows, hf.default_data_collator, None)


@odd
def speech(folder: Path) -> Any:
    torch.manual_seed(0)
    config = hf.WhisperConfig(vocab_size=100, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                              decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=8,
                              max_source_positions=20, max_target_positions=20, pad_token_id=0, bos_token_id=1,
                              eos_token_id=2, decoder_start_token_id=1)  # fmt: skip
    config.suppress_tokens = config.begin_suppress_tokens = None
    rows = plain.Rows([
        {"input_features": torch.randn(8, 40), "labels": torch.tensor([*torch.randint(3, 99, (7,)).tolist(), 2])}
        for _ in range(16)
    ])  # fmt: skip
    return plain.trainer(folder, hf.WhisperForConditionalGeneration(config), rows, hf.default_data_collator, None)


class _WeightedTrainer(hf.Trainer):
    """A loss with weights of the classes."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = nn.functional.cross_entropy(outputs.logits, labels, torch.tensor([1.0, 3.0]))
        return (loss, outputs) if return_outputs else loss


@odd
def a_loss_with_weights_of_classes(folder: Path) -> Any:
    run = plain.classification(folder)
    return _WeightedTrainer(run.model, run.args, run.data_collator, run.train_dataset)


@odd
def labels_of_one_class_are_rare(folder: Path) -> Any:
    run = plain.classification(folder)
    rows = [dict(row) | {"label": int(number == 7)} for number, row in enumerate(run.train_dataset)]
    return plain.trainer(folder, run.model, rows, run.data_collator, run.processing_class)


@odd
def a_loss_function_that_divides_by_all_items(folder: Path) -> Any:
    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        total = nn.functional.cross_entropy(logits.float(), targets, ignore_index=-100, reduction="sum")
        return total / (num_items_in_batch if num_items_in_batch is not None else (targets != -100).sum())

    run = plain.causal_labels(folder, gradient_accumulation_steps=2)
    return hf.Trainer(run.model, run.args, run.data_collator, run.train_dataset, compute_loss_func=loss)


class _Distilling(hf.Trainer):
    """Half of the loss is the divergence from a teacher."""

    teacher: Any = None

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs)
        with torch.no_grad():
            target = self.teacher(**inputs).logits.softmax(-1)
        divergence = nn.functional.kl_div(outputs.logits.log_softmax(-1), target, reduction="batchmean")
        loss = 0.5 * outputs.loss + 0.5 * divergence
        return (loss, outputs) if return_outputs else loss


@odd
def distillation(folder: Path) -> Any:
    run = plain.classification(folder)
    distilling = _Distilling(run.model, run.args, run.data_collator, run.train_dataset)
    distilling.teacher = plain.classification(folder, trained=True).model.eval()
    return distilling


@odd
def frozen_body(folder: Path) -> Any:
    run = plain.classification(folder, trained=True)
    run.model.bert.requires_grad_(False)
    return run


@odd
def frozen_embeddings_and_first_layer(folder: Path) -> Any:
    run = plain.causal(folder, "Llama")
    run.model.model.embed_tokens.requires_grad_(False)
    run.model.model.layers[0].requires_grad_(False)
    return run


@odd
def an_optimizer_of_ones_own_with_groups(folder: Path) -> Any:
    run = plain.causal(folder, "Qwen2", "qwen2")
    decayed = [weight for weight in run.model.parameters() if weight.ndim > 1]
    others = [weight for weight in run.model.parameters() if weight.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0, "lr": 1e-4}]
    optimizer = torch.optim.SGD(groups, lr=1e-3)
    return hf.Trainer(run.model, run.args, run.data_collator, run.train_dataset, optimizers=(optimizer, None))


@odd
def a_model_from_model_init(folder: Path) -> Any:
    run = plain.classification(folder)
    return hf.Trainer(
        None, run.args, run.data_collator, run.train_dataset, processing_class=run.processing_class,
        model_init=lambda: tiny_bert(run.processing_class, labels=2),
    )  # fmt: skip


@odd
def stops_early_and_takes_the_best(folder: Path) -> Any:
    settings = dict(eval_strategy="steps", eval_steps=2, save_steps=2, load_best_model_at_end=True,
                    metric_for_best_model="eval_loss", greater_is_better=False, save_strategy="steps")  # fmt: skip
    run = plain.causal(folder, "Llama", **settings)
    run.add_callback(hf.EarlyStoppingCallback(2))
    return run


@odd
def rows_as_arrays_of_numpy(folder: Path) -> Any:
    run = plain.causal(folder, "Llama")
    run.train_dataset.set_format("numpy")
    return run


@odd
def rows_as_tensors(folder: Path) -> Any:
    run = plain.blocks(folder)
    run.train_dataset.set_format("torch")
    return run


class _Stream(torch.utils.data.IterableDataset):
    """Records as an iterable of torch."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter([dict(row) for row in self.rows])


@odd
def an_iterable_of_torch(folder: Path) -> Any:
    run = plain.blocks(folder)
    return plain.trainer(folder, run.model, _Stream(run.train_dataset), hf.default_data_collator, run.processing_class)


@odd
def a_stream_that_is_shuffled(folder: Path) -> Any:
    run = plain.blocks(folder)
    stream = run.train_dataset.to_iterable_dataset().shuffle(seed=1, buffer_size=8)
    return plain.trainer(folder, run.model, stream, hf.default_data_collator, run.processing_class)


@odd
def no_tokenizer(folder: Path) -> Any:
    run = plain.causal_labels(folder)
    return hf.Trainer(run.model, run.args, run.data_collator, run.train_dataset)


@odd
def a_collator_that_pads_on_the_left(folder: Path) -> Any:
    run = plain.causal_labels(folder)

    def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
        length = max(len(row["input_ids"]) for row in rows)
        batch: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": [], "position_ids": []}
        for row in rows:
            gap, size = length - len(row["input_ids"]), len(row["input_ids"])
            batch["input_ids"].append([0] * gap + list(row["input_ids"]))
            batch["attention_mask"].append([0] * gap + [1] * size)
            batch["labels"].append([-100] * gap + list(row["labels"]))
            batch["position_ids"].append([0] * gap + list(range(size)))
        return {name: torch.tensor(value) for name, value in batch.items()}

    return hf.Trainer(run.model, run.args, collate, run.train_dataset, processing_class=run.processing_class)


@odd
def a_collator_that_tokenizes(folder: Path) -> Any:
    tokenizer = FAMILIES["bert"].tokenizer()

    def collate(rows: list[Any]) -> Any:
        batch = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
        batch["labels"] = torch.tensor([row["label"] for row in rows])
        return batch

    rows = [{"text": text, "label": number % 2} for number, text in enumerate(plain.TEXTS)]
    model = plain.architecture("Bert", tokenizer, "ForSequenceClassification")
    return plain.trainer(folder, model, rows, collate, tokenizer, remove_unused_columns=False)


@odd
def fixed_padding(folder: Path) -> Any:
    tokenizer = FAMILIES["mistral_v7"].tokenizer()
    rows = [dict(tokenizer(text + "</s>", padding="max_length", max_length=64)) for text in plain.TEXTS]
    for row in rows:
        row["labels"] = [token if seen else -100 for token, seen in zip(row["input_ids"], row["attention_mask"])]
    model = plain.architecture("Mistral", tokenizer)
    return plain.trainer(folder, model, rows, hf.default_data_collator, tokenizer)


@odd
def soft_labels(folder: Path) -> Any:
    run = plain.classification(folder)
    rows = []
    for number, row in enumerate(run.train_dataset):
        share = number % 10 / 10
        rows.append(
            {"input_ids": row["input_ids"], "attention_mask": row["attention_mask"], "labels": [share, 1 - share]}
        )

    class Trainer(hf.Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = nn.functional.cross_entropy(outputs.logits, labels)
            return (loss, outputs) if return_outputs else loss

    dataset = Dataset.from_list(rows)
    return Trainer(run.model, run.args, run.data_collator, dataset, processing_class=run.processing_class)


@odd
def next_sentence_and_masks(folder: Path) -> Any:
    tokenizer = FAMILIES["bert"].tokenizer()
    rows = []
    for number, text in enumerate(plain.TEXTS):
        other = plain.TEXTS[number - number % 2]
        rows.append(dict(tokenizer(text, other)) | {"next_sentence_label": number % 2})
    collator = hf.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    config = tiny_bert(tokenizer).config
    return plain.trainer(folder, hf.BertForPreTraining(config), rows, collator, tokenizer)


@odd
def questions_without_an_answer(folder: Path) -> Any:
    run = plain.questions(folder)
    rows = [dict(row) for row in run.train_dataset]
    for row in rows[::3]:
        row["start_positions"] = row["end_positions"] = 0
    return plain.trainer(folder, run.model, rows, hf.default_data_collator, run.processing_class)


@odd
def tags_of_all_pieces(folder: Path) -> Any:
    run = plain.tags(folder)
    rows = [dict(row) for row in run.train_dataset]
    for row in rows:
        for place, label in enumerate(row["labels"]):
            if label == -100 and 0 < place < len(row["labels"]) - 1:
                row["labels"][place] = row["labels"][place - 1]
    return plain.trainer(folder, run.model, rows, run.data_collator, run.processing_class)


@odd
def a_few_rows_only(folder: Path) -> Any:
    run = plain.causal(folder, "Llama")
    rows = [dict(row) for row in run.train_dataset.select(range(3))]
    return plain.trainer(
        folder, run.model, rows, run.data_collator, run.processing_class, per_device_train_batch_size=8
    )


@odd
def the_second_training_of_a_trainer(folder: Path) -> Any:
    run = plain.causal_labels(folder, learning_rate=1e-3)
    run.train()
    return run


@odd
def spans_are_written_by_t5(folder: Path) -> Any:
    run = plain.sequences(folder)
    tokenizer = run.processing_class
    rows = []
    for text in plain.TEXTS:
        words = text.split()
        source = " ".join([*words[:2], "<extra_id_0>", *words[4:]])
        rows.append(dict(tokenizer(source, text_target=f"<extra_id_0> {' '.join(words[2:4])} <extra_id_1>")))
    args, collator = run.args, run.data_collator
    return hf.Seq2SeqTrainer(run.model, args, collator, Dataset.from_list(rows), processing_class=tokenizer)


@odd
def two_berts_as_encoder_and_decoder(folder: Path) -> Any:
    tokenizer = FAMILIES["bert"].tokenizer()
    config = tiny_bert(tokenizer).config
    torch.manual_seed(0)
    decoder = tiny_bert(tokenizer).config
    model = hf.EncoderDecoderModel(hf.EncoderDecoderConfig.from_encoder_decoder_configs(config, decoder))
    model.config.decoder_start_token_id, model.config.pad_token_id = tokenizer.cls_token_id, tokenizer.pad_token_id
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.sep_token_id
    model.generation_config.decoder_start_token_id = tokenizer.cls_token_id
    rows = []
    for text in plain.TEXTS:
        encoded = tokenizer(text)
        rows.append({
            "input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask,
            "labels": tokenizer(" ".join(reversed(text.split()))).input_ids,
        })  # fmt: skip
    args = hf.Seq2SeqTrainingArguments(str(folder), max_steps=4, use_cpu=True, save_strategy="no", report_to=[])
    collator = hf.DataCollatorForSeq2Seq(tokenizer, model)
    return hf.Seq2SeqTrainer(model, args, collator, Dataset.from_list(rows), processing_class=tokenizer)


@odd
def several_losses_of_one_model(folder: Path) -> Any:
    """A causal model with an auxiliary loss for its experts."""
    tokenizer = FAMILIES["llama2"].tokenizer()
    model = plain.architecture("Mixtral", tokenizer, output_router_logits=True)
    run = plain.causal(folder, "Llama")
    return hf.Trainer(model, run.args, run.data_collator, run.train_dataset, processing_class=tokenizer)


@odd
def dropout_everywhere(folder: Path) -> Any:
    tokenizer = FAMILIES["gpt2"].tokenizer()
    run = plain.blocks(folder)
    model = plain.architecture("GPT2", tokenizer, resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3)
    return hf.Trainer(model, run.args, run.data_collator, run.train_dataset, processing_class=tokenizer)


@odd
def a_tokenizer_that_is_smaller_than_the_embeddings_by_far(folder: Path) -> Any:
    tokenizer = FAMILIES["llama2"].tokenizer()
    run = plain.causal(folder, "Llama")
    model = plain.architecture("Llama", tokenizer, vocab_size=4096)
    return hf.Trainer(model, run.args, run.data_collator, run.train_dataset, processing_class=tokenizer)


@odd
def a_head_on_a_body_in_half_precision(folder: Path) -> Any:
    run = plain.classification(folder, "Llama", trained=True)
    run.model.model.to(torch.bfloat16).requires_grad_(False)
    run.model.score.to(torch.bfloat16)
    return run


@odd
def new_tokens_with_larger_embeddings(folder: Path) -> Any:
    tokenizer = FAMILIES["llama2"].tokenizer()
    model = train_shortly(FAMILIES["llama2"].model(tokenizer))
    tokenizer.add_tokens(["<city>", "<name>"])
    model.resize_token_embeddings(len(tokenizer))
    rows = [{"input_ids": tokenizer(f"<name> {text} <city></s>").input_ids} for text in plain.TEXTS]
    collator = hf.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return plain.trainer(folder, model, rows, collator, tokenizer)


@odd
def permuted_texts_of_xlnet(folder: Path) -> Any:
    tokenizer = FAMILIES["roberta"].tokenizer()
    torch.manual_seed(0)
    config = hf.XLNetConfig(vocab_size=len(tokenizer), d_model=32, n_layer=2, n_head=4, d_inner=64)
    encoded = [tokenizer(text).input_ids for text in plain.TEXTS]
    rows = [{"input_ids": [*ids[:19], tokenizer.eos_token_id]} for ids in encoded if len(ids) >= 20]
    collator = hf.DataCollatorForPermutationLanguageModeling(tokenizer)
    return plain.trainer(folder, hf.XLNetLMHeadModel(config), rows, collator, tokenizer)


@odd
def masked_texts_of_xlm(folder: Path) -> Any:
    run = plain.masked(folder)
    model = hf.XLMWithLMHeadModel(_xlm(run.processing_class))
    return hf.Trainer(model, run.args, run.data_collator, run.train_dataset, processing_class=run.processing_class)


def _xlm(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    return hf.XLMConfig(vocab_size=len(tokenizer), emb_dim=32, n_layers=2, n_heads=4, pad_index=tokenizer.pad_token_id)


@odd
def replaced_tokens_of_electra(folder: Path) -> Any:
    run = plain.tags(folder)
    rows = []
    for number, row in enumerate(run.train_dataset):
        labels = [int((place + number) % 5 == 2) for place in range(len(row["labels"]))]
        rows.append({"input_ids": row["input_ids"], "attention_mask": row["attention_mask"], "labels": labels})
    model = plain.architecture("Electra", run.processing_class, "ForPreTraining")
    return plain.trainer(folder, model, rows, run.data_collator, run.processing_class)


@odd
def sentences_that_follow_one_another(folder: Path) -> Any:
    tokenizer = FAMILIES["bert"].tokenizer()
    rows = [
        dict(tokenizer(text, plain.TEXTS[number - number % 2])) | {"labels": number % 2}
        for number, text in enumerate(plain.TEXTS)
    ]
    model = plain.architecture("Bert", tokenizer, "ForNextSentencePrediction")
    return plain.trainer(folder, model, rows, hf.DataCollatorWithPadding(tokenizer), tokenizer)


@odd
def a_bert_that_is_a_decoder(folder: Path) -> Any:
    run = plain.causal(folder, "Llama")
    tokenizer = run.processing_class
    model = plain.architecture("Bert", tokenizer, "LMHeadModel", is_decoder=True)
    return plain.trainer(folder, model, run.train_dataset, run.data_collator, tokenizer)


for _name, _sizes in {
    "DebertaV2": dict(relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16),
    "Deberta": dict(relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "Longformer": dict(attention_window=[8, 8]), "BigBird": dict(attention_type="original_full"), "MPNet": {},
    "MobileBert": dict(embedding_size=32, true_hidden_size=32, intra_bottleneck_size=32), "ConvBert": {},
    "Ernie": {}, "RoFormer": {},
    "SqueezeBert": dict(embedding_size=32),
}.items():  # fmt: skip
    ODD[f"classifier-{_name}"] = partial(plain.classifier_of, name=_name, sizes=_sizes)
for _name, _options in {
    "adafactor": dict(optim="adafactor", learning_rate=1e-3), "constant-rate": dict(lr_scheduler_type="constant"),
    "cosine": dict(lr_scheduler_type="cosine", warmup_steps=0.1), "weight-decay": dict(weight_decay=0.1),
    "by-length": dict(train_sampling_strategy="group_by_length"), "drop-last": dict(dataloader_drop_last=True),
    "epochs": dict(max_steps=-1, num_train_epochs=2), "half-an-epoch": dict(max_steps=-1, num_train_epochs=0.5),
    "averaged-tokens": dict(average_tokens_across_devices=False), "no-clipping": dict(max_grad_norm=0.0),
    "many-steps": dict(max_steps=100_000, warmup_steps=2000), "large-batch": dict(per_device_train_batch_size=64),
    "finetune-sgd": dict(optim="sgd", learning_rate=1e-2), "bf16": dict(bf16=True),
    "neftune": dict(neftune_noise_alpha=5.0), "first-step": dict(logging_first_step=True, logging_steps=1),
}.items():  # fmt: skip
    ODD[f"settings-{_name}"] = partial(plain.causal, name="Llama", **_options)
