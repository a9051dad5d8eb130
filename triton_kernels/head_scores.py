"""Scores of samples whose head is no softmax over classes: one read of the outputs and their targets.

One program takes ROWS samples and walks their outputs in tiles [ROWS, COLUMNS]; an output's lane depends on its column
alone. The formulas are those of csrc/head_stats.h: a slope's square may underflow or overflow where the slope does not,
so the squares are summed three times, at three scales, of slopes that are clamped to what a scale can hold.
"""

import triton
import triton.language as tl
from torch import Tensor
from torchassay.triton_kernels import row_stats
from torchassay.triton_kernels.row_scores import LAUNCH

TILE = 512  # outputs that a program holds at once,
TURNS = 8  # of a sample, if it has so few, about the eighth part: less to reduce in the end
BINARY, MSE, L1, HUBER = (tl.constexpr(head) for head in range(4))
HEADS = {"binary": BINARY, "mse": MSE, "l1": L1, "huber": HUBER}
ALL = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def _binary(x, y, w):
    """Loss, entropy and slope of logits x with targets y, positive ones counting w times."""
    a = tl.abs(x)
    a = tl.where(a < row_stats.INFINITY, a, float("nan"))
    _, root = row_stats.exp(a * -0.5, True)
    e = root * root  # so that it underflows by and by
    c = 1.0 / (1.0 + e)
    s = e / (2.0 + e)
    s2 = s * s
    series = tl.fma(0.28011987, s2, 0.28001806)  # log(1 + e) = 2 artanh(s), minimax in s^2 for e in [0, 1]
    series = tl.fma(series, s2, 0.40021527)
    series = tl.fma(series, s2, 0.6666642)
    log1p = s * tl.fma(series, s2, 2.0)
    rest = e * c
    on = y * w
    off = 1.0 - y
    positive = x > 0.0
    loss = tl.fma(off + on, log1p, tl.where(positive, off, on) * a)
    slope = off * tl.where(positive, c, rest) - on * tl.where(positive, rest, c)
    return loss, tl.fma(a, rest, log1p), slope


@triton.jit
def _regression(x, y, delta, HEAD: tl.constexpr):
    """Loss and size of the slope of outputs x with targets y."""
    a = tl.abs(x - y)
    if HEAD == MSE:
        return a * a, a + a
    elif HEAD == L1:
        return a, tl.where(a > 0.0, 1.0, a)
    else:
        inner = tl.minimum(a, delta, propagate_nan=ALL)
        return inner * (a - 0.5 * inner), inner


@triton.jit(do_not_specialize=["delta", "C", "N", "stride", "target_stride"])
def _head_scores(
    rows_ptr,
    target_ptr,
    pos_weight_ptr,  # None: 1
    loss_ptr,
    entropy_ptr,
    grad_norm_ptr,
    delta: tl.float32,
    C,
    N,
    stride,
    target_stride,
    HEAD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < N
    x_ptr = (rows_ptr + row * stride)[:, None]
    y_ptr = (target_ptr + row * target_stride)[:, None]
    loss = tl.zeros((ROWS, COLUMNS), tl.float32)
    entropy, low, middle, high = loss, loss, loss, loss
    for begin in range(0, C, COLUMNS):
        column = (begin + tl.arange(0, COLUMNS))[None, :]
        mask = inside[:, None] & (column < C)
        y = tl.load(y_ptr + column, mask=mask, other=0.0)
        if HEAD == BINARY:
            x = tl.load(x_ptr + column, mask=mask, other=-10000.0).to(tl.float32)  # with target 0 it adds 0
            w = 1.0
            if pos_weight_ptr is not None:
                w = tl.load(pos_weight_ptr + column, mask=column < C, other=0.0)
            here, uncertain, slope = _binary(x, y, w)
            entropy += uncertain
        else:
            x = tl.load(x_ptr + column, mask=mask, other=0.0).to(tl.float32)
            here, slope = _regression(x, y, delta, HEAD)
        loss += here
        slope = tl.abs(slope)
        up = tl.minimum(slope, 2.0**-30) * 2.0**80
        usual = tl.minimum(slope, 2.0**50, propagate_nan=ALL)
        down = slope * 2.0**-80
        low = tl.fma(up, up, low)
        middle = tl.fma(usual, usual, middle)
        high = tl.fma(down, down, high)
    if loss_ptr is not None:
        tl.store(loss_ptr + row, tl.sum(loss, axis=1), mask=inside)
    if entropy_ptr is not None:
        tl.store(entropy_ptr + row, tl.sum(entropy, axis=1), mask=inside)
    if grad_norm_ptr is not None:
        squares = tl.sum(middle, axis=1)
        norm = tl.where(squares < 2.0**100, tl.sqrt(squares), tl.sqrt(tl.sum(high, axis=1)) * 2.0**80)
        norm = tl.where(squares < 2.0**-80, tl.sqrt(tl.sum(low, axis=1)) * 2.0**-80, norm)
        tl.store(grad_norm_ptr + row, norm, mask=inside)


def head_scores(
    rows: Tensor,  # [N, C] float16, bfloat16 or float32, stride 1 along C
    target: Tensor,  # [N, C] float32, stride 1 along C
    pos_weight: Tensor | None,  # [C] float32, contiguous; for "binary"
    head: str,  # "binary", "mse", "l1" or "huber"
    delta: float,  # of "huber"
    out: list[Tensor | None],  # loss, entropy ("binary" alone) and grad_norm, each [N] float32
) -> None:
    """Write the signals of every sample into those of ``out`` that are not None."""
    N, C = rows.shape
    columns = min(TILE, triton.next_power_of_2(triton.cdiv(C, TURNS)))
    tile = TILE // columns
    strides = rows.stride(0), target.stride(0)
    _head_scores[(triton.cdiv(N, tile),)](
        rows, target, pos_weight, *out, float(delta), C, N, *strides, HEADS[head], tile, columns, **LAUNCH
    )
