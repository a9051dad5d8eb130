"""States of slices that hold little, on every backend: masked ones, and those of a single class."""

from itertools import pairwise

import pytest
import torch
from torchassay import ops
from torchassay.options import Options
from torchassay.scores import BIT

SIGNALS = ("loss", "entropy", "confidence", "margin", "prediction")
DTYPES = {torch.float32: 2e-6, torch.float64: 1e-14}


def found(place, x, y, options: Options, cuts: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Signals of rows that are cut before these columns."""
    classes, call, run = x.shape[1], options.flat(), ("test", place.backend)
    edges = pairwise([0, *cuts, classes])
    parts = [ops.row_states(x[:, a:b], y, *call, 1, a, classes, -100, *run) for a, b in edges]
    numbers, k = (torch.stack(each) for each in zip(*parts, strict=True))
    bits = sum(BIT[name] for name in SIGNALS)
    values = ops.finish_states(numbers, k, y, *call, classes, -100, bits, *run)
    return dict(zip(SIGNALS, values, strict=True))


@pytest.mark.parametrize("lowest", ["-inf", "the lowest number"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_masked_slices_take_no_part(temperature, lowest, fast_place):
    """A count of masked classes times their distance would be no number."""
    for dtype in fast_place.dtypes[: 2 if fast_place.double else 1]:
        gone = -torch.inf if lowest == "-inf" else torch.finfo(dtype).min
        generator = torch.Generator().manual_seed(1)
        x = torch.full((3, 700), gone, dtype=dtype)
        x[:, 300:310] = torch.randn(3, 10, generator=generator, dtype=dtype)
        x[2, 301:310] = gone  # a lone top
        y = torch.tensor([300, 305, 300])
        options = Options(temperature=temperature)
        x, y = x.to(fast_place.device), y.to(fast_place.device)
        whole = found(fast_place, x[:, 300:310], y - 300, options, ())
        for name, value in found(fast_place, x, y, options, (300, 310)).items():
            expected = whole[name] + 300 if name == "prediction" else whole[name]
            torch.testing.assert_close(value, expected, rtol=DTYPES[dtype], atol=0, msg=name)


@pytest.mark.parametrize("cuts", [(1,), (2,), (1, 2)])
def test_a_masked_class_with_a_share_of_the_target_makes_the_loss_infinite(cuts, fast_place):
    """Also where it is the only one of its slice."""
    x = torch.tensor([[5.0, -torch.inf, -torch.inf]], device=fast_place.device)
    y = torch.tensor([0], device=fast_place.device)
    signals = found(fast_place, x, y, Options(label_smoothing=0.1), cuts)
    assert signals["loss"].tolist() == [torch.inf] and signals["confidence"].tolist() == [1.0]
