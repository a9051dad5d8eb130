"""Rows whose target is spread over the classes or whose logits are capped: the tops, the sums, the norm.

Each is a sweep over the tiles of the row, which comes from the cache again unless it is one tile, in registers. A
tile's sums are float32, the row's float64. All is about v, the capped logits; the top class is that of the raw ones.
"""

import triton
import triton.language as tl
from torchassay.triton_kernels import row_options, row_output, row_stats

NO_COLUMN = tl.constexpr(2**31 - 1)
TINY = tl.constexpr(1e-37)


@triton.jit
def _tile(start, column, inside, softcap):
    """x, v and slope of a tile [ROWS, COLUMNS]; v is -inf beyond the row."""
    x = tl.load(start[:, None] + column, mask=inside, other=-row_stats.INFINITY).to(tl.float32)
    v, slope = row_options.capped(x, softcap)
    return x, tl.where(inside, v, -row_stats.INFINITY), slope


@triton.jit
def _tops(x, v, column, top, k, m, u, unordered):
    """The tops [ROWS] with a tile's: the raw top, its lowest column, its v, the largest other v; the first NaN."""
    here = row_stats.largest(x, 1)
    at = tl.min(tl.where(x == here[:, None], column, NO_COLUMN), axis=1)
    own = column == at[:, None]
    first = row_stats.largest(tl.where(own, v, -row_stats.INFINITY), 1)
    second = row_stats.largest(tl.where(own, -row_stats.INFINITY, v), 1)
    later = (here > top) | (k == NO_COLUMN)
    u = row_stats.larger(row_stats.larger(u, second), tl.where(later, m, first))
    unordered = tl.minimum(unordered, tl.min(tl.where(x != x, column, NO_COLUMN), axis=1))
    return tl.where(later, here, top), tl.where(later, at, k), tl.where(later, first, m), u, unordered


@triton.jit
def _sums(
    v,
    b,
    column,
    inside,
    k,
    u,
    scale,
    R,
    T,
    rest,
    gap,
    own,
    ENTROPY: tl.constexpr,
    LOSS: tl.constexpr,
    ABSENT: tl.constexpr,  # what a class at -inf adds to the gap with b = 0
    MEND: tl.constexpr,
):
    """The sums [ROWS] with a tile's, over all classes but k: R and T, then of b and of b (u - v); b of k."""
    top = column == k[:, None]
    reference = row_stats.reference(u)[:, None]
    d, e = row_stats.exp(tl.where(top, -row_stats.INFINITY, v) - reference, MEND, scale)
    R += tl.sum(e, axis=1).to(tl.float64)
    if ENTROPY:
        T += tl.sum(e * -d, axis=1).to(tl.float64)
    if LOSS:
        others = tl.where(top, 0.0, b)
        gone = v == -row_stats.INFINITY
        distance = reference - tl.where(top | gone, reference, v)
        far = tl.where(others == 0.0, ABSENT, row_stats.INFINITY)
        distance = tl.where(gone & inside, far, distance)
        rest += tl.sum(others, axis=1).to(tl.float64)
        gap += tl.sum(others * distance, axis=1).to(tl.float64)
        own += tl.sum(tl.where(top, b, 0.0), axis=1)
    return R, T, rest, gap, own


@triton.jit
def _norm(v, slope, b, column, k, u, scale, zc, beta, entry, size, squares, MEND: tl.constexpr):
    """size and sum (gradient / size)^2 [ROWS] with a tile's: no square underflows where its row's largest does not."""
    top = column == k[:, None]
    reference = row_stats.reference(u)[:, None]
    _, e = row_stats.exp(tl.where(top, -row_stats.INFINITY, v) - reference, MEND, scale)
    g = slope * tl.where(top, entry[:, None], beta[:, None] * (e * zc[:, None]) - b)
    larger = row_stats.larger(size, row_stats.largest(tl.abs(g), 1))
    shrink = size / larger
    g *= (1.0 / larger)[:, None]
    return larger, shrink * shrink * squares + tl.sum(g * g, axis=1).to(tl.float64)


@triton.jit(do_not_specialize=["ignore_index", "C", "N", "B", "stride_a", "stride_b"])
def option_rows(
    rows_ptr,
    target_ptr,
    probabilities_ptr,
    ignore_index,
    C,  # in units of UNIT columns, as the strides
    N,
    B,
    stride_a,
    stride_b,
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
    temperature_ptr,
    temperature,
    lost,
    weight_ptr,
    z_loss,
    softcap,
    kept,  # 1 - label_smoothing
    spread,  # label_smoothing / C, None for 0
    UNIT: tl.constexpr,
    FOLDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,  # C <= COLUMNS
):
    """One program computes ROWS rows."""
    MEND: tl.constexpr = rows_ptr.dtype.element_ty == tl.float32
    ENTROPY: tl.constexpr = entropy_ptr is not None
    LABELS: tl.constexpr = target_ptr is not None
    TARGET: tl.constexpr = LABELS or (probabilities_ptr is not None)
    LOSS: tl.constexpr = TARGET and (
        (loss_ptr is not None) or (grad_norm_ptr is not None) or (stats_ptr is not None)
    )
    ABSENT: tl.constexpr = 0.0 if LABELS else float("nan")  # as torch has it: 0 inf for probabilities
    C = C * UNIT
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    known = row < N
    start = row_output.row_start(rows_ptr, row, B, stride_a, stride_b, UNIT, FOLDED)
    scale = row_output.scale(row[:, None], known[:, None], temperature_ptr, temperature, lost)
    columns = tl.arange(0, COLUMNS)[None, :]
    y = row
    if LABELS:
        y = tl.load(target_ptr + row, mask=known, other=0).to(tl.int64)
    if WHOLE:
        x, v, slope = _tile(start, columns, known[:, None] & (columns < C), softcap)

    top = tl.full([ROWS], -row_stats.INFINITY, tl.float32)
    k = tl.full([ROWS], NO_COLUMN, tl.int32)
    m, u, unordered = top, top, k
    for first in range(0, C, COLUMNS):
        column = first + columns
        if not WHOLE:
            x, v, _ = _tile(start, column, known[:, None] & (column < C), softcap)
        top, k, m, u, unordered = _tops(x, v, column, top, k, m, u, unordered)
    m = row_stats.larger(m, u)  # capped, the top may be below another by a rounding

    R = tl.zeros([ROWS], tl.float64)
    T, rest, gap, own = R, R, R, tl.zeros([ROWS], tl.float32)
    for first in range(0, C, COLUMNS):
        column = first + columns
        inside = known[:, None] & (column < C)
        if not WHOLE:
            _, v, _ = _tile(start, column, inside, softcap)
        b = v
        if LOSS:
            b = row_options.target_of(row, column, inside, C, y, probabilities_ptr, weight_ptr, kept, spread)
        R, T, rest, gap, own = _sums(
            v, b, column, inside, k, u, scale, R, T, rest, gap, own, ENTROPY, LOSS, ABSENT, MEND
        )
    by_row = row_output.scale(row, known, temperature_ptr, temperature, lost)
    inverse = by_row[0]
    u, g, z, r, c, log_c, lse, mu, margin = row_output.write_unlabelled(
        row,
        known,
        m,
        u,
        tl.where(unordered == NO_COLUMN, k, unordered),
        R.to(tl.float32),
        T.to(tl.float32),
        by_row,
        entropy_ptr,
        lse_ptr,
        confidence_ptr,
        least_confidence_ptr,
        margin_ptr,
        prediction_ptr,
        (margin_ptr is not None) or (target_margin_ptr is not None),
    )

    labelled, other = known, 0.0
    if LABELS:
        labelled = (y >= 0) & (y < C) & (y != ignore_index)
        other = tl.where(y == ignore_index, 0.0, float("nan"))
    rest, beta = rest.to(tl.float32), own
    if LOSS:
        loss = (rest + own) * log_c + rest * g + gap.to(tl.float32) * inverse
        beta += rest
        if z_loss is not None:
            extra = z_loss * lse
            loss += extra * lse
            rest += extra + extra
            beta += extra + extra
        if loss_ptr is not None:
            tl.store(loss_ptr + row, tl.where(labelled, loss, other), mask=known)
    if LOSS and (grad_norm_ptr is not None):
        entry = row_options.top_entry(r, c, rest, beta, own)
        size = tl.full([ROWS], TINY, tl.float32)
        squares = tl.zeros([ROWS], tl.float64)
        for first in range(0, C, COLUMNS):
            column = first + columns
            inside = known[:, None] & (column < C)
            if not WHOLE:
                _, v, slope = _tile(start, column, inside, softcap)
            b = row_options.target_of(row, column, inside, C, y, probabilities_ptr, weight_ptr, kept, spread)
            size, squares = _norm(v, slope, b, column, k, u, scale, z * c, beta, entry, size, squares, MEND)
        norm = size * tl.sqrt(squares.to(tl.float32)) * inverse
        tl.store(grad_norm_ptr + row, tl.where(labelled, norm, other), mask=known)
    if LABELS and (target_margin_ptr is not None):
        x_y = tl.load(start + tl.where(labelled, y, 0), mask=known, other=-row_stats.INFINITY).to(tl.float32)
        v_y, _ = row_options.capped(x_y, softcap)
        gone = (v_y == -row_stats.INFINITY) | (row >= N)
        largest = row_stats.reference(m)
        gap = tl.where(gone, row_stats.INFINITY, (largest - tl.where(gone, largest, v_y)) * inverse)
        target_margin = tl.where(y == k, margin, row_stats.expm1(-gap) * c)
        tl.store(target_margin_ptr + row, tl.where(labelled, target_margin, other), mask=known)
    row_output.write_stats(
        stats_ptr,
        row,
        known,
        N,
        (m, u, z, r, tl.where(labelled, rest, other), mu, tl.where(labelled, beta, other)),
    )
