"""The kernel of heads that are no softmax, called directly: the hardware's exp2, and which addresses it touches."""

import head_oracle
import oracle
import pytest
import torch
from torchassay.triton_kernels.head_scores import head_scores

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [1, 3, 100, 1100]  # 512 outputs at once


def run(x, y, w=None, head="binary", delta=1.0, names=("loss", "entropy", "grad_norm")):
    """The signals of [N, L], by name."""
    slots = ("loss", "entropy", "grad_norm") if head == "binary" else ("loss", "", "grad_norm")
    out = [torch.full((len(x),), -7.0, device=DEVICE) if name and name in names else None for name in slots]
    head_scores(x.to(DEVICE), y.to(DEVICE), None if w is None else w.to(DEVICE), head, delta, out)
    return {name: value.cpu() for name, value in zip(slots, out, strict=True) if value is not None}


@pytest.mark.parametrize("size", SIZES)
def test_with_the_errors_of_the_hardware(size, hardware_exp2):
    x, y, w, exact = head_oracle.binary_case(size, torch.float32)
    for name, value in run(x, y, w).items():
        assert oracle.relative_errors(name, value, exact[name]).max() <= 2e-6, name


@pytest.mark.parametrize("size", SIZES)
def test_only_what_is_asked(size):
    x, y, w, _ = head_oracle.binary_case(size, torch.bfloat16)
    whole = run(x, y, w)
    for name, value in whole.items():
        (alone,) = run(x, y, w, names=(name,)).values()
        assert torch.equal(alone, value)


@pytest.mark.parametrize("size", SIZES)
def test_no_address_outside_the_tensors(size, only_own_addresses):
    memory = torch.randn(7, size + 3, generator=torch.Generator().manual_seed(1))
    x, y = memory[1:6, 1 : size + 1], memory[2:, 2 : size + 2].clamp(0, 1)
    w = torch.ones(size)
    for head in ("binary", *head_oracle.LOSSES):
        found = run(x, y, w if head == "binary" else None, head)
        expected = run(x.contiguous(), y.contiguous(), w if head == "binary" else None, head)
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=0)
