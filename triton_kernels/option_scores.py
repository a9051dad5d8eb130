"""The signals of rows whose loss has options: which kernels take which options, and their launch.

With v = softcap tanh(x / softcap) or x, p = softmax(v / temperature) and a target b_j >= 0, B = sum b,

    loss = sum b_j (lse - v_j / temperature) + z_loss lse^2      beta = B + 2 z_loss lse
    d loss / d x_j = slope_j / temperature (beta p_j - b_j)      slope_j = 1 - tanh^2(x_j / softcap)

A temperature changes the exponents of the plain kernels, a class weight and a z-loss their finish: so `row_scores`
takes these from one read. Everything else sums over the classes what depends on the target, and is for `option_rows`.
"""

import numpy as np
import triton
from torch import Tensor
from torchassay.triton_kernels.option_rows import option_rows
from torchassay.triton_kernels.row_output import Outputs, wanted_sums
from torchassay.triton_kernels.row_scores import LAUNCH, row_layout, row_scores

WHOLE = 4096  # up to this many columns stay in registers; longer rows are walked in tiles as wide


def temperature_of(temperature: float | Tensor) -> tuple[Tensor | None, float, float]:
    """As the kernels take it: one a row [N] or None, else a number, and what its rounding to float32 loses."""
    if isinstance(temperature, Tensor):
        return temperature, 1.0, 0.0
    rounded = float(np.float32(temperature))
    return None, rounded, temperature - rounded


def tile_of(C: int) -> tuple[int, int, int]:
    """Rows, columns and warps of a program, for `option_rows` and `option_states`."""
    columns = min(WHOLE, triton.next_power_of_2(C))
    return max(1, 256 // columns), columns, max(1, columns // 512)  # 16 bytes a thread, in warps of 64 too


def option_scores(
    rows: Tensor,  # [A, B, C] float16, bfloat16 or float32, stride 1 along C; row a * B + b of N = A * B
    labels: Tensor | None,  # [N] int32 or int64
    probabilities: Tensor | None,  # [N, C] float32, contiguous, in the place of labels
    weight: Tensor | None,  # [C] float32, contiguous
    label_smoothing: float,
    temperature: float | Tensor,  # [N] float32, contiguous
    softcap: float,  # 0: none
    z_loss: float,
    ignore_index: int,
    out: list[Tensor | None],
) -> None:
    """Write the signals of every row into those of the eleven entries of ``out`` that are not None.

    As `row_scores`, except that the stats are [7, N]: m, u (logits, capped), z, r, rest = sum of b_j over all classes
    but the top one + 2 z_loss lse, mu and beta. Of an ignored row rest and beta are 0, of one whose target is outside
    [0, C) they are NaN. There is no target_margin for probabilities.
    """
    options = (*temperature_of(temperature), weight, z_loss or None)
    if probabilities is None and label_smoothing == 0.0 and softcap == 0.0:
        row_scores(rows, labels, ignore_index, out, options)
        return
    out = Outputs(*out)
    C = rows.shape[2]
    N = rows.shape[0] * rows.shape[1]
    unit, folded, B, stride_a, stride_b = row_layout(rows)
    tile, columns, warps = tile_of(C)
    option_rows[(triton.cdiv(N, tile),)](
        rows,
        labels,
        probabilities,
        ignore_index,
        C // unit,
        N,
        B,
        stride_a,
        stride_b,
        out,
        *options,
        softcap or None,
        1.0 - label_smoothing,
        label_smoothing / C if label_smoothing else None,
        unit,
        folded,
        tile,
        columns,
        C <= WHOLE,
        *wanted_sums(out, norm=False),
        num_warps=warps,
        **LAUNCH,
    )
