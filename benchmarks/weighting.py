"""A tree of weights in a process of its own, and what it took: ``python weighting.py WEIGHTS UPDATES`` prints JSON."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torchassay as ta
from planning import resident

BATCH, ROUNDS = 1024, 200


def measured(n: int, updates: int) -> dict[str, float]:
    ta.SumTree(BATCH).update([0], [1.0])  # modules, threads
    random = np.random.default_rng(0)
    weights = random.random(n, dtype=np.float32)
    before = resident("VmRSS")
    began = time.perf_counter()
    tree = ta.SumTree(weights)
    found = {"build": time.perf_counter() - began, "bytes": (resident("VmRSS") - before) / n}
    assert tree.weights([0, n - 1]).tolist() == weights[[0, n - 1]].tolist()
    del weights

    Path("/proc/self/clear_refs").write_text("5")  # the highest number so far starts anew
    before = resident("VmRSS")
    draw, update, both = [], [], []
    for step in range(ROUNDS):
        fresh = torch.from_numpy(random.random(BATCH))
        began = time.perf_counter()
        index = tree.sample(BATCH, seed=(0, step))
        drawn = time.perf_counter()
        tree.update(index, fresh)
        ended = time.perf_counter()
        draw.append(drawn - began), update.append(ended - drawn), both.append(ended - began)
    found |= {name: statistics.median(times) for name, times in (("draw", draw), ("update", update), ("both", both))}
    found["growth"] = resident("VmHWM") - before

    chunk = 1 << 16
    began = time.perf_counter()
    for first in range(0, updates, chunk):
        count = min(chunk, updates - first)
        scale = 10.0 ** random.integers(-6, 7)  # where differences were added, they would leave what they rounded off
        tree.update(random.integers(0, n, count), random.random(count) * scale)
    found["updating"] = time.perf_counter() - began
    exact = math.fsum(part.sum(dtype=np.longdouble) for part in np.array_split(tree.weights().numpy(), 1000))
    found["error"] = abs(tree.total - exact) / exact
    return found


if __name__ == "__main__":
    print(json.dumps(measured(int(sys.argv[1]), int(sys.argv[2]))))
