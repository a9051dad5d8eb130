"""The second protocol: values are kept for every sample, and an epoch is planned, or a batch drawn, from them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from torchassay import checks
from torchassay.data import Indexed
from torchassay.distributed import Replicas
from torchassay.memory import SampleMemory
from torchassay.samplers import states
from torchassay.samplers.counters import REUSE_BINS, Counters
from torchassay.scores import Scores

Batch = tuple[np.ndarray, "np.ndarray | None"]  # indices, and their weights where the method has some

EPOCH, POSITION, STEP, FINISHED, LAG, BEGUN = range(6)  # of the clock


class CrossEpoch(states.Saved, Sampler):
    """Base of the samplers that keep values of every sample; give one to a DataLoader as its ``sampler``.

    ::

        dataset = ta.Indexed(dataset)
        sampler = ta.samplers.MixedOrder(dataset, batch_size=32, pivot=20, by="loss")
        loader = DataLoader(dataset, batch_size=32, sampler=sampler, num_workers=4)
        for epoch in range(sampler.epoch, 100):
            sampler.set_epoch(epoch)
            for x, y, index in loader:
                loss, s = ta.cross_entropy(model(x), y, signals=sampler.needs)
                loss.backward()
                ...
                sampler.observe(index, s)

    Args:
        data: the `torchassay.Indexed` data set, or its length.
        batch_size: that of the DataLoader. What the DataLoader's ``drop_last`` is does not matter; the sampler's does.
        seed: an int >= 0; what comes in which order depends on it, the epoch and the observed values alone.
        drop_last: leave out samples that fill no batch, or with several ranks no batch for each: other ones in each
            epoch. False: they come as a smaller last batch, with several ranks as one for each rank.
        rank, num_replicas: as in `torch.utils.data.DistributedSampler`. Ranks take whole batches, the k-th goes to rank
            k modulo ``num_replicas``, and all get equally many.
        plan_dir: a folder for what the sampler keeps, mapped into memory instead of held in it. Several processes of
            one machine always share what they keep, by default through a temporary folder.

    Several processes construct, call `set_epoch`, iterate, `load_state_dict` alike, as collective calls. What was
    observed on other machines stands in the memory from the next `set_epoch` on.

    `observe` tells what a batch's samples are worth, once a batch and in order, and that the batch is trained on: the
    position in the epoch is what has been observed. What a loader's workers have fetched beyond it comes again after
    `load_state_dict`. A loop that never observes begins an epoch anew after a resume.

    torchdata's `StatefulDataLoader` keeps the sampler's state in its own, and loads it when its next iteration begins:
    `epoch` is not known before. With it, a loop that never observes goes on behind what the loader gave. Where its
    ``snapshot_every_n_steps`` is more than 1, take the state after `observe`; `OnlineImportance` needs it to be 1.

    Raises:
        ValueError: an argument out of range.
        TypeError: an argument of another type; or, of a sampler that gives weights, a data set that is not `Indexed`.
    """

    fields: Mapping[str, str] = {"loss": "last"}  # of the memory
    weighted: ClassVar[bool] = False  # keys are (index, weight)
    memory: SampleMemory

    def __init__(
        self,
        data: Dataset | int,
        *,
        batch_size: int,
        seed: int = 0,
        drop_last: bool = False,
        rank: int | None = None,
        num_replicas: int | None = None,
        plan_dir: str | os.PathLike | None = None,
    ):
        name = type(self).__name__
        n = self._samples(data)
        for argument, value, least in (("data", n, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
            checks.integer(name, argument, value)
            if value < least:
                what = "have at least 1 sample" if argument == "data" else f"be at least {least}"
                raise checks.InputValueError(f"{name}: {argument} must {what}, got {value}")
        self.n, self.batch_size, self.seed, self.drop_last = n, batch_size, seed, bool(drop_last)
        self._replicas = Replicas(name, rank, num_replicas)
        self._clock = np.zeros(6, np.int64)  # by reference in the state, as all that changes
        self._counters = Counters(reuse=False)
        self._start(plan_dir)

    def _samples(self, data: Any) -> int:
        """How many samples ``data`` has."""
        if isinstance(data, int):
            return data
        if not hasattr(data, "__len__"):
            expected = "a data set with a length, or that length"
            raise checks.InputTypeError(f"{type(self).__name__}: data must be {expected}, got {type(data).__name__}")
        if self.weighted and not isinstance(data, Indexed):
            expected = "a torchassay.Indexed, or its length: its keys are pairs of an index and a weight"
            raise checks.InputTypeError(f"{type(self).__name__}: data must be {expected}, got {type(data).__name__}")
        return len(data)

    # ---- for users

    @property
    def needs(self) -> tuple[str, ...]:
        """The signals to observe."""
        signals = (rule.split(" of ")[1] if " of " in rule else name for name, rule in self.fields.items())
        return tuple(dict.fromkeys(signals))

    @property
    def epoch(self) -> int:
        """The epoch that is under way."""
        return int(self._clock[EPOCH])

    @property
    def position(self) -> int:
        """How many batches of the epoch this rank has observed."""
        return int(self._clock[POSITION])

    def set_epoch(self, epoch: int) -> None:
        """Begin ``epoch``: merge what all ranks observed, plan, position 0. The epoch that is under way goes on."""
        name = type(self).__name__
        checks.integer(name, "epoch", epoch, 0)
        self._clock[FINISHED] = 0
        if epoch != self.epoch:
            self._begin(epoch)

    def __iter__(self) -> Keys:
        return Keys(self)

    def observe(self, index: Tensor, scores: Scores | dict[str, Tensor]) -> None:
        """Keep what the next batch's samples are worth, and take the batch as trained on.

        Args:
            index: [B] int64, as the loader gave it.
            scores: `Scores`, or a dict of tensors [B], that hold the signals in ``self.needs``; on any device.

        Raises:
            ValueError: this is not the next batch of this rank, or a signal is missing.
            TypeError: a dtype that does not fit.
        """
        name = f"{type(self).__name__}.observe"
        checks.tensor(name, "index", index)
        if index.dtype != torch.int64:
            raise checks.InputTypeError(f"{name}: index must be int64, got {checks.dtype_name(index.dtype)}")
        expected, _ = self._next(name)
        same = len(index) == len(expected)  # an index on a GPU is taken at its word: to look would mean waiting
        if not same or (index.device.type == "cpu" and not np.array_equal(index.numpy(), expected)):
            want, got = f"batch {self.position} of the epoch, {_shown(expected)}", _shown(index.cpu().numpy())
            hint = f"the loader must have this sampler, batch_size={self.batch_size}, and each batch is observed once"
            raise checks.InputValueError(f"{name}: index must be {want}, got {got}; {hint}")
        with self._counters.scoring():
            self._keep(torch.from_numpy(expected.astype(np.int64)), scores)
        self._counters.scored(len(expected))
        self.advance()

    def advance(self) -> None:
        """Take the next batch as trained on, without values of its samples: for loops around a sampler that plans from
        none. `InStep.batches` does so for the sampler of its loader."""
        index, weight = self._next(f"{type(self).__name__}.advance")
        copy = np.ones(len(index), np.float32) if weight is None else weight.copy()  # the next plan may take its place
        self._counters.picked(torch.from_numpy(copy), torch.from_numpy(index.astype(np.int64)))
        self._clock[POSITION] += 1

    def counters(self) -> dict[str, float | list[int]]:
        """What has been done so far, as plain numbers for any logger: as `InStep.counters`, of this rank.

        ``scoring_ms`` is the time in `observe` and in planning or drawing; ``staleness`` the mean age, in steps, of the
        values that plans or draws were made from.
        """
        visits = self.memory.visits.int().clamp(max=REUSE_BINS - 1)
        return self._counters.as_dict() | {"reuse": torch.bincount(visits, minlength=REUSE_BINS).tolist()}

    def track(self, corrupted: Tensor) -> None:
        """From now on count the share of samples trained on that are ``corrupted`` (bool, one a sample)."""
        self._counters.track(corrupted)

    def state_dict(self) -> dict:
        """Everything that going on needs, by reference, as a module's: what is read or written later is as it is then.
        Every rank keeps its own, all of the same step."""
        mine = self._arguments() | {"clock": torch.from_numpy(self._clock)}
        return mine | {"counters": states.Live(self._counters.state_dict), "own": states.Live(self._state)}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a `state_dict` of a sampler with the same arguments, in as many processes."""
        states.expect(type(self).__name__, state, **self._arguments())
        self._clock[:] = state["clock"].numpy()
        self._counters.load_state_dict(dict(state["counters"].items()))
        self._load(dict(state["own"].items()))
        if self.position < self._batches():  # a loader that fetches ahead was through with the epoch, nobody else
            self._clock[FINISHED] = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}(epoch {self.epoch}, batch {self.position}: {self._counters!r})"

    # ---- for the kinds below

    def __len__(self) -> int:
        """How many samples of the epoch are this rank's."""
        raise NotImplementedError

    def _arguments(self) -> dict:
        """What a state must agree in."""
        own = {"method": type(self).__name__, "n": self.n, "batch_size": self.batch_size, "seed": self.seed}
        return own | {"drop_last": self.drop_last, "rank": self._replicas.rank, "num_replicas": self._replicas.world}

    def _next(self, function: str) -> Batch:
        """The batch at the position."""
        self._prepare()
        if self.position >= self._batches():
            got = f"none left of the {self._batches()} batches of epoch {self.epoch}"
            raise checks.InputValueError(f"{function}: there must be a batch that was not observed, got {got}")
        return self._batch(self.position)

    def _start(self, plan_dir: str | os.PathLike | None) -> None:
        """What a kind keeps beside, in ``plan_dir`` if there is one."""

    def _begin(self, epoch: int) -> None:
        """Another epoch."""
        raise NotImplementedError

    def _prepare(self) -> None:
        """What must be there before the first batch of an epoch."""

    def _batches(self) -> int:
        """How many batches of the epoch are this rank's."""
        raise NotImplementedError

    def _batch(self, k: int) -> Batch:
        """This rank's batch k of the epoch; the same whenever it is asked for."""
        raise NotImplementedError

    def _keep(self, index: Tensor, scores: Scores | dict[str, Tensor]) -> None:
        """Keep the values of the batch at the position."""
        raise NotImplementedError

    def _state(self) -> dict:
        return {}

    def _load(self, state: dict) -> None:
        pass


class Keys(Iterator):
    """What a `CrossEpoch` gives a loader in an epoch, from the position on.

    A loader that keeps a state of its own asks how many batches it was given, and loads that after the sampler's state,
    which may be a younger one.
    """

    def __init__(self, sampler: CrossEpoch):
        self._sampler = sampler
        self._epoch: int | None = None  # known at the first key: a loader may make several of these, and use one
        self._given = 0
        self._keys = self._walk()

    def __next__(self) -> int | tuple[int, float]:
        return next(self._keys)

    def _start(self) -> tuple[int, int]:
        """Where the first key is to come from: the next epoch, if the loop did not tell and this one is through."""
        sampler, clock = self._sampler, self._sampler._clock
        unobserved = clock[POSITION] == clock[BEGUN]
        if clock[FINISHED] and (unobserved or sampler.position >= sampler._batches()):
            return sampler.epoch + 1, 0
        return sampler.epoch, sampler.position

    def _walk(self) -> Iterator[int | tuple[int, float]]:
        sampler = self._sampler
        if self._epoch is None:
            self._epoch, self._given = self._start()
            if self._epoch != sampler.epoch:
                sampler.set_epoch(self._epoch)
        sampler._prepare()
        while self._given < sampler._batches():
            index, weight = sampler._batch(self._given)
            self._given += 1
            yield from index.tolist() if weight is None else zip(index.tolist(), weight.tolist(), strict=True)
        if self._epoch == sampler.epoch:
            sampler._clock[FINISHED] = 1

    def state_dict(self) -> dict[str, int]:
        epoch, given = self._start() if self._epoch is None else (self._epoch, self._given)
        return {"epoch": epoch, "given": given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        clock = self._sampler._clock
        if state["epoch"] != self._sampler.epoch:
            return
        if clock[POSITION] == clock[BEGUN]:  # nobody observes: what was given is what was trained on
            clock[POSITION] = clock[BEGUN] = max(state["given"], self._sampler.position)
        self._epoch, self._given = state["epoch"], min(state["given"], self._sampler.position)


def index_type(n: int) -> type[np.signedinteger[Any]]:
    """The smaller of the integers that hold n indices."""
    return np.int32 if n < 1 << 31 else np.int64


def _shown(index: np.ndarray) -> str:
    dots = ", ..." if len(index) > 4 else ""
    return f"[{', '.join(map(str, index[:4]))}{dots}] ({len(index)} samples)"
