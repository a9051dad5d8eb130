"""Random numbers as a pure function of a seed, a row's id and a place; plain torch, and the definition of correct.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), with the words
of their Random123. A number belongs to the row's id: not to its place in the batch, to the device or to the backend.
csrc/philox.h and triton_kernels/philox.py are the same.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

from torchassay import checks
from torchassay.backends import for_op

Word = int | Tensor  # a 32-bit word in a Python int or an int64 tensor
_MASK = 0xFFFFFFFF


class Purpose(IntEnum):
    """What is drawn, in the counter's top byte: no two share a counter."""

    LOGIT_NOISE = 0
    FEATURE_NOISE = 1
    PICKS = 2
    CORRUPTIONS = 3
    WEIGHTED_DRAWS = 4


def _wide_product(a: int, b: Word) -> tuple[Word, Word]:
    """The high and the low word of a product; by halves, because int64 holds no product of two words."""
    low = a * (b & 0xFFFF)
    middle = a * (b >> 16) + (low >> 16)
    return middle >> 16, (middle & 0xFFFF) << 16 | (low & 0xFFFF)


def philox4x32(counter: tuple[Word, Word, Word, Word], key: tuple[Word, Word]) -> tuple[Word, Word, Word, Word]:
    c0, c1, c2, c3 = counter
    low, high = key
    for _ in range(10):
        high_a, low_a = _wide_product(0xD2511F53, c0)
        high_b, low_b = _wide_product(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high_b ^ c1 ^ low, low_b, high_a ^ c3 ^ high, low_a
        low, high = low + 0x9E3779B9 & _MASK, high + 0xBB67AE85 & _MASK
    return c0, c1, c2, c3


def random_words(
    seed: Word, purpose: Purpose, row_id: Tensor, draw: Word, n: Word
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Block n of four words of the draw of each row, int64; of an id the low 56 bits count. ``seed``: all 64 bits."""
    high = (row_id >> 32) & 0xFFFFFF | purpose << 24
    return philox4x32((n, draw & _MASK, row_id & _MASK, high), (seed & _MASK, (seed >> 32) & _MASK))


def column_words(row_id: Tensor, seed: Word, purpose: Purpose, draw: Word, columns: int) -> Tensor:
    """Each column's own word, int64 [N, G, 4, 8]: of column 32 g + 8 q + i it is word q of block 8 g + i.

    So eight neighbouring columns share the place of their word, and one block serves four columns.
    """
    groups = -(-columns // 32)
    n = torch.arange(8 * groups, device=row_id.device)
    words = random_words(seed, purpose, row_id[:, None], draw, n)
    return torch.stack([word.unflatten(1, (groups, 8)) for word in words], 2)


def normals(row_id: Tensor, seed: Word, purpose: Purpose, draw: Word, columns: int) -> Tensor:
    """Normal numbers, float32 [N, columns], by Box and Muller's polar method: two from every two words.

    Two neighbouring words w, v give sqrt(-2 ln(((w >> 9) + 1/2) 2^-23)) times the cosine and the sine of 2 pi v 2^-32,
    v signed. ((w >> 9) + 1/2 is exact in float32 and never 2^23, so the logarithm is never 0.)
    """
    words = column_words(row_id, seed, purpose, draw, columns)
    even, odd = words[:, :, 0::2], words[:, :, 1::2]
    radius = torch.sqrt(-2 * torch.log(((even >> 9).double() + 0.5) * 2.0**-23))
    angle = torch.where(odd < 1 << 31, odd, odd - (1 << 32)).double() * (2 * math.pi * 2.0**-32)
    pairs = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], 3)
    return pairs.flatten(1)[:, :columns].float()


def column_uniforms(row_id: Tensor, seed: Word, purpose: Purpose, draw: Word, columns: int) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2^-24, float32 [N, columns]: each of its column's own word."""
    words = column_words(row_id, seed, purpose, draw, columns)
    return (words >> 8).flatten(1)[:, :columns].to(torch.float32) * 2.0**-24


def pick_uniforms(row_id: Tensor, seed: Word, step: int) -> Tensor:
    """What `uniforms` returns, of checked arguments."""
    word, *_ = random_words(seed, Purpose.PICKS, row_id, step, 0)
    return (word >> 8).to(torch.float32) * 2.0**-24


def seed_parts(seed: int | Tensor) -> tuple[Tensor | None, int]:
    """A seed as the ops take it: a tensor, or None and the 64 bits as a signed number."""
    if isinstance(seed, Tensor):
        return seed, 0
    return None, seed - (1 << 64) if seed >= 1 << 63 else seed


def uniforms(row_id: Tensor, *, seed: int | Tensor, step: int, backend: str | None = None) -> Tensor:
    """The numbers that decide which rows are picked in a step: a row is, where its probability is above.

    Counter-based (Philox4x32-10, Salmon et al. 2011): a number depends on its row's id, the seed and the step alone. So
    it is the same on every device and backend, to the bit, and however a batch is split over calls or over ranks.

    Args:
        row_id: [N] int64, of each row; the low 56 bits count.
        seed: a 64-bit int, or a 0-d int64 tensor on row_id's device, which a CUDA graph reads anew in every replay.
        step: of the training, >= 0; modulo 2^32.
        backend: "native", "triton" or "reference" instead of the usual one.

    Returns:
        [N] float32 in [0, 1), multiples of 2^-24.
    """
    checks.draws("uniforms", row_id, seed, step)
    return torch.ops.torchassay.uniforms.default(row_id, *seed_parts(seed), step % (1 << 32), for_op(backend))
