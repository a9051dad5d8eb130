"""Data sets by row: what is in a file, a folder or a Python object, a range of rows at a time."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from torchassay import checks, npz
from torchassay.named_objects import imported, is_name
from torchassay.scoring.batches import Batch

_SAMPLED = 16  # rows that stand for a data set of which nothing else is known


class Source(Protocol):
    """A data set whose rows have the ids 0, 1, 2, ..."""

    fingerprint: str

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Batch: ...


def opened(function: str, data: Any) -> Source:
    """The data set that a path, a name or an object stands for; `torchassay score` says which there are.

    Raises:
        ValueError: nothing of that name, something else, or a data set without rows.
        TypeError: an object that has no length or no keys.
        ImportError: a file whose package is not installed.
    """
    if not isinstance(data, (str, os.PathLike)):
        return _some(function, data, Items(function, data))
    if is_name(str(data)):
        found = imported(function, "data", str(data))
        makes_one = isinstance(found, type) or (callable(found) and not hasattr(found, "__getitem__"))
        found = found() if makes_one else found
        return _some(function, data, Items(function, found))
    path = Path(data)
    if path.is_dir():
        saved = (path / "state.json").exists() and (path / "dataset_info.json").exists()
        return _some(function, data, saved_dataset(function, path) if saved else Parquet(function, path))
    if path.suffix.lower() not in (".npz", ".parquet") or not path.exists():
        expected = "a .npz, a .parquet or a folder of them, a saved Hugging Face dataset, or package.module:name"
        got = f"'{path}'" if path.exists() else f"'{path}', which is not there"
        raise checks.InputValueError(f"{function}: data must be {expected}, got {got}")
    return _some(function, data, Arrays(function, path) if path.suffix.lower() == ".npz" else Parquet(function, path))


def _some(function: str, data: Any, source: Source) -> Source:
    if len(source) == 0:
        raise checks.InputValueError(f"{function}: data must have at least one row, got none in '{data}'")
    return source


class Arrays:
    """The arrays of a .npz, all in RAM; ``x_train`` and ``y_train`` are read as ``x`` and ``y``, and then no others."""

    def __init__(self, function: str, path: Path):
        try:
            with zipfile.ZipFile(path) as archive:
                parted = "x_train.npy" in archive.namelist()
                contents = sorted((member.filename, member.CRC, member.file_size) for member in archive.infolist())
            if parted:
                found = npz.arrays(path, ("x_train", "y_train").__contains__)
                self._arrays = {name.removesuffix("_train"): array for name, array in found.items()}
            else:
                self._arrays = npz.arrays(path)
        except Exception as error:  # whatever the bytes made of the reader
            raise checks.InputValueError(f"{function}: data must be a .npz that can be read, got: {error}") from error
        lengths = {name: len(array) if array.ndim else 0 for name, array in self._arrays.items()}
        if len(set(lengths.values())) != 1:
            got = ", ".join(f"{name} {length}" for name, length in lengths.items()) or "none"
            raise checks.InputValueError(f"{function}: data must hold arrays of one length, got {got}")
        self.fingerprint = _hash(json.dumps(contents))

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def read(self, start: int, stop: int) -> Batch:
        columns = {name: array[start:stop] for name, array in self._arrays.items()}
        return Batch(columns | {"index": np.arange(start, stop)}, {})


class Parquet:
    """A Parquet file, or all in a folder in the order of their paths; row group by row group."""

    def __init__(self, function: str, path: Path):
        try:
            from pyarrow import ArrowException, parquet
        except ModuleNotFoundError:
            raise ImportError(f"{function}: '{path}' needs pyarrow: pip install \"torchassay[io]\"") from None
        files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        files = [file for file in files if not file.name.startswith((".", "_"))]
        if not files:
            expected = "a folder of .parquet files or a saved Hugging Face dataset"
            raise checks.InputValueError(f"{function}: data must be {expected}, got '{path}' without any")
        digest = hashlib.sha256()
        self._groups: list[tuple[Path, int]] = []
        lengths = []
        for file in files:
            try:
                footer = parquet.read_metadata(file)
            except (OSError, ArrowException) as error:
                got = f"'{file}': {str(error).splitlines()[0]}"
                raise checks.InputValueError(f"{function}: data must be Parquet that can be read, got {got}") from error
            digest.update(f"{file.name} {file.stat().st_size} {footer.to_dict()}".encode())
            self._groups += [(file, group) for group in range(footer.num_row_groups)]
            lengths += [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        self._ends = np.cumsum(lengths, dtype=np.int64)
        self._held: tuple = (-1, None)  # the row group read last: the next rows are likely in it too
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, stop: int) -> Batch:
        import pyarrow

        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right").tolist()
        pieces = []
        for number in range(first, last + 1):
            group = self._group(number)
            begin = int(self._ends[number]) - group.num_rows
            low, high = max(start - begin, 0), min(stop - begin, group.num_rows)
            pieces.append(group.slice(low, high - low))
        table = pyarrow.concat_tables(pieces)
        columns = {name: _column(table[name]) for name in table.column_names}
        return Batch(columns | {"index": np.arange(start, stop)}, {})

    def _group(self, number: int) -> Any:
        from pyarrow import parquet

        if self._held[0] != number:
            file, group = self._groups[number]
            # A single file, not read_table: that would take names of folders above it for columns.
            with parquet.ParquetFile(file) as opened:
                self._held = number, opened.read_row_group(group)
        return self._held[1]


def _column(values: Any) -> np.ndarray | list:
    """An array [B, ...] of numbers and lists of one length; else a value a row, None where there is none."""
    import pyarrow

    kind, numbers = values.type, values.combine_chunks()
    if pyarrow.types.is_fixed_size_list(kind) and not values.null_count:
        flat = numbers.flatten()
        if not flat.null_count and (pyarrow.types.is_integer(flat.type) or pyarrow.types.is_floating(flat.type)):
            return flat.to_numpy(zero_copy_only=False).reshape(len(values), kind.list_size)
    if values.null_count:
        return [None if value is None else np.asarray(value) for value in values.to_pylist()]
    array = values.to_numpy()
    return list(array) if array.dtype == object else array


class Items:
    """A map-style torch or Hugging Face dataset. Of a tuple the first two are x and y; a dict names its columns."""

    def __init__(self, function: str, dataset: Any, fingerprint: str | None = None):
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")) or isinstance(dataset, (str, Mapping)):
            expected = "a data set with a length and keys"
            raise checks.InputTypeError(f"{function}: data must be {expected}, got {type(dataset).__name__}")
        # A Hugging Face dataset gives arrays rather than Python lists if it is asked to.
        self._dataset = dataset.with_format("numpy") if hasattr(dataset, "with_format") else dataset
        self.fingerprint = fingerprint or self._sampled()

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, start: int, stop: int) -> Batch:
        rows, broken = {}, {}
        for number in range(start, stop):
            try:
                rows[number] = _row(self._dataset[number])
            except Exception as error:  # the data set is the user's: anything may happen in it
                broken[number] = f"must be one that can be read, got {type(error).__name__}: {error}"
        usual = Counter(map(tuple, rows.values())).most_common(1)
        for number, row in list(rows.items()):
            if tuple(row) != usual[0][0]:
                broken[number] = f"must have the columns {', '.join(usual[0][0])} of other rows, got {', '.join(row)}"
                del rows[number]
        columns: dict = {name: [row[name] for row in rows.values()] for name in (usual[0][0] if usual else ())}
        return Batch(columns | {"index": np.array(list(rows), np.int64)}, broken)

    def _sampled(self) -> str:
        """Of the length and some rows, since reading all would take as long as scoring."""
        digest = hashlib.sha256(f"{len(self)}".encode())
        for number in sorted({len(self) * place // _SAMPLED for place in range(_SAMPLED)} if len(self) else ()):
            columns, broken = self.read(number, number + 1)
            digest.update(f"{number} {sorted(columns)} {sorted(broken)}".encode())
            for (value,) in [] if broken else columns.values():
                array = value.detach().cpu().float().numpy() if isinstance(value, Tensor) else np.asarray(value)
                digest.update(repr(array.shape).encode())
                digest.update(repr(value).encode() if array.dtype.hasobject else array.tobytes())
        return digest.hexdigest()


def saved_dataset(function: str, path: Path) -> Items:
    """What `datasets.Dataset.save_to_disk` wrote, with its own fingerprint."""
    try:
        from datasets import load_from_disk
    except ModuleNotFoundError:
        raise ImportError(f"{function}: '{path}' needs the package datasets: pip install datasets") from None
    return Items(function, load_from_disk(str(path)), _hash((path / "state.json").read_text(encoding="utf-8")))


def _row(item: Any) -> dict:
    if isinstance(item, Mapping):
        return {name: value for name, value in item.items() if name != "index"}
    parts = item if isinstance(item, (tuple, list)) else (item,)
    return dict(zip(("x", "y"), parts, strict=False))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
