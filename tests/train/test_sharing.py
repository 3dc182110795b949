"""Sharded matrices are orthogonalized by one process each: the same weights and state as in one process."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from optimizer_families import FAMILIES, GPT2
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import GPT2Config, GPT2LMHeadModel

from hf_tfm.train import muon, optim
from hf_tfm.train.parameters import parameter_kinds
from hf_tfm.train.sharing import _batches, _choose_owners


CASES = {
    "transposed": lambda: GPT2LMHeadModel(GPT2Config(**GPT2 | dict(n_embd=36))),
    "experts": FAMILIES["gpt_oss"],
    "alternating": FAMILIES["gpt_neox"],
    "fused": FAMILIES["phi3"],
    "few rows": lambda: nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 7)),
}
OPTIMIZERS = ("muon", "normuon")


def test_every_matrix_has_one_owner_and_owners_have_equal_costs():
    shapes = dict(enumerate([torch.Size(shape) for shape in [(64, 16)] * 3 + [(16, 16)] * 5 + [(8, 64)] + [(4, 4)]]))
    owned = _choose_owners(shapes, 3)
    assert sorted(position for positions in owned for position in positions) == list(shapes)
    costs = [sum(shapes[p].numel() * min(shapes[p]) for p in positions) for positions in owned]
    assert max(costs) - min(costs) <= 16**3
    assert [len(positions) for positions in _choose_owners({4: torch.Size((3, 3))}, 2)] == [1, 0]


def test_a_batch_has_at_most_max_elements_or_one_matrix():
    shapes = {n: torch.Size((size, 10)) for n, size in enumerate([50, 9, 3, 2, 1])}
    assert list(_batches(list(shapes), shapes, 120)) == [[0], [1, 2], [3, 4]]


def spawn(function, processes, tmp_path, *arguments):
    """Run a function in several processes of a group (gloo)."""
    rendezvous = tmp_path / f"{function.__name__}-{processes}"
    torch.multiprocessing.spawn(_join, (processes, rendezvous, function, arguments), nprocs=processes)


def _join(rank, processes, rendezvous, function, arguments):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=processes)
    function(*arguments)
    dist.destroy_process_group()


def build(case, name, mesh=None):
    """Return a model and its optimizer, sharded over a mesh."""
    torch.manual_seed(0)
    model = CASES[case]()
    if mesh is not None:
        fully_shard(model, mesh=mesh)
    return model, optim.build_optimizer(model, name)


def train(model, optimizer, steps):
    """Train with random gradients, the same for sharded and plain models."""
    for seed in steps:
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            gradient = torch.randn(p.shape, generator=generator)
            if isinstance(p, DTensor):
                gradient = distribute_tensor(gradient, p.device_mesh, p.placements, src_data_rank=None)
            p.grad = gradient
        optimizer.step()


def assert_same(plain, sharded, atol=0.0):
    """Compare weights and optimizer states; those of AdamW, whose kernel rounds by a number's place, only roughly."""
    kinds = parameter_kinds(plain[0])
    options = StateDictOptions(full_state_dict=True)
    expected, actual = (get_state_dict(*pair, options=options) for pair in (plain, sharded))
    for name, kind in kinds.items():
        tolerance = dict(rtol=0, atol=atol if kind == "matrices" else 1e-6)
        torch.testing.assert_close(actual[0][name], expected[0][name], **tolerance)
        assert actual[1]["state"][name].keys() == expected[1]["state"][name].keys()
        for key, value in expected[1]["state"][name].items():
            torch.testing.assert_close(actual[1]["state"][name][key], value, **tolerance)


def _trains_as_one(mesh_shape):
    mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=("replicas", "shards")[-len(mesh_shape) :])
    for case in CASES:
        for name in OPTIMIZERS:
            for max_elements, atol in ((1, 0.0), (10**6, 2e-3)):
                with pytest.MonkeyPatch.context() as monkeypatch:
                    # Matrices orthogonalized one by one: the same kernels see the same numbers as in one process.
                    monkeypatch.setattr(muon, "_CHUNK_ELEMENTS", max_elements)
                    monkeypatch.setattr(muon, "_SHARED_ELEMENTS", max_elements)
                    plain, sharded = build(case, name), build(case, name, mesh)
                    train(*plain, range(3))
                    train(*sharded, range(3))
                    assert_same(plain, sharded, atol)


@pytest.mark.slow
@pytest.mark.parametrize("mesh_shape", [(2,), (3,), (2, 2)], ids=["two", "three", "two replicas in two shards each"])
def test_sharded_matrices_learn_as_in_one_process(mesh_shape, tmp_path):
    """Bit by bit if matrices are orthogonalized one by one; batches of other sizes change the rounding."""
    spawn(_trains_as_one, math.prod(mesh_shape), tmp_path, mesh_shape)


def _trains_as_one_with_tensor_parallelism():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shards", "tensors"))
    for name in OPTIMIZERS:
        pairs = []
        for shard in (False, True):
            torch.manual_seed(0)
            model = FAMILIES["llama"]()
            if shard:
                plan = {"gate_proj": ColwiseParallel(), "up_proj": ColwiseParallel(), "down_proj": RowwiseParallel()}
                for layer in model.model.layers:
                    parallelize_module(layer.mlp, mesh["tensors"], plan)
                fully_shard(model, mesh=mesh["shards"])
            pairs.append((model, optim.build_optimizer(model, name)))
            train(*pairs[-1], range(3))
        assert_same(*pairs, atol=2e-3)


@pytest.mark.slow
def test_matrices_that_are_sharded_twice_learn_as_in_one_process(tmp_path):
    spawn(_trains_as_one_with_tensor_parallelism, 4, tmp_path)


def _saves(folder):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for case in CASES:
        model, optimizer = build(case, "normuon", mesh)
        train(model, optimizer, range(2))
        dcp.save(dict(zip("mo", get_state_dict(model, optimizer), strict=True)), checkpoint_id=folder / case)


def _resumes(folder):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for case in CASES:
        plain, resumed = build(case, "normuon"), build(case, "normuon", mesh)
        state = dict(zip("mo", get_state_dict(*resumed), strict=True))
        dcp.load(state, checkpoint_id=folder / case)
        set_state_dict(*resumed, model_state_dict=state["m"], optim_state_dict=state["o"])
        train(*plain, range(3))
        train(*resumed, [2])
        assert_same(plain, resumed)


@pytest.mark.slow
def test_a_sharded_checkpoint_resumes_in_any_number_of_processes(tmp_path, monkeypatch):
    spawn(_saves, 2, tmp_path, tmp_path)
    for processes in (1, 2, 3):
        spawn(_resumes, processes, tmp_path, tmp_path)


def _sends_twice():
    mesh = init_device_mesh("cpu", (2,))
    for case, groups in (("fused", 3), ("alternating", 2), ("experts", 1)):
        for name, communications in zip(OPTIMIZERS, (2, 4), strict=True):
            model, optimizer = build(case, name, mesh)
            with CommDebugMode() as mode:
                train(model, optimizer, [0])
            assert mode.get_total_counts() == communications * groups, (case, name)


@pytest.mark.slow
def test_updates_travel_twice_in_one_communication_for_all_matrices(tmp_path):
    """To their owners and back; with NorMuon so do the statistics of rows."""
    spawn(_sends_twice, 2, tmp_path)
