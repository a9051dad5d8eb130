"""Heads that are no softmax: all signals in one read, against the chain of torch functions that gives the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchassay as ta

SHAPES = [(8192, 100), (1 << 20, 1)]
TOPIC = "Binary and regression heads"


def ids(shapes):
    return [f"{n}x{c}" for n, c in shapes]


def made(rows: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a model that is right more often than not, and labels."""
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(rows, outputs, generator=generator).round()
    return 3 * torch.randn(rows, outputs, generator=generator) + 4 * target - 2, target


def binary_chain(x, y):
    loss = F.binary_cross_entropy_with_logits(x, y, reduction="none").sum(1)
    p = torch.sigmoid(x)
    entropy = F.binary_cross_entropy_with_logits(x, p, reduction="none").sum(1)
    return {"loss": loss, "entropy": entropy, "grad_norm": (p - y).norm(dim=1)}


def regression_chain(x, y):
    return {"loss": F.huber_loss(x, y, reduction="none").sum(1), "grad_norm": (x - y).clamp(-1, 1).norm(dim=1)}


def compare(race, record, what, ours, chain, exact):
    def error(found):
        return max(float(((found[name] - exact[name]).abs() / exact[name]).max()) for name in exact)

    assert error(ours()) < 1e-6
    for name, value in chain().items():  # whose entropy and gradient hold differences
        torch.testing.assert_close(value.double(), exact[name], rtol=1e-5, atol=1e-5)
    ms = race({"ours": ours, "torch": chain})
    row = {"what": what, "ms": ms["ours"], "error": f"{error(ours()):.1e}", "against": "torch's chain"}
    record(TOPIC, row | {"ms ": ms["torch"], "error ": f"{error(chain()):.1e}", "ratio": ms["torch"] / ms["ours"]})


@pytest.mark.parametrize(("rows", "labels"), SHAPES, ids=ids(SHAPES))
def test_binary(race, record, rows, labels):
    x, y = made(rows, labels)
    exact = ta.reference.score_binary(x.double(), y).as_dict()
    what = f"loss, entropy and grad_norm of {rows} x {labels} labels"
    compare(race, record, what, lambda: ta.score_binary(x, y).as_dict(), lambda: binary_chain(x, y), exact)


@pytest.mark.parametrize(("rows", "outputs"), SHAPES, ids=ids(SHAPES))
def test_regression(race, record, rows, outputs):
    x, y = made(rows, outputs)
    exact = ta.reference.score_regression(x.double(), y, loss="huber").as_dict()
    what = f"huber loss and grad_norm of {rows} x {outputs} outputs"
    ours = lambda: ta.score_regression(x, y, loss="huber").as_dict()  # noqa: E731
    compare(race, record, what, ours, lambda: regression_chain(x, y), exact)
