"""What share of a window lies below each value, counted one by one: no sort, no atomics.

One program takes VALUES values and walks the window in tiles [VALUES, ENTRIES]. A float32 holds the counts, whole
numbers below 2^24, exactly; they are divided once, correctly rounded: the same bits however they are counted.
"""

import triton
import triton.language as tl
from torch import Tensor
from torchassay.triton_kernels.row_scores import LAUNCH

VALUES = 8  # of a program
ENTRIES = 512  # of a tile, at most


@triton.jit
def _count(found, entry, value, MIDRANK: tl.constexpr):
    """Add 1 to found [VALUES, ENTRIES] where an entry is below a value; MIDRANK: 2, and 1 where they are equal."""
    found += tl.where(entry < value[:, None], 1.0, 0.0)  # made by one instruction
    if MIDRANK:
        found += tl.where(entry <= value[:, None], 1.0, 0.0)
    return found


@triton.jit(do_not_specialize=["capacity", "N", "stride"])
def _cdf(
    window_ptr,
    total_ptr,
    values_ptr,
    out_ptr,
    capacity,
    N,
    stride,
    MIDRANK: tl.constexpr,
    VALUES: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    inside = at < N
    value = tl.load(values_ptr + at * stride, mask=inside, other=0.0)
    count = tl.minimum(tl.load(total_ptr), capacity).to(tl.int32)
    found = tl.zeros((VALUES, ENTRIES), tl.float32)
    tiles = count // ENTRIES
    column = tl.arange(0, ENTRIES)[None, :]
    for tile in range(0, tiles):
        found = _count(found, tl.load(window_ptr + tile * ENTRIES + column), value, MIDRANK)
    column += tiles * ENTRIES
    entry = tl.load(window_ptr + column, mask=column < count, other=float("nan"))  # not below, not equal
    found = _count(found, entry, value, MIDRANK)
    whole = tl.maximum(count, 1) * (2 if MIDRANK else 1)
    below = tl.div_rn(tl.sum(found, axis=1), whole.to(tl.float32))
    below = tl.where(count > 0, below, 1.0)
    tl.store(out_ptr + at, tl.where(value == value, below, value), mask=inside)


def cdf(
    window: Tensor,  # [capacity] float32, contiguous
    total: Tensor,  # 0-d int64: the first min(total, capacity) entries are valid
    values: Tensor,  # [N] float32, any stride
    midrank: bool,
    out: Tensor,  # [N] float32, contiguous
) -> None:
    """Write the share of valid entries that lie below each value; midrank: half of the equal ones count too."""
    capacity, N = len(window), len(values)
    entries = min(ENTRIES, triton.next_power_of_2(capacity))
    grid = (triton.cdiv(N, VALUES),)
    _cdf[grid](window, total, values, out, capacity, N, values.stride(0), midrank, VALUES, entries, **LAUNCH)
