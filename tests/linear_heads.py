"""Hidden states with a linear head, and what they give where the logits are materialised in float64."""

from __future__ import annotations

from typing import NamedTuple

import option_oracle
import torch
import torch.nn.functional as F
from option_oracle import Case
from torch import Tensor

# rows, features, classes: multiples of nothing, and of one
SHAPES = [(1, 1, 1), (5, 33, 2), (257, 1, 1000), (5, 252, 3001), (65, 33, 10007), (1, 252, 1025), (257, 5, 3)]
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
