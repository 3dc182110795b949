"""A live trainer as the subject: it is read completely, and left exactly as it was."""

import ast
import inspect
from pathlib import Path

import pytest
import torch
from audit_helpers import arguments, byte_tokenizer, chats, sft_trainer, tiny_bert, tiny_llama, token_rows
from datasets import Dataset
from peft import LoraConfig
from torch.utils.data import IterableDataset
from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding, PreTrainedModel, Trainer

from hf_tfm import preflight
from hf_tfm.audit.trainers import gradients, subject
from hf_tfm.audit.trainers.subject import TrainerSubject, WithoutDropout, find_layers, group_by_form, shorten


def masked_trainer(folder, **options):
    """A masked LM with dropout and a collator that draws at random."""
    tokenizer = byte_tokenizer()
    rows = [{"input_ids": row["input_ids"]} for row in token_rows(tokenizer, chats())]
    return Trainer(
        model=tiny_bert(tokenizer),
        args=arguments(folder, **options),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForLanguageModeling(tokenizer),
    )


@pytest.mark.parametrize("make", [masked_trainer, sft_trainer])
def test_a_preflighted_trainer_trains_to_the_same_weights(tmp_path, make):
    weights = []
    for preflighted in (False, True):
        torch.manual_seed(0)
        trainer = make(tmp_path, gradient_accumulation_steps=2)
        if preflighted:
            preflight(trainer, show=None)
        trainer.train()
        weights.append(trainer.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_gradients_of_a_loss_with_weights_of_its_own_are_restored(tmp_path):
    trainer = masked_trainer(tmp_path)
    trainer.loss = {"one": torch.nn.Linear(2, 2)}
    with TrainerSubject(trainer).left_as_it_was():
        trainer.loss["one"](torch.ones(1, 2)).sum().backward()
    assert trainer.loss["one"].weight.grad is None


def test_buffers_and_modes_are_restored(tmp_path):
    trainer = masked_trainer(tmp_path)
    trainer.model.norm = torch.nn.BatchNorm1d(2)
    trainer.model.norm.eval()
    with TrainerSubject(trainer).left_as_it_was():
        trainer.model.train()
        trainer.model.norm(torch.randn(4, 2))
    assert not trainer.model.norm.training
    assert trainer.model.norm.num_batches_tracked == 0


def test_few_layers_are_the_first_ones_with_one_of_each_type(tmp_path):
    tokenizer = byte_tokenizer()
    model = tiny_llama(tokenizer, num_hidden_layers=6)
    trainer = Trainer(
        model=model, args=arguments(tmp_path), train_dataset=Dataset.from_list(token_rows(tokenizer, chats()))
    )
    with TrainerSubject(trainer).few_layers(2) as depth:
        assert depth == len(model.model.layers) == model.config.num_hidden_layers == 2
    model.config.layer_types = ["full_attention"] * 3 + ["sliding_attention"] * 3
    with TrainerSubject(trainer).few_layers(2) as depth:
        assert depth == 4
    assert len(find_layers(model)[1]) == model.config.num_hidden_layers == 6


def test_records_of_several_datasets_are_not_mixed():
    features = [{"a": 1}, {"b": 1}, {"a": 2}, {"a": 3, "dataset_name": "x"}, {"a": 4, "dataset_name": "y"}]
    assert group_by_form(features) == [[{"a": 1}, {"a": 2}], [{"b": 1}], [features[3]], [features[4]]]


def test_records_are_cut_with_all_that_belongs_to_their_tokens():
    feature = {"input_ids": [1, 2, 3, 4], "labels": [5, 6, 7, 8], "weights": [1.0, 2.0], "seq_lengths": [1, 2, 1]}
    assert shorten(feature, 2) == {"input_ids": [1, 2], "labels": [5, 6], "weights": [1.0, 2.0], "seq_lengths": [1, 1]}
    assert shorten({"chosen_ids": [1, 2, 3], "text": "x" * 20}, 2) == {"chosen_ids": [1, 2], "text": "x" * 16}


class Stream(IterableDataset):
    """Gives each record once, as a socket does."""

    def __init__(self, rows):
        self.rows = iter(rows)

    def __iter__(self):
        return self.rows


def test_a_stream_that_can_be_read_once_keeps_its_records(tmp_path):
    tokenizer = byte_tokenizer()
    stream = Stream(token_rows(tokenizer, chats(4)))
    trainer = Trainer(
        model=tiny_llama(tokenizer),
        args=arguments(tmp_path),
        train_dataset=stream,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    report = preflight(trainer, show=None)
    assert any("only once" in line for line in report.unseen)
    assert len(list(stream)) == 4


def test_streams_are_read_from_their_beginning(tmp_path):
    tokenizer = byte_tokenizer()
    stream = Dataset.from_list(token_rows(tokenizer, chats(6))).to_iterable_dataset()
    trainer = Trainer(model=tiny_llama(tokenizer), args=arguments(tmp_path), train_dataset=stream)
    subject = TrainerSubject(trainer)
    subject.read_features()
    assert len(subject.features) == 6


def test_dropout_is_left_out_in_training_mode(tmp_path):
    trainer = masked_trainer(tmp_path)
    ids = torch.arange(8)[None]
    trainer.model.train()
    with WithoutDropout():
        assert torch.equal(trainer.model(ids).logits, trainer.model(ids).logits)
    assert not torch.equal(trainer.model(ids).logits, trainer.model(ids).logits)


def test_kinds_are_known(tmp_path):
    tokenizer = byte_tokenizer()
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    assert TrainerSubject(sft_trainer(tmp_path, peft_config=lora)).kind == "causal"
    assert TrainerSubject(masked_trainer(tmp_path)).kind == "masked"
    classifier = Trainer(model=tiny_bert(tokenizer, labels=2), args=arguments(tmp_path))
    assert TrainerSubject(classifier).kind == "classification"


def test_every_private_name_in_use_stands_in_a_table():
    names = set()
    for path in Path(subject.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
                names.add(node.attr)
            elif isinstance(node, ast.Call) and node.args[1:] and ast.unparse(node.func) in ("getattr", "hasattr"):
                names.add(ast.literal_eval(node.args[1]) if isinstance(node.args[1], ast.Constant) else "")
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                names.add(str(node.slice.value))
    used = {name for name in names if name.startswith("_") and not name.startswith("__")}
    assert used <= subject.PRIVATE_NAMES.keys() | gradients.PRIVATE_NAMES.keys()
    assert subject.PRIVATE_NAMES.keys() <= used


def test_private_names_are_those_of_transformers_and_torch():
    assert list(inspect.signature(Trainer._prepare_inputs).parameters) == ["self", "inputs"]
    assert hasattr(PreTrainedModel, "_keys_to_ignore_on_save")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    assert torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0).state_dict()["_last_lr"] == [0.1]
