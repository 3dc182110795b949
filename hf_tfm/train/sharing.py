"""
Share the work on whole matrices among the processes that hold their shards (FSDP2's DTensor).

`share_out` gives every matrix an owner and yields parts of bounded size. `gather` sends the shards of a part's matrices
to their owners, `scatter` sends the results back, each in one communication:

    for part in share_out(weights, max_elements):
        updates = [compute_update(weights[position]) for position in part.positions]  # sharded like the weights
        matrices = part.gather(updates, torch.bfloat16)
        ...  # change the matrices in place
        part.scatter(matrices, updates, torch.bfloat16)
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, islice, zip_longest
from typing import cast

import torch
from torch import Tensor
from torch.distributed import all_to_all_single
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor


class LocalPart:
    """
    Matrices that lie whole in this process: weights that are not sharded, and experts.

    Attributes:
        positions: of the matrices in the list that `share_out` was given.
    """

    def __init__(self, positions: Sequence[int]):
        self.positions = positions

    def gather(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """
        Return the whole matrices that this process works on.

        Args:
            tensors: one for each position, with as many dimensions and the same placements.
            dtype: the dtype in which values are sent.
        """
        return [local_shard(tensor) for tensor in tensors]

    def scatter(self, matrices: Sequence[Tensor], tensors: Sequence[Tensor], dtype: torch.dtype) -> None:
        """Write the matrices that `gather` returned, changed in place, into the shards of all processes."""


class RepeatedPart(LocalPart):
    """Matrices that are sharded along several dimensions of a mesh: every process works on all of them."""

    def gather(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        return [cast(DTensor, tensor).full_tensor() for tensor in tensors]

    def scatter(self, matrices: Sequence[Tensor], tensors: Sequence[Tensor], dtype: torch.dtype) -> None:
        for tensor, matrix in zip(tensors, matrices, strict=True):
            tensor.copy_(shard_like(matrix, tensor))


class SharedPart(LocalPart):
    """
    Matrices that are sharded along one dimension of a mesh: every process works on those that it owns.

    Args:
        positions_by_owner: positions of the matrices that each process along the dimension owns.
    """

    def __init__(self, mesh: DeviceMesh, mesh_dim: int, positions_by_owner: Sequence[Sequence[int]]):
        super().__init__(list(chain(*positions_by_owner)))
        self.counts = [len(positions) for positions in positions_by_owner]
        self.group, self.rank, self.mesh_dim = mesh.get_group(mesh_dim), mesh.get_local_rank(mesh_dim), mesh_dim

    def gather(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        owned = self._by_owner(tensors)[self.rank]
        matrices = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in owned]
        self._exchange(self._shards_by_owner(tensors), self._pieces_by_process(matrices, owned), dtype)
        return matrices

    def scatter(self, matrices: Sequence[Tensor], tensors: Sequence[Tensor], dtype: torch.dtype) -> None:
        owned = self._by_owner(tensors)[self.rank]
        self._exchange(self._pieces_by_process(matrices, owned), self._shards_by_owner(tensors), dtype)

    def _by_owner(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        remaining = iter(tensors)
        return [list(islice(remaining, count)) for count in self.counts]

    def _shards_by_owner(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return this process's shards of the matrices of each process."""
        return self._by_owner([local_shard(tensor) for tensor in tensors])

    def _pieces_by_process(self, matrices: Sequence[Tensor], owned: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return views of the matrices of this process: the pieces of which each process has the shards."""
        pieces: list[list[Tensor]] = [[] for _ in self.counts]
        for matrix, tensor in zip(matrices, owned, strict=True):
            dim = cast(Shard, cast(DTensor, tensor).placements[self.mesh_dim]).dim
            chunks = matrix.chunk(len(pieces), dim)  # perhaps fewer than processes, whose shards are then empty
            for process in range(len(pieces)):
                pieces[process].append(chunks[process] if process < len(chunks) else matrix.narrow(dim, 0, 0))
        return pieces

    def _exchange(self, outgoing: list[list[Tensor]], incoming: list[list[Tensor]], dtype: torch.dtype) -> None:
        """Send a list of tensors to each process, and write what each process sends into the incoming tensors."""
        sizes = [[sum(tensor.numel() for tensor in part) for part in parts] for parts in (outgoing, incoming)]
        device = next(chain(*outgoing, *incoming)).device
        sent, received = (torch.empty(sum(counts), dtype=dtype, device=device) for counts in sizes)
        for values, tensor in _views(sent, outgoing):
            values.copy_(tensor)
        all_to_all_single(received, sent, sizes[1], sizes[0], group=self.group)
        for values, tensor in _views(received, incoming):
            tensor.copy_(values)


def _views(buffer: Tensor, parts: list[list[Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield consecutive views of a flat buffer, each with the tensor whose shape it has."""
    tensors = list(chain(*parts))
    for values, tensor in zip(buffer.split([tensor.numel() for tensor in tensors]), tensors, strict=True):
        yield values.view(tensor.shape), tensor


def share_out(tensors: Sequence[Tensor], max_elements: int) -> Iterator[LocalPart]:
    """
    Yield parts of some matrices, in each of which every process works on its own matrices.

    Owners are chosen without communication: in the order of falling costs each matrix goes to the process with the
    smallest sum of costs, where a cost is rows · columns · min(rows, columns). All processes must go through all parts.
    Replicas (a mesh of two dimensions, HSDP) do the same work.

    Args:
        tensors: each (rows, columns) or (experts, rows, columns).
        max_elements: in a part a process owns at most this many elements, or one matrix. Local matrices are one part.
    """
    positions_by_sharding = defaultdict(list)
    for position, tensor in enumerate(tensors):
        positions_by_sharding[_sharding(tensor)].append(position)
    for (mesh, mesh_dims), positions in positions_by_sharding.items():
        if mesh is None:
            yield LocalPart(positions)
        elif len(mesh_dims) > 1:
            yield from (RepeatedPart([position]) for position in positions)
        else:
            shapes = {position: tensors[position].shape for position in positions}
            owned = _choose_owners(shapes, mesh.size(mesh_dims[0]))
            for part in zip_longest(*(_batches(own, shapes, max_elements) for own in owned), fillvalue=()):
                yield SharedPart(mesh, mesh_dims[0], part)


def _sharding(tensor: Tensor) -> tuple[DeviceMesh | None, tuple[int, ...]]:
    """Return the mesh that divides matrices and those of its dimensions that do; None if all are whole."""
    if not isinstance(tensor, DTensor):
        return None, ()
    mesh, placements = tensor.device_mesh, tensor.placements
    mesh_dims = tuple(dim for dim in range(mesh.ndim) if mesh.size(dim) > 1 and not placements[dim].is_replicate())
    has_whole_experts = tensor.ndim == 3 and all(placements[dim].is_shard(0) for dim in mesh_dims)
    return (mesh, mesh_dims) if mesh_dims and not has_whole_experts else (None, ())


def _choose_owners(shapes: dict[int, torch.Size], processes: int) -> list[list[int]]:
    """Return the positions of the matrices of each process, the costliest first."""
    costs = {position: shape.numel() * min(shape[-2:]) for position, shape in shapes.items()}
    owned: list[list[int]] = [[] for _ in range(processes)]
    sums = [0] * processes
    for position in sorted(costs, key=costs.__getitem__, reverse=True):
        process = sums.index(min(sums))
        owned[process].append(position)
        sums[process] += costs[position]
    return owned


def _batches(positions: list[int], shapes: dict[int, torch.Size], max_elements: int) -> Iterator[list[int]]:
    """Yield consecutive positions of at most `max_elements` elements in all, or of one matrix."""
    batch: list[int] = []
    for position in positions:
        if batch and sum(shapes[other].numel() for other in (*batch, position)) > max_elements:
            yield batch
            batch = []
        batch.append(position)
    yield batch


def local_shard(tensor: Tensor) -> Tensor:
    """Return this process's shard of a DTensor, sharing its memory; a plain tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """Return a tensor that all processes have, sharded like `reference`."""
    if not isinstance(reference, DTensor):
        return tensor
    return distribute_tensor(tensor, reference.device_mesh, reference.placements, src_data_rank=None)
