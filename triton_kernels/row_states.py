"""Rows of which only a slice of the classes is at hand: the state of a slice, how states merge, and their signals.

A state is a record of 7 numbers, 10 under label smoothing, and k; with v the capped logits, over all classes j of the
slice but the top one, and b_j = w_j label_smoothing / classes of all slices,

    m, u: the two largest logits, not capped     R = sum e_j     T = sum e_j d_j     Q = sum e_j^2
    S = sum (slope_j e_j)^2     x_y: the target's logit     rest = sum b_j     gap = sum b_j (v_u - v_j)     top = b_k
    with d_j = (v_u - v_j) / temperature     e_j = e^-d_j     slope_j = 1 - tanh^2(x_j / softcap)

k is the class of m, the lowest of equals and the first NaN of a poisoned row, or ~k where the slice holds the target's
class. Without a second class u is -inf and R, T, Q, S are 0. NaN and +inf reach every signal through R and m.
"""

import triton
import triton.language as tl
from torch import Tensor
from torchassay.triton_kernels import row_options, row_output, row_stats
from torchassay.triton_kernels.option_rows import option_states
from torchassay.triton_kernels.option_scores import temperature_of, tile_of
from torchassay.triton_kernels.row_output import Outputs
from torchassay.triton_kernels.row_scores import LAUNCH, row_layout, row_scores

ROWS = 128  # of a program that merges, one a lane (a guess)


@triton.jit
def _moved(u, R, T, Q, S, rest, v_u, scale, softcap):
    """R, T, Q and S of a part relative to v_u, which is no less than its own second, and by how much its gap grows."""
    gone = u == -row_stats.INFINITY
    v = tl.where(gone, v_u, row_stats.reference(row_options.capped(u, softcap)[0]))
    d, c = row_stats.exp_difference(v_u, v, scale)
    c = tl.where(gone, 0.0, c)
    d = tl.minimum(d, 128.0)  # c is 0 from 104 on: no 0 inf
    growth = 0.0
    if rest is not None:  # of masked classes in the target infinite
        away = tl.where(gone & (v_u > row_stats.LOWEST), row_stats.INFINITY, v_u - v)
        growth = rest * tl.where(rest == 0.0, 0.0, away)
    return R * c, c * tl.fma(R, d, T), Q * (c * c), S * (c * c), growth


@triton.jit
def merge(a, b, scale, softcap):
    """The state of two slices, each (m, u, R, T, Q, S, k) or these and (rest, gap, top): the larger top wins, the first
    of equals; the other joins the rest. Here no k is flagged."""
    SMOOTHED: tl.constexpr = len(a) > 7
    later = b[0] > a[0]
    m, loser = tl.where(later, b[0], a[0]), tl.where(later, a[0], b[0])
    u = row_stats.larger(loser, tl.where(later, b[1], a[1]))
    v_u = row_stats.reference(row_options.capped(u, softcap)[0])
    slope = row_options.capped(loser, softcap)[1]
    lost = tl.where(later, a[9], b[9]) if SMOOTHED else None
    one = tl.full(m.shape, 1.0, tl.float32)
    R, T, Q, S, growth = _moved(a[1], a[2], a[3], a[4], a[5], a[7] if SMOOTHED else None, v_u, scale, softcap)
    R_b, T_b, Q_b, S_b, growth_b = _moved(b[1], b[2], b[3], b[4], b[5], b[7] if SMOOTHED else None, v_u, scale, softcap)
    R_l, T_l, Q_l, S_l, growth_l = _moved(loser, one, 0.0, one, slope * slope * one, lost, v_u, scale, softcap)
    poisoned_a, poisoned_b = a[2] != a[2], b[2] != b[2]
    k = tl.where((poisoned_a == 0) & (later | poisoned_b), b[6], a[6])
    state = (m, u, R + R_b + R_l, T + T_b + T_l, Q + Q_b + Q_l, S + S_b + S_l, k)
    if SMOOTHED:
        gap = a[8] + growth + b[8] + growth_b + growth_l
        state += (a[7] + b[7] + lost, gap, tl.where(later, b[9], a[9]))
    return state


@triton.jit
def _part(numbers_ptr, k_ptr, part, N, row, inside, FIELDS: tl.constexpr):
    """A record as `merge` takes it, the target's logit, and whether the slice holds its class."""
    numbers = ()
    for i in tl.static_range(FIELDS):
        numbers += (tl.load(numbers_ptr + (part * FIELDS + i) * N + row, mask=inside, other=0.0),)
    k = tl.load(k_ptr + part * N + row, mask=inside, other=0)
    here = k < 0
    state = (numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], tl.where(here, ~k, k))
    if FIELDS > 7:
        state += (numbers[7], numbers[8], numbers[9])
    return state, numbers[6], here


@triton.jit
def _merged(numbers_ptr, k_ptr, P, N, row, inside, scale, softcap, FIELDS: tl.constexpr):
    """The state of all parts, merged in their order."""
    state, x_y, held = _part(numbers_ptr, k_ptr, row * 0, N, row, inside, FIELDS)
    for i in range(1, P):
        part, x, here = _part(numbers_ptr, k_ptr, row * 0 + i, N, row, inside, FIELDS)
        state = merge(state, part, scale, softcap)
        x_y = tl.where(here, x, x_y)
        held = held | here
    return state, x_y, held


@triton.jit(do_not_specialize=["P", "N"])
def _merge_states(
    numbers_ptr,
    k_ptr,
    P,
    N,
    out_ptr,
    k_out_ptr,
    temperature_ptr,
    temperature,
    lost,
    softcap,
    FIELDS: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < N
    scale = row_output.scale(row, inside, temperature_ptr, temperature, lost)
    s, x_y, held = _merged(numbers_ptr, k_ptr, P, N, row, inside, scale, softcap, FIELDS)
    tl.store(k_out_ptr + row, tl.where(held, ~s[6], s[6]), mask=inside)
    numbers = (s[0], s[1], s[2], s[3], s[4], s[5], x_y)
    if FIELDS > 7:
        numbers += (s[7], s[8], s[9])
    row_output.write_stats(out_ptr, row, inside, N, numbers)


@triton.jit(do_not_specialize=["P", "N", "ignore_index", "total"])
def _finish_states(
    numbers_ptr,
    k_ptr,
    P,
    N,
    target_ptr,
    ignore_index,
    total,
    out,  # `row_output.Outputs`
    temperature_ptr,
    temperature,
    lost,
    weight_ptr,  # [N], of the targets' classes
    z_loss,
    softcap,
    kept,  # 1 - label_smoothing
    smoothing,  # label_smoothing (classes - 1) / classes
    FIELDS: tl.constexpr,
    ROWS: tl.constexpr,
):
    SMOOTHED: tl.constexpr = FIELDS > 7
    SWEPT: tl.constexpr = SMOOTHED and ((weight_ptr is not None) or (softcap is not None))
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < N
    scale = row_output.scale(row, inside, temperature_ptr, temperature, lost)
    s, x_y, held = _merged(numbers_ptr, k_ptr, P, N, row, inside, scale, softcap, FIELDS)
    R, Q, S = s[2], s[4], s[5]
    m, slope_m = row_options.capped(s[0], softcap)
    u, _ = row_options.capped(s[1], softcap)
    m = row_stats.larger(m, u)  # it may be below by a rounding
    u, g, z, r, c, log_c, lse, mu, margin = row_output.write_unlabelled(
        row,
        inside,
        m,
        u,
        s[6],
        R,
        s[3],
        Q,
        scale,
        out,
        True,
    )
    rest, beta = 0.0, 0.0
    if target_ptr is not None:
        _, known, unknown = row_options.label_of(target_ptr, row, inside, ignore_index, 0, total)
        known, unknown = known & held, tl.where(known, float("nan"), unknown)  # of a class that no slice has
        x_y = tl.where(held, x_y, s[0])
        raw_top = x_y == s[0]  # far beyond the cap others have its capped value, but not its slope
        x_y, slope_y = row_options.capped(x_y, softcap)
        top, gap, e_y, other, miss = row_output.of_label(m, r, c, x_y, scale)
        weight, extra, loss = kept, 0.0, gap + log_c
        if weight_ptr is not None:
            weight *= tl.load(weight_ptr + row, mask=inside, other=1.0)
            loss = tl.where(weight == 0.0, log_c, loss)  # such a class may be at -inf
        loss *= weight
        rest, beta = tl.where(top, 0.0, weight), weight
        if SMOOTHED:
            loss += (s[7] + s[9]) * log_c + tl.fma(s[8], scale[0], s[7] * g)
            rest += s[7]
            beta += s[7] + s[9]
        if z_loss is not None:
            extra = z_loss * lse
            loss += extra * lse
            extra += extra
        rest, beta = tl.where(known, rest + extra, unknown), tl.where(known, beta + extra, unknown)
        if out.loss is not None:
            tl.store(out.loss + row, tl.where(known, loss, unknown), mask=inside)
        if out.grad_norm is not None:
            if SWEPT:
                norm = float("nan")
            elif softcap is not None:
                squares = tl.fma(z * z, S, tl.fma(slope_m, slope_m, -(e_y * slope_y) * (e_y * slope_y)))
                others = tl.where(raw_top, z * tl.sqrt(S), tl.sqrt(tl.maximum(squares, 0.0))) * c
                entry = slope_y * (extra - (weight + extra) * miss)
                norm = row_stats.hypotenuse(entry, (weight + extra) * others) * scale[0]
            elif SMOOTHED:
                squares = tl.where(top, z * z * Q, 1.0 + tl.fma(z * z, Q, -e_y * e_y)) * c * c
                all, count = 1.0 + extra, tl.maximum(total - 1, 1).to(tl.float32)
                off = all * miss - smoothing
                variance = tl.maximum(squares - miss * miss / count, 0.0)
                squares = (extra - off) * (extra - off) + off * off / count + all * all * variance
                norm = tl.sqrt(squares) * scale[0]
            else:
                norm = row_output.norm_of(top, e_y, other, miss, z, c, R, Q, scale, weight, extra, z_loss)
            tl.store(out.grad_norm + row, tl.where(known, norm, unknown), mask=inside)
        if out.target_margin is not None:
            below = row_stats.expm1(-gap) * c
            tl.store(out.target_margin + row, tl.where(known, tl.where(top, margin, below), unknown), mask=inside)
    row_output.write_stats(out.stats, row, inside, N, (m, u, z, r, rest, mu, beta))


def row_states(
    rows: Tensor,  # [A, B, C] float16, bfloat16 or float32, stride 1 along C; row a * B + b of N = A * B
    labels: Tensor | None,  # [N] int32 or int64, classes of all slices
    ignore_index: int,
    first: int,  # the class of column 0
    total: int,  # of the classes of all slices
    weight: Tensor | None,  # [C] float32, contiguous
    label_smoothing: float,
    temperature: float | Tensor,  # [N] float32, contiguous
    softcap: float,  # 0: none
    numbers: Tensor,  # [7 or, under label smoothing, 10, N] float32, contiguous
    k: Tensor,  # [N] int64
) -> None:
    """Write the state of every row."""
    options = temperature_of(temperature)
    if label_smoothing == 0.0 and softcap == 0.0:
        out = Outputs(entropy=numbers[3], grad_norm=numbers[4], prediction=k, stats=numbers)  # whose sums are T and Q
        row_scores(rows, labels, ignore_index, out, (*options, None, None), first)
        return
    C = rows.shape[2]
    N = rows.shape[0] * rows.shape[1]
    unit, folded, B, stride_a, stride_b = row_layout(rows)
    tile, columns, warps = tile_of(C)
    option_states[(triton.cdiv(N, tile),)](
        *(rows, labels, ignore_index, C // unit, N, B, stride_a, stride_b, numbers, k, *options),
        *(weight if label_smoothing else None, softcap or None, label_smoothing / total or None, first),
        *(unit, folded, tile, columns, columns >= C),
        num_warps=warps,
        **LAUNCH,
    )


def merge_states(
    numbers: Tensor,  # [P, 7 or 10, N] float32, contiguous, as `row_states` writes them, in the order of the classes
    k: Tensor,  # [P, N] int64, contiguous
    temperature: float | Tensor,  # [N] float32, contiguous
    softcap: float,
    out: Tensor,  # [7 or 10, N]
    k_out: Tensor,  # [N]
) -> None:
    """Write the state of all slices."""
    parts, fields, N = numbers.shape
    _merge_states[(triton.cdiv(N, ROWS),)](
        *(numbers, k, parts, N, out, k_out, *temperature_of(temperature), softcap or None, fields, ROWS), **LAUNCH
    )


def finish_states(
    numbers: Tensor,  # as `merge_states` takes them, as k, temperature and softcap
    k: Tensor,
    target: Tensor | None,  # [N] int32 or int64
    ignore_index: int,
    total: int,
    own_weight: Tensor | None,  # [N] float32, contiguous, of the targets' classes
    label_smoothing: float,
    temperature: float | Tensor,
    softcap: float,
    z_loss: float,
    out: list[Tensor | None],
) -> None:
    """Write the signals of every row, whose slices hold all classes, into those of ``out`` that are not None.

    As `option_scores`; mu is there without the entropy, too. A target that no slice holds is out of range. grad_norm is
    NaN under label smoothing with a weight or a softcap: no such sums tell it.
    """
    parts, fields, N = numbers.shape
    _finish_states[(triton.cdiv(N, ROWS),)](
        *(numbers, k, parts, N, target, ignore_index, total, Outputs(*out), *temperature_of(temperature), own_weight),
        *(z_loss or None, softcap or None, 1.0 - label_smoothing, label_smoothing * (total - 1) / total, fields, ROWS),
        **LAUNCH,
    )
