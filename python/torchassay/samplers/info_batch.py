"""``InfoBatch``: epochs without a random part of the samples that are learned well, whose others count for them."""

from __future__ import annotations

import math
import os

import numpy as np
from torch.utils.data import Dataset

from torchassay import checks
from torchassay.samplers.cross_epoch import index_type
from torchassay.samplers.planned import Planned

_UNSEEN = np.float32(3)  # the score of a sample before its first loss, in nats


class InfoBatch(Planned):
    """Unbiased dynamic pruning of epochs, InfoBatch (Qin et al. 2024, arXiv 2303.04947).

    A sample's score is its last loss. An epoch leaves out a random share ``r`` of the samples whose score is below the
    mean over the data set, and the kept ones of those have weight 1 / (1 - r), so that a sample's expected weight is 1;
    the last epochs leave out nothing. The weight travels with the key: train on the mean of weight * loss. ::

        dataset = ta.Indexed(dataset)
        sampler = ta.samplers.InfoBatch(dataset, batch_size=128, epochs=200)
        loader = DataLoader(dataset, batch_size=128, sampler=sampler)
        for epoch in range(200):
            sampler.set_epoch(epoch)
            for x, y, index, weight in loader:
                loss, s = ta.cross_entropy(model(x), y, reduction="none", signals="loss")
                (weight * loss).mean().backward()
                ...
                sampler.observe(index, s)

    Args:
        data, batch_size, seed, drop_last, rank, num_replicas, plan_dir: as in `CrossEpoch`.
        epochs: of the whole training.
        r: in [0, 1), the share that is left out; the authors' value.
        delta: in [0, 1], the share of the epochs that leave out samples; the others, rounded up, come last and are
            whole. The authors' value, 12.5 % of whole epochs.

    A sample that has no loss yet has the score 3, as in the authors' code, where the first epoch is whole therefore:
    no score is below the mean. They keep the whole part of (1 - r) n of n samples below the mean; here it is rounded
    up or down at random, so that the expected sum of an epoch's weights is the number of samples for any n.

    Raises:
        ValueError: an argument out of range.
        TypeError: an argument of another type.

    Example:
        >>> import torch, torchassay as ta
        >>> sampler = ta.samplers.InfoBatch(8, batch_size=4, epochs=10)
        >>> for index in torch.tensor(sampler.plan(), dtype=torch.int64).split(4):
        ...     sampler.observe(index, {"loss": index.float()})  # 0 to 7, 3.5 on average
        >>> sampler.set_epoch(1)
        >>> [weight for index, weight in sorted(sampler)]
        [2.0, 2.0, 1.0, 1.0, 1.0, 1.0]
    """

    weighted = True

    def __init__(
        self,
        data: Dataset | int,
        *,
        batch_size: int,
        epochs: int,
        r: float = 0.5,
        delta: float = 0.875,
        seed: int = 0,
        drop_last: bool = False,
        rank: int | None = None,
        num_replicas: int | None = None,
        plan_dir: str | os.PathLike | None = None,
    ):
        checks.integer("InfoBatch", "epochs", epochs, 1)
        if not 0 <= r < 1:
            raise checks.InputValueError(f"InfoBatch: r must be in [0, 1), got {r}")
        if not 0 <= delta <= 1:
            raise checks.InputValueError(f"InfoBatch: delta must be in [0, 1], got {delta}")
        self.epochs, self.r, self.delta = epochs, r, delta
        super().__init__(
            data,
            batch_size=batch_size,
            seed=seed,
            drop_last=drop_last,
            rank=rank,
            num_replicas=num_replicas,
            plan_dir=plan_dir,
        )

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        whole = math.ceil(round((1 - self.delta) * self.epochs, 9))  # 0.3 of 10 is 3 epochs, also in floats
        if epoch >= self.epochs - whole:
            return self._shuffled(), np.ones(self.n, np.float32)
        loss = self.memory["loss"].numpy()
        return prune(np.where(np.isnan(loss), _UNSEEN, loss), self.r, self._random())

    def _arguments(self) -> dict:
        return super()._arguments() | {"r": self.r, "delta": self.delta}  # epochs may be more, to go on training


def prune(score: np.ndarray, r: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An epoch without a random share ``r`` of the samples whose score is below the mean; those kept weigh 1 / (1 - r).

    How many are kept is rounded up or down at random, so that the expected sum of the weights is the number of samples.

    Returns:
        The samples in random order, and their weights, float32.
    """
    n = len(score)
    # In float32, so that the mean of equal scores is that score and no sample lies below it.
    below = score < np.float32(score.mean(dtype=np.float64))
    well_learned = np.flatnonzero(below).astype(index_type(n))
    rng.shuffle(well_learned)
    kept = int((1 - r) * len(well_learned) + rng.random())
    taken = np.ones(n, bool)
    taken[well_learned[kept:]] = False
    del well_learned
    order = np.flatnonzero(taken).astype(index_type(n))
    rng.shuffle(order)
    return order, np.where(below[order], np.float32(1 / (1 - r)), np.float32(1))
