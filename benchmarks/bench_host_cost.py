"""What one call costs when there is nothing to compute: N = 1."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchassay as ta

CALLS = 500  # in one timing, so that the clock's own cost does not show


def repeated(call):
    def run():
        for _ in range(CALLS):
            call()

    return run


@pytest.mark.parametrize("grad", [False, True], ids=["forward", "forward-backward"])
def test_one_row(race, record, grad):
    logits = torch.randn(1, 10)
    target = torch.zeros(1, dtype=torch.int64)
    torch.testing.assert_close(ta.cross_entropy(logits, target), F.cross_entropy(logits, target))
    if grad:
        logits.requires_grad_()
        calls = {
            "cross_entropy": lambda: torch.autograd.grad(ta.cross_entropy(logits, target), logits),
            "F.cross_entropy": lambda: torch.autograd.grad(F.cross_entropy(logits, target), logits),
        }
    else:
        calls = {
            "score": lambda: ta.score(logits, target),
            "cross_entropy": lambda: ta.cross_entropy(logits, target),
            "F.cross_entropy": lambda: F.cross_entropy(logits, target),
        }
    ms = race({name: repeated(call) for name, call in calls.items()})
    for name, value in ms.items():
        row = {"call": name, "with backward": "yes" if grad else "no", "µs": value * 1e3 / CALLS}
        record("Host cost of one call, 1 x 10", row)
