"""Scores of samples in files: reading, checking and averaging them, and writing without leaving half a file."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from torchassay import checks, npz
from torchassay.memory import SampleMemory
from torchassay.scores import Scores

KINDS = (".parquet", ".npz", ".csv")
RUN = "_run.json"  # in a folder of `torchassay score`; readers of Parquet pass over names that begin so


class Columns:
    """Columns of one row a sample by name, where they come from, and for which function they are read.

    A column ``index`` says which samples they are; without it they are 0, 1, 2, ...
    """

    def __init__(self, function: str, where: str, arrays: Mapping[str, np.ndarray]):
        self.function, self.where, self._arrays = function, where, dict(arrays)
        lengths = {name: len(array) for name, array in self._arrays.items()}
        if not lengths:
            raise self.error(f"{where} must have columns of a value a sample, got none")
        if len(set(lengths.values())) > 1:
            got = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise self.error(f"{where} must have columns of one length, got {got}")
        self.n = len(next(iter(self._arrays.values())))
        if self.n == 0:
            raise self.error(f"{where} must have at least one sample, got none")
        self.index = self.labels("index") if "index" in self else np.arange(self.n)
        if len(np.unique(self.index)) < self.n:
            raise self.error(f"{where}: column 'index' must name each sample once, got one twice")

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            raise self.error(f"{self.where} must have a column '{name}', got {', '.join(self.names)}")
        return self._arrays[name]

    @property
    def names(self) -> list[str]:
        return list(self._arrays)

    def error(self, message: str) -> checks.InputValueError:
        return checks.InputValueError(f"{self.function}: {message}")

    def numbers(self, name: str) -> np.ndarray:
        """A column as float64 [n]."""
        found = self[name]
        if found.ndim != 1 or found.dtype.kind not in "biuf":
            raise self.error(f"{self.where}: column '{name}' must hold a number a sample, got {_kind(found)}")
        return found.astype(np.float64)

    def labels(self, name: str) -> np.ndarray:
        """A column of classes or sample numbers as int64 [n]."""
        found = self[name]
        if found.ndim != 1 or found.dtype.kind not in "iu" or found.min() < 0:
            got = f"{found.min()}" if found.ndim == 1 and found.dtype.kind == "i" else _kind(found)
            raise self.error(f"{self.where}: column '{name}' must hold integers of at least 0, got {got}")
        return found.astype(np.int64)

    def of_rows(self, name: str, values: np.ndarray) -> np.ndarray:
        """What belongs to the rows of ``values``, which the index numbers: all of them, if there is no gap in it."""
        least = int(self.index.max()) + 1
        if len(values) < least or len(values) > least == self.n:
            expected = f"{least} samples, as {self.where} has" if least == self.n else f"at least {least} samples"
            raise self.error(f"{name} must have {expected}, got {len(values)}")
        return values[self.index]


def _kind(array: np.ndarray) -> str:
    if array.dtype.kind == "U":
        return f"{_not_a_number(array)!r}" if array.ndim == 1 else "texts"
    return f"{array.dtype} of shape {array.shape}"


def _not_a_number(texts: np.ndarray) -> str:
    """The first text that makes a column of texts what it is; the first one where that is a NUL, which NumPy drops."""
    return next((str(text) for text in texts if _parsed([str(text)]).dtype.kind == "U"), str(texts[0]))


def columns(function: str, scores) -> Columns:
    """The columns of a file (Parquet, .npz or .csv), a `SampleMemory`, `Scores` or a mapping of arrays or tensors."""
    if isinstance(scores, (str, os.PathLike)):
        return read(function, Path(scores))
    if isinstance(scores, SampleMemory):
        scores = {name: scores[name] for name in scores.fields}
    elif isinstance(scores, Scores):
        scores = scores.as_dict()
    if not isinstance(scores, Mapping):
        expected = "a file, a SampleMemory, Scores or a mapping"
        raise checks.InputTypeError(f"{function}: scores must be {expected}, got {type(scores).__name__}")
    return Columns(function, "scores", {name: array(value) for name, value in scores.items()})


def array(value) -> np.ndarray:
    """A tensor of any device, or anything array-like, as NumPy has it."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def read(function: str, path: Path, only: Sequence[str] | None = None) -> Columns:
    """The columns of a file. Of a .npz, arrays without dimensions are left out, and all but ``only`` if it is given.

    Of Parquet, lists are left out unless all have one length. A folder of `torchassay score` is read as one file.

    Raises:
        ValueError: there is no such file, or it is not what its name says.
        ImportError: Parquet without pyarrow.
    """
    kind = ".parquet" if path.is_dir() and (path / RUN).exists() else path.suffix.lower()
    if kind not in KINDS:
        raise checks.InputValueError(f"{function}: scores must be a file {', '.join(KINDS)}, got '{path}'")
    try:
        arrays = _npz(path, only) if kind == ".npz" else _csv(path) if kind == ".csv" else _parquet(path)
    except ModuleNotFoundError:
        raise ImportError(f"{function}: '{path}' needs pyarrow: pip install \"torchassay[io]\"") from None
    except FileNotFoundError:
        raise checks.InputValueError(f"{function}: '{path}' must be a file, got none of that name") from None
    except Exception as error:  # whatever the bytes made of the reader
        reason = getattr(error, "strerror", None) or f"{error}".partition("\n")[0] or type(error).__name__
        expected = f"a {kind} file that can be read"
        raise checks.InputValueError(f"{function}: '{path}' must be {expected}, got: {reason}") from error
    return Columns(function, f"'{path}'", arrays)


def _npz(path: Path, only: Sequence[str] | None) -> dict[str, np.ndarray]:
    found = npz.arrays(path, lambda name: only is None or name in only)
    return {name: values for name, values in found.items() if values.ndim}


def _parquet(path: Path) -> dict[str, np.ndarray]:
    import pyarrow
    from pyarrow import parquet

    # File by file: pyarrow.parquet.read_table would take names of folders above it for columns.
    tables = []
    for file in _parts(path) if path.is_dir() else [path]:
        with parquet.ParquetFile(file) as opened:
            kinds = {field.name: field.type for field in opened.schema_arrow}
            scalar = [name for name, kind in kinds.items() if not pyarrow.types.is_list(kind)]
            tables.append(opened.read(columns=scalar))
    table = pyarrow.concat_tables(tables)
    return {name: _plain(table[name]) for name in table.column_names}


def _parts(folder: Path) -> list[Path]:
    """The parts of a run, all of which must be there."""
    expected = json.loads((folder / RUN).read_text(encoding="utf-8"))["parts"]
    found = sorted(folder.glob("part-*.parquet"))
    if len(found) < expected:
        raise ValueError(f"{len(found)} of {expected} parts, of a run that is to go on")
    return found


def _plain(column) -> np.ndarray:
    import pyarrow

    if pyarrow.types.is_fixed_size_list(column.type):
        return column.combine_chunks().flatten().to_numpy().reshape(-1, column.type.list_size)
    values = column.to_numpy()
    return values.astype(str) if values.dtype == object else values


def _csv(path: Path) -> dict[str, np.ndarray]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        names = next(rows, [])
        if len(set(names)) < len(names):
            raise ValueError("a column twice in line 1")
        cells = []
        for row in rows:
            if len(row) != len(names):
                raise ValueError(f"{len(row)} values in line {rows.line_num}, not {len(names)}")
            cells.append(row)
    texts = zip(*cells, strict=True) if cells else [()] * len(names)
    return {name: _parsed(column) for name, column in zip(names, texts, strict=True)}


def _parsed(texts: Sequence[str]) -> np.ndarray:
    """Integers if all are, else floats, else the texts; an empty cell is NaN."""
    for dtype in (np.int64, np.float64):
        with contextlib.suppress(ValueError, OverflowError):
            return np.array([(text or "nan") if dtype is np.float64 else int(text) for text in texts], dtype)
    return np.array(texts, str)


class Mean(NamedTuple):
    """What `mean` returns."""

    index: np.ndarray  # int64 [N], the samples' numbers, ascending
    values: np.ndarray  # float64 [N]
    given: np.ndarray | None  # int64 [N], with ``per_class`` their classes: the column of that name of all files


def mean(paths: Sequence[str | os.PathLike], by: str, per_class: bool = False) -> Mean:
    """The mean of a column over one or more files of the same samples, each in an order of its own.

    Raises:
        ValueError: files without the column, with NaN in it, or of different samples or classes.
    """
    total, first = 0.0, None
    for path in paths:
        found = read("select", Path(path))
        order = np.argsort(found.index, kind="stable")
        index, values = found.index[order], found.numbers(by)[order]
        missing = np.flatnonzero(np.isnan(values))
        if len(missing):
            got = f"{len(missing)}, the first of sample {index[missing[0]]}"
            raise found.error(f"{found.where}: column '{by}' must hold no NaN, got {got}")
        given = found.labels("given")[order] if per_class else None
        first = first or (found.where, index, given)
        where, *expected = first
        if len(index) != len(expected[0]):
            raise found.error(f"{found.where} must have the {len(expected[0])} samples of {where}, got {len(index)}")
        for name, ours, theirs in zip(("index", "given"), (index, given), expected, strict=True):
            if not np.array_equal(ours, theirs):
                at = np.flatnonzero(ours != theirs)[0]
                got = f"{ours[at]} in place of {theirs[at]}"
                raise found.error(f"{found.where}: column '{name}' must be that of {where}, got {got}")
        total = total + values
    return Mean(index, total / len(paths), given)
