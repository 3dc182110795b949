"""Gradients and losses: all weights learn; accumulation, low precision and compiling are correct."""

import copy

import pytest
import torch
from shapes import HEADS, SHAPES, logits_of
from tiny import build, inputs_for, random_ids
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments, default_data_collator


LM_HEADS = {"Decoder": "TfmDecoderForCausalLM", "Encoder": "TfmEncoderForMaskedLM"}
CLOSE = dict(atol=1e-5, rtol=1e-4)


def gradients(model: torch.nn.Module, inputs: dict, **kwargs) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs, **kwargs).loss.backward()
    # A compiled model is a wrapper that puts its name in front.
    return {name.removeprefix("_orig_mod."): value.grad.clone() for name, value in model.named_parameters()}


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **tolerance) -> None:
    for name, value in expected.items():
        assert_close(got[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name, shape", [(name, shape) for family, shape in SHAPES for name in HEADS if family in name])
def test_every_weight_learns(name, shape):
    """
    All but biases that only add a constant to a softmax: of keys where no position rotates them, of heads over
    positions or choices, and of the norm in front of such a head. Nothing of the loss depends on those. In fp64,
    because rounding gives them a gradient on some CPUs.
    """
    model, inputs = build(name, shape).double().train(), inputs_for(name)
    loss = model(**inputs).loss
    loss.backward()
    for key, parameter in model.named_parameters():
        if parameter.grad is None or parameter.grad.abs().max() < 1e-6:
            assert key.endswith(".bias"), key
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter))
    assert_close(model(**inputs).loss, loss, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["TfmDecoderForCausalLM", "TfmEncoderForMaskedLM"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(name, reentrant):
    model = build(name).train()
    inputs = inputs_for(name)
    expected = gradients(model, inputs)
    calls = []
    for block in model.model.layers:
        block.self_attn.register_forward_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_same(gradients(model, inputs), expected, **CLOSE)
    assert len(calls) == 2 * model.config.num_hidden_layers, "each block runs forward a second time"


@pytest.mark.parametrize("name, shape", [(name, shape) for family, shape in SHAPES for name in HEADS if family in name])
def test_losses_of_split_batches_add_up(name, shape):
    model = build(name, shape)
    inputs = inputs_for(name, batch=6)
    if name.endswith("ForQuestionAnswering"):
        # The Trainer counts no items without `labels`: it divides the mean losses itself.
        count, scale = None, 3
    else:
        labels = inputs["labels"][..., 1:] if name.endswith("ForCausalLM") else inputs["labels"]
        count, scale = labels.ne(-100).sum(), 1
    expected = gradients(model, inputs, num_items_in_batch=count)
    model.zero_grad()
    for start in range(0, 6, 2):
        part = {key: value[start : start + 2] for key, value in inputs.items()}
        (model(**part, num_items_in_batch=count).loss / scale).backward()
    assert_same({key: value.grad for key, value in model.named_parameters()}, expected, **CLOSE)


@pytest.mark.parametrize("name", HEADS)
def test_gradient_accumulation_changes_nothing(name, tmp_path):
    """One step of eight rows and four steps of two end at the same weights, for rows with unequal numbers of labels."""
    rows = inputs_for(name, batch=8)
    dataset = [{key: value[row] for key, value in rows.items()} for row in range(8)]
    final, losses = [], []
    for batch_size, steps in ((8, 1), (2, 4)):
        arguments = TrainingArguments(
            output_dir=tmp_path,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            optim="sgd",
            learning_rate=0.05,
            max_grad_norm=0,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        model = build(name)
        trainer = Trainer(model, arguments, train_dataset=dataset, data_collator=default_data_collator)
        trainer.train()
        final.append(model.state_dict())
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert_close(losses[1], losses[0], atol=1e-4, rtol=1e-4)
    moved = max((value - final[0][key]).abs().max() for key, value in build(name).state_dict().items())
    assert moved > 1e-3
    assert_same(final[1], final[0], **CLOSE)


@pytest.mark.parametrize("name", ["TfmDecoderForSequenceClassification", "TfmEncoderForSequenceClassification"])
@pytest.mark.parametrize(
    "problem_type, num_labels, labels, reference",
    [
        ("single_label_classification", 3, torch.tensor([0, 2]), F.cross_entropy),
        ("regression", 1, torch.tensor([0.5, -2.0]), lambda x, y: F.mse_loss(x[:, 0], y)),
        ("regression", 3, torch.tensor([[0.5, -2.0, 0.1], [1.0, 2.0, 3.0]]), F.mse_loss),
        (
            "multi_label_classification",
            3,
            torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]),
            F.binary_cross_entropy_with_logits,
        ),
    ],
)
def test_problem_types(name, problem_type, num_labels, labels, reference):
    inputs = dict(input_ids=random_ids(2, 6), labels=labels)
    for given in (problem_type, None):
        model = build(name, num_labels=num_labels, problem_type=given)
        if given is None and problem_type == "regression" and num_labels > 1:
            continue  # floats for several labels are taken for a multi-label task
        outputs = model(**inputs)
        assert_close(outputs.loss, reference(outputs.logits, labels))
        assert model.config.problem_type == problem_type
        of_twice_as_many = model(**inputs, num_items_in_batch=2 * labels.numel()).loss
        assert_close(2 * of_twice_as_many, outputs.loss)


def test_losses_by_their_definition():
    causal = build("TfmDecoderForCausalLM")
    inputs = inputs_for("TfmDecoderForCausalLM")
    outputs = causal(**inputs)
    expected = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())
    assert_close(outputs.loss, expected)

    pretraining = build("TfmEncoderForPreTraining", "bert")
    inputs = inputs_for("TfmEncoderForPreTraining")
    outputs = pretraining(**inputs)
    expected = F.cross_entropy(outputs.prediction_logits.flatten(0, 1), inputs["labels"].flatten())
    pairs = F.cross_entropy(outputs.seq_relationship_logits, inputs["next_sentence_label"], reduction="none")
    tokens = (inputs["labels"] != -100).sum(-1)
    assert tokens[0] != tokens[1]
    assert_close(outputs.loss, expected + (pairs * tokens).sum() / tokens.sum())

    answering = build("TfmEncoderForQuestionAnswering")
    inputs = inputs_for("TfmEncoderForQuestionAnswering")
    inputs["end_positions"][0] = 99  # beyond the row, as for an answer that was cut off
    outputs = answering(**inputs)
    start = F.cross_entropy(outputs.start_logits, inputs["start_positions"])
    end = F.cross_entropy(outputs.end_logits[1:], inputs["end_positions"][1:])
    assert_close(outputs.loss, (start + end) / 2)
    assert_close(answering(**inputs, num_items_in_batch=4).loss, (2 * start + end) / 4 / 2)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name, shape",
    [
        *[(LM_HEADS[family], shape) for family, shape in SHAPES],
        *[(name, None) for name in HEADS if name not in LM_HEADS.values()],
    ],
)
def test_low_precision_stays_finite(name, shape, dtype, attention):
    """With a row of padding only, as in the last batch of an evaluation, and one that starts with padding."""
    model = build(name, shape).to(dtype)
    model.set_attn_implementation(attention)
    inputs = inputs_for(name, batch=3)
    inputs["attention_mask"][0] = 0
    inputs["attention_mask"][1, ..., :4] = 0
    full = build(name, shape)
    outputs = model(**inputs)
    assert logits_of(outputs).isfinite().all() and outputs.loss.isfinite()
    assert_close(logits_of(outputs)[2].float(), logits_of(full(**inputs))[2], atol=0.4, rtol=0.2)
    outputs.loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ["TfmDecoderForCausalLM", "TfmEncoderForMaskedLM"])
def test_autocast_keeps_weights_and_gives_near_gradients(name):
    model = build(name)
    inputs = inputs_for(name)
    expected = gradients(model, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients(model, inputs)
    for key, value in expected.items():
        assert got[key].dtype == torch.float32
        error = (got[key] - value).norm() / value.norm().clamp(min=1e-3)
        assert error < 0.1, (key, error)


def test_dropout_is_applied_where_configured():
    for field in ("hidden_dropout", "attention_dropout", "embedding_dropout"):
        for name in ("TfmDecoderModel", "TfmEncoderModel"):
            model = build(name, **{field: 0.5})
            ids = random_ids(1, 6)
            assert torch.equal(model(ids)[0], model(ids)[0]), "none in evaluation"
            model.train()
            assert not torch.equal(model(ids)[0], model(ids)[0]), (name, field)
    model = build("TfmEncoderForSequenceClassification", classifier_dropout=0.5).train()
    assert not torch.equal(model(random_ids(1, 6)).logits, model(random_ids(1, 6)).logits)


def masked_inputs(name: str) -> dict[str, torch.Tensor]:
    """A row padded on the right, one on the left, one full."""
    inputs = inputs_for(name, batch=3, length=12)
    inputs["attention_mask"][0, ..., 8:] = 0
    inputs["attention_mask"][1, ..., :5] = 0
    return inputs


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in LM_HEADS.values() else [pytest.mark.slow]) for name in HEADS]
)
def test_training_is_one_graph(name):
    """Forward and backward have no graph break; checked with the tracer, because compiling is slow."""
    torch._dynamo.reset()
    model = build(name, num_hidden_layers=1).train()
    inputs = masked_inputs(name)
    expected = gradients(model, inputs)
    assert_same(gradients(torch.compile(model, fullgraph=True, backend="aot_eager"), inputs), expected, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "name, shape",
    [
        ("TfmDecoderForCausalLM", "qwen3"),
        ("TfmDecoderForCausalLM", "mixed"),
        ("TfmDecoderForCausalLM", "gpt2"),
        ("TfmEncoderForMaskedLM", "default"),
        ("TfmEncoderForPreTraining", "bert"),
        ("TfmEncoderForSequenceClassification", "modernbert"),
    ],
)
def test_compiled_gradients_equal_eager_ones(name, shape, autocast):
    """In bf16 too, where compiled attention once gave NaN gradients; and in inference."""
    torch._dynamo.reset()
    model = build(name, shape).train()
    inputs = masked_inputs(name)
    compiled = torch.compile(model, fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = gradients(model, inputs)
        got = gradients(compiled, inputs)
    for key, value in expected.items():
        assert got[key].isfinite().all(), key
        error = (got[key] - value).norm() / value.norm().clamp(min=1e-2)
        assert error < (0.1 if autocast else 1e-4), (key, error)
    if not autocast:
        model.eval()
        with torch.no_grad():
            assert_close(logits_of(compiled(**inputs)), logits_of(model(**inputs)), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_compiled_packing_keeps_documents_apart():
    torch._dynamo.reset()
    for name in ("TfmDecoderModel", "TfmEncoderModel"):
        model = build(name)
        documents = [random_ids(length, seed=length) for length in (5, 9, 3)]
        positions = torch.cat([torch.arange(len(document)) for document in documents])
        compiled = torch.compile(model, fullgraph=True)
        for mask in (None, torch.ones(1, 17, dtype=torch.long)):
            states = compiled(torch.cat(documents)[None], attention_mask=mask, position_ids=positions[None])[0][0]
            for document, got in zip(documents, states.split([5, 9, 3])):
                assert_close(got, model(document[None])[0][0], atol=1e-4, rtol=1e-4)


def test_a_copy_of_a_model_is_whole():
    """Averaging of weights, parallel launchers and checkpoints copy and pickle models."""
    model = build("TfmDecoderForCausalLM", "mixed")
    inputs = inputs_for("TfmDecoderForCausalLM")
    assert torch.equal(copy.deepcopy(model)(**inputs).logits, model(**inputs).logits)
