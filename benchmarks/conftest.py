"""Shared by every benchmark: contenders raced in turn, and one table a topic, printed and kept under results/."""

from __future__ import annotations

import datetime
import itertools
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import tables
import torch
from clock import DEVICE, QUICK, ROUNDS, machine, milliseconds, seconds_left

_OF_THE_CPU = ["bench_row_*.py", "bench_host_cost.py", "bench_plans.py", "bench_samplers.py", "bench_linear.py"]
_OF_THE_CPU += ["bench_weighted.py"]
collect_ignore_glob = ["bench_gpu.py"] if DEVICE == "cpu" else _OF_THE_CPU

RESULTS = Path(__file__).parent / "results"
HOW = f"Median of {ROUNDS} rounds, contenders taken in changing order, each verified first."
if DEVICE != "cpu":
    HOW += (
        "\n\nms: of one call, on copies of the logits that together exceed 4 times the L2 cache; by CUDA events that"
        " the host is ahead of, or by a CUDA graph of at least 20 calls where one takes less than 0.2 ms. GB/s: bytes"
        " that must be moved. x ours: the time over that of the first of our backends in the table. max error: relative"
        " to float64 of the same algebra, over 256 rows and all signals that the contender gives; plain formulas lose"
        " every digit on rows the model is sure of. Most bars are for Hopper."
    )
    HOW += "\n\nA quick run: few shapes." if QUICK else ""

_FILES = {"bench_plans": "samplers", "bench_samplers": "samplers", "bench_weighted": "weighted"}  # of their own
_tables: dict[str, tables.Tables] = {}  # by file


@pytest.fixture(autouse=True)
def in_time():
    if seconds_left() < 25:  # what the longest case takes without a compilation
        pytest.skip("out of time")
    yield
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture
def race(benchmark):
    """``race({name: call})``: the median milliseconds of each call, all taken in every round, in changing order.

    Side by side, because this way they share whatever else the machine does; the benchmark's own figure is a round.
    """

    def run(calls: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
        times: dict[str, list[float]] = {name: [] for name in calls}

        orders = itertools.cycle(itertools.permutations(calls))  # who ran before decides what the caches hold

        def one_round():
            for name in next(orders):
                times[name].append(milliseconds(calls[name]))

        for call in calls.values():
            call()
        benchmark.pedantic(one_round, rounds=rounds, warmup_rounds=2)
        medians = {name: statistics.median(taken[2:]) for name, taken in times.items()}
        benchmark.extra_info.update(medians)
        return medians

    return run


def _name() -> str:
    return "cpu" if DEVICE == "cpu" else re.sub(r"[^a-z0-9]+", "-", machine().lower()).strip("-")


def _save() -> str:
    built_for = f", CUDA {torch.version.cuda}" if DEVICE != "cpu" else ""
    about = f"{machine()}; torch {torch.__version__}{built_for}; {datetime.date.today().isoformat()}"
    how = {"samplers": "Steps are timed with their scoring, on whatever else the machine does."}
    how["weighted"] = f"{HOW} The large tree alone in a process, medians of 200 rounds, its building once."
    return "\n".join(tables.save(RESULTS, name, about, how.get(name, HOW), of) for name, of in _tables.items())


@pytest.fixture
def record(request):
    """``record(topic, {column: value})``: one row of a table."""
    file = _FILES.get(request.module.__name__.split(".")[-1]) or _name()

    def add(topic: str, row: dict) -> None:
        _tables.setdefault(file, {}).setdefault(topic, []).append(row)
        if DEVICE != "cpu":
            _save()  # a run on a GPU may be cut off, or end in an error that nothing survives

    return add


def pytest_terminal_summary(terminalreporter):
    if not _tables:
        return
    terminalreporter.write_line("")
    terminalreporter.write_line(_save())
    for name in _tables:
        terminalreporter.write_line(f"kept in benchmarks/results/{name}.md and .json")
