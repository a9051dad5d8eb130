"""``BalanceAware``: balance-aware sequence sampling (BSS) of samples with several modalities."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from torchassay import checks
from torchassay.samplers.cross_epoch import FINISHED, STEP, index_type
from torchassay.samplers.forwards import evaluating, index_of, unwrapped
from torchassay.samplers.planned import Planned, zeros
from torchassay.scores import Scores

CRITERIA = {"both": ("similarity", "loss"), "similarity": ("similarity",), "loss": ("loss",)}
_TAG = 0xB55  # of this method's random numbers
_ONE = (1 << 15) - 1  # what a smoothed score of 1 is kept as
_PART = 1 << 16  # samples at a time, where a temporary copy of all would cost memory


class BalanceAware(Planned):
    """Balance-aware sequence sampling, BSS (arXiv 2501.01470, IJCAI 2025), for data of two or more modalities.

    A sample's score s, in [-1, 1], is its similarity less its loss (see `balance_scores`), each moved and scaled to [0,
    1] over the data set: high for samples that are easy and whose modalities agree. The heuristic scheduler (BSS-H)
    trains on a growing share of the highest ones; the learned one (BSS-L) on all, in an order in which high ones tend
    to come first. Formulas are those of the authors' slides and, where these are silent, of their code. ::

        def scores(model, batch):
            audio, video, target, _ = batch
            heads, fused = model(audio, video)  # heads: (logits of audio, logits of video)
            return ta.samplers.balance_scores(heads, fused, target)

        dataset = ta.Indexed(dataset)
        sampler = ta.samplers.BalanceAware(dataset, batch_size=32)
        loader = DataLoader(dataset, batch_size=32, sampler=sampler)
        sampler.measure(DataLoader(dataset, batch_size=256), model, scores)
        for epoch in range(100):
            sampler.set_epoch(epoch)
            for audio, video, target, index in loader:
                heads, fused = model(audio, video)
                ...
                sampler.observe(index, ta.samplers.balance_scores(heads, fused, target))

    Args:
        data, batch_size, seed, drop_last, rank, num_replicas, plan_dir: as in `CrossEpoch`.
        scheduler: "heuristic": epoch t = 1, 2, ... takes the floor(N lambda(t)) highest scores in random order, at
            least one, lambda(t) = min(1, sqrt(lambda0^2 + (1 - lambda0^2) t / t_grow)). The scores are those that
            `measure` found before the first update: what is observed changes nothing, and ``observe(index, {})`` will
            do. "learned": all samples, drawn without replacement (see ``mode``).
        criterion: "both", or the ablations "similarity" (s in [0, 1]) and "loss" (s in [-1, 0]), which measure and
            observe that one alone.
        mode: what the learned scheduler draws with. "paper": p = softmax of the smoothed score s', which is s at the
            first rescoring and (1 - beta) s' + beta s at each later one. "official": p in proportion to s + 1.01 of the
            last rescoring, without smoothing, as the authors' code does. That the N draws of an epoch are without
            replacement is theirs too; the paper does not say.
        lambda0, t_grow: the first share and the epoch that is the first with all samples; the authors' values.
        beta: in (0, 1], what a new score counts. The paper's sensitivity plot for CREMA-D is almost flat and highest at
            about 0.6.
        rescore_every: epochs from one rescoring to the next. It is an assumption: the paper gives no number, and the
            authors' code rescores in every epoch.

    A rescoring, in the epochs 0, ``rescore_every``, 2 ``rescore_every``, ..., takes what is known of each sample when
    the epoch begins: what `observe` was last told in training, for which nothing has to run, or what `measure` found
    since. The authors run the model over all samples again; for that, call `measure` before ``set_epoch`` of each of
    those epochs. A sample that has not been seen since the last rescoring counts with its last value. If a criterion
    is the same for all samples it is 0 for all (an assumption: the formula is 0/0).

    A smoothed score is kept as a 16-bit fixed-point number. Its error is at most 2^-16 / beta, and so is that of a
    chance, relative to itself; a float32 would cost 2 bytes a sample more.

    Raises:
        ValueError: an argument out of range.
        TypeError: an argument of another type.
        RuntimeError: an epoch begins with samples that have no score: call `measure`.
    """

    def __init__(
        self,
        data: Dataset | int,
        *,
        batch_size: int,
        scheduler: str = "learned",
        criterion: str = "both",
        mode: str = "paper",
        lambda0: float = 0.1,
        t_grow: float = 40,
        beta: float = 0.6,
        rescore_every: int = 1,
        seed: int = 0,
        drop_last: bool = False,
        rank: int | None = None,
        num_replicas: int | None = None,
        plan_dir: str | os.PathLike | None = None,
    ):
        for name, value, known in (
            ("scheduler", scheduler, ("learned", "heuristic")),
            ("criterion", criterion, tuple(CRITERIA)),
            ("mode", mode, ("paper", "official")),
        ):
            if value not in known:
                expected = f"one of {', '.join(known)}"
                raise checks.InputValueError(f"BalanceAware: {name} must be {expected}, got {value!r}")
        if not 0 <= lambda0 <= 1:
            raise checks.InputValueError(f"BalanceAware: lambda0 must be in [0, 1], got {lambda0}")
        if not 0 < t_grow < math.inf:
            raise checks.InputValueError(f"BalanceAware: t_grow must be greater than 0 and finite, got {t_grow}")
        if not 0 < beta <= 1:
            raise checks.InputValueError(f"BalanceAware: beta must be in (0, 1], got {beta}")
        checks.integer("BalanceAware", "rescore_every", rescore_every, 1)
        self.scheduler, self.criterion, self.mode, self.rescore_every = scheduler, criterion, mode, rescore_every
        self.lambda0, self.t_grow, self.beta = lambda0, t_grow, beta
        self.fields = dict.fromkeys(CRITERIA[criterion], "last")
        super().__init__(
            data,
            batch_size=batch_size,
            seed=seed,
            drop_last=drop_last,
            rank=rank,
            num_replicas=num_replicas,
            plan_dir=plan_dir,
        )

    # ---- for users

    @property
    def needs(self) -> tuple[str, ...]:
        """The signals to observe: none for the heuristic scheduler."""
        return () if self.scheduler == "heuristic" else tuple(self.fields)

    def measure(
        self, loader: Any, model: nn.Module, forward: Callable[[nn.Module, Any], Scores | dict[str, Tensor]]
    ) -> None:
        """Score the samples of a loader, as they are before the next update: in eval mode, without gradient.

        The next epoch is planned with what is found; so this goes before the first epoch, or between the end of one
        and ``set_epoch`` of the next. With several processes all call it, each with a part of the samples, such as a
        `torch.utils.data.DistributedSampler` gives it. It counts as a visit of each sample. The authors' code measures
        in train mode, which moves the statistics of BatchNorm; this leaves the model as it is.

        Args:
            loader: gives batches of a `torchassay.Indexed`; before the first epoch those of the whole data set.
            model: scored as it is; under DistributedDataParallel its module.
            forward: ``forward(model, batch)`` gives the batch's `balance_scores`.

        Raises:
            RuntimeError: an epoch is under way.
            ValueError: the loader's data set is not Indexed, or a criterion is missing in the scores.
        """
        name = "BalanceAware.measure"
        if self._planned and not self._clock[FINISHED] and self.position < self._batches():
            expected = "before the first epoch, or between the end of one and set_epoch of the next"
            raise RuntimeError(f"{name}: must be called {expected}, got epoch {self.epoch} under way")
        first, steps = int(self._clock[STEP]), -(-self._kept() // self.batch_size) if self._planned else 0
        step = first + steps + self._replicas.rank  # of what two ranks measure, all machines take the same
        with self._counters.scoring(), evaluating(model), torch.no_grad():
            for batch in loader:
                index = index_of(loader, batch)
                if index is None:
                    got = type(getattr(loader, "dataset", loader)).__name__
                    raise checks.InputValueError(f"{name}: loader must have a torchassay.Indexed data set, got {got}")
                self.memory.update(index, forward(unwrapped(model), batch), step)
                self._counters.scored(len(index))
        self._replicas.merge(self._rows(), first)
        self._clock[STEP] += self._replicas.world  # the next epoch's steps come after these

    # ---- the plan

    def _open(self, folder: Path | None) -> None:
        super()._open(folder)
        if self.scheduler == "learned":
            self._smoothed = zeros(folder, "smoothed", self.n, np.int16)
            self._rescorings = zeros(folder, "rescorings", 1, np.int64)  # as many as are due by the last one's epoch

    def _ready(self, epoch: int) -> bool:
        return not any(np.isnan(self.memory[name].numpy().min()) for name in self.fields)  # min lets NaN pass

    def _missing(self) -> str:
        without = np.zeros(self.n, bool)
        for name in self.fields:
            without |= np.isnan(self.memory[name].numpy())
        got = f"{np.count_nonzero(without)} of {self.n} without one or with NaN, the first of them {without.argmax()}"
        return f"BalanceAware: every sample must have a score, got {got}; call measure(loader, model, forward) first"

    def _plan(self, epoch: int) -> tuple[np.ndarray, None]:
        if self.scheduler == "heuristic":
            count = max(1, math.floor(self.n * share_of_epoch(epoch, self.lambda0, self.t_grow)))
            order = highest(self._balance(), count, self.seed)
            self._random().shuffle(order)
            return order, None
        due = epoch // self.rescore_every + 1
        if due > self._rescorings[0]:
            self._rescore()
            self._rescorings[0] = due
        weight = self._smoothed / np.float32(_ONE)
        weight = np.exp(weight, out=weight) if self.mode == "paper" else np.add(weight, np.float32(1.01), out=weight)
        return weighted_order(weight, self._random(_TAG)), None

    def _rescore(self) -> None:
        found = self._balance()
        if self.mode == "paper" and self._rescorings[0]:
            found *= np.float32(self.beta)
            found += self._smoothed * np.float32((1 - self.beta) / _ONE)
        found *= np.float32(_ONE)
        self._smoothed[:] = np.rint(found, out=found)

    def _balance(self) -> np.ndarray:
        return balance(*(self.memory[name].numpy() if name in self.fields else None for name in CRITERIA["both"]))

    def _keep(self, index: Tensor, scores: Scores | dict[str, Tensor]) -> None:
        if self.scheduler == "heuristic":  # the first scores stay; the visit counts
            scores = {name: self.memory[name][index] for name in self.fields}
        super()._keep(index, scores)

    # ---- state

    def _arguments(self) -> dict:
        own = ("scheduler", "criterion", "mode", "lambda0", "t_grow", "beta", "rescore_every")
        return super()._arguments() | {name: getattr(self, name) for name in own}

    def _state(self) -> dict:
        state = super()._state()
        if self._replicas.leader and self.scheduler == "learned":
            state |= {"smoothed": torch.from_numpy(self._smoothed), "rescorings": torch.from_numpy(self._rescorings)}
        return state

    def _load(self, state: dict) -> None:
        super()._load(state)
        if self._replicas.leader and self.scheduler == "learned":
            self._smoothed[:], self._rescorings[:] = state["smoothed"].numpy(), state["rescorings"].numpy()


def share_of_epoch(epoch: int, lambda0: float = 0.1, t_grow: float = 40) -> float:
    """BSS-H's share of the samples that take part in an epoch (0, 1, ...): t = epoch + 1, as in the authors' code."""
    return math.sqrt(lambda0**2 + (1 - lambda0**2) * min(1.0, (epoch + 1) / t_grow))


def balance(similarity: np.ndarray | None, loss: np.ndarray | None) -> np.ndarray:
    """BSS's score s of every sample, float32 in [-1, 1]: high where the modalities agree and the loss is low.

    Each criterion is moved and scaled to [0, 1] over all samples, then s = similarity - loss, without one that is None.
    """
    if similarity is None:
        return -_scaled(loss)  # type: ignore[arg-type]  # one of the two is there
    found = _scaled(similarity)
    if loss is not None:
        found -= _scaled(loss)
    return found


def _scaled(values: np.ndarray) -> np.ndarray:
    """The least to 0 and the largest to 1; all to 0 where they are equal. An infinite one is as the next."""
    finite = np.isfinite(values)
    low, high = values.min(where=finite, initial=np.inf), values.max(where=finite, initial=-np.inf)
    if not low < high:
        return np.zeros(len(values), np.float32)
    found = np.clip(values, low, high)
    found -= low
    found /= high - low
    return found


def highest(values: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The ``count`` samples with the highest values, ascending.

    Which of equal ones at the edge belong to them is drawn, once for all epochs: a model whose heads start at zero
    scores all samples alike, and the first of the data set may be of one class.
    """
    if count == len(values):
        return np.arange(count, dtype=index_type(count))
    edge = np.partition(values, len(values) - count)[len(values) - count]
    taken = values > edge
    equal = np.flatnonzero(values == edge)
    np.random.default_rng([seed, _TAG]).shuffle(equal)
    taken[equal[: count - np.count_nonzero(taken)]] = True
    return np.flatnonzero(taken).astype(index_type(len(values)))


def weighted_order(weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All samples in the order in which they are drawn without replacement, each time with p in proportion to weight.

    They come as exponential clocks of these rates ring (Efraimidis and Spirakis 2006). -log of a time is log weight
    plus Gumbel noise, so this is also the order of Gumbel keys. At most 2^32 samples.
    """
    n = len(weight)
    keys = np.empty(n, np.uint64)  # time and index in one number: sorted in place, and equal times by index
    for first in range(0, n, _PART):
        part = slice(first, first + _PART)
        time = (rng.standard_exponential(len(weight[part])) / weight[part]).astype(np.float32)
        keys[part] = time.view(np.uint32)  # of numbers that are not negative the bits are in their order
        keys[part] <<= np.uint64(32)
        keys[part] |= np.arange(first, first + len(time), dtype=np.uint64)
    keys.sort()
    keys &= np.uint64(0xFFFFFFFF)
    return keys.astype(index_type(n))
