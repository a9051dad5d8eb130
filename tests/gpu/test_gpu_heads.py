"""Heads that are no softmax on the hardware: its own exp2 and reciprocal, a batch of any size, views, graphs."""

import pytest
import torch
import torchassay as ta

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

SIZES = [1, 2, 9, 100, 1000, 30_000]


def scores(backend, x, y, w):
    parts = [ta.score_binary(x, y, pos_weight=w, backend=backend)]
    parts += [ta.score_regression(x, y, loss=loss, backend=backend) for loss in ("mse", "l1", "huber")]
    return torch.stack([value for part in parts for value in part.as_dict().values()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", SIZES)
def test_values_and_bits(size, dtype, backend, batch, bits):
    """2e-6 against the algebra in float64, labels right by up to 80; the same bits in any batch, and by a graph."""
    x, _ = batch(3000 if size < 2000 else 40, size, dtype)
    y = (x > 0).float()
    x[::2] *= 5
    y[::3] = 1 - y[::3]
    w = torch.linspace(0.5, 4, size, device="cuda")
    found, exact = scores(backend, x, y, w), scores("reference", x.double(), y, w.double())
    error = torch.where((exact < 1e-37) & (found <= 1e-37), 0, (found.double() - exact).abs() / exact)
    assert error.max() <= 2e-6
    for part in (slice(0, 1), slice(7, 9), slice(3, 37)):
        assert torch.equal(bits(scores(backend, x[part], y[part], w)), bits(found[:, part]))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        again = ta.score_binary(x, y, pos_weight=w, backend=backend).loss
    graph.replay()
    assert torch.equal(bits(again), bits(found[0]))


@pytest.mark.parametrize("size", SIZES)
def test_misaligned_views_between_nan(size, backend, batch, bits):
    """Rows anywhere in memory that is NaN around them: the bits of the same rows in a plain tensor."""
    x, _ = batch(5, size, torch.bfloat16)
    y, w = (x > 0).float(), torch.ones(size, device="cuda")
    plain = bits(scores(backend, x, y, w))
    for offset, gap in ((1, 0), (2, 3), (5, 1)):
        views = []
        for given in (x, y):
            store = torch.full((offset + 5 * (size + gap) + 8,), torch.nan, dtype=given.dtype, device="cuda")
            views.append(store.as_strided((5, size), (size + gap, 1), offset).copy_(given))
        assert torch.equal(bits(scores(backend, *views, w)), plain), (offset, gap)
