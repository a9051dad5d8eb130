"""The uncertainty of every row over several draws: noisy copies of it, or the members of an ensemble.

    y_t = ((x - top) + std * normals of draw t) * scale, or member t itself        p_t = softmax(y_t)
    noisy_entropy = mean of H(p_t)      predictive_entropy = H(mean of p_t)      mutual_information = their difference

One kernel sums up every draw for itself, another makes the same noise again for the mean of the draws. A lane walks
blocks of four columns, one Philox call for the four. Its state (M, S, T, K) is an online sum that keeps the top class
K out, so that a confident draw keeps its digits: over all columns but K, relative to M = y_K,

    S = sum e^(y - M)      T = sum e^(y - M) (M - y)      H = log1p(S) + T / (1 + S)

The mean of the draws keeps the top class of draw 0 out: if the mean is confident, every draw is, and of that class.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torchassay.triton_kernels import philox, row_output, row_stats
from torchassay.triton_kernels.row_scores import LAUNCH, row_layout

NO_COLUMN = tl.constexpr(2**31 - 1)


@triton.jit
def _noise(top_ptr, std_ptr, std, scale_ptr, scale, row_id_ptr, seed_ptr, seed, row, inside):
    """What makes the noisy copies of rows: top, std, scale, seed and id."""
    top = tl.load(top_ptr + row, mask=inside, other=0.0)
    top = tl.maximum(top, row_stats.LOWEST, propagate_nan=tl.PropagateNan.ALL)
    top = tl.where(top == row_stats.INFINITY, float("nan"), top)
    if std_ptr is not None:
        std = tl.load(std_ptr + row, mask=inside, other=0.0)
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + row, mask=inside, other=1.0)
    row_id = row
    if row_id_ptr is not None:
        row_id = tl.load(row_id_ptr + row, mask=inside, other=0)
    if seed_ptr is not None:
        seed = tl.load(seed_ptr)
    return top, std, scale, seed, row_id


@triton.jit
def _logits(start, n, inside, C):
    """The logits of a block; beyond the row -inf, which adds nothing, and NaN for +inf, which poisons the row."""
    x = ()
    for q in tl.static_range(4):
        column = philox.first_column(n) + 8 * q
        loaded = tl.load(start + column, mask=inside & (column < C), other=-row_stats.INFINITY).to(tl.float32)
        x += (tl.where(loaded == row_stats.INFINITY, float("nan"), loaded),)
    return x


@triton.jit
def _noisy(x, noise, draw, n):
    """The block with the noise of a draw."""
    top, std, scale, seed, row_id = noise
    w0, w1, w2, w3 = philox.random_words(seed, philox.LOGIT_NOISE, row_id, tl.full((1, 1), draw, tl.int64), n)
    normal = philox.normals_of(w0, w1, w2, w3)
    y = ()
    for q in tl.static_range(4):
        y += (tl.fma(std, normal[q], x[q] - top) * scale,)
    return y


@triton.jit
def _one_more(M, S, T, K, y, column):
    """A lane's state with one more column: the lower of it and the top so far joins the sums.

    Where that is -inf, as the top of an empty state is, it adds exactly 0; NaN reaches the sums.
    """
    up = y > M
    high = row_stats.larger(M, y)
    low = tl.minimum(M, y, propagate_nan=tl.PropagateNan.ALL)
    d, e = row_stats.exp(low - row_stats.larger(high, row_stats.LOWEST), True)
    kept = tl.where(up, e, 1.0)
    joining = tl.where(up, 1.0 + S, 1.0)
    T = tl.fma(kept, T, -d * e * joining)
    return high, tl.fma(kept, S, e), T, tl.where(up, column, K)


@triton.jit(do_not_specialize=["seed", "draws", "stride_t", "C", "N", "B", "stride_a", "stride_b"])
def _draw_states(
    rows_ptr,
    top_ptr,  # None: an ensemble
    std_ptr,  # None: std, and so on
    std,
    scale_ptr,
    scale,
    row_id_ptr,
    seed_ptr,
    seed: tl.int64,
    states_ptr,  # [3, draws, N]: H, M and 1 / (1 + S) of every draw
    tops_ptr,  # [N]: the top class of draw 0
    draws,
    stride_t,
    C,
    N,
    B,
    stride_a,
    stride_b,
    FOLDED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """One program sums up one draw of ROWS rows."""
    draw = tl.program_id(0) % draws
    row = ((tl.program_id(0) // draws).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    inside = row < N
    start = row_output.row_start(rows_ptr, row, B, stride_a, stride_b, 1, FOLDED)
    if top_ptr is None:
        start += draw.to(tl.int64) * stride_t
    else:
        noise = _noise(top_ptr, std_ptr, std, scale_ptr, scale, row_id_ptr, seed_ptr, seed, row, inside)
    M = tl.full([ROWS, BLOCKS], -row_stats.INFINITY, tl.float32)
    S = tl.zeros([ROWS, BLOCKS], tl.float32)
    T = tl.zeros([ROWS, BLOCKS], tl.float32)
    K = tl.full([ROWS, BLOCKS], NO_COLUMN, tl.int32)
    for tile in range(0, tl.cdiv(C, 4 * BLOCKS)):
        n = (tile * BLOCKS + tl.arange(0, BLOCKS))[None, :]
        y = _logits(start, n, inside, C)
        if top_ptr is not None:
            y = _noisy(y, noise, draw, n)
        for q in tl.static_range(4):
            M, S, T, K = _one_more(M, S, T, K, y[q], philox.first_column(n) + 8 * q)

    # The lane that holds the top class keeps it out, the tops of the others join.
    m = tl.max(M, axis=1)[:, None]
    k = tl.min(tl.where(m == M, K, NO_COLUMN), axis=1)[:, None]
    d, e = row_stats.exp(M - row_stats.larger(m, row_stats.LOWEST), True)
    T = tl.sum(tl.where(k == K, T, e * tl.fma(-d, 1.0 + S, T)), axis=1)[:, None]
    S = tl.sum(tl.where(k == K, S, e * (1.0 + S)), axis=1)[:, None]
    S = tl.where(m == -row_stats.INFINITY, float("nan"), S)
    c = 1.0 / (1.0 + S)
    state = states_ptr + draw.to(tl.int64) * N + row
    tl.store(state, row_stats.log1p(S) + T * c, mask=inside)
    tl.store(state + draws.to(tl.int64) * N, m, mask=inside)
    tl.store(state + 2 * draws.to(tl.int64) * N, c, mask=inside)
    if draw == 0:
        tl.store(tops_ptr + row, k, mask=inside)


@triton.jit
def _apart(p, top):
    """p, or 0 for the top class; -p ln p, or 0 for the top class; 0, or -p ln p for the top class."""
    term = -p * tl.log(tl.where(p > 0.0, p, 1.0))
    return tl.where(top, 0.0, p), tl.where(top, 0.0, term), tl.where(top, term, 0.0)


@triton.jit(do_not_specialize=["seed", "draws", "stride_t", "C", "N", "B", "stride_a", "stride_b"])
def _mixtures(
    rows_ptr,
    top_ptr,
    std_ptr,
    std,
    scale_ptr,
    scale,
    row_id_ptr,
    seed_ptr,
    seed: tl.int64,
    states_ptr,
    tops_ptr,
    draws,
    stride_t,
    C,
    N,
    B,
    stride_a,
    stride_b,
    noisy_entropy_ptr,
    predictive_entropy_ptr,
    mutual_information_ptr,
    FOLDED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """One program averages the draws of ROWS rows, after `_draw_states`."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    inside = row < N
    whole = draws.to(tl.int64) * N
    share = 1.0 / draws.to(tl.float32)
    if (predictive_entropy_ptr is not None) or (mutual_information_ptr is not None):
        start = row_output.row_start(rows_ptr, row, B, stride_a, stride_b, 1, FOLDED)
        k = tl.load(tops_ptr + row, mask=inside, other=0)
        if top_ptr is not None:
            noise = _noise(top_ptr, std_ptr, std, scale_ptr, scale, row_id_ptr, seed_ptr, seed, row, inside)
        miss = tl.zeros([ROWS, BLOCKS], tl.float32)  # the sum of p over all classes but k
        rest = tl.zeros([ROWS, BLOCKS], tl.float32)  # the sum of -p ln p over them
        of_top = tl.zeros([ROWS, BLOCKS], tl.float32)  # -p ln p of k
        for tile in range(0, tl.cdiv(C, 4 * BLOCKS)):
            n = (tile * BLOCKS + tl.arange(0, BLOCKS))[None, :]
            if top_ptr is not None:
                x = _logits(start, n, inside, C)
            p0 = tl.zeros([ROWS, BLOCKS], tl.float32)
            p1 = tl.zeros([ROWS, BLOCKS], tl.float32)
            p2 = tl.zeros([ROWS, BLOCKS], tl.float32)
            p3 = tl.zeros([ROWS, BLOCKS], tl.float32)
            for draw in range(0, draws):
                at = draw * tl.full([1, 1], N, tl.int64) + row
                M = row_stats.larger(tl.load(states_ptr + whole + at, mask=inside, other=0.0), row_stats.LOWEST)
                c = tl.load(states_ptr + 2 * whole + at, mask=inside, other=0.0)
                if top_ptr is None:
                    y = _logits(start + draw * tl.full([1, 1], stride_t, tl.int64), n, inside, C)
                else:
                    y = _noisy(x, noise, draw, n)
                p0 = tl.fma(row_stats.exp(y[0] - M, True)[1], c, p0)
                p1 = tl.fma(row_stats.exp(y[1] - M, True)[1], c, p1)
                p2 = tl.fma(row_stats.exp(y[2] - M, True)[1], c, p2)
                p3 = tl.fma(row_stats.exp(y[3] - M, True)[1], c, p3)
            m0, r0, t0 = _apart(p0 * share, philox.first_column(n) == k)
            m1, r1, t1 = _apart(p1 * share, philox.first_column(n) + 8 == k)
            m2, r2, t2 = _apart(p2 * share, philox.first_column(n) + 16 == k)
            m3, r3, t3 = _apart(p3 * share, philox.first_column(n) + 24 == k)
            miss += (m0 + m1) + (m2 + m3)
            rest += (r0 + r1) + (r2 + r3)
            of_top += (t0 + t1) + (t2 + t3)
        s = tl.sum(miss, axis=1)[:, None]
        confident = tl.minimum(s, 0.5)
        of_top = tl.where(s < 0.5, (confident - 1.0) * row_stats.log1p(-confident), tl.sum(of_top, axis=1)[:, None])
        predictive = tl.sum(rest, axis=1)[:, None] + of_top
        if predictive_entropy_ptr is not None:
            tl.store(predictive_entropy_ptr + row, predictive, mask=inside)
    if (noisy_entropy_ptr is not None) or (mutual_information_ptr is not None):
        noisy = tl.zeros([ROWS, 1], tl.float32)
        for draw in range(0, draws):
            noisy += tl.load(states_ptr + draw * tl.full([1, 1], N, tl.int64) + row, mask=inside, other=0.0)
        noisy *= share
        if noisy_entropy_ptr is not None:
            tl.store(noisy_entropy_ptr + row, noisy, mask=inside)
        if mutual_information_ptr is not None:
            shared = tl.maximum(predictive - noisy, 0.0, propagate_nan=tl.PropagateNan.ALL)
            tl.store(mutual_information_ptr + row, shared, mask=inside)


def draw_scores(
    rows: Tensor,  # [A, B, C], or the members of an ensemble [T, A, B, C]; as in `row_scores`
    top: Tensor | None,  # [N] float32: the largest logit of every row; None: an ensemble
    std: Tensor | float,  # [N] float32, or one number for all
    scale: Tensor | float,  # likewise
    row_id: Tensor | None,  # [N] int64, contiguous; None: 0 to N - 1
    seed_tensor: Tensor | None,  # 0-d int64, instead of seed
    seed: int,  # in [-2^63, 2^63)
    draws: int,  # of an ensemble T
    out: list[Tensor | None],
) -> None:
    """Write noisy_entropy, predictive_entropy and mutual_information ([N] float32) where ``out`` is not None.

    A row with NaN or +inf, or of nothing but -inf, is NaN.
    """
    members = rows if top is None else rows.unsqueeze(0)
    _, A, B, C = members.shape
    N = A * B
    unit, folded, _, stride_a, stride_b = row_layout(members[0])
    layout = (members.stride(0), C, N, B, stride_a * unit, stride_b * unit)
    states = torch.empty(3, draws, N, dtype=torch.float32, device=rows.device)
    tops = torch.empty(N, dtype=torch.int32, device=rows.device)
    stds, scales = ((given, 0.0) if isinstance(given, Tensor) else (None, given) for given in (std, scale))
    given = (rows, top, *stds, *scales, row_id, seed_tensor, seed, states, tops, draws, *layout)
    ROWS, BLOCKS = philox.tile_of(C, 1024)
    grid = (triton.cdiv(N, ROWS) * draws,)
    _draw_states[grid](*given, folded, ROWS, BLOCKS, num_warps=ROWS * BLOCKS // 64, **LAUNCH)
    ROWS, BLOCKS = philox.tile_of(C, 512)  # with more, registers would spill
    grid = (triton.cdiv(N, ROWS),)
    _mixtures[grid](*given, *out, folded, ROWS, BLOCKS, num_warps=ROWS * BLOCKS // 64, **LAUNCH)
