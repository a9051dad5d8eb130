"""Sizes beyond 2^31 elements and 65,535 rows: every row has the bits that it has alone."""

import pytest
import torch
import torchassay as ta
from torchassay.scores import ROW_SIGNALS

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

BEYOND = (1 << 31) + (1 << 20)
SIGNALS = ("loss", "entropy", "grad_norm", "margin", "prediction")


def spots(rows: int, classes: int) -> list[int]:
    """Rows at the beginning, in the middle, at the end, and on both sides of 2^31 elements."""
    seam = (1 << 31) // classes
    some = {0, 1, 65535, 65536, rows // 2, rows - 2, rows - 1, seam - 1, seam, seam + 1}
    return sorted(row for row in some if 0 <= row < rows)


def check_rows(backend, bits, x, y, found, at):
    for row in at:
        alone = ta.score(x[row : row + 1].clone(), y[row : row + 1], signals=SIGNALS, backend=backend)
        assert torch.equal(bits(found[row : row + 1]), bits(alone)), row


def close(found, exact):
    for name, true in exact.as_dict().items():
        torch.testing.assert_close(getattr(found, name).to(true), true, rtol=2e-6, atol=1e-30, msg=name)


# a row a lane; rows that share a warp; a warp or four; odd, on no boundary; a vocabulary
@pytest.mark.parametrize("classes", [10, 100, 1000, 4097, 151936])
def test_more_than_two_to_the_31_elements(classes, backend, batch, bits, room):
    room(24)
    x, y = batch(BEYOND // classes + 2, classes, torch.bfloat16)
    found = ta.score(x, y, signals=SIGNALS, backend=backend)
    assert not found.entropy.isnan().any()
    at = spots(len(x), classes)
    check_rows(backend, bits, x, y, found, at)
    exact = ta.reference.score(x[at].double(), y[at], signals=SIGNALS)
    close(found[at], exact)


@pytest.mark.parametrize("classes", [10, 1000, 151936])
def test_gradients_beyond_two_to_the_31_elements(classes, backend, batch, bits, gradient, room):
    room(30)
    x, y = batch(BEYOND // classes + 2, classes, torch.bfloat16)
    found = gradient(x, y)
    for row in spots(len(x), classes):
        alone = gradient(x[row : row + 1].clone(), y[row : row + 1])
        assert torch.equal(bits(found[row]), bits(alone[0])), row


@pytest.mark.parametrize("classes", [100, 50257])
def test_row_strides_beyond_two_to_the_31(classes, backend, batch, bits, gradient, room):
    """[2, 3, C] whose outer stride is more than 2^31 elements, as the last tokens of a large batch have it."""
    room(12)
    store = torch.zeros(BEYOND + 3 * classes, dtype=torch.bfloat16, device="cuda")
    x = store.as_strided((2, 3, classes), (BEYOND, classes, 1))
    values, y = batch(6, classes, torch.bfloat16)
    x.copy_(values.view(2, 3, classes))
    found = ta.score(x, y.view(2, 3), signals=ROW_SIGNALS, backend=backend)
    plain = ta.score(values, y, signals=ROW_SIGNALS, backend=backend)
    assert torch.equal(bits(found).flatten(1), bits(plain))
    logits = x.detach()
    assert torch.equal(bits(gradient(logits, y.view(2, 3))).view(6, -1), bits(gradient(values, y)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("classes", [3, 100, 1000, 4096, 8200, 20000])
def test_more_than_65535_rows(classes, dtype, backend, batch, bits, gradient, room):
    room(16 if classes > 8000 else 8)
    rows = 65536 * 3 + 1 if classes < 1000 else 65536 + 5
    x, y = batch(rows, classes, dtype)
    found = ta.score(x, y, signals=SIGNALS, backend=backend)
    at = [0, 1, 65534, 65535, 65536, rows - 2, rows - 1]
    check_rows(backend, bits, x, y, found, at)
    close(found[at], ta.reference.score(x[at].double(), y[at], signals=SIGNALS))
    if classes <= 4096:
        whole = gradient(x, y)
        assert torch.equal(bits(whole[at]), bits(torch.cat([gradient(x[i : i + 1], y[i : i + 1]) for i in at])))


def test_too_many_rows_for_one_launch_is_an_error_and_breaks_nothing(backend, batch, room):
    room(12)
    x, _ = batch(1, 50257)
    expected = ta.score(x, signals="lse", backend=backend).lse
    with pytest.raises((RuntimeError, OverflowError, ValueError)):
        ta.score(x.expand(1 << 31, -1), signals="lse", backend=backend)
    torch.cuda.synchronize()
    assert torch.equal(ta.score(x, signals="lse", backend=backend).lse, expected)
