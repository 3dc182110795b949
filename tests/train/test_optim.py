"""Muon, NorMuon and AdamW: their updates, whole models in groups, exact resume."""

import math

import pytest
import torch
from optimizer_families import FAMILIES, fill_gradients, llama, qwen3
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_tfm.core.errors import InputError
from hf_tfm.train import muon, optim
from hf_tfm.train.initialization import zero_init_output_projections
from hf_tfm.train.parameters import parameter_kinds
from hf_tfm.train.schedule import build_scheduler


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_every_parameter_is_in_exactly_one_group(family, name):
    model = FAMILIES[family]()
    optimizer = optim.build_optimizer(model, name)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    biases = {id(p) for n, p in model.named_parameters() if n.endswith("bias")}
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    for group in optimizer.param_groups:
        if group["name"].startswith("scalars"):
            assert group["weight_decay"] == 0 and all(p.ndim == 1 or id(p) in biases for p in group["params"])
    assert str(sum(p.numel() for p in model.parameters())) == str(
        sum(int(line.split()[3].replace(",", "")) for line in optim.describe_optimizer(optimizer).splitlines())
    )


@pytest.fixture
def exact(monkeypatch):
    """Use fp32 products, so that two ways to the same update differ by rounding only."""
    monkeypatch.setattr(muon, "orthogonalization_dtype", lambda device: torch.float32)


EVEN = {"row_beta": 0.9, "cautious": True, "weight_decay": 0.5, "lr": 0.1}


@pytest.mark.parametrize("settings", [{}, EVEN], ids=["muon", "normuon"])
def test_conv1d_learns_like_linear(settings, exact):
    linear, conv = nn.Linear(16, 24, bias=False), Conv1D(24, 16)
    conv.weight.data = linear.weight.data.T.clone()
    a = muon.Muon([{"params": [linear.weight], "algorithm": "muon"}], **settings)
    b = muon.Muon([{"params": [conv.weight], "algorithm": "muon", "transposed": True}], **settings)
    for _ in range(3):
        linear.weight.grad = torch.randn(24, 16)
        conv.weight.grad = linear.weight.grad.T.clone()
        a.step()
        b.step()
    torch.testing.assert_close(conv.weight.T, linear.weight)


@pytest.mark.parametrize("settings", [{}, EVEN], ids=["muon", "normuon"])
@pytest.mark.parametrize("transposed", [False, True])
def test_fused_weight_learns_like_separate_ones(transposed, settings, exact):
    parts = [nn.Parameter(torch.randn(rows, 16)) for rows in (32, 16, 16)]
    whole = torch.cat([p.detach() for p in parts])
    fused = nn.Parameter((whole.T if transposed else whole).contiguous())
    group = {"params": [fused], "algorithm": "muon", "blocks": (32, 16, 16), "transposed": transposed}
    a = muon.Muon([{"params": parts, "algorithm": "muon"}], **settings)
    b = muon.Muon([group], **settings)
    for _ in range(3):
        for part in parts:
            part.grad = torch.randn_like(part)
        gradient = torch.cat([p.grad for p in parts])
        fused.grad = (gradient.T if transposed else gradient).contiguous()
        a.step()
        b.step()
    torch.testing.assert_close(fused.T if transposed else fused, torch.cat(parts))


def heads_in_turns(weight):
    return weight.unflatten(0, (4, 3, -1)).transpose(0, 1).flatten(1, 2)


LAYOUTS = {
    ("mixtral", "experts.gate_up_proj"): lambda weight: weight.unflatten(1, (2, 48)).flatten(0, 1),
    ("mixtral", "experts.down_proj"): lambda weight: weight,
    ("mixtral", "mlp.gate.weight"): lambda weight: weight[None],
    ("llama4", "experts.gate_up_proj"): lambda weight: weight.mT.unflatten(1, (2, 48)).flatten(0, 1),
    ("llama4", "experts.down_proj"): lambda weight: weight.mT,
    ("gpt_oss", "experts.gate_up_proj"): lambda weight: torch.cat([weight[..., ::2].mT, weight[..., 1::2].mT]),
    ("gpt_neox", "query_key_value.weight"): heads_in_turns,
    ("bloom", "query_key_value.weight"): heads_in_turns,
}


@pytest.mark.parametrize("name", ["muon", "normuon"])
@pytest.mark.parametrize("family, part", LAYOUTS)
def test_every_projection_of_a_family_learns_like_a_separate_weight(family, part, name, exact):
    """Experts and fused projections in every layout."""
    model, projections = FAMILIES[family](), LAYOUTS[family, part]
    weight = next(p for n, p in model.named_parameters() if n.endswith(part))
    weight.data.normal_()
    separate = [nn.Parameter(matrix.clone()) for matrix in projections(weight.detach())]
    settings = EVEN | {"row_beta": 0.95} if name == "normuon" else {"lr": 0.1, "weight_decay": 0.5}
    optimizer = optim.build_optimizer(model, name, lr=0.1, weight_decay=0.5)
    reference = muon.Muon([{"params": separate, "algorithm": "muon"}], **settings)
    for _ in range(3):
        weight.grad = torch.randn_like(weight)
        for parameter, gradient in zip(separate, projections(weight.grad), strict=True):
            parameter.grad = gradient.contiguous()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(projections(weight), torch.stack([p.detach() for p in separate]))


def test_update_is_orthogonal_scaled_and_decayed():
    weight = nn.Parameter(torch.randn(64, 16))
    initial = weight.detach().clone()
    optimizer = muon.Muon([{"params": [weight], "algorithm": "muon"}], lr=0.1, weight_decay=0.5)
    weight.grad = torch.linalg.qr(torch.randn(64, 16)).Q * 1e-3
    optimizer.step()
    update = (initial * (1 - 0.1 * 0.5) - weight.detach()) / 0.1
    values = torch.linalg.svdvals(update)
    assert values.min() > 2 * 0.75 and values.max() < 2 * 1.25  # sqrt(64 / 16) times roughly 1


def test_normuon_normalizes_rows_and_keeps_the_norm(exact):
    """NorMuon's update written out."""
    gradients = [torch.randn(12, 8) * torch.logspace(-2, 0, 12)[:, None] for _ in range(3)]
    weights = [nn.Parameter(torch.zeros(12, 8)) for _ in range(2)]
    plain, even = (
        muon.Muon([{"params": [weight], "algorithm": "muon"}], lr=1.0, row_beta=beta)
        for weight, beta in zip(weights, (0.0, 0.9), strict=True)
    )
    squares = torch.zeros(12, 1)
    for gradient in gradients:
        previous = [weight.detach().clone() for weight in weights]
        for weight, optimizer in zip(weights, (plain, even), strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
        update, normalized = (w - weight.detach() for w, weight in zip(previous, weights, strict=True))
        squares = 0.9 * squares + 0.1 * update.square().mean(1, keepdim=True)
        expected = update / squares.sqrt()
        torch.testing.assert_close(normalized, expected * update.norm() / expected.norm())
        assert normalized.norm(dim=1).std() < 0.5 * update.norm(dim=1).std()


def test_cautious_decay_applies_to_weights_that_the_update_shrinks():
    initial = torch.randn(16, 16)
    gradient, after = torch.randn(16, 16), {}
    for decay in (0.0, 0.5):
        weight = nn.Parameter(initial.clone())
        optimizer = muon.Muon([{"params": [weight], "algorithm": "muon"}], lr=0.1, weight_decay=decay, cautious=True)
        weight.grad = gradient.clone()
        optimizer.step()
        after[decay] = weight.detach()
    shrinks = (initial - after[0.0]) * initial > 0
    assert 0 < shrinks.sum() < shrinks.numel()
    torch.testing.assert_close(after[0.5], after[0.0] - 0.05 * initial * shrinks)


@pytest.mark.parametrize("name", ["muon", "normuon", "adamw"])
def test_adamw_groups_equal_torch(name):
    """Bit for bit; with Muon everything but the matrices inside the layers."""
    ours, theirs = llama(), llama()
    theirs.load_state_dict(ours.state_dict())
    optimizer = optim.build_optimizer(ours, name, weight_decay=0.1, lr=1e-3, embedding_lr=3e-3)
    other = 1e-3 if name == "adamw" else 3e-3
    rates = {"matrices": 1e-3, "embeddings": 3e-3, "head": other, "scalars": other}
    kinds = parameter_kinds(theirs)
    reference = torch.optim.AdamW(
        [
            {
                "params": [theirs.get_parameter(n)],
                "lr": rates[kind],
                "weight_decay": 0.1 if kind != "scalars" and name == "adamw" else 0.0,
            }
            for n, kind in kinds.items()
        ],
        betas=(0.9, 0.95),
        fused=True,
    )
    for step in range(3):
        fill_gradients(ours, step)
        fill_gradients(theirs, step)
        optimizer.step()
        reference.step()
    for parameter_name, kind in kinds.items():
        same = torch.equal(ours.get_parameter(parameter_name), theirs.get_parameter(parameter_name))
        assert same == (name == "adamw" or kind != "matrices"), parameter_name


@pytest.mark.parametrize("name", ["muon", "normuon"])
@pytest.mark.parametrize("family", ["gpt2", "modernbert", "qwen3", "gpt_oss"])
def test_resume_is_bit_identical(family, name, tmp_path):
    def run(model, optimizer, scheduler, steps):
        for step in steps:
            fill_gradients(model, step)
            optimizer.step()
            scheduler.step()

    def build():
        torch.manual_seed(0)
        model = FAMILIES[family]()
        optimizer = optim.build_optimizer(model, name, momentum=0.95)
        return model, optimizer, build_scheduler(optimizer, "wsd", 8)

    straight = build()
    run(*straight, range(8))
    first = build()
    run(*first, range(3))
    torch.save([part.state_dict() for part in first], tmp_path / "checkpoint.pt")
    resumed = build()
    for part, state in zip(resumed, torch.load(tmp_path / "checkpoint.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    run(*resumed, range(3, 8))
    for expected, actual in zip(straight[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(expected, actual)


def test_a_state_of_an_older_version_can_be_resumed():
    weight = nn.Parameter(torch.randn(8, 8))
    optimizer = muon.Muon([{"params": [weight], "algorithm": "muon"}])
    state = optimizer.state_dict()
    for name in ("row_beta", "cautious", "turns"):
        del state["param_groups"][0][name]
    optimizer.load_state_dict(state)
    previous, weight.grad = weight.detach().clone(), torch.randn(8, 8)
    optimizer.step()
    assert not torch.equal(weight, previous)


def test_parameters_without_gradient_do_not_change():
    model = llama()
    initial = {n: p.detach().clone() for n, p in model.named_parameters()}
    fill_gradients(model)
    untouched = "model.layers.1.mlp.up_proj.weight"
    model.get_parameter(untouched).grad = None
    optim.build_optimizer(model).step()
    assert {n for n, p in model.named_parameters() if torch.equal(p, initial[n])} == {untouched}


def test_learns_with_the_recipe():
    model = qwen3()
    zero_init_output_projections(model)
    optimizer = optim.build_optimizer(model)
    scheduler = build_scheduler(optimizer, "wsd", 20)
    ids = torch.randint(0, 64, (4, 16))
    losses = []
    for _ in range(20):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(64), abs=0.2) and losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    "arguments, part",
    [
        (dict(name="lion"), "lion"),
        (dict(name="adamw", momentum=0.9), "momentum"),
        (dict(lr=0.0), "matrices"),
        (dict(embedding_lr=0.0), "embeddings"),
    ],
)
def test_wrong_settings_are_named(arguments, part):
    with pytest.raises(InputError, match=part):
        optim.build_optimizer(llama(), **arguments)
