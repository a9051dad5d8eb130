"""Five signals of a batch of logits against what PyTorch offers: verify, then time."""

from __future__ import annotations

import pytest
import torch
from contenders import lean
from torchassay import speed

SHAPES = [(8192, 10), (8192, 100), (8192, 1000), (2048, 4096), (512, 50257), (64, 151936)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("rows", "classes"), SHAPES, ids=[f"{n}x{c}" for n, c in SHAPES])
def test_five_signals(race, record, rows, classes, dtype):
    logits, target = speed.make(rows, classes, dtype)
    torch._dynamo.reset()
    compiled = torch.compile(lean)
    with torch.inference_mode():
        error, eager_error = speed.worst_errors(logits, target)
        assert error <= 1e-6, f"worst relative error {error}"
        # the compiled chain computes the loss too, as well as plain float32 sums over a vocabulary allow
        loss = speed.ours(logits, target)["loss"]
        torch.testing.assert_close(compiled(logits, target)[0], loss, atol=1e-2, rtol=1e-3)
        ms = race(
            {
                "ours": lambda: speed.ours(logits, target),
                "eager": lambda: speed.eager(logits, target),
                "compiled": lambda: compiled(logits, target),
                "loss alone": lambda: speed.loss_only(logits, target),
                "sum": lambda: logits.sum(),
            }
        )
    ours = ms["ours"]
    record(
        "Five signals (loss, entropy, grad_norm, margin, confidence)",
        {
            "logits": f"{rows} x {classes}",
            "dtype": str(dtype).removeprefix("torch."),
            "ours, µs": ours * 1e3,
            "GB/s": logits.nbytes / ours / 1e6,
            "eager, µs": ms["eager"] * 1e3,
            "x": ms["eager"] / ours,
            "compiled, µs": ms["compiled"] * 1e3,
            "x ": ms["compiled"] / ours,
            "F.cross_entropy alone, µs": ms["loss alone"] * 1e3,
            "x  ": ms["loss alone"] / ours,
            "ours / input.sum()": ours / ms["sum"],
            "error": error,
            "eager's error": eager_error,
        },
    )
