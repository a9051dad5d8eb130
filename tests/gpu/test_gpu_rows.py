"""On the hardware: a row's bits depend on the row alone, and nothing beyond it is looked at."""

import pytest
import torch
import torchassay as ta
from torchassay.scores import ROW_SIGNALS

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

CLASSES = [2, 10, 33, 100, 127, 1000, 1024, 1025, 4097, 8192, 8193, 50257, 151936]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def score(backend, x, y):
    return ta.score(x, y, signals=ROW_SIGNALS, backend=backend)


@DTYPES
@pytest.mark.parametrize("classes", CLASSES)
def test_alone_in_batches_of_every_kind_permuted_and_again(classes, dtype, backend, batch, bits, gradient, room):
    """Batches small and large enough for every way that a kernel divides them among the multiprocessors."""
    room(8)
    x, y = batch(20_000 if classes < 2000 else 300, classes, dtype)
    whole = bits(score(backend, x, y))
    for _ in range(3):
        assert torch.equal(bits(score(backend, x, y)), whole)
    for size in (1, 2, 3, 33, 65, 131, 257, 4097):
        for first in {0, 7, len(x) - size}:
            if 0 <= first <= len(x) - size:
                part = slice(first, first + size)
                assert torch.equal(bits(score(backend, x[part], y[part])), whole[:, part]), (size, first)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1)).cuda()
    assert torch.equal(bits(score(backend, x[order], y[order])), whole[:, order])
    few = order[:40]
    expected = gradient(x, y)[few]
    assert torch.equal(bits(gradient(x[few], y[few])), bits(expected))
    assert torch.equal(bits(gradient(x[few[:1]], y[few[:1]])), bits(expected[:1]))


@DTYPES
@pytest.mark.parametrize("classes", [10, 100, 127, 1000, 1001, 4097, 8200, 50257])
def test_misaligned_views_between_nan(classes, dtype, backend, batch, bits, gradient):
    """Rows anywhere in memory that is NaN around them: the bits of the same rows in a plain tensor."""
    x, y = batch(5, classes, dtype)
    plain, slope = bits(score(backend, x, y)), bits(gradient(x, y))
    for offset in range(9):
        for gap in (0, 1, 2, 3, 4, 8, 24):
            store = torch.full((offset + 5 * (classes + gap) + 8,), torch.nan, dtype=dtype, device="cuda")
            view = store.as_strided((5, classes), (classes + gap, 1), offset)
            view.copy_(x)
            assert torch.equal(bits(score(backend, view, y)), plain), (offset, gap)
            if gap in (0, 3):
                assert torch.equal(bits(gradient(view, y)), slope), (offset, gap)


@DTYPES
@pytest.mark.parametrize("classes", [2, 10, 100, 127, 1000, 4097, 50257, 151936])
def test_signals_and_gradients_are_those_of_the_algebra_in_float64(classes, dtype, backend, batch, gradient):
    """With gaps from -80 to 80, as far as the dtype holds them."""
    x, y = batch(200, classes, dtype)
    rest = x.double().scatter(1, y[:, None], -torch.inf).amax(1)
    x[torch.arange(200, device="cuda"), y] = (rest + torch.linspace(-80, 80, 200).to(rest)).to(dtype)
    wide = x.double().requires_grad_()
    exact = ta.reference.score(wide, y, signals=ROW_SIGNALS)
    found = score(backend, x, y)
    assert torch.equal(found.prediction, exact.prediction)
    for name, true in exact.as_dict().items():
        off = (getattr(found, name).double() - true).abs()
        scale = true.double().abs()
        if name == "lse":  # where m + log1p(r) crosses 0 its rounding is relative to its parts
            scale = torch.maximum(scale, x.double().abs().amax(1))
        error = torch.where(off <= 1e-37, 0, off / scale)
        assert error.max() <= 2e-6, (name, int(error.argmax()), float(error.max()))
    logp, entropy = ta.reference.log_prob_entropy(wide, y)
    expected = torch.autograd.grad((logp + 0.5 * entropy).sum(), wide)[0]
    error = (gradient(x, y).double() - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1e-37)
    assert error.max() <= (1e-5 if dtype == torch.float32 else 1e-2)
