"""Samplers that draw every batch when the loader asks for it, from what is known by then."""

from __future__ import annotations

import os

from torch import Tensor

from torchassay.samplers.cross_epoch import BEGUN, EPOCH, LAG, POSITION, STEP, Batch, CrossEpoch


class Drawn(CrossEpoch):
    """Base of the samplers that draw batches from the current memory.

    A loader with workers asks ahead, so a batch is drawn before the ones in flight have been observed: ``num_workers *
    prefetch_factor`` batches old is what it knows. Batches that are drawn and not yet observed are part of the state,
    and come first after a resume, which must prefetch as far as before: another stream would come out otherwise, so
    that is an error.

    There is no communication between ranks: what each draws from is its own matter.
    """

    def _start(self, plan_dir: str | os.PathLike | None) -> None:
        self._queue: list[dict] = []  # drawn and not yet observed: {"batch": k, "index": Tensor, "weight": Tensor}
        self._lags: tuple[int, ...] = ()  # with which the first draw after a resume may come; empty: any

    # ---- for methods

    def _draw(self, k: int) -> tuple[Tensor, Tensor]:
        """What the method is: indices, int64, and weights, float32, of this rank's batch k of the epoch."""
        raise NotImplementedError

    def _turn(self) -> None:
        """An epoch has ended."""

    # ---- inside

    def _begin(self, epoch: int) -> None:
        self._clock[STEP] += self._batches()  # before the method makes epochs shorter
        with self._counters.scoring():
            self._turn()
        self._clock[EPOCH], self._clock[POSITION], self._clock[BEGUN] = epoch, 0, 0
        self._queue.clear()
        self._lags = ()

    def _batch(self, k: int) -> Batch:
        for drawn in self._queue:
            if drawn["batch"] == k:
                return drawn["index"].numpy(), drawn["weight"].numpy()
        lag = k - self.position
        if self._lags and lag not in self._lags:
            expected = f"{self._clock[LAG]} batches ahead, as when the state was saved"
            hint = "use the same num_workers and prefetch_factor"
            raise RuntimeError(f"{type(self).__name__}: the loader must draw {expected}, got {lag}; {hint}")
        self._lags, self._clock[LAG] = (), lag
        with self._counters.scoring():
            index, weight = self._draw(k)
        self._queue.append({"batch": k, "index": index, "weight": weight})
        return index.numpy(), weight.numpy()

    def advance(self) -> None:
        super().advance()
        self._queue[:] = [drawn for drawn in self._queue if drawn["batch"] >= self.position]

    advance.__doc__ = CrossEpoch.advance.__doc__

    def _state(self) -> dict:
        return {"queue": self._queue}

    def _load(self, state: dict) -> None:
        self._queue[:] = [dict(drawn) for drawn in state["queue"]]
        # Behind all that was drawn; or as far as before, where the loader had the first of the queue in its hands. A
        # loop that fetches the batches of several steps at once draws each of them with another lag.
        self._lags = (len(self._queue), int(self._clock[LAG])) if self._queue or self.position > 0 else ()
