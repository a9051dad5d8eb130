"""TRL's log-softmax and entropy helpers, and its head from hidden states, beside ours; `torchassay.integrations.trl`.

``python benchmarks/bench_trl.py "NAME" DTYPE`` prints the bytes that a call takes at its most beside what it is given.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import linear_cases
import pytest
import torch
import torchassay as ta
from torchassay.integrations import trl as ours

theirs = pytest.importorskip("trl.trainer.utils")
ROWS, FEATURES, CLASSES = 256, 256, 151_936


def trained(found: tuple[torch.Tensor, torch.Tensor], *leaves: torch.Tensor) -> list[torch.Tensor]:
    return [*(values.detach() for values in found), *torch.autograd.grad(found[0].sum(), leaves)]


def of_logits(library, logits, _, tokens):
    logits = logits.detach().requires_grad_()
    log_probs = library.selective_log_softmax(logits, tokens)
    with torch.no_grad():
        entropies = library.entropy_from_logits(logits)
    return trained((log_probs, entropies), logits)


def from_one_read(logits, _, tokens):
    logits = logits.detach().requires_grad_()
    return trained(ours.selective_log_softmax_and_entropy(logits, tokens, False), logits)


def of_hidden(function, hidden, weight, tokens):
    leaves = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    return trained(function(*leaves, tokens.flatten()), *leaves)


def their_head(hidden, weight, tokens):
    outputs = ("log_probs", "entropy")
    return theirs._ChunkedLogProbFunction.apply(hidden, weight, None, tokens, 1.0, 32_768, None, 1.0, outputs)[:2]


OF_LOGITS = {
    "TRL's two helpers": lambda *given: of_logits(theirs, *given),
    "our two helpers": lambda *given: of_logits(ours, *given),
    "both from one read": from_one_read,
}
OF_HIDDEN = {
    "TRL's head": lambda *given: of_hidden(their_head, *given),
    "linear_log_prob_entropy": lambda *given: of_hidden(ta.linear_log_prob_entropy, *given),
}


def make(name: str, dtype: torch.dtype, rows: int = ROWS, classes: int = CLASSES) -> tuple:
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(classes, (2, rows // 2), generator=random)
    if name in OF_LOGITS:
        return torch.randn(2, rows // 2, classes, generator=random).mul_(3).to(dtype), None, tokens
    hidden, weight = (torch.randn(n, FEATURES, generator=random) for n in (rows, classes))
    return hidden.to(dtype), (weight / 8).to(dtype), tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("calls", [OF_LOGITS, OF_HIDDEN], ids=["logits", "hidden"])
def test_against_trl(calls, dtype, race, record):
    given = make(next(iter(calls)), dtype)
    first, *others = (call(*given) for call in calls.values())
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    for other in others:
        for values, expected in zip(other, first, strict=True):
            assert (values.float().flatten() - expected.float().flatten()).norm() <= tolerance * expected.float().norm()
    ms = race({name: lambda call=call: call(*given) for name, call in calls.items()}, rounds=3)
    for name in calls:
        command = [sys.executable, __file__, name, str(dtype).removeprefix("torch.")]
        taken = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        row = {"what": name, "dtype": str(dtype).removeprefix("torch."), "ms": ms[name]}
        row |= {"ratio": ms[name] / ms[next(iter(calls))], "peak, MiB": taken / 2**20}
        record(f"TRL's helpers, {ROWS} tokens of {CLASSES:,} classes", row)


def peak(name: str, dtype: torch.dtype) -> int:
    call = (OF_LOGITS | OF_HIDDEN)[name]
    call(*make(name, dtype, 4, 16))  # what a first call takes of any size
    given = make(name, dtype)
    before = linear_cases.resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest number so far starts anew
    call(*given)
    return linear_cases.resident("VmHWM") - before


if __name__ == "__main__":
    print(json.dumps(peak(sys.argv[1], getattr(torch, sys.argv[2]))))
