"""The commands as a user meets them. Timings are printed, never asserted."""

import builtins
import re
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
import torchassay
from click.testing import CliRunner
from missing import without
from torchassay import demo, speed
from torchassay.cli import main

SMALL = ((64, 10), (64, 1000), (3, 50257))


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(speed, "SHAPES", SMALL)
    monkeypatch.setattr(demo, "_CONTEST_EPOCHS", 4)


def rows(output):
    """The lines of the speed table, split: shape, ms, GB/s, chain, ratio, loss only, ratio, error, chain's error."""
    found = [row.replace(" ms", "").split() for row in output.splitlines() if re.match(r"\d+ x \d+ ", row)]
    return [(" ".join(row[:3]), *(float(value.rstrip("x")) for value in row[3:])) for row in found]


def test_version_and_help():
    assert run("--version").output == f"torchassay, version {version('torchassay')}\n"
    for arguments in ((), ("--help",), ("-h",)):
        result = run(*arguments)
        assert result.exit_code == 0
        assert result.output.startswith("Usage: torchassay [OPTIONS] ")
        assert all(f"\n  {command} " in result.output for command in ("bench", "demo", "doctor"))
        assert "..." not in result.output.split("Commands:")[1]


def test_runs_as_a_module():
    command = [sys.executable, "-m", "torchassay", "--epochs"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("torchassay: No such option")
    assert result.stderr.count("\n") == 1


def test_the_built_in_shapes():
    assert speed.SHAPES == ((8192, 10), (8192, 1000), (1024, 50257))
    assert speed.SIGNALS == ("loss", "entropy", "grad_norm", "margin", "confidence")


@pytest.mark.parametrize("dtype", speed.DTYPES)
def test_bench(small, dtype):
    result = run("bench", "--dtype", dtype)
    assert result.exit_code == 0, result.output
    table = rows(result.output)
    assert [row[0] for row in table] == ["64 x 10", "64 x 1000", "3 x 50257"]
    for row in table:
        assert len(row) == 9
        assert row[7] <= 1e-6  # ours; what the chain gets wrong in float32 is its own affair
        assert all(value > 0 for value in row[1:7])
    first = result.output.splitlines()[0]
    assert f"torch {torch.__version__}, 20" in first
    assert f"\n{dtype}, random logits" in result.output


def test_bench_is_exact_at_the_sizes_it_shows():
    for shape in speed.SHAPES[:2]:
        error, eager_error = speed.worst_errors(*speed.make(*shape))
        assert error <= 1e-6
        assert eager_error > 0.1  # else the logits are not those of a sure model


def test_a_nan_is_not_lost_among_the_errors(monkeypatch):
    logits, target = speed.make(4, 3)
    wrong = {name: torch.full((4,), torch.nan) for name in speed.SIGNALS}
    monkeypatch.setattr(speed, "ours", lambda *_: wrong)
    error, eager_error = speed.worst_errors(logits, target)
    assert error != error
    assert eager_error == eager_error


def test_medians_interleaves_the_calls_in_changing_order():
    seen = []
    times = speed.medians([lambda: seen.append("a"), lambda: seen.append("b")], rounds=15, seconds=0)
    assert "".join(seen) == "ab" + "abba" * 7 + "ab"
    assert len(times) == 2
    assert min(times) >= 0


@pytest.mark.parametrize(("share", "notes"), [(0.05, 0), (0.4, 1)])
def test_bench_says_when_others_disturbed(small, monkeypatch, share, notes):
    monkeypatch.setattr(speed.Bystanders, "share", lambda self: share)
    note = "Note: other programs took 40% of this machine meanwhile; time again when idle.\n"
    assert run("bench").output.count(note) == notes


def test_bystanders_share_is_a_share_and_leaves_us_out():
    bystanders = speed.Bystanders()
    assert 0 <= bystanders.share() <= 1
    clock = iter([(10.0, 5.0), (20.0, 7.0)])
    bystanders._start, bystanders._read = next(clock), lambda: next(clock)
    assert bystanders.share() == 0.2
    bystanders._start = None
    bystanders._read = lambda: None
    assert bystanders.share() == 0.0


def test_bench_threads_are_put_back(small):
    before = torch.get_num_threads()
    result = run("bench", "--threads", 1)
    assert result.exit_code == 0, result.output
    assert ", 1 thread, torch " in result.output.splitlines()[0]
    assert torch.get_num_threads() == before


def test_doctor(monkeypatch):
    monkeypatch.setenv("TORCHASSAY_BACKEND", "reference")
    result = run("doctor")
    assert result.exit_code == 0, result.output
    facts = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in result.output.split("\n\n")[0].splitlines())
    assert facts["torchassay"] == version("torchassay")
    assert facts["python"].startswith(sys.version.split()[0])
    assert facts["torch"].startswith(f"{torch.__version__}, {torch.get_num_threads()} threads")
    assert {"platform", "cpu", "cpu flags", "torch built for", "triton", "numpy", "native"} <= set(facts)
    assert "TORCHASSAY_BACKEND=reference" in facts["environment"]
    assert torchassay.backends() in result.output


def test_doctor_says_why_there_is_no_native_extension(monkeypatch):
    from torchassay import doctor

    backends = sys.modules["torchassay.backends"]  # the name in the package is the function
    monkeypatch.setattr(doctor, "native", None)
    monkeypatch.setattr(backends, "native", None)
    monkeypatch.setattr(backends, "_missing", "the C++ extension is not there (no such module)", raising=False)
    result = run("doctor")
    assert re.search(r"^native +not built: see the table$", result.output, re.MULTILINE)
    assert re.search(r"^native +cpu +no: the C\+\+ extension is not there", result.output, re.MULTILINE)


def test_doctor_survives_a_broken_triton(monkeypatch):
    from torchassay import doctor

    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    real = builtins.__import__

    def broken(name, *rest):
        if name == "triton":
            raise OSError("libcuda is odd")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", broken)
    assert doctor._triton() == "installed, but does not import: OSError: libcuda is odd"


def test_demo(small, tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    result = run("demo", "--out", tmp_path / "new" / "demo")
    assert result.exit_code == 0, result.output
    written = sorted(path.name for path in (tmp_path / "new" / "demo").iterdir())
    assert written == ["loss_vs_entropy.png", "noise_share.png", "scores.csv", "worst_16.png"]
    line = r"(\d+)% of what Selective-Backprop picks by the loss is corrupted, by the entropy (\d+)%"
    picks = re.search(line, result.output)
    assert int(picks[1]) > 60 and abs(int(picks[2]) - 50) <= 6
    assert "training: 100%" in result.output
    hits, share = re.search(r"among the 287 most suspicious: (\d+) \((.*)%\)", result.output).groups()
    assert int(hits) >= 0.85 * 287
    assert float(share) >= 85
    assert int(re.search(r"among the  50 most suspicious: +(\d+) ", result.output)[1]) >= 0.95 * 50
    assert [row[0] for row in rows(result.output)] == ["64 x 10", "64 x 1000", "3 x 50257"]
    assert all(row[7] <= 1e-6 for row in rows(result.output))
    last = result.output.rstrip().splitlines()[-5:]
    assert [line[:3] for line in last] == ["1. ", "2. ", "3. ", "4. ", "5. "]
    assert f"{hits} (" in last[1]


@pytest.mark.parametrize(
    ("missing", "names"),
    [
        ({"matplotlib"}, "matplotlib"),
        ({"sklearn"}, "scikit-learn"),
        ({"matplotlib", "sklearn"}, "matplotlib and scikit-learn"),
    ],
)
def test_demo_names_the_missing_extra(monkeypatch, tmp_path, missing, names):
    without(monkeypatch, *missing)
    result = run("demo", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.output == f'torchassay demo: this needs {names}: pip install "torchassay[demo]"\n'
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "--epochs", "0"), "torchassay demo: Invalid value for '--epochs': 0 is not in the range x>=1."),
        (
            ("demo", "--seed", "-1"),
            "torchassay demo: Invalid value for '--seed': -1 is not in the range 0<=x<=9223372036854775807.",
        ),
        (
            ("demo", "--epochs", "many"),
            "torchassay demo: Invalid value for '--epochs': 'many' is not a valid integer range.",
        ),
        (("demo", "extra"), "torchassay demo: Got unexpected extra argument (extra)"),
        (("bench", "--threads", "0"), "torchassay bench: Invalid value for '--threads': 0 is not in the range x>=1."),
        (
            ("bench", "--dtype", "int8"),
            "torchassay bench: Invalid value for '--dtype': 'int8' is not one of "
            "'float32', 'bfloat16', 'float16', 'float64'.",
        ),
        (("doctor", "--fast"), "torchassay doctor: No such option"),
        (("dance",), "torchassay: No such command 'dance'"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert result.output.startswith(message)


def test_demo_tries_the_folder_first(tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    taken = tmp_path / "file"
    taken.write_text("mine")
    result = run("demo", "--out", taken)
    assert result.exit_code == 1
    must = "torchassay demo: --out must be a folder that can be written to, got"
    assert result.output == f"{must} '{taken}' (File exists)\n"
    assert taken.read_text() == "mine"
    below = run("demo", "--out", taken / "below")
    assert below.output == f"{must} '{taken / 'below'}' (Not a directory)\n"


def test_demo_says_when_the_disk_is_full(small, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    from torchassay import demo

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "save", full)
    result = run("demo", "--out", tmp_path, "--epochs", 1)
    assert result.exit_code == 1
    assert result.output.endswith(f"torchassay demo: could not write to '{tmp_path}': No space left on device\n")
