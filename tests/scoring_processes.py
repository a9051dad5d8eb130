"""Processes that run `torchassay score`, as functions of a module that they can import."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from pathlib import Path

import scorable
import torch
from torchassay.cli import main
from torchassay.scoring import score_dataset

MODEL, ROWS = f"{scorable.__file__}:network", f"{scorable.__file__}:rows"
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torchassay.scoring", "pyarrow.parquet", "pytest"])  # imported once


def scores(arguments: list[str], moment: int) -> None:
    """The command in a process of its own, which a SIGKILL ends at that moment: one comes before each forward, and two
    come with each part, between writing it and renaming it, and between that and the note of it in the folder."""
    torch.set_num_threads(1)
    from torchassay.scoring.dataset_scorer import DatasetScorer

    left = moment

    def counted(function):
        def call(*given):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*given)

        return call

    os.fsync = counted(os.fsync)
    DatasetScorer.__call__ = counted(DatasetScorer.__call__)
    main(["score", *arguments], standalone_mode=False)


def ended(arguments: list[str], moment: int = 0) -> int | None:
    process = FORKS.Process(target=scores, args=(arguments, moment))
    process.start()
    process.join()
    return process.exitcode


def on_a_rank(rank: int, port: int, out: Path, told: Path) -> None:
    """A process as torchrun starts it; what it did, or its error."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        done = score_dataset(MODEL, ROWS, out, batch_size=7, batches_per_part=3, workers=1)
        told.write_text(f"{done.rows} rows, {done.parts} parts")
    except ValueError as error:
        told.write_text(str(error))


def on_two_ranks(out: Path) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = [out.with_name(f"{rank}.txt") for rank in range(2)]
    ranks = [FORKS.Process(target=on_a_rank, args=(rank, port, out, files[rank])) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return [file.read_text() for file in files]
