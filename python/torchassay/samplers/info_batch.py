"""``InfoBatch``: epochs without a random part of the samples that are learned well, whose others count for them."""

from __future__ import annotations

import numpy as np

_TAG = 0x1F0  # of this method's random numbers
_UNSEEN = 3.0  # the score of a sample before its first loss, in nats


def prune(score: np.ndarray, r: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An epoch without a random share ``r`` of the samples whose score is below the mean; those kept weigh 1 / (1 - r).

    How many are kept is rounded up or down at random, so that the expected sum of the weights is the number of samples.

    Returns:
        The samples in random order, and their weights, float32.
    """
    n = len(score)
    index_type = np.int32 if n < 1 << 31 else np.int64
    # In float32, so that the mean of equal scores is that score and no sample lies below it.
    below = score < np.float32(score.mean(dtype=np.float64))
    well_learned = np.flatnonzero(below).astype(index_type)
    rng.shuffle(well_learned)
    kept = int((1 - r) * len(well_learned) + rng.random())
    taken = np.ones(n, bool)
    taken[well_learned[kept:]] = False
    del well_learned
    order = np.flatnonzero(taken).astype(index_type)
    rng.shuffle(order)
    return order, np.where(below[order], np.float32(1 / (1 - r)), np.float32(1))
