"""What a softcap and a target do to the columns of a row, for `option_rows` and `option_grads`."""

import triton
import triton.language as tl
from torchassay.triton_kernels import row_stats


@triton.jit
def capped(x, softcap):
    """v = softcap tanh(x / softcap) and its slope 1 - tanh^2: from e^(-2 |x| / softcap), so that neither loses digits.

    An infinite x stays as it is, and so does every x without a softcap.
    """
    if softcap is None:
        return x, 1.0
    else:
        y = tl.abs(x) * tl.div_rn(-2.0, softcap)
        _, e = row_stats.exp(y, True)
        inverse = 1.0 / (1.0 + e)
        v = softcap * (row_stats.expm1_of(y, e) * inverse)
        v = tl.where(x > 0.0, -v, v)
        return tl.where(tl.abs(x) == row_stats.INFINITY, x, v), 4.0 * e * inverse * inverse


@triton.jit
def label_of(target_ptr, row, inside, ignore_index, first, total):
    """The rows' labels as columns from the class ``first`` on, -1 for none; which have one of the ``total`` classes;
    what the others get: 0 where ignored, NaN if out of range."""
    y = tl.load(target_ptr + row, mask=inside, other=0).to(tl.int64)
    ignored = y == ignore_index
    labelled = (y >= 0) & (y < total) & (y != ignore_index)
    return tl.where(labelled, y - first, -1).to(tl.int32), labelled, tl.where(ignored, 0.0, float("nan"))


@triton.jit
def target_of(row, column, inside, C, y, probabilities_ptr, weight_ptr, kept, spread):
    """b of a tile [ROWS, COLUMNS]: weight (kept t + spread), t one-hot at the labels y [ROWS] or the probabilities."""
    if probabilities_ptr is not None:
        b = kept * tl.load(probabilities_ptr + row[:, None] * C + column, mask=inside, other=0.0)
    else:
        b = tl.where(column == y[:, None], kept, 0.0)
    if spread is not None:
        b += tl.where(inside, spread, 0.0)
    if weight_ptr is not None:
        b *= tl.load(weight_ptr + column, mask=column < C, other=0.0)
    return b
