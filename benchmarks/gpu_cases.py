"""What is measured of one shape: verified, raced, then a row of a table for each contender, whatever came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import bars
import contenders
import peers
import rotation
import torch
import torch.nn.functional as F
import torchassay as ta
from clock import host_microseconds, seconds_left
from torch import Tensor
from torchassay import speed

FIVE = "Five signals (loss, entropy, grad_norm, margin, confidence)"
TRAINING = "Training step: cross_entropy with three signals, forward and backward"
OPTIONS = "The five signals under options"
NOISY = "Mean entropy of four noisy draws, given the largest logit of each row"
HOST = "Host cost of one call, 1 x 10"
PEERS = "Peers that are not in the tables"
BOUND = 2e-6  # on the relative error of signals
OPTIONS_BOUND = 2e-5  # relative to 1 at least: what a softcap and a smoothed norm may be off
NOISY_BOUND = 1e-5
DRAWS, STD = 4, 0.5
GRAD_BOUND = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-2}  # half precision rounds what it returns
COMPILE_SECONDS = 45  # what a compilation may take and the rest of its case needs


class Bench(NamedTuple):
    """The card and the tools of a benchmark."""

    device: str
    backends: Sequence[str]  # ours, those that are there
    race: Callable[[dict[str, Callable]], dict[str, float]]
    record: Callable[[str, dict], None]
    read: float  # GB/s, measured
    beyond: int  # bytes that the copies of an input hold together
    capture: rotation.Capture | None
    hopper: bool  # most bars are for it


class Tried(NamedTuple):
    """A contender that is ready to race, or a note on what is wrong with it."""

    error: float | str
    launches: rotation.Launches | None
    note: str


def attempt(
    call: Callable[[Tensor], object],
    inputs: Sequence[Tensor],
    error_of: Callable[[object], float],
    bound: float,
    capture: rotation.Capture | None,
) -> Tried:
    """Verify a contender and prepare its timing; whatever it raises is a note."""
    error: float | str = ""
    try:
        error = error_of(call(inputs[0]))
        if not error <= bound:
            return Tried(error, None, "WRONG, not timed")
        ready = rotation.launches(call, inputs, capture)
    except Exception as failure:
        return Tried(error, None, rotation.first_line(failure))
    return Tried(error, ready, ready.how)


def raced(bench: Bench, tried: dict[str, Tried]) -> dict[str, float]:
    """Milliseconds of one call of each contender that is ready."""
    ready = {name: one.launches for name, one in tried.items() if one.launches}
    medians = bench.race({name: launches.run for name, launches in ready.items()}) if ready else {}
    return {name: ms / ready[name].count for name, ms in medians.items()}


def wrong(bench: Bench, tried: dict[str, Tried]) -> list[str]:
    """What is wrong with ours; of the others it stands in the table only."""
    ours = [name for name in tried if name.partition(",")[0] in bench.backends]
    return [f"{name}: {tried[name].note}" for name in ours if not tried[name].launches]


def five_signals(bench: Bench, rows: int, classes: int, dtype: torch.dtype, *, others: bool, compiled: bool) -> list:
    """One shape forward: ours alone or with the ``others``; returns what is wrong with ours."""
    logits, target = contenders.make(rows, classes, dtype, bench.device)
    inputs = rotation.copies(logits, bench.beyond)
    field = [contenders.ours(backend) for backend in bench.backends]
    if others:
        field += [contenders.ours(backend, ("loss",)) for backend in bench.backends]
        field += [contenders.eager(), contenders.loss_alone()]
    if compiled and seconds_left() > COMPILE_SECONDS:
        field.append(contenders.compiled())
    guests = peers.find()[0] if others else []
    spare = rotation.copies(logits.clone(), bench.beyond) if guests else []

    def tried_on(contender: contenders.Contender, given: Sequence[Tensor], capture: rotation.Capture | None) -> Tried:
        bound = BOUND if contender.name.partition(",")[0] in bench.backends else float("inf")
        error_of = partial(contenders.worst_error, logits=logits, target=target)
        return attempt(lambda x: contender.call(x, target), given, error_of, bound, capture)

    with torch.inference_mode():
        tried = {one.name: tried_on(one, inputs, bench.capture) for one in field}
        tried |= {one.name: tried_on(one, spare, None) for one in guests}
        ms = raced(bench, tried)
    first = next((ms[backend] for backend in bench.backends if backend in ms), None)
    for name, one in tried.items():
        row = {"logits": f"{rows} x {classes}", "dtype": str(dtype).removeprefix("torch."), "contender": name}
        row |= {"ms": "", "GB/s": "", "% of read": "", "x ours": "", "max error": one.error, **bars.NONE}
        row["timed by"] = one.note
        if name in ms:
            speed = logits.nbytes / ms[name] / 1e6
            row |= {"ms": ms[name], "GB/s": speed, "% of read": 100 * speed / bench.read}
            if first is not None:
                row["x ours"] = ms[name] / first
        if name in ms and bench.hopper:
            row |= forward_bar(name, rows, classes, dtype, row, ms)
        bench.record(FIVE, row)
    return wrong(bench, tried)


def forward_bar(name: str, rows: int, classes: int, dtype: torch.dtype, row: dict, ms: dict[str, float]) -> dict:
    """The bar that a row of `FIVE` is held against, if there is one."""
    backend, _, alone = name.partition(",")
    if alone and backend in ms:
        return bars.at_most(ms[backend] / ms[name], bars.five_to_one(classes), "x this for five")
    share = bars.read_share(name, rows, classes, dtype)
    if share is not None:
        return bars.at_least(row["% of read"], 100 * share, " % of read")
    return bars.at_least(row["x ours"], bars.TIMES_OURS.get(name), "x ours") if row["x ours"] else {}


def five_signals_under_options(bench: Bench, rows: int, classes: int, dtype: torch.dtype) -> list:
    """One shape forward, each option beside the plain call; returns what is wrong with ours."""
    logits, target = contenders.make(rows, classes, dtype, bench.device)
    inputs = rotation.copies(logits, bench.beyond)
    at = contenders.spread(logits, 256)
    ways = contenders.under_options(logits, target)

    def error_of(found: dict[str, Tensor], y: Tensor, given: dict) -> float:
        wide = {key: value.double() if torch.is_tensor(value) else value for key, value in given.items()}
        y = y[at].double() if y.is_floating_point() else y[at]
        exact = ta.reference.score(logits[at].double(), y, signals=tuple(found), **wide).as_dict()
        errors = [(found[name][at].double() - true).abs() / true.abs().clamp(min=1.0) for name, true in exact.items()]
        return torch.stack(errors).max().item()

    tried = {}
    with torch.inference_mode():
        for backend in bench.backends:
            for what, (y, given) in ways.items():

                def call(x: Tensor, backend=backend, y=y, given=given) -> dict[str, Tensor]:
                    return ta.score(x, y, signals=speed.SIGNALS, backend=backend, **given).as_dict()

                judge = partial(error_of, y=y, given=given)
                tried[f"{backend}, {what}"] = attempt(call, inputs, judge, OPTIONS_BOUND, bench.capture)
        ms = raced(bench, tried)
    for name, one in tried.items():
        backend, _, what = name.partition(", ")
        row = {"logits": f"{rows} x {classes}", "dtype": str(dtype).removeprefix("torch."), "contender": name}
        row |= {"ms": ms.get(name, ""), "x plain": "", "max error": one.error, **bars.NONE, "timed by": one.note}
        plain = ms.get(f"{backend}, plain")
        if name in ms and plain:
            row["x plain"] = ms[name] / plain
            row |= bars.at_most(row["x plain"], bars.OPTIONS.get(what) if classes >= 1000 else None, "x plain")
        bench.record(OPTIONS, row)
    return wrong(bench, tried)


def training_step(bench: Bench, rows: int, classes: int, dtype: torch.dtype) -> list:
    """One shape forward and backward; returns what is wrong with ours."""
    logits, target = contenders.make(rows, classes, dtype, bench.device)
    inputs = [x.requires_grad_() for x in rotation.copies(logits, bench.beyond)]

    def ours(backend: str) -> Callable[[Tensor], Tensor]:
        def call(x):
            loss, _ = ta.cross_entropy(x, target, signals=("loss", "entropy", "grad_norm"), backend=backend)
            return torch.autograd.grad(loss, x)[0]

        return call

    def tried(call: Callable[[Tensor], Tensor], bound: float) -> Tried:
        error_of = partial(_gradient_error, logits=logits, target=target)
        return attempt(call, inputs, error_of, bound, bench.capture)

    field = {backend: tried(ours(backend), GRAD_BOUND[dtype]) for backend in bench.backends}
    theirs = "F.cross_entropy"
    field[theirs] = tried(lambda x: torch.autograd.grad(F.cross_entropy(x, target), x)[0], float("inf"))
    ms = raced(bench, field)
    for name, one in field.items():
        row = {"logits": f"{rows} x {classes}", "dtype": str(dtype).removeprefix("torch."), "contender": name}
        row |= {"ms": "", "GB/s": "", f"x {theirs}": "", "max error": one.error, **bars.NONE, "timed by": one.note}
        if name in ms:
            row |= {"ms": ms[name], "GB/s": 3 * logits.nbytes / ms[name] / 1e6}  # read twice, written once
        if name in ms and theirs in ms:
            row[f"x {theirs}"] = ms[name] / ms[theirs]
            row |= bars.at_most(ms[name] / ms[theirs], bars.TRAINING if name in bench.backends else None, "x")
        bench.record(TRAINING, row)
    return wrong(bench, field)


def _gradient_error(found: Tensor, logits: Tensor, target: Tensor, rows: int = 256) -> float:
    """The worst error of a row of the mean loss's gradient, as a share of the row's norm, over some rows."""
    at = contenders.spread(logits, rows)
    x = logits.detach()[at].double().requires_grad_()
    exact = torch.autograd.grad(ta.reference.cross_entropy(x, target[at], reduction="sum"), x)[0] / len(logits)
    return ((found[at].double() - exact).norm(dim=-1) / exact.norm(dim=-1)).max().item()


def noisy_entropy(bench: Bench, rows: int, classes: int, dtype: torch.dtype) -> list:
    """One shape with noise, made anew in every draw; returns what is wrong with ours."""
    logits, _ = contenders.make(rows, classes, dtype, bench.device)
    inputs = rotation.copies(logits, bench.beyond)
    top = logits.float().amax(-1)

    def tried(call: Callable[[Tensor], Tensor], error_of: Callable[[Tensor], float]) -> Tried:
        return attempt(call, inputs, error_of, NOISY_BOUND, bench.capture)

    with torch.inference_mode():
        error_of = partial(_noisy_error, logits=logits)
        field = {name: tried(partial(contenders.noisy, name, DRAWS, STD, top=top), error_of) for name in bench.backends}
        eager = partial(contenders.eagerly_noisy, draws=DRAWS, std=STD)
        field["PyTorch chain"] = tried(eager, lambda _: 0.0)  # of other noise: nothing to compare with
        ms = raced(bench, field)
    first = next((ms[backend] for backend in bench.backends if backend in ms), None)
    for name, one in field.items():
        row = {"logits": f"{rows} x {classes}", "dtype": str(dtype).removeprefix("torch."), "contender": name}
        row |= {"ms": "", "1e9 noisy logits/s": "", "x ours": ""}
        row |= {"max error": one.error if name in bench.backends else "", "timed by": one.note}
        if name in ms:
            row |= {"ms": ms[name], "1e9 noisy logits/s": DRAWS * logits.numel() / ms[name] / 1e6}
            if first is not None:
                row["x ours"] = ms[name] / first
        bench.record(NOISY, row)
    return wrong(bench, field)


def _noisy_error(found: Tensor, logits: Tensor, rows: int = 64) -> float:
    """The worst relative error over some rows against the reference in float64, which makes the same noise."""
    at = contenders.spread(logits, rows)
    x = logits[at].double()
    exact = contenders.noisy("reference", DRAWS, STD, x, x.amax(-1), at)
    return ((found[at].double() - exact).abs() / exact).max().item()


def host_cost(bench: Bench) -> list:
    """What one call costs the host where there is nothing to compute; returns what is wrong with ours."""
    x = torch.randn(1, 10, device=bench.device)
    leaf = x.clone().requires_grad_()
    target = torch.zeros(1, dtype=torch.int64, device=bench.device)
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for backend in bench.backends:
        calls["score", backend] = lambda backend=backend: ta.score(x, target, backend=backend)
        calls["cross_entropy", backend] = lambda backend=backend: ta.cross_entropy(x, target, backend=backend)
        calls["cross_entropy and backward", backend] = lambda backend=backend: torch.autograd.grad(
            ta.cross_entropy(leaf, target, backend=backend), leaf
        )
    calls["F.cross_entropy", "PyTorch"] = lambda: F.cross_entropy(x, target)
    calls["F.cross_entropy and backward", "PyTorch"] = lambda: torch.autograd.grad(F.cross_entropy(leaf, target), leaf)
    failed = []
    for (what, backend), call in calls.items():
        row = {"call": what, "backend": backend, "µs": "", **bars.NONE}
        try:
            for _ in range(20):
                call()
            row["µs"] = sorted(host_microseconds(call) for _ in range(15))[7]
            row |= bars.at_most(row["µs"], bars.HOST_MICROSECONDS.get(backend) if what == "score" else None, " µs")
        except Exception as failure:
            row["µs"] = rotation.first_line(failure)
            failed.append(f"{what}, {backend}: {row['µs']}")
        bench.record(HOST, row)
    return failed
