"""Plan one epoch in a process of its own, and say what it took: ``python planning.py METHOD SAMPLES`` prints JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torchassay as ta
from clock import resident
from torchassay import samplers
from torchassay.samplers.planned import Planned

BATCH = 256
METHODS: dict[str, Callable[[int], Planned]] = {
    "Shuffle": lambda n: samplers.Shuffle(n, batch_size=BATCH),
    "MixedOrder": lambda n: samplers.MixedOrder(n, batch_size=BATCH, pivot=0),
    "MixedOrder, easy to hard": lambda n: samplers.MixedOrder(n, batch_size=BATCH, pivot=0, order="easy_to_hard"),
    "BalanceAware, heuristic": lambda n: samplers.BalanceAware(n, batch_size=BATCH, scheduler="heuristic", t_grow=4),
    "BalanceAware, learned": lambda n: samplers.BalanceAware(n, batch_size=BATCH),
    "InfoBatch": lambda n: samplers.InfoBatch(n, batch_size=BATCH, epochs=100),
}


def fill(memory: ta.SampleMemory) -> None:
    """As after an epoch: every sample has values, which differ."""
    random = np.random.default_rng(0)
    state = memory.state_dict()
    for name in memory.fields:
        random.random(out=state[name].numpy(), dtype=np.float32)
    state["visits"].numpy()[:] = 1
    state["last_step"].numpy()[:] = 0


def plan(method: str, n: int) -> dict[str, float]:
    if n > BATCH:
        plan(method, BATCH)  # what a first plan takes of any size: modules, threads
    before = resident("VmRSS")
    sampler = METHODS[method](n)
    fill(sampler.memory)
    sampler.set_epoch(1)  # what a first epoch allocates for good is there
    Path("/proc/self/clear_refs").write_text("5")  # the highest number so far starts anew
    began = time.perf_counter()
    sampler.set_epoch(2)
    seconds = time.perf_counter() - began
    order = sampler.plan()
    peak, kept = resident("VmHWM") - before, resident("VmRSS") - before
    assert np.bincount(order, minlength=n).max() == 1
    assert len(order) == n or method in ("BalanceAware, heuristic", "InfoBatch")
    return {"seconds": seconds, "peak": peak / n, "kept": kept / n, "planned": len(order)}


if __name__ == "__main__":
    print(json.dumps(plan(sys.argv[1], int(sys.argv[2]))))
