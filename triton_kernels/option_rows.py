"""Rows whose target is spread over the classes or whose logits are capped: the tops, the sums, the norm.

Each is a sweep over the tiles of the row, which comes from the cache again unless it is one tile, in registers. Every
element of a tile keeps sums of its own up to the end of the sweep. All is about v, the capped logits; the top class is
that of the raw ones.
"""

import triton
import triton.language as tl
from torchassay.triton_kernels import row_options, row_output, row_stats

NO_COLUMN = tl.constexpr(2**31 - 1)
TINY = tl.constexpr(1e-37)


@triton.jit
def _tile(start, column, inside, softcap):
    """x, v and slope of a tile [ROWS, COLUMNS]; x and v are -inf beyond the row."""
    x = tl.load(start[:, None] + column, mask=inside, other=-row_stats.INFINITY).to(tl.float32)
    v, slope = row_options.capped(x, softcap)
    return x, v, slope


@triton.jit
def _exp(v, top, u, scale, MEND: tl.constexpr):
    """`row_stats.exp` of a tile relative to u, 0 for the top class."""
    return row_stats.exp(tl.where(top, -row_stats.INFINITY, v) - row_stats.reference(u)[:, None], MEND, scale)


@triton.jit
def _distance(v, b, top, inside, u, LABELS: tl.constexpr):
    """u - v where it counts; a class at -inf without a share in the target is 0 for labels, NaN for probabilities, as
    torch has it."""
    reference = row_stats.reference(u)[:, None]
    if LABELS:
        absent = top | (b == 0.0)
        return reference - tl.where(absent, reference, v)
    else:
        gone = inside & (b == 0.0) & (v == -row_stats.INFINITY)
        distance = reference - tl.where(top | (b == 0.0), reference, v)
        return tl.where(gone, float("nan"), distance)


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
    LOSS: tl.constexpr = TARGET and ((loss_ptr is not None) or (grad_norm_ptr is not None) or (stats_ptr is not None))
    C = C * UNIT
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    known = row < N
    start = row_output.row_start(rows_ptr, row, B, stride_a, stride_b, UNIT, FOLDED)
    scale = row_output.scale(row[:, None], known[:, None], temperature_ptr, temperature, lost)
    columns = tl.arange(0, COLUMNS)[None, :]
    y, labelled, other = row, known, 0.0
    if LABELS:
        y, labelled, other = row_options.label_of(target_ptr, row, known, ignore_index, C)
    if WHOLE:
        x, v, slope = _tile(start, columns, known[:, None] & (columns < C), softcap)

    # The tops, of every element first: its largest x, where that is, its v, and the largest v of its other columns.
    most = tl.full([ROWS, COLUMNS], -row_stats.INFINITY, tl.float32)
    at = tl.zeros([ROWS, COLUMNS], tl.int32) + columns
    own, others, unordered = most, most, tl.full([ROWS, COLUMNS], NO_COLUMN, tl.int32)
    for first in range(0, C, COLUMNS):
        column = first + columns
        if not WHOLE:
            x, v, _ = _tile(start, column, known[:, None] & (column < C), softcap)
        later = x > most
        others = row_stats.larger(others, tl.where(later, own, v))
        most, own, at = tl.where(later, x, most), tl.where(later, v, own), tl.where(later, column, at)
        if prediction_ptr is not None:
            unordered = tl.minimum(unordered, tl.where(x != x, column, NO_COLUMN))
    top = row_stats.largest(most, 1)
    k = tl.min(tl.where(most == top[:, None], at, NO_COLUMN), axis=1)
    owner = at == k[:, None]
    m = row_stats.largest(tl.where(owner, own, -row_stats.INFINITY), 1)
    u = row_stats.largest(row_stats.larger(others, tl.where(owner, -row_stats.INFINITY, own)), 1)
    m = row_stats.larger(m, u)  # capped, the top may be below another by a rounding
    unordered = tl.min(unordered, axis=1)

    R = tl.zeros([ROWS, COLUMNS], tl.float32)
    T, rest, gap = R, R, R
    for first in range(0, C, COLUMNS):
        column = first + columns
        inside = known[:, None] & (column < C)
        if not WHOLE:
            _, v, _ = _tile(start, column, inside, softcap)
        here = column == k[:, None]
        d, e = _exp(v, here, u, scale, MEND)
        R += e
        if ENTROPY:
            T = tl.fma(-d, e, T)
        if LOSS:
            b = row_options.target_of(row, column, inside, C, y, probabilities_ptr, weight_ptr, kept, spread)
            rest += tl.where(here, 0.0, b)
            gap = tl.fma(b, _distance(v, b, here, inside, u, LABELS), gap)
    by_row = row_output.scale(row, known, temperature_ptr, temperature, lost)
    inverse = by_row[0]
    u, g, z, r, c, log_c, lse, mu, margin = row_output.write_unlabelled(
        row,
        known,
        m,
        u,
        tl.where(unordered == NO_COLUMN, k, unordered),
        tl.sum(R, axis=1),
        tl.sum(T, axis=1),
        by_row,
        entropy_ptr,
        lse_ptr,
        confidence_ptr,
        least_confidence_ptr,
        margin_ptr,
        prediction_ptr,
        (margin_ptr is not None) or (target_margin_ptr is not None),
    )

    rest, beta = tl.sum(rest, axis=1), tl.zeros_like(z)
    if LOSS:
        at_top = k[:, None]
        own = row_options.target_of(
            row, at_top, known[:, None] & (at_top < C), C, y, probabilities_ptr, weight_ptr, kept, spread
        )
        own, bound = tl.sum(own, axis=1), rest
        beta = rest + own
        loss = beta * log_c + rest * g + tl.sum(gap, axis=1) * inverse
        if z_loss is not None:
            extra = z_loss * lse
            loss += extra * lse
            rest += extra + extra
            beta += extra + extra
        if loss_ptr is not None:
            tl.store(loss_ptr + row, tl.where(labelled, loss, other), mask=known)
    if LOSS and (grad_norm_ptr is not None):
        entry = tl.where(c > 0.5, rest - beta * (r * c), beta * c - own)  # p_k = c, 1 - p_k = r c: what is small
        # relative to a bound of its largest entry, or its squares might underflow
        size = row_stats.larger(tl.maximum(tl.abs(entry), tl.fma(tl.abs(beta), z * c, bound)), TINY)
        share = 1.0 / size
        factor, entry = (beta * (z * c * share))[:, None], (entry * share)[:, None]
        squares = tl.zeros([ROWS, COLUMNS], tl.float32)
        for first in range(0, C, COLUMNS):
            column = first + columns
            inside = known[:, None] & (column < C)
            if not WHOLE:
                _, v, slope = _tile(start, column, inside, softcap)
            here = column == k[:, None]
            _, e = _exp(v, here, u, scale, MEND)
            b = row_options.target_of(row, column, inside, C, y, probabilities_ptr, weight_ptr, kept, spread)
            entries = slope * tl.where(here, entry, tl.fma(factor, e, -b * share[:, None]))
            squares = tl.fma(entries, entries, squares)
        norm = size * tl.sqrt(tl.sum(squares, axis=1)) * inverse
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
