"""What the ranks of a group do with slices of a linear head: in a module that their processes can import."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torchassay as ta
from option_contract import wide
from option_oracle import Case
from torchassay.scores import LINEAR_SIGNALS, NOISY_SIGNALS
from vocabularies import BACKENDS, WORLD

FEATURES, CLASSES = 12, 1600
CUTS = {1: [1600], 2: [1599, 1], 3: [39, 1500, 61], 4: [1500, 1, 60, 39]}  # by world: some in two chunks, most in one
SHAPE = (2, 5)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
SIGNALS = tuple(name for name in LINEAR_SIGNALS if name not in NOISY_SIGNALS)


def head(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states [2, 5, D], weight, bias and labels on any rank, one ignored; rows from flat to confident."""
    generator = torch.Generator().manual_seed(8)
    h = torch.randn(*SHAPE, FEATURES, generator=generator) * torch.linspace(0.2, 2.0, 10).view(*SHAPE, 1)
    w = torch.randn(CLASSES, FEATURES, generator=generator)
    b = torch.randn(CLASSES, generator=generator)
    y = torch.tensor([[0, 1499, 1500, 1501, 1560], [1561, 1599, -100, 38, 777]])
    return h.to(dtype), w.to(dtype), b.to(dtype), y


def cases(dtype: torch.dtype) -> dict[str, Case]:
    w = torch.linspace(0.2, 2.2, CLASSES, dtype=wide(dtype))
    w[[38, 700]] = 0
    by_row = torch.linspace(0.5, 2.0, 10, dtype=wide(dtype)).view(SHAPE)
    return {
        "nothing": Case(),
        "temperature": Case(temperature=by_row),
        "weight, z_loss": Case(weight=w, z_loss=1e-3),
        "smoothing": Case(label_smoothing=0.1),
        "weight, smoothing": Case(weight=w, label_smoothing=0.2),
        "softcap, smoothing": Case(softcap=20.0, label_smoothing=0.1, temperature=by_row),
    }


def chosen(world: int) -> list[tuple[str, torch.dtype, str]]:
    """Backends, dtypes and cases for so many ranks."""
    dtypes = DTYPES if world == 4 else DTYPES[:1]
    return [(backend, dtype, case) for backend in BACKENDS for dtype in dtypes for case in cases(dtype)]


def upstream() -> torch.Tensor:
    """Gradients of the losses."""
    return (torch.arange(10).view(SHAPE) * 5 % 13 - 4) / 4


def leaves(dtype: torch.dtype, at: slice) -> tuple[list[torch.Tensor], torch.Tensor]:
    h, w, b, y = head(dtype)
    return [part.clone().requires_grad_() for part in (h, w[at], b[at])], y


def least(dtype: torch.dtype, classes: int) -> int:
    """The memory for one chunk of logits and its gradient."""
    return 2 * 10 * min(1024, classes) * dtype.itemsize


def outcome(dtype: torch.dtype, case: str, at: slice, **how) -> dict[str, torch.Tensor]:
    """Loss, gradients and every signal of some of the classes."""
    given = cases(dtype)[case]
    options = given.given()
    if given.weight is not None:
        options["weight"] = given.weight[at]
    (h, w, b), y = leaves(dtype, at)
    of_call = options | how | {"linear_bias": b, "max_workspace_bytes": least(dtype, len(w))}
    loss, s = ta.linear_cross_entropy(h, w, y, reduction="none", signals=SIGNALS, **of_call)
    loss.backward(upstream().to(loss.dtype))
    found = {"loss": loss.detach(), "of input": h.grad, "of weight": w.grad, "of bias": b.grad}
    return found | {f"signal {name}": value for name, value in s.as_dict().items()}


def more(at: slice, **how) -> dict[str, torch.Tensor]:
    """Other calls than those of one loss a row."""
    found = {}
    weight = cases(torch.float32)["weight, z_loss"].weight[at]
    for name, options in {"mean": {}, "weighted mean": {"weight": weight}, "sum": {"reduction": "sum"}}.items():
        (h, w, _), y = leaves(torch.float32, at)  # without a signal ignored rows are left out
        loss = ta.linear_cross_entropy(h, w, y, **options, **how)
        loss.backward()
        found |= {name: loss.detach(), f"of input, {name}": h.grad, f"of weight, {name}": w.grad}
    (h, w, b), y = leaves(torch.float32, at)
    ta.linear_cross_entropy(h.detach(), w, y, linear_bias=b, **how).backward()
    found |= {"of weight, input constant": w.grad, "of bias, input constant": b.grad}
    (h, w, b), y = leaves(torch.float32, at)
    log_prob, entropy = ta.linear_log_prob_entropy(h, w, y, linear_bias=b, temperature=0.8, **how)
    (log_prob * upstream() - 0.3 * entropy).sum().backward()
    found |= {"log_prob": log_prob.detach(), "entropy": entropy.detach()}
    found |= {"of input, both": h.grad, "of weight, both": w.grad, "of bias, both": b.grad}
    h, w, b, y = head(torch.float32)
    noise = {"feature_noise_std": 0.3, "feature_noise_draws": 3, "seed": 7}
    s = ta.linear_score(h, w[at], linear_bias=b[at], signals=NOISY_SIGNALS, softcap=25.0, **noise, **how)
    found |= s.as_dict()
    history = ta.History(64, signal="grad_norm")
    ta.linear_score(h, w[at], y, history=history, **how)
    found["select_prob"] = ta.linear_score(h, w[at], y, signals="entropy", history=history, **how).select_prob
    found["no row"] = ta.linear_score(h[:, :0], w[at], y[:, :0], **how).loss
    (h, w, _), y = leaves(torch.float32, at)
    loss = ta.linear_cross_entropy(h, w, torch.full_like(y, -100), reduction="sum", **how)
    loss.backward()
    return found | {"all ignored": loss.detach(), "of input, all ignored": h.grad, "of weight, all ignored": w.grad}


def columns(world: int, rank: int) -> slice:
    cut = CUTS[world]
    return slice(sum(cut[:rank]), sum(cut[: rank + 1]))


def everything(rank: int) -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for world in CUTS:
        group = dist.new_group(list(range(WORLD - world, WORLD)))
        at = rank - (WORLD - world)
        if at < 0:
            continue
        for backend, *what in chosen(world):
            of_call = *what, columns(world, at)
            found[f"{world} {backend} {' '.join(map(str, what))}"] = outcome(*of_call, group=group, backend=backend)
        for backend in BACKENDS:
            found[f"{world} {backend} more"] = more(columns(world, at), group=group, backend=backend)
    return found
