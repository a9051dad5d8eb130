"""On the hardware: every option against the reference in float64, and rows whose bits depend on themselves alone."""

import pytest
import torch
import torchassay as ta

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

ROWS = 24


def options(name: str, classes: int) -> dict:
    generator = torch.Generator("cuda").manual_seed(7)
    weight = torch.rand(classes, generator=generator, device="cuda") * 2
    temperature = torch.exp(0.5 * torch.randn(ROWS, generator=generator, device="cuda"))
    return {
        "temperature": {"temperature": 0.7},
        "temperatures, weight": {"temperature": temperature, "weight": weight},
        "smoothing": {"label_smoothing": 0.1},
        "smoothing, weight": {"label_smoothing": 0.1, "weight": weight, "temperature": temperature},
        "softcap": {"softcap": 30.0},
        "probabilities": {},
        "all": {"softcap": 30.0, "label_smoothing": 0.1, "weight": weight, "temperature": 1.5},
    }[name]


NAMES = ["temperature", "temperatures, weight", "smoothing", "smoothing, weight", "softcap", "probabilities", "all"]


def widened(given: dict) -> dict:
    return {key: value.double() if isinstance(value, torch.Tensor) else value for key, value in given.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [2, 33, 1000, 4097, 50257])
@pytest.mark.parametrize("name", NAMES)
def test_signals_and_gradients_are_those_of_the_reference(name, classes, dtype, backend, batch):
    x, y = batch(ROWS, classes, dtype)
    given = options(name, classes)
    if name == "probabilities":
        y = torch.softmax(batch(ROWS, classes, seed=1)[0] / 4, 1)
    signals = ("loss", "entropy", "grad_norm", "confidence", "margin")
    found = ta.score(x, y, signals=signals, backend=backend, **given)
    exact_y = y.double() if name == "probabilities" else y
    exact = ta.reference.score(x.double(), exact_y, signals=signals, **widened(given))
    capped = 2**-23 * given.get("softcap", 0.0) / 0.2  # no temperature is below 0.2
    for signal, true in exact.as_dict().items():
        absolute = 1e-6 + 4e-4 / classes**0.5 if (name, signal) == ("smoothing", "grad_norm") else 1e-7
        torch.testing.assert_close(
            getattr(found, signal).double(), true, rtol=2e-6 + capped, atol=absolute + capped, msg=signal
        )
    x.requires_grad_()
    loss = ta.cross_entropy(x, y, reduction="sum", backend=backend, **given)
    (gradient,) = torch.autograd.grad(loss, x)
    wide = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(
        ta.reference.cross_entropy(wide, exact_y, reduction="sum", **widened(given)), wide
    )
    error = (gradient.double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() <= (1e-5 + 2 * capped if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("classes", [10, 1000, 8200, 50257])
@pytest.mark.parametrize("name", NAMES[:5])
def test_a_row_has_the_same_bits_alone(name, classes, backend, batch, bits):
    x, y = batch(ROWS, classes)
    given = options(name, classes)
    signals = "loss", "grad_norm", "entropy"
    whole = bits(ta.score(x, y, signals=signals, backend=backend, **given))
    for row in (0, 7, ROWS - 1):
        one = {k: v[row : row + 1] if k == "temperature" and torch.is_tensor(v) else v for k, v in given.items()}
        part = slice(row, row + 1)
        alone = bits(ta.score(x[part], y[part], signals=signals, backend=backend, **one))
        assert torch.equal(alone, whole[:, part]), row
