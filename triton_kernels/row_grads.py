"""The gradient of every row of logits for an upstream of its loss, of its entropy, or of both: one read, one write.

One program computes [ROWS, COLUMNS] entries. With d = x - u, g = m - u and c = 1 / (1 + r) from the stats of the
forward pass,

    p = c at the top (d > 0), else e^d z c        a = g - d, which is m - x without its rounding
    dx = gL p + gH p (a - mu),  at the target  dx = -gL miss + gH p (a - mu)

in float32, rounded once. z = e^-g and miss = 1 - p_y come from sums without the top class: nothing cancels here.
"""

import triton
import triton.language as tl
from torch import Tensor
from torchassay.triton_kernels import row_output, row_stats
from torchassay.triton_kernels.row_scores import LAUNCH, row_layout

BLOCK = 4096  # columns of a program


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x in a narrower dtype, to nearest even. The interpreter's own cut to bfloat16 truncates, and turns 0 into 2^-126:
    there the bits are rounded by hand."""
    if row_stats.INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(x == x, nearest, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


@triton.jit(do_not_specialize=["ignore_index", "C", "N", "B", "stride_a", "stride_b", "blocks", "stride_l", "stride_h"])
def _row_grads(
    rows_ptr,
    target_ptr,  # None without grad_loss
    stats_ptr,
    grad_loss_ptr,
    grad_entropy_ptr,
    out_ptr,
    ignore_index,
    C,  # in units of UNIT columns, as stride_a and stride_b
    N,
    B,
    stride_a,
    stride_b,
    blocks,  # blocks of COLUMNS in a row
    stride_l,
    stride_h,
    UNIT: tl.constexpr,
    FOLDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    C = C * UNIT
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < N
    start = row_output.row_start(rows_ptr, row, B, stride_a, stride_b, UNIT, FOLDED)
    column = (program % blocks * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    known = inside  # rows that are looked at
    if grad_loss_ptr is not None:
        y = tl.load(target_ptr + row, mask=inside, other=0).to(tl.int64)
        miss = tl.load(stats_ptr + 4 * N + row, mask=inside, other=0.0)
        gL = tl.load(grad_loss_ptr + row * stride_l, mask=inside, other=0.0)
        gL = tl.where((y >= 0) & (y < C), gL, float("nan"))
        gL = tl.where(y == ignore_index, 0.0, gL)
        at_target = column == y[:, None]
        if grad_entropy_ptr is None:
            known = inside & (y != ignore_index)  # an ignored row is 0, also where it is poisoned
    x = tl.load(start[:, None] + column, mask=known[:, None] & (column < C), other=0.0).to(tl.float32)

    m = tl.load(stats_ptr + row, mask=known, other=0.0)
    u = tl.load(stats_ptr + N + row, mask=known, other=0.0)
    z = tl.load(stats_ptr + 2 * N + row, mask=known, other=0.0)
    r = tl.load(stats_ptr + 3 * N + row, mask=known, other=0.0)
    c = 1.0 / (1.0 + r)
    lone = u == -row_stats.INFINITY
    u = row_stats.reference(tl.where(lone, m, u))
    zc = tl.where(lone, c, z * c)
    difference = x - u[:, None]
    top = difference > 0.0
    d, e = row_stats.exp(tl.where(top, 0.0, difference), rows_ptr.dtype.element_ty == tl.float32)
    p = tl.where(top, c[:, None], e * zc[:, None])

    if grad_entropy_ptr is not None:
        mu = tl.load(stats_ptr + 5 * N + row, mask=inside, other=0.0)
        gH = tl.load(grad_entropy_ptr + row * stride_h, mask=inside, other=0.0)
        g = tl.minimum(row_stats.reference(m) - u, 128.0)  # z is 0 from 88 on: no inf * 0
        slope = gH[:, None] * tl.where(top, -mu[:, None], (g - mu)[:, None] - d)  # gH (a - mu)
        dx = p * slope
        if grad_loss_ptr is not None:
            dx = tl.where(at_target, tl.fma(p, slope, -(gL * miss)[:, None]), p * (slope + gL[:, None]))
    else:
        dx = tl.where(at_target, -(gL * miss)[:, None], p * gL[:, None])
    offset = (row * (C // UNIT)) * UNIT
    dx = rounded(dx, out_ptr.dtype.element_ty)
    tl.store(out_ptr + offset[:, None] + column, dx, mask=inside[:, None] & (column < C))


def row_grads(
    rows: Tensor,  # [A, B, C] float16, bfloat16 or float32, stride 1 along C; row a * B + b of N = A * B
    target: Tensor | None,  # [N] int32 or int64
    stats: Tensor,  # [6, N] float32, as `row_scores` writes them
    grad_loss: Tensor | None,  # [N] float32, any stride
    grad_entropy: Tensor | None,  # [N] float32, any stride; needs stats that were taken with the entropy
    ignore_index: int,
    out: Tensor,  # [N, C] contiguous, the dtype of rows
) -> None:
    """Write d (sum grad_loss loss + grad_entropy entropy) / d rows into ``out``.

    The loss of an ignored row has no gradient; a target outside [0, C) makes the row NaN if there is a grad_loss, as
    NaN or +inf among the logits do anyway. Classes at -inf get exactly 0.
    """
    N, C = out.shape
    unit, folded, B, stride_a, stride_b = row_layout(rows)
    if unit > 1 and out.data_ptr() % 16:
        unit, stride_a, stride_b = 1, stride_a * unit, stride_b * unit
    columns = min(BLOCK, triton.next_power_of_2(C))
    blocks = triton.cdiv(C, columns)
    tile = min(32, max(1, 1024 // columns))
    _row_grads[(triton.cdiv(N, tile) * blocks,)](
        rows,
        None if grad_loss is None else target,
        stats,
        grad_loss,
        grad_entropy,
        out,
        ignore_index,
        C // unit,
        N,
        B,
        stride_a,
        stride_b,
        blocks,
        0 if grad_loss is None else grad_loss.stride(0),
        0 if grad_entropy is None else grad_entropy.stride(0),
        unit,
        folded,
        tile,
        columns,
        num_warps=max(1, columns // 1024),
        **LAUNCH,
    )
