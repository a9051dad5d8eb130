"""Noisy entropy against the chain that PyTorch offers: draw, add, log_softmax, and so on for every draw."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchassay import ops
from torchassay.scores import BIT, NOISY_SIGNALS

TOPIC = "Noisy entropy"
SHAPES = [(8192, 1000), (8192, 100)]
DRAWS, STD = 4, 0.5
BAR = 5.0  # times the chain's time, at least


def ours(logits: Tensor, names: tuple[str, ...]) -> list[Tensor]:
    asked = sum(BIT[name] for name in names)
    top = logits.amax(1)
    return ops.draw_scores(logits, top, None, STD, None, 1.0, None, None, 0, DRAWS, 1, asked, "bench", "native")


def chain(logits: Tensor, noise) -> Tensor:
    total = torch.zeros(len(logits))
    for t in range(DRAWS):
        log_p = torch.log_softmax(logits + STD * noise(t), 1)
        total -= (log_p.exp() * log_p).sum(1)
    return total / DRAWS


@pytest.mark.parametrize(("rows", "classes"), SHAPES, ids=[f"{n}x{c}" for n, c in SHAPES])
def test_against_the_chain(rows, classes, race, record):
    logits = torch.randn(rows, classes, generator=torch.Generator().manual_seed(0)) * 2
    ids = torch.arange(rows)
    same = chain(logits, lambda t: ops.normals(ids, None, 0, 0, t, classes, False, "native"))
    found = ours(logits, NOISY_SIGNALS[:1])[0]
    error = float(((found - same) / same).abs().max())
    assert error < 1e-5
    ms = race(
        {
            "ours": lambda: ours(logits, NOISY_SIGNALS[:1]),
            "all three": lambda: ours(logits, NOISY_SIGNALS),
            "chain": lambda: chain(logits, lambda t: torch.randn_like(logits)),
        },
        rounds=15,
    )
    for name in ("ours", "all three"):
        what = "noisy_entropy" if name == "ours" else "all three signals"
        row = {"what": f"{what}, {rows} x {classes}, {DRAWS} draws", "ms": ms[name], "chain, ms": ms["chain"]}
        ratio = ms["chain"] / ms[name]
        record(TOPIC, row | {"ratio": ratio, "bar": f">= {BAR:g}", "met": "yes" if ratio >= BAR else "**no**"})
