"""The share of a window that lies below each value."""

from __future__ import annotations

import torch
from torch import Tensor


def cdf(
    window: Tensor,  # [capacity] float32
    total: Tensor,  # 0-d int64
    values: Tensor,  # [N] float32
    midrank: bool,
) -> Tensor:
    """The op behind `History`: the share of a window's first min(total, capacity) entries that lie below each value.

    With ``midrank`` half of the entries equal to it count too. NaN for NaN, else 1 if there are no entries.
    """
    capacity = window.numel()
    count = total.clamp(0, capacity)
    entries = window.masked_fill(torch.arange(capacity, device=window.device) >= count, torch.inf).sort().values
    values = values.contiguous()
    found = torch.searchsorted(entries, values)
    if midrank:
        found = found + torch.searchsorted(entries, values, right=True).minimum(count)  # inf equals what was masked
        count = 2 * count
    share = torch.where(count > 0, found.float() / count.float(), 1)
    return torch.where(values.isnan(), torch.nan, share)
