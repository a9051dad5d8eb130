"""The states of rows of logits that a linear head would give, as streaming epilogue of the product's tiles.

A program takes a block of rows through the tiles of one segment of the vocabulary: a tile of logits is a product over
all features, in float32 accumulators, from which one running state a row takes its tops and sums. The logits leave the
chip nowhere, and are not rounded to the dtype of the hidden states on the way; float32 is multiplied as such, never as
TF32. The segments' states merge in the order of classes, as those of slices do (row_states.py). Segments begin at fixed
classes, so a row's bits depend on that row and the head alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torchassay.triton_kernels import row_options, row_output, row_stats
from torchassay.triton_kernels.option_scores import temperature_of
from torchassay.triton_kernels.row_scores import LAUNCH

# A tile is [ROWS, groups, EIGHT]: matrix units spread eight neighbouring columns over lanes, so that the number of a
# group is a constant in the code and takes no register.
EIGHT = tl.constexpr(8)
NO_GROUP = tl.constexpr(2**24)
SEGMENT = 1024  # classes of a program (a guess)
GROUP = 16  # blocks of rows (a guess)


@triton.jit
def _sum(x):
    return tl.sum(tl.sum(x, axis=1), axis=1)


@triton.jit
def _largest(x):
    return row_stats.largest(row_stats.largest(x, 1), 1)


@triton.jit
def _is(column, group, place):
    """Where a tile has each row's column, which is counted from the tile's first."""
    of_place = tl.where(place == (column % EIGHT)[:, None], (column // EIGHT)[:, None], -1)
    return group == of_place[:, None, :]


@triton.jit
def _top(x, m, group, place):
    """The first NaN of each row of a tile or else the lowest column of m, and whether it is a NaN."""
    key = tl.where(x != x, group - NO_GROUP, tl.where(x == m[:, None, None], group, NO_GROUP))
    column = tl.min(tl.min(key, axis=1) * EIGHT + place, axis=1)
    poisoned = column < 0
    return tl.where(poisoned, column + NO_GROUP * EIGHT, column), poisoned


@triton.jit
def _with_tile(state, x, begin, group, place, b, class_weight_ptr, spread, scale, by_row, softcap, MEND: tl.constexpr):
    """The state of the columns so far with a tile of logits behind them; all sums are relative to the second of both.

    A state is (m, u, R, T, Q, S, k) as in row_states.py and, if there is b, (rest, gap, top); but T is not over the
    temperature, and u is LOWEST where there is none. The top shares no sum with the rest.
    """
    m, u, R, T, Q, S, k = state[0], state[1], state[2], state[3], state[4], state[5], state[6]
    tile_m = _largest(x)
    column, poisoned = _top(x, tile_m, group, place)
    later = tile_m > m
    here = _is(tl.where(later, column, -1), group, place)
    x = tl.where(here, -row_stats.INFINITY, x)
    lone = tl.where(later, m, -row_stats.INFINITY)  # joins the rest
    second = row_stats.larger(u, row_stats.larger(lone, _largest(x)))
    v_u = row_stats.reference(row_options.capped(second, softcap)[0])
    before = row_options.capped(u, softcap)[0]
    new = (row_stats.larger(m, tile_m), second)
    k = tl.where((R == R) & (later | poisoned), begin + column, k)

    of_lone, slope = row_options.capped(lone, softcap)
    d, e = row_stats.exp(of_lone - v_u, True, by_row)
    bent = slope * e
    none = R < 0.5
    _, _, S = row_stats.rescaled(before, R, T, S, v_u, by_row, False, True)
    R, T, Q = row_stats.rescaled(before, R, T, Q, v_u, by_row, True, True)
    R, T, Q, S = R + e, tl.fma(-d, e, T), tl.fma(e, e, Q), tl.fma(bent, bent, S)
    origin = v_u[:, None, None]
    v, slope = row_options.capped(x, softcap)
    d, e = row_stats.exp(v - tl.where(poisoned[:, None, None], float("nan"), origin), MEND, scale)
    bent = slope * e
    Q += _sum(e * e)
    S = Q if softcap is None else S + _sum(bent * bent)
    new += (R + _sum(e), T + _sum(-d * e), Q, S, k)
    if b is not None:
        rest, gap, top = state[7], state[8], state[9]
        lost = tl.where(later, top, 0.0)
        away = tl.where(none & (v_u > row_stats.LOWEST), row_stats.INFINITY, v_u - before)
        gap += rest * tl.where(rest == 0.0, 0.0, away) + lost * (v_u - tl.where(lost == 0.0, v_u, of_lone))
        b = tl.where(here, 0.0, b)
        gap += _sum(b * (origin - tl.where(b == 0.0, origin, v)))
        own = spread
        if class_weight_ptr is not None:
            own *= tl.load(class_weight_ptr + begin + column, mask=later, other=0.0)
        new += (rest + lost + _sum(b), gap, tl.where(later, own, top))
    return new


@triton.jit(do_not_specialize=["ignore_index", "first", "N", "V", "D", "stride_n", "stride_v", "segments"])
def _linear_states(
    input_ptr,
    weight_ptr,
    bias_ptr,
    target_ptr,
    ignore_index,
    first,  # the class of row 0 of the weight
    N,
    V,
    D,  # in units of UNIT features, as the strides
    stride_n,
    stride_v,
    numbers_ptr,  # [segments, 7 or 10, N]
    k_ptr,  # [segments, N]
    temperature_ptr,
    temperature,
    lost,
    class_weight_ptr,
    softcap,
    spread,  # label_smoothing / classes of all slices, None for 0
    segments,
    SEGMENT: tl.constexpr,
    GROUP: tl.constexpr,  # blocks of rows that take a segment one after the other: its weights stay in the cache
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FEATURES: tl.constexpr,
    PARTS: tl.constexpr,  # 2: the epilogue takes a tile by halves, with fewer registers
):
    MEND: tl.constexpr = input_ptr.dtype.element_ty == tl.float32
    D = D * UNIT
    program = tl.program_id(0)
    group = program // (GROUP * segments) * GROUP
    blocks = tl.minimum(tl.cdiv(N, ROWS) - group, GROUP)
    program = program % (GROUP * segments)
    segment = program // blocks
    block = (group + program % blocks) * ROWS
    known = block + tl.arange(0, ROWS) < N
    of_block = tl.minimum(tl.arange(0, ROWS), N - 1 - block)
    row = block + of_block
    low = segment * SEGMENT
    high = tl.minimum(low + SEGMENT, V)
    y, here = tl.zeros([ROWS], tl.int32), known
    if target_ptr is not None:
        label = tl.load(target_ptr + row).to(tl.int64)
        here = (label != ignore_index) & (label - first >= low) & (label - first < high)
        y = tl.where(here, label - first, -1).to(tl.int32)
    if temperature_ptr is not None:
        of_row = tl.load(temperature_ptr + row)
        by_row, scale = row_stats.scale_of(of_row, 0.0), row_stats.scale_of(of_row[:, None, None], 0.0)
    else:
        by_row = row_output.scale(block, block >= 0, None, temperature, lost)
        scale = by_row

    feature = tl.arange(0, FEATURES)
    group, place = tl.arange(0, COLUMNS // PARTS // EIGHT)[None, :, None], tl.arange(0, EIGHT)[None, :]
    inputs = input_ptr + block.to(tl.int64) * stride_n * UNIT
    rows_at = of_block[:, None] * stride_n * UNIT + feature[None, :]
    x_y = tl.zeros([ROWS], tl.float32)
    nothing = tl.full([ROWS], -row_stats.INFINITY, tl.float32)
    lowest = tl.full([ROWS], row_stats.LOWEST, tl.float32)
    state = (nothing, lowest, x_y, x_y, x_y, x_y, tl.zeros([ROWS], tl.int32) + low)
    if spread is not None:
        state += (x_y, x_y, x_y)
    for tile in range(0, tl.cdiv(high - low, COLUMNS)):
        begin = low + tile * COLUMNS
        weights = weight_ptr + begin.to(tl.int64) * stride_v * UNIT
        columns_at = tl.minimum(tl.arange(0, COLUMNS), V - 1 - begin)[None, :] * stride_v * UNIT + feature[:, None]
        x = tl.zeros([ROWS, COLUMNS], tl.float32)
        for f in range(0, D, FEATURES):
            h = tl.load(inputs + f + rows_at, mask=feature[None, :] < D - f, other=0.0)
            w = tl.load(weights + f + columns_at, mask=feature[:, None] < D - f, other=0.0)
            if row_stats.INTERPRETED:  # triton 3.6's would multiply the bits of bfloat16
                h, w = h.to(tl.float32), w.to(tl.float32)
            x = tl.dot(h, w, x, input_precision="ieee")
        parts = (x,)
        if PARTS == 2:
            parts = tl.split(tl.permute(tl.reshape(x, [ROWS, 2, COLUMNS // 2]), (0, 2, 1)))
        for i in tl.static_range(PARTS):
            start = begin + i * (COLUMNS // PARTS)
            column = start + group * EIGHT + place[None, :, :]
            inside = group < tl.cdiv(V - start - place, EIGHT)[None, :, :]
            x = tl.reshape(parts[i], [ROWS, COLUMNS // PARTS // EIGHT, EIGHT])
            if bias_ptr is not None:
                x += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
            x = tl.where(inside, x, -row_stats.INFINITY)
            if target_ptr is not None:
                x_y += _sum(tl.where(_is(y - start, group, place), x, 0.0))
            b = None
            if spread is not None:
                b = tl.where(inside, spread, 0.0)
                if class_weight_ptr is not None:
                    b *= tl.load(class_weight_ptr + column, mask=inside, other=0.0)
            state = _with_tile(state, x, start, group, place, b, class_weight_ptr, spread, scale, by_row, softcap, MEND)

    k = state[6].to(tl.int64) + first
    if target_ptr is not None:
        k = tl.where(here, ~k, k)
    segment = segment.to(tl.int64)
    tl.store(k_ptr + segment * N + row, k, mask=known)
    R = state[2]
    u = tl.where(R < 0.5, -row_stats.INFINITY, state[1])
    numbers = (state[0], u, R, state[3] * by_row[0], state[4], state[5], x_y)
    if spread is not None:
        numbers += (state[7], state[8], state[9])
    row_output.write_stats(numbers_ptr + segment * len(numbers) * N, row, known, N, numbers)


def is_large(device: torch.device) -> bool:
    """Whether the matrix units keep their sums, or read their factors, outside the registers: not so before Hopper."""
    return device.type != "cuda" or torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (9, 0)


def tile_of(dtype: torch.dtype, large: bool, smoothed: bool, softcapped: bool) -> tuple[int, int, int, int, int, int]:
    """Rows, columns, features, parts, warps and stages, so that no register spills (triton_static.md)."""
    if dtype == torch.float32:
        return (32, 32, 16, 1, 8, 3) if smoothed else (64, 64, 16, 1, 16, 3)
    if smoothed:
        return 64, 64, 16, 1, 8, 4
    if softcapped or not large:
        return 128, 64, 32, 1, 8, 4
    return 128, 256, 64, 2, 8, 3


def linear_states(
    input: Tensor,  # [N, D] float16, bfloat16 or float32, stride 1 along D
    linear_weight: Tensor,  # [V, D], likewise
    linear_bias: Tensor | None,  # [V]
    labels: Tensor | None,  # [N] int32 or int64, classes of all slices
    ignore_index: int,
    first: int,  # the class of row 0 of the weight
    total: int,  # of the classes of all slices
    weight: Tensor | None,  # [V] float32, contiguous
    label_smoothing: float,
    temperature: float | Tensor,  # [N] float32, contiguous
    softcap: float,  # 0: none
) -> tuple[Tensor, Tensor]:
    """The states of every row's segments, as `row_states.merge_states` takes them."""
    (N, D), V = input.shape, len(linear_weight)
    segments = triton.cdiv(V, SEGMENT)
    fields = 10 if label_smoothing else 7
    numbers = torch.empty(segments, fields, N, dtype=torch.float32, device=input.device)
    k = torch.empty(segments, N, dtype=torch.int64, device=input.device)
    if N == 0:
        return numbers, k
    bias = None if linear_bias is None else linear_bias.contiguous()
    stride_n, stride_v = input.stride(0), linear_weight.stride(0)
    unit = 16 // input.element_size()
    addresses = input.data_ptr() | linear_weight.data_ptr()
    if any(number % unit for number in (D, stride_n, stride_v)) or addresses % 16:
        unit = 1
    *tile, warps, stages = tile_of(input.dtype, is_large(input.device), bool(label_smoothing), bool(softcap))
    _linear_states[(triton.cdiv(N, tile[0]) * segments,)](
        *(input, linear_weight, bias, labels, ignore_index, first),
        *(N, V, D // unit, stride_n // unit, stride_v // unit, numbers, k, *temperature_of(temperature)),
        *(weight if label_smoothing else None, softcap or None, label_smoothing / total or None),
        *(segments, SEGMENT, GROUP, unit, *tile),
        num_warps=warps,
        num_stages=stages,
        **LAUNCH,
    )
    return numbers, k
