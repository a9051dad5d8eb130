"""The launchers of options called directly, against formulas in extended precision written apart from the package.

Temperature, class weight and z-loss run in the plain kernels (one lane a row up to 32 columns, registers up to 4096,
segments above), all else in one kernel (one tile up to 4096 columns, tiles of 8192 above).
"""

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor
from torchassay.options import Options
from torchassay.triton_kernels import row_scores as plain_launcher

NEED_TARGET = ("loss", "grad_norm", "target_margin")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS = 4


def wide(values) -> np.ndarray:
    return values.detach().cpu().double().numpy().astype(np.longdouble)


def exact(x: Tensor, target: Tensor | None, options: Options, upstream=None) -> tuple[dict[str, Tensor], Tensor]:
    """The signals of finite rows (classes at -inf allowed), and the gradient for upstreams of the loss and the entropy.

    The gradients by the logits l add up to 2 z_loss lse: that gives the top's without a difference.
    """
    raw, n = wide(x), np.arange(len(x))
    classes = raw.shape[1]
    temperature = options.temperature
    temperature = wide(temperature)[:, None] if isinstance(temperature, Tensor) else np.longdouble(temperature)
    k = raw.argmax(1)
    v, slope = raw, np.ones_like(raw)
    if options.softcap:
        v = options.softcap * np.tanh(raw / options.softcap)
        slope = 1 / np.cosh(np.minimum(np.abs(raw / options.softcap), 5000)) ** 2
    a = (v[n, k][:, None] - v) / temperature
    w = np.exp(-a)
    w[n, k] = 0
    r = w.sum(1)
    c = 1 / (1 + r)
    log_c = np.log1p(r)
    lse = v[n, k] / np.broadcast_to(temperature, (len(x), 1))[:, 0] + log_c
    p = w * c[:, None]
    a_finite = np.where(np.isinf(a), 0, a)
    second = np.where(np.arange(classes) == k[:, None], np.inf, a).min(1)
    mu = (w * a_finite).sum(1) * c
    found = {
        "entropy": log_c + mu,
        "lse": lse,
        "confidence": c,
        "least_confidence": r * c,
        "margin": -np.expm1(-second) * c,
    }
    p[n, k] = c
    weight = np.ones(classes) if options.weight is None else wide(options.weight)
    smoothing = options.label_smoothing
    if target is None:
        b = np.zeros_like(raw)
    elif target.is_floating_point():
        b = weight * ((1 - smoothing) * wide(target) + smoothing / classes)
    else:
        y = target.cpu().numpy()
        b = np.broadcast_to(weight * smoothing / classes, raw.shape).copy()
        b[n, y] += (1 - smoothing) * weight[y]
        rival = np.where(np.arange(classes) == y[:, None], np.inf, a).min(1)
        found["target_margin"] = np.where(y == k, found["margin"], np.exp(-rival) * np.expm1(-(a[n, y] - rival)) * c)
    gap = np.where(b == 0, 0, a)
    others = b.copy()
    others[n, k] = 0
    extra = 2 * options.z_loss * lse
    beta = b.sum(1) + extra
    found["loss"] = b.sum(1) * log_c + (b * gap).sum(1) + options.z_loss * lse * lse
    entry = beta[:, None] * p - b
    entry[n, k] = 0
    entry[n, k] = extra - entry.sum(1)
    found["grad_norm"] = np.sqrt(((slope * entry / temperature) ** 2).sum(1))
    dx = np.zeros_like(raw)
    if upstream is not None:
        gL, gH = (0 if g is None else wide(g)[:, None] for g in upstream)
        dx = slope / temperature * (gL * entry + gH * p * (a_finite - mu[:, None]))
    found = {name: torch.from_numpy(np.asarray(value, np.float64)) for name, value in found.items()}
    return found | {"prediction": torch.from_numpy(k)}, torch.from_numpy(dx.astype(np.float64))


def tolerance_of(options: Options, base: float) -> float:
    """A cap rounds v by up to its 2^-23rd part, which the temperature divides."""
    coldest = float(torch.as_tensor(options.temperature).min())
    return base + 2.0**-22 * (options.softcap or 0) / min(1.0, coldest)


def check(found, x, target, options, base=2e-6):
    tolerance = tolerance_of(options, base)
    largest = (x.float() / torch.as_tensor(options.temperature).reshape(-1, 1)).amax(1).abs().double()
    expected, _ = exact(x, target, options)
    for name, value in found.items():
        if name == "prediction":
            assert torch.equal(value, expected[name])
        elif name != "stats":
            scale = expected[name].abs()
            if name == "lse":
                scale = torch.maximum(scale, largest)
            elif name == "grad_norm":  # the rounding of the lse in 2 z_loss lse
                scale = scale + options.z_loss * largest
            error = (value.double() - expected[name]).abs()
            same = (value == expected[name]) | (error < 1e-37)
            assert (same | (error <= tolerance * scale)).all(), f"{name}: {value}, exact {expected[name]}"


def check_gradient(found, x, target, options, upstream, base=2e-6):
    _, expected = exact(x, target, options, upstream)
    oracle.check_gradient(found, expected, tolerance_of(options, base))


def logits(classes, dtype, seed=0, offset=0.0) -> Tensor:
    """Gaps of the first class to the rest from -80 to 80."""
    x = torch.randn(ROWS, classes, generator=torch.Generator().manual_seed(classes + seed)) * 2 + offset
    x[:, 0] = x.amax(1) + torch.tensor([-80.0, 3.0, 80.0, 0.5])
    return x.to(dtype)


def labels(classes) -> Tensor:
    return torch.tensor([0, classes - 1, 0, classes // 2])


def probabilities(classes) -> Tensor:
    t = torch.randn(ROWS, classes, generator=torch.Generator().manual_seed(classes)).mul(3).softmax(1)
    t[0] = 0
    t[0, classes - 1] = 1
    return t


def weight(classes) -> Tensor:
    w = torch.rand(classes, generator=torch.Generator().manual_seed(classes)) + 0.1
    w[classes - 1] = 0
    return w


BY_ROW = torch.tensor([0.7, 1.9, 3.0, 0.31])
ONE_READ = {
    "temperature": lambda classes: Options(temperature=0.6),
    "temperatures of the rows": lambda classes: Options(temperature=BY_ROW),
    "weight": lambda classes: Options(weight(classes)),
    "z-loss": lambda classes: Options(z_loss=1e-2),
    "all of these": lambda classes: Options(weight(classes), temperature=BY_ROW, z_loss=1e-3),
}
SWEPT = {
    "smoothing": lambda classes: Options(label_smoothing=0.1),
    "weight and smoothing": lambda classes: Options(weight(classes), 0.3, 1.7),
    "softcap": lambda classes: Options(softcap=30.0),
    "all at once": lambda classes: Options(weight(classes), 0.2, BY_ROW, 20.0, 1e-3),
}
UPSTREAM = torch.tensor([0.7, -1.2, 0.4, 2.0]), torch.tensor([-0.3, 0.8, 1.5, 0.1])


def case(options, classes, turn):
    return {**ONE_READ, **SWEPT}[options](classes), DTYPES[turn % 3]


@pytest.mark.parametrize("classes", [1, 2, 5, 17, 33, 100, 1000])
def test_labels(classes, option_scores, option_grads):
    for turn, name in enumerate({**ONE_READ, **SWEPT}):
        options, dtype = case(name, classes, turn + classes)
        x = logits(classes, dtype, turn)
        check(option_scores(x, labels(classes), options), x, labels(classes), options)
        upstream = (UPSTREAM, (UPSTREAM[0], None), (None, UPSTREAM[1]))[turn % 3]
        found = option_grads(x, labels(classes), options, *upstream)
        check_gradient(found, x, labels(classes), options, upstream)
