"""From the sums of a row to its signals: the addresses of the rows, the finish and the stores, shared by all kernels.

    loss = m - x_y + log1p(r)      entropy = log1p(r) + t c      grad_norm = sqrt((1 + r - e_y)^2 + 1 + z^2 Q - e_y^2) c
    with z = e^(u - m), r = z R, t = z (T + (m - u) R), c = 1 / (1 + r), e_y = e^(x_y - m)

Where the target is the top class, grad_norm = z sqrt(R^2 + Q) c: nothing is subtracted from 1.
"""

import triton
import triton.language as tl
from torchassay.triton_kernels import row_stats


@triton.jit
def row_start(rows_ptr, row, B, stride_a, stride_b, UNIT: tl.constexpr, FOLDED: tl.constexpr):
    """The address of a row; strides count units of UNIT elements, and a row index overflows 32 bits times a stride."""
    offset = row * stride_b if FOLDED else row // B * stride_a + row % B * stride_b
    return rows_ptr + offset * UNIT


@triton.jit
def write(
    row,  # int64, scalar or [ROWS], as all that follows up to Q
    inside,  # row < N
    start,  # the address of the row
    m,
    u,
    k,  # the top class; anything if prediction_ptr is None
    R,
    T,
    Q,
    target_ptr,
    ignore_index,
    C,
    N,
    loss_ptr,
    entropy_ptr,
    grad_norm_ptr,
    lse_ptr,
    confidence_ptr,
    least_confidence_ptr,
    margin_ptr,
    target_margin_ptr,
    prediction_ptr,
    stats_ptr,
):
    """Finish the rows and write what was asked for."""
    ENTROPY: tl.constexpr = entropy_ptr is not None
    u, g, z, r, c, t = row_stats.finish(m, u, R, T, ENTROPY)
    log_c = row_stats.log1p(r)
    mu = t * c if ENTROPY else 0.0
    if ENTROPY:
        tl.store(entropy_ptr + row, log_c + mu, mask=inside)
    if lse_ptr is not None:
        tl.store(lse_ptr + row, m + log_c, mask=inside)
    if confidence_ptr is not None:
        tl.store(confidence_ptr + row, c, mask=inside)
    if least_confidence_ptr is not None:
        tl.store(least_confidence_ptr + row, r * c, mask=inside)
    if prediction_ptr is not None:
        tl.store(prediction_ptr + row, k.to(tl.int64), mask=inside)
    margin = r
    if (margin_ptr is not None) or (target_margin_ptr is not None):
        margin = tl.where(u == -row_stats.INFINITY, 1.0, -row_stats.expm1(-g)) * c
    if margin_ptr is not None:
        tl.store(margin_ptr + row, margin, mask=inside)

    miss = 0.0
    if target_ptr is not None:
        y = tl.load(target_ptr + row, mask=inside, other=0).to(tl.int64)
        ignored = y == ignore_index
        known = (y >= 0) & (y < C) & (y != ignore_index)
        x_y = tl.load(start + tl.where(known, y, 0), mask=inside, other=-row_stats.INFINITY).to(tl.float32)
        top = x_y == m
        gone = x_y == -row_stats.INFINITY
        largest = row_stats.reference(m)
        gap, e_y = row_stats.exp_difference(largest, tl.where(gone, largest, x_y))
        gap = tl.where(gone, row_stats.INFINITY, gap)
        e_y = tl.where(gone, 0.0, e_y)
        unknown = tl.where(ignored, 0.0, float("nan"))
        other = 1.0 + r - e_y
        miss = tl.where(known, tl.where(top, r, other) * c, unknown)
        if loss_ptr is not None:
            tl.store(loss_ptr + row, tl.where(known, gap + log_c, unknown), mask=inside)
        if grad_norm_ptr is not None:
            like = z * tl.sqrt(tl.fma(R, R, Q))
            unlike = tl.sqrt(tl.fma(other, other, 1.0 + tl.fma(z * z, Q, -e_y * e_y)))
            tl.store(grad_norm_ptr + row, tl.where(known, tl.where(top, like, unlike) * c, unknown), mask=inside)
        if target_margin_ptr is not None:
            below = row_stats.expm1(-gap) * c
            tl.store(target_margin_ptr + row, tl.where(known, tl.where(top, margin, below), unknown), mask=inside)
    if stats_ptr is not None:
        tl.store(stats_ptr + row, m, mask=inside)
        tl.store(stats_ptr + N + row, u, mask=inside)
        tl.store(stats_ptr + 2 * N + row, z, mask=inside)
        tl.store(stats_ptr + 3 * N + row, r, mask=inside)
        tl.store(stats_ptr + 4 * N + row, miss, mask=inside)
        tl.store(stats_ptr + 5 * N + row, mu, mask=inside)
