"""Random numbers as a pure function of a seed, a row's id and a place; csrc/philox.h in Triton.

Philox4x32-10 is Triton's own, whose words are Random123's; what the counter says is ours. Column j of a row has word
(j // 8) % 4 of block (j // 32) * 8 + j % 8: neighbouring lanes take neighbouring columns, and no word is left over.
"""

import triton
import triton.language as tl
from torch import Tensor
from torchassay.triton_kernels import row_stats
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


@triton.jit
def first_column(n):
    """Of the four columns of block n, which lie 8 apart. Written by division: the compiler sees runs of eight."""
    return (n // 8) * 32 + n % 8


@triton.jit
def _radius(word):
    """sqrt(-2 ln v) of v = ((word >> 9) + 1/2) 2^-23, which is 2^n (1 + f) with 1 + f in [sqrt(1/2), sqrt(2))."""
    v = ((word >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    bits = v.to(tl.int32, bitcast=True)
    n = (bits - 0x3F3504F3) >> 23
    f = (bits - (n << 23)).to(tl.float32, bitcast=True) - 1.0
    p = tl.fma(f, 0.0897952988743782, -0.14426879584789276)
    p = tl.fma(f, p, 0.14883683621883392)
    p = tl.fma(f, p, -0.1655178815126419)
    p = tl.fma(f, p, 0.19963477551937103)
    p = tl.fma(f, p, -0.25002583861351013)
    p = tl.fma(f, p, 0.3333393335342407)
    p = tl.fma(f, p, -0.4999998211860657)
    p = tl.fma(f * f, p, f)  # ln(1 + f), to a relative 3e-8
    n = n.to(tl.float32)
    return tl.sqrt_rn(tl.fma(n, -2.0 * row_stats.LN2_HIGH, tl.fma(n, -2.0 * row_stats.LN2_LOW, -2.0 * p)))


@triton.jit
def _signed(x, word):
    """x, or -x where the word's top bit is set."""
    return (x.to(tl.uint32, bitcast=True) ^ (word & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def _cosine_sine(word):
    """Of the angle 2 pi int32(word) 2^-32: an eighth of a turn on, the top two bits say the quadrant, and the rest is
    an angle a in [-pi/4, pi/4) beyond its axis."""
    turned = word + 0x20000000
    a = ((turned & 0x3FFFFFFF).to(tl.int32) - 0x20000000).to(tl.float32) * 1.4629180792671596e-09
    square = a * a
    s = tl.fma(square, -0.000194956359337084, 0.00833197869360447)
    s = tl.fma(square, s, -0.16666650772094727)
    s = tl.fma(a * square, s, a)
    c = tl.fma(square, 2.4390450562350452e-05, -0.0013886763481423259)
    c = tl.fma(square, c, 0.04166662320494652)
    c = tl.fma(square, c, -0.5)
    c = tl.fma(square, c, 1.0)
    odd = (turned & 0x40000000) != 0
    return _signed(tl.where(odd, s, c), turned + 0x40000000), _signed(tl.where(odd, c, s), turned)


@triton.jit
def normals_of(w0, w1, w2, w3):
    """The normals of a block's four columns (Box and Muller, 1958), each within 1e-6."""
    r, r2 = _radius(w0), _radius(w2)
    c, s = _cosine_sine(w1)
    c2, s2 = _cosine_sine(w3)
    return r * c, r * s, r2 * c2, r2 * s2


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


@triton.jit(do_not_specialize=["seed", "draw", "N", "columns"])
def _normals(
    row_id_ptr,
    seed_ptr,  # None: seed
    seed: tl.int64,
    draw: tl.int64,
    out_ptr,
    N,
    columns,
    PURPOSE: tl.constexpr,
    UNIFORM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    tiles = tl.cdiv(columns, 4 * BLOCKS)
    row = ((tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    n = (tl.program_id(0) % tiles * BLOCKS + tl.arange(0, BLOCKS))[None, :]
    row_id = tl.load(row_id_ptr + row, mask=row < N, other=0)
    if seed_ptr is not None:
        seed = tl.load(seed_ptr)
    w0, w1, w2, w3 = random_words(seed, PURPOSE, row_id, tl.full((1, 1), draw, tl.int64), n)
    found = (uniform(w0), uniform(w1), uniform(w2), uniform(w3)) if UNIFORM else normals_of(w0, w1, w2, w3)
    for q in tl.static_range(4):
        column = first_column(n) + 8 * q
        tl.store(out_ptr + row * columns + column, found[q], mask=(row < N) & (column < columns))


def tile_of(columns: int, most: int) -> tuple[int, int]:
    """(ROWS, BLOCKS) of a program: up to ``most`` blocks of a row, of short rows several."""
    blocks = min(most, 8 * triton.next_power_of_2(triton.cdiv(columns, 32)))
    return max(1, 128 // blocks), blocks


def normals(
    row_id: Tensor,  # [N] int64, contiguous
    seed_tensor: Tensor | None,  # 0-d int64, instead of seed
    seed: int,  # in [-2^63, 2^63)
    purpose: int,
    draw: int,  # in [0, 2^32)
    uniform: bool,
    out: Tensor,  # [N, columns] float32, contiguous
) -> None:
    """Write the normals of a draw of every row or, if uniform, the numbers in [0, 1) of the same columns."""
    N, columns = out.shape
    ROWS, BLOCKS = tile_of(columns, 256)
    grid = (triton.cdiv(N, ROWS) * triton.cdiv(columns, 4 * BLOCKS),)
    _normals[grid](row_id, seed_tensor, seed, draw, out, N, columns, purpose, uniform, ROWS, BLOCKS, **LAUNCH)
