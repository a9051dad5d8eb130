"""The training step: forward and backward of the loss with three signals against the loss alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from torchassay import speed

SHAPES = [(8192, 10), (8192, 100), (8192, 1000), (512, 50257)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("rows", "classes"), SHAPES, ids=[f"{n}x{c}" for n, c in SHAPES])
def test_training_step(race, record, rows, classes, dtype):
    logits, target = speed.make(rows, classes, dtype)
    logits.requires_grad_()

    def ours():
        loss, scores = ta.cross_entropy(logits, target, signals=("loss", "entropy", "grad_norm"))
        return torch.autograd.grad(loss, logits)[0], scores

    def theirs():
        return torch.autograd.grad(F.cross_entropy(logits, target), logits)[0]

    exact = torch.autograd.grad(ta.reference.cross_entropy(logits, target), logits)[0].float()
    error = float(((ours()[0].float() - exact).norm(dim=-1) / exact.norm(dim=-1)).nan_to_num().max())
    assert error <= (1e-6 if dtype == torch.float32 else 1e-2), f"worst relative error of a row {error}"
    ms = race({"ours": ours, "theirs": theirs})
    record(
        "Training step: cross_entropy with three signals, forward and backward",
        {
            "logits": f"{rows} x {classes}",
            "dtype": str(dtype).removeprefix("torch."),
            "ours, µs": ms["ours"] * 1e3,
            "F.cross_entropy, µs": ms["theirs"] * 1e3,
            "ours / F.cross_entropy": ms["ours"] / ms["theirs"],
            "error of a row's gradient": error,
        },
    )
