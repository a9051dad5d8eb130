"""Offline scoring by Ray Data: the parts of `torchassay score`, to the bit, whoever is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scorable
import torch

pytest.importorskip("pyarrow")
pytest.importorskip("ray.data")

import ray
import ray.data
from documented import blocks, prepare
from pyarrow import parquet
from torchassay.integrations.ray import score_dataset
from torchassay.named_objects import imported
from torchassay.scoring import BrokenRows, DatasetScorer
from torchassay.scoring import score_dataset as here

MODEL, ROWS = f"{scorable.__file__}:network", f"{scorable.__file__}:rows"
CUT = {"batch_size": 7, "batches_per_part": 3}  # 7 parts


@pytest.fixture(scope="module", autouse=True)
def cluster():
    # Actors hold a CPU each; where they hold all, those who read and write for them wait for ever.
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch, threads):
    monkeypatch.chdir(tmp_path)
    threads(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """What `torchassay score` writes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    here(MODEL, ROWS, tmp_path_factory.getbasetemp() / "whole", **CUT)
    torch.set_num_threads(before)
    return contents(tmp_path_factory.getbasetemp() / "whole")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_parts_are_those_of_the_command(tmp_path, whole):
    out = tmp_path / "out"
    done = score_dataset(MODEL, ROWS, out, **CUT, concurrency=2)
    assert done[:3] == (150, 0, 0) and done.parts == 7
    assert contents(out) == whole
    with pytest.raises(ValueError) as error:
        score_dataset(MODEL, ROWS, out, **CUT)
    must = "score_dataset: out must be a new folder, got"
    assert str(error.value) == f"{must} '{out}' with this run in it (it is whole)"
    (out / "part-00002.parquet").unlink()
    assert score_dataset(MODEL, ROWS, "out", **CUT, resume=True)[:3] == (21, 0, 0)  # from where the test runs
    assert contents(out) == whole
    assert score_dataset(MODEL, ROWS, out, **CUT, resume=True).rows == 0


def test_a_worker_is_killed(tmp_path, whole):
    """Its parts are scored again by another."""
    Path("die").touch()
    done = score_dataset(MODEL, f"{scorable.__file__}:Deadly", tmp_path / "out", **CUT, concurrency=2)
    assert not Path("die").exists()  # it was
    assert done.rows == 150
    assert contents(tmp_path / "out") == whole


def test_the_driver_is_killed(tmp_path, whole, cluster):
    out, slow = tmp_path / "out", f"{scorable.__file__}:Slow"
    script = f"""
import ray
from torchassay.integrations.ray import score_dataset
ray.init("{cluster}")
score_dataset("{MODEL}", "{slow}", "{out}", batch_size=7, batches_per_part=3)
"""
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    driver = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL)
    while not (out / "part-00001.parquet").exists():
        assert driver.poll() is None
        time.sleep(0.02)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    assert not (out / "part-00006.parquet").exists()
    assert score_dataset(MODEL, ROWS, out, **CUT, concurrency=1, resume=True).parts > 0
    assert contents(out) == whole


def test_a_broken_row_stops_or_is_skipped(tmp_path):
    broken = f"{scorable.__file__}:Broken"
    with pytest.raises(BrokenRows) as error:
        score_dataset(MODEL, broken, tmp_path / "out", **CUT)
    assert str(error.value) == "score_dataset: row 17 must be one that can be read, got OSError: truncated"
    assert error.value.reasons == {17: "must be one that can be read, got OSError: truncated"}
    done = score_dataset(MODEL, broken, tmp_path / "out", **CUT, on_error="skip", resume=True)
    assert done.rows + done.skipped >= 21 and done.skipped >= 1  # others may have been done when the row was met
    found = [parquet.ParquetFile(path).read() for path in sorted((tmp_path / "out").glob("part-*.parquet"))]
    index = np.concatenate([table["index"] for table in found]).tolist()
    assert index == [row for row in range(150) if row not in scorable.BROKEN]


def test_what_ray_reads(tmp_path):
    """`DatasetScorer` in Ray's own pipeline; batches are cut by Ray, so the last bits of a product may differ."""
    x, y = (tensor.numpy() for tensor in scorable.rows().tensors)
    data = ray.data.from_items([{"index": row + 5, "x": x[row], "y": int(y[row])} for row in range(150)])
    scores = data.map_batches(
        DatasetScorer,
        fn_constructor_args=(MODEL, ("loss", "margin")),
        fn_constructor_kwargs={"probs": True},
        batch_size=32,
        concurrency=1,
    )
    scores.write_parquet(str(tmp_path / "out"))
    table = parquet.read_table(tmp_path / "out").sort_by("index")
    expected = DatasetScorer(MODEL, ("loss", "margin"), probs=True)({"index": np.arange(150) + 5, "x": x, "y": y})
    assert table.column_names == expected.column_names and table.schema.types == expected.schema.types
    assert table["index"].to_pylist() == expected["index"].to_pylist()
    for name in ("loss", "margin"):
        np.testing.assert_allclose(table[name].to_numpy(), expected[name].to_numpy(), rtol=1e-5, atol=1e-7)


def test_what_goes_wrong_before_the_work(tmp_path, monkeypatch):
    for arguments, message in (
        (
            {"model": f"{scorable.__file__}:nobody"},
            f"DatasetScorer: model must be a name in '{scorable.__file__}', got",
        ),
        ({"data": "none.npz"}, "score_dataset: data must be a .npz, "),
        ({"concurrency": 0}, "score_dataset: concurrency must be at least 1, got 0"),
        ({"on_error": "cry"}, "score_dataset: on_error must be 'stop' or 'skip', got 'cry'"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}") as error:
            score_dataset(**{"model": MODEL, "data": ROWS, "out": tmp_path / "out"} | arguments)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError) as error:
        score_dataset(MODEL, ROWS, tmp_path / "out")
    assert str(error.value) == 'score_dataset needs Ray: pip install "torchassay[ray]"'


def test_the_code_on_ray_runs(tmp_path, monkeypatch):
    prepare(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    code = [block for block in blocks("python") if "ray" in block]
    assert len(code) == 2
    for block in code:
        exec(block, {"shared": tmp_path, "model": imported("test", "model", "my.models:network")()})
    ours = parquet.read_table(tmp_path / "scores")
    rays = parquet.read_table(tmp_path / "scores-in-ray").sort_by("index")
    assert ours["index"].to_pylist() == rays["index"].to_pylist() == list(range(96))
    np.testing.assert_allclose(ours["loss"].to_numpy(), rays["loss"].to_numpy(), rtol=1e-5)
