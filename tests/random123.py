"""Philox4x32-10 in Python's integers or NumPy's uint64, and the words its authors publish (Random123, kat_vectors)."""

import numpy as np
import torch

VECTORS = {  # counter and key, lowest word first -> words
    "zeros": ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    "ones": ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}
PICKS = 2  # the tag in the counter's top byte
# What the counter and the key must not lose: signs, and all above 32 bits.
ROWS = (0, 1, 7, 2**31, 2**32 - 1, 2**32, 2**33 + 7, 2**55 + 2**40 + 3, -1, -(2**33) - 5)
SEEDS = (0, 1, 12345, 2**32, 2**40 + 17, 2**63 - 5, -1, -(2**63), -(2**35) + 3)
STEPS = (0, 1, 999, 2**31, 2**32 - 1)


def philox4x32(counter, key) -> tuple[int, int, int, int]:
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b % 2**32, (a >> 32) ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


def words(seed: int, tag: int, row: int, draw: int, n: int) -> tuple[int, int, int, int]:
    counter = n, draw % 2**32, row % 2**32, (row // 2**32) % 2**24 + tag * 2**24
    return philox4x32(counter, (seed % 2**32, seed // 2**32 % 2**32))


def own_words(seed: int, tag: int, row: int, draw: int, columns: int) -> list[np.ndarray]:
    """The four words of the block that serves each column, and the number of the column's own among them."""
    j = np.arange(columns, dtype=np.uint64)
    return [*words(seed, tag, row, draw, j // 32 * 8 + j % 8), j // 8 % 4]


def normals(seed: int, tag: int, row: int, draw: int, columns: int) -> np.ndarray:
    """Box and Muller's normals of a row's columns, float64."""
    w0, w1, w2, w3, q = own_words(seed, tag, row, draw, columns)
    even, odd = np.where(q < 2, w0, w2), np.where(q < 2, w1, w3)
    angle = 2 * np.pi * odd.astype(np.uint32).view(np.int32) / 2**32
    radius = np.sqrt(-2 * np.log(((even >> 9) + 0.5) / 2**23))
    return radius * np.where(q % 2 == 0, np.cos(angle), np.sin(angle))


def column_uniforms(seed: int, tag: int, row: int, draw: int, columns: int) -> np.ndarray:
    *four, q = own_words(seed, tag, row, draw, columns)
    return (np.choose(q.astype(np.int64), four) >> 8) / 2**24


def place(counter, key) -> tuple[int, int, int, int, int]:
    """(seed, tag, row, draw, n) with this counter and key; seed as a signed int64."""
    n, draw, low, high = counter
    seed = key[1] * 2**32 + key[0]
    return seed - 2**64 if seed >= 2**63 else seed, high >> 24, (high % 2**24) * 2**32 + low, draw, n


def uniforms(rows, seed: int, step: int) -> torch.Tensor:
    """What decides on picks: the top 24 bits of the first word."""
    return torch.tensor([(words(seed, PICKS, row, step, 0)[0] >> 8) / 2**24 for row in rows])
