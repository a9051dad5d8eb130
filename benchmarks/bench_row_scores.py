"""Five signals of a batch of logits against what PyTorch offers: verify, then time."""

from __future__ import annotations

import pytest
import torch
from clock import DEVICE
from torchassay import speed

SHAPES = (
    [(8192, 10), (8192, 100), (8192, 1000), (2048, 4096), (512, 50257), (64, 151936)]
    if DEVICE == "cpu"
    else [(1 << 20, 100), (1 << 17, 1000), (8192, 32000), (8192, 50257), (4096, 151936)]
)
BOUND = 1e-6 if DEVICE == "cpu" else 2e-6


def lean(logits, target):
    """The same five signals in the fewest passes, written to be compiled: no topk, no softmax kept."""
    x = logits.float()
    m = x.amax(-1, keepdim=True)
    e = torch.exp(x - m)
    total = e.sum(-1)
    lse = m.squeeze(-1) + torch.log(total)
    x_y = x.gather(-1, target[:, None]).squeeze(-1)
    loss = lse - x_y
    entropy = lse - (e * x).sum(-1) / total
    p_y = torch.exp(-loss)
    norm = ((e * e).sum(-1) / (total * total) - 2 * p_y + 1).clamp(min=0).sqrt()
    second = torch.where(x == m, -torch.inf, x).amax(-1)
    confidence = 1 / total
    return loss, entropy, norm, confidence - torch.exp(second - lse), confidence


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("rows", "classes"), SHAPES, ids=[f"{n}x{c}" for n, c in SHAPES])
def test_five_signals(race, record, rows, classes, dtype):
    logits, target = (tensor.to(DEVICE) for tensor in speed.make(rows, classes, dtype))
    torch._dynamo.reset()
    compiled = torch.compile(lean)
    with torch.inference_mode():
        error, eager_error = speed.worst_errors(logits, target)
        assert error <= BOUND, f"worst relative error {error}"
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
