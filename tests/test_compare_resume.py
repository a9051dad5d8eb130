"""A comparison that is killed goes on as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import comparing
import numpy as np
import pytest
from click.testing import CliRunner
from comparing import without_seconds
from test_compare import every_name, mine, reports  # noqa: F401
from torchassay.cli import main
from torchassay.compare import run
from torchassay.compare.training import Training

ARGUMENTS = [
    "--methods",
    "sb,ois,low",
    "--corrupt",
    "labels:0.25",
    "--epochs",
    "12",
    "--seeds",
    "1",
    "--batch-size",
    "16",
    "--device",
    "cpu",
]


class Killed(Exception):
    pass


@pytest.fixture
def dying(monkeypatch):
    """Every run dies in its second epoch, after some steps, until this is undone."""
    step = Training._step

    def dies(self, batch, weight):
        if len(self.records) == 1 and self.backward > self.records[0]["backward"]:
            raise Killed
        return step(self, batch, weight)

    monkeypatch.setattr(Training, "_step", dies)
    return monkeypatch


@pytest.mark.parametrize("modalities", [1, 2])
def test_every_method_goes_on(modalities, tmp_path, dying):
    data = comparing.data(modalities)
    chosen = every_name() if modalities == 1 else "bss-h:t_grow=8,bss-l"
    options = {"epochs": 2, "corrupt": "labels:0.2"}
    for method in chosen.split(","):
        with pytest.raises(Killed):
            mine(data, method, tmp_path / "stopped", resume=True, **options)
        part = json.loads((tmp_path / "stopped" / "results.json").read_text())["runs"]
        assert [entry["method"] for entry in part if not entry["done"]] == [method]
        assert len(part[-1]["epochs"]) == 1
        with dying.context() as alive:
            alive.setattr(Training, "_step", _whole)
            mine(data, method, tmp_path / "stopped", resume=True, **options)
    with dying.context() as alive:
        alive.setattr(Training, "_step", _whole)
        whole = mine(data, chosen, tmp_path / "whole", **options)
        stopped = mine(data, chosen, tmp_path / "stopped", resume=True, **options)
    assert without_seconds(whole)["runs"] == without_seconds(stopped)["runs"]
    for entry in whole["runs"]:
        one, other = (np.load(tmp_path / name / entry["arrays"]) for name in ("whole", "stopped"))
        assert one.files == other.files
        for array in one.files:
            np.testing.assert_array_equal(one[array], other[array], err_msg=f"{entry['method']} {array}")
    assert not (tmp_path / "stopped" / "state").exists()


_whole = Training._step


def test_sigkill(tmp_path, reports):  # noqa: F811
    np.savez(tmp_path / "blobs.npz", **comparing.blobs())
    arguments = ["--data", str(tmp_path / "blobs.npz"), *ARGUMENTS]
    out = tmp_path / "killed"
    code = "from torchassay.cli import main; main(prog_name='torchassay')"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "compare", *arguments, "--out", str(out)], stderr=subprocess.DEVNULL
    )
    try:
        _wait_for_epochs(process, out / "results.json", 3)
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    before = json.loads((out / "results.json").read_text())["runs"]
    assert not before[-1]["done"] or len(before) < 3
    for name in (f".partial-{32 * '0'}-results.json", f"runs/.partial-{32 * '1'}-sb.0.npz"):
        (out / name).write_text("{")
    again = CliRunner().invoke(main, ["compare", *arguments, "--out", str(out), "--resume"])
    whole = CliRunner().invoke(main, ["compare", *arguments, "--out", str(tmp_path / "whole")])
    assert again.exit_code == whole.exit_code == 0, again.output
    found = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("killed", "whole")]
    assert without_seconds(found[0]) == without_seconds(found[1])
    assert not list(out.rglob(".partial-*"))
    kept = [record["seconds"] for record in before[-1]["epochs"]]
    resumed = next(entry for entry in found[0]["runs"] if entry["method"] == before[-1]["method"])
    assert [record["seconds"] for record in resumed["epochs"][: len(kept)]] == kept  # these were not trained anew


def _wait_for_epochs(process, path, least):
    for _ in range(1200):
        if path.exists() and len(json.loads(path.read_text())["runs"][-1]["epochs"]) >= least:
            return
        assert process.poll() is None
        time.sleep(0.05)
    raise AssertionError("no epoch in a minute")


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch):
    def stopped(self, batch, weight):
        os.kill(os.getpid(), signal.SIGINT)
        return _whole(self, batch, weight)

    monkeypatch.setattr(Training, "_step", stopped)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born deaf to it
    try:
        result = CliRunner().invoke(main, ["compare", "--data", "digits", "--methods", "sgd", "--out", str(tmp_path)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    expected = f"stopped after the last whole epoch; go on with the same command and --resume (--out {tmp_path})"
    assert expected in result.stderr.splitlines()


def test_a_full_disk_costs_an_epoch(tmp_path, monkeypatch):
    np.savez(tmp_path / "blobs.npz", **comparing.blobs())
    arguments = ["compare", "--data", str(tmp_path / "blobs.npz"), *ARGUMENTS, "--out", str(tmp_path / "out")]
    fsync, left = os.fsync, [18]

    def full(file):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", full)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "could not write to" in result.stderr and "No space left on device; go on with" in result.stderr
    monkeypatch.setattr(os, "fsync", fsync)
    (entry,) = json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
    assert len(entry["epochs"]) == 4  # thumbnails, and two files an epoch, each with its folder


def test_methods_and_seeds_may_be_added(tmp_path, monkeypatch, reports):  # noqa: F811
    data = comparing.data()
    mine(data, "sgd", tmp_path, epochs=1, seeds=[0])
    trained = []
    monkeypatch.setattr(
        run, "Training", lambda method, seed, *more: trained.append((str(method), seed)) or _Fine(method, seed, *more)
    )
    found = mine(data, "sgd,ohem", tmp_path, epochs=1, seeds=[0, 4], resume=True)
    assert trained == [("ohem", 0), ("sgd", 4), ("ohem", 4)]
    assert found["about"]["seeds"] == [0, 4] and len(found["runs"]) == 4 and len(reports) == 2


_Fine = Training


def test_what_must_be_as_it_was(tmp_path):
    data = comparing.data()
    mine(data, "sgd", tmp_path, epochs=1)
    with pytest.raises(
        ValueError, match=r"^compare: out must be a new folder, or one to go on in \(--resume\), got '.*' wi"
    ):
        mine(data, "sgd", tmp_path, epochs=1)
    for options, message in (
        ({"epochs": 2}, "epochs must be as it was in '.*', 1, got 2"),
        ({"epochs": 1, "corrupt": "labels:0.5"}, "corrupt must be as it was in '.*', None, got labels:0.5"),
        ({"epochs": 1, "lr": 0.5}, "lr must be as it was in '.*', 0.02, got 0.5"),
    ):
        with pytest.raises(ValueError, match=f"^compare: {message}$"):
            mine(data, "sgd", tmp_path, resume=True, **options)
