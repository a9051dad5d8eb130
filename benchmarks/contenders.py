"""Who is timed on a batch of logits: torchassay's backends and what PyTorch offers. Peers are in peers.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torchassay as ta
from torch import Tensor
from torchassay import speed
from torchassay.scores import BIT


class Contender(NamedTuple):
    """``call(logits, target)`` gives signals by name."""

    name: str
    call: Callable[[Tensor, Tensor], dict[str, Tensor]]


def lean(logits: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    """The five signals in the fewest passes, written to be compiled: no topk, no softmax kept."""
    x = logits.float()
    m = x.amax(-1, keepdim=True)
    e = torch.exp(x - m)
    total = e.sum(-1)
    lse = m.squeeze(-1) + torch.log(total)
    x_y = x.gather(-1, target[:, None]).squeeze(-1)
    loss = lse - x_y
    entropy = lse - (e * x).sum(-1) / total
    p_y = torch.exp(-loss)
    norm = ((e * e).sum(-1) / (total * total) - 2 * p_y + 1).clamp(min=0).sqrt()
    second = torch.where(x == m, -torch.inf, x).amax(-1)
    confidence = 1 / total
    return loss, entropy, norm, confidence - torch.exp(second - lse), confidence


def ours(backend: str, signals: tuple[str, ...] = speed.SIGNALS) -> Contender:
    name = backend if signals == speed.SIGNALS else f"{backend}, {' and '.join(signals)} alone"
    return Contender(name, lambda x, y: ta.score(x, y, signals=signals, backend=backend).as_dict())


def eager() -> Contender:
    return Contender("PyTorch chain", speed.eager)


def compiled() -> Contender:
    """A fresh compilation: for one shape, as a training loop with one shape has it."""
    torch._dynamo.reset()
    chain = torch.compile(lean, dynamic=False)
    return Contender("lean chain, compiled", lambda x, y: dict(zip(speed.SIGNALS, chain(x, y), strict=True)))


def loss_alone() -> Contender:
    return Contender("F.cross_entropy", lambda x, y: {"loss": speed.loss_only(x, y)})


def noisy(backend: str, draws: int, std: float, logits: Tensor, top: Tensor, row_id: Tensor | None = None) -> Tensor:
    """The mean entropy of noisy draws, of which ``top`` is the largest logit of each row without noise."""
    given = logits, top, None, std, None, 1.0, row_id, None, 0, draws
    return torch.ops.torchassay.draw_scores(*given, logits.dim() - 1, BIT["noisy_entropy"], "score", backend)[0]


def eagerly_noisy(logits: Tensor, draws: int, std: float) -> Tensor:
    """The same of other noise, as PyTorch makes it."""
    total = torch.zeros(len(logits), device=logits.device)
    for _ in range(draws):
        log_p = (logits.float() + std * torch.randn(logits.shape, device=logits.device)).log_softmax(-1)
        total -= (log_p.exp() * log_p).sum(-1)
    return total / draws


def make(rows: int, classes: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Logits and targets as `speed.make` draws them, drawn on the device: gigabytes take minutes on a host."""
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.empty(rows, classes, dtype=dtype, device=device)
    target = torch.randint(classes, (rows,), generator=generator, device=device)
    for part in logits.split(max(1, (1 << 28) // classes)):  # in float32 only a part at a time
        part.copy_(torch.randn(part.shape, generator=generator, device=device))
    raised = float(torch.tensor(float(classes)).log()) + 20 * torch.rand(rows, 1, generator=generator, device=device)
    logits.scatter_add_(1, target[:, None], raised.to(dtype))
    return logits, target


def under_options(logits: Tensor, target: Tensor) -> dict[str, tuple[Tensor, dict]]:
    """Targets and options of a call by name, the first of them none."""
    classes = logits.shape[1]
    weight = torch.linspace(0.5, 1.5, classes, device=logits.device)
    probabilities = (weight / weight.sum()).expand(len(logits), -1).contiguous()
    return {
        "plain": (target, {}),
        "temperature": (target, {"temperature": 0.7}),
        "smoothing": (target, {"label_smoothing": 0.1}),
        "weight": (target, {"weight": weight}),
        "weight x smoothing": (target, {"weight": weight, "label_smoothing": 0.1}),
        "softcap": (target, {"softcap": 30.0}),
        "probabilities": (probabilities, {}),
    }


def spread(logits: Tensor, rows: int) -> Tensor:
    """Indices of some rows, from the first to the last."""
    at = torch.linspace(0, len(logits) - 1, min(rows, len(logits)), dtype=torch.float64)
    return at.round().long().to(logits.device)


def worst_error(found: dict[str, Tensor], logits: Tensor, target: Tensor, rows: int = 256) -> float:
    """The worst relative error against float64 of the same algebra, over some rows."""
    at = spread(logits, rows)
    exact = ta.reference.score(logits[at].double(), target[at], signals=tuple(found)).as_dict()
    worst = torch.zeros((), dtype=torch.float64, device=logits.device)
    for name, true in exact.items():
        off = (found[name][at].double() - true).abs()
        worst = torch.maximum(worst, torch.where(off == 0, 0, off / true.abs()).max())  # which lets a NaN be seen
    return worst.item()
