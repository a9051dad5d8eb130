"""``History``: the latest values of a signal, and how likely Selective-Backprop is to pick a sample given them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchassay import checks, ops
from torchassay.backends import choose, native
from torchassay.distributed import all_gathered, all_reduced
from torchassay.philox import uniforms
from torchassay.scores import SIGNALS

LARGEST = 1 << 20  # capacity
LARGEST_OF_GROUP = 1 << 16  # of which every rank sends a whole one in every step
BINS = 1 << 15  # float32 patterns of numbers >= 0 by their top 15 bits below the sign


class History:
    """The latest values of a signal as a window that probabilities of selection are taken from.

    Selective-Backprop (Jiang et al. 2019, arXiv 1910.00762, section 3.2) picks a sample with probability
    ``max(p_min, cdf(value) ** beta)``, where cdf is the share of the latest values that lie below its own. The state is
    on the device of the first values; nothing waits for a GPU.

    Args:
        capacity: how many values the window holds, first in, first out; 1 to 2^20. The authors' code has 1024.
        signal: the name among `torchassay.SIGNALS` that ``score(..., history=)`` takes the values from: "entropy" is
            the entropy form of Hu et al. (SBE).
        beta: >= 0. On continuous values a share of 1 / (beta + 1) is selected; 0 selects everything.
        p_min: in [0, 1], the least probability.
        ties: "strict", as the authors: equal values lie not below, so if all are equal nothing is ever selected but by
            ``p_min``. "midrank": half of them do.
        bins: True keeps a histogram instead of the values: 2^15 bins of at most 2^-7 of the value in width, for values
            >= 0 (a negative one counts as 0), whose counts are scaled by 1 - n / capacity before n values are added.
            Then memory does not grow with ``capacity``, which may be any number, and the oldest values fade out.
        group: a `torch.distributed.ProcessGroup`: the window is the same on all its ranks, which call alike and in
            step. It takes the values of all ranks, the latest of each side by side. Every rank sends as many numbers as
            the window holds (the histogram: as there are bins), so nobody waits to learn how many others have; a window
            of more than 65,536 values is to be a histogram then.

    A value that is NaN never enters the window, and has probability ``p_min``. Rows that a mask excludes neither enter
    nor are selected: their probability is 0. While the window is empty every probability is 1.

    Compiled code leaves its graph for a call that is given a history, whose window it changes.

    Raises:
        ValueError: an argument that is out of range, or values on another device than the window.
        TypeError: values that are not floating-point.

    Example:
        >>> import torch, torchassay as ta
        >>> history = ta.History(capacity=4)
        >>> history.probability(torch.tensor([1.0, 3.0, 2.0, 4.0])).tolist()
        [0.0, 0.5, 0.25, 0.75]
    """

    def __init__(
        self,
        capacity: int = 1024,
        *,
        signal: str = "loss",
        beta: float = 1.0,
        p_min: float = 0.0,
        ties: str = "strict",
        bins: bool | None = None,
        group: torch.distributed.ProcessGroup | None = None,
    ):
        largest = None if bins else LARGEST
        checks.integer("History", "capacity", capacity)
        if capacity < 1 or (largest and capacity > largest):
            expected = f"in [1, {largest}], or at least 1 with bins=True" if largest else "at least 1"
            raise checks.InputValueError(f"History: capacity must be {expected}, got {capacity}")
        if signal not in SIGNALS or signal == "prediction":
            names = ", ".join(name for name in SIGNALS if name != "prediction")
            raise checks.InputValueError(f"History: signal must be one of {names}, got {signal!r}")
        if not 0.0 <= beta < float("inf"):
            raise checks.InputValueError(f"History: beta must be at least 0 and finite, got {beta}")
        if not 0.0 <= p_min <= 1.0:
            raise checks.InputValueError(f"History: p_min must be in [0, 1], got {p_min}")
        if ties not in ("strict", "midrank"):
            raise checks.InputValueError(f"History: ties must be 'strict' or 'midrank', got {ties!r}")
        self.capacity, self.signal, self.beta, self.p_min = capacity, signal, float(beta), float(p_min)
        checks.process_group("History", group)
        if group is not None and not bins and capacity > LARGEST_OF_GROUP:
            expected = f"at most {LARGEST_OF_GROUP} with a group, or bins=True"
            raise checks.InputValueError(f"History: capacity must be {expected}, got {capacity}")
        self.ties, self.bins, self.group = ties, bool(bins), group
        self._frozen = False
        self._state: dict[str, Tensor] = {}  # shared with frozen copies; empty until the first values

    def __repr__(self) -> str:
        options = f"signal={self.signal!r}, beta={self.beta:g}, p_min={self.p_min:g}, ties={self.ties!r}"
        return f"History({self.capacity}, {options}, bins={self.bins})"

    def frozen(self) -> History:
        """The same window, which this view of it never changes: for ``score(..., history=history.frozen())``."""
        view = copy.copy(self)
        view._frozen = True
        return view

    def cdf(self, values: Tensor) -> Tensor:
        """The share of the window below each value: float32, of their shape; 1 while it is empty, NaN for NaN."""
        values = self._checked("cdf", values)
        flat = values.reshape(-1)
        found = self._share_of_bins(flat) if self.bins else self._share_of_window(flat)
        return found.view(values.shape)

    def update(self, values: Tensor, mask: Tensor | None = None) -> None:
        """Append ``values``, those where ``mask`` (bool, of their shape) is True. A frozen view raises RuntimeError."""
        if self._frozen:
            raise RuntimeError("History.update: this is a frozen view of a history")
        values = self._checked("update", values, mask)
        flat = values.reshape(-1)
        valid = flat == flat
        if mask is not None:
            valid &= mask.reshape(-1)
        if self.group is not None and not self.bins:
            flat = self._of_all_ranks(flat, valid)
            valid = flat == flat
        if self.bins:
            self._add_to_bins(flat, valid)
        elif flat.device.type == "cpu":
            self._append(flat, valid)
        else:
            self._append_without_waiting(flat, valid)

    def probability(self, values: Tensor, *, mask: Tensor | None = None, update: bool = True) -> Tensor:
        """``max(p_min, cdf ** beta)`` of each value, float32, after appending them all, as the authors' code does.

        Args:
            values: float, any shape.
            mask: bool, of the same shape: where it is False a value does not enter and its probability is 0.
            update: False leaves the window as it is, which a frozen view always does.
        """
        values = self._checked("probability", values, mask)
        update = update and not self._frozen
        if update and self.group is not None:
            self.update(values, mask)
            update = False
        if (
            not self.bins
            and choose("History", values.device.type, torch.float32, 1, "") == "native"
            and not values.is_cuda
        ):
            return self._in_one_go(values, mask, update)
        if update:
            self.update(values, mask)
        found = self.cdf(values)
        if self.beta != 1.0:
            found = found.pow(self.beta)
        found = found.clamp_(min=self.p_min).nan_to_num_(nan=self.p_min)
        return found if mask is None else found.masked_fill_(~mask, 0.0)

    def select(
        self,
        values: Tensor,
        *,
        seed: int | Tensor,
        step: int,
        row_id: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Which samples to train on: bool, shaped like ``values``; each by its `probability` and a draw of its own.

        Args:
            seed: int, or 0-d int64 tensor on the device.
            step: of the training, so that a sample is drawn anew each time.
            row_id: int64, of the shape of ``values``: the draw belongs to the id, however the batch is split. Default:
                0, 1, 2, ...; with a group those of its ranks in turn.
            mask: as in `probability`.
        """
        chance = self.probability(values, mask=mask)
        if row_id is None:
            row_id = torch.arange(values.numel(), device=values.device)
            if self.group is not None:
                row_id = row_id * self.group.size() + self.group.rank()
        elif row_id.shape != values.shape:
            expected = f"the shape of values {tuple(values.shape)}"
            raise checks.InputValueError(f"History.select: row_id must have {expected}, got {tuple(row_id.shape)}")
        draws = uniforms(row_id.reshape(-1), seed=seed, step=step).view(values.shape)
        return draws < chance

    def state_dict(self) -> dict[str, Tensor | int | bool]:
        """The window: copies of its tensors, and what it must fit."""
        return {"capacity": self.capacity, "bins": self.bins} | {
            name: value.clone() for name, value in self._state.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`, on the device of its tensors. All other options are the object's own."""
        for name in ("capacity", "bins"):
            if state.get(name) != getattr(self, name):
                expected = f"{name}={getattr(self, name)}"
                raise checks.InputValueError(f"History: the state must have {expected}, got {state.get(name)}")
        kept = {name: value for name, value in state.items() if name not in ("capacity", "bins")}
        self._state.clear()
        if not kept:
            return
        device = next((value.device for value in kept.values() if isinstance(value, Tensor)), torch.device("cpu"))
        fresh = History(self.capacity, bins=self.bins)
        fresh._begin(device)
        for name, mine in fresh._state.items():
            theirs = kept.get(name)
            if not isinstance(theirs, Tensor) or theirs.shape != mine.shape or theirs.dtype != mine.dtype:
                shown = isinstance(theirs, Tensor)
                got = f"{tuple(theirs.shape)}, {checks.dtype_name(theirs.dtype)}" if shown else "none"
                expected = f"{name!r} of shape {tuple(mine.shape)}, {checks.dtype_name(mine.dtype)}"
                raise checks.InputValueError(f"History: the state must have {expected}, got {got}")
            mine.copy_(theirs)
        fresh._look_at_state()
        self._state.update(fresh._state)

    def _look_at_state(self) -> None:
        """Kernels trust the window's numbers: a total below 0 would be a place before it."""
        if self.bins:
            name, expected = "counts", "finite numbers of at least 0"
            right = (self._state["counts"] >= 0) & (self._state["counts"] < torch.inf)
        else:
            total = int(self._state["total"])
            if not 0 <= total < 1 << 62:
                raise checks.InputValueError(f"History: the state must have 'total' in [0, 2^62), got {total}")
            name, expected = "window", "numbers other than NaN"
            right = ~self._state["window"][:total].isnan()
        if not right.all():
            raise checks.InputValueError(f"History: the state must have {expected} in {name!r}, got others")

    # ---- the window

    def _begin(self, device: torch.device) -> None:
        if self.bins:
            self._state["counts"] = torch.zeros(BINS, dtype=torch.float32, device=device)
        else:
            self._state["window"] = torch.zeros(self.capacity, dtype=torch.float32, device=device)
            self._state["total"] = torch.zeros((), dtype=torch.int64, device=device)  # ever appended

    def _checked(self, method: str, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """The values as float32; the first ones begin the window."""
        function = f"History.{method}"
        checks.floating(function, "values", values)
        for state in self._state.values():
            if state.device != values.device:
                expected = f"on the window's device, {state.device}"
                raise checks.InputValueError(f"{function}: values must be {expected}, got {values.device}")
        if mask is not None:
            checks.mask_of(function, values, mask)
        if not self._state:
            self._begin(values.device)
        return values.detach().float()

    def _in_one_go(self, values: Tensor, mask: Tensor | None, update: bool) -> Tensor:
        """`probability` by one native call, where a chain of small ops would take longer than the scores."""
        window, total = self._state["window"], self._state["total"]
        values = values.contiguous()
        mask = None if mask is None else mask.contiguous()
        out = torch.empty_like(values)
        native.select_probability(
            *(window.data_ptr(), self.capacity, total.data_ptr(), values.data_ptr(), values.numel()),
            *(0 if mask is None else mask.data_ptr(), update, self.ties == "midrank", self.beta, self.p_min),
            *(out.data_ptr(), torch.get_num_threads()),
        )
        return out

    def _append(self, flat: Tensor, valid: Tensor) -> None:
        if not valid.all():
            flat = flat[valid]
        window, total = self._state["window"], self._state["total"]
        before = int(total)
        total += len(flat)
        flat = flat[-self.capacity :]
        first = (before + max(0, int(total) - before - self.capacity)) % self.capacity
        room = self.capacity - first
        window[first : first + len(flat)] = flat[:room]
        window[: max(0, len(flat) - room)] = flat[room:]

    def _append_without_waiting(self, flat: Tensor, valid: Tensor) -> None:
        """The same where the host does not know how many there are: every value is sent to its place, or to none."""
        window, total = self._state["window"], self._state["total"]
        rank = valid.cumsum(0)
        count = rank[-1] if len(rank) else 0
        kept = valid & (rank > count - self.capacity)
        place = torch.where(kept, (total + rank - 1) % self.capacity, self.capacity)
        spare = torch.cat([window, window.new_empty(1)]).scatter_(0, place, flat)  # its last place is nobody's
        window.copy_(spare[:-1])
        total += count

    def _of_all_ranks(self, flat: Tensor, valid: Tensor) -> Tensor:
        """The latest values of every rank, side by side; NaN in the place of those that a rank has not."""
        rank = valid.cumsum(0)
        place = rank + (self.capacity - 1 - rank[-1] if len(rank) else 0)  # the last one comes last
        place = torch.where(valid & (place >= 0), place, self.capacity)
        mine = flat.new_full((self.capacity + 1,), torch.nan).scatter_(0, place, flat)  # its last place is nobody's
        return all_gathered(mine[:-1], self.group).T.reshape(-1)

    def _share_of_window(self, flat: Tensor) -> Tensor:
        return ops.cdf(self._state["window"], self._state["total"], flat, self.ties == "midrank", "")

    # ---- the histogram

    @staticmethod
    def _bin(flat: Tensor) -> Tensor:
        positive = flat.nan_to_num(nan=0.0, posinf=torch.inf).clamp(min=0).abs()  # abs: a zero without its sign
        return positive.view(torch.int32).bitwise_right_shift(16).long()

    def _add_to_bins(self, flat: Tensor, valid: Tensor) -> None:
        counts = self._state["counts"]
        added = torch.zeros_like(counts).scatter_add_(0, self._bin(flat), valid.to(torch.float32))
        if self.group is not None:
            all_reduced(added, [self.group])
        counts *= (1 - added.sum() / self.capacity).clamp(min=0)
        counts += added

    def _share_of_bins(self, flat: Tensor) -> Tensor:
        counts = self._state["counts"].double()
        upto = counts.cumsum(0)
        at, total = self._bin(flat), upto[-1]
        own = counts[at]
        below = upto[at] - (own / 2 if self.ties == "midrank" else own)
        share = torch.where(total > 0, below / total, 1.0)
        return torch.where(flat == flat, share, torch.nan).float()
