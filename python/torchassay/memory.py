"""``SampleMemory``: what is known of every sample of a data set; ``keep``: which samples a window of values holds."""

from __future__ import annotations

import collections
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchassay import checks
from torchassay.scores import Scores
from torchassay.whole_files import replacing

PENDING = 32  # updates from a GPU that may wait to be read
DESCRIPTION = "fields.json"  # beside the arrays of a memory in a folder
RULE = re.compile(r"(last|mean|max|forgetting|ema:(\S+))( of (\w+))?")


class Field(NamedTuple):
    """One number a sample, and what a visit makes of it."""

    rule: str
    decay: float  # the share that the old value keeps, of the rule "ema"
    signal: str


class Update(NamedTuple):
    """The scores of a batch on their way into the memory."""

    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    step: Tensor  # one for all, or one a sample
    values: dict[str, Tensor]  # by signal
    copied: list[torch.cuda.Event]  # after which the tensors hold what they should; none: they do now


class SampleMemory:
    """Numbers of each sample of a data set, kept up to date from the scores of batches.

    A field holds one float32 a sample. Beside the fields stand how often a sample was visited (uint16, which stays at
    65,535) and in which step for the last time (int32): 4 bytes a field and 6 more a sample, in RAM or in files.

    Args:
        n: how many samples; they are numbered from 0.
        fields: a rule for each field's name. "last": the latest value. "mean": of all visits. "max": the largest.
            "ema:0.9": 0.9 of the old value and 0.1 of the new one, beginning with the first. "forgetting": forgetting
            events (Toneva et al. 2019, arXiv 1812.05159, section 3), how often a sample that was classified correctly
            was not at its next visit; values > 0 and True are correct, and a sample that never was counts as inf. The
            field's name is the signal's, unless the rule goes on with " of SIGNAL": {"el2n": "mean of grad_norm",
            "forgetting": "forgetting of target_margin"}.
        path: a folder with a file for each array, mapped into memory: made if it is not there, opened if it is. Several
            processes of one machine may map one folder; then a sample is to be updated by one of them at a time.

    A value that is NaN never enters: a field stays as it was, and the visit counts. A mean takes its count from the
    visits, so a NaN counts as the mean of the others, and from visit 65,535 on the mean is one with a decay of 1 /
    65,535.

    Raises:
        ValueError: an argument out of range, no such field, or a folder that holds another memory.
        TypeError: an argument of another type.

    Example:
        >>> import torch, torchassay as ta
        >>> memory = ta.SampleMemory(4, {"loss": "last", "worst": "max of loss"})
        >>> memory.update(torch.tensor([0, 2]), {"loss": torch.tensor([1.5, 0.5])}, step=0)
        >>> memory.update(torch.tensor([2, 0]), {"loss": torch.tensor([0.2, 0.1])}, step=1)
        >>> memory["worst"], memory.visits
        (tensor([1.5000,    nan, 0.5000,    nan]), tensor([2, 0, 2, 0], dtype=torch.uint16))
        >>> memory.top("worst", 1)
        (tensor([1.5000]), tensor([0]))
    """

    __iter__ = None  # the keys are names: without this, Python would try 0, 1, 2, ...

    def __init__(self, n: int, fields: Mapping[str, str] | None = None, path: str | os.PathLike | None = None):
        checks.integer("SampleMemory", "n", n, 1)
        self.n = n
        self.fields = {"loss": "last"} if fields is None else dict(fields)
        self._fields = {name: _field(name, rule) for name, rule in self.fields.items()}
        self._start = dict.fromkeys(self._fields, np.float32(np.nan))
        self._start |= {"visits": np.uint16(0), "last_step": np.int32(-1)}
        self._pending: collections.deque[Update] = collections.deque()
        if path is None:
            self._arrays = {name: np.full(n, start) for name, start in self._start.items()}
        else:
            self._arrays = self._mapped(Path(path))

    def __repr__(self) -> str:
        return f"SampleMemory({self.n}, {self.fields})"

    def update(self, index: Tensor, scores: Scores | Mapping[str, Tensor], step: int | Tensor) -> None:
        """Take in the scores of a batch.

        Tensors on a GPU are copied while it goes on working, and taken in when the memory is read or 32 updates later:
        nothing waits for them before, and an index out of range is found then.

        Args:
            index: [B] int64, the samples' numbers. If one stands there twice, its last place counts, as one visit.
            scores: a `Scores`, or tensors [B] by name. Those that no field is made of are ignored.
            step: of the training, in [0, 2^31), or [B] int64, one a sample.
        """
        function = "SampleMemory.update"
        checks.tensor(function, "index", index)
        if index.dtype != torch.int64 or index.dim() != 1:
            got = f"{checks.dtype_name(index.dtype)} of shape {tuple(index.shape)}"
            raise checks.InputValueError(f"{function}: index must be int64 of shape (B,), got {got}")
        step = _steps(function, step, index)
        known = scores.as_dict() if isinstance(scores, Scores) else scores
        if not isinstance(known, Mapping):
            raise checks.InputTypeError(f"{function}: scores must be Scores or a mapping, got {type(scores).__name__}")
        values = {}
        for signal in dict.fromkeys(field.signal for field in self._fields.values()):
            if signal not in known:
                raise checks.InputValueError(f"{function}: scores must hold '{signal}', got {', '.join(known)}")
            checks.tensor(function, f"scores['{signal}']", known[signal])
            if known[signal].shape != index.shape:
                shapes = f"index's shape {tuple(index.shape)}, got {tuple(known[signal].shape)}"
                raise checks.InputValueError(f"{function}: scores['{signal}'] must have {shapes}")
            values[signal] = known[signal].detach().float()
        (index, step, *copies), copied = _on_host([index, step, *values.values()])
        self._pending.append(Update(index, step, dict(zip(values, copies, strict=True)), copied))
        self._take_in(PENDING if copied else 0)

    def __getitem__(self, name: str) -> Tensor:
        """A field, float32 [n], NaN where no value has come yet. It is the memory itself: not to be written to.

        Of the rule "forgetting" it is a copy: the memory's own numbers have a sign, negative after an incorrect visit.
        """
        if name not in self._fields:
            raise checks.InputValueError(f"SampleMemory: field must be one of {', '.join(self.fields)}, got {name!r}")
        found = self._array(name)
        return torch.from_numpy(np.abs(found) if self._fields[name].rule == "forgetting" else found)

    @property
    def visits(self) -> Tensor:
        """How often each sample was visited, uint16 [n], at most 65,535; torch can only compare ``.int()`` of it."""
        return torch.from_numpy(self._array("visits"))

    @property
    def last_step(self) -> Tensor:
        """The step in which each sample was visited last, int32 [n]; -1: never."""
        return torch.from_numpy(self._array("last_step"))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self._arrays.values())

    def top(self, name: str, k: int, largest: bool = True) -> tuple[Tensor, Tensor]:
        """The ``k`` largest values of a field (or smallest) in order, and whose they are, int64; of equal ones the
        first samples. Samples without a value have no place: there may be fewer than k."""
        checks.integer("SampleMemory.top", "k", k, 0)
        values = self[name].numpy()
        order = -values if largest else values
        index = np.flatnonzero(_first(order, min(k, self.n - int(np.isnan(values).sum()))))
        index = index[np.argsort(order[index], kind="stable")]
        return torch.from_numpy(values[index]), torch.from_numpy(index)

    def to_parquet(self, path: str | os.PathLike) -> None:
        """Write a table of one row a sample: index, the fields by name, visits and last_step.

        Raises:
            ImportError: without pyarrow, which `torchassay[io]` brings.
        """
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise ImportError('SampleMemory.to_parquet needs pyarrow: pip install "torchassay[io]"') from None
        columns = {"index": np.arange(self.n)} | {name: self[name].numpy() for name in self.fields}
        columns |= {"visits": self._array("visits"), "last_step": self._array("last_step")}
        with replacing(Path(path)) as fresh:
            pyarrow.parquet.write_table(pyarrow.table(columns), fresh)

    def state_dict(self) -> dict[str, Tensor | dict[str, str]]:
        """The arrays themselves, not copies, as torch's modules give them, and the ``fields`` that they belong to. The
        visits are the same bits as int16, since torch cannot unpickle uint16."""
        self._take_in()
        return {"fields": dict(self.fields)} | {name: torch.from_numpy(array) for name, array in self._stored().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`, whose numbers are copied. A state of another memory raises ValueError."""
        function = "SampleMemory.load_state_dict"
        if state.get("fields") != self.fields:
            raise checks.InputValueError(f"{function}: state must have fields {self.fields}, got {state.get('fields')}")
        for name, array in self._stored().items():
            theirs, dtype = state.get(name), str(array.dtype)
            got = f"{checks.dtype_name(theirs.dtype)} {tuple(theirs.shape)}" if isinstance(theirs, Tensor) else "none"
            if got != f"{dtype} {array.shape}":
                expected = f"'{name}' as {dtype} {array.shape}"
                raise checks.InputValueError(f"{function}: state must have {expected}, got {got}")
        self._pending.clear()
        for name, array in self._stored().items():
            array[:] = state[name].cpu().numpy()

    def clear(self) -> None:
        """Forget everything."""
        self._pending.clear()
        for name, array in self._arrays.items():
            array.fill(self._start[name])

    # ---- the arrays

    def _stored(self) -> dict[str, np.ndarray]:
        """The arrays as they stand in a state."""
        return self._arrays | {"visits": self._arrays["visits"].view(np.int16)}

    def _array(self, name: str) -> np.ndarray:
        """An array as it is kept, up to date."""
        self._take_in()
        return self._arrays[name]

    def _mapped(self, path: Path) -> dict[str, np.ndarray]:
        """The arrays in a folder, which appears at once and whole, so that no process opens a half-made one."""
        described = {"n": self.n, "fields": self.fields}
        files = {name: f"{name}.{start.dtype}" for name, start in self._start.items()}
        if not (path / DESCRIPTION).exists():
            fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            fresh.mkdir(parents=True)
            for name, start in self._start.items():
                np.memmap(fresh / files[name], start.dtype, "w+", shape=self.n).fill(start)
            (fresh / DESCRIPTION).write_text(json.dumps(described))
            try:
                fresh.rename(path)
            except OSError:
                shutil.rmtree(fresh)
                if not (path / DESCRIPTION).exists():  # no other process was faster: something else is in the way
                    raise
        try:
            found = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            found = "another file"
        if found != described:
            raise checks.InputValueError(f"SampleMemory: path must hold a memory of {described}, got {found}")
        for name, start in self._start.items():
            size, expected = (path / files[name]).stat().st_size, self.n * start.nbytes
            if size != expected:
                raise checks.InputValueError(f"SampleMemory: {files[name]} must have {expected} bytes, got {size}")
        return {name: np.memmap(path / files[name], start.dtype, shape=self.n) for name, start in self._start.items()}

    def _take_in(self, left: int = 0) -> None:
        """Take in the oldest of the pending updates, until as many are left."""
        while len(self._pending) > left:
            update = self._pending.popleft()
            for event in update.copied:
                event.synchronize()
            index, step = update.index.numpy(), update.step.numpy()
            for what, value, end in (("index", index, self.n), ("step", step, 1 << 31)):
                if value.size and not 0 <= value.min() <= value.max() < end:
                    got = value.min() if value.min() < 0 else value.max()
                    raise checks.InputValueError(f"SampleMemory.update: {what} must be in [0, {end}), got {got}")
            visits = self._arrays["visits"]
            count = np.minimum(visits[index].astype(np.int64) + 1, np.iinfo(np.uint16).max)
            for name, field in self._fields.items():
                array = self._arrays[name]
                array[index] = _renewed(field, array[index], update.values[field.signal].numpy(), count)
            visits[index] = count
            self._arrays["last_step"][index] = step


def keep(
    values: Tensor, fraction: float, offset: float = 0.0, *, largest: bool = True, by: Tensor | None = None
) -> Tensor:
    """Which samples a window of their values holds: a data diet (Paul et al. 2021, arXiv 2107.07075, sections 2 and 4).

    In the descending order of the values the first ``offset`` share is left out, as samples that may be noise, and
    after it ``fraction`` of all are kept. Equal values keep the order of the samples; NaN counts as -inf.

    Args:
        values: [N], any float dtype.
        fraction: of the samples to keep, in [0, 1].
        offset: share to leave out before, in [0, 1 - fraction].
        largest: False takes the ascending order.
        by: [N], classes in an integer dtype: the same window in every class, so that their balance stays.

    Returns:
        The samples' numbers, int64, ascending. The window of N samples, of each class with ``by``, goes from round(N
        offset) to round(N (offset + fraction)), halves upwards: so windows side by side share nothing and leave nothing
        out, and what is kept of a class is less than one sample away from the fraction.

    Raises:
        ValueError: a shape or share that does not fit.
        TypeError: values that are not floating-point, or classes that are no integers.

    Example:
        >>> import torch, torchassay as ta
        >>> values = torch.tensor([0.1, 5.0, 0.7, 0.3])
        >>> ta.keep(values, 0.5).tolist(), ta.keep(values, 0.5, 0.25).tolist()
        ([1, 2], [2, 3])
    """
    checks.floating("keep", "values", values)
    if values.dim() != 1:
        raise checks.InputValueError(f"keep: values must have shape (N,), got {tuple(values.shape)}")
    if not 0.0 <= fraction <= 1.0:
        raise checks.InputValueError(f"keep: fraction must be in [0, 1], got {fraction}")
    if not 0.0 <= offset <= 1.0 - fraction + 1e-9:
        raise checks.InputValueError(f"keep: offset must be in [0, 1 - fraction], got {offset} with {fraction}")
    wide = values.detach().cpu().to(torch.promote_types(values.dtype, torch.float32))  # NumPy knows no bfloat16
    order = wide.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf).numpy()
    order = -order if largest else order
    groups = [np.arange(len(order))]
    if by is not None:
        checks.tensor("keep", "by", by)
        if by.dtype not in checks.INTEGERS:
            raise checks.InputTypeError(f"keep: by must have an integer dtype, got {checks.dtype_name(by.dtype)}")
        if by.shape != values.shape:
            expected = f"the shape of values {tuple(values.shape)}"
            raise checks.InputValueError(f"keep: by must have {expected}, got {tuple(by.shape)}")
        classes = by.cpu().numpy()
        together = np.argsort(classes, kind="stable")
        groups = np.split(together, np.flatnonzero(np.diff(classes[together])) + 1)
    kept = np.zeros(len(order), bool)
    for group in groups:
        part = order[group]
        kept[group] = _first(part, _rounded(len(part), offset + fraction)) & ~_first(part, _rounded(len(part), offset))
    return torch.from_numpy(np.flatnonzero(kept))


def _field(name: str, rule: str) -> Field:
    if not isinstance(name, str) or not isinstance(rule, str):
        got = f"{type(name).__name__}: {type(rule).__name__}"
        raise checks.InputTypeError(f"SampleMemory: fields must map a name to a rule, got {got}")
    if not name.isidentifier() or name in ("index", "fields", "visits", "last_step"):
        expected = "identifiers other than index, fields, visits and last_step"
        raise checks.InputValueError(f"SampleMemory: names of fields must be {expected}, got {name!r}")
    found = RULE.fullmatch(rule)
    try:
        decay = float(found[2] or 0.0) if found else math.nan
    except ValueError:
        decay = math.nan
    if found is None or not 0.0 <= decay < 1.0:
        expected = "last, mean, max, forgetting or ema:DECAY with DECAY in [0, 1), and may go on with ' of SIGNAL'"
        raise checks.InputValueError(f"SampleMemory: a rule must be {expected}; got {rule!r}")
    return Field(found[1].partition(":")[0], decay, found[4] or name)


def _steps(function: str, step: int | Tensor, index: Tensor) -> Tensor:
    if isinstance(step, Tensor):
        if step.dtype != torch.int64 or step.shape not in ((), index.shape):
            got = f"{checks.dtype_name(step.dtype)} of shape {tuple(step.shape)}"
            expected = f"int64 of shape {tuple(index.shape)}"
            raise checks.InputValueError(f"{function}: step must be an int or {expected}, got {got}")
        return step
    if isinstance(step, bool) or not isinstance(step, int):
        raise checks.InputTypeError(f"{function}: step must be an int or a Tensor, got {type(step).__name__}")
    return torch.tensor(step)


def _on_host(tensors: list[Tensor]) -> tuple[list[Tensor], list[torch.cuda.Event]]:
    """Copies in host memory (of CUDA tensors in pinned memory), and the events after which they are there."""
    copies = [value.to("cpu", non_blocking=value.is_cuda, copy=True) for value in tensors]
    streams = [torch.cuda.current_stream(device) for device in {value.device for value in tensors if value.is_cuda}]
    return copies, [stream.record_event() for stream in streams]


def _renewed(field: Field, old: np.ndarray, value: np.ndarray, count: np.ndarray) -> np.ndarray:
    """What a field holds after visits, of which each sample has had ``count`` then."""
    if field.rule == "max":
        return np.fmax(old, value)
    if field.rule == "forgetting":  # its sign says how the last visit was, so -0.0 can't occur
        known = np.isfinite(old)
        correct = np.where(known, np.abs(old), 0)
        incorrect = np.where(known, np.where(old < 0, old, -old - 1), np.inf)
        new = np.where(value > 0, correct, incorrect)
    else:
        shares: dict[str, float | np.ndarray] = {"last": 0.0, "mean": 1 - 1 / count, "ema": field.decay}
        share = np.where(np.isnan(old), 0.0, shares[field.rule])
        with np.errstate(invalid="ignore"):  # infinities of both signs have no mean
            new = np.where(share > 0, share * old + (1 - share) * value, value)
    return np.where(np.isnan(value) | np.isnan(new), old, new)


def _first(order: np.ndarray, count: int) -> np.ndarray:
    """Which numbers, as bool, are the first ``count`` in ascending order; of equal ones the first."""
    if count == 0:
        return np.zeros(len(order), bool)
    last = np.partition(order, count - 1)[count - 1]
    found = order < last
    found[np.flatnonzero(order == last)[: count - int(found.sum())]] = True
    return found


def _rounded(n: int, share: float) -> int:
    """round(n share), halves upwards, also where the share is a sum of floats."""
    return min(n, math.floor(round(n * share, 6) + 0.5))
