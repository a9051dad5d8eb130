"""Rows of logits that are hard on kernels, by name."""

from __future__ import annotations

from functools import lru_cache

import oracle
import torch
from torch import Tensor


def _targets(x: Tensor) -> Tensor:
    """The top class, the first, the last and some class between, in turn; never a masked one."""
    n, classes = x.shape
    i = torch.arange(n)
    turn = torch.stack([x.argmax(1), torch.zeros_like(i), torch.full_like(i, classes - 1), i * 7919 % classes])
    y = turn[i % 4, i]
    return torch.where(x.gather(1, y[:, None])[:, 0] == -torch.inf, x.argmax(1), y)


def _noise(classes: int, rows: int, scale: float = 2.0) -> Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(classes), dtype=torch.float64) * scale


def gaps(classes: int) -> tuple[Tensor, Tensor]:
    """The target's logit stands -80 to 80 above the largest other one."""
    gap = torch.arange(-80, 81, 4 if classes < 10_000 else 16, dtype=torch.float64)
    x = _noise(classes, len(gap))
    y = torch.arange(len(gap)) * 7919 % classes
    rest = x.scatter(1, y[:, None], -torch.inf).amax(1)
    rest = torch.where(rest == -torch.inf, 0, rest)
    return x.scatter(1, y[:, None], (rest + gap)[:, None]), y


def offsets(classes: int) -> tuple[Tensor, Tensor]:
    """Gaps on top of a common +1e4 or -1e4."""
    x, y = gaps(classes)
    sign = torch.where(torch.arange(len(x)) % 2 == 0, 1.0, -1.0).double()
    return x + 1e4 * sign[:, None], y


def random(classes: int) -> tuple[Tensor, Tensor]:
    """From nearly uniform to spread out."""
    x = torch.cat([_noise(classes, 4, scale) for scale in (1e-3, 0.1, 1.0, 5.0, 30.0)])
    return x, _targets(x)


def peaked(classes: int) -> tuple[Tensor, Tensor]:
    """One class at +3, the rest at -15: any lane beyond the row that counts as a logit of 0 is seen at once."""
    at = torch.tensor([0, classes // 2, classes - 1, classes // 3])
    x = torch.full((4, classes), -15.0, dtype=torch.float64).scatter(1, at[:, None], 3.0)
    x = torch.cat([x, x - 200])  # also with every logit far below 0
    return x, _targets(x)


def masked(classes: int) -> tuple[Tensor, Tensor]:
    """Classes at -inf: one finite, two finite, half, a tail, all but every 97th."""
    x = _noise(classes, 12)
    j = torch.arange(classes)
    keep = [j == at % classes for at in (0, 1, 7, 8, 255, 256, 1023, classes - 1)]
    keep += [(j == 0) | (j == classes - 1), j % 2 == 0, j < (classes + 1) // 2, j % 97 == 0]
    x = x.masked_fill(~torch.stack(keep), -torch.inf)
    return x, _targets(x)


def blocks(classes: int) -> tuple[Tensor, Tensor]:
    """Maxima that alternate by 40 from block to block, for blocks of several sizes, the last one partial."""
    j = torch.arange(classes)
    level = [20.0 * (1 - 2 * (j // size % 2)) for size in (1, 8, 16, 64, 256, 1024, 8192)]
    x = torch.stack(level) + _noise(classes, len(level), 1.0)
    return x, _targets(x)


def ramps(classes: int) -> tuple[Tensor, Tensor]:
    """Rising and falling, over 1e-3, 20, 95 (float32 exp reaches subnormals) and 300 (it underflows)."""
    up = torch.linspace(0, 1, classes, dtype=torch.float64)
    x = torch.stack([side * span for span in (1e-3, 20.0, 95.0, 300.0) for side in (up, up.flip(0))])
    return x, _targets(x)


def ties(classes: int) -> tuple[Tensor, Tensor]:
    """All equal; and one, two or three tops far apart above equal others."""
    base = torch.zeros(classes, dtype=torch.float64)
    x = [base, base - 40.25]
    for height in (0.5, 2.0, 12.0, 40.0):
        for at in ([classes - 1], [0, classes - 1], [classes // 3, 2 * classes // 3], [1 % classes, classes // 2, -1]):
            x.append(base.clone().index_fill_(0, torch.tensor(at) % classes, height))
    x = torch.stack(x)
    return x, _targets(x)


FAMILIES = {f.__name__: f for f in (gaps, offsets, random, peaked, masked, blocks, ramps, ties)}


@lru_cache(maxsize=4)  # the tests walk the places of one case before the next
def case(family: str, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Logits [N, C] of a family rounded to ``dtype``, targets, and the exact signals of the rounded logits."""
    x, y = FAMILIES[family](classes)
    x = x.to(dtype)
    return x, y, oracle.signals(x, y)
