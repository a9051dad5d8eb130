"""Launches over rotated copies of their input: none finds in the caches what the one before it has read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from clock import milliseconds
from torch import Tensor

SHORT = 0.2  # milliseconds of a call below which launches are captured in a graph,
CAPTURED = 20  # at least this many
LONG = 1.0  # milliseconds that a timing by events should take

Capture = Callable[[Callable[[], None]], Callable[[], None]]


class Launches(NamedTuple):
    """``run()`` makes ``count`` calls; ``how`` says in which way."""

    run: Callable[[], object]
    count: int
    how: str


def copies(logits: Tensor, beyond: int) -> list[Tensor]:
    """The logits and clones of them, two at least, that together hold ``beyond`` bytes."""
    count = max(2, -(-beyond // logits.nbytes))
    return [logits, *(logits.clone() for _ in range(count - 1))]


def launches(call: Callable[[Tensor], object], inputs: Sequence[Tensor], capture: Capture | None) -> Launches:
    """How ``call`` is timed on these inputs in turn: in a graph if it is short, else one after the other."""

    def make(count: int) -> None:
        for i in range(count):
            call(inputs[i % len(inputs)])

    turn = len(inputs)
    make(turn)
    each = min(milliseconds(lambda: make(turn)) for _ in range(3)) / turn
    how = "events"
    if capture and each < SHORT:
        count = turn * -(-CAPTURED // turn)
        try:
            return Launches(capture(lambda: make(count)), count, f"graph of {count}")
        except Exception as error:  # whatever a capture is refused for, the call can be timed without
            how = f"events; not captured: {first_line(error)}"
    count = turn * min(10, max(1, round(LONG / each / turn)))
    return Launches(lambda: make(count), count, how)


def captured(run: Callable[[], None]) -> Callable[[], None]:
    """The replay of a CUDA graph of what ``run`` launches."""
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    try:
        with torch.cuda.stream(side):
            run()  # what is set up once for a stream must not be set up in the capture
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            run()
    finally:
        torch.cuda.set_stream(current)  # a capture that fails leaves its own stream the current one
    return graph.replay


def first_line(error: Exception) -> str:
    """A failure in the cell of a table."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:80]}".replace("|", "/")
