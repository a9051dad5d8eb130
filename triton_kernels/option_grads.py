"""The gradient of logits under options for an upstream of the loss, of the entropy, or of both: one read, one write.

One program computes [ROWS, COLUMNS] entries. As in row_grads.py, with d = (v - u) / temperature, g = (m - u) /
temperature and a = g - d,

    p = c at the top (d nearer to g than to 0), else e^d z c
    dx = slope / temperature (gL (beta p - b) + gH p (a - mu)),  with rest - beta (1 - c) at a top with c > 1/2
"""

import triton
import triton.language as tl
from torch import Tensor
from torchassay.triton_kernels import row_options, row_output, row_stats
from torchassay.triton_kernels.option_scores import temperature_of
from torchassay.triton_kernels.row_grads import BLOCK, rounded
from torchassay.triton_kernels.row_scores import LAUNCH, row_layout


@triton.jit(
    do_not_specialize=[
        "ignore_index",
        "C",
        "N",
        "B",
        "stride_a",
        "stride_b",
        "blocks",
        "stride_l",
        "stride_h",
        "first",
        "total",
    ]
)
def _option_grads(
    rows_ptr,
    target_ptr,
    probabilities_ptr,
    weight_ptr,
    stats_ptr,
    grad_loss_ptr,
    grad_entropy_ptr,
    out_ptr,
    temperature_ptr,
    temperature,
    lost,
    softcap,
    kept,
    spread,
    ignore_index,
    first,
    total,
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
    y, other, known = row, 1.0, inside  # known: rows that are looked at
    if target_ptr is not None:
        y, _, other = row_options.label_of(target_ptr, row, inside, ignore_index, first, total)
        if grad_entropy_ptr is None:
            known = inside & (other != 0.0)  # an ignored row is 0, also where it is poisoned
    mask = known[:, None] & (column < C)
    x = tl.load(start[:, None] + column, mask=mask, other=0.0).to(tl.float32)
    v, slope = row_options.capped(x, softcap)

    m = tl.load(stats_ptr + row, mask=known, other=0.0)
    u = row_stats.reference(tl.load(stats_ptr + N + row, mask=known, other=0.0))
    z = tl.load(stats_ptr + 2 * N + row, mask=known, other=0.0)
    r = tl.load(stats_ptr + 3 * N + row, mask=known, other=0.0)
    c = 1.0 / (1.0 + r)
    scale = row_output.scale(row[:, None], known[:, None], temperature_ptr, temperature, lost)
    inverse, least = scale[0], scale[2]
    difference = v - u[:, None]
    # halfway: where logits are computed anew, another class may be above the second by a rounding
    top = difference > tl.maximum(0.5 * (row_stats.reference(m) - u), 0.0)[:, None]
    d, e = row_stats.exp(tl.where(top, 0.0, difference), rows_ptr.dtype.element_ty == tl.float32, scale)
    p = tl.where(top, c[:, None], e * (z * c)[:, None])

    dx = tl.zeros_like(p)
    if grad_entropy_ptr is not None:
        mu = tl.load(stats_ptr + 5 * N + row, mask=inside, other=0.0)[:, None]
        gH = tl.load(grad_entropy_ptr + row * stride_h, mask=inside, other=0.0)[:, None] * inverse
        g = tl.minimum((row_stats.reference(m) - u)[:, None], -least) * inverse  # beyond, z is 0: no inf * 0
        dx = gH * p * tl.where(top, -mu, tl.fma(-d, inverse, g - mu))
    if grad_loss_ptr is not None:
        rest = tl.load(stats_ptr + 4 * N + row, mask=known, other=0.0)
        beta = tl.load(stats_ptr + 6 * N + row, mask=known, other=0.0)
        gL = tl.load(grad_loss_ptr + row * stride_l, mask=inside, other=0.0)
        gL = tl.where(other == 0.0, 0.0, gL)[:, None] * inverse
        b = row_options.target_of(row, column, mask, C, y, probabilities_ptr, weight_ptr, kept, spread)
        entry = tl.where(top & (c > 0.5)[:, None], (rest - beta * (r * c))[:, None], tl.fma(beta[:, None], p, -b))
        dx = tl.fma(gL, entry, dx)
    dx = rounded(dx * slope, out_ptr.dtype.element_ty)
    offset = (row * (C // UNIT)) * UNIT
    tl.store(out_ptr + offset[:, None] + column, dx, mask=inside[:, None] & (column < C))


def option_grads(
    rows: Tensor,  # [A, B, C] float16, bfloat16 or float32, stride 1 along C; row a * B + b of N = A * B
    labels: Tensor | None,  # as all up to the softcap, what `option_scores` had
    probabilities: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    temperature: float | Tensor,
    softcap: float,
    stats: Tensor,  # [7, N] float32, as `option_scores` writes them
    grad_loss: Tensor | None,  # [N] float32, any stride
    grad_entropy: Tensor | None,  # [N] float32, any stride; needs stats that were taken with the entropy
    ignore_index: int,
    first: int,  # the class of column 0
    total: int,  # of all classes, of which the rows may be a slice
    out: Tensor,  # [N, C] contiguous, the dtype of rows
) -> None:
    """Write d (sum grad_loss loss + grad_entropy entropy) / d rows into ``out``.

    The loss of an ignored row has no gradient; a target outside [0, total) makes the row NaN if there is a grad_loss,
    as NaN among the logits does anyway.
    """
    N, C = out.shape
    unit, folded, B, stride_a, stride_b = row_layout(rows)
    if unit > 1 and out.data_ptr() % 16:
        unit, stride_a, stride_b = 1, stride_a * unit, stride_b * unit
    columns = min(BLOCK, triton.next_power_of_2(C))
    blocks = triton.cdiv(C, columns)
    tile = min(32, max(1, 1024 // columns))
    _option_grads[(triton.cdiv(N, tile) * blocks,)](
        rows,
        None if grad_loss is None else labels,
        None if grad_loss is None else probabilities,
        None if grad_loss is None else weight,
        stats,
        grad_loss,
        grad_entropy,
        out,
        *temperature_of(temperature),
        softcap or None,
        1.0 - label_smoothing,
        label_smoothing / total if label_smoothing else None,
        ignore_index,
        first,
        total,
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
