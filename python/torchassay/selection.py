"""``top_fraction``: the share of all values that is largest, exactly, without a sort and without gathering them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from torchassay import checks
from torchassay.agreement import Facts, agreed
from torchassay.distributed import all_reduced

BITS = 11  # of the key that one histogram resolves: 16 KiB of counts, which is what ranks exchange
PART, PART_OF_A_GPU = 1 << 15, 1 << 22  # values looked at together, so that what is made of them stays small
PATTERNS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a value


def top_fraction(
    values: Tensor,
    fraction: float,
    mask: Tensor | None = None,
    *,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Which values are the largest share of all: the tokens of highest entropy, the samples of highest loss.

    Reinforcement learning of language models takes its gradient from the 20 % of a batch's response tokens that have
    the highest entropy (Wang et al. 2025, "Beyond the 80/20 Rule", arXiv 2506.01939).

    Args:
        values: any float dtype, shape and strides; never written to.
        fraction: of the values that count to select, in [0, 1].
        mask: bool, of the same shape: where it is False (prompts, padding) a value does not count.
        group: a `torch.distributed.ProcessGroup`: the share is of the values of all its ranks, which call together.
            Each gives its own values, as many as it has or none, of one dtype.

    Returns:
        bool, of the shape of ``values``. Of N values that count, round(N fraction) are True, halves upwards, as `keep`
        does: what is less than 5e-7 below a half counts as one, so 0.145 of 100 are 15. Never more, never less: of
        equal values the earlier ones are taken, in the order of the ranks and of the flattened tensor. So what ranks
        find is what one process finds for their values one after the other. NaN never counts; the two zeros are equal.

    Raises:
        ValueError: a shape, device or share that does not fit, or ranks whose dtype or fraction differs.
        TypeError: values that are not floating-point, or a mask or group of another type.

    An order-preserving integer stands for each value. Histograms of it find the threshold, eleven bits at a time from
    the top (a radix select): two of them for 16-bit values, three for float32, six for float64. There may be any number
    of values (`torch.quantile` takes up to 2^24), and what the call needs beside them and its result does not grow with
    it. The ranks exchange 16 KiB a histogram, however many values they have, and before it what each found of its
    arguments, so that an error on one is an error on all. For that the host waits. Without a group nothing waits for a
    GPU, and a CUDA graph can capture the call.

    Example:
        >>> import torch, torchassay as ta
        >>> entropy = torch.tensor([[0.1, 2.0, 0.3, 0.0], [1.5, 0.7, 0.7, 9.0]])
        >>> response = torch.tensor([[True, True, True, True], [True, True, True, False]])
        >>> ta.top_fraction(entropy, 0.4, response)  # 3 of 7
        tensor([[False,  True, False, False],
                [ True,  True, False, False]])
    """
    checked(values, fraction, mask, group)
    with torch.no_grad():
        flat = values.reshape(-1)
        size = PART if flat.device.type == "cpu" else PART_OF_A_GPU
        parts = flat.split(size)
        parts = list(zip(parts, [None] * len(parts) if mask is None else mask.reshape(-1).split(size), strict=True))
        threshold, left, equal_here = _threshold(parts, fraction, group)
        if group is not None:
            by_rank = left.new_zeros(group.size())
            by_rank[group.rank()] = equal_here
            before = all_reduced(by_rank, [group])[: group.rank()]
            left = left - before.sum()  # those on the ranks before this one go first
        found = []
        for part in parts:
            keys, counted = _keys(*part)
            equal = counted & (keys == threshold)
            found.append(counted & (keys > threshold) | equal & (equal.cumsum(0) <= left))
            left = left - equal.sum()
        return torch.cat(found).view(values.shape)


def checked(values: Tensor, fraction: float, mask: Tensor | None, group: dist.ProcessGroup | None) -> None:
    """Check a call, with a group on all its ranks together."""
    function = "top_fraction"
    checks.process_group(function, group)
    if group is None:
        checks.top_fraction(function, values, fraction, mask)
        return

    def facts() -> Facts:
        checks.top_fraction(function, values, fraction, mask)
        return Facts({"fraction": float(fraction), "dtype": checks.dtype_name(values.dtype)})

    agreed(function, [group], facts)


def _keys(part: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Integers in the order of the values, which are their bits, sign and magnitude, as two's complement; and which
    values count."""
    bits = part.view(PATTERNS[part.element_size()])
    lowest = torch.iinfo(bits.dtype).min  # the sign alone, which is -0.0
    keys = torch.where(bits < 0, lowest - bits, bits)
    if keys.dtype == torch.int16:
        keys = keys.int()  # room to subtract
    counted = part == part
    return keys, counted if mask is None else counted & mask


def _threshold(
    parts: list[tuple[Tensor, Tensor | None]], fraction: float, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The key of the last value that is selected, how many of those equal to it are, and how many are here; all 0-d.

    Every level counts the keys that begin with the bits found so far by their next bits.
    """
    values = parts[0][0]
    wanted: Tensor | None = None
    first: Tensor | int = 0
    shift = 8 * values.element_size()
    while shift:
        bits = min(BITS, shift)
        shift -= bits
        size = 1 << bits
        first = -(size >> 1) if wanted is None else first << bits  # the lowest of this level's prefixes
        counts = here = values.new_zeros(size, dtype=torch.int64)
        for part in parts:
            keys, counted = _keys(*part)
            bucket = (keys >> shift) - first  # what wraps around is no bucket either
            inside = counted & (bucket >= 0) & (bucket < size)
            here.scatter_add_(0, (bucket & (size - 1)).long(), inside.long())
        if group is not None:
            counts = all_reduced(here.clone(), [group])
        if wanted is None:
            wanted = (counts.sum().double() * fraction + (0.5 + 5e-7)).floor().long()
        from_above = counts.flip(0).cumsum(0)
        short = from_above < wanted  # buckets, from above, that lie wholly above the threshold
        wanted = wanted - (from_above * short).amax()
        bucket = size - 1 - short.sum()
        first = first + bucket
    return first, wanted, here.take(bucket)  # type: ignore[return-value]  # tensors behind the first level
