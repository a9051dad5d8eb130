"""`make gpu` and the GPU benchmarks where there is no GPU: what they refuse, plan, cut off, judge and write."""

import importlib.util
import signal
import sys
import time

import bars
import contenders
import gpu
import gpu_cases
import gpu_linear
import peers
import pytest
import rotation
import sanitize
import steps
import tables
import torch
import torch.nn.functional as F
import torchassay as ta
from clock import milliseconds
from steps import Outcome, Step
from torchassay.backends import why_not

PYTHON = (sys.executable, "-c")
OURS = [name for name in ("native", "reference") if not why_not(name, "cpu", torch.float32)]


def test_without_a_gpu_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("make gpu needs an NVIDIA GPU and torch: ")


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
def test_the_plan_of_a_run(quick, monkeypatch):
    monkeypatch.delenv("TORCHASSAY_CUDA_ARCHS", raising=False)
    monkeypatch.setattr(gpu, "toolkit", lambda name: "" if name == "compute-sanitizer" else f"/cuda/bin/{name}")
    plan = {step.name: step for step in gpu.plan(quick, "90;100")}
    assert [step.bit for step in plan.values()] == [2, 0, 4, 8, 16, 32, 64]
    build = plan["build"]
    assert build.environment == {"TORCHASSAY_CUDA_ARCHS": "90;100", "CUDACXX": "/cuda/bin/nvcc"}
    assert {"--no-index", "--no-deps", "--no-build-isolation", str(gpu.TARGET)} <= set(build.command)
    assert plan["build without C++"].only_without == "build"
    for name in ("smoke test", "tests", "benchmarks", "memcheck", "racecheck"):
        assert plan[name].environment["PYTHONPATH"].startswith(str(gpu.TARGET))
        assert plan[name].environment["QUICK"] == str(int(quick))
    assert plan["memcheck"].missing == plan["racecheck"].missing == "there is no compute-sanitizer"
    assert "native-cuda or triton-cuda" in plan["tests"].command[plan["tests"].command.index("-k") + 1]
    assert sum(step.kept for step in plan.values()) < gpu.SECONDS[quick] - 40
    assert gpu.SECONDS[quick] < (300 if quick else 540)


def test_every_step_runs_whatever_became_of_the_others(tmp_path, capfd):
    planned = [
        Step("first", 2, (*PYTHON, "print('some'); print('3 failed'); raise SystemExit(3)"), 60, telling=r"\d failed"),
        Step("instead", 0, (*PYTHON, "print('instead')"), 60, only_without="first"),
        Step("second", 4, (*PYTHON, "import os; print(os.environ['WHO'], 'kept' * 99)"), 60, environment={"WHO": "me"}),
        Step("not needed", 8, (*PYTHON, "raise SystemExit(1)"), 60, only_without="second"),
        Step("not there", 16, ("/nowhere/program",), 60),
        Step("not here", 32, ("/nowhere/program",), 60, missing="there is no program"),
    ]
    outcomes = steps.run_all(planned, 300, tmp_path / "logs", tmp_path)
    assert [(one.name, one.failed) for one in outcomes] == [
        ("first", True),
        ("instead", False),
        ("second", False),
        ("not there", True),
        ("not here", False),
    ]
    assert [one.result for one in outcomes[:3]] == ["failed, status 3: 3 failed", "ok", "ok"]
    assert outcomes[4].result == "not run: there is no program"
    assert steps.exit_status(outcomes) == 18
    lines = steps.summary(outcomes).splitlines()
    assert len(lines) == 6 and lines[-1] == "exit status 18 = 2 first + 16 not there"
    printed = capfd.readouterr().out
    assert "some\n3 failed\n" in printed and "me kept" in printed
    assert max(map(len, printed.splitlines())) < 300
    assert (tmp_path / "logs" / "second.log").read_text().startswith("me kept")


def test_a_step_that_takes_too_long_is_asked_to_stop_then_ended(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(steps, "GRACE", 1.0)
    polite = "import time\ntry: print('in', flush=True); time.sleep(60)\nexcept KeyboardInterrupt: print('report')"
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('in', flush=True); time.sleep(60)"
    start = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
    asked = steps.run(Step("polite", 2, (*PYTHON, polite), 3, telling="report"), 3, tmp_path / "1.log", tmp_path)
    signal.signal(signal.SIGINT, before)
    ended = steps.run(Step("deaf", 4, (*PYTHON, deaf), 2), 2, tmp_path / "2.log", tmp_path)
    assert time.monotonic() - start < 20
    assert asked.failed and asked.result.startswith("cut off after") and asked.result.endswith("report")
    assert ended.failed and ended.result.startswith("cut off after")
    assert "in" in capfd.readouterr().out


def test_time_is_left_over_for_the_steps_that_matter(tmp_path, monkeypatch):
    now = [0.0]
    limits = {}

    def run(step, limit, log, root):
        limits[step.name] = limit
        now[0] += limit
        return Outcome(step.name, step.bit, "cut off", True)

    monkeypatch.setattr(steps, "run", run)
    planned = [Step(name, 2, (), most, kept) for name, most, kept in (("a", 80, 0), ("b", 50, 20), ("c", 50, 25))]
    outcomes = steps.run_all([*planned, Step("d", 4, (), 9)], 100, tmp_path, tmp_path, clock=lambda: now[0])
    assert limits == {"a": 55, "b": 20, "c": 25}
    assert outcomes[-1].result == "not run: no time left" and outcomes[-1].failed


def test_copies_exceed_the_caches_and_take_turns():
    x = torch.arange(256.0)
    made = rotation.copies(x, 4 * x.nbytes + 1)
    assert len(made) == 5 and len(rotation.copies(x, 1)) == 2
    assert len({copy.data_ptr() for copy in made}) == 5 and all(torch.equal(copy, x) for copy in made)
    seen = []
    ready = rotation.launches(lambda x: seen.append(x.data_ptr()), made, None)
    del seen[:]
    ready.run()
    assert ready.how == "events" and len(seen) == ready.count and ready.count % 5 == 0
    assert seen == [made[i % 5].data_ptr() for i in range(ready.count)]


def test_short_calls_are_captured_and_a_refused_capture_is_said():
    made = rotation.copies(torch.zeros(3), 1)
    ready = rotation.launches(lambda x: None, made, lambda run: lambda: "replayed")
    assert (ready.run(), ready.count, ready.how) == ("replayed", 20, "graph of 20")

    def refuse(run):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    ready = rotation.launches(lambda x: None, made, refuse)
    assert ready.how == "events; not captured: RuntimeError: operation not permitted when stream is capturing"
    slow = rotation.launches(lambda x: time.sleep(5e-4), made, refuse)
    assert slow.how == "events" and 2 <= slow.count <= 20


def test_bars():
    bf16, fp32 = torch.bfloat16, torch.float32
    assert bars.read_share("native", 8192, 50257, bf16) == bars.read_share("native", 8192, 50257, fp32) == 0.75
    assert bars.read_share("triton", 8192, 50257, bf16) == 0.60
    assert [bars.read_share(name, 4096, 151936, bf16) for name in ("native", "triton")] == [0.85, 0.75]
    assert [bars.read_share(name, 8192, 32000, fp32) for name in ("native", "triton")] == [0.90, None]
    assert [bars.read_share("native", 1 << 17, classes, bf16) for classes in (1000, 100, 4096)] == [0.75, 0.60, None]
    assert bars.read_share("PyTorch chain", 8192, 32000, bf16) is None
    assert [bars.five_to_one(classes) for classes in (32000, 100, 1000)] == [1.05, 1.15, None]
    assert bars.at_least(86.0, 85.0, " % of read") == {"bar": ">= 85 % of read", "met": "yes"}
    assert bars.at_least(float("nan"), 85.0)["met"] == bars.at_most(1.2, 1.15)["met"] == "**no**"
    assert bars.at_most(1.0, None) == {"bar": "", "met": ""}


@pytest.fixture
def bench():
    """A benchmark on the CPU, its tables in ``bench.record.found``."""

    class Record(dict):
        def __call__(self, topic, row):
            self.setdefault(topic, []).append(row)

    def race(calls):
        return {name: milliseconds(call) for name, call in calls.items()}

    return gpu_cases.Bench("cpu", OURS, race, Record(), 100.0, 1 << 16, None, True)


def test_five_signals_are_verified_timed_and_held_against_bars(bench, monkeypatch):
    broken = contenders.Contender("lean chain, compiled", lambda x, y: 1 / 0)
    monkeypatch.setattr(contenders, "compiled", lambda: broken)
    monkeypatch.setattr(peers, "find", lambda: ([contenders.loss_alone()._replace(name="a peer")], {}))
    assert gpu_cases.five_signals(bench, 300, 100, torch.bfloat16, others=True, compiled=True) == []
    rows = {row["contender"]: row for row in bench.record[gpu_cases.FIVE]}
    alone = [f"{name}, loss alone" for name in OURS]
    assert [*rows] == [*OURS, *alone, "PyTorch chain", "F.cross_entropy", broken.name, "a peer"]
    assert all(row.keys() == rows[OURS[0]].keys() for row in rows.values())
    assert rows[broken.name]["timed by"].startswith("ZeroDivisionError") and rows[broken.name]["ms"] == ""
    assert rows[OURS[0]]["x ours"] == 1 and rows[OURS[0]]["ms"] > 0
    assert rows[OURS[0]]["max error"] <= 2e-6 < rows["PyTorch chain"]["max error"]
    assert rows[alone[0]]["bar"] == "<= 1.15x this for five" and rows["PyTorch chain"]["bar"] == ">= 10x ours"
    assert rows["native"]["bar"] == ">= 60 % of read" if "native" in rows else True
    text = tables.document("a-gpu", "a machine", "So.", bench.record)
    assert text.startswith("# Benchmarks: a-gpu\n\na machine. So.\n\n## Five signals")
    assert text.count("| 300 x 100 |") == len(rows)


def test_wrong_signals_are_recorded_and_not_timed(bench, monkeypatch):
    right = contenders.ours

    def off(backend, *signals):
        exact = right(backend, *signals)
        return exact._replace(call=lambda x, y: {name: v * 1.001 for name, v in exact.call(x, y).items()})

    monkeypatch.setattr(contenders, "ours", off)
    found = gpu_cases.five_signals(bench, 50, 10, torch.float32, others=False, compiled=False)
    assert found == [f"{name}: WRONG, not timed" for name in OURS]
    assert [row["ms"] for row in bench.record[gpu_cases.FIVE]] == [""] * len(OURS)


def test_options_are_verified_and_held_against_the_plain_call(bench, monkeypatch):
    reference = bench._replace(backends=["reference"])
    assert gpu_cases.five_signals_under_options(reference, 20, 1000, torch.float32) == []
    rows = {row["contender"].partition(", ")[2]: row for row in bench.record[gpu_cases.OPTIONS]}
    assert [*rows] == ["plain", *bars.OPTIONS] and rows["plain"]["x plain"] == 1
    assert rows["softcap"]["bar"] == "<= 2.2x plain" and rows["plain"]["bar"] == ""
    assert all(row["max error"] <= gpu_cases.OPTIONS_BOUND for row in rows.values())
    right = ta.score
    monkeypatch.setattr(ta, "score", lambda x, y, temperature=1.0, **given: right(x, y, **given))
    found = gpu_cases.five_signals_under_options(reference, 20, 1000, torch.float32)
    assert found == ["reference, temperature: WRONG, not timed"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_training_steps_are_verified_and_timed(bench, dtype):
    assert gpu_cases.training_step(bench, 64, 100, dtype) == []
    rows = bench.record[gpu_cases.TRAINING]
    assert [row["contender"] for row in rows] == [*OURS, "F.cross_entropy"]
    assert rows[0]["bar"] == "<= 0.75x" and rows[-1]["bar"] == "" and rows[-1]["x F.cross_entropy"] == 1
    assert rows[0]["max error"] <= gpu_cases.GRAD_BOUND[dtype]


@pytest.mark.parametrize("training", [False, True], ids=["scores", "training"])
def test_linear_heads_are_verified_and_timed(bench, training, monkeypatch):
    bench = bench._replace(backends=["reference"])
    monkeypatch.setattr(peers, "HEADS", {"a peer": lambda: lambda h, w, y: F.cross_entropy(h @ w.t(), y)})
    assert gpu_linear.linear_head(bench, 40, 2048, 300, torch.bfloat16, training=training) == []
    rows = {row["contender"]: row for row in bench.record[gpu_linear.TRAINING if training else gpu_linear.SCORES]}
    assert {"reference", "four products", "a peer"} <= {*rows} if training else {"reference", "the product"} <= {*rows}
    assert not training or rows["a peer"]["max error"] < 0.1
    assert rows["reference"]["bar"] == ("<= 1.15x four products" if training else "<= 1.2x the product")
    assert 0 < rows["reference"]["max error"] <= gpu_linear.BOUND[torch.bfloat16] and rows["reference"]["ms"] > 0
    right = ta.linear_score
    monkeypatch.setattr(ta, "linear_score", lambda h, *given, **named: right(h * 1.5, *given, **named))
    if not training:
        assert gpu_linear.linear_head(bench, 40, 2048, 300, torch.bfloat16, training=False) != []


def test_noisy_entropies_are_verified_and_timed(bench, monkeypatch):
    bench = bench._replace(backends=["reference"])
    assert gpu_cases.noisy_entropy(bench, 64, 100, torch.bfloat16) == []
    ours, theirs = bench.record[gpu_cases.NOISY]
    assert (ours["contender"], theirs["contender"]) == ("reference", "PyTorch chain")
    assert 0 < ours["max error"] <= 1e-5 and ours["x ours"] == 1 and theirs["max error"] == "" and theirs["ms"] > 0
    right = contenders.noisy

    def off(backend, draws, std, logits, *given, **named):
        found = right(backend, draws, std, logits, *given, **named)
        return found if logits.dtype == torch.float64 else found * 1.001

    monkeypatch.setattr(contenders, "noisy", off)
    assert gpu_cases.noisy_entropy(bench, 64, 100, torch.bfloat16) == ["reference: WRONG, not timed"]


def test_host_cost(bench, monkeypatch):
    monkeypatch.setattr(gpu_cases, "host_microseconds", lambda call: 12.0)
    assert gpu_cases.host_cost(bench) == []
    rows = bench.record[gpu_cases.HOST]
    assert len(rows) == 3 * len(OURS) + 2
    assert {row["met"] for row in rows if row["call"] == "score" and row["backend"] == "native"} <= {"yes"}
    bench = bench._replace(backends=["nonesuch"])
    assert "nonesuch" in gpu_cases.host_cost(bench)[0]


def test_peers_that_cannot_be_timed_are_notes():
    def missing():
        raise ModuleNotFoundError("No module named 'peer'")

    def broken():
        raise OSError("libcuda.so.1: cannot open\nmore")

    given = {"a": missing, "b": broken, "c": lambda: torch.add}
    found, notes = peers.find(given)
    assert [one.name for one in found] == ["c"]
    assert notes == {"a": "not installed", "b": "does not import: OSError: libcuda.so.1: cannot open"}
    known, missed = peers.find()
    assert len(known) + len(missed) == len(peers.PEERS)


def test_results_are_written_to_read_and_to_compute_with(tmp_path):
    rows = [{"what": "a", "ms": 0.0421, "GB/s": 4234.5, "x": 0.00012}, {"what": "b", "ms": "", "GB/s": "", "x": 2.0}]
    text = tables.save(tmp_path / "results", "card", "a machine", "So.", {"Topic": rows})
    assert text == (tmp_path / "results" / "card.md").read_text()
    assert text.endswith(
        "| what | ms | GB/s | x |\n| --- | --- | --- | --- |\n| a | 0.0421 | 4,234 | 1.2e-04 |\n| b |  |  | 2.00 |\n"
    )
    assert '"machine": "a machine"' in (tmp_path / "results" / "card.json").read_text()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter is not on where there is a GPU")
def test_bandwidth_and_the_cases_of_a_run():
    import bandwidth
    import bench_gpu

    speeds = bandwidth.measure("cpu", 1 << 16, rounds=1)
    assert len(speeds) == 3 + len(bandwidth.READERS) and min(speeds.values()) > 0
    assert bandwidth.best_read({"copy": 9.0, "read, a": 2.0, "read, b": 3.0}) == 3
    quick, full = bench_gpu.cases(True), bench_gpu.cases(False)
    assert len({*map(str, full)}) == len(full) and {case[:4] for case in quick} <= {case[:4] for case in full}
    assert {case.kind for case in full} == {"five", "training", "noisy", "options", "ours"} and sum(
        case.compiled for case in quick
    ) <= 2


def test_the_smoke_test_tells_right_from_wrong(monkeypatch):
    some = [sanitize.CASES[i] for i in (0, 1, 4, 7)]
    assert sanitize.check("cpu", OURS, some) == []
    wrong = sanitize.check("cpu", ["nonesuch"], some)
    assert len(wrong) == len(some) + 1 and "backend must be one of" in wrong[1]
    assert all(": error " in line for line in sanitize.check("cpu", OURS, some[1:], tolerance=0.0))
