"""Samplers that plan a whole epoch at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from torchassay import checks
from torchassay.memory import SampleMemory
from torchassay.samplers.cross_epoch import BEGUN, EPOCH, POSITION, STEP, Batch, CrossEpoch, index_type
from torchassay.scores import Scores


class Planned(CrossEpoch):
    """Base of the samplers that plan a whole epoch at once, from the values that were observed before it."""

    plans_from_memory: ClassVar[bool] = True  # False: every process can plan for itself, whatever it has observed

    def _start(self, plan_dir: str | os.PathLike | None) -> None:
        self._index_type = index_type(self.n)
        folder = self._replicas.folder(plan_dir)
        if folder is None or self._replicas.leader:
            self._open(folder)
            self._replicas.barrier()
        else:
            self._replicas.barrier()
            self._open(folder)
        self._replicas.forget(folder)
        self._planned = False
        self._prepare(False)

    def _open(self, folder: Path | None) -> None:
        self.memory = SampleMemory(self.n, self.fields, path=None if folder is None else folder / "memory")
        self._order = zeros(folder, "order", self.n, self._index_type)
        self._weights = zeros(folder, "weights", self.n, np.float32) if self.weighted else None
        self._length = zeros(folder, "length", 1, np.int64)

    # ---- for users

    def __len__(self) -> int:
        """How many samples of the epoch are this rank's."""
        self._prepare()
        last = self._span(self._batches() - 1) if self._batches() else (0, 0)
        return max(0, self._batches() - 1) * self.batch_size + last[1] - last[0]

    def plan(self) -> np.ndarray:
        """The samples of the epoch, of all ranks, in the order of their batches; not to be written to."""
        self._prepare()
        order = self._order[: self._kept()]
        order.flags.writeable = False
        return order

    # ---- for methods

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
        """What the method is: the samples of an epoch in the order of their batches, and their weights or None."""
        raise NotImplementedError

    def _ready(self, epoch: int) -> bool:
        """Whether everything is known that the plan of an epoch needs."""
        return True

    def _random(self, *purpose: int) -> np.random.Generator:
        """Random numbers of this epoch alone."""
        return np.random.default_rng([self.seed, self.epoch, *purpose])

    def _shuffled(self) -> np.ndarray:
        """All samples in a random order."""
        order = np.arange(self.n, dtype=self._index_type)
        self._random().shuffle(order)
        return order

    # ---- inside

    def _begin(self, epoch: int) -> None:
        replicas = self._replicas
        if self.plans_from_memory and replicas.world > 1 and not replicas.talks and self.position > 0:
            got = f"what rank {replicas.rank} of {replicas.world} has observed alone"
            hint = "initialise torch.distributed, with as many processes, before making the sampler"
            raise RuntimeError(f"{type(self).__name__}: epoch {epoch} can't be planned from {got}; {hint}")
        first = int(self._clock[STEP])
        steps = -(-self._kept() // self.batch_size) if self._planned else 0  # now: behind the merge is the next plan
        self._replicas.merge(self._rows(), first)
        self._clock[STEP] = first + steps
        self._clock[EPOCH], self._clock[POSITION], self._clock[BEGUN] = epoch, 0, 0
        self._planned = False
        self._prepare(False)

    def _rows(self) -> dict[str, np.ndarray]:
        """The memory's arrays."""
        return {name: value.numpy() for name, value in self.memory.state_dict().items() if isinstance(value, Tensor)}

    def _prepare(self, needed: bool = True) -> None:
        if self._planned:
            return
        if not self._ready(self.epoch):
            if needed:
                raise RuntimeError(self._missing())
            return
        with self._counters.scoring():
            if self._replicas.leader:
                self._count_age()
                order, weights = self._plan(self.epoch)
                self._length[0] = len(order)
                if isinstance(self._order, np.memmap):
                    self._copy_plan(order, weights)
                else:
                    self._order, self._weights = order, weights
            self._replicas.barrier()
        self._planned = True

    def _count_age(self) -> None:
        """How old the values are that a plan is made from."""
        if self.plans_from_memory:
            last = self.memory.last_step.numpy()
            never = self.n - np.count_nonzero(last + 1)
            self._counters.stale(int(self._clock[STEP]) * (self.n - never) - int(last.sum()) - never, self.n - never)

    def _missing(self) -> str:
        """What the user must do before the epoch can be planned."""
        return f"{type(self).__name__}: epoch {self.epoch} can't be planned before every sample has been observed"

    def _rounds(self) -> int:
        """How many full batches every rank has."""
        return int(self._length[0]) // (self.batch_size * self._replicas.world)

    def _rest(self) -> int:
        """How many samples are left behind them, over all ranks."""
        return int(self._length[0]) - self._rounds() * self.batch_size * self._replicas.world

    def _kept(self) -> int:
        return int(self._length[0]) - (self._rest() if self.drop_last else 0)

    def _batches(self) -> int:
        return self._rounds() + (self._rest() > 0 and not self.drop_last)

    def _span(self, k: int) -> tuple[int, int]:
        """Where this rank's batch k lies in the order; of a rest with none for it, the first sample of all."""
        rank, world = self._replicas.rank, self._replicas.world
        if k < self._rounds():
            first = (k * world + rank) * self.batch_size
            return first, first + self.batch_size
        before, rest = self._rounds() * self.batch_size * world, self._rest()
        first, last = before + rest * rank // world, before + rest * (rank + 1) // world
        return (first, last) if last > first else (0, 1)

    def _batch(self, k: int) -> Batch:
        first, last = self._span(k)
        return self._order[first:last], None if self._weights is None else self._weights[first:last]

    def _repeated(self, k: int) -> bool:
        """Whether this rank's batch k is only the first sample over again, whose own rank keeps its value."""
        return self._span(k)[0] == 0 and (k > 0 or self._replicas.rank > 0)

    def _keep(self, index: Tensor, scores: Scores | dict[str, Tensor]) -> None:
        if self._repeated(self.position):
            return
        first, last = self._span(self.position)
        step = int(self._clock[STEP]) + torch.arange(first, last) // self.batch_size
        self.memory.update(index, scores, step)

    def _state(self) -> dict:
        """All arrays, where this process keeps them for its machine; of several ranks each adds the values of its own
        samples, which no other rank changes meanwhile."""
        state: dict = {"planned": self._planned}
        if self._replicas.leader:
            state |= {"length": torch.from_numpy(self._length), "order": torch.from_numpy(self._order)}
            state |= {"memory": self.memory.state_dict()}
            state |= {} if self._weights is None else {"weights": torch.from_numpy(self._weights)}
        if self._replicas.talks and self._planned:
            own = self._own()
            state["rows"] = {name: torch.from_numpy(values[own]) for name, values in self._rows().items()}
        return state

    def _load(self, state: dict) -> None:
        said = self._replicas.everyone((self.epoch, self._replicas.leader and "memory" not in state))
        name, found = type(self).__name__, sorted({epoch for epoch, _ in said})
        if len(found) > 1:
            raise checks.InputValueError(f"{name}: the states of all ranks must be of one epoch, got {found}")
        if any(missing for _, missing in said):
            expected = "the arrays of its machine in the state of its lowest rank"
            raise checks.InputValueError(f"{name}: each machine must have {expected}, got ranks placed otherwise")
        if self._replicas.leader:
            order, length = state["order"].numpy(), int(state["length"][0])
            if not (order.dtype == self._index_type and order.ndim == 1 and 0 <= length <= len(order) <= self.n):
                raise checks.InputValueError(f"{name}: the state must have a plan of at most {self.n}, got another")
            if length and not 0 <= order[:length].min() <= order[:length].max() < self.n:
                expected = f"a plan of samples 0 to {self.n - 1}"
                raise checks.InputValueError(f"{name}: the state must have {expected}, got others")
            self._length[0] = length
            self._copy_plan(order, state["weights"].numpy() if self.weighted else None)
            self.memory.load_state_dict(state["memory"])
        self._replicas.barrier()
        if "rows" in state:
            own = self._own()
            for name, values in self._rows().items():
                values[own] = state["rows"][name].numpy()
        self._planned = state["planned"]
        self._replicas.merge(self._rows(), int(self._clock[STEP]))

    def _own(self) -> np.ndarray:
        """The samples of the epoch that this rank observes."""
        rounds, world = self._rounds(), self._replicas.world
        full = self._order[: rounds * world * self.batch_size].reshape(rounds, world, self.batch_size)
        parts = [full[:, self._replicas.rank].reshape(-1)]
        if self._batches() > rounds and not self._repeated(rounds):
            parts.append(self._batch(rounds)[0])
        return np.concatenate(parts)

    def _copy_plan(self, order: np.ndarray, weights: np.ndarray | None) -> None:
        if len(self._order) < len(order):  # the plan in the place of the arrays was a shorter one
            self._order = np.empty(self.n, self._index_type)
            self._weights = None if weights is None else np.empty(self.n, np.float32)
        self._order[: len(order)] = order
        if weights is not None and self._weights is not None:
            self._weights[: len(weights)] = weights


def zeros(folder: Path | None, name: str, n: int, dtype: type) -> np.ndarray:
    """Zeros, in memory or mapped from a file that the first process makes."""
    if folder is None:
        return np.zeros(n, dtype)
    path = folder / name
    return np.memmap(path, dtype, "r+" if path.exists() else "w+", shape=(n,))
