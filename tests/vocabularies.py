"""What the ranks of a group do with slices of logits: in a module of its own, which their processes can import."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torchassay as ta
from option_contract import wide
from option_oracle import Case
from torchassay.backends import why_not
from torchassay.scores import ROW_SIGNALS

WORLD, CLASSES = 4, 37
CUTS = {1: [37], 2: [36, 1], 3: [5, 31, 1], 4: [20, 1, 9, 7]}  # by world
TAIL = 30  # where the last of four slices begins
BACKENDS = [backend for backend in ("reference", "native") if not why_not(backend, "cpu", torch.float32)]
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def plain(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaps of the target from -40 to 80, a common offset of 1e4, ties of the top over slices; its class on any rank."""
    x = torch.randn(16, CLASSES, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 1.5
    y = torch.tensor([0, 19, 20, 21, 29, 30, 36, 4, 5, 35, 12, 25, 33, 1, 20, 36])
    x[torch.arange(12), y[:12]] += torch.linspace(-40, 80, 12, dtype=torch.float64)
    x[3] += 1e4
    x[12, [3, 20, 30]] = x[12].max() + 1
    x[13, [1, 36]] = x[13].max() + 2
    y[14] = -100
    return x.to(dtype), y


def masked(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes at -inf: the whole last of four slices; and for some rows most of the others, or all but one."""
    x, y = plain(dtype)
    y[y >= TAIL] = 7
    x[:, TAIL:] = -torch.inf
    x[2, :20] = -torch.inf
    x[8, 6:] = -torch.inf
    x[10, :12] = x[10, 13:] = -torch.inf
    return x, y


def poisoned(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with NaN, +inf or nothing but -inf, in one slice or another, between good ones."""
    x, y = plain(dtype)
    x[1, 3] = x[4, 36] = torch.nan
    x[6, 20] = torch.inf
    x[8] = -torch.inf
    x[10, 0] = x[10, 36] = torch.nan
    x[14, 22] = torch.nan  # ignored
    return x, y


INPUTS = {"plain": plain, "masked": masked, "poisoned": poisoned}


def cases(dtype: torch.dtype) -> dict[str, Case]:
    w = torch.linspace(0.2, 2.2, CLASSES, dtype=wide(dtype))
    w[[6, 20]] = 0
    by_row = torch.linspace(0.5, 2.0, 16, dtype=wide(dtype))
    return {
        "nothing": Case(),
        "temperature": Case(temperature=by_row),
        "weight": Case(weight=w, temperature=0.7),
        "smoothing": Case(label_smoothing=0.1),
        "weight, smoothing": Case(weight=w, label_smoothing=0.2),
        "softcap": Case(softcap=30.0),
        "softcap, smoothing": Case(softcap=20.0, label_smoothing=0.1, temperature=by_row),
        "z_loss": Case(z_loss=1e-3, weight=w),
        "all": Case(weight=w, label_smoothing=0.1, temperature=by_row, softcap=10.0, z_loss=1e-4),
    }


def chosen(world: int) -> list[tuple[str, str, torch.dtype, str]]:
    """Backends, inputs, dtypes and cases for so many ranks: all in float32; for three ranks in the other dtypes."""
    found = []
    for backend in BACKENDS:
        for dtype in DTYPES if world == 3 else DTYPES[:1]:
            found += [(backend, "plain", dtype, case) for case in cases(dtype)]
        if world in (2, 4):
            found += [(backend, "masked", torch.float32, case) for case in ("nothing", "softcap", "weight")]
            found += [
                (backend, "poisoned", torch.float32, case) for case in ("nothing", "softcap, smoothing", "weight")
            ]
    return found


def upstream(count: int) -> torch.Tensor:
    """Gradients of the losses, which every dtype holds."""
    return (torch.arange(count) * 5 % 13 - 4) / 4


def columns(world: int, rank: int) -> slice:
    cut = CUTS[world]
    return slice(sum(cut[:rank]), sum(cut[: rank + 1]))


def outcome(name: str, dtype: torch.dtype, case: str, at: slice, **how) -> dict[str, torch.Tensor]:
    """Loss, gradient and every signal of some of the classes."""
    x, y = INPUTS[name](dtype)
    given = cases(dtype)[case]
    part = x[:, at].clone().requires_grad_()
    options = given.given()
    if given.weight is not None:
        options["weight"] = given.weight[at]
    loss, s = ta.cross_entropy(part, y, reduction="none", signals=ROW_SIGNALS, **options, **how)
    loss.backward(upstream(len(x)).to(loss.dtype))
    return {"gradient": part.grad, "reduced": loss.detach(), **s.as_dict()}


def shapes(at: slice, **how) -> dict[str, torch.Tensor]:
    """Other shapes, strides and reductions than rows of one loss each."""
    x, y = plain(torch.float32)
    w = cases(torch.float32)["weight"].weight[at]
    found = {}
    images = x.view(2, 8, CLASSES).transpose(1, 2)[:, at]  # [2, C, 8], classes side by side in memory
    labels = y.view(2, 8).int()
    for dim, input, target in ((1, images, labels), (-1, x.view(2, 8, CLASSES)[..., at], labels), (0, x[3, at], y[3])):
        for reduction in ("none", "mean", "sum"):
            for weight in (None, w):
                leaf = input.detach().clone(memory_format=torch.preserve_format).requires_grad_()
                loss = ta.cross_entropy(leaf, target, weight, reduction=reduction, dim=dim, **how)
                (loss * 0.5).sum().backward()
                name = f"{dim} {reduction} {'weight' if weight is w else 'no weight'}"
                found |= {f"loss {name}": loss.detach(), f"gradient {name}": leaf.grad.movedim(dim, -1)}
    for name, part, target in (("no row", x[:0, at], y[:0]), ("all ignored", x[:3, at], torch.full((3,), -100))):
        leaf = part.clone().requires_grad_()
        loss, s = ta.cross_entropy(leaf, target, signals=("loss", "entropy"), **how)
        loss.backward()
        found |= {f"loss {name}": loss.detach(), f"entropy {name}": s.entropy, f"gradient {name}": leaf.grad}
    s = ta.score(x[:, at], **how)
    found |= {f"no target {signal}": value for signal, value in s.as_dict().items()}
    history = ta.History(64, signal="grad_norm", p_min=0.1)
    for _ in range(2):
        found["select_prob"] = ta.score(x[:, at], y, history=history, signals="loss", **how).select_prob
    found["mixed order"] = ta.score(x[:, at], y, signals=("prediction", "loss"), **how).prediction
    return found


def everything(rank: int) -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for world in CUTS:
        group = dist.new_group(list(range(WORLD - world, WORLD)))  # of the last: a rank's number in it is another
        at = rank - (WORLD - world)
        if at < 0:
            continue
        for backend, *what in chosen(world):
            how = {"group": group, "backend": backend}
            found[f"{world} {backend} {' '.join(map(str, what))}"] = outcome(*what, columns(world, at), **how)
        for backend in BACKENDS:
            found[f"{world} {backend} shapes"] = shapes(columns(world, at), group=group, backend=backend)
    found["again"] = outcome(
        "plain", torch.float32, "all", columns(WORLD, rank), group=dist.group.WORLD, backend="reference"
    )
    return found
