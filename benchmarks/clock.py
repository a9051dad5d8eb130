"""The machine that is measured, how long a call takes on it, what memory it takes, and how much time there is."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
QUICK = os.environ.get("QUICK", "0") not in ("", "0")  # fewer shapes, fewer rounds; GPUs only
ROUNDS = 41 if DEVICE == "cpu" else 15 if QUICK else 25

_HEAD_START = 4_000_000  # cycles, about 2 ms
_END = time.monotonic() + float(os.environ.get("STEP_SECONDS", "inf"))


def seconds_left() -> float:
    """Until whoever started this process ends it: what is not measured by then is left out."""
    return _END - time.monotonic()


def machine() -> str:
    if DEVICE == "cuda":
        return torch.cuda.get_device_name()
    if Path("/proc/cpuinfo").exists():
        names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        if names:
            return f"{names[0].strip()}, {torch.get_num_threads()} threads"
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def resident(what: str) -> int:
    """Bytes of RAM: VmRSS now, VmHWM at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])


def milliseconds(call: Callable[[], object]) -> float:
    """The time of one call; on a GPU that of what it launches, without what the host needs to launch it."""
    if DEVICE == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_HEAD_START)  # the GPU is busy while the host fills its queue
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    before = time.perf_counter()
    call()
    return (time.perf_counter() - before) * 1e3


def host_microseconds(call: Callable[[], object], calls: int = 200) -> float:
    """What one call costs the host, which does not wait for the GPU."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    before = time.perf_counter()
    for _ in range(calls):
        call()
    taken = time.perf_counter() - before
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return taken * 1e6 / calls
