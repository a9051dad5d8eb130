"""The built-in speed comparison of `torchassay bench` and of the demo: verify first, then time, then one table.

Three contenders read the same logits: `torchassay.score` with five signals, the chain of PyTorch calls that people
write for the same five, and `F.cross_entropy` alone, which gives the loss only.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import torchassay

SHAPES = ((8192, 10), (8192, 1000), (1024, 50257))
SIGNALS = ("loss", "entropy", "grad_norm", "margin", "confidence")
DTYPES = ("float32", "bfloat16", "float16", "float64")
WHAT = "random logits, true class raised so that the losses run from about 1 down to 1e-9"

_ROUNDS = 15  # at least; small shapes take more, up to _SECONDS a shape
_SECONDS = 0.5
_CHUNK = 1 << 20  # elements verified at a time: the float64 reference holds several copies


class Result(NamedTuple):
    """One shape, measured; ratios are against `torchassay.score`."""

    rows: int
    classes: int
    bytes: int  # of logits
    ms: float
    eager_ms: float
    loss_only_ms: float
    error: float  # the worst relative error over all rows and all five signals
    eager_error: float

    @property
    def gb_per_s(self) -> float:
        """Bytes of logits over the time of `torchassay.score`."""
        return self.bytes / self.ms / 1e6

    @property
    def eager_ratio(self) -> float:
        """How many times longer the PyTorch chain takes."""
        return self.eager_ms / self.ms

    @property
    def loss_only_ratio(self) -> float:
        """How many times longer `F.cross_entropy` alone takes."""
        return self.loss_only_ms / self.ms


def make(rows: int, classes: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits [rows, classes] as a trained classifier gives them, from unsure to very sure, and targets [rows]."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator)
    target = torch.randint(classes, (rows,), generator=generator)
    raised = math.log(classes) + 20 * torch.rand(rows, 1, generator=generator)
    logits.scatter_add_(1, target[:, None], raised)
    return logits.to(dtype), target


def ours(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The five signals by `torchassay.score`."""
    return torchassay.score(logits, target, signals=SIGNALS).as_dict()


def eager(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The five signals as they are usually written; half precision is brought to float32 first, as it must be."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    log_p = F.log_softmax(logits, dim=-1)
    p = F.softmax(logits, dim=-1)
    top = p.topk(2, dim=-1).values
    return {
        "loss": -log_p.gather(-1, target[:, None]).squeeze(-1),
        "entropy": -(p * log_p).sum(-1),
        "grad_norm": (p - F.one_hot(target, p.shape[-1])).norm(dim=-1),
        "margin": top[:, 0] - top[:, 1],
        "confidence": top[:, 0],
    }


def loss_only(logits: Tensor, target: Tensor) -> Tensor:
    """What PyTorch offers in one call."""
    return F.cross_entropy(logits, target, reduction="none")


def worst_errors(logits: Tensor, target: Tensor) -> tuple[float, float]:
    """The worst relative error of `ours` and of `eager` against the same algebra in float64, over rows and signals."""
    found = ours(logits, target), eager(logits, target)
    worst = [torch.zeros((), dtype=torch.float64, device=logits.device)] * 2
    for part in torch.arange(len(logits)).split(max(1, _CHUNK // logits.shape[1])):
        first, last = int(part[0]), int(part[-1]) + 1
        exact = torchassay.reference.score(logits[first:last].double(), target[first:last], signals=SIGNALS)
        for i, values in enumerate(found):
            for name, true in exact.as_dict().items():
                off = (values[name][first:last].double() - true).abs()
                relative = torch.where(off == 0, 0, off / true.abs())
                worst[i] = torch.maximum(worst[i], relative.max())  # which, unlike max(), lets a NaN be seen
    return worst[0].item(), worst[1].item()


def medians(calls: Sequence[Callable[[], object]], rounds: int = _ROUNDS, seconds: float = _SECONDS) -> list[float]:
    """Median milliseconds of each call, interleaved so that they share whatever disturbs.

    The order changes from round to round through all orders: which call ran before decides what the caches hold.
    """
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    orders = itertools.cycle(itertools.permutations(range(len(calls))))
    start = time.perf_counter()
    while len(times[0]) < rounds or (time.perf_counter() - start < seconds and len(times[0]) < 50 * rounds):
        for i in next(orders):
            before = time.perf_counter()
            calls[i]()
            times[i].append(time.perf_counter() - before)
    return [1e3 * statistics.median(taken) for taken in times]


def measure(rows: int, classes: int, dtype: torch.dtype = torch.float32) -> Result:
    """Verify, then time one shape."""
    logits, target = make(rows, classes, dtype)
    with torch.inference_mode():
        error, eager_error = worst_errors(logits, target)
        times = medians([lambda call=call: call(logits, target) for call in (ours, eager, loss_only)])
    return Result(rows, classes, logits.nbytes, *times, error, eager_error)


def measure_all(dtype: torch.dtype = torch.float32) -> Iterator[Result]:
    """`measure` for each of `SHAPES`, as they come."""
    for rows, classes in SHAPES:
        yield measure(rows, classes, dtype)


class Bystanders:
    """How busy everything else keeps this machine from now on; Linux tells, other systems do not."""

    def __init__(self):
        self._start = self._read()

    @staticmethod
    def _read() -> tuple[float, float] | None:
        try:
            with open("/proc/stat", encoding="ascii") as file:
                ticks = [int(value) for value in file.readline().split()[1:9]]
        except (OSError, ValueError):
            return None
        per_second = os.sysconf("SC_CLK_TCK")
        idle = ticks[3] + ticks[4]
        return sum(ticks) / per_second, (sum(ticks) - idle) / per_second - time.process_time()

    def share(self) -> float:
        """Share of all processors' time since the start that went to others; 0 where nobody knows."""
        end = self._read()
        if self._start is None or end is None or end[0] <= self._start[0]:
            return 0.0
        return max(0.0, (end[1] - self._start[1]) / (end[0] - self._start[0]))


def times(ratio: float) -> str:
    """A ratio with no more digits than a timing carries."""
    return f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}"


HEADER = (
    f"{'logits':<14}{'torchassay':>12}{'GB/s':>7}{'PyTorch chain':>15}{'ratio':>8}"
    f"{'F.cross_entropy':>17}{'ratio':>8}{'error':>10}{'of the chain':>14}"
)


def line(result: Result) -> str:
    """One row of the table under `HEADER`."""
    first = f"{f'{result.rows} x {result.classes}':<14}{result.ms:>9.3f} ms{result.gb_per_s:>7.2f}"
    others = (
        f"{ms:>{width}.3f} ms{ratio:>7.1f}x"
        for ms, ratio, width in (
            (result.eager_ms, result.eager_ratio, 12),
            (result.loss_only_ms, result.loss_only_ratio, 14),
        )
    )
    return first + "".join(others) + f"{result.error:>10.1e}{result.eager_error:>14.1e}"


def caption(dtype: str) -> str:
    """What the columns mean."""
    return (
        f"{dtype}, {WHAT};\n"
        f"median of at least {_ROUNDS} interleaved runs; ratio: times as long as torchassay takes.\n"
        f"torchassay and the chain give {', '.join(SIGNALS)}; F.cross_entropy the loss only.\n"
        "error: the worst relative one over all rows and the five signals, against float64."
    )
