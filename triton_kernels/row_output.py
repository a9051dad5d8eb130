"""From the sums of a row to its signals: the addresses of the rows, the finish and the stores, shared by all kernels.

    loss = m - x_y + log1p(r)      entropy = log1p(r) + t c      grad_norm = sqrt((1 + r - e_y)^2 + 1 + z^2 Q - e_y^2) c
    with z = e^(u - m), r = z R, t = z (T + (m - u) R), c = 1 / (1 + r), e_y = e^(x_y - m)

Where the target is the top class, grad_norm = z sqrt(R^2 + Q) c: nothing is subtracted from 1.

Under a scale g, t, m - x_y and the exponents are over the temperature; the loss, times the class weight w, gets
z_loss lse^2 and the gradient by the logits extra p with extra = 2 z_loss lse besides.
"""

from collections import namedtuple

import triton
import triton.language as tl
from torchassay.scores import ROW_SIGNALS
from torchassay.triton_kernels import row_stats

# Where the signals go, and the stats of the backward: a single argument of a kernel, None where nobody asked.
SLOTS = (*ROW_SIGNALS, "stats")
Outputs = namedtuple("Outputs", SLOTS, defaults=[None] * len(SLOTS))


def wanted_sums(out: Outputs, norm: bool = True) -> tuple[bool, bool]:
    """ENTROPY and SQUARES of a kernel: is T for something, is Q? The norm is not made of Q where it is swept for."""
    return out.entropy is not None, out.gini is not None or (norm and out.grad_norm is not None)


@triton.jit
def row_start(rows_ptr, row, B, stride_a, stride_b, UNIT: tl.constexpr, FOLDED: tl.constexpr):
    """The address of a row; strides count units of UNIT elements, and a row index overflows 32 bits times a stride."""
    offset = row * stride_b if FOLDED else row // B * stride_a + row % B * stride_b
    return rows_ptr + offset * UNIT


@triton.jit
def scale(row, inside, temperature_ptr, temperature, lost):
    """`row_stats.scale_of` the rows' temperatures, shaped like ``row``; of a number, if there is no temperature_ptr."""
    if temperature_ptr is not None:
        temperature = tl.load(temperature_ptr + row, mask=inside, other=1.0)
        lost = 0.0
    else:
        temperature = tl.where(inside, temperature, 1.0)
    return row_stats.scale_of(temperature, lost)


@triton.jit
def write_unlabelled(row, inside, m, u, k, R, T, Q, scale, out, ENTROPY: tl.constexpr):
    """Write what needs no target, of T over the temperature. Returns what all else is made of; mu is 0 unless
    ENTROPY."""
    u, g, z, r, c, t = row_stats.finish(m, u, R, T, scale, ENTROPY)
    log_c = row_stats.log1p(r)
    lse = m + log_c if scale is None else tl.fma(m, scale[0], log_c)
    mu = t * c if ENTROPY else 0.0
    if out.entropy is not None:
        tl.store(out.entropy + row, log_c + mu, mask=inside)
    if out.lse is not None:
        tl.store(out.lse + row, lse, mask=inside)
    if out.confidence is not None:
        tl.store(out.confidence + row, c, mask=inside)
    if out.least_confidence is not None:
        tl.store(out.least_confidence + row, r * c, mask=inside)
    if out.gini is not None:
        tl.store(out.gini + row, row_stats.gini(r, z, c, Q), mask=inside)
    if out.prediction is not None:
        tl.store(out.prediction + row, k.to(tl.int64), mask=inside)
    margin = tl.where(u == -row_stats.INFINITY, 1.0, -row_stats.expm1(-g)) * c
    if out.margin is not None:
        tl.store(out.margin + row, margin, mask=inside)
    return u, g, z, r, c, log_c, lse, mu, margin


@triton.jit
def write_stats(stats_ptr, row, inside, N, values):
    """What the backward needs of a row, [len(values), N]."""
    if stats_ptr is not None:
        for i in tl.static_range(len(values)):
            tl.store(stats_ptr + i * N + row, values[i], mask=inside)


@triton.jit
def of_label(m, r, c, x_y, scale):
    """Of the label's logit: is it the top, m - x_y and e_y, the sum of e_j of all classes but it, and 1 - p_y."""
    top = x_y == m
    gone = x_y == -row_stats.INFINITY
    largest = row_stats.reference(m)
    gap, e_y = row_stats.exp_difference(largest, tl.where(gone, largest, x_y), scale)
    gap = tl.where(gone, row_stats.INFINITY, gap)
    e_y = tl.where(gone, 0.0, e_y)
    other = 1.0 + r - e_y
    return top, gap, e_y, other, tl.where(top, r, other) * c


@triton.jit
def norm_of(top, e_y, other, miss, z, c, R, Q, scale, weight, extra, z_loss):
    """The norm of the gradient of weight loss + z_loss lse^2."""
    squares = tl.fma(z * z, Q, -e_y * e_y)
    like = z * tl.sqrt(tl.fma(R, R, Q))
    unlike = tl.sqrt(tl.fma(other, other, 1.0 + squares))
    norm = tl.where(top, like, unlike) * c
    if scale is not None:
        norm *= weight
        if z_loss is not None:  # of weight (p - onehot) + extra p: the label's entry, and all the others
            others = tl.where(top, z * tl.sqrt(Q), tl.sqrt(1.0 + squares)) * c
            all = row_stats.hypotenuse(extra - (weight + extra) * miss, (weight + extra) * others)
            norm = tl.where(extra == 0.0, norm, all)
        norm *= scale[0]
    return norm


@triton.jit
def _write_labelled(
    row,
    inside,
    start,
    m,
    z,
    r,
    c,
    log_c,
    lse,
    margin,
    R,
    Q,
    target_ptr,
    ignore_index,
    C,
    out,
    scale,
    weight_ptr,
    z_loss,
):
    """Write what needs the target, and return what the backward does: rest and beta."""
    y = tl.load(target_ptr + row, mask=inside, other=0).to(tl.int64)
    ignored = y == ignore_index
    known = (y >= 0) & (y < C) & (y != ignore_index)
    unknown = tl.where(ignored, 0.0, float("nan"))
    x_y = tl.load(start + tl.where(known, y, 0), mask=inside, other=-row_stats.INFINITY).to(tl.float32)
    top, gap, e_y, other, miss = of_label(m, r, c, x_y, scale)
    loss, rest, beta = gap + log_c, miss, 0.0
    weight, extra = 1.0, 0.0
    if scale is not None:
        if weight_ptr is not None:
            weight = tl.load(weight_ptr + tl.where(known, y, 0), mask=inside, other=1.0)
            loss = weight * tl.where(weight == 0.0, log_c, loss)  # such a class may be at -inf
        if z_loss is not None:
            extra = z_loss * lse
            loss += extra * lse
            extra += extra
        rest, beta = tl.where(top, 0.0, weight) + extra, tl.where(known, weight + extra, unknown)
    if out.loss is not None:
        tl.store(out.loss + row, tl.where(known, loss, unknown), mask=inside)
    if out.grad_norm is not None:
        norm = norm_of(top, e_y, other, miss, z, c, R, Q, scale, weight, extra, z_loss)
        tl.store(out.grad_norm + row, tl.where(known, norm, unknown), mask=inside)
    if out.target_margin is not None:
        below = row_stats.expm1(-gap) * c
        tl.store(out.target_margin + row, tl.where(known, tl.where(top, margin, below), unknown), mask=inside)
    return tl.where(known, rest, unknown), beta


@triton.jit
def write_state(row, inside, start, m, u, k, sums, target_ptr, ignore_index, C, N, k_ptr, numbers_ptr, first, smoothed):
    """Write the record of a slice, see `row_states.py`; sums and smoothed: (R, T, Q, S) and () or (rest, gap, top)."""
    x_y, found = 0.0, k.to(tl.int64) + first
    if target_ptr is not None:
        y = tl.load(target_ptr + row, mask=inside, other=ignore_index).to(tl.int64)
        here = (y >= first) & (y - first < C) & (y != ignore_index)
        x_y = tl.load(start + tl.where(here, y - first, 0), mask=here, other=0.0).to(tl.float32)
        found = tl.where(here, ~found, found)
    tl.store(k_ptr + row, found, mask=inside)
    u = tl.where(sums[0] < 0.5, -row_stats.INFINITY, u)  # there is none
    write_stats(numbers_ptr, row, inside, N, (m, u) + sums + (x_y,) + smoothed)  # noqa: RUF005 - not in Triton


@triton.jit
def write(
    row,  # int64, scalar or [ROWS], as all that follows up to Q
    inside,  # row < N
    start,  # the address of the row
    m,
    u,
    k,  # the top class; anything if no prediction is asked for
    R,
    T,
    Q,
    target_ptr,
    ignore_index,
    C,
    N,
    out,
    scale,  # None without options, which are these three
    weight_ptr,
    z_loss,
    first,  # None, or the class of column 0 of a slice
):
    """Finish the rows and write what was asked for; of a slice its record."""
    if scale is not None:
        T = T * scale[0]
    if first is not None:
        sums = (R, T, Q, Q)
        write_state(
            row, inside, start, m, u, k, sums, target_ptr, ignore_index, C, N, out.prediction, out.stats, first, ()
        )
    else:
        u, _, z, r, c, log_c, lse, mu, margin = write_unlabelled(
            row, inside, m, u, k, R, T, Q, scale, out, out.entropy is not None
        )
        rest, beta = 0.0, 0.0
        if target_ptr is not None:
            rest, beta = _write_labelled(
                row,
                inside,
                start,
                m,
                z,
                r,
                c,
                log_c,
                lse,
                margin,
                R,
                Q,
                target_ptr,
                ignore_index,
                C,
                out,
                scale,
                weight_ptr,
                z_loss,
            )
        if scale is None:
            write_stats(out.stats, row, inside, N, (m, u, z, r, rest, mu))
        else:
            write_stats(out.stats, row, inside, N, (m, u, z, r, rest, mu, beta))
