"""States of slices in Triton: cut, merged and finished, against the definition in float64 on the whole rows."""

import itertools

import pytest
import rows
import torch
from torchassay import ops, reference
from torchassay.options import Options
from torchassay.scores import BIT, ROW_BITS, ROW_SIGNALS, STATS, TARGET_SIGNALS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(7, (3,)), (300, (100, 101, 250)), (5000, (8, 4500))]  # rows in a lane, in a warp, in segments
OPTIONS = {
    "none": {},
    "temperature, z_loss": {"temperature": 0.7, "z_loss": 1e-3},
    "weight": {"weight": True},
    "smoothing": {"label_smoothing": 0.1},
    "weight, smoothing": {"weight": True, "label_smoothing": 0.2},
    "softcap": {"softcap": 30.0},
}


def given(classes: int, name: str) -> Options:
    kwargs = dict(OPTIONS[name])
    if kwargs.get("weight"):
        kwargs["weight"] = torch.linspace(0.2, 2.0, classes, device=DEVICE)
    return Options(**kwargs)


def sliced(options: Options, begin: int, end: int) -> Options:
    return options._replace(weight=None if options.weight is None else options.weight[begin:end])


def finished(x, y, options, cuts, signals):
    """Signals from the slices' states, and from their merged state."""
    edges = [0, *cuts, x.shape[1]]
    of_call = x.shape[1], -100, "test", "triton"
    parts = [
        ops.row_states(x[:, a:b], y, *sliced(options, a, b).flat(), 1, a, *of_call)
        for a, b in itertools.pairwise(edges)
    ]
    numbers, k = (torch.stack(part) for part in zip(*parts, strict=True))
    own = None if options.weight is None else options.weight[y.clamp(min=0)]
    flat = options._replace(weight=own).flat()
    merged = ops.merge_states(numbers, k, *flat, x.shape[1], "test", "triton")
    once = (part.unsqueeze(0) for part in merged)
    how = x.shape[1], -100, signals, "test", "triton"
    return ops.finish_states(numbers, k, y, *flat, *how), ops.finish_states(*once, y, *flat, *how)


def some(family: str, classes: int, dtype: torch.dtype):
    x, y = rows.FAMILIES[family](classes)
    at = torch.linspace(0, len(x) - 1, 4).round().long()
    y = y[at]
    y[1] = -100
    return x[at].to(dtype).to(DEVICE), y.to(DEVICE)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("classes", "cuts"), SHAPES, ids=[str(classes) for classes, _ in SHAPES])
def test_values_and_gradients(classes, cuts, name):
    options = given(classes, name)
    wide = options._replace(weight=None if options.weight is None else options.weight.double())
    signals = ROW_BITS | STATS
    for family, dtype in (("random", torch.float32), ("masked", torch.bfloat16), ("blocks", torch.float16)):
        x, y = some(family, classes, dtype)
        exact = reference.option_scores(x.double(), y, wide, 1, -100, signals)
        cap = 0.0 if options.softcap is None else options.softcap
        for found in finished(x, y, options, cuts, signals):
            for signal, value, true in zip(ROW_SIGNALS, found, exact, strict=False):
                if signal == "grad_norm" and reference.needs_sweep(options):
                    assert value[y != -100].isnan().all()
                elif signal == "prediction":
                    assert torch.equal(value, true)
                else:
                    near = 2e-5 if signal == "grad_norm" and options.label_smoothing else 1e-30
                    near = max(near, 1e-6 if signal in ("margin", "target_margin") else 0.0)
                    close = {"rtol": 4e-6 + 2.0**-22 * cap, "atol": near}
                    torch.testing.assert_close(value.double(), true, msg=f"{family}, {signal}", **close)
        up = [torch.tensor([1.0, -0.5, 0.25, 2.0], device=DEVICE), torch.tensor([0.5, 1.0, -1.0, 0.0], device=DEVICE)]
        true = reference.option_grads(x.double(), y, wide, exact[-1], *(g.double() for g in up), 1, -100)
        edges = [0, *cuts, classes]
        parts = [
            ops.option_grads(
                *(x[:, a:b], y, *sliced(options, a, b).flat(), found[-1], *up, 1, -100, "test", "triton", a, classes)
            )
            for a, b in itertools.pairwise(edges)
        ]
        size = true.norm(dim=1, keepdim=True) + 1e-6
        rounding = 1e-5 if dtype == torch.float32 else 2.0**-8
        assert (((torch.cat(parts, 1).double() - true) / size).abs() <= rounding + 2.0**-22 * cap).all(), family


def test_rows_without_a_number_and_labels_elsewhere():
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([[0.0, nan, 1.0, nan], [inf, 0.0, 1.0, 2.0], [-inf] * 4, [1.0, 2.0, -inf, -inf]], device=DEVICE)
    y = torch.tensor([0, 1, 2, 1], device=DEVICE)
    exact = reference.option_scores(x.double(), y, Options(), 1, -100, ROW_BITS)
    for found in finished(x, y, Options(), (2,), ROW_BITS):
        for signal, value, true in zip(ROW_SIGNALS, found, exact, strict=True):
            torch.testing.assert_close(value.double(), true.double(), rtol=2e-6, atol=1e-30, equal_nan=True, msg=signal)
    numbers, k = ops.row_states(x[3:, :2], y[3:], *Options().flat(), 1, 0, 4, -100, "test", "triton")
    elsewhere = torch.where(k < 0, ~k, k)  # no slice has the label's class
    bits = sum(BIT[signal] for signal in TARGET_SIGNALS if signal in ROW_SIGNALS) | BIT["entropy"]
    how = 4, -100, bits, "test", "triton"
    loss, entropy, *others = ops.finish_states(numbers[None], elsewhere[None], y[3:], *Options().flat(), *how)
    assert loss.isnan().all() and all(value.isnan().all() for value in others) and not entropy.isnan().any()


@pytest.mark.parametrize("name", ["none", "temperature, z_loss", "weight, smoothing"])
def test_with_the_errors_of_the_hardware(name, hardware_exp2):
    options = given(300, name)
    wide = options._replace(weight=None if options.weight is None else options.weight.double())
    x, y = some("random", 300, torch.float32)
    exact = reference.option_scores(x.double(), y, wide, 1, -100, ROW_BITS)
    for found in finished(x, y, options, (100, 101), ROW_BITS):
        for signal, value, true in zip(ROW_SIGNALS, found, exact, strict=True):
            if signal == "prediction" or (signal == "grad_norm" and reference.needs_sweep(options)):
                continue
            size = true.abs() + (1.0 if signal in ("margin", "target_margin") else 0.0)
            assert ((value.double() - true).abs() <= 3e-6 * size + 1e-30).all(), signal
