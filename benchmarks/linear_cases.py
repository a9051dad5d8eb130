"""Who scores hidden states under a linear head, and the memory it takes: ``python linear_cases.py NAME DTYPE``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import torchassay as ta
from clock import resident
from torch import Tensor
from torchassay import speed

ROWS, FEATURES, CLASSES = 512, 1024, 50257
Call = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]


def make(rows: int, features: int, classes: int, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, ...]:
    """Hidden states, a head and targets, which most rows are fairly sure of."""
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randn(classes, features, generator=generator, device=device) / features**0.5
    target = torch.randint(classes, (rows,), generator=generator, device=device)
    sure = 20 * torch.rand(rows, 1, generator=generator, device=device)
    hidden = torch.randn(rows, features, generator=generator, device=device) + sure * weight[target]
    return hidden.to(dtype), weight.to(dtype), target


def scored(hidden: Tensor, weight: Tensor, target: Tensor) -> dict[str, Tensor]:
    return ta.linear_score(hidden, weight, target, signals=speed.SIGNALS).as_dict()


def bare(hidden: Tensor, weight: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The product alone, of which all else is made."""
    torch.mm(hidden, weight.t())
    return {}


def chain(hidden: Tensor, weight: Tensor, target: Tensor) -> dict[str, Tensor]:
    return speed.eager(F.linear(hidden, weight), target)


def materialised(hidden: Tensor, weight: Tensor, target: Tensor) -> dict[str, Tensor]:
    return ta.score(F.linear(hidden, weight), target, signals=speed.SIGNALS).as_dict()


SCORERS: dict[str, Call] = {
    "linear_score": scored,
    "the product alone": bare,
    "F.linear, then the eager chain": chain,
    "F.linear, then score": materialised,
}


def steps(hidden: Tensor, weight: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    leaves = [hidden.detach().requires_grad_(), weight.detach().requires_grad_()]
    value = loss(*leaves)
    of_hidden, of_weight = torch.autograd.grad(value, leaves)
    return {"loss": value.detach(), "of hidden": of_hidden, "of weight": of_weight}


def ours_trained(hidden: Tensor, weight: Tensor, target: Tensor) -> dict[str, Tensor]:
    three = ("loss", "entropy", "grad_norm")
    return steps(hidden, weight, lambda h, w: ta.linear_cross_entropy(h, w, target, signals=three)[0])


def torch_trained(hidden: Tensor, weight: Tensor, target: Tensor) -> dict[str, Tensor]:
    return steps(hidden, weight, lambda h, w: F.cross_entropy(F.linear(h, w), target))


def products(hidden: Tensor, weight: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The four products that a step without the logits takes: these twice, and one for each gradient."""
    for _ in range(2):
        logits = torch.mm(hidden, weight.t())
    torch.mm(logits, weight)
    torch.mm(logits.t(), hidden)
    return {}


TRAINERS: dict[str, Call] = {
    "linear_cross_entropy, three signals": ours_trained,
    "four products alone": products,
    "F.linear, F.cross_entropy": torch_trained,
}
if hasattr(F, "linear_cross_entropy") and hasattr(torch.nn, "LinearCrossEntropyOptions"):

    def chunked_by_torch(hidden: Tensor, weight: Tensor, target: Tensor) -> dict[str, Tensor]:
        options = torch.nn.LinearCrossEntropyOptions()
        return steps(hidden, weight, lambda h, w: F.linear_cross_entropy(h, w, target, options=options))

    TRAINERS["F.linear_cross_entropy, chunked"] = chunked_by_torch


def peak(name: str, dtype: torch.dtype) -> int:
    """Bytes that a call takes at most beside what it is given, what it returns included."""
    call = (SCORERS | TRAINERS)[name]
    call(*make(4, 16, 8, dtype))  # what a first call takes of any size
    given = make(ROWS, FEATURES, CLASSES, dtype)
    call(given[0][:8], *given[1:2], given[2][:8])
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest number so far starts anew
    call(*given)
    return resident("VmHWM") - before


if __name__ == "__main__":
    print(json.dumps(peak(sys.argv[1], getattr(torch, sys.argv[2]))))
