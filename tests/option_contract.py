"""Rows and options that meet every pair of them, and how far from the truth of `option_oracle` a result may be."""

import functools

import rows
import torch
from option_oracle import Case

TINY = {torch.float32: 1e-35, torch.float64: 1e-150}  # below, parts and squares may have been flushed to 0


@functools.lru_cache(maxsize=2)
def batch(classes, dtype):
    """Gaps to 80, offsets of 1e4, masked classes, ties, and rows from uniform to spread out; targets, two ignored."""
    parts = []
    for family in ("gaps", "offsets", "masked", "ties", "random"):
        x, y, _ = rows.case(family, classes, dtype)
        at = torch.linspace(0, len(x) - 1, 3 if classes >= 1000 else 9).round().long()
        parts.append((x[at], y[at]))
    x, y = (torch.cat(list(part)) for part in zip(*parts, strict=True))
    y[3] = y[7] = -100
    return x, y


def steps(count):
    """Upstream gradients that every dtype holds."""
    return (torch.arange(count) * 5 % 13 - 4) / 4


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def cases(classes, count, dtype):
    """A sample of the product of the options in which every pair of them meets, and each alone."""
    w = torch.linspace(0.2, 2.2, classes, dtype=wide(dtype))
    w[classes // 2] = 0 if classes > 2 else 1
    by_row = torch.linspace(0.4, 3.0, count, dtype=wide(dtype))
    return {
        "temperature": Case(temperature=0.7),
        "temperature of each row": Case(temperature=by_row),
        "weight": Case(weight=w),
        "z_loss": Case(z_loss=1e-4),
        "smoothing": Case(label_smoothing=0.1),
        "softcap": Case(softcap=30.0),
        "weight, smoothing": Case(weight=w, label_smoothing=0.2),
        "temperature, weight, z_loss": Case(weight=w, temperature=by_row, z_loss=1e-4),
        "temperature, smoothing, z_loss": Case(label_smoothing=0.3, temperature=by_row, z_loss=1e-4),
        "temperature, weight, smoothing": Case(weight=w, label_smoothing=0.1, temperature=1.7),
        "softcap, temperature, z_loss": Case(softcap=20.0, temperature=by_row, z_loss=1e-4),
        "softcap, weight": Case(softcap=5.0, weight=w),
        "softcap, smoothing": Case(softcap=50.0, label_smoothing=0.1, temperature=0.8),
        "all": Case(weight=w, label_smoothing=0.1, temperature=by_row, softcap=10.0, z_loss=1e-4),
        "all smoothed away": Case(label_smoothing=1.0, weight=w),
    }


def tolerance(case, dtype):
    cap = 0.0 if case.softcap is None else case.softcap / float(torch.as_tensor(case.temperature).min())
    return 1e-13 + 2.0**-51 * cap if dtype == torch.float64 else 1e-6 + 2.0**-22 * cap


def check(name, found, truth, case, x, allowed):
    """Every signal to a relative error, where something is left of a difference to the size of what it is one of."""
    classes = x.shape[1]
    tiny = classes * TINY[found.loss.dtype]
    top = truth.signals["lse"].abs() + x.double().amax(1).abs() / torch.as_tensor(case.temperature).double()
    miss = 1.0
    scale = {
        "lse": top,
        "margin": truth.signals["confidence"],
        "target_margin": truth.signals["confidence"],
        "grad_norm": truth.parts,  # p may come near to the target
    }
    for signal in found.signals:
        value, exact = getattr(found, signal), truth.signals[signal]
        if signal == "prediction":
            assert torch.equal(value, exact), (name, signal)
            continue
        limit = allowed * torch.maximum(exact.abs(), scale.get(signal, exact.abs()) if classes > 1 else exact.abs())
        if signal == "lse":
            limit = allowed * top
        if signal == "grad_norm" and case.label_smoothing and case.weight is None and classes > 1:
            limit = limit + 1e-6 + 4e-4 * miss / (classes - 1) ** 0.5  # the contract of the centred form
        if signal == "grad_norm" and case.softcap:  # squares that underflow, where the cap leaves the top no slope
            limit = limit + (classes * torch.finfo(value.dtype).smallest_normal) ** 0.5
        error = (value.double() - exact).abs()
        same = (value.double() == exact) | (error <= tiny)  # infinities; flushed
        worst = torch.where(same, 0.0, error / limit.clamp(min=tiny)).nan_to_num(nan=torch.inf)
        at = int(worst.argmax())
        assert worst[at] <= 1, (name, signal, at, float(value[at]), float(exact[at]), float(worst[at]))


def check_gradient(name, found, exact, parts, allowed):
    rounding = torch.finfo(found.dtype).eps / 2 if found.dtype in (torch.bfloat16, torch.float16) else 0.0
    smallest = 2.0**-24 if found.dtype == torch.float16 else TINY[wide(found.dtype)]
    limit = allowed * parts[:, None] + rounding * exact.abs() * 1.01 + smallest
    error = (found.double() - exact).abs()
    assert (error <= limit).all(), (name, float((error / limit).nan_to_num(nan=torch.inf).max()))
