"""Draws by weight: from a `SumTree`, and by what PyTorch and NumPy have for it; and a tree of a hundred million."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchassay as ta

DRAWS = 1024
TOPIC = "1,024 draws by weight"
PARTS = 64  # of the entries, whose shares of the draws are compared with their shares of the weights


def off(draw: Callable[[], object], weights: torch.Tensor) -> float:
    """By how many standard deviations chi-square is off its mean, over parts of unlike weight."""
    found = np.concatenate([np.asarray(draw()) for _ in range(20)]) * PARTS // len(weights)
    shares = np.array([float(part.sum()) for part in weights.tensor_split(PARTS)])
    expected = len(found) * shares / shares.sum()
    counts = np.bincount(found, minlength=PARTS)
    return float((((counts - expected) ** 2 / expected).sum() - PARTS + 1) / (2 * (PARTS - 1)) ** 0.5)


@pytest.mark.parametrize("n", [1_000_000, 10_000_000, 20_000_000], ids="{:,}".format)
def test_against_others(race, record, n):
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(n, generator=generator, dtype=torch.float64) * torch.linspace(0.5, 1.5, n)
    tree, numpy = ta.SumTree(weights), np.random.default_rng(0)
    chances = (weights / weights.sum()).numpy()
    chances /= chances.sum()
    step = iter(range(1 << 30))
    calls = {
        "ours": lambda: tree.sample(DRAWS, seed=(0, next(step))),
        "torch.multinomial": lambda: torch.multinomial(weights, DRAWS, True, generator=generator),
        "Generator.choice": lambda: numpy.choice(n, DRAWS, p=chances),
    }
    row = {"weights": f"{n:,}"}
    if n > 1 << 24:
        with pytest.raises(RuntimeError) as error:
            calls.pop("torch.multinomial")()
        assert "2^24" in str(error.value)
    assert all(abs(off(call, weights)) < 5 for call in calls.values())
    ms = race(calls)
    row |= {"ms": ms["ours"]}
    for name in ("torch.multinomial", "Generator.choice"):
        known = name in ms
        row[f"{name}, ms"] = ms[name] if known else "raises"
        row[f"{name}: times ours"] = ms[name] / ms["ours"] if known else ""
    record(TOPIC, row)


def test_a_hundred_million(record):
    n, updates = 100_000_000, 100_000_000
    command = [sys.executable, str(Path(__file__).with_name("weighting.py")), str(n), str(updates)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for what, value, bar in (
        ("build, s", found["build"], "5"),
        ("draw 1,024, ms", found["draw"] * 1e3, ""),
        ("update 1,024, ms", found["update"] * 1e3, ""),
        ("draw 1,024 and update 1,024, ms", found["both"] * 1e3, "2"),
        ("RAM, bytes a weight", found["bytes"], "9"),
        ("RAM that 200 draws and updates add, MB", found["growth"] / 1e6, ""),
        ("a hundred million updates, s", found["updating"], ""),
        ("relative error of the sum after them", found["error"], "1e-9"),
    ):
        record("A tree of 100,000,000 weights", {"what": what, "found": value, "at most": bar})
