"""Batches as a data set gives them, and as tensors: padded, and checked row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchassay import checks

IGNORED = -100  # a target that does not count, as everywhere in torch
TARGETS = ("labels", "label", "target", "targets", "y")
TOKENS = "input_ids"
_PADDING = dict.fromkeys(TARGETS, IGNORED)  # anything else is padded with 0


class BrokenRows(checks.InputValueError):
    """Rows that cannot be read or scored; ``reasons`` says of each id why. The message names the first."""

    def __init__(self, message: str, reasons: Mapping[int, str] | None = None):
        super().__init__(message)
        self.reasons = dict(reasons or {})

    @classmethod
    def of(cls, function: str, reasons: Mapping[int, str]) -> BrokenRows:
        (index, reason), *more = reasons.items()
        others = f", and {len(more)} more of its batch" if more else ""
        return cls(f"{function}: row {index} {reason}{others}", reasons)


class Batch(NamedTuple):
    """What a data set gives for some rows."""

    columns: dict  # by name: an array or tensor [B, ...], or B values in a list; int64 "index" among them
    broken: dict[int, str]  # ids of rows that could not be read, which the columns lack, and why


def without(columns: Mapping, ids: Collection[int]) -> dict:
    """Columns without the rows of these ids."""
    kept = np.flatnonzero(~np.isin(np.asarray(columns["index"]), list(ids)))
    return {name: _taken(column, kept) for name, column in columns.items()}


def _taken(column: Any, rows: np.ndarray) -> Any:
    return [column[row] for row in rows] if isinstance(column, list) else column[rows]


def row_ids(function: str, columns: Mapping) -> np.ndarray:
    """The column ``index``."""
    if "index" not in columns:
        raise checks.InputValueError(f"{function}: batch must have a column 'index', got {', '.join(columns)}")
    index = np.asarray(columns["index"])
    if index.ndim != 1 or index.dtype.kind not in "iu":
        got = f"{index.dtype} of shape {index.shape}"
        raise checks.InputTypeError(f"{function}: column 'index' must hold integers of shape (B,), got {got}")
    for name, column in columns.items():
        if len(column) != len(index):
            expected = f"{len(index)} rows, as 'index' has"
            raise checks.InputValueError(f"{function}: column '{name}' must have {expected}, got {len(column)}")
    return index.astype(np.int64)


def tensors(function: str, columns: Mapping, names: Collection[str], index: np.ndarray) -> dict[str, Tensor]:
    """The named columns as tensors [B, ...] on the CPU: integers as int64 (uint8 and bool stay), floats as they are.

    Where a row is a list of tokens, ``input_ids``, all columns that have a value a token are padded to the longest row,
    targets with -100 and others with 0, and ``attention_mask`` is made unless it is there.

    Raises:
        BrokenRows: values that are missing, that are no numbers, or of another shape than in most rows.
    """
    broken: dict[int, str] = {}
    found: dict[str, Tensor] = {}
    rows: dict[str, list[Any]] = {}  # of arrays, or of what a row is instead
    for name in names:
        column = columns[name]
        if isinstance(column, Tensor):
            found[name] = _in_dtype(column.detach())
        elif isinstance(column, np.ndarray) and column.dtype.kind in "biuf":
            found[name] = _tensor(column)
        else:
            rows[name] = [_row(value) for value in column]
            for number, value in zip(index, rows[name], strict=True):
                if not isinstance(value, np.ndarray):
                    broken.setdefault(int(number), f"must hold numbers in '{name}', got {value}")
    if broken:
        raise BrokenRows.of(function, broken)
    ragged = {}
    if TOKENS in rows:
        lengths = [value.shape for value in rows[TOKENS]]
        for name in list(rows):
            if all(value.ndim == 1 for value in rows[name]):
                ragged[name] = rows.pop(name)
        for name, values in ragged.items():
            for number, value, length in zip(index, values, lengths, strict=True):
                if value.shape != length or not len(value):
                    expected = f"{length[0]} values, one a token," if length[0] else "at least one token"
                    broken.setdefault(int(number), f"must hold {expected} in '{name}', got {len(value)}")
    for name, values in rows.items():
        usual = Counter(value.shape for value in values).most_common(1)[0][0]
        for number, value in zip(index, values, strict=True):
            if value.shape != usual:
                reason = f"must have the shape {usual} of other rows in '{name}', got {value.shape}"
                broken.setdefault(int(number), reason)
    if broken:
        raise BrokenRows.of(function, broken)
    found |= {name: _tensor(np.stack(values)) for name, values in rows.items()}
    if ragged:
        found |= {name: _padded(values, _PADDING.get(name, 0)) for name, values in ragged.items()}
        ones = [np.ones(len(value), np.int64) for value in ragged.get(TOKENS, ())]
        found.setdefault("attention_mask", _padded(ones, 0))
    return found


def _row(value: Any) -> np.ndarray | str:
    """A row's value as an array, or what it is instead."""
    if isinstance(value, Tensor):
        value = _in_dtype(value.detach().cpu()).numpy()
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = value.tolist()  # nested lists of Parquet are arrays of arrays
    try:
        array = np.asarray(value)
    except ValueError:
        return "lists of different lengths"
    if array.dtype.kind in "biuf":
        return array
    return "nothing" if value is None else f"a {type(value).__name__}"


def _padded(values: list[np.ndarray], filler: int) -> Tensor:
    out = np.full((len(values), max(map(len, values))), filler, np.result_type(*values))
    for row, value in zip(out, values, strict=True):
        row[: len(value)] = value
    return _tensor(out)


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype.kind in "iu" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _in_dtype(value: Tensor) -> Tensor:
    """NumPy has no bfloat16, and few ops take small integers."""
    if value.dtype == torch.bfloat16:
        return value.float()
    return value if value.is_floating_point() or value.dtype in (torch.bool, torch.uint8) else value.long()
