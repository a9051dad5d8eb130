"""A training that is killed and started again gives the stream, the memory and the model of one that is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
import training

KILLS = int(os.environ.get("TORCHASSAY_KILLS", "1"))  # of each case: 2 in `make stress`
SCRIPT = Path(training.__file__)
NAMES = [name for name in training.CASES if KILLS > 1 or "-" not in name]
_number = count()


class Trainings:
    """Starts trainings as children of one process that has imported everything."""

    def __init__(self):
        command = [sys.executable, SCRIPT, "--serve"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, folder: Path, name: str, workers: int, world: int, kill: tuple[int, str] = (-1, "")) -> list:
        """Train on so many ranks; how each ended. ``kill``: a rank and its moment."""
        common = {"folder": str(folder), "name": name, "workers": workers, "world": world, "meet": next(_number)}
        ranks = [common | {"rank": rank, "kill": kill[1] if rank == kill[0] else ""} for rank in range(world)]
        folder.mkdir(exist_ok=True)
        self.process.stdin.write(f"{json.dumps(ranks)}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def trainings():
    trainings = Trainings()
    yield trainings
    trainings.process.communicate()


@pytest.fixture(scope="module")
def undisturbed(trainings, tmp_path_factory):
    """The folder of a training that was not killed, made once; without workers, unless they matter."""
    made = {}

    def folder(name: str, workers: int, world: int) -> Path:
        key = name, workers if training.CASES[name].ahead else 0, world
        if key not in made:
            made[key] = tmp_path_factory.mktemp("undisturbed")
            assert trainings(made[key], *key) == [0] * world
        return made[key]

    return folder


def same(mine, theirs) -> bool:
    """Whether two nests hold the same numbers, NaN where the other has NaN."""
    if isinstance(mine, torch.Tensor):
        return mine.dtype == theirs.dtype and np.array_equal(mine.numpy(), theirs.numpy(), mine.is_floating_point())
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(same(mine[key], theirs[key]) for key in mine)
    if isinstance(mine, list | tuple):
        return len(mine) == len(theirs) and all(map(same, mine, theirs))
    return mine == theirs


def stream(folder: Path, rank: int) -> list:
    return [json.loads(line) for line in (folder / f"log.{rank}").read_text().splitlines()]


def check(found: Path, expected: Path, world: int) -> None:
    for rank in range(world):
        assert stream(found, rank) == stream(expected, rank)
        mine, theirs = (torch.load(folder / f"final.{rank}", weights_only=True) for folder in (found, expected))
        assert {key: (mine[key], theirs[key]) for key in mine if not same(mine[key], theirs[key])} == {}


@pytest.mark.parametrize("seed", range(KILLS))
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("workers", [0, 4])
@pytest.mark.parametrize("name", NAMES)
def test_goes_on_as_if_it_had_not_been_killed(
    trainings, undisturbed, tmp_path, name, workers, world, seed, record_property
):
    expected = undisturbed(name, workers, world)
    steps = len(stream(expected, 0))
    random = np.random.default_rng([seed, workers, world, *name.encode()])
    first = max(training.EVERY + 1, steps // 3)  # a checkpoint is there
    step, moment = int(random.integers(first, steps - 1)), str(random.choice(training.MOMENTS))
    if moment == "half saved":
        step -= step % training.EVERY
    rank = int(random.integers(world))
    ended = trainings(tmp_path / "run", name, workers, world, (rank, f"{step}:{moment}"))
    assert ended[rank] == -9 and 0 not in ended
    assert trainings(tmp_path / "run", name, workers, world) == [0] * world
    check(tmp_path / "run", expected, world)
    record_property("kills", 1)


def test_processes_of_torchrun_go_on(trainings, undisturbed, tmp_path, record_property):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", SCRIPT, "Shuffle"]
    command += ["--folder", tmp_path, "--workers=2", "--kill=13:observed"]
    ended = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 1 and "SIGKILL" in ended.stderr
    assert len(stream(tmp_path, 1)) == 14
    assert trainings(tmp_path, "Shuffle", 2, 2) == [0, 0]
    check(tmp_path, undisturbed("Shuffle", 0, 2), 2)
    record_property("kills", 1)
