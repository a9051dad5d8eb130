"""No value of a tensor makes compiled code be compiled again: of logits, targets, class weights, temperatures, noise.

An option that is a number is a constant of compiled code, as torch has it: label_smoothing of F.cross_entropy too.
"""

from __future__ import annotations

import pytest
import torch
import torchassay as ta
from strategies import noise
from torch._dynamo.testing import CompileCounterWithBackend

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")

CALLS = {
    "score": lambda x, y, w, t: ta.score(x, y, weight=w, temperature=t).as_dict(),
    "cross_entropy": lambda x, y, w, t: ta.cross_entropy(x, y, w, temperature=t, softcap=30.0, label_smoothing=0.1),
    "log_prob_entropy": lambda x, y, w, t: ta.log_prob_entropy(x, y, temperature=t),
    "noise": lambda x, y, w, t: ta.score(x, signals="noisy_entropy", noise_std=t, noise_draws=2).as_dict(),
}


@pytest.mark.parametrize("name", [*CALLS])
def test_one_compilation_for_every_value(name):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(CALLS[name], backend=counter, fullgraph=True)
    for step, number in enumerate((0.5, 1.0, 6.0)):
        generator = noise(step)
        x = torch.randn(6, 11, generator=generator) * 10**step  # to rows that are sure beyond underflow
        y = torch.randint(11, (6,), generator=generator)
        given = x, y, torch.rand(11, generator=generator), torch.full((6,), number)
        torch.testing.assert_close(compiled(*given), CALLS[name](*given), rtol=0, atol=0)
        assert counter.frame_count == 1
    torch._dynamo.reset()
