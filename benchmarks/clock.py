"""The machine that is measured, and how long a call takes on it."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def machine() -> str:
    if DEVICE == "cuda":
        return torch.cuda.get_device_name()
    if Path("/proc/cpuinfo").exists():
        names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        if names:
            return f"{names[0].strip()}, {torch.get_num_threads()} threads"
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def milliseconds(call: Callable[[], object]) -> float:
    if DEVICE == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    before = time.perf_counter()
    call()
    return (time.perf_counter() - before) * 1e3
