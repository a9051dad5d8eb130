"""Offline scoring on a Ray cluster."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.data import Dataset

from torchassay import checks
from torchassay.scoring.parts import Folder
from torchassay.scoring.run import Counters, Job, prepared

_SELF = "score_dataset"


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
    device: str | torch.device | None = None,
    dtype: str | None = None,
    on_error: str = "stop",
    resume: bool = False,
    concurrency: int = 1,
    num_gpus: float = 0,
) -> Counters:
    """`torchassay.scoring.score_dataset` by actors of Ray Data, on one machine or many.

    Args:
        concurrency: how many actors score, each with a model of its own.
        num_gpus: of an actor.
        others: as `torchassay.scoring.score_dataset`. Every machine must see ``data``, ``out`` and the driver's working
            directory under the same paths.

    What Ray maps over are the numbers of parts, not rows: an actor reads, scores and writes whole parts, the same to
    the bit as those of `torchassay score`, which can go on with this folder, and this with its. So when an actor or a
    machine dies, Ray starts its parts again, and when the driver dies, ``resume`` goes on; no row is there twice.

    To score what Ray Data itself reads, map over its batches, which need a column ``index``:
    ``ray.data.read_parquet(...).map_batches(DatasetScorer, fn_constructor_args=(model,), concurrency=...)``.

    Returns:
        `Counters` of the parts that were not there before.

    Raises:
        ImportError: without Ray, which `torchassay[ray]` brings.
        ValueError, TypeError, OSError: as `torchassay.scoring.score_dataset`.
    """
    try:
        import ray
        import ray.data
    except ModuleNotFoundError:
        raise ImportError(f'{_SELF} needs Ray: pip install "torchassay[ray]"') from None
    checks.integer(_SELF, "concurrency", concurrency, 1)
    start = time.perf_counter()
    of_scorer = {"signals": signals, "tokens": tokens, "probs": probs, "device": device, "dtype": dtype}
    settings = (model, data, os.path.abspath(out), batch_size, batches_per_part, on_error, of_scorer)
    made = {"working_directory": os.getcwd(), "settings": settings}
    folder = Folder(_SELF, out)
    try:  # asked of Ray, since a driver need not have the memory for the model, nor a GPU
        about = ray.get(ray.remote(num_gpus=num_gpus)(_about).remote(**made))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    folder.open(about, resume)
    pending = folder.missing(range(about["parts"]))
    if pending:
        how = {"batch_size": 1, "concurrency": concurrency, "num_gpus": num_gpus}
        parts = ray.data.from_items([{"part": part} for part in pending])
        for done in parts.map_batches(_Parts, fn_constructor_kwargs=made, **how).iter_rows():
            if done["error"]:
                raise pickle.loads(done["error"])
    counts = [folder.count(part) for part in pending]
    rows, tokens_in_all, skipped = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0, 0)
    return Counters(rows, tokens_in_all, skipped, time.perf_counter() - start, len(pending))


class _Parts:
    """An actor: scores parts by number."""

    def __init__(self, working_directory: str, settings: tuple):
        self.job = _job(working_directory, settings)

    def __call__(self, batch: dict) -> dict:
        """Errors come back as bytes: Ray would give their text alone."""
        error = b""
        try:
            for part in self.job.folder.missing(batch["part"].tolist()):  # none, if an actor died right after its work
                self.job.write(part, self.job.batches(part))
        except (ValueError, TypeError, OSError) as found:
            error = pickle.dumps(found)
        return {"part": batch["part"], "error": [error]}


def _about(working_directory: str, settings: tuple) -> dict:
    return _job(working_directory, settings).about


def _job(working_directory: str, settings: tuple) -> Job:
    """As the driver would make it: names of modules are looked for where it was started."""
    os.chdir(working_directory)
    return prepared(*settings)
