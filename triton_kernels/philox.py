"""Random numbers as a pure function of a seed, a row's id and a place; csrc/philox.h in Triton.

Philox4x32-10 is Triton's own, whose words are Random123's; what the counter says is ours.
"""

import triton
import triton.language as tl
from torch import Tensor
from torchassay.triton_kernels.row_scores import LAUNCH

LOGIT_NOISE, FEATURE_NOISE, PICKS, CORRUPTIONS = (tl.constexpr(tag) for tag in range(4))  # what is drawn
BLOCK = 256  # rows of a program


@triton.jit
def random_words(seed, PURPOSE: tl.constexpr, row, draw, n):
    """The four words of block n of a row's draw; seed and row int64, draw and n of any integer type."""
    high = ((row >> 32) & 0xFFFFFF).to(tl.uint32) | (PURPOSE << 24)
    low = (row & 0xFFFFFFFF).to(tl.uint32)
    return tl.philox(seed, n.to(tl.uint32), draw.to(tl.uint32), low, high)


@triton.jit
def uniform(word):
    """In [0, 1), a multiple of 2^-24."""
    return (word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08


@triton.jit(do_not_specialize=["seed", "step", "N"])
def _uniforms(
    row_id_ptr,
    seed_ptr,  # None: seed
    seed: tl.int64,
    step: tl.int64,
    out_ptr,
    N,
    ROWS: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = at < N
    row = tl.load(row_id_ptr + at, mask=inside, other=0)
    if seed_ptr is not None:
        seed = tl.load(seed_ptr)
    step = tl.full((ROWS,), step, tl.int64)
    word, _, _, _ = random_words(seed, PICKS, row, step, tl.zeros_like(step))
    tl.store(out_ptr + at, uniform(word), mask=inside)


def uniforms(
    row_id: Tensor,  # [N] int64, contiguous
    seed_tensor: Tensor | None,  # 0-d int64, instead of seed
    seed: int,  # in [-2^63, 2^63)
    step: int,  # in [0, 2^32)
    out: Tensor,  # [N] float32
) -> None:
    """Write the number in [0, 1) that decides whether a row is picked in a step."""
    N = len(row_id)
    _uniforms[(triton.cdiv(N, BLOCK),)](row_id, seed_tensor, seed, step, out, N, BLOCK, **LAUNCH)
