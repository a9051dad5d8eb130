"""Numbers over seeds, and what they say of a paper's claims."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from torchassay.compare import summary

Numbers = dict[int, float]  # by seed

HOLDS, CLOSE = "holds", "holds within chance"
FAILS, UNKNOWN = "does not reproduce here", "not measured here"


class Claim(NamedTuple):
    """A sentence of a paper or of ours about it, and whether its direction is that of the numbers."""

    text: str
    holds: bool | None  # None: numbers are missing
    evidence: str
    unsure: bool = False  # whether chance could have made the difference

    @property
    def verdict(self) -> str:
        if self.holds is None:
            return UNKNOWN
        return FAILS if not self.holds else CLOSE if self.unsure else HOLDS


class Methods:
    """The finished runs of a comparison; numbers of a method that was not run are empty."""

    def __init__(self, results: dict | None):
        self._found = {method.name: method for method in summary.methods(results or {"runs": []})}
        self.base_rate = summary.base_rate(results) if results else None

    def numbers(self, name: str, of: Callable[[dict], float]) -> Numbers:
        runs = self._found[name].runs if name in self._found else {}
        values = {seed: float(of(run)) for seed, run in runs.items()}
        return {seed: value for seed, value in values.items() if not math.isnan(value)}

    def best(self, name: str, column: str = "test_error", scale: float = 100.0) -> Numbers:
        """The least after any epoch; in percent by default."""
        return self.numbers(name, lambda run: scale * min(summary.values(run, column)))

    def last(self, name: str, column: str = "test_error", scale: float = 100.0) -> Numbers:
        """After the last epoch; in percent by default."""
        return self.numbers(name, lambda run: scale * summary.values(run, column)[-1])

    def noise(self, name: str) -> Numbers:
        """Share of corrupted samples among those trained on."""
        return self.numbers(name, summary.noise_share) if self.base_rate is not None else {}

    def speedup(self, name: str) -> summary.Speedup | None:
        """Over SGD, in back-propagated samples, as Hu et al. (2021) count it."""
        if name not in self._found or summary.BASELINE not in self._found:
            return None
        return summary.speedup(self._found[name], self._found[summary.BASELINE], "backward")


def shown(numbers: Numbers, digits: int = 2) -> str:
    """Mean and half the width of its 95 % interval."""
    found = summary.interval(numbers.values())
    if not found.count:
        return "–"  # noqa: RUF001
    half = "" if math.isnan(found.half) else f" ± {found.half:.{digits}f}"
    return f"{found.mean:.{digits}f}{half}"


def shown_speedup(found: summary.Speedup | None) -> str:
    if found is None or not found.factor.count:
        return "–"  # noqa: RUF001
    some = f" ({found.factor.count} of {found.seeds} seeds)" if found.factor.count < found.seeds else ""
    return f"{found.factor.mean:.1f}x{some}"


def difference(ours: Numbers, others: Numbers) -> Numbers:
    """Seed by seed."""
    return {seed: ours[seed] - others[seed] for seed in ours if seed in others}


def joined(*numbers: Numbers) -> Numbers:
    """Means by seed, of the seeds that all have."""
    seeds = set.intersection(*map(set, numbers)) if numbers else set()
    return {seed: sum(found[seed] for found in numbers) / len(numbers) for seed in sorted(seeds)}


def lower(text: str, ours: tuple[str, Numbers], others: tuple[str, Numbers], digits: int = 2) -> Claim:
    """The first is below the second in the mean over the seeds that both have."""
    return _ordered(text, ours, others, digits, lambda mean: mean < 0)


def not_above(text: str, ours: tuple[str, Numbers], others: tuple[str, Numbers], digits: int = 2) -> Claim:
    return _ordered(text, ours, others, digits, lambda mean: mean <= 0)


def higher(text: str, ours: tuple[str, Numbers], others: tuple[str, Numbers], digits: int = 2) -> Claim:
    return _ordered(text, ours, others, digits, lambda mean: mean > 0)


def _ordered(text: str, ours, others, digits: int, right: Callable[[float], bool]) -> Claim:
    (name, mine), (other, theirs) = ours, others
    found = summary.interval(difference(mine, theirs).values())
    if not found.count:
        return Claim(text, None, f"no runs of {name} and {other} with the same seeds")
    unsure = found.half >= abs(found.mean)
    half = "" if math.isnan(found.half) else f" ± {found.half:.{digits}f}"
    means = f"{name} {_mean(mine):.{digits}f}, {other} {_mean(theirs):.{digits}f}"
    chance = ", an interval that includes 0" if unsure else ""
    return Claim(text, right(found.mean), f"{means}; difference {found.mean:+.{digits}f}{half}{chance}", unsure)


def at_least(text: str, ours: tuple[str, Numbers], bound: float, digits: int = 2) -> Claim:
    name, mine = ours
    if not mine:
        return Claim(text, None, f"no runs of {name}")
    return Claim(text, _mean(mine) >= bound, f"{name} {shown(mine, digits)}, to be at least {bound:g}")


def near(text: str, ours: tuple[str, Numbers], aim: float | None, tolerance: float, digits: int = 2) -> Claim:
    name, mine = ours
    if not mine or aim is None:
        return Claim(text, None, f"no runs of {name}")
    holds = abs(_mean(mine) - aim) <= tolerance
    return Claim(text, holds, f"{name} {shown(mine, digits)}, to be within {tolerance:g} of {aim:.{digits}f}")


def faster(text: str, name: str, found: summary.Speedup | None) -> Claim:
    """Gets to 1.2 times SGD's best error with fewer back-propagated samples, with every seed."""
    if found is None or not found.seeds:
        return Claim(text, None, f"no runs of {name} and SGD with the same seeds")
    factor = found.factor
    if factor.count < found.seeds:
        return Claim(text, False, f"{name} gets there with {factor.count} of {found.seeds} seeds")
    return Claim(text, factor.mean > 1, f"{name} {factor.mean:.2f}x")


def everywhere(text: str, parts: dict[str, Claim]) -> Claim:
    """A claim about several settings, which holds if it does in all of them; the exceptions with their numbers."""
    missing = [name for name, part in parts.items() if part.holds is None]
    if missing or not parts:
        return Claim(text, None, f"no numbers for {', '.join(missing) or 'any setting'}")
    wrong = [f"{name} ({part.evidence})" for name, part in parts.items() if not part.holds]
    close = [name for name, part in parts.items() if part.holds and part.unsure]
    details = [f"in {len(parts) - len(wrong)} of {len(parts)}"]
    details += [f"not with {'; '.join(wrong)}"] if wrong else []
    details += [f"within what chance explains with {', '.join(close)}"] if close else []
    return Claim(text, not wrong, "; ".join(details), bool(close))


def _mean(numbers: Numbers) -> float:
    return sum(numbers.values()) / len(numbers)
