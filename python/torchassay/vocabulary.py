"""Vocabularies that several processes share, each with a slice of the classes."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from torchassay import checks
from torchassay.distributed import exchanged


class Vocabulary(NamedTuple):
    """Where this process's classes stand among all."""

    first: int
    total: int
    group: dist.ProcessGroup | None = None  # None: they are all

    def slice_weight(self, weight: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        """The weights of the targets' classes, 0 for ignored rows and for classes of other ranks."""
        y = target - self.first
        here = (y >= 0) & (y < len(weight)) & (target != ignore_index)
        return torch.where(here, weight[torch.where(here, y, 0).long()], 0)

    def own_weight(self, weight: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        """What a row counts in a mean: the weight of its class, whichever rank holds it, 0 for an ignored row."""
        own = self.slice_weight(weight.detach(), target, ignore_index)
        if self.group is not None:
            dist.all_reduce(own, group=self.group)
        return own


class Facts(NamedTuple):
    """What a rank says of its call before anything is computed."""

    rows: int
    classes: int
    features: int  # of hidden states, 0 for logits
    rest: tuple  # what else must be the same on all ranks: dtype, signals, options


def agreed(function: str, group: dist.ProcessGroup, check: Callable[[], Facts]) -> Vocabulary:
    """This rank's slice, from one exchange of what ``check`` finds of the arguments."""

    def said() -> tuple[int, ...]:
        facts = check()
        return facts.rows, facts.classes, facts.features, zlib.crc32(repr(facts.rest).encode())

    rows, classes, features, rest = exchanged(function, group, 4, said)
    for values, what in ((rows, "rows"), (features, "hidden features")):
        if len(set(values)) > 1:
            raise checks.InputValueError(
                f"{function}: every rank of the group must have the same {what}, got {[*values]}"
            )
    if len(set(rest)) > 1:
        same = "dtypes, signals, options and backend"
        raise checks.InputValueError(f"{function}: every rank of the group must be given the same {same}")
    rank = dist.get_rank(group)
    return Vocabulary(sum(classes[:rank]), sum(classes), group)


def gathered(numbers: Tensor, k: Tensor, own: Tensor | None, group) -> tuple[Tensor, Tensor, Tensor | None]:
    """The states of all ranks, [W, F, N] and [W, N], and the sum of their ``own`` [N], by one all-gather of words."""
    word = torch.int64 if numbers.dtype == torch.float64 else torch.int32
    rows = [numbers.view(word), k.to(word).unsqueeze(0)]
    if own is not None:
        rows.append(own.to(numbers.dtype).view(word).unsqueeze(0))
    words = torch.cat(rows)
    everyone = words.new_empty(dist.get_world_size(group), *words.shape)
    dist.all_gather(list(everyone.unbind(0)), words, group=group)
    count = len(numbers)
    of_all = everyone[:, :count].contiguous().view(numbers.dtype)
    if own is not None:
        own = everyone[:, count + 1].contiguous().view(numbers.dtype).sum(0)
    return of_all, everyone[:, count].long(), own


def shared(input, group) -> bool:
    """Whether a call's classes are at hand in slices: by its group, or as a DTensor."""
    return group is not None or (type(input) is not Tensor and _is_distributed(input))


def _is_distributed(value) -> bool:
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(value, tensors.DTensor)


def local(function: str, argument: str, value, dim: int, group) -> tuple[Tensor, Vocabulary | None]:
    """The local part of a DTensor whose dimension ``dim`` holds classes, and its place; any other value as it is."""
    if not _is_distributed(value):
        return value, None
    if group is not None:
        expected = f"None where {argument} is a DTensor, which knows its own"
        raise checks.InputValueError(f"{function}: group must be {expected}")
    dim = dim % value.dim()
    sharded = [at for at, placement in enumerate(value.placements) if placement.is_shard(dim)]
    if len(sharded) != 1 or any(placement.is_partial() for placement in value.placements):
        expected = f"sharded on dimension {dim}, its classes, along one dimension of the mesh"
        raise checks.InputValueError(f"{function}: {argument} must be {expected}, got {value.placements}")
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(value.shape, value.device_mesh, value.placements)
    group = value.device_mesh.get_group(sharded[0])
    return value.to_local(), Vocabulary(offset[dim], value.shape[dim], group)


def plain(value):
    """The local part of a DTensor that the ranks of a vocabulary hold alike; any other value as it is."""
    return value.to_local(grad_placements=value.placements) if _is_distributed(value) else value
