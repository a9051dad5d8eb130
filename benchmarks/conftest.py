"""Shared by every benchmark: contenders raced in turn, and one table a topic, printed and kept under results/."""

from __future__ import annotations

import datetime
import itertools
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from clock import DEVICE, machine, milliseconds

RESULTS = Path(__file__).parent / "results"
ROUNDS = 41

_tables: dict[str, list[dict]] = {}


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


@pytest.fixture
def record():
    """``record(topic, {column: value})``: one row of a table."""

    def add(topic: str, row: dict) -> None:
        _tables.setdefault(topic, []).append(row)

    return add


def _cell(value) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1e}" if value and abs(value) < 1e-3 else f"{value:,.{2 if value < 100 else 0}f}"


def _table(rows: list[dict]) -> str:
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([_cell(row[name]) for name in head] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pytest_terminal_summary(terminalreporter):
    if not _tables:
        return
    about = f"{machine()}; torch {torch.__version__}; {datetime.date.today().isoformat()}"
    how = f"Median of {ROUNDS} rounds, contenders taken in changing order, each verified first."
    parts = [f"# Benchmarks\n\n{about}. {how}"]
    parts += [f"## {topic}\n\n{_table(rows)}" for topic, rows in _tables.items()]
    text = "\n\n".join(parts) + "\n"
    name = "cpu" if DEVICE == "cpu" else re.sub(r"[^a-z0-9]+", "-", machine().lower()).strip("-")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": about, "tables": _tables}, indent=1) + "\n")
    terminalreporter.write_line("")
    terminalreporter.write_line(text)
    terminalreporter.write_line(f"kept in benchmarks/results/{name}.md and .json")
