"""The largest share of all values, by a stable sort."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from torchassay.selection import checked


def top_fraction(
    values: Tensor,
    fraction: float,
    mask: Tensor | None = None,
    *,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """`torchassay.top_fraction` by a stable sort, for which every rank gathers the values of all."""
    checked(values, fraction, mask, group)
    flat = values.detach().reshape(-1)
    counted = ~flat.isnan()
    if mask is not None:
        counted &= mask.reshape(-1)
    mine = flat[counted]
    parts, rank = [mine], 0
    if group is not None:
        parts, rank = [None] * group.size(), group.rank()
        dist.all_gather_object(parts, mine.cpu(), group=group)
    order = torch.cat(parts).argsort(descending=True, stable=True)
    kept = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    kept[order[: math.floor(len(order) * fraction + (0.5 + 5e-7))]] = True
    found = torch.zeros_like(counted)
    found[counted] = kept.split([len(part) for part in parts])[rank].to(found.device)
    return found.view(values.shape)
