"""Vocabularies that several processes share, each with a slice of the classes."""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from torchassay import checks, reference
from torchassay.distributed import all_gathered, all_reduced


class Vocabulary(NamedTuple):
    """Where this process's classes stand among all."""

    first: int
    total: int
    group: dist.ProcessGroup | None = None  # None: they are all
    row_groups: tuple[dist.ProcessGroup, ...] = ()  # whose ranks hold other rows of the same classes

    def slice_weight(self, weight: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        """The weights of the targets' classes, 0 for ignored rows and for classes of other ranks."""
        y = target - self.first
        here = (y >= 0) & (y < len(weight)) & (target != ignore_index)
        return torch.where(here, weight[torch.where(here, y, 0).long()], 0)

    def reduced(
        self,
        rows: Tensor,  # [...], the loss of every row here
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        ignore_index: int,
        reduction: str,
    ) -> Tensor:
        """`reference.reduced`, over the rows of all `row_groups`."""
        own = None
        if weight is not None and reduction == "mean":
            own = self.slice_weight(weight.detach(), target, ignore_index).to(rows.dtype).sum()
            own = own if self.group is None else all_reduced(own, [self.group])
        return reference.reduced(rows, input, target, own, ignore_index, reduction, self._sum)

    def _sum(self, values: Tensor) -> Tensor:
        return _SumOfGroups.apply(values.sum(), self.row_groups) if self.row_groups else values.sum()


class _SumOfGroups(torch.autograd.Function):
    """The sum of what the ranks have. They all go on with the same sum, so the gradient of its parts is that of it."""

    @staticmethod
    def forward(ctx, value, groups):
        return all_reduced(value.clone(), groups)

    @staticmethod
    def backward(ctx, upstream):
        return upstream, None


def gathered(
    numbers: Tensor, k: Tensor, own: Tensor | None, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The states of all ranks, [W, F, N] and [W, N], and the sum of their ``own`` [N], by one all-gather of words."""
    word = torch.int64 if numbers.dtype == torch.float64 else torch.int32
    rows = [numbers.view(word), k.to(word).unsqueeze(0)]
    if own is not None:
        rows.append(own.to(numbers.dtype).view(word).unsqueeze(0))
    everyone = all_gathered(torch.cat(rows), group)
    count = len(numbers)
    of_all = everyone[:, :count].contiguous().view(numbers.dtype)
    if own is not None:
        own = everyone[:, count + 1].contiguous().view(numbers.dtype).sum(0)
    return of_all, everyone[:, count].contiguous().long(), own


def is_dtensor(value) -> bool:
    """Whether it is a DTensor, without importing what nobody has."""
    module = None if type(value) is Tensor else sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def refuse_dtensors(function: str, **given) -> None:
    """None of the arguments by name is a DTensor, which has a group of its own."""
    for argument, value in given.items():
        if is_dtensor(value):
            raise checks.InputTypeError(f"{function}: {argument} must be a plain Tensor with a group, got a DTensor")
