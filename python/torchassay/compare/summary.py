"""What a comparison comes to: means and intervals over seeds, and the numbers of the table of Hu et al. (2021)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

BASELINE = "sgd"
FACTOR = 1.2  # the error to be reached is so many times the baseline's best (Hu et al. 2021, section 3.2)
LEVEL = 0.95  # of an interval


class Method(NamedTuple):
    """A method and its finished runs."""

    name: str  # as it was asked for
    title: str
    runs: dict[int, dict]  # by seed


class Interval(NamedTuple):
    """A mean over seeds, give or take."""

    mean: float  # NaN without values
    half: float  # half the width of the interval; NaN with fewer than two values
    count: int  # values that it is the mean of


class Speedup(NamedTuple):
    """How many times less than the baseline a method needs."""

    factor: Interval  # over the seeds in which it gets there
    seeds: int  # in which both were run


class Row(NamedTuple):
    """A method's line in the table."""

    method: Method
    samples: Speedup | None  # in back-propagated samples; None without a baseline
    seconds: Speedup | None
    error: Interval
    noise: Interval | None  # corrupted ones' share of what it trained on; None without corruption


def methods(results: dict) -> list[Method]:
    """Those with a finished run, in the order of the runs."""
    found: dict[str, Method] = {}
    for run in results["runs"]:
        if run["done"]:
            method = found.setdefault(run["method"], Method(run["method"], run["title"], {}))
            method.runs[run["seed"]] = run
    return list(found.values())


def values(run: dict, column: str) -> np.ndarray:
    """A column of a run's epochs as float64, NaN where there is none."""
    return np.array([math.nan if epoch[column] is None else epoch[column] for epoch in run["epochs"]], float)


def curve(method: Method, column: str) -> np.ndarray:
    """A column as [seeds, epochs], as far as the shortest run goes."""
    found = [values(run, column) for run in method.runs.values()]
    return np.stack([row[: min(map(len, found))] for row in found])


def weighted(method: Method) -> bool:
    """Whether its batches ever had weights that differ, rounding aside."""
    return bool(np.any(np.abs(curve(method, "ess") - 1) > 1e-6))


def base_rate(results: dict) -> float | None:
    """The share of corrupted samples in the training set; None without corruption."""
    about = results["about"]
    return about["corrupted"] / about["data"]["train"] if about.get("corrupted") else None


def target(run: dict) -> float:
    """The error that a method must come down to, given the baseline's run of the same seed."""
    return FACTOR * _best(run)


def table(results: dict) -> list[Row]:
    """A row for each method."""
    found = methods(results)
    baseline = next((method for method in found if method.name == BASELINE), None)
    corrupted = base_rate(results) is not None
    return [
        Row(
            method,
            speedup(method, baseline, "backward") if baseline else None,
            speedup(method, baseline, "seconds") if baseline else None,
            interval(_best(run) for run in method.runs.values()),
            interval(map(noise_share, method.runs.values())) if corrupted else None,
        )
        for method in found
    ]


def speedup(method: Method, baseline: Method, column: str) -> Speedup:
    """What the baseline spends until the target, divided by what the method spends; seed by seed."""
    seeds = [seed for seed in method.runs if seed in baseline.runs]
    factors = []
    for seed in seeds:
        aim = target(baseline.runs[seed])
        mine, plain = spent(method.runs[seed], aim, column), spent(baseline.runs[seed], aim, column)
        if mine is not None and plain is not None:
            factors.append(plain / mine)
    return Speedup(interval(factors), len(seeds))


def spent(run: dict, aim: float, column: str) -> float | None:
    """What a run has spent by the end of the first epoch with an error of ``aim`` or less; None if there is none."""
    reached = np.flatnonzero(values(run, "test_error") <= aim + 1e-9)  # errors are quotients: 0.06 is 1.2 times 0.05
    return float(values(run, column)[reached[0]]) if len(reached) else None


def noise_share(run: dict) -> float:
    """The share of corrupted ones among all samples that a run trained on."""
    share, trained = values(run, "noise_share"), np.diff(values(run, "backward"), prepend=0.0)
    known = ~np.isnan(share)
    return float(share[known] @ trained[known] / trained[known].sum()) if trained[known].any() else math.nan


def interval(values: Iterable[float]) -> Interval:
    """The mean of those that are numbers, and Student's interval for it."""
    found = np.array([value for value in values if not math.isnan(value)])
    n = len(found)
    if n < 2:
        return Interval(float(found[0]) if n else math.nan, math.nan, n)
    return Interval(float(found.mean()), student(n - 1) * float(found.std(ddof=1)) / math.sqrt(n), n)


def student(freedom: int) -> float:
    """The t below which Student's |T| stays with probability 0.95, by bisection on its exact distribution."""
    low, high = 0.0, math.pi / 2  # t = sqrt(freedom) tan(angle)
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, freedom) < LEVEL else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|T| < t) as a finite sum (Abramowitz and Stegun 1964, 26.7.3 for odd numbers of degrees, 26.7.4 for even)."""
    odd = freedom % 2
    term, total = math.cos(angle) ** odd, 0.0
    for k in range(1, freedom // 2 + 1):
        total += term
        term *= math.cos(angle) ** 2 * (2 * k - 1 + odd) / (2 * k + odd)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def _best(run: dict) -> float:
    """The least test error of a run; NaN if no epoch has one."""
    errors = values(run, "test_error")
    return float(np.nanmin(errors)) if not np.isnan(errors).all() else math.nan
