"""``MixedOrder``: easy and hard samples side by side in every batch (MoMBS)."""

from __future__ import annotations

import numpy as np

LARGEST = 1 << 31  # samples: a sum of two ranks and an index fit in 64 bits


def ascending(values: np.ndarray) -> np.ndarray:
    """The indices that sort float32 or uint32 ``values`` from small to large, int64; stable, NaN last.

    An unstable sort of words that hold the value above its index is stable. In place it needs 8 bytes a value, less
    than any argsort, and it is five times as fast as a stable one.
    """
    if values.dtype == np.float32:
        bits = (values + np.float32(0)).view(np.uint32)  # the sum makes -0 a 0, so that the two tie
        bits ^= (bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(1 << 31)  # unsigned words in order of value
        bits[np.isnan(values)] = 0xFFFFFFFF
        values = bits
        del bits
    words = values.astype(np.uint64)
    del values
    words <<= 32
    words |= np.arange(len(words), dtype=np.uint32)
    words.sort()
    words &= 0xFFFFFFFF
    return words.view(np.int64)


def rank_sum(*signals: np.ndarray) -> np.ndarray:
    """The difficulty of each sample: the sum of its ranks in the signals, 0 for the smallest; uint32."""
    total = np.zeros(len(signals[0]), dtype=np.uint32)
    for values in signals:
        total[ascending(values)] += np.arange(len(total), dtype=np.uint32)
    return total


def interleave(order: np.ndarray) -> np.ndarray:
    """First, last, second, last but one, ...; each once, the middle one of an odd number at the end."""
    found = np.empty_like(order)
    half = (len(order) + 1) // 2
    found[0::2] = order[:half]
    found[1::2] = order[half:][::-1]
    return found


def in_batches(
    order: np.ndarray, batch_size: int, mixed: bool, drop_last: bool, rng: np.random.Generator
) -> np.ndarray:
    """The samples in the order of batches, from ``order``, which runs from easy to hard.

    Mixed batches come in random order; what is left over after full batches stands last. If that is to be dropped,
    it is random samples instead of always those of middle difficulty (of the hardest, from easy to hard).
    """
    spare = len(order) % batch_size if drop_last else 0
    left_out = rng.choice(len(order), spare, replace=False)
    order, last = np.delete(order, left_out), order[left_out]
    if mixed:
        order = interleave(order)
        full = len(order) // batch_size
        batches = order[: full * batch_size].reshape(full, batch_size)
        batches[:] = batches[rng.permutation(full)]
    return np.concatenate([order, last])
