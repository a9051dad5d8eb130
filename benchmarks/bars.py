"""What torchassay has promised itself on GPUs, as ratios measured side by side; where two apply, the first counts."""

from __future__ import annotations

import torch

NONE = {"bar": "", "met": ""}
TIMES_OURS = {"PyTorch chain": 10.0, "lean chain, compiled": 1.5}  # at least, for the five signals
# of the time without, at most: the five signals under options, from 1000 classes on
OPTIONS = {
    "temperature": 1.02,
    "smoothing": 1.15,
    "weight": 1.02,
    "weight x smoothing": 1.7,
    "softcap": 2.2,
    "probabilities": 2.3,
}
HEAD = {2048: 1.20, 4096: 1.12}  # of the bare product's time, at most, by hidden features
TRAINING = 0.75  # of F.cross_entropy's time, at most
HOST_MICROSECONDS = {"native": 15.0, "triton": 30.0}  # of one call of score, at most


def read_share(backend: str, rows: int, classes: int, dtype: torch.dtype) -> float | None:
    """The share of the card's measured read bandwidth that five signals are to reach; None where nothing is promised.

    An odd vocabulary has a bar of its own in every dtype: its rows start anywhere.
    """
    if classes >= 32000 and classes % 2:
        return {"native": 0.75, "triton": 0.60}.get(backend)
    if classes >= 32000 and rows >= 4096 and dtype != torch.float32:
        return {"native": 0.85, "triton": 0.75}.get(backend)
    if classes >= 32000 and rows >= 4096:
        return {"native": 0.90}.get(backend)
    return {("native", 1000): 0.75, ("native", 100): 0.60}.get((backend, classes))


def five_to_one(classes: int) -> float | None:
    """How many times the loss alone all five signals may take."""
    return 1.05 if classes >= 32000 else 1.15 if classes == 100 else None


def at_least(value: float, bar: float | None, unit: str = "") -> dict[str, str]:
    return _judged(bar, ">=", unit, bar is not None and value >= bar)


def at_most(value: float, bar: float | None, unit: str = "") -> dict[str, str]:
    return _judged(bar, "<=", unit, bar is not None and value <= bar)


def _judged(bar: float | None, sign: str, unit: str, met: bool) -> dict[str, str]:
    if bar is None:
        return NONE
    return {"bar": f"{sign} {bar:g}{unit}", "met": "yes" if met else "**no**"}
