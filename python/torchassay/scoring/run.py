"""Scoring a data set into a folder of parts, on as many processes as torchrun started."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from torchassay import checks
from torchassay.scoring.batches import Batch, BrokenRows, without
from torchassay.scoring.dataset_scorer import DatasetScorer, need_pyarrow
from torchassay.scoring.parts import Folder, Plan
from torchassay.scoring.sources import Source, opened

logger = logging.getLogger("torchassay.scoring")
_SELF = "score_dataset"


class Counters(NamedTuple):
    """What was done."""

    rows: int = 0  # scored
    tokens: int = 0  # of them, where the model gives logits for each
    skipped: int = 0  # rows that are broken
    seconds: float = 0.0
    parts: int = 0  # written

    def __add__(self, other: Counters) -> Counters:  # type: ignore[override]  # not tuple's
        return Counters._make(mine + theirs for mine, theirs in zip(self, other, strict=True))


class Job:
    """What a process needs to score any part of a run."""

    def __init__(self, scorer: DatasetScorer, source: Source, plan: Plan, folder: Folder, on_error: str = "stop"):
        self.scorer, self.source, self.plan, self.folder, self.on_error = scorer, source, plan, folder, on_error
        self.about = scorer.about() | {
            "version": version("torchassay"),
            "data": source.fingerprint,
            "torch": torch.__version__,
            **plan._asdict(),
            "parts": plan.parts,
        }

    def batches(self, part: int) -> Iterable[Batch]:
        return (self.source.read(*self.plan.rows_of(batch)) for batch in self.plan.batches_of(part))

    def write(self, part: int, batches: Iterable[Batch], scored: Callable[[int], None] = lambda rows: None) -> Counters:
        """Score a part and write it; ``scored`` is told of every batch."""
        import pyarrow

        start, tables, skipped = time.perf_counter(), [], []
        for batch in batches:
            columns = batch.columns
            if batch.broken:
                skipped += self._skip(BrokenRows.of(_SELF, batch.broken))
            while len(columns["index"]):
                try:
                    tables.append(self.scorer(columns))
                    break
                except BrokenRows as error:
                    skipped += self._skip(error)
                    columns = without(columns, error.reasons)
            scored(len(columns["index"]) + len(batch.broken))
        if not tables:
            first, last = self.plan.batches_of(part)[0], self.plan.batches_of(part)[-1]
            rows = f"{self.plan.rows_of(first)[0]} to {self.plan.rows_of(last)[1] - 1}"
            raise checks.InputValueError(f"{_SELF}: part {part} must have a row that can be scored, got none of {rows}")
        table = pyarrow.concat_tables(tables)
        self.folder.write(part, table, self.about | {"skipped": sorted(skipped)})
        tokens = sum(table["tokens"].to_pylist()) if "tokens" in table.column_names else 0
        return Counters(len(table), tokens, len(skipped), time.perf_counter() - start, 1)

    def _skip(self, error: BrokenRows) -> list[int]:
        if self.on_error == "stop":
            raise error
        for number, reason in error.reasons.items():
            logger.warning("skipped row %d: %s", number, reason)
        return list(error.reasons)


class _Batches(Dataset):
    """The batches of a run by number, for a DataLoader's workers."""

    def __init__(self, source: Source, plan: Plan):
        self.source, self.plan = source, plan

    def __len__(self) -> int:
        return self.plan.batches

    def __getitem__(self, number: int) -> Batch:
        return self.source.read(*self.plan.rows_of(number))


def score_dataset(
    model: nn.Module | Callable[[], nn.Module] | str,
    data: str | os.PathLike | Dataset,
    out: str | os.PathLike,
    *,
    signals: Sequence[str] = ("loss", "entropy", "grad_norm"),
    tokens: bool = False,
    probs: bool = False,
    batch_size: int = 64,
    batches_per_part: int = 64,
    workers: int = 0,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    on_error: str = "stop",
    resume: bool = False,
    progress: bool = False,
) -> Counters:
    """Score a data set into a folder of Parquet parts: the command `torchassay score` as a function.

    Args:
        model, signals, tokens, probs, device, dtype: as `DatasetScorer`.
        data: a .npz; a .parquet or a folder of them; a folder of Hugging Face's ``save_to_disk``; a map-style data set,
            torch's or Hugging Face's, or the name of one or of a callable that makes it, "package.module:name" or
            "path.py:name". Its rows have the ids 0, 1, 2, ..., of a folder in the order of the files' paths.
        out: a folder, made if it is not there: ``_run.json`` says what the run is; ``part-00000.parquet`` and so on
            hold the scores, in the order of the rows (`DatasetScorer` says which columns), and the same facts and the
            ids of skipped rows as metadata of the schema.
        batch_size: rows of a forward.
        batches_per_part: batches of a part, which is what a kill loses at most; the last part also takes the rest.
        workers: processes that read ahead, as of a DataLoader.
        on_error: "stop" at a broken row, see `DatasetScorer`, or "skip" it: it is logged and has no row in the parts.
        resume: go on with the run that is in ``out``: parts that are there stay.
        progress: draw a bar, on rank 0.

    Every rank of torchrun takes every so many-th part. Batches are cut by the place of a row alone, so the parts are
    the same to the bit with any number of ranks and however often the run was killed, on the same machine with the same
    number of threads (``OMP_NUM_THREADS``, which torchrun sets to 1).

    Returns:
        `Counters` of what this process did: rows, tokens, skipped, seconds, parts.

    Raises:
        ValueError: an argument out of range, ``out`` with another run, or with this one and no ``resume``, broken rows,
            or a part without any row that can be scored.
        TypeError, ImportError: as `DatasetScorer`.
        OSError: ``out`` cannot be written to.
    """
    checks.integer(_SELF, "workers", workers, 0)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0  # torchrun started us anew after a failure
    of_scorer = {"signals": signals, "tokens": tokens, "probs": probs, "device": device, "dtype": dtype}
    job = prepared(model, data, out, batch_size, batches_per_part, on_error, of_scorer)
    plan = job.plan
    _open_together(job, resume or again, rank, world)
    pending = job.folder.missing(range(rank, plan.parts, world))
    numbers = [batch for part in pending for batch in plan.batches_of(part)]
    loader = DataLoader(
        _Batches(job.source, plan), batch_size=None, sampler=numbers, num_workers=workers, collate_fn=_as_it_is
    )
    batches, start, total = iter(loader), time.perf_counter(), Counters()
    bar = tqdm(total=plan.rows_in(pending), desc="scoring", unit=" rows", disable=not progress or rank > 0)
    with bar, _logging_beside(bar):
        for part in pending:
            total += job.write(part, (next(batches) for _ in plan.batches_of(part)), bar.update)
    return total._replace(seconds=time.perf_counter() - start)


def prepared(
    model: Any, data: Any, out: Any, batch_size: int, batches_per_part: int, on_error: str, of_scorer: dict
) -> Job:
    """A process's `Job`, of the arguments of `score_dataset`, checked."""
    need_pyarrow(_SELF)
    checks.integer(_SELF, "batch_size", batch_size, 1)
    checks.integer(_SELF, "batches_per_part", batches_per_part, 1)
    if on_error not in ("stop", "skip"):
        raise checks.InputValueError(f"{_SELF}: on_error must be 'stop' or 'skip', got {on_error!r}")
    source = opened(_SELF, data)
    plan = Plan(len(source), batch_size, batches_per_part)
    return Job(DatasetScorer(model, **of_scorer), source, plan, Folder(_SELF, out), on_error)


def _open_together(job: Job, resume: bool, rank: int, world: int) -> None:
    """Rank 0 opens the folder; the others wait for that, fail with it, and see whether they have the same model and
    data. It is all that ranks do together: from here on none waits for another."""
    if world == 1:
        return job.folder.open(job.about, resume)
    failure: list = [None]
    dist.init_process_group("gloo")
    try:
        if rank == 0:
            try:
                job.folder.open(job.about, resume)
            except (ValueError, OSError) as error:
                failure = [error]
        dist.broadcast_object_list(failure)
    finally:
        dist.destroy_process_group()
    if failure[0] is not None:
        raise failure[0]
    job.folder.same_run(job.about)


def _as_it_is(batch: Any) -> Any:
    return batch


def _logging_beside(bar: tqdm) -> AbstractContextManager[None]:
    """Lines of the log above the bar, not through it."""
    if bar.disable:
        return nullcontext()
    from tqdm.contrib.logging import logging_redirect_tqdm

    return logging_redirect_tqdm([logger])
