"""Selection probabilities: what they cost beside the signals, and against the deque that the authors' code keeps."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch
import torchassay as ta
from torchassay import speed

SHAPES = [(8192, 1000), (2048, 4096), (512, 50257)]
TOPIC = "Selection probabilities"


@pytest.mark.parametrize(("rows", "classes"), SHAPES, ids=[f"{n}x{c}" for n, c in SHAPES])
def test_beside_five_signals(race, record, rows, classes):
    logits, target = speed.make(rows, classes, torch.float32)
    history, other = ta.History(), ta.History()
    scores = ta.score(logits, target, signals=speed.SIGNALS, history=history)
    assert torch.equal(scores.select_prob, other.probability(scores.loss))
    ms = race(
        {
            "with": lambda: ta.score(logits, target, signals=speed.SIGNALS, history=history),
            "without": lambda: ta.score(logits, target, signals=speed.SIGNALS),
        }
    )
    row = {"what": f"five signals and select_prob, {rows} x {classes}", "window": 1024, "µs": ms["with"] * 1e3}
    record(TOPIC, row | {"against": "five signals", "µs ": ms["without"] * 1e3, "ratio": ms["with"] / ms["without"]})


@pytest.mark.parametrize("capacity", [1024, 16384, 1 << 20])
def test_against_a_deque(race, record, capacity):
    """Value by value, as the authors' code counts (not for the largest window), and by one sort for all."""
    generator = np.random.default_rng(0)
    values = generator.gamma(2.0, size=8192).astype(np.float32)
    start = generator.gamma(2.0, size=capacity).astype(np.float32)
    window, history = collections.deque(start.tolist(), maxlen=capacity), ta.History(capacity)
    history.update(torch.from_numpy(start))

    def latest():
        window.extend(values.tolist())
        return np.fromiter(window, dtype=np.float32, count=len(window))

    def counted():
        held = latest()
        return np.array([(held < value).mean() for value in values])

    def searched():
        held = np.sort(latest())
        return np.searchsorted(held, values) / len(held)

    contenders = {"deque, counted value by value": counted, "deque, sorted and searched": searched}
    if capacity > 16384:
        del contenders["deque, counted value by value"]
    found = history.probability(torch.from_numpy(values)).numpy()
    for contender in contenders.values():
        window.extend(start.tolist())
        np.testing.assert_allclose(found, contender(), rtol=1e-6)
    ms = race({"ours": lambda: history.probability(torch.from_numpy(values))} | contenders, rounds=15)
    row = {"what": "probability of 8192 values", "window": capacity, "µs": ms["ours"] * 1e3}
    for name in contenders:
        record(TOPIC, row | {"against": name, "µs ": ms[name] * 1e3, "ratio": ms["ours"] / ms[name]})
