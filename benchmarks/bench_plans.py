"""Planning an epoch of ten million samples: time, memory, and what stays of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from planning import METHODS

N = 10_000_000
TOPIC = "Planning an epoch of ten million samples"


def sorting() -> float:
    """Seconds of a plain sort of as many numbers, for comparison."""
    values = np.random.default_rng(0).random(N, dtype=np.float32)
    began = time.perf_counter()
    np.argsort(values)
    return time.perf_counter() - began


@pytest.mark.parametrize("method", METHODS)
def test_plan(record, method):
    command = [sys.executable, str(Path(__file__).with_name("planning.py")), method, str(N)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    row = {"method": method, "s": found["seconds"], "s / argsort": found["seconds"] / sorting()}
    row |= {"peak, bytes a sample": found["peak"], "kept, bytes a sample": found["kept"]}
    record(TOPIC, row | {"planned": f"{found['planned']:,}"})
