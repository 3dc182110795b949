"""Orthogonalisation, routing of parameters, exact resume, schedules, averages: what a pretraining run stands on."""

import copy
import math

import pytest
import tiny
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForPreTraining,
    BloomConfig,
    BloomForCausalLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from hf_tfm.core.errors import InputError
from hf_tfm.train import optim


SIZE = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
EXPERTS = SIZE | dict(num_key_value_heads=2, head_dim=8)
GPT2 = dict(n_layer=2, n_embd=32, n_head=4, vocab_size=64, n_positions=32, bos_token_id=1, eos_token_id=2)


def llama(**kwargs):
    return LlamaForCausalLM(LlamaConfig(**SIZE | dict(num_key_value_heads=2) | kwargs))


def qwen3(**kwargs):
    return Qwen3ForCausalLM(Qwen3Config(**SIZE, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, **kwargs))


def modernbert():
    return ModernBertForMaskedLM(ModernBertConfig(**SIZE, cls_token_id=1, sep_token_id=2))


FAMILIES = {
    "llama": llama,
    "qwen3": qwen3,
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "bert": lambda: BertForPreTraining(BertConfig(**SIZE)),
    "modernbert": modernbert,
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SIZE, num_key_value_heads=2)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZE, num_key_value_heads=2, num_local_experts=3)),
    "gpt_oss": lambda: GptOssForCausalLM(GptOssConfig(**EXPERTS, num_local_experts=3, num_experts_per_tok=2)),
    "llama4": lambda: Llama4ForCausalLM(Llama4TextConfig(**EXPERTS, num_local_experts=3, intermediate_size_mlp=48)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZE)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(**GPT2)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**SIZE, ffn_dim=48, word_embed_proj_dim=32)),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=64, dim=32, hidden_dim=48, n_layers=2, n_heads=4)
    ),
    "albert": lambda: AlbertForMaskedLM(AlbertConfig(**SIZE, embedding_size=16)),
    "decoder": lambda: tiny.build("TfmDecoderForCausalLM"),
    "encoder": lambda: tiny.build("TfmEncoderForMaskedLM"),
}


def fill_gradients(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def random_with_spectrum(rows, columns, smallest):
    """A matrix with singular values from 1 down to `smallest`, evenly spaced on a logarithmic scale."""
    u = torch.linalg.qr(torch.randn(rows, rows)).Q
    v = torch.linalg.qr(torch.randn(columns, rows)).Q
    return u @ torch.diag(torch.logspace(0, math.log10(smallest), rows)) @ v.mT


# --- orthogonalisation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(32, 32), (32, 40), (64, 176), (176, 64), (16, 256), (1, 8)])
@pytest.mark.parametrize("steps, error", [(2, 0.23), (3, 0.11)])
def test_orthogonalize_gives_the_polar_factor(steps, error, shape, dtype):
    rows, columns = sorted(shape)
    matrix = random_with_spectrum(rows, columns, smallest=0.2) if rows > 1 else torch.randn(shape)
    matrix = matrix.reshape(shape) if shape == (rows, columns) else matrix.mT
    result = optim.orthogonalize(matrix[None], steps, dtype)[0].float()
    # Rounding. The steeper first polynomial of three dips low, where bf16 leaves few digits.
    error += 0.01 if dtype == torch.float32 else {2: 0.03, 3: 0.25}[steps]
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.linalg.matrix_norm(result - u @ vh) / torch.linalg.matrix_norm(u @ vh) < error
    assert (torch.linalg.svdvals(result) - 1).abs().max() < error


@pytest.mark.parametrize("shape", [(48, 48), (48, 128), (128, 48)])
@pytest.mark.parametrize("steps", [2, 3])
def test_orthogonalize_stays_bounded_on_every_spectrum(shape, steps):
    """bf16 rounding must not blow up directions that carry (almost) nothing; an all-zero gradient gives no update."""
    flat = [random_with_spectrum(48, max(shape), smallest).reshape(48, -1) for smallest in (1e-2, 1e-3, 1e-6)]
    hard = [m.mT if shape[0] > shape[1] else m for m in flat]
    hard += [hard[0] * 1e-10, hard[0] * 1e4, torch.randn(shape), torch.randn(shape[0], 1) @ torch.randn(1, shape[1])]
    result = optim.orthogonalize(torch.stack(hard), steps, torch.bfloat16).float()
    assert torch.linalg.svdvals(result).max() < 1.25
    assert optim.orthogonalize(torch.zeros(1, *shape), steps, torch.bfloat16).abs().max() == 0


@pytest.mark.parametrize("shape", [(24, 24), (24, 64)])
def test_orthogonalize_of_a_batch_equals_one_by_one(shape):
    batch = torch.randn(3, *shape)
    single = torch.cat([optim.orthogonalize(matrix[None], dtype=torch.float32) for matrix in batch])
    torch.testing.assert_close(optim.orthogonalize(batch, dtype=torch.float32), single)


@pytest.mark.parametrize("steps, smallest, error", [(2, 0.05, 0.23), (3, 0.02, 0.11)])
def test_coefficients_keep_their_promise(steps, smallest, error):
    """The composition stays within `error` of 1 on both sides, as the comment at the table says."""
    x = torch.logspace(math.log10(smallest), 0, 20_000, dtype=torch.float64)
    for a, b, c in optim.POLAR_COEFFICIENTS[steps]:
        x = a * x + b * x**3 + c * x**5
    assert 0.95 * error < x.max() - 1 < error and 0.95 * error < 1 - x.min() < error


# --- which parameter goes where


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


@pytest.mark.parametrize(
    "family, expected",
    [
        (
            "llama",
            {"embed_tokens": "embeddings", "lm_head": "head", "q_proj": "matrices", "input_layernorm": "scalars"},
        ),
        ("qwen3", {"embed_tokens": "embeddings", "q_norm": "scalars", "down_proj": "matrices"}),
        ("gpt2", {"wte": "embeddings", "wpe": "embeddings", "c_attn": "matrices", "ln_f": "scalars"}),
        ("bert", {"position_embeddings": "embeddings", "pooler.dense": "matrices", "seq_relationship": "head"}),
        ("modernbert", {"tok_embeddings": "embeddings", "Wqkv": "matrices", "head.dense": "matrices"}),
        ("decoder", {"embed_tokens": "embeddings", "o_proj": "matrices", "norm": "scalars"}),
        ("encoder", {"embed_tokens": "embeddings", "up_proj": "matrices"}),
        ("mixtral", {"experts.gate_up_proj": "matrices", "experts.down_proj": "matrices", "mlp.gate": "matrices"}),
        ("gpt_oss", {"experts.gate_up_proj": "matrices", "gate_up_proj_bias": "scalars", "router": "matrices"}),
        ("llama4", {"experts.gate_up_proj": "matrices", "experts.down_proj": "matrices", "router": "matrices"}),
    ],
)
def test_kinds_of_parameters(family, expected):
    kinds = optim.parameter_kinds(FAMILIES[family]())
    for part, kind in expected.items():
        found = {k for name, k in kinds.items() if f".{name.removesuffix('.weight')}".endswith(f".{part}")}
        assert found == {kind}, f"{part} is {found}, not {kind}"


def test_frozen_parameters_and_classifiers():
    model = LlamaForSequenceClassification(LlamaConfig(**SIZE, num_labels=32))
    model.model.embed_tokens.weight.requires_grad_(False)
    kinds = optim.parameter_kinds(model)
    assert "model.embed_tokens.weight" not in kinds


@pytest.mark.parametrize(
    "family, module, blocks",
    [
        ("gpt2", "c_attn", (32, 32, 32)),
        ("modernbert", "Wqkv", (32, 32, 32)),
        ("modernbert", "Wi", (48, 48)),
        ("phi3", "qkv_proj", (32, 16, 16)),
        ("phi3", "gate_up_proj", (48, 48)),
    ],
)
def test_fused_projections_are_read_as_their_parts(family, module, blocks):
    model = FAMILIES[family]()
    optimizer = optim.build_optimizer(model)
    weights = {id(p) for name, p in model.named_parameters() if f".{module}.weight" in name}
    found = {g["blocks"] for g in optimizer.param_groups for p in g["params"] if id(p) in weights}
    assert found == {blocks}


def test_fused_projections_that_do_not_follow_the_configuration():
    """Lightning attention keeps as many keys as queries, whatever the configuration says of grouped ones."""
    grouped = LlamaConfig(**{**SIZE, "num_attention_heads": 8}, num_key_value_heads=1, head_dim=8)
    assert optim._fused_blocks("model.layers.0.self_attn.qkv_proj.weight", 192, 32, grouped) == (32,) * 6
    assert optim._fused_blocks("model.layers.0.self_attn.qkv_proj.weight", 80, 32, grouped) == (64, 8, 8)
    assert optim._fused_blocks("model.layers.0.self_attn.qkv_proj.weight", 100, 32, grouped) is None


def test_zero_initialisation_leaves_states_alone():
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    assert optim.zero_init_output_projections(model)
    own = [name for name in before if name.endswith(("A_log", ".D", "dt_proj.bias")) or "conv1d" in name]
    assert len(own) == 10 and all(torch.equal(before[name], model.get_parameter(name)) for name in own)


# --- the update


@pytest.fixture
def exact(monkeypatch):
    """fp32 products, so that only rounding is left between two ways to the same update."""
    monkeypatch.setattr(optim, "orthogonalization_dtype", lambda device: torch.float32)


EVEN = {"row_beta": 0.9, "cautious": True, "weight_decay": 0.5, "lr": 0.1}


@pytest.mark.parametrize("settings", [{}, EVEN], ids=["muon", "normuon"])
def test_conv1d_learns_like_linear(settings, exact):
    linear, conv = nn.Linear(16, 24, bias=False), Conv1D(24, 16)
    conv.weight.data = linear.weight.data.T.clone()
    a = optim.Muon([{"params": [linear.weight], "algorithm": "muon"}], **settings)
    b = optim.Muon([{"params": [conv.weight], "algorithm": "muon", "transposed": True}], **settings)
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
    a = optim.Muon([{"params": parts, "algorithm": "muon"}], **settings)
    b = optim.Muon([group], **settings)
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


# How each projection of a weight is found, as (projections, out, in).
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
def test_every_projection_of_a_family_learns_as_if_it_were_alone(family, part, name, exact):
    """Experts and fused projections, however they are stored."""
    model, projections = FAMILIES[family](), LAYOUTS[family, part]
    weight = next(p for n, p in model.named_parameters() if n.endswith(part))
    weight.data.normal_()
    alone = [nn.Parameter(matrix.clone()) for matrix in projections(weight.detach())]
    settings = EVEN | {"row_beta": 0.95} if name == "normuon" else {"lr": 0.1, "weight_decay": 0.5}
    optimizer = optim.build_optimizer(model, name, lr=0.1, weight_decay=0.5)
    separate = optim.Muon([{"params": alone, "algorithm": "muon"}], **settings)
    for _ in range(3):
        weight.grad = torch.randn_like(weight)
        for parameter, gradient in zip(alone, projections(weight.grad), strict=True):
            parameter.grad = gradient.contiguous()
        optimizer.step()
        separate.step()
    torch.testing.assert_close(projections(weight), torch.stack([p.detach() for p in alone]))


def test_update_is_orthogonal_scaled_and_decayed():
    weight = nn.Parameter(torch.randn(64, 16))
    before = weight.detach().clone()
    optimizer = optim.Muon([{"params": [weight], "algorithm": "muon"}], lr=0.1, weight_decay=0.5)
    weight.grad = torch.linalg.qr(torch.randn(64, 16)).Q * 1e-3
    optimizer.step()
    update = (before * (1 - 0.1 * 0.5) - weight.detach()) / 0.1
    values = torch.linalg.svdvals(update)
    assert values.min() > 2 * 0.75 and values.max() < 2 * 1.25  # sqrt(64 / 16) times what is roughly 1


def test_rows_of_an_update_become_even_and_its_norm_stays(exact):
    """NorMuon's update, written out."""
    gradients = [torch.randn(12, 8) * torch.logspace(-2, 0, 12)[:, None] for _ in range(3)]
    weights = [nn.Parameter(torch.zeros(12, 8)) for _ in range(2)]
    plain, even = (
        optim.Muon([{"params": [weight], "algorithm": "muon"}], lr=1.0, row_beta=beta)
        for weight, beta in zip(weights, (0.0, 0.9), strict=True)
    )
    squares = torch.zeros(12, 1)
    for gradient in gradients:
        before = [weight.detach().clone() for weight in weights]
        for weight, optimizer in zip(weights, (plain, even), strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
        update, found = (b - weight.detach() for b, weight in zip(before, weights, strict=True))
        squares = 0.9 * squares + 0.1 * update.square().mean(1, keepdim=True)
        expected = update / squares.sqrt()
        torch.testing.assert_close(found, expected * update.norm() / expected.norm())
        assert found.norm(dim=1).std() < 0.5 * update.norm(dim=1).std()


def test_cautious_decay_is_for_weights_that_the_update_makes_smaller():
    before = torch.randn(16, 16)
    gradient, after = torch.randn(16, 16), {}
    for decay in (0.0, 0.5):
        weight = nn.Parameter(before.clone())
        optimizer = optim.Muon([{"params": [weight], "algorithm": "muon"}], lr=0.1, weight_decay=decay, cautious=True)
        weight.grad = gradient.clone()
        optimizer.step()
        after[decay] = weight.detach()
    smaller = (before - after[0.0]) * before > 0
    assert 0 < smaller.sum() < smaller.numel()
    torch.testing.assert_close(after[0.5], after[0.0] - 0.05 * before * smaller)


@pytest.mark.parametrize("name", ["muon", "normuon", "adamw"])
def test_adamw_groups_equal_torch(name):
    """Bit for bit; with Muon: for whatever is not a matrix inside the layers."""
    ours, theirs = llama(), llama()
    theirs.load_state_dict(ours.state_dict())
    rates = dict(lr=1e-3, embedding_lr=3e-3, head_lr=2e-3, scalar_lr=4e-3)
    optimizer = optim.build_optimizer(ours, name, weight_decay=0.1, **rates)
    kinds = optim.parameter_kinds(theirs)
    reference = torch.optim.AdamW(
        [
            {
                "params": [theirs.get_parameter(n)],
                "lr": dict(zip(["matrices", "embeddings", "head", "scalars"], rates.values(), strict=True))[kind],
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
        optimizer = optim.build_optimizer(model, name, momentum=0.95, momentum_warmup_steps=6)
        return model, optimizer, optim.build_scheduler(optimizer, "wsd", 8)

    straight = build()
    run(*straight, range(8))
    first = build()
    run(*first, range(3))
    torch.save([part.state_dict() for part in first], tmp_path / "checkpoint.pt")
    resumed = build()
    for part, state in zip(resumed, torch.load(tmp_path / "checkpoint.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    run(*resumed, range(3, 8))
    for expected, found in zip(straight[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(expected, found)


def test_the_state_of_an_older_version_goes_on():
    weight = nn.Parameter(torch.randn(8, 8))
    optimizer = optim.Muon([{"params": [weight], "algorithm": "muon"}])
    state = optimizer.state_dict()
    for name in ("row_beta", "cautious", "turns"):
        del state["param_groups"][0][name]
    optimizer.load_state_dict(state)
    before, weight.grad = weight.detach().clone(), torch.randn(8, 8)
    optimizer.step()
    assert not torch.equal(weight, before)


def test_parameters_without_gradient_are_left_alone():
    model = llama()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    fill_gradients(model)
    untouched = "model.layers.1.mlp.up_proj.weight"
    model.get_parameter(untouched).grad = None
    optim.build_optimizer(model).step()
    assert {n for n, p in model.named_parameters() if torch.equal(p, before[n])} == {untouched}


def test_learns_with_the_recipe():
    model = qwen3()
    optim.zero_init_output_projections(model)
    optimizer = optim.build_optimizer(model)
    scheduler = optim.build_scheduler(optimizer, "wsd", 20)
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
        (dict(head_lr=-1.0), "head"),
        (dict(embedding_lr=0.0), "embeddings"),
    ],
)
def test_wrong_settings_are_named(arguments, part):
    with pytest.raises(InputError, match=part):
        optim.build_optimizer(llama(), **arguments)


def _sharded_equals_plain(rank, path, name, family):
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    models = []
    for shard in (False, True):
        torch.manual_seed(0)
        wide = GPT2Config(**GPT2 | dict(n_embd=36))
        model = (GPT2LMHeadModel(wide) if family == "gpt2" else FAMILIES[family]()).eval()
        if shard:
            layers = model.transformer.h if family == "gpt2" else model.model.layers
            for block in [*layers, model]:
                fully_shard(block, mesh=mesh)
        models.append((model, optim.build_optimizer(model, name)))
    ids = torch.randint(0, 64, (2, 16))
    for _ in range(2):
        for model, optimizer in models:
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for plain, sharded in zip(models[0][0].parameters(), models[1][0].parameters(), strict=True):
        torch.testing.assert_close(sharded.full_tensor(), plain, atol=2e-3, rtol=0)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon", "normuon"])
@pytest.mark.parametrize("family", ["gpt2", "gpt_oss"])
def test_sharded_parameters_learn_like_plain_ones(family, name, tmp_path):
    """FSDP2 over two processes."""
    torch.multiprocessing.spawn(_sharded_equals_plain, (str(tmp_path / "rendezvous"), name, family), nprocs=2)


# --- schedules


def test_wsd():
    factor = optim.schedule("wsd", 100, warmup=0.1, decay=0.4, final=0.02)
    assert [factor(s) for s in (0, 4, 9, 10, 60)] == pytest.approx([0.1, 0.5, 1, 1, 1])
    assert factor(80) == pytest.approx(0.51) and factor(100) == factor(200) == pytest.approx(0.02)
    sqrt = optim.schedule("wsd", 100, warmup=10, decay=40, final=0.0, shape="sqrt")
    assert sqrt(70) == pytest.approx(0.5) and sqrt(60) == 1


def test_cosine_and_constant():
    cosine = optim.schedule("cosine", 110, warmup=10, final=0.1)
    assert [cosine(s) for s in (4, 10, 60, 110, 300)] == pytest.approx([0.5, 1, 0.55, 0.1, 0.1])
    constant = optim.schedule("constant", 10, warmup=0)
    assert constant(0) == constant(9) == 1


def test_scheduler_keeps_the_ratio_of_group_rates():
    optimizer = optim.build_optimizer(llama(), lr=0.01, embedding_lr=0.03)
    scheduler = optim.build_scheduler(optimizer, "wsd", 10, warmup=0, decay=0.5, final=0.0)
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates["matrices"] == pytest.approx(0.006) and rates["embeddings"] == pytest.approx(0.018)


@pytest.mark.parametrize(
    "arguments, part",
    [
        (dict(name="linear"), "linear"),
        (dict(shape="cubic"), "cubic"),
        (dict(warmup=60, decay=60), "fit"),
        (dict(warmup=-0.1), "fit"),
        (dict(total_steps=0), "empty"),
    ],
)
def test_wrong_schedules_are_named(arguments, part):
    with pytest.raises(InputError, match=part):
        optim.schedule(**dict(name="wsd", total_steps=100) | arguments)


def test_momentum_warmup():
    assert [optim.momentum_warmup(s, 100, 0.85, 0.95) for s in (0, 50, 100, 900)] == pytest.approx(
        [0.85, 0.9, 0.95, 0.95]
    )
    assert optim.momentum_warmup(0, 0, 0.85, 0.95) == 0.95


# --- initialisation, averages, z-loss


@pytest.mark.parametrize(
    "family, zero",
    [
        ("llama", {"o_proj", "down_proj"}),
        ("qwen3", {"o_proj", "down_proj"}),
        ("gpt2", {"c_proj"}),
        ("bert", {"attention.output.dense", "output.dense"}),
        ("modernbert", {"attn.Wo", "mlp.Wo"}),
        ("decoder", {"o_proj", "down_proj"}),
        ("encoder", {"o_proj", "down_proj"}),
        ("opt", {"out_proj", "fc2"}),
        ("distilbert", {"out_lin", "lin2"}),
        ("albert", {"attention.dense", "ffn_output"}),
        ("bloom", {"self_attention.dense", "dense_4h_to_h"}),
        ("mixtral", {"o_proj", "experts.down_proj"}),
        ("gpt_oss", {"o_proj", "experts.down_proj"}),
    ],
)
def test_layers_start_as_the_identity(family, zero):
    model = FAMILIES[family]()
    zeroed = optim.zero_init_output_projections(model)
    assert len(zeroed) == (2 if family == "albert" else 4)  # two a layer; ALBERT has one for all
    assert all(any(name.endswith(ending) for ending in zero) for name in zeroed)
    for name, parameter in model.named_parameters():
        if name.removesuffix(".weight") in zeroed:
            assert parameter.abs().max() == 0
        elif optim.parameter_kinds(model)[name] == "matrices":
            transposed = family == "gpt2" or (family == "gpt_oss" and "experts" in name)
            inputs = parameter.shape[-2 if transposed else -1]
            assert parameter.std().item() == pytest.approx(0.6 / math.sqrt(inputs), rel=0.15)


def test_gates_start_half_open():
    model = tiny.build("TfmDecoderForCausalLM", attention_gate=True)
    gates = [name for name in dict(model.named_parameters()) if "head_gate" in name]
    assert len(gates) == 2 and {optim.parameter_kinds(model)[name] for name in gates} == {"matrices"}
    assert all(model.get_parameter(name).any() for name in gates)
    optim.zero_init_output_projections(model)
    assert not any(model.get_parameter(name).any() for name in gates)


def test_the_matrix_of_embeddings_values_is_one_of_the_layers():
    """With grouped queries it is not square, which alone would make it a head."""
    model = tiny.build("TfmDecoderForCausalLM", value_residual=True, num_key_value_heads=2)
    assert model.model.embed_values.weight.shape == (16, 32)
    assert optim.parameter_kinds(model)["model.embed_values.weight"] == "matrices"
    assert optim.parameter_kinds(model)["model.layers.0.self_attn.value_mix"] == "scalars"


def test_average_follows_and_swaps():
    model = llama()
    ema = optim.EMA(model, decay=0.75)
    weight = model.model.norm.weight
    with torch.no_grad():
        weight.fill_(5.0)
    ema.update()
    with ema.swapped():
        assert weight.mean().item() == pytest.approx(4.6)  # 0.1 * 1 + 0.9 * 5: the first decay is 1 / 10
    assert weight.mean() == 5.0
    with pytest.raises(InputError, match="decay"):
        optim.EMA(model, decay=1.0)


def averaged(decay, values, state=None):
    """The average over a run of a weight, and its state."""
    weight = nn.Linear(1, 1, bias=False)
    weight.weight.data.fill_(1e3)  # far from where it will be, as a random weight is
    ema = optim.EMA(weight, decay)
    if state is not None:
        ema.load_state_dict(state)
    for value in values:
        weight.weight.data.fill_(value)
        ema.update()
    return ema.averages["weight"].item(), copy.deepcopy(ema.state_dict())


def test_an_average_soon_forgets_where_the_weights_began():
    run = [1 + 0.1 * step for step in range(40)]
    average, _ = averaged(0.999, run)
    assert run[20] < average < run[-1]
    # The decay that was asked for is the limit, from (1 + t) / (10 + t) = 0.5 at t = 8 on.
    before, state = averaged(0.5, run)
    assert averaged(0.5, [9.0], state)[0] == pytest.approx(0.5 * before + 0.5 * 9.0)


@pytest.mark.parametrize("done", [1, 7, 30])
def test_an_average_goes_on_exactly(done, tmp_path):
    run = torch.randn(40).tolist()
    torch.save(averaged(0.9, run[:done])[1], tmp_path / "averages.pt")
    state = torch.load(tmp_path / "averages.pt", weights_only=True)
    assert averaged(0.9, run[done:], state) == averaged(0.9, run)


def test_averages_without_a_count_are_past_the_warm_up():
    found, _ = averaged(0.9, [0.0], {"weight": torch.full((1, 1), 2.0)})
    assert found == pytest.approx(0.9 * 2.0)


def test_z_loss_counts_predicted_positions_only():
    logits = torch.zeros(2, 3, 8)
    logits[0, 0] = 100.0
    labels = torch.tensor([[-100, 1, 2], [3, -100, 4]])
    assert optim.z_loss(logits, labels).item() == pytest.approx(math.log(8) ** 2)
