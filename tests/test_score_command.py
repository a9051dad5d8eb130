"""``torchassay score`` as a user meets it: its files, its refusals, and rows that no kill loses, doubles or changes."""

from __future__ import annotations

import json
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
import torchassay as ta
from click.testing import CliRunner
from torchassay.cli import main

pytest.importorskip("pyarrow")

from pyarrow import parquet
from scoring_processes import MODEL, ROWS, ended, on_two_ranks
from torchassay.scoring import score_dataset
from torchassay.whole_files import meant_for

KILLS = 2 * int(os.environ.get("TORCHASSAY_KILLS", "1"))  # of a run; 4 in `make stress`
CUT = ("--batch-size", "7", "--batches-per-part", "3")  # 22 batches, 7 parts
PARTS = [f"part-0000{number}.parquet" for number in range(7)]


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def run(*arguments):
    return CliRunner().invoke(main, ["score", *map(str, arguments)])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """An undisturbed run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole") / "out"
    result = run(MODEL, ROWS, "--out", out, *CUT)
    torch.set_num_threads(before)
    assert result.exit_code == 0, result.output
    return contents(out)


def test_rows_counters_and_metadata(tmp_path):
    out = tmp_path / "new" / "out"
    result = run(MODEL, ROWS, "--out", out, "--signals", "loss, entropy", "--probs", *CUT)
    assert result.exit_code == 0, result.output
    assert "scoring: 100%" in result.output and " rows/s]" in result.output
    last = result.stdout.splitlines()
    assert re.fullmatch(r"150 rows, 0 skipped, \d+\.\d s \(\d+ rows/s\)", last[0])
    assert last[1] == f"written: {out} (7 parts)"
    assert sorted(path.name for path in out.iterdir()) == ["_run.json", *PARTS]
    tables = [parquet.ParquetFile(out / name).read() for name in PARTS]
    assert [len(table) for table in tables] == [21] * 6 + [24]
    assert np.concatenate([table["index"] for table in tables]).tolist() == list(range(150))
    model, (x, y) = scorable.network().eval(), scorable.rows().tensors
    expected = ta.score(model(x), y, signals=("loss", "entropy"))
    for name in ("loss", "entropy"):
        found = np.concatenate([table[name] for table in tables])
        np.testing.assert_allclose(found, getattr(expected, name).numpy(), rtol=2e-6, atol=1e-7)
    metadata = {key.decode(): value.decode() for key, value in tables[3].schema.metadata.items()}
    run_json = json.loads((out / "_run.json").read_text())
    assert metadata["torchassay.model"] == MODEL
    assert metadata["torchassay.signals"] == "loss,entropy"
    assert metadata["torchassay.dtype"] == "float32"
    assert metadata["torchassay.version"] == ta.__version__
    assert metadata["torchassay.revision"] == run_json["weights"]
    assert metadata["torchassay.data"] == run_json["data"]
    assert metadata["torchassay.skipped"] == ""


def test_labels_and_select_read_the_folder(tmp_path):
    out = tmp_path / "out"
    assert run(MODEL, ROWS, "--out", out, "--probs", "--signals", "loss,target_margin", *CUT).exit_code == 0
    result = CliRunner().invoke(
        main, ["select", str(out), "--by", "loss", "--keep", "0.1", "--per-class", "--out", str(tmp_path / "keep.npy")]
    )
    assert result.exit_code == 0, result.output
    model, (x, y) = scorable.network().eval(), scorable.rows().tensors
    loss = ta.score(model(x), y, signals="loss").loss
    assert np.load(tmp_path / "keep.npy").tolist() == ta.keep(loss, 0.1, by=y).tolist()
    found = ta.labels.report(out, by="self_confidence")
    assert found.order[:20].tolist() == loss.argsort(descending=True)[:20].tolist()
    belief = np.empty(150, np.int64)
    belief[found.order] = found.table["belief"]
    assert np.array_equal(belief, model(x).argmax(1).numpy())
    (out / PARTS[2]).unlink()
    reason = "must be a .parquet file that can be read, got: 6 of 7 parts, of a run that is to go on"
    with pytest.raises(ValueError, match=f"{re.escape(reason)}$"):
        ta.labels.report(out)


# ---- one run in a folder


def test_a_folder_with_a_run_is_refused_and_resumed(tmp_path, whole):
    out = tmp_path / "out"
    out.mkdir()
    for name, data in whole.items():
        (out / name).write_bytes(data)
    must = f"torchassay score: out must be a new folder, got '{out}' with this run in it"
    assert run(MODEL, ROWS, "--out", out, *CUT).output == f"{must} (it is whole)\n"
    (out / PARTS[1]).unlink()
    (out / PARTS[6]).unlink()
    (out / f".partial-{32 * '0'}-{PARTS[6]}").write_bytes(whole[PARTS[6]][:100])
    kept = (out / PARTS[0]).stat().st_mtime_ns
    refused = run(MODEL, ROWS, "--out", out, *CUT)
    assert refused.exit_code == 1
    assert refused.output == f"{must} (5 of 7 parts: go on with --resume)\n"
    result = run(MODEL, ROWS, "--out", out, *CUT, "--resume")
    assert result.stdout.splitlines()[-1] == f"written: {out} (2 parts)"
    assert contents(out) == whole
    assert (out / PARTS[0]).stat().st_mtime_ns == kept
    again = run(MODEL, ROWS, "--out", out, *CUT, "--resume")
    assert again.stdout.startswith("0 rows, 0 skipped, 0.0 s (nothing was left to do)\n")


@pytest.mark.parametrize(
    ("model", "data", "more", "name"),
    [
        (f"{scorable.__file__}:unseeded", ROWS, (), "model"),
        (MODEL, f"{scorable.__file__}:Slow", (), None),  # the same data
        (MODEL, f"{scorable.__file__}:Broken", (), "data"),
        (MODEL, ROWS, ("--signals", "loss"), "signals"),
        (MODEL, ROWS, ("--dtype", "bfloat16"), "weights"),
        (MODEL, ROWS, ("--probs",), "probs"),
        (MODEL, ROWS, ("--batch-size", "9"), "batch_size"),
    ],
)
def test_another_run_is_refused(tmp_path, whole, model, data, more, name):
    out = tmp_path / "out"
    out.mkdir()
    for file in (PARTS[0], "_run.json"):
        (out / file).write_bytes(whole[file])
    result = run(model, data, "--out", out, *CUT, *more, "--resume")
    if name is None:
        assert result.exit_code == 0 and contents(out) == whole
        return
    before = json.loads(whole["_run.json"])[name]
    shown = ",".join(before) if isinstance(before, list) else before if isinstance(before, str) else json.dumps(before)
    start = f"torchassay score: {name} must be as it was in the run in '{out}', {shown}, got "
    assert result.exit_code == 1 and result.output.startswith(start) and result.output.count("\n") == 1
    assert sorted(contents(out)) == ["_run.json", PARTS[0]]


def test_weights_that_change_are_another_run(tmp_path):
    unseeded = f"{scorable.__file__}:unseeded"
    assert run(unseeded, ROWS, "--out", tmp_path).exit_code == 0
    result = run(unseeded, ROWS, "--out", tmp_path, "--resume")
    assert result.output.startswith("torchassay score: weights must be as it was in the run in ")


def test_other_parquet_files_are_left_alone(tmp_path):
    (tmp_path / "mine.parquet").write_bytes(b"mine")
    result = run(MODEL, ROWS, "--out", tmp_path)
    must = "out must be an empty folder or one with _run.json"
    assert result.output == f"torchassay score: {must}, got '{tmp_path}' with other parts\n"
    assert contents(tmp_path) == {"mine.parquet": b"mine"}


# ---- broken rows


def test_a_broken_row_stops_or_is_skipped(tmp_path, caplog):
    """Parts that were written before the row stay: with ``skip`` the run goes on."""
    out, broken = tmp_path / "out", f"{scorable.__file__}:Broken"
    arguments = (MODEL, broken, "--out", out, "--batch-size", 5, "--batches-per-part", 2)
    result = run(*arguments)
    assert result.exit_code == 1
    last = result.output.splitlines()[-1]
    assert last == "torchassay score: row 17 must be one that can be read, got OSError: truncated"
    assert sorted(contents(out)) == ["_run.json", PARTS[0]]
    result = run(*arguments, "--resume", "--on-error", "skip")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("136 rows, 4 skipped, ")
    found, skipped = [], []
    for path in sorted(out.glob("part-*.parquet")):
        table = parquet.ParquetFile(path).read()
        found += table["index"].to_pylist()
        skipped += [int(row) for row in table.schema.metadata[b"torchassay.skipped"].decode().split(",") if row]
    assert found == [row for row in range(150) if row not in scorable.BROKEN]
    assert skipped == list(scorable.BROKEN)
    logged = [record.getMessage() for record in caplog.records]
    assert logged == [
        "skipped row 17: must be one that can be read, got OSError: truncated",
        "skipped row 40: must have the shape (6,) of other rows in 'x', got (2,)",
        "skipped row 41: must hold values in [0, 4) in the target, got 4",
        "skipped row 90: must hold numbers in 'x', got nothing",
    ]


def test_a_part_without_a_good_row_stops(tmp_path):
    with pytest.raises(ValueError) as error:
        score_dataset(scorable.network(), [(None, 1)] * 4, tmp_path / "out", on_error="skip")
    assert str(error.value) == "score_dataset: part 0 must have a row that can be scored, got none of 0 to 3"


# ---- kills


def test_killed_at_random_moments(tmp_path, whole, record_property):
    out, random, moments = tmp_path / "out", np.random.default_rng(1), 2 + 22 + 7 * 2
    arguments = [MODEL, ROWS, "--out", str(out), *CUT, "--resume"]
    kills, before = 0, set()
    while kills < KILLS:
        code = ended(arguments, int(random.integers(2, moments)))
        parts = set(out.glob("part-*.parquet"))
        assert before <= parts
        before = parts
        if code == 0:  # the moment was behind the end: begin anew
            assert contents(out) == whole
            before = set()
            for path in out.iterdir():
                path.unlink()
            continue
        assert code == -signal.SIGKILL
        kills += 1
    assert ended(arguments) == 0
    assert contents(out) == whole
    record_property("kills", KILLS)


def test_killed_between_writing_and_renaming(tmp_path, whole, record_property):
    """The part is there under its temporary name and not under its own; then the other way round."""
    out = tmp_path / "out"
    arguments = [MODEL, ROWS, "--out", str(out), *CUT, "--resume"]
    assert ended(arguments, 2 + 3 + 1) == -signal.SIGKILL
    assert [meant_for(path) for path in out.glob(".partial-*")] == [PARTS[0]]
    assert not (out / PARTS[0]).exists()
    assert ended(arguments, 3 + 2) == -signal.SIGKILL
    assert (out / PARTS[0]).read_bytes() == whole[PARTS[0]]
    assert ended(arguments) == 0 and contents(out) == whole
    record_property("kills", 2)


def start(*arguments) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    return subprocess.Popen([sys.executable, "-m", *map(str, arguments)], env=environment, stderr=subprocess.PIPE)


def test_torchrun_goes_on_with_the_run_of_one_process(tmp_path, whole, record_property):
    """Killed from outside, somewhere in the middle; two ranks go on."""
    out, slow = tmp_path / "out", f"{scorable.__file__}:Slow"
    arguments = ("torchassay", "score", MODEL, slow, "--out", out, *CUT)
    process = start(*arguments)
    while not (out / PARTS[1]).exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (out / PARTS[6]).exists()
    ranks = start("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", *arguments, "--resume")
    _, errors = ranks.communicate()
    assert ranks.returncode == 0, errors.decode()
    assert errors.decode().count("| 0/") == 1  # one bar
    assert contents(out) == whole
    record_property("kills", 1)


def test_two_ranks_share_the_parts(tmp_path, whole):
    out = tmp_path / "out"
    assert on_two_ranks(out) == ["87 rows, 4 parts", "63 rows, 3 parts"]
    assert contents(out) == whole
    refused = f"score_dataset: out must be a new folder, got '{out}' with this run in it (it is whole)"
    assert on_two_ranks(out) == [refused] * 2


def test_a_restart_by_torchrun_goes_on(tmp_path, whole, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    for file in (PARTS[3], "_run.json"):
        (out / file).write_bytes(whole[file])
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert run(MODEL, ROWS, "--out", out, *CUT).exit_code == 0
    assert contents(out) == whole


# ---- the command line


def test_help():
    result = run("--help")
    assert result.exit_code == 0 and result.output.startswith("Usage: ")
    for option in ("--out", "--signals", "--tokens", "--probs", "--on-error", "--resume"):
        assert f"\n  {option} " in result.output
    assert "\n  score    Score a data set by a model, into Parquet.\n" in CliRunner().invoke(main).output


def test_runs_as_a_module_of_its_own():
    result = subprocess.run([sys.executable, "-m", "torchassay", "score"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "torchassay score: Missing argument 'MODEL'.\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((MODEL,), 2, "Missing argument 'DATA'."),
        ((MODEL, ROWS), 2, "Missing option '--out'."),
        (
            (MODEL, ROWS, "--out", "o", "--batch-size", 0),
            2,
            "Invalid value for '--batch-size': 0 is not in the range x>=1.",
        ),
        (
            (MODEL, ROWS, "--out", "o", "--on-error", "cry"),
            2,
            "Invalid value for '--on-error': 'cry' is not one of 'stop', 'skip'.",
        ),
        (("scorable:nobody", ROWS, "--out", "o"), 1, "model must be a name in 'scorable', got 'nobody'"),
        (
            (MODEL, "none.npz", "--out", "o"),
            1,
            "data must be a .npz, a .parquet or a folder of them, a saved Hugging Face dataset, or "
            "package.module:name, got 'none.npz', which is not there",
        ),
        (
            (MODEL, ROWS, "--out", "o", "--signals", "joy"),
            1,
            f"signals must be among {', '.join(ta.scores.ROW_SIGNALS)}, weight_grad_norm; got 'joy'",
        ),
        ((MODEL, ROWS, "--out", "file"), 1, "could not write to 'file': File exists; go on with --resume"),
        (
            (f"{scorable.__file__}:Features", ROWS, "--out", "o"),
            1,
            "model must give logits, or an output with .logits, got dict with last_hidden_state, pooled",
        ),
    ],
)
def test_bad_command_lines(tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    result = run(*arguments)
    assert (result.output.splitlines()[-1], result.exit_code) == (f"torchassay score: {message}", code)
    assert (tmp_path / "file").read_text() == "mine"


def test_the_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    result = run(MODEL, ROWS, "--out", tmp_path / "o")
    assert (result.output, result.exit_code) == ('torchassay score: needs pyarrow: pip install "torchassay[io]"\n', 1)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batches_per_part": 2.5}, "batches_per_part must be an int, got float"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"on_error": "cry"}, "on_error must be 'stop' or 'skip', got 'cry'"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises((ValueError, TypeError)) as error:
        score_dataset(scorable.network(), scorable.rows(), tmp_path / "out", **arguments)
    assert str(error.value) == f"score_dataset: {message}"
    assert not (tmp_path / "out").exists()
