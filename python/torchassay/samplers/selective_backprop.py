"""Selective-Backprop, with the loss or any other signal, and its stale and per-batch forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchassay import checks, data
from torchassay.history import History
from torchassay.philox import uniforms
from torchassay.samplers.in_step import SECOND_DRAW, Chosen, InStep, checked_signal
from torchassay.scores import Scores


class SelectiveBackprop(InStep):
    """Pick a sample with probability max(p_min, cdf(signal) ** beta), cdf being over the latest values.

    Selective-Backprop of Jiang et al. (2019, arXiv 1910.00762, section 3.2), in the order of the authors' code: a batch
    joins the window first, then each value's share of the window strictly below it counts. On continuous values a share
    1 / (beta + 1) is picked. There are no importance weights: the bias towards hard samples is the method. Wrong labels
    have a high loss, so on noisy data it picks them (Hu et al. 2021, "When does loss-based prioritization fail?");
    their answer, SBE, is ``signal="entropy"``, which no label enters.

    Args:
        beta: >= 0; 0 picks everything.
        signal: a name among `torchassay.SIGNALS`; "random" is the control, whose cdf is a random number instead.
        capacity, p_min, ties: of the `History`; the authors' code has 1024, 0 and strict.
        warmup_epochs: in these first epochs everything is picked and the window stays empty. The authors' code has 1.
        stale: `batches` scores a sample anew only when its score is ``stale`` epochs old (StaleSB; the authors' script
            has 3), which needs a data set wrapped in `torchassay.Indexed`. What the training forward finds out
            refreshes the scores too, if `observe` gets it. 0 scores every batch.
        keep: the per-batch form of Composer instead: of each batch a share ``keep`` is drawn without replacement, the
            j-th smallest of n values (from 0) with weight ((j + 0.5) / n) ** (1 / keep - 1); no window, no beta. It is
            active from ``start`` to before ``end``, as shares of the ``steps`` of the whole training, but not in every
            ``interrupt``-th step (0: in all). Outside everything is picked.
        seed, group: as in `InStep`. With a group the window is that of all ranks, which must score equally many
            batches.

    Raises:
        ValueError: an argument out of range.
        TypeError: an argument of another type.

    Example:
        >>> import torch, torchassay as ta
        >>> picker = ta.samplers.SelectiveBackprop(beta=1.0, signal="entropy", seed=0)
        >>> model, x, y = torch.nn.Linear(4, 3), torch.randn(64, 4), torch.randint(3, (64,))
        >>> loss, s = ta.cross_entropy(model(x), y, reduction="none", signals=picker.needs)
        >>> picker.pick(s).mean(loss).backward()
    """

    def __init__(
        self,
        beta: float = 1.0,
        *,
        signal: str = "loss",
        capacity: int = 1024,
        p_min: float = 0.0,
        ties: str = "strict",
        warmup_epochs: int = 0,
        stale: int = 0,
        keep: float | None = None,
        start: float = 0.5,
        end: float = 0.9,
        interrupt: int = 2,
        steps: int | None = None,
        seed: int = 0,
        group: dist.ProcessGroup | None = None,
    ):
        name = "SelectiveBackprop"
        checked_signal(name, signal, "random")
        for argument, value in (("warmup_epochs", warmup_epochs), ("stale", stale), ("interrupt", interrupt)):
            checks.integer(name, argument, value, 0)
        if keep is not None:
            if not 0.0 < keep <= 1.0:
                raise checks.InputValueError(f"{name}: keep must be in (0, 1], got {keep}")
            if not 0.0 <= start <= end <= 1.0:
                expected = "0 <= start <= end <= 1"
                raise checks.InputValueError(f"{name}: start and end must be {expected}, got {start} and {end}")
            if steps is None and (start > 0 or end < 1):
                expected = "the number of steps of the whole training, of which start and end are shares"
                raise checks.InputValueError(f"{name}: steps must be {expected}, got None")
        super().__init__(() if signal == "random" else (signal,), seed=seed, group=group)
        of_window = "loss" if signal == "random" else signal
        self.history = History(capacity, signal=of_window, beta=beta, p_min=p_min, ties=ties, group=group)
        self.signal, self.warmup_epochs, self.stale = signal, warmup_epochs, stale
        self.keep, self.start, self.end, self.interrupt, self.steps = keep, start, end, interrupt, steps
        self._known = torch.zeros(0)  # the latest score of each sample, NaN where none; for stale
        self._scored_in = torch.zeros(0, dtype=torch.int32)  # the epoch it is of

    def observe(self, index: Tensor, scores: Scores | dict[str, Tensor]) -> None:
        """For ``stale``: what the training forward of a batch found out. Tensors [n] each, int64 and `Scores`."""
        values, _ = self._values(scores)
        self._remember(index.cpu(), values[self.signal].cpu())

    def _choose(self, scores: dict[str, Tensor], index: Tensor | None, mask: Tensor | None) -> Chosen:
        values = next(iter(scores.values()))
        rows = self._row_ids(len(values), values.device)
        if self._everything():
            picked = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
        elif self.keep is not None:
            picked = self._share_of_batch(self.keep, values, rows, mask)
        elif self.signal == "random":
            chance = uniforms(rows + SECOND_DRAW, seed=self.seed, step=self.step) ** self.history.beta
            picked = uniforms(rows, seed=self.seed, step=self.step) < chance.clamp(min=self.history.p_min)
            picked = picked if mask is None else picked & mask
        else:
            picked = self.history.select(values, seed=self.seed, step=self.step, row_id=rows, mask=mask)
        weight = picked.to(torch.float32)
        return Chosen(weight, weight.sum())

    def _everything(self) -> bool:
        if self.keep is None:
            return self.warmup_epochs > 0 and self._needs_epoch() < self.warmup_epochs
        past = self.step / self.steps if self.steps else 0.0
        skipped = self.interrupt > 0 and (self.step + 1) % self.interrupt == 0
        return skipped or (self.steps is not None and not self.start <= past < self.end)

    def _share_of_batch(self, keep: float, values: Tensor, rows: Tensor, mask: Tensor | None) -> Tensor:
        """Without replacement: the largest of log weight + a Gumbel number each."""
        n = len(values) if mask is None else int(mask.sum())
        if mask is not None:
            values = values.masked_fill(~mask, torch.inf)
        place = torch.empty_like(values, dtype=torch.float64)
        place[values.argsort(stable=True)] = torch.arange(len(values), dtype=torch.float64, device=values.device)
        uniform = uniforms(rows, seed=self.seed, step=self.step).double() + 2.0**-25
        keys = (1 / keep - 1) * torch.log((place + 0.5) / max(1, n)) - torch.log(-torch.log(uniform))
        if mask is not None:
            keys = keys.masked_fill(~mask, -torch.inf)
        picked = torch.zeros_like(values, dtype=torch.bool)
        picked[keys.topk(int(keep * n)).indices] = True
        return picked

    # ---- stale scores

    def _scored(self, model: nn.Module, batch: Any, index: Tensor | None, forward: Callable | None) -> Any:
        if not self.stale or not self.needs:
            return super()._scored(model, batch, index, forward)
        if index is None:
            expected = "one whose data set is a torchassay.Indexed, for stale scores"
            raise checks.InputTypeError(f"SelectiveBackprop.batches: loader must be {expected}, got another")
        self._room(int(index.max()) + 1)
        age = self._needs_epoch() - self._scored_in[index]
        old = torch.nonzero(self._known[index].isnan() | (age >= self.stale)).squeeze(1)
        if len(old):
            part, _ = self._values(super()._scored(model, data.take(batch, old), index[old], forward))
            self._remember(index[old], part[self.signal].cpu())
        age = self._needs_epoch() - self._scored_in[index]
        self._counters.stale(float(age.sum()), len(age))
        return {self.signal: self._known[index]}

    def _remember(self, index: Tensor, values: Tensor) -> None:
        self._room(int(index.max()) + 1)
        self._known[index] = values.float()
        self._scored_in[index] = self.epoch or 0

    def _room(self, n: int) -> None:
        more = n - len(self._known)
        if more > 0:
            self._known = torch.cat([self._known, torch.full((more,), torch.nan)])
            self._scored_in = torch.cat([self._scored_in, torch.zeros(more, dtype=torch.int32)])

    def _state(self) -> dict:
        return {"history": self.history.state_dict(), "known": self._known, "scored_in": self._scored_in}

    def _load(self, state: dict) -> None:
        self.history.load_state_dict(state["history"])
        self._known, self._scored_in = state["known"].clone(), state["scored_in"].clone()
