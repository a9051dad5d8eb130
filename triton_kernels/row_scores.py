"""Every signal of every row of logits from one read of the logits: which kernel takes which rows, and its launch."""

import torch
import triton
from torch import Tensor
from torchassay.triton_kernels.row_output import Outputs, wanted_sums
from torchassay.triton_kernels.row_scores_long import LANES, TILES, long_rows, row_segments
from torchassay.triton_kernels.row_scores_short import narrow_rows, short_rows

NARROW = 32  # up to this many columns a row is held by one lane,
SHORT = 4096  # up to this many by one to four warps
FEW = 64  # up to this many long rows are cut into segments for programs of their own (a guess)
MANY = 16384  # with this many short rows a program finishes 32 together, one a lane (a guess)
NO_OPTIONS = (None,) * 5
LAUNCH = {"enable_fp_fusion": False}  # every FMA is written out: the same bits from every compiler version


def row_layout(rows: Tensor) -> tuple[int, bool, int, int, int]:
    """How rows lie in memory: (unit, folded, B, stride_a, stride_b), the strides in units.

    A unit is 16 bytes of columns if every row starts at a multiple of it and is a whole number of them, else one
    column. Folded: one stride leads through all rows.
    """
    A, B, C = rows.shape
    stride_a, stride_b, _ = rows.stride()
    folded = True
    if B == 1:
        stride_b = stride_a
    else:
        folded = A == 1 or stride_a == B * stride_b
    if folded:
        stride_a = 0
    vector = 16 // rows.element_size()
    if C % vector or stride_a % vector or stride_b % vector or rows.data_ptr() % 16:
        vector = 1
    return vector, folded, B, stride_a // vector, stride_b // vector


def row_scores(
    rows: Tensor,  # [A, B, C] float16, bfloat16 or float32, stride 1 along C; row a * B + b of N = A * B
    target: Tensor | None,  # [N] int32 or int64
    ignore_index: int,
    out: list[Tensor | None],
    options: tuple = NO_OPTIONS,  # temperatures [N] or None, temperature, lost, weight [C] or None, z_loss
    first: int | None = None,  # the class of column 0 of a slice, for `row_states.row_states`
) -> None:
    """Write the signals of every row into those of the eleven entries of ``out`` that are not None.

    They are those of `scores.ROW_SIGNALS` (each [N] float32, prediction int64) and the stats of the backward ([6, N]
    float32: m, u, z, r, miss = 1 - p_y and mu = t c, which is 0 unless the entropy is asked for). An ignored row has 0,
    a target outside [0, C) NaN in loss, grad_norm, target_margin and miss. What the options are, `option_scores` tells,
    and what the stats are with them.
    """
    out = Outputs(*out)
    sums = wanted_sums(out)
    C = rows.shape[2]
    N = rows.shape[0] * rows.shape[1]
    unit, folded, B, stride_a, stride_b = row_layout(rows)
    head = (rows, target, ignore_index, C // unit, N, B, stride_a, stride_b)
    if C <= NARROW:
        head = (rows, target, ignore_index, C, N, B, stride_a * unit, stride_b * unit)
        narrow_rows[(triton.cdiv(N, 128),)](*head, out, *options, first, folded, 128, C, **LAUNCH)
        return
    if C <= SHORT:
        columns = triton.next_power_of_2(C)
        tile = max(1, 256 // columns)
        groups = 32 // tile if N >= MANY else 1
        warps = max(1, columns // 1024)
        grid = (triton.cdiv(N, groups * tile),)
        shape = (unit, folded, groups, tile, columns)
        short_rows[grid](*head, out, *options, first, *shape, *sums, num_warps=warps, **LAUNCH)
        return
    vector = 16 // rows.element_size()
    tile = LANES.value * vector
    segment = TILES.value * tile
    segments = triton.cdiv(C, segment)
    tail = triton.cdiv(C % segment, tile)
    layout = (unit, folded, vector, tail, *sums)
    states = None
    if N <= FEW and segments >= 4:
        states = torch.empty(N, segments, 4, LANES.value, dtype=torch.float32, device=rows.device)
        where = (C // unit, N, B, stride_a, stride_b)
        row_segments[(N * segments,)](rows, states, *where, *options[:3], *layout, **LAUNCH)
    long_rows[(N,)](*head, out, *options, first, states, *layout, triton.next_power_of_2(segments), **LAUNCH)
