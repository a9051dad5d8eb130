"""DTensors whose classes are sharded: how the tensors of a call lie on a mesh, and which part is this process's.

A module of its own, imported once somebody has a DTensor: what it imports takes a while.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from torchassay import checks
from torchassay.vocabulary import Vocabulary, is_dtensor


class Layout:
    """Classes lie in slices along one dimension of a mesh; rows along others, if at all.

    Args:
        value: what has the classes in its dimension ``dim``.
        rows: for each dimension of the mesh, where a tensor of one number a row has its rows.
    """

    def __init__(self, function: str, value: DTensor, dim: int, rows: Sequence[Placement]):
        self.function, self.mesh, self.rows = function, value.device_mesh, tuple(rows)
        self.dim, self.axis, self.total = dim, value.placements.index(Shard(dim)), value.shape[dim]
        self.group = self.mesh.get_group(self.axis)
        self.row_groups = tuple(self.mesh.get_group(at) for at, place in enumerate(rows) if place.is_shard())
        each = -(-self.total // self.mesh.size(self.axis))  # as `torch.chunk` cuts
        first = min(self.mesh.get_local_rank(self.axis) * each, self.total)
        self.classes = min(each, self.total - first)
        self.vocabulary = Vocabulary(first, self.total, self.group, self.row_groups)

    @classmethod
    def of_logits(cls, function: str, input: DTensor, dim: int) -> Layout:
        dim = checks.logits(function, input, dim)
        others = [place for place in input.placements if place != Shard(dim)]
        if len(others) + 1 != input.device_mesh.ndim or not _simple(others):
            expected = f"sharded on dimension {dim}, its classes, along one dimension of the mesh"
            raise checks.InputValueError(f"{function}: input must be {expected}, got {input.placements}")
        return cls(function, input, dim, [_of_rows(place, dim) for place in input.placements])

    @classmethod
    def of_head(cls, function: str, input: Tensor, linear_weight: Tensor) -> Layout:
        """Of a linear head and its hidden states, one of them a DTensor; plain states are the same on all the mesh."""
        if not is_dtensor(linear_weight):
            expected, got = "a DTensor where input is one", type(linear_weight).__name__
            raise checks.InputTypeError(f"{function}: linear_weight must be {expected}, got {got}")
        placements = linear_weight.placements
        if [place for place in placements if place != Replicate()] != [Shard(0)]:
            expected = "sharded on dimension 0, its classes, along one dimension of the mesh, replicated along others"
            raise checks.InputValueError(f"{function}: linear_weight must be {expected}, got {placements}")
        rows: Sequence[Placement] = [Replicate()] * len(placements)
        if is_dtensor(input):
            rows, hidden = input.placements, Shard(input.dim() - 1)
            if input.device_mesh != linear_weight.device_mesh:
                got = f"{input.device_mesh} and {linear_weight.device_mesh}"
                raise checks.InputValueError(f"{function}: input and linear_weight must have one mesh, got {got}")
            if rows[placements.index(Shard(0))] != Replicate() or hidden in rows or not _simple(rows):
                expected = "replicated where linear_weight is sharded, and elsewhere replicated or sharded by rows"
                raise checks.InputValueError(f"{function}: input must be {expected}, got {rows}")
        return cls(function, linear_weight, 0, rows)

    def logits(self, value: DTensor) -> Tensor:
        """This process's part of the logits."""
        return self._sized("input", value.to_local(), self.dim)

    def slice(self, argument: str, value):
        """This process's slice of what has one number, or a row of them, for each class; a plain tensor is one."""
        if not is_dtensor(value):
            return value
        self._check(argument, value, [Shard(0) if at == self.axis else Replicate() for at in range(self.mesh.ndim)])
        # where others have other rows, what this process's rows give to the gradient is a part of it
        of_grad = [Partial() if self.rows[at].is_shard() else place for at, place in enumerate(value.placements)]
        mine = value.redistribute(placements=value.placements).to_local(grad_placements=of_grad)
        return self._sized(argument, mine, 0)

    def of_rows(self, argument: str, value):
        """This process's rows of what has one number a row; any other value as it is."""
        if not is_dtensor(value):
            return value
        self._check(argument, value, self.rows)
        return value.to_local()

    def _check(self, argument: str, value: DTensor, expected: Sequence[Placement]) -> None:
        if value.device_mesh != self.mesh or value.placements != tuple(expected):
            where = f"placed {tuple(expected)} on {self.mesh}"
            got = f"{value.placements} on {value.device_mesh}"
            raise checks.InputValueError(f"{self.function}: {argument} must be {where}, got {got}")

    def _sized(self, argument: str, mine: Tensor, dim: int) -> Tensor:
        if mine.shape[dim] != self.classes:
            expected = f"{self.classes} of the {self.total} classes on this rank, as DTensor cuts them"
            raise checks.InputValueError(f"{self.function}: {argument} must hold {expected}, got {mine.shape[dim]}")
        return mine


def _simple(placements: Sequence[Placement]) -> bool:
    return all(isinstance(place, (Shard, Replicate)) for place in placements)


def _of_rows(place: Placement, dim: int) -> Placement:
    """Where one number a row lies, if the rows have their classes in ``dim``."""
    if place == Replicate() or place == Shard(dim):
        return Replicate()
    return Shard(place.dim - (place.dim > dim))
