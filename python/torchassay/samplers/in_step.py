"""The first protocol: score a batch, then pick from it. Never stale, needs no index, works on streams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchassay import checks, data
from torchassay.distributed import messages_of
from torchassay.functional import score
from torchassay.samplers import states
from torchassay.samplers.counters import Counters
from torchassay.samplers.cross_epoch import CrossEpoch
from torchassay.samplers.forwards import Forward, default_forward, device_of, evaluating, index_of, rows_of, unwrapped
from torchassay.scores import SIGNALS, Scores

_LEAST = 2  # samples in a batch
SECOND_DRAW = 1 << 40  # added to a row's id: another number for the same row


class Chosen(NamedTuple):
    """What a method makes of a batch: the weight of each row, 0 where it is dropped, and what a mean divides by."""

    weight: Tensor  # [N] float32
    count: Tensor | float  # type: ignore[assignment]  # of this rank; hides tuple.count


@dataclass(frozen=True)
class Pick:
    """Which samples of a batch to train on, and with what weight.

    Attributes:
        weight: float32, shaped like the scores; 0 where a sample is dropped.
        mask: bool, of the same shape: weight > 0.
        count: 0-d float32: what the weighted losses of all ranks are divided by.
        world: ranks.
    """

    weight: Tensor
    mask: Tensor
    count: Tensor
    world: int = 1

    def mean(self, loss: Tensor) -> Tensor:
        """The loss to call ``backward`` on: sum of weight * loss over what was picked, over the count of all ranks.

        It is multiplied by the number of ranks, since DistributedDataParallel averages gradients over them. A dropped
        sample adds exactly 0, also if its loss is NaN; with nothing picked the result is 0 and still has a graph, so
        that every rank takes part in the step. If everything is picked with weight 1 it is ``loss.mean()``.

        Args:
            loss: of each sample, shaped like the scores (``reduction="none"``).

        Raises:
            ValueError: another shape.
        """
        if loss.shape != self.weight.shape:
            expected = f"the shape of the scores, {tuple(self.weight.shape)} (reduction='none')"
            raise checks.InputValueError(f"Pick.mean: loss must have {expected}, got {tuple(loss.shape)}")
        kept = torch.where(self.mask, self.weight * loss, 0)
        total = kept.sum() * self.world if self.world > 1 else kept.sum()
        return total / self.count.clamp(min=1)


class InStep(states.Saved):
    """Base of the methods that score a batch and pick from it.

    Two ways to use one. `pick` in a plain loop: the scores come with the loss of the training forward, which every
    sample takes part in, so nothing is saved; what changes is what the step learns from. `batches` around a loader:
    samples are scored by a forward without gradient first, and only the picked ones, regrouped into full batches, are
    trained on; that saves their backward. BatchNorm then sees picked samples only.

    A method's own arguments stand in its class. Common ones:

    Args:
        seed: a 64-bit int; what is picked depends on it, the step and the sample's place in the global batch alone.
        group: a `torch.distributed.ProcessGroup` whose ranks pick in step. Each picks from its own part of the batch;
            the count that the loss is divided by is that of all. Default: this process alone.

    Raises:
        ValueError: a seed of more than 64 bits.
        TypeError: a seed or group of another type.
    """

    def __init__(self, needs: tuple[str, ...], *, seed: int = 0, group: dist.ProcessGroup | None = None):
        name = type(self).__name__
        checks.seed(name, seed)
        checks.process_group(name, group)
        self.needs, self.seed, self.group = needs, seed, group
        self.step = 0
        self.epoch: int | None = None
        self._counters = Counters()
        self._left: list[tuple[Any, Tensor]] = []  # picked by `batches`, not yet trained on
        self._spare = None  # the first samples that it saw, to fill up with

    # ---- for users

    def set_epoch(self, epoch: int) -> None:
        """Tell which epoch begins, from 0 on; `batches` does so by itself."""
        checks.integer(type(self).__name__, "epoch", epoch, 0)
        self.epoch = epoch

    def pick(
        self, scores: Scores | dict[str, Tensor], *, index: Tensor | None = None, mask: Tensor | None = None
    ) -> Pick:
        """Pick from a batch that has just been scored.

        Args:
            scores: the signals in ``self.needs``, of any one shape: [N], or [B, T] for tokens.
            index: int64, of that shape: each sample's place in the data set, for methods and counters that need it.
            mask: bool, of that shape: what can be picked at all; False for padding and ignored rows.

        Raises:
            ValueError: a signal is missing, or shapes differ.
            TypeError: a dtype that does not fit.
        """
        values, shape = self._values(scores)
        self._counters.scored(shape.numel())
        index, mask = self._like("index", index, shape), self._like("mask", mask, shape)
        chosen = self._chosen(values, index, mask)
        weight, world = chosen.weight, 1
        count = chosen.count
        if not isinstance(count, Tensor):
            count = torch.full((), count, device=weight.device)  # a number on its way to a GPU would be waited for
        count = count.float()
        if self.group is not None:
            world, count = self.group.size(), count.clone()
            dist.all_reduce(count, group=self.group)
        return Pick(weight.view(shape), (weight > 0).view(shape), count, world)

    def batches(self, loader: Any, model: nn.Module, forward: Forward | None = None) -> Iterator[tuple[Any, Tensor]]:
        """Batches of picked samples: ``for batch, weight in picker.batches(loader, model): ...``.

        Every batch of ``loader`` is scored first, in eval mode without gradient; the modes of all modules are as before
        when a batch comes out. The picked samples are collected into batches of the loader's size; what is left at the
        end comes as a smaller one. Train on ``(weight * loss).mean()``. Going through the loader once is an epoch.

        A single sample that is left comes beside one with weight 0, since BatchNorm needs two; the weights make up for
        it. With a ``group`` all ranks get equally many batches, and the weights make up for unequal sizes too, so that
        the mean over ranks is that over samples; a rank that has none left gets samples with weight 0.

        Args:
            loader: gives batches that are tensors, or tuples or dicts of such. The first two things in a tuple are
                input and target (for ``forward=None``). If its data set is a `torchassay.Indexed`, the index is used.
            model: scored as it is; under DistributedDataParallel its module, which needs no other rank.
            forward: ``forward(model, batch)`` gives the logits and the target, or the scores. Default: ``model(input)``
                and the target, on the model's device.

        If the loader takes its batches from a `CrossEpoch`, such as `Shuffle`, that is told of each batch that has been
        scored: save the states of both, and a resumed training goes on behind it.

        Yields:
            The batch, with the structure that the loader gave it, and its weights, float32 [n] on the batch's device.
        """
        self._begin()
        size = getattr(loader, "batch_size", None)
        for batch in self._incoming(loader):
            index = index_of(loader, batch)
            chosen = self._chosen(self._row_values(model, batch, index, forward), index, None)
            size = size or len(chosen.weight)
            self._keep(batch, chosen)
            yield from self._full(size, more=True)
        yield from self._full(size, more=False)
        self._end()

    def counters(self) -> dict[str, float | list[int]]:
        """What has been done so far, as plain numbers for any logger.

        ``forward_items`` scored and ``backward_items`` trained on (of this rank); ``scoring_ms``, the host's time for
        scores and picks beyond a plain loop's; ``effective_sample_size``, (sum w)^2 / sum w^2 over the number picked,
        the mean over steps, 1 for equal weights; ``staleness``, how old the scores were that were picked by, mean
        (epochs for `SelectiveBackprop(stale=)`, 0 otherwise); ``reuse``, how many samples were picked 0, 1, ..., 9
        times and more often, if the index is known; ``noise_share`` of the picks, after `track`.
        """
        return self._counters.as_dict()

    def track(self, corrupted: Tensor) -> None:
        """From now on count the share of picks that are ``corrupted`` (bool, one a sample of the data set)."""
        self._counters.track(corrupted)

    def state_dict(self) -> dict:
        """Everything that going on needs, the picked samples that wait in `batches` included; tensors by reference, as
        a module's. Every rank keeps its own."""
        left = [{"batch": batch, "weight": weight} for batch, weight in self._left]
        own = {"method": type(self).__name__, "seed": self.seed, "step": self.step, "epoch": self.epoch}
        return own | {"left": left, "spare": self._spare, "counters": self._counters.state_dict(), "own": self._state()}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a `state_dict` of the same method and seed."""
        states.expect(type(self).__name__, state, method=type(self).__name__, seed=self.seed)
        self.step, self.epoch = state["step"], state["epoch"]
        self._left = [(part["batch"], part["weight"]) for part in state["left"]]
        self._spare = state["spare"]
        self._counters.load_state_dict(state["counters"])
        self._load(state["own"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(step {self.step}: {self._counters!r})"

    # ---- for methods

    def _choose(self, scores: dict[str, Tensor], index: Tensor | None, mask: Tensor | None) -> Chosen:
        """What the method is: from the signals it needs, each [N], to weights."""
        raise NotImplementedError

    def _state(self) -> dict:
        """What the method itself keeps."""
        return {}

    def _load(self, state: dict) -> None:
        pass

    def _row_ids(self, n: int, device: torch.device) -> Tensor:
        """The rows' places in the global batch, whose ranks' parts are dealt out in turn."""
        rows = torch.arange(n, device=device)
        return rows if self.group is None else rows * self.group.size() + self.group.rank()

    def _needs_epoch(self) -> int:
        """The epoch, where a schedule is by epochs."""
        if self.epoch is None:
            expected = "set_epoch(epoch) at the start of each epoch, or batches(), which does so"
            raise RuntimeError(f"{type(self).__name__}: its schedule is by epochs; call {expected}")
        return self.epoch

    def _begin(self) -> None:
        """An epoch of `batches` begins, or goes on after a `load_state_dict`."""
        if self.epoch is None:
            self.epoch = 0

    def _end(self) -> None:
        """An epoch of `batches` has ended."""
        self.epoch, self._spare = (self.epoch or 0) + 1, None

    def _incoming(self, loader: Any) -> Iterator[Any]:
        """The loader's batches. One that comes out is this object's: its sampler will not give it again."""
        sampler = getattr(loader, "sampler", None)
        for batch in loader:
            if isinstance(sampler, CrossEpoch):
                sampler.advance()
            if self._spare is None:
                self._spare = data.take(batch, torch.arange(min(_LEAST, rows_of(batch))))
            yield batch

    def _scored(
        self, model: nn.Module, batch: Any, index: Tensor | None, forward: Forward | None
    ) -> Scores | dict[str, Tensor]:
        """The scores of a batch by a forward of its own; where no signal is needed, of as many rows."""
        if not self.needs:
            return {"rows": torch.zeros(rows_of(batch))}
        with self._counters.scoring(), evaluating(model), torch.no_grad():
            found = (forward or default_forward)(unwrapped(model), batch)
            if isinstance(found, tuple):
                found = score(*found, signals=self.needs)
        self._counters.scored(rows_of(batch))
        return found

    # ---- inside

    def _values(self, scores: Scores | dict[str, Tensor]) -> tuple[dict[str, Tensor], torch.Size]:
        name = type(self).__name__
        given = scores.as_dict() if isinstance(scores, Scores) else scores
        if not isinstance(given, dict):
            raise checks.InputTypeError(f"{name}.pick: scores must be Scores or a dict, got {type(scores).__name__}")
        missing = [signal for signal in self.needs if signal not in given]
        if missing:
            got = ", ".join(given) or "none"
            raise checks.InputValueError(f"{name}.pick: scores must have {', '.join(missing)}, got {got}")
        if not given:
            raise checks.InputValueError(f"{name}.pick: scores must have at least one signal, got none")
        shape = next(iter(given.values())).shape
        values = {}
        for signal in self.needs or tuple(given)[:1]:
            value = given[signal]
            checks.tensor(f"{name}.pick", signal, value)
            if value.shape != shape:
                expected = f"one shape, {tuple(shape)}"
                raise checks.InputValueError(f"{name}.pick: scores must have {expected}, got {tuple(value.shape)}")
            values[signal] = value.detach().reshape(-1)
        return values, shape

    def _row_values(
        self, model: nn.Module, batch: Any, index: Tensor | None, forward: Forward | None
    ) -> dict[str, Tensor]:
        """The signals of a batch, one number a row."""
        values, shape = self._values(self._scored(model, batch, index, forward))
        if tuple(shape) != (rows_of(batch),):
            expected = f"one a sample, shape ({rows_of(batch)},)"
            raise checks.InputValueError(
                f"{type(self).__name__}.batches: scores must be {expected}, got {tuple(shape)}"
            )
        return values

    def _chosen(self, values: dict[str, Tensor], index: Tensor | None, mask: Tensor | None) -> Chosen:
        """What the method chooses, counted; a step has passed."""
        with self._counters.scoring():
            chosen = self._choose(values, index, mask)
        self._counters.picked(chosen.weight, index)
        self.step += 1
        return chosen

    def _keep(self, batch: Any, chosen: Chosen) -> None:
        """Put what was picked aside, its weights such that a mean over rows divides by the method's own count."""
        weight = chosen.weight.cpu()
        rows = torch.nonzero(weight > 0).squeeze(1)
        if len(rows):
            self._left.append((data.take(batch, rows), weight[rows] * (len(rows) / float(chosen.count))))

    def _like(self, name: str, value: Tensor | None, shape: torch.Size) -> Tensor | None:
        if value is None:
            return None
        function = f"{type(self).__name__}.pick"
        dtype = torch.bool if name == "mask" else torch.int64
        checks.tensor(function, name, value)
        if value.dtype != dtype or value.shape != shape:
            expected = f"{checks.dtype_name(dtype)} of shape {tuple(shape)}"
            got = f"{checks.dtype_name(value.dtype)} of shape {tuple(value.shape)}"
            raise checks.InputValueError(f"{function}: {name} must be {expected}, got {got}")
        return value.reshape(-1)

    def _full(self, size: int | None, more: bool) -> Iterator[tuple[Any, Tensor]]:
        """The batches that are ready: full ones while more is to come, then what is left."""
        while True:
            have = sum(len(weight) for _, weight in self._left)
            ready, work = have >= (size or 1) or (not more and have > 0), have > 0 or more
            if self.group is not None:
                ready, work = self._agreed(ready or not more, work)
            if not ready or not work:
                if self.group is None or more or not work:
                    return
                continue  # others still score: wait for their next word
            batch, weight = self._taken(min(size or have, have))
            yield batch, (weight * self._share(weight)).to(device_of(batch))

    def _agreed(self, ready: bool, work: bool) -> tuple[bool, bool]:
        """Whether every rank can take a step, and whether any has still something to do; an error on all of them if one
        has never seen a sample that it could take a step with."""
        seen = self._spare is not None
        said = torch.tensor([float(ready), float(seen), -float(work)], device=messages_of(self.group))
        dist.all_reduce(said, dist.ReduceOp.MIN, group=self.group)
        all_ready, all_seen, some_work = said.tolist()
        if all_ready > 0 and all_seen == 0 and some_work < 0:
            raise RuntimeError(
                f"{type(self).__name__}.batches: the loader of each rank must give a batch, one gave none"
            )
        return all_ready > 0, some_work < 0

    def _share(self, weight: Tensor) -> float:
        """What makes the mean over ranks of their batches' means one over samples, those with weight 0 left out."""
        total, world = float((weight > 0).sum()), 1
        if self.group is not None:
            everyone, world = torch.tensor(total, device=messages_of(self.group)), self.group.size()
            dist.all_reduce(everyone, group=self.group)
            total = float(everyone)
        return len(weight) * world / max(1.0, total)

    def _taken(self, count: int) -> tuple[Any, Tensor]:
        """The first ``count`` of what is left; spare samples of weight 0 make up for fewer than BatchNorm needs."""
        parts, weights = [part for part, _ in self._left], [weight for _, weight in self._left]
        if count < _LEAST:
            rows = torch.arange(_LEAST - count) % rows_of(self._spare)
            parts, weights = [*parts, data.take(self._spare, rows)], [*weights, torch.zeros(len(rows))]
            count = _LEAST
        batch, weight = data.join(parts), torch.cat(weights)
        first, rest = torch.arange(count), torch.arange(count, len(weight))
        self._left = [(data.take(batch, rest), weight[rest])] if len(rest) else []
        return data.take(batch, first), weight[first]


def checked_signal(function: str, signal: str, *more: str) -> None:
    """Raise unless ``signal`` is a quantity that samples can be picked by."""
    names = [name for name in SIGNALS if name != "prediction"] + list(more)
    if signal not in names:
        raise checks.InputValueError(f"{function}: signal must be one of {', '.join(names)}, got {signal!r}")


def largest(values: Tensor, share: float, mask: Tensor | None) -> Chosen:
    """Weight 1 for the largest max(1, round(share * n)) of the n rows that count; nothing waits for a GPU."""
    valid = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    n = valid.sum()
    kept = (share * n.double()).round().clamp(min=1).minimum(n)
    order = values.masked_fill(~valid, -torch.inf).argsort(descending=True, stable=True)
    weight = torch.zeros_like(values, dtype=torch.float32)
    weight[order] = (torch.arange(len(values), device=values.device) < kept).float()
    return Chosen(weight, kept)
