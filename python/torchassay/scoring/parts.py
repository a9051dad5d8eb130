"""The folder of a run: what the run is, and its parts, each whole or not there however the processes end."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torchassay import checks, whole_files
from torchassay.score_files import RUN

if TYPE_CHECKING:
    import pyarrow

_LIKE = (  # what two runs have in common whose parts fit together
    "version",
    "model",
    "weights",
    "dtype",
    "device",
    "signals",
    "tokens",
    "probs",
    "head",
    "data",
    "rows",
    "batch_size",
    "batches_per_part",
)


class Plan(NamedTuple):
    """How rows are cut into batches and these into parts: by their place alone, whoever scores them.

    So a row stands in the same batch in every run, and its scores are the same to the bit.
    """

    rows: int
    batch_size: int
    batches_per_part: int

    @property
    def batches(self) -> int:
        return -(-self.rows // self.batch_size)

    @property
    def parts(self) -> int:
        """The last one takes what is left over."""
        return max(self.batches // self.batches_per_part, 1)

    def batches_of(self, part: int) -> range:
        start = part * self.batches_per_part
        return range(start, self.batches if part == self.parts - 1 else start + self.batches_per_part)

    def rows_of(self, batch: int) -> tuple[int, int]:
        start = batch * self.batch_size
        return start, min(start + self.batch_size, self.rows)

    def rows_in(self, parts: Sequence[int]) -> int:
        return sum(self.rows_of(self.batches_of(part)[-1])[1] - part * self.part_size for part in parts)

    @property
    def part_size(self) -> int:
        return self.batch_size * self.batches_per_part


class Folder:
    """OUT: ``_run.json`` and ``part-00000.parquet``, ``part-00001.parquet``, ..."""

    def __init__(self, function: str, out: str | os.PathLike):
        self.function, self.path = function, Path(out)

    def open(self, about: dict, resume: bool) -> None:
        """Make the folder and try it, before any work; what killed processes left half written goes.

        Raises:
            ValueError: there is a run and it is not to be resumed, it is another one, or other files are there.
            OSError: the folder cannot be written to.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.path):
            pass
        whole_files.clear(self.path)
        if (self.path / RUN).exists():
            self.same_run(about)
            if not resume:
                self._refuse(about["parts"])
        elif any(self.path.glob("*.parquet")):
            expected = f"an empty folder or one with {RUN}"
            raise checks.InputValueError(f"{self.function}: out must be {expected}, got '{self.path}' with other parts")
        else:
            with whole_files.replacing(self.path / RUN) as path:
                path.write_text(json.dumps(about, indent=1), encoding="utf-8")

    def same_run(self, about: dict) -> None:
        """Raise unless the run in the folder is this one."""
        before = self.about()
        for name in _LIKE:
            if before.get(name) != about[name]:
                expected = f"as it was in the run in '{self.path}', {_shown(before.get(name))}"
                raise checks.InputValueError(f"{self.function}: {name} must be {expected}, got {_shown(about[name])}")

    def _refuse(self, parts: int) -> None:
        done = parts - len(self.missing(range(parts)))
        state = "it is whole" if done == parts else f"{done} of {parts} parts: go on with resume"
        got = f"'{self.path}' with this run in it ({state})"
        raise checks.InputValueError(f"{self.function}: out must be a new folder, got {got}")

    def about(self) -> dict:
        return checks.json_object(self.function, self.path / RUN, parts=int)

    def part(self, number: int) -> Path:
        return self.path / f"part-{number:05d}.parquet"

    def missing(self, parts: Sequence[int]) -> list[int]:
        """Those that are not there."""
        return [number for number in parts if not self.part(number).exists()]

    def count(self, number: int) -> tuple[int, int, int]:
        """A part's rows, tokens and skipped rows."""
        from pyarrow import parquet

        with parquet.ParquetFile(self.part(number)) as part:
            names, skipped = part.schema_arrow.names, part.schema_arrow.metadata[b"torchassay.skipped"]
            tokens = part.read(columns=["tokens"])["tokens"].to_numpy().sum() if "tokens" in names else 0
            return part.metadata.num_rows, int(tokens), len(skipped.split(b",")) if skipped else 0

    def write(self, number: int, table: pyarrow.Table, facts: dict) -> None:
        """A part, with what it is in the schema's metadata."""
        from pyarrow import parquet

        metadata = {f"torchassay.{name}": _shown(value) for name, value in facts.items()}
        table = table.replace_schema_metadata(metadata)
        with whole_files.replacing(self.part(number)) as path:
            parquet.write_table(table, path, compression="zstd")


def _shown(value: Any) -> str:
    return (
        value if isinstance(value, str) else ",".join(map(str, value)) if isinstance(value, list) else json.dumps(value)
    )
