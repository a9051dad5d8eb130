"""``BlockWeights``: weights that change a few at a time, drawn from exactly, however many there are."""

from __future__ import annotations

import numpy as np

from torchassay import checks

BLOCK = 256  # entries that share a sum: a draw reads every sum once and one block
AT_ONCE = 4096  # draws whose blocks are in memory at the same time: 8 MiB


class BlockWeights:
    """Weights of n entries in blocks, each with its sum in float64.

    A draw finds its block by bisecting the running sums of the blocks, and its entry by the running sum inside the
    block. A change recomputes the sums of the blocks it touches from their entries, so nothing drifts, and weights set
    one by one draw exactly what the same weights set at once do. n may be anything; PyTorch's multinomial ends at 2^24.

    Args:
        values: float32 [n], finite and at least 0; copied.
        active: bool [n], copied: the others weigh 0 whatever their value is, now and later. None: all of them are.

    An entry of weight 0 is never drawn, unless all that could be weigh 0: those are drawn uniformly.
    """

    def __init__(self, values: np.ndarray, active: np.ndarray | None = None):
        n = len(values)
        self._rows = np.zeros((-(-n // BLOCK), BLOCK), np.float32)
        self._values = self._rows.reshape(-1)[:n]
        self._sums = np.zeros(len(self._rows))
        self._active = None if active is None else active.copy()
        self.count = n if active is None else int(np.count_nonzero(active))
        for first in range(0, n, AT_ONCE * BLOCK):
            self.update(np.arange(first, min(n, first + AT_ONCE * BLOCK)), values[first : first + AT_ONCE * BLOCK])

    def __len__(self) -> int:
        return len(self._values)

    @property
    def total(self) -> float:
        return float(self._sums.sum())

    def update(self, index: np.ndarray, values: np.ndarray) -> None:
        """Set the weights at ``index`` (int64 [k], unique) to ``values`` (float32 [k])."""
        wrong = ~((values >= 0) & (values < np.inf))
        if wrong.any():
            at = int(np.argmax(wrong))
            raise checks.InputValueError(
                f"BlockWeights: values must be finite and at least 0, got {values[at]} at {index[at]}"
            )
        self._put(index, values if self._active is None else np.where(self._active[index], values, np.float32(0)))

    def probability(self, index: np.ndarray) -> np.ndarray:
        """The chance of each entry at one draw: float64, of the shape of ``index``."""
        total = self.total
        if total > 0:
            return self._values[index].astype(np.float64) / total
        return (np.ones(len(self), bool) if self._active is None else self._active)[index] / self.count

    def draw(self, rng: np.random.Generator, size: int, replacement: bool = True) -> np.ndarray:
        """``size`` entries, int64, each in proportion to its weight.

        Without replacement this is successive sampling: every next one in proportion to its weight among those not yet
        drawn. Where these all weigh 0, the rest is drawn uniformly.
        """
        if replacement:
            return self._draw(rng, size)
        if size > self.count:
            raise checks.InputValueError(f"BlockWeights.draw: size must be at most {self.count}, got {size}")
        drawn, weights = np.empty(0, np.int64), np.empty(0, np.float32)
        while len(drawn) < size:
            more = self._draw(rng, size - len(drawn), drawn)
            more = more[np.sort(np.unique(more, return_index=True)[1])]  # those drawn again count once, the first time
            drawn, weights = np.concatenate([drawn, more]), np.concatenate([weights, self._values[more]])
            self._put(more, 0)
        self._put(drawn, weights)
        return drawn

    def _put(self, index: np.ndarray, values: np.ndarray | int) -> None:
        self._values[index] = values
        blocks = np.unique(index // BLOCK)
        self._sums[blocks] = self._rows[blocks].astype(np.float64).sum(axis=1)

    def _draw(self, rng: np.random.Generator, size: int, without: np.ndarray | None = None) -> np.ndarray:
        upto = np.cumsum(self._sums)
        if not len(upto) or upto[-1] == 0:
            pool = np.arange(len(self)) if self._active is None else np.flatnonzero(self._active)
            return rng.choice(pool if without is None else np.setdiff1d(pool, without), size)
        blocks = np.searchsorted(upto, rng.random(size) * upto[-1], side="right")
        place, inside = np.empty(size, np.int64), rng.random(size)
        for first in range(0, size, AT_ONCE):
            part = slice(first, first + AT_ONCE)
            sums = np.cumsum(self._rows[blocks[part]], axis=1, dtype=np.float64)
            place[part] = (sums <= (inside[part] * sums[:, -1])[:, None]).sum(axis=1)
        return blocks * BLOCK + place
