"""Rows whose target is spread over the classes or whose logits are capped: the tops, the sums, the norm.

Each is a sweep over the tiles of the row, which comes from the cache again unless it is one tile, in registers. Every
element of a tile keeps sums of its own up to the end of the sweep. The tops are those of the raw logits x, all else is
about v, the capped ones. Of a slice of the classes there is the state alone, and no norm: see row_states.py.
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


@triton.jit
def _tops(
    start,
    columns,
    known,
    C,
    tile,  # x, if WHOLE
    UNORDERED: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """m, u and the lowest column k of m, all [ROWS]. If UNORDERED, k is the first NaN where there is one, and m and u
    are +inf, which poisons the sums as well.

    First of every element of a tile: its largest x or first NaN, where that is, and the largest of its other columns.
    """
    ROWS: tl.constexpr = start.shape[0]
    COLUMNS: tl.constexpr = columns.shape[1]
    most = tl.full([ROWS, COLUMNS], -row_stats.INFINITY, tl.float32)
    at = tl.zeros([ROWS, COLUMNS], tl.int32) + columns
    others = most
    for begin in range(0, C, COLUMNS):
        column = begin + columns
        x = tile if WHOLE else _tile(start, column, known[:, None] & (column < C), None)[0]
        later = x > most
        if UNORDERED:
            later = later | ((x != x) & (most == most))
        others = row_stats.larger(others, tl.where(later, most, x))
        most, at = tl.where(later, x, most), tl.where(later, column, at)
    m = row_stats.largest(most, 1)
    k = tl.min(tl.where(most == m[:, None], at, NO_COLUMN), axis=1)
    owner = at == k[:, None]
    u = row_stats.largest(row_stats.larger(others, tl.where(owner, -row_stats.INFINITY, most)), 1)
    if UNORDERED:
        first = tl.min(tl.where(most != most, at, NO_COLUMN), axis=1)
        poisoned = first < NO_COLUMN
        k = tl.where(poisoned, first, k)
        m, u = tl.where(poisoned, row_stats.INFINITY, m), tl.where(poisoned, row_stats.INFINITY, u)
    return m, u, k


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
    out,  # `row_output.Outputs`
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
    ENTROPY: tl.constexpr,  # as SQUARES: see `row_output.wanted_sums`
    SQUARES: tl.constexpr,
):
    """One program computes ROWS rows."""
    MEND: tl.constexpr = rows_ptr.dtype.element_ty == tl.float32
    LABELS: tl.constexpr = target_ptr is not None
    TARGET: tl.constexpr = LABELS or (probabilities_ptr is not None)
    LOSS: tl.constexpr = TARGET and ((out.loss is not None) or (out.grad_norm is not None) or (out.stats is not None))
    C = C * UNIT
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    known = row < N
    start = row_output.row_start(rows_ptr, row, B, stride_a, stride_b, UNIT, FOLDED)
    scale = row_output.scale(row[:, None], known[:, None], temperature_ptr, temperature, lost)
    columns = tl.arange(0, COLUMNS)[None, :]
    y, labelled, other = row, known, 0.0
    if LABELS:
        y, labelled, other = row_options.label_of(target_ptr, row, known, ignore_index, 0, C)
    x = None
    if WHOLE:
        x, v, slope = _tile(start, columns, known[:, None] & (columns < C), softcap)
    m, u, k = _tops(start, columns, known, C, x, out.prediction is not None, WHOLE)
    u = row_options.capped(u, softcap)[0]
    m = row_stats.larger(row_options.capped(m, softcap)[0], u)  # it may be below by a rounding
    R = tl.zeros([ROWS, COLUMNS], tl.float32)
    T, Q, rest, gap = R, R, R, R
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
        if SQUARES:
            Q = tl.fma(e, e, Q)
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
        k,
        tl.sum(R, axis=1),
        tl.sum(T, axis=1) * inverse,
        tl.sum(Q, axis=1),
        by_row,
        out,
        ENTROPY,
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
        if out.loss is not None:
            tl.store(out.loss + row, tl.where(labelled, loss, other), mask=known)
    if LOSS and (out.grad_norm is not None):
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
        tl.store(out.grad_norm + row, tl.where(labelled, norm, other), mask=known)
    if LABELS and (out.target_margin is not None):
        x_y = tl.load(start + tl.where(labelled, y, 0), mask=known, other=-row_stats.INFINITY).to(tl.float32)
        v_y, _ = row_options.capped(x_y, softcap)
        gone = (v_y == -row_stats.INFINITY) | (row >= N)
        largest = row_stats.reference(m)
        gap = tl.where(gone, row_stats.INFINITY, (largest - tl.where(gone, largest, v_y)) * inverse)
        target_margin = tl.where(y == k, margin, row_stats.expm1(-gap) * c)
        tl.store(out.target_margin + row, tl.where(labelled, target_margin, other), mask=known)
    row_output.write_stats(
        out.stats,
        row,
        known,
        N,
        (m, u, z, r, tl.where(labelled, rest, other), mu, tl.where(labelled, beta, other)),
    )


@triton.jit(do_not_specialize=["ignore_index", "C", "N", "B", "stride_a", "stride_b", "first"])
def option_states(
    rows_ptr,
    target_ptr,
    ignore_index,
    C,  # in units of UNIT columns, as the strides
    N,
    B,
    stride_a,
    stride_b,
    numbers_ptr,
    k_ptr,
    temperature_ptr,
    temperature,
    lost,
    weight_ptr,
    softcap,
    spread,  # label_smoothing / classes of all slices, None for 0
    first,  # the class of column 0
    UNIT: tl.constexpr,
    FOLDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,  # C <= COLUMNS
):
    """One program computes the records of ROWS rows."""
    MEND: tl.constexpr = rows_ptr.dtype.element_ty == tl.float32
    C = C * UNIT
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    known = row < N
    start = row_output.row_start(rows_ptr, row, B, stride_a, stride_b, UNIT, FOLDED)
    scale = row_output.scale(row[:, None], known[:, None], temperature_ptr, temperature, lost)
    columns = tl.arange(0, COLUMNS)[None, :]
    x = None
    if WHOLE:
        x, v, slope = _tile(start, columns, known[:, None] & (columns < C), softcap)
    m, u, k = _tops(start, columns, known, C, x, True, WHOLE)
    v_u = row_options.capped(u, softcap)[0]

    R = tl.zeros([ROWS, COLUMNS], tl.float32)
    T, Q, S, rest, gap, top = R, R, R, R, R, R
    for begin in range(0, C, COLUMNS):
        column = begin + columns
        inside = known[:, None] & (column < C)
        if not WHOLE:
            _, v, slope = _tile(start, column, inside, softcap)
        here = column == k[:, None]
        d, e = _exp(v, here, v_u, scale, MEND)
        R += e
        T = tl.fma(-d, e, T)
        Q = tl.fma(e, e, Q)
        S = tl.fma(slope * e, slope * e, S)
        if spread is not None:
            b = tl.where(inside, spread, 0.0)
            if weight_ptr is not None:
                b *= tl.load(weight_ptr + column, mask=column < C, other=0.0)
            rest += tl.where(here, 0.0, b)
            top += tl.where(here, b, 0.0)
            gap = tl.fma(b, _distance(v, b, here, inside, v_u, True), gap)
    inverse = row_output.scale(row, known, temperature_ptr, temperature, lost)[0]
    smoothed = ()
    if spread is not None:
        smoothed = (tl.sum(rest, axis=1), tl.sum(gap, axis=1), tl.sum(top, axis=1))
    row_output.write_state(
        row,
        known,
        start,
        m,
        u,
        k,
        (tl.sum(R, axis=1), tl.sum(T, axis=1) * inverse, tl.sum(Q, axis=1), tl.sum(S, axis=1)),
        target_ptr,
        ignore_index,
        C,
        N,
        k_ptr,
        numbers_ptr,
        first,
        smoothed,
    )
