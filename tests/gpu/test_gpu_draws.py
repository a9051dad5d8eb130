"""Noise and draws on the hardware: what the reference makes of the same seed, and bits that depend on the row alone."""

import pytest
import torch
from torchassay.philox import Purpose
from torchassay.scores import BIT, NOISY_SIGNALS

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

ALL = sum(BIT[name] for name in NOISY_SIGNALS)
SEED = 2**40 + 17


def draw(x, backend, row_id=None, std=1.5, draws=4):
    """The three signals of noisy copies, or with std=None of an ensemble."""
    top = None if std is None else x.amax(-1).to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    given = None, std or 0.0, None, 0.75, row_id, None, SEED, draws, x.dim() - 1, ALL, "score", backend
    return torch.ops.torchassay.draw_scores(x, top, *given)


def test_normals_are_those_of_the_reference(backend):
    row_id = torch.tensor([0, 7, 2**33 + 7, -(2**40)], device="cuda")
    seed = torch.tensor(SEED, device="cuda")
    for columns in (1, 33, 4097):
        given = row_id, seed, 0, Purpose.LOGIT_NOISE, 3, columns
        found, exact = (torch.ops.torchassay.normals(*given, False, name) for name in (backend, "reference"))
        assert (found.double() - exact.double()).abs().max() <= 1.5e-6  # the reference is rounded to float32
        uniforms = [torch.ops.torchassay.normals(*given, True, name) for name in (backend, "reference")]
        assert torch.equal(*uniforms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("classes", [2, 10, 100, 1000, 4097, 50257])
def test_signals_are_those_of_the_algebra_in_float64(classes, dtype, backend, batch):
    x, _ = batch(40, classes, dtype)
    x[torch.arange(20), 0] += torch.linspace(0, 70, 20, device="cuda").to(dtype)
    members = x.view(4, 10, classes)
    for found, exact in (
        (draw(x, backend), draw(x.double(), "reference")),
        (draw(members, backend, std=None), draw(members.double(), "reference", std=None)),
    ):
        for value, true, of in zip(found, exact, (exact[0], exact[1], exact[1]), strict=True):
            assert ((value.double() - true).abs() / of).max() <= 1e-5


@pytest.mark.parametrize("classes", [10, 100, 1001, 5000, 50257])
def test_a_row_with_its_id_has_its_bits_alone_and_again(classes, backend, batch, bits):
    x, _ = batch(300, classes, torch.bfloat16)
    row_id = torch.arange(300, device="cuda") * 2**33 - 5
    whole = [bits(value) for value in draw(x, backend, row_id)]
    assert all(torch.equal(bits(a), b) for a, b in zip(draw(x, backend, row_id), whole, strict=True))
    for at in (slice(0, 1), slice(7, 8), slice(250, 300), torch.randperm(300, device="cuda")):
        for some, all_rows in zip(draw(x[at], backend, row_id[at]), whole, strict=True):
            assert torch.equal(bits(some), all_rows[at])
