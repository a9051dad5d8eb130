"""Hidden states with a linear head, and what they give where the logits are materialised in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import option_oracle
import torch
import torch.nn.functional as F
import torchassay as ta
from option_oracle import Case
from torch import Tensor

# rows, features, classes: multiples of nothing, and of one
SHAPES = [(1, 1, 1), (5, 33, 2), (57, 1, 1000), (5, 252, 3001), (17, 33, 10007), (1, 252, 1025), (257, 5, 3)]
SEGMENT = 1024  # classes


class Head(NamedTuple):
    """Operands of `F.linear`, and a class for each row."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor

    @property
    def operands(self) -> list[Tensor]:
        return [operand for operand in self[:3] if operand is not None]

    def to(self, *how) -> Head:
        """On another device, or in another dtype, the target but for its dtype."""
        dtype = next((one for one in how if isinstance(one, torch.dtype)), None)
        operands = [None if operand is None else operand.to(*how) for operand in self[:3]]
        return Head(*operands, self.target if dtype else self.target.to(*how))

    def leaves(self) -> Head:
        """Copies that want gradients."""
        return Head(*(None if t is None else t.detach().clone().requires_grad_() for t in self[:3]), self.target)

    def least(self) -> int:
        """The smallest workspace: one segment of all rows, of logits and of their gradient."""
        return max(len(self.input), 1) * min(SEGMENT, len(self.weight)) * self.input.element_size() * 2


def head(rows, features, classes, dtype=torch.float32, bias=True, ignored=True, scale=2.0, place=None) -> Head:
    """Logits of about this spread; every fifth row is ignored, but for the first."""
    generator = torch.Generator().manual_seed(rows + 10 * features + 100 * classes)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    input, weight = normal(rows, features), normal(classes, features) * scale / features**0.5
    target = torch.randint(classes, (rows,), generator=generator)
    if ignored:
        target[4::5] = -100
    found = Head(input.to(dtype), weight.to(dtype), normal(classes).to(dtype) if bias else None, target)
    return found if place is None else found.to(place.device)


def logits(operands: Head) -> Tensor:
    """In float64, of the operands as they are rounded."""
    wide = operands.to("cpu").to(torch.float64)
    return F.linear(*wide[:3])


def logit_errors(operands: Head) -> Tensor:
    """What `F.linear` in the operands' own dtype makes of them: its largest error of a row, [N]."""
    found = F.linear(*operands[:3]).cpu().double()
    return (found - logits(operands)).abs().amax(1) if len(found) else found.new_zeros(0)


def truth(operands: Head, case: Case, ignore_index: int = -100) -> option_oracle.Truth:
    return option_oracle.truth(logits(operands), operands.target.cpu(), case, ignore_index)


def pulled_back(grad: Tensor, operands: Head) -> list[Tensor]:
    """Gradients by the operands, from that by the logits, in float64."""
    wide = operands.to("cpu").to(torch.float64)
    return [grad @ wide.weight, grad.t() @ wide.input, grad.sum(0)][: len(wide.operands)]


def strided(h: Head) -> Iterator[tuple[str, Head]]:
    """The same operands in other memory: slices, transposes, every second number."""
    rows, features = h.input.shape
    wide = torch.zeros(2 * rows, features + 3, dtype=h.input.dtype, device=h.input.device)
    wide[::2, 2:-1] = h.input
    yield "rows apart", h._replace(input=wide[::2, 2:-1])
    yield "features apart", h._replace(input=torch.stack([h.input, h.input], 2).flatten(1)[:, ::2])
    yield "column-major", h._replace(input=h.input.t().contiguous().t())
    yield "transposed weight", h._replace(weight=h.weight.t().contiguous().t())
    yield "slice of a weight", h._replace(weight=torch.cat([h.weight, h.weight], 1)[:, :features])
    yield "every second class", h._replace(weight=torch.stack([h.weight, h.weight], 1).flatten(0, 1)[::2])
    yield "bias apart", h._replace(bias=torch.stack([h.bias, h.bias], 1)[:, 0])
    yield "target apart", h._replace(target=torch.stack([h.target, h.target], 1)[:, 1])


def loss_of(h: Head, place, **how):
    how = {"linear_bias": h.bias, "backend": place.backend, **how}
    return ta.linear_cross_entropy(h.input, h.weight, h.target, **how)


def gradients(outputs, h: Head, upstream=None) -> list[torch.Tensor]:
    return [grad.cpu() for grad in torch.autograd.grad(outputs, h.operands, upstream)]


def upstream_of(rows: int, dtype=torch.float64, seed=5) -> torch.Tensor:
    return torch.randn(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


OPTIONS = {
    "weight": {"weight": True},
    "smoothing": {"label_smoothing": 0.1},
    "temperature": {"temperature": 0.7},
    "temperatures": {"temperature": "rows"},
    "softcap": {"softcap": 5.0},
    "z_loss": {"z_loss": 1e-2},
    "weight and smoothing": {"weight": True, "label_smoothing": 0.2},
    "all": {"weight": True, "label_smoothing": 0.2, "temperature": "rows", "softcap": 5.0, "z_loss": 1e-2},
}


def given(name, h: Head) -> dict:
    wide = {"dtype": torch.float64 if h.input.dtype == torch.float64 else torch.float32, "device": h.input.device}
    options = dict(OPTIONS[name])
    if "weight" in options:
        options["weight"] = torch.linspace(0.2, 2.2, len(h.weight), **wide)
        options["weight"][len(h.weight) // 2] = 0
    if options.get("temperature") == "rows":
        options["temperature"] = torch.linspace(0.5, 2.0, len(h.input), **wide)
    return options


def products(profile) -> list[list[list[int]]]:
    """The shapes of the operands of every matrix product, in order."""
    names = {"aten::mm": 0, "aten::addmm": 1, "aten::addmm_": 1}
    found = [event for event in profile.events() if event.name in names]
    return [event.input_shapes[names[event.name] :][:2] for event in found]
