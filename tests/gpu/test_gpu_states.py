"""On the hardware: states of slices of the classes and what is made of them, against whole rows in float64."""

from itertools import pairwise

import pytest
import torch
from torchassay import ops, reference
from torchassay.options import Options
from torchassay.scores import BIT, ROW_SIGNALS, STATS

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

ROWS = 24
ALL = sum(BIT[name] for name in ROW_SIGNALS) | STATS


def options(name: str, classes: int) -> Options:
    generator = torch.Generator("cuda").manual_seed(7)
    weight = torch.rand(classes, generator=generator, device="cuda") * 2
    temperature = torch.exp(0.5 * torch.randn(ROWS, generator=generator, device="cuda"))
    return {
        "nothing": Options(),
        "temperatures": Options(weight=weight, temperature=temperature, z_loss=1e-3),
        "smoothing": Options(label_smoothing=0.1),
        "smoothing, weight": Options(weight=weight, label_smoothing=0.1, temperature=1.5),
        "softcap": Options(softcap=30.0),
    }[name]


NAMES = ["nothing", "temperatures", "smoothing", "smoothing, weight", "softcap"]


def part_of(given: Options, part: slice) -> Options:
    return given._replace(weight=None if given.weight is None else given.weight[part])


def widened(given: Options) -> Options:
    wide = (value.double() if isinstance(value, torch.Tensor) else value for value in given)
    return Options(*wide)


def edges(classes: int) -> list[slice]:
    """Of a single class, of few, of most."""
    cuts = [0, 1, classes // 8, classes]
    return [slice(a, b) for a, b in pairwise(cuts)]


def states_of(x, y, given: Options, classes: int, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    found = [
        ops.row_states(x[:, s], y, *part_of(given, s).flat(), 1, s.start, classes, -100, "test", backend)
        for s in edges(classes)
    ]
    return tuple(torch.stack(each) for each in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [16, 1000, 9001, 151936])
@pytest.mark.parametrize("name", NAMES)
def test_signals_and_gradients_from_slices_are_those_of_the_reference(name, classes, dtype, backend, batch):
    x, y = batch(ROWS, classes, dtype)
    y[3] = -100
    given = options(name, classes)
    numbers, k = states_of(x, y, given, classes, backend)
    own = given._replace(weight=None if given.weight is None else given.weight[y.clamp(min=0)])
    found = ops.finish_states(numbers, k, y, *own.flat(), classes, -100, ALL, "test", backend)
    merged = ops.merge_states(numbers, k, *given.flat(), classes, "test", backend)
    again = ops.finish_states(*(m[None] for m in merged), y, *own.flat(), classes, -100, ALL, "test", backend)
    exact = reference.option_scores(x.double(), y, widened(given), 1, -100, ALL)
    capped = 2**-23 * (given.softcap or 0.0)
    for signal, value, same, true in zip([*ROW_SIGNALS, "stats"], found, again, exact, strict=True):
        torch.testing.assert_close(same, value, rtol=2e-6, atol=0, equal_nan=True, msg=signal)
        if signal == "prediction":
            assert torch.equal(value, true)
        elif signal == "grad_norm" and reference.needs_sweep(given):
            known = y != -100
            assert value[known].isnan().all() and value[3] == 0
        else:
            absolute = 1e-6 + 4e-4 / classes**0.5 if (name, signal) == ("smoothing", "grad_norm") else 1e-6
            torch.testing.assert_close(value.double(), true, rtol=3e-6 + capped, atol=absolute + capped, msg=signal)

    gL, gH = (torch.randn(ROWS, device="cuda", generator=torch.Generator("cuda").manual_seed(i)) for i in (1, 2))
    whole = ops.option_grads(x, y, *given.flat(), found[-1], gL, gH, 1, -100, "test", backend)
    for s in edges(classes):
        flat = part_of(given, s).flat()
        part = ops.option_grads(x[:, s], y, *flat, found[-1], gL, gH, 1, -100, "test", backend, s.start, classes)
        torch.testing.assert_close(part, whole[:, s], rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=1e-9)
    expected = reference.option_grads(x.double(), y, widened(given), exact[-1], gL.double(), gH.double(), 1, -100)
    error = (whole.double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert error[expected.norm(dim=1) > 0].max() <= (1e-5 + 20 * capped if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("classes", [100, 1000, 8200, 50257])
@pytest.mark.parametrize("name", NAMES)
def test_a_state_has_the_same_bits_alone(name, classes, backend, batch):
    """A few long rows are cut into spans, which changes no bit."""
    x, y = batch(ROWS, classes)
    given = options(name, classes)
    numbers, k = ops.row_states(x, y, *given.flat(), 1, 0, classes, -100, "test", backend)
    for row in (0, 7, ROWS - 1):
        part, temperature = slice(row, row + 1), given.temperature
        one = given._replace(temperature=temperature[part] if isinstance(temperature, torch.Tensor) else temperature)
        alone = ops.row_states(x[part], y[part], *one.flat(), 1, 0, classes, -100, "test", backend)
        assert torch.equal(alone[0], numbers[:, part]) and torch.equal(alone[1], k[part]), row


def test_poisoned_and_masked_slices(backend, batch):
    x, y = batch(ROWS, 2000)
    y.clamp_(min=500)
    x[:, :500] = -torch.inf
    x[1, 0] = x[2, 1999] = torch.nan
    numbers, k = states_of(x, y, Options(), 2000, backend)
    found = ops.finish_states(numbers, k, y, *Options().flat(), 2000, -100, ALL, "test", backend)
    assert torch.equal(found[ROW_SIGNALS.index("prediction")], x.argmax(1))
    loss = found[0]
    assert loss[1:3].isnan().all() and loss[0].isfinite() and loss[3:].isfinite().all()
