"""What a method has done so far, in numbers for any logger."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from torchassay import checks

_WAITING = 32  # picks that stay on the GPU before they are counted
REUSE_BINS = 11  # picked 0, 1, ..., 9 times, and more often


class Counters:
    """Counts picks without waiting for a GPU: they are looked at every 32 steps and when somebody asks."""

    def __init__(self, reuse: bool = True) -> None:
        self._reuse = reuse  # count how often each sample is picked
        self._totals = torch.zeros(8, dtype=torch.float64)  # in the order of _TOTALS; by reference in the state
        self._picked = torch.zeros(0, dtype=torch.int32)  # how often each sample was, where indices are known
        self._corrupted: Tensor | None = None
        self._waiting: list[tuple[Tensor, Tensor | None]] = []

    _TOTALS = ("forward", "backward", "scoring_ms", "picks", "ess", "staleness", "stale_items", "noise")

    def _add(self, name: str, amount: float) -> None:
        self._totals[self._TOTALS.index(name)] += amount

    def _total(self, name: str) -> float:
        return float(self._totals[self._TOTALS.index(name)])

    def track(self, corrupted: Tensor) -> None:
        """From now on count the share of picks that are among the ``corrupted`` (bool, one a sample)."""
        checks.tensor("track", "corrupted", corrupted)
        if corrupted.dtype != torch.bool or corrupted.dim() != 1:
            got = f"{checks.dtype_name(corrupted.dtype)} of shape {tuple(corrupted.shape)}"
            raise checks.InputValueError(f"track: corrupted must be bool with one value a sample, got {got}")
        self._corrupted = corrupted.cpu()

    def scored(self, items: int) -> None:
        self._add("forward", items)

    def stale(self, steps: float, items: int) -> None:
        """Scores that a choice was made from were ``steps`` old, summed over ``items``."""
        self._add("staleness", steps)
        self._add("stale_items", items)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Time spent here is time that the plain loop would not have spent."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self._add("scoring_ms", (time.perf_counter() - before) * 1e3)

    def picked(self, weight: Tensor, index: Tensor | None) -> None:
        """A batch was picked from: ``weight`` [N], 0 where a sample was dropped; ``index`` [N] in the data set."""
        self._waiting.append((weight.detach(), index))
        if len(self._waiting) >= _WAITING:
            self._settle()

    def _settle(self) -> None:
        waiting, self._waiting = self._waiting, []
        for weight, index in waiting:
            weight = weight.double().reshape(-1).cpu()
            taken = weight > 0
            count = int(taken.sum())
            self._add("backward", count)
            if count:
                self._add("picks", 1)
                self._add("ess", float(weight.sum() ** 2 / weight.square().sum()) / count)
            if index is None:
                continue
            index = index.cpu().reshape(-1)
            if self._reuse and len(index):
                more = int(index.max()) + 1 - len(self._picked)
                if more > 0:
                    self._picked = torch.cat([self._picked, torch.zeros(more, dtype=torch.int32)])
                self._picked.index_add_(0, index, taken.int())
            index = index[taken]
            if self._corrupted is not None:
                self._add("noise", int(self._corrupted[index].sum()))

    def as_dict(self) -> dict[str, float | list[int]]:
        """See `InStep.counters`."""
        self._settle()
        picks, backward = self._total("picks"), self._total("backward")
        found: dict[str, float | list[int]] = {
            "forward_items": int(self._total("forward")),
            "backward_items": int(backward),
            "scoring_ms": self._total("scoring_ms"),
            "effective_sample_size": self._total("ess") / picks if picks else 1.0,
            "staleness": self._total("staleness") / max(1.0, self._total("stale_items")),
        }
        if len(self._picked):
            found["reuse"] = torch.bincount(self._picked.clamp(max=REUSE_BINS - 1), minlength=REUSE_BINS).tolist()
        if self._corrupted is not None:
            found["noise_share"] = self._total("noise") / backward if backward else 0.0
        return found

    def __repr__(self) -> str:
        found = self.as_dict()
        noise = f", noise {found['noise_share']:.1%}" if "noise_share" in found else ""
        ess = f"ESS {found['effective_sample_size']:.2f}"
        return f"{found['forward_items']} forward, {found['backward_items']} backward, {ess}{noise}"

    def state_dict(self) -> dict[str, Tensor]:
        self._settle()
        return {"totals": self._totals, "picked": self._picked}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._waiting = []
        self._totals.copy_(state["totals"])
        self._picked = state["picked"].clone()
