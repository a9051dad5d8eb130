"""Scores of hidden states under a linear head against the product alone and against materialised logits, on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import linear_cases
import pytest
import torch
import torchassay as ta
from linear_cases import CLASSES, FEATURES, ROWS, SCORERS, TRAINERS

SHAPE = f"{ROWS} x {FEATURES} x {CLASSES}"
MIB = 1 << 20
BARS = {  # the time of linear_score over another's at most, and its memory
    "the product alone": 1.10,
    "F.linear, then the eager chain": 1 / 1.5,
}


def memory(name: str, dtype: torch.dtype) -> float:
    command = [
        sys.executable,
        str(Path(__file__).with_name("linear_cases.py")),
        name,
        str(dtype).removeprefix("torch."),
    ]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / MIB


def error(found: dict, exact: dict) -> float:
    """The worst relative error over the signals."""
    return max(((found[name].double() - true).abs() / true.abs()).max().item() for name, true in exact.items())


def note(record, topic: str, ours: str, name: str, dtype: torch.dtype, ms: dict, worst: float | str) -> None:
    ratio, bar = ms[ours] / ms[name], BARS.get(name)
    row = {"what": name, "dtype": str(dtype).removeprefix("torch."), "ms": ms[name], f"{ours} / this": ratio}
    row |= {"bar": "" if bar is None else f"<= {bar:.2f}", "met": ""}
    if bar is not None:
        row["met"] = "yes" if ratio <= bar else "**no**"
    record(topic, row | {"peak, MiB": memory(name, dtype), "max error": worst})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_scores(dtype, race, record):
    given = linear_cases.make(ROWS, FEATURES, CLASSES, dtype)
    hidden, weight, target = given
    logits = hidden.double() @ weight.double().t()
    exact = ta.reference.score(logits, target, signals=("loss", "entropy")).as_dict()
    worst = {}
    for name, call in SCORERS.items():
        found = call(*given)
        worst[name] = error(found, exact) if found else ""
    assert worst["linear_score"] <= 2 * worst["F.linear, then score"]
    ms = race({name: lambda call=call: call(*given) for name, call in SCORERS.items()}, rounds=9)
    for name in SCORERS:
        note(record, f"Linear head, {SHAPE}: five signals", "linear_score", name, dtype, ms, worst[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_training_step(dtype, race, record):
    given = linear_cases.make(ROWS, FEATURES, CLASSES, dtype)
    hidden, weight, target = given
    exact = linear_cases.torch_trained(hidden.double(), weight.double(), target)

    def off(found: dict) -> float:
        return max(((found[name].double() - true).norm() / true.norm()).item() for name, true in exact.items())

    worst = {name: off(found) if (found := call(*given)) else "" for name, call in TRAINERS.items()}
    ours = next(iter(TRAINERS))
    assert worst[ours] <= 1.1 * worst["F.linear, F.cross_entropy"]
    ms = race({name: lambda call=call: call(*given) for name, call in TRAINERS.items()}, rounds=5)
    for name in TRAINERS:
        note(record, f"Linear head, {SHAPE}: training step", ours, name, dtype, ms, worst[name])
