"""Long rows: one program walks a row in segments of TILES tiles; each of LANES states sums up columns of its own.

The states are online sums, their own maximum included, with neither branch nor barrier in the loop. The tops are
settled at the end: m is the largest maximum, and the columns of one lane that holds it are read again (under 1 % of the
row), so that the top class shares no sum with the rest. Every segment starts from an empty state: a few rows can be cut
into segments for programs of their own and give the same bits.
"""

import triton
import triton.language as tl
from torchassay.triton_kernels import row_output, row_stats

LANES = tl.constexpr(256)
TILES = tl.constexpr(4)  # tiles of a segment: 8 loads of 16 bytes in flight a thread
NO_COLUMN = tl.constexpr(2**31 - 1)


@triton.jit
def _columns(tile, lane, i, VECTOR: tl.constexpr, ALIGNED: tl.constexpr):
    """The column of element i < VECTOR of a lane in a tile: a lane loads 16 bytes at once, or neighbouring lanes
    load neighbouring columns where rows start anywhere. It depends on nothing but the column and the two constants."""
    if ALIGNED:
        return (tile * LANES + lane) * VECTOR + i
    else:
        return (tile * VECTOR + i) * LANES + lane


@triton.jit
def _tile(tile, VECTOR: tl.constexpr, ALIGNED: tl.constexpr):
    """The columns of a tile: [LANES, VECTOR], or [VECTOR, LANES] if not aligned."""
    lane = tl.expand_dims(tl.arange(0, LANES), 1 if ALIGNED else 0)
    return _columns(tile, lane, tl.expand_dims(tl.arange(0, VECTOR), 0 if ALIGNED else 1), VECTOR, ALIGNED)


@triton.jit
def _segment(
    start,
    segment,
    C,
    scale,
    TILES_HERE: tl.constexpr,
    MASKED: tl.constexpr,
    VECTOR: tl.constexpr,
    ALIGNED: tl.constexpr,
    ENTROPY: tl.constexpr,
    SQUARES: tl.constexpr,
):
    """The states [LANES] of a segment: its tiles are added up element by element, then every lane by itself."""
    AXIS: tl.constexpr = 1 if ALIGNED else 0
    MEND: tl.constexpr = start.dtype.element_ty == tl.float32
    x = ()
    for i in tl.static_range(TILES_HERE):
        column = _tile(segment * TILES + i, VECTOR, ALIGNED)
        if MASKED:
            loaded = tl.load(start + column, mask=column < C, other=-row_stats.INFINITY)
        else:
            loaded = tl.load(start + column)
        x += (loaded.to(tl.float32),)
    top = x[0]
    for i in tl.static_range(1, TILES_HERE):
        top = row_stats.larger(top, x[i])
    M = row_stats.larger(row_stats.largest(top, AXIS), row_stats.LOWEST)
    reference = tl.expand_dims(row_stats.reference(M), AXIS)
    d, R = row_stats.exp(x[0] - reference, MEND, scale)
    T = -d * R
    Q = R * R
    for i in tl.static_range(1, TILES_HERE):
        d, e = row_stats.exp(x[i] - reference, MEND, scale)
        R += e
        T = tl.fma(-d, e, T)
        Q = tl.fma(e, e, Q)
    R = tl.sum(R, axis=AXIS)
    T = tl.sum(T, axis=AXIS) if ENTROPY else R
    Q = tl.sum(Q, axis=AXIS) if SQUARES else R
    return M, R, T, Q


@triton.jit
def _append(M, R, T, Q, W, M2, R2, T2, Q2, segment, scale, ENTROPY: tl.constexpr, SQUARES: tl.constexpr):
    """Merge a segment into the running states; W is the segment that a lane's maximum was first met in."""
    W = tl.where((M2 > M) | ((R < 0.5) & (R2 >= 0.5)), segment, W)
    M, R, T, Q = row_stats.merge(M, R, T, Q, M2, R2, T2, Q2, scale, ENTROPY, SQUARES)
    return M, R, T, Q, W


@triton.jit
def _top_column(
    start, C, m, hit, W, unordered, VECTOR: tl.constexpr, ALIGNED: tl.constexpr
):  # hit: [LANES], the lanes whose maximum is m
    """The lowest column that holds m, or the first NaN if there is one."""
    segment = tl.min(tl.where(hit, W, NO_COLUMN), axis=0)
    hit = tl.expand_dims(hit & (segment == W), 1 if ALIGNED else 0)
    segment = tl.where(segment == NO_COLUMN, 0, segment)
    k = NO_COLUMN
    for i in tl.static_range(TILES):
        column = _tile(segment * TILES + i, VECTOR, ALIGNED)
        x = tl.load(start + column, mask=hit & (column < C), other=-row_stats.INFINITY).to(tl.float32)
        k = tl.minimum(k, tl.min(tl.min(tl.where(hit & (x == m), column, NO_COLUMN), axis=1), axis=0))
    k = tl.where(k == NO_COLUMN, 0, k)
    if unordered:
        first = NO_COLUMN
        for tile in range(0, tl.cdiv(C, LANES * VECTOR)):
            column = _tile(tile, VECTOR, ALIGNED)
            x = tl.load(start + column, mask=column < C, other=0.0).to(tl.float32)
            first = tl.minimum(first, tl.min(tl.min(tl.where(x != x, column, NO_COLUMN), axis=1), axis=0))
        k = tl.where(first == NO_COLUMN, k, first)
    return k


@triton.jit(do_not_specialize=["C", "N", "B", "stride_a", "stride_b"])
def row_segments(
    rows_ptr,
    states_ptr,  # [N, segments, 4, LANES]: M, R, T, Q
    C,  # in units of UNIT columns, as the strides
    N,
    B,
    stride_a,
    stride_b,
    temperature_ptr,
    temperature,
    lost,
    UNIT: tl.constexpr,
    FOLDED: tl.constexpr,
    VECTOR: tl.constexpr,
    TAIL: tl.constexpr,
    ENTROPY: tl.constexpr,
    SQUARES: tl.constexpr,
):
    """One program computes the states of one segment of a row; `long_rows` merges them: the same bits either way."""
    ALIGNED: tl.constexpr = UNIT > 1
    C = C * UNIT
    whole = C // (TILES * LANES * VECTOR)
    segments = whole + 1 if TAIL > 0 else whole
    row = (tl.program_id(0) // segments).to(tl.int64)
    segment = tl.program_id(0) % segments
    start = row_output.row_start(rows_ptr, row, B, stride_a, stride_b, UNIT, FOLDED)
    scale = row_output.scale(row, row < N, temperature_ptr, temperature, lost) if temperature is not None else None
    if segment < whole:
        M, R, T, Q = _segment(start, segment, C, scale, TILES, False, VECTOR, ALIGNED, ENTROPY, SQUARES)
    else:
        M, R, T, Q = _segment(start, segment, C, scale, max(TAIL, 1), True, VECTOR, ALIGNED, ENTROPY, SQUARES)
    state = states_ptr + (row * segments + segment) * (4 * LANES) + tl.arange(0, LANES)
    tl.store(state, M)
    tl.store(state + LANES, R)
    if ENTROPY:
        tl.store(state + 2 * LANES, T)
    if SQUARES:
        tl.store(state + 3 * LANES, Q)


@triton.jit(do_not_specialize=["ignore_index", "C", "N", "B", "stride_a", "stride_b", "first"])
def long_rows(
    rows_ptr,
    target_ptr,
    ignore_index,
    C,  # in units of UNIT columns, as the strides
    N,
    B,
    stride_a,
    stride_b,
    out,  # `row_output.Outputs`
    temperature_ptr,  # as all up to z_loss: see option_scores.py
    temperature,
    lost,
    weight_ptr,
    z_loss,
    first,  # None, or the first class of a slice: then numbers and k of `row_states` are stats and prediction
    states_ptr,  # [N, segments, 4, LANES] from row_segments, or None to walk the row here
    UNIT: tl.constexpr,
    FOLDED: tl.constexpr,
    VECTOR: tl.constexpr,
    TAIL: tl.constexpr,  # tiles of the last segment, if it is not a full one
    ENTROPY: tl.constexpr,  # as SQUARES: see `row_output.wanted_sums`
    SQUARES: tl.constexpr,
    SEGMENTS: tl.constexpr,  # a power of two, >= the number of segments
):
    """One program computes one row."""
    ALIGNED: tl.constexpr = UNIT > 1
    C = C * UNIT
    row = tl.program_id(0).to(tl.int64)
    start = row_output.row_start(rows_ptr, row, B, stride_a, stride_b, UNIT, FOLDED)
    scale = row_output.scale(row, row < N, temperature_ptr, temperature, lost) if temperature is not None else None
    lane = tl.arange(0, LANES)
    M = tl.full([LANES], row_stats.LOWEST, tl.float32)
    R = tl.zeros([LANES], tl.float32)
    T = tl.zeros([LANES], tl.float32)
    Q = tl.zeros([LANES], tl.float32)
    W = tl.zeros([LANES], tl.int32)
    whole = C // (TILES * LANES * VECTOR)
    if states_ptr is None:
        for segment in range(0, whole):
            M2, R2, T2, Q2 = _segment(start, segment, C, scale, TILES, False, VECTOR, ALIGNED, ENTROPY, SQUARES)
            M, R, T, Q, W = _append(M, R, T, Q, W, M2, R2, T2, Q2, segment, scale, ENTROPY, SQUARES)
        if TAIL > 0:
            M2, R2, T2, Q2 = _segment(start, whole, C, scale, TAIL, True, VECTOR, ALIGNED, ENTROPY, SQUARES)
            M, R, T, Q, W = _append(M, R, T, Q, W, M2, R2, T2, Q2, whole, scale, ENTROPY, SQUARES)
    else:
        if TAIL > 0:
            whole += 1
        for segment in range(0, whole):
            state = states_ptr + (row * whole + segment) * (4 * LANES) + lane
            M2, R2, T2, Q2 = tl.load(state), tl.load(state + LANES), R, R
            if ENTROPY:
                T2 = tl.load(state + 2 * LANES)
            if SQUARES:
                Q2 = tl.load(state + 3 * LANES)
            M, R, T, Q, W = _append(M, R, T, Q, W, M2, R2, T2, Q2, segment, scale, ENTROPY, SQUARES)

    # The tops. The lane that holds the largest logit is read again, without that logit.
    m = tl.max(M, axis=0)
    hit = (m == M) & ((R < 0.5) == 0)
    owner = tl.min(tl.where(hit, lane, LANES), axis=0)
    m = tl.where(owner == LANES, -row_stats.INFINITY, m)
    owner = tl.minimum(owner, LANES - 1)
    part = tl.arange(0, TILES * VECTOR)[None, :]
    tile = tl.arange(0, SEGMENTS)[:, None] * TILES + part // VECTOR
    column = _columns(tile, owner, part % VECTOR, VECTOR, ALIGNED)
    x = tl.load(start + column, mask=column < C, other=-row_stats.INFINITY).to(tl.float32)
    k = tl.min(tl.min(tl.where(x == m, column, NO_COLUMN), axis=1), axis=0)
    x = tl.where(column == k, -row_stats.INFINITY, x)
    others = lane != owner
    M = tl.where(others, M, row_stats.LOWEST)
    u = row_stats.larger(tl.max(M, axis=0), row_stats.largest(row_stats.largest(x, 1), 0))
    R, T, Q = row_stats.rescaled(M, R, T, Q, u, scale, ENTROPY, SQUARES)
    d, e = row_stats.exp(x - row_stats.reference(u), True, scale)
    R = tl.sum(tl.where(others, R, 0.0), axis=0) + tl.sum(tl.sum(e, axis=1), axis=0)
    T = tl.sum(tl.where(others, T, 0.0), axis=0) + tl.sum(tl.sum(-d * e, axis=1), axis=0) if ENTROPY else R
    Q = tl.sum(tl.where(others, Q, 0.0), axis=0) + tl.sum(tl.sum(e * e, axis=1), axis=0) if SQUARES else R
    if out.prediction is not None:
        k = _top_column(start, C, m, hit, W, R != R, VECTOR, ALIGNED)
    row_output.write(
        row, row < N, start, m, u, k, R, T, Q, target_ptr, ignore_index, C, N, out, scale, weight_ptr, z_loss, first
    )
