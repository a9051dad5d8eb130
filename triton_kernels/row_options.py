"""What a softcap and a target do to the columns of a row, for `option_rows` and `option_grads`."""

import triton
import triton.language as tl
from torchassay.triton_kernels import row_stats


@triton.jit
def capped(x, softcap):
    """softcap tanh(x / softcap) and its slope 1 - tanh^2: from e^(-2 |x| / softcap), so that neither loses digits. x and 1 for no
    softcap."""
    if softcap is None:
        return x, 1.0
    else:
        y = tl.abs(x) * tl.div_rn(-2.0, softcap)
        _, e = row_stats.exp(y, True)
        inverse = 1.0 / (1.0 + e)
        v = softcap * (row_stats.expm1_of(y, e) * inverse)
        return tl.where(x > 0.0, -v, v), 4.0 * e * inverse * inverse


@triton.jit
def target_of(row, column, inside, C, y, probabilities_ptr, weight_ptr, kept, spread):
    """b of a tile [ROWS, COLUMNS]: weight (kept t + spread), t one-hot at the labels y [ROWS] or the probabilities."""
    if probabilities_ptr is not None:
        b = kept * tl.load(probabilities_ptr + row[:, None] * C + column, mask=inside, other=0.0)
    else:
        b = tl.where(column == y[:, None], kept, 0.0)
    if spread is not None:
        b += spread
    if weight_ptr is not None:
        b *= tl.load(weight_ptr + column, mask=column < C, other=0.0)
    return tl.where(inside, b, 0.0)


@triton.jit
def top_entry(r, c, rest, beta, b):
    """beta p - b of the top class, from whichever of p = c and 1 - p = r c is small."""
    return tl.where(c > 0.5, rest - beta * (r * c), beta * c - b)
