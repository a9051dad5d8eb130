"""The files of a comparison: each is whole or not there, however the process ends."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np

from torchassay import checks, whole_files
from torchassay.samplers import states
from torchassay.whole_files import replacing

_LIKE = ("data", "corrupt", "corrupted", "model", "epochs", "budget", "batch_size", "lr", "schedule", "device")


class Folder:
    """OUT: ``results.json``, ``data.npz``, ``runs/*.npz``, ``epochs.parquet``, and ``state/`` of a run under way."""

    def __init__(self, out: str | os.PathLike):
        self.path = Path(out)
        self.results: dict = {"about": {}, "runs": []}

    def open(self, about: dict, resume: bool) -> None:
        """Make the folder and try it, before any work; with ``resume`` read what is there already.

        Raises:
            ValueError: a comparison is there and is not to be resumed, or was made with other settings.
            OSError: it cannot be written to.
        """
        (self.path / "runs").mkdir(parents=True, exist_ok=True)
        (self.path / "state").mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=self.path):
            pass
        for folder in (self.path, self.path / "runs", self.path / "state"):
            whole_files.clear(folder)
        written = self.path / "results.json"
        if written.exists() and not resume:
            expected = "a new folder, or one to go on in (--resume)"
            raise checks.InputValueError(f"compare: out must be {expected}, got '{self.path}' with a comparison in it")
        if written.exists():
            self.results = checks.json_object("compare", written, about=dict, runs=list)
            before = self.results["about"]
            for name in _LIKE:
                if before.get(name) != about[name]:
                    expected = f"as it was in '{self.path}', {_shown(before.get(name))}"
                    raise checks.InputValueError(f"compare: {name} must be {expected}, got {_shown(about[name])}")
            about = about | {"seeds": sorted({*before["seeds"], *about["seeds"]})}
        self.results["about"] = about

    def write(self) -> None:
        with replacing(self.path / "results.json") as path:
            path.write_text(json.dumps(self.results, allow_nan=False), encoding="utf-8")

    def run(self, method: str, seed: int) -> dict | None:
        """What is known of a run."""
        return next((run for run in self.results["runs"] if (run["method"], run["seed"]) == (method, seed)), None)

    def enter(self, run: dict) -> None:
        """A run, new or anew."""
        self.results["runs"] = [other for other in self.results["runs"] if _key(other) != _key(run)] + [run]

    def save_state(self, run: dict, state: dict) -> None:
        states.save(self._state_of(run), state)

    def state(self, run: dict) -> dict | None:
        path = self._state_of(run)
        return states.load(path) if path.exists() else None

    def finish(self, run: dict, arrays: dict[str, np.ndarray]) -> None:
        """A run is done: its arrays, the results, and only then its state goes."""
        with replacing(self.path / run["arrays"]) as path:
            np.savez(path, **arrays)
        self.write()
        for old in self._state_of(run).parent.glob("*"):
            old.unlink()

    def close(self) -> None:
        """All runs are done."""
        shutil.rmtree(self.path / "state")
        if importlib.util.find_spec("pyarrow") is not None:
            self._parquet()

    def thumbnails(self, images: np.ndarray | None) -> None:
        if images is not None:
            with replacing(self.path / "data.npz") as path:
                np.savez_compressed(path, images=images)

    def _parquet(self) -> None:
        """A row for each epoch of each run, for those who have pyarrow (``torchassay[io]``)."""
        import pyarrow
        from pyarrow import parquet

        rows = []
        for run in self.results["runs"]:
            facts = {"method": run["method"], "seed": run["seed"]}
            facts |= {f"version_{name}": value for name, value in run["versions"].items()}
            facts |= {f"run_{name}": value for name, value in run["counters"].items() if not isinstance(value, list)}
            rows += [facts | record for record in run["epochs"]]
        names = dict.fromkeys(name for row in rows for name in row)
        table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
        with replacing(self.path / "epochs.parquet") as path:
            parquet.write_table(table, path)

    def _state_of(self, run: dict) -> Path:
        return self.path / "state" / (Path(run["arrays"]).stem + ".pt")


def arrays_name(method: str, seed: int) -> str:
    """Where a run's arrays go, in OUT: "sb:beta=1" and 0 to "runs/sb_beta-1.0.npz"."""
    return f"runs/{re.sub(r'[^0-9A-Za-z._-]', '_', method.replace('=', '-'))}.{seed}.npz"


def _key(run: dict) -> tuple:
    return run["method"], run["seed"]


def _shown(value) -> str:
    return value["name"] if isinstance(value, dict) else f"{value}"
