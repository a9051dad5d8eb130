"""Hidden states under a linear head on a GPU: ours against the products alone, materialised logits and peers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import bars
import contenders
import linear_cases
import peers
import torch
import torch.nn.functional as F
import torchassay as ta
from gpu_cases import Bench, Tried, attempt, raced, wrong
from torch import Tensor

SCORES = "Linear head: loss, entropy and grad_norm"
TRAINING = "Linear head, training step: the loss with three signals, forward and backward"
THREE = ("loss", "entropy", "grad_norm")
BOUND = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # relative to 1 at least: logits are rounded
Head = tuple[Tensor, Tensor, Tensor]


def linear_head(bench: Bench, rows: int, features: int, classes: int, dtype: torch.dtype, *, training: bool) -> list:
    """One shape; returns what is wrong with ours."""
    hidden, weight, target = linear_cases.make(rows, features, classes, dtype, bench.device)
    field = _trainers(bench, weight, target) if training else _scorers(bench, weight, target)
    error_of = partial(_off, head=(hidden, weight, target))
    peak: dict[str, float] = {}
    tried: dict[str, Tried] = {}
    for name, call in field.items():
        bound = BOUND[dtype] if name in bench.backends else float("inf")
        tried[name] = attempt(call, [hidden, hidden.clone()], error_of, bound, None)
        if tried[name].launches and bench.device == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            call(hidden)
            peak[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
    ms = raced(bench, tried)
    bare = "four products" if training else "the product"
    for name, one in tried.items():
        row = {"N x D x V": f"{rows} x {features} x {classes}", "dtype": str(dtype).removeprefix("torch.")}
        row |= {"contender": name, "ms": ms.get(name, ""), f"x {bare}": "", "peak, MiB": peak.get(name, "")}
        row |= {"max error": one.error, **bars.NONE, "timed by": one.note}
        if name in ms and bare in ms:
            row[f"x {bare}"] = ratio = ms[name] / ms[bare]
            if bench.hopper and name == bench.backends[0]:
                row |= bars.at_most(ratio, 1.15 if training else bars.HEAD.get(features), f"x {bare}")
        bench.record(TRAINING if training else SCORES, row)
    return wrong(bench, tried)


def _scorers(bench: Bench, weight: Tensor, target: Tensor) -> dict[str, Callable[[Tensor], dict[str, Tensor]]]:
    def ours(h: Tensor, backend: str) -> dict[str, Tensor]:
        return ta.linear_score(h, weight, target, signals=THREE, backend=backend).as_dict()

    return {
        **{backend: partial(ours, backend=backend) for backend in bench.backends},
        "the product": lambda h: linear_cases.bare(h, weight, target),
        "F.linear, then score": lambda h: ta.score(F.linear(h, weight), target, signals=THREE).as_dict(),
        "F.linear, F.cross_entropy": lambda h: {"loss": F.cross_entropy(F.linear(h, weight), target, reduction="none")},
    }


def _trainers(bench: Bench, weight: Tensor, target: Tensor) -> dict[str, Callable[[Tensor], dict[str, Tensor]]]:
    def step(h: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
        return linear_cases.steps(h, weight, loss)

    def ours(h: Tensor, backend: str) -> dict[str, Tensor]:
        given = {"signals": THREE, "backend": backend}
        return step(h, lambda x, w: ta.linear_cross_entropy(x, w, target, **given)[0])

    found = {backend: partial(ours, backend=backend) for backend in bench.backends}
    found["four products"] = lambda h: linear_cases.products(h, weight, target)
    for name, call in list(linear_cases.TRAINERS.items())[2:]:
        found[name] = lambda h, call=call: call(h, weight, target)
    for name, loss in peers.find(peers.HEADS)[0]:
        found[name] = lambda h, loss=loss: step(h, lambda x, w: loss(x, w, target))
    return found


def _off(found: dict[str, Tensor], head: Head, rows: int = 64) -> float:
    """The worst error of what a contender gives, over some rows, relative to 1 at least; of a gradient to its norm."""
    hidden, weight, target = head
    at = contenders.spread(hidden, rows)
    worst = 0.0
    h = hidden.detach()[at].double().requires_grad_()
    logits = F.linear(h, weight.detach().double())
    if "of hidden" in found:
        exact = torch.autograd.grad(ta.reference.cross_entropy(logits, target[at], reduction="sum"), h)[0] / len(hidden)
        of_rows = found["of hidden"][at].double()
        return ((of_rows - exact).norm() / exact.norm()).item()
    for name, true in ta.reference.score(logits, target[at], signals=tuple(found)).as_dict().items() if found else ():
        off = (found[name][at].double() - true).abs() / true.abs().clamp(min=1.0)
        worst = max(worst, off.max().item())
    return worst
