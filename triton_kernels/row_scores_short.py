"""Rows that fit into registers: read once, the top two first, then the sums of all classes but the top.

Up to 32 columns one lane computes one row. Above, a warp (or up to four) computes a row; its finish is as long as the
sums of 1000 columns and would be run by 32 lanes alike. So with many rows a program takes 32 of them one after the
other, keeps their sums one row a lane, and finishes them together.
"""

import triton
import triton.language as tl
from torchassay.triton_kernels import row_output, row_stats


@triton.jit(do_not_specialize=["ignore_index", "C", "N", "B", "stride_a", "stride_b", "first"])
def narrow_rows(
    rows_ptr,
    target_ptr,
    ignore_index,
    C,
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
    FOLDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One lane computes one row of COLUMNS = C columns."""
    MEND: tl.constexpr = rows_ptr.dtype.element_ty == tl.float32
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < N
    start = row_output.row_start(rows_ptr, row, B, stride_a, stride_b, 1, FOLDED)
    x = ()
    for j in tl.static_range(COLUMNS):
        x += (tl.load(start + j, mask=inside, other=-row_stats.INFINITY).to(tl.float32),)
    m = tl.full([ROWS], -row_stats.INFINITY, tl.float32)
    k = tl.zeros([ROWS], tl.int32)
    for j in tl.static_range(COLUMNS):
        k = tl.where(x[j] > m, j, k)
        m = row_stats.larger(m, x[j])
    u = tl.full([ROWS], row_stats.LOWEST, tl.float32)
    for j in tl.static_range(COLUMNS):
        u = row_stats.larger(u, tl.where(k == j, row_stats.LOWEST, x[j]))
    scale = row_output.scale(row, inside, temperature_ptr, temperature, lost) if temperature is not None else None
    R = tl.zeros([ROWS], tl.float32)
    T = tl.zeros([ROWS], tl.float32)
    Q = tl.zeros([ROWS], tl.float32)
    for j in tl.static_range(COLUMNS):
        rest = tl.where(k == j, -row_stats.INFINITY, x[j])
        d, e = row_stats.exp(rest - row_stats.reference(u), MEND, scale)
        R += e
        T = tl.fma(-d, e, T)
        Q = tl.fma(e, e, Q)
    if out.prediction is not None:
        for i in tl.static_range(COLUMNS):
            k = tl.where(x[COLUMNS - 1 - i] != x[COLUMNS - 1 - i], COLUMNS - 1 - i, k)
    row_output.write(
        row, inside, start, m, u, k, R, T, Q, target_ptr, ignore_index, C, N, out, scale, weight_ptr, z_loss, first
    )


@triton.jit(do_not_specialize=["ignore_index", "C", "N", "B", "stride_a", "stride_b", "first"])
def short_rows(
    rows_ptr,
    target_ptr,
    ignore_index,
    C,  # counts units of UNIT columns, as do the strides: so the compiler knows what divides them
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
    UNIT: tl.constexpr,
    FOLDED: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ENTROPY: tl.constexpr,  # as SQUARES: see `row_output.wanted_sums`
    SQUARES: tl.constexpr,
):
    """One program computes GROUPS times ROWS rows, COLUMNS >= C."""
    MEND: tl.constexpr = rows_ptr.dtype.element_ty == tl.float32
    C = C * UNIT
    begin = tl.program_id(0).to(tl.int64) * (GROUPS * ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    group = tl.arange(0, GROUPS)[:, None]
    m = tl.zeros([GROUPS, ROWS], tl.float32)
    u, R, T, Q, k = m, m, m, m, tl.zeros([GROUPS, ROWS], tl.int32)
    for i in range(0, GROUPS):
        row = begin + i * ROWS + tl.arange(0, ROWS)
        start = row_output.row_start(rows_ptr, row, B, stride_a, stride_b, UNIT, FOLDED)
        mask = (row < N)[:, None] & (column < C)
        x = tl.load(start[:, None] + column, mask=mask, other=-row_stats.INFINITY).to(tl.float32)
        top = row_stats.largest(x, 1)
        at = tl.min(tl.where(x == top[:, None], column, COLUMNS), axis=1)
        rest = tl.where(column == at[:, None], -row_stats.INFINITY, x)
        second = row_stats.larger(row_stats.largest(rest, 1), row_stats.LOWEST)
        every = row[:, None]
        factors = (
            row_output.scale(every, every < N, temperature_ptr, temperature, lost) if temperature is not None else None
        )
        d, e = row_stats.exp(rest - row_stats.reference(second)[:, None], MEND, factors)
        here = group == i
        m = tl.where(here, top[None, :], m)
        u = tl.where(here, second[None, :], u)
        R = tl.where(here, tl.sum(e, axis=1)[None, :], R)
        if ENTROPY:
            T = tl.where(here, tl.sum(e * -d, axis=1)[None, :], T)
        if SQUARES:
            Q = tl.where(here, tl.sum(e * e, axis=1)[None, :], Q)
        if out.prediction is not None:
            unordered = tl.min(tl.where(x != x, column, COLUMNS), axis=1)
            at = tl.minimum(tl.where(unordered < COLUMNS, unordered, at), C - 1)
            k = tl.where(here, at[None, :], k)
    row = begin + tl.arange(0, GROUPS * ROWS)
    inside = row < N
    start = row_output.row_start(rows_ptr, row, B, stride_a, stride_b, UNIT, FOLDED)
    m = tl.reshape(m, [GROUPS * ROWS])
    u = tl.reshape(u, [GROUPS * ROWS])
    k = tl.reshape(k, [GROUPS * ROWS])
    R = tl.reshape(R, [GROUPS * ROWS])
    T = tl.reshape(T, [GROUPS * ROWS])
    Q = tl.reshape(Q, [GROUPS * ROWS])
    scale = row_output.scale(row, inside, temperature_ptr, temperature, lost) if temperature is not None else None
    row_output.write(
        row, inside, start, m, u, k, R, T, Q, target_ptr, ignore_index, C, N, out, scale, weight_ptr, z_loss, first
    )
