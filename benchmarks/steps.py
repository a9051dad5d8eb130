"""Commands run one after the other within a time limit: each to its end or its cut, whatever the ones before it did."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

GRACE = 8.0  # seconds between being asked to stop and being stopped: pytest still writes its report
FAILED_LINES = 80  # of its output, from the end, that are shown of a step that failed
LEAST = 5.0  # seconds below which a step is not worth starting


class Step(NamedTuple):
    """A command of a run."""

    name: str
    bit: int  # of the exit status of the whole run: which step failed
    command: tuple[str, ...]
    most: float  # seconds it may take,
    kept: float = 0.0  # and seconds that the steps before it leave over for it
    environment: Mapping[str, str] = MappingProxyType({})
    telling: str = r"(?!)"  # a pattern; its last match in the output stands in the summary
    lines: int = 30  # of its output, from the end, that are shown
    only_without: str = ""  # a step that must have failed for this one to be needed
    missing: str = ""  # why it can't be run here


class Outcome(NamedTuple):
    """What became of a step."""

    name: str
    bit: int
    result: str
    failed: bool
    seconds: float = 0.0


def run_all(
    steps: Sequence[Step], total: float, logs: Path, root: Path, clock: Callable[[], float] = time.monotonic
) -> list[Outcome]:
    """Run the steps within ``total`` seconds; the whole output of each goes to a file in ``logs``."""
    logs.mkdir(parents=True, exist_ok=True)
    end = clock() + total
    outcomes: list[Outcome] = []
    for i, step in enumerate(steps):
        failed = {outcome.name for outcome in outcomes if outcome.failed}
        if step.only_without and step.only_without not in failed:
            continue
        kept = sum(later.kept for later in steps[i + 1 :])
        limit = min(step.most, end - clock() - kept)
        if step.missing:
            outcomes.append(Outcome(step.name, step.bit, f"not run: {step.missing}", False))
        elif limit < LEAST:
            outcomes.append(Outcome(step.name, step.bit, "not run: no time left", True))
        else:
            outcomes.append(run(step, limit, logs / f"{step.name.replace(' ', '-')}.log", root))
    return outcomes


def run(step: Step, limit: float, log: Path, root: Path) -> Outcome:
    """Run one step for at most ``limit`` seconds, then show the end of its output."""
    print(f"\n=== {step.name}: at most {limit:.0f} s, all of its output in {log}", flush=True)
    print("$", *step.command, flush=True)
    start = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "STEP_SECONDS": f"{limit - GRACE:.0f}", **step.environment}
    with log.open("w") as file:
        try:
            process = subprocess.Popen(
                step.command,
                cwd=root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that the whole group can be ended, compilers and workers too
                preexec_fn=_hear_interrupts,
            )
        except OSError as error:
            return Outcome(step.name, step.bit, f"not started: {error}", True)
        try:
            status, cut = _wait(process, limit)
        finally:
            _signal(process, signal.SIGKILL)
    seconds = time.monotonic() - start
    text = log.read_text(errors="replace")
    lines = step.lines if status == 0 else max(step.lines, FAILED_LINES)
    for line in text.splitlines()[-lines:]:
        print(line[:200])
    told = re.findall(step.telling, text)
    what = f"cut off after {seconds:.0f} s" if cut else "ok" if status == 0 else f"failed, status {status}"
    result = ": ".join([what, *told[-1:]])
    print(f"=== {step.name}: {result}", flush=True)
    return Outcome(step.name, step.bit, result, cut or status != 0, seconds)


def _hear_interrupts() -> None:
    """What a shell starts in the background ignores them, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _wait(process: subprocess.Popen, limit: float) -> tuple[int, bool]:
    """The exit status, and whether the process had to be stopped: first asked, so that it can report, then ended."""
    try:
        return process.wait(max(limit - GRACE, limit / 2)), False
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGINT)
    try:
        return process.wait(min(GRACE, limit / 2)), True
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGKILL)
        return process.wait(), True


def _signal(process: subprocess.Popen, number: int) -> None:
    """To everything the step has started and not ended."""
    with contextlib.suppress(ProcessLookupError):  # all of it has ended
        os.killpg(process.pid, number)


def summary(outcomes: Sequence[Outcome]) -> str:
    """One line a step, and the exit status with what it means."""
    width = max(len(outcome.name) for outcome in outcomes)
    lines = [f"{one.name:<{width}}  {one.seconds:>6.1f} s  {one.result[:150]}" for one in outcomes]
    failed = [f"{one.bit} {one.name}" for one in outcomes if one.failed]
    status = exit_status(outcomes)
    return "\n".join([*lines, f"exit status {status}" + (f" = {' + '.join(failed)}" if failed else ": all went well")])


def exit_status(outcomes: Sequence[Outcome]) -> int:
    return sum({one.bit for one in outcomes if one.failed})
