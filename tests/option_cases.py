"""Rows, targets and options that are hard on kernels, and what the definitions make of them."""

from __future__ import annotations

import host_kernels
import numpy as np
import torch

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CLASSES = (1, 2, 5, 17, 33, 100, 1000, 1025, 9000, 40000)
OF_LABELS = tuple(name for name in host_kernels.SLOTS if name != "stats")
OF_PROBABILITIES = tuple(name for name in OF_LABELS if name != "target_margin")


def noise(*shape: int, seed: int = 1, scale: float = 4.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def weights(classes: int) -> torch.Tensor:
    w = torch.rand(classes, generator=torch.Generator().manual_seed(3)) * 2
    w[1::5] = 0
    return w


def temperatures(count: int) -> torch.Tensor:
    return torch.exp(noise(count, seed=5, scale=0.6))


def batch(classes: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets -80 to 80 above the rest, common offsets of 1e4, flat and spread rows, ties for the top, classes at -inf
    (but never the target)."""
    count = 12 if classes < 2000 else 6
    x = noise(count, classes, seed=classes, scale=1.5).double()
    y = torch.arange(count) * 7919 % classes
    rows = torch.arange(count)
    rest = x.scatter(1, y[:, None], -torch.inf).amax(1).nan_to_num(neginf=0.0)
    gap = torch.tensor([80.0, -20.0, 20.0, 3.0, 0.0, -80.0, 8.0, -3.0, 0.0, 40.0, -1.0, 1.0])[:count]
    x[rows, y] = rest + gap
    x[3] += 1e4
    x[1] -= 1e4
    masked = torch.arange(classes) % 3 == 0
    masked[y[2]] = False
    x[2, masked] = -torch.inf
    return x.to(dtype), y


def probabilities(classes: int, count: int) -> torch.Tensor:
    t = torch.softmax(noise(count, classes, seed=9, scale=2.0), 1)
    t[1::3] = torch.nn.functional.one_hot(torch.arange(len(t[1::3])) % classes, classes).float()
    return t


class Exact:
    """The definitions of torchassay.options, in extended precision with 1 - p of the top class as a sum."""

    def __init__(self, x, target, weight=None, label_smoothing=0.0, temperature=1.0, softcap=None, z_loss=0.0):
        x = x.double().numpy().astype(np.longdouble)
        count, classes = x.shape
        self.rows, self.k = np.arange(count), x.argmax(1)
        by_row = isinstance(temperature, torch.Tensor)
        self.t = temperature.numpy().astype(np.longdouble)[:, None] if by_row else np.longdouble(temperature)
        slope = np.ones_like(x)
        if softcap is not None:
            finite = np.where(np.isinf(x), 0, x) / softcap
            x, slope = (
                np.where(np.isinf(x), x, softcap * np.tanh(finite)),
                np.where(np.isinf(x), 0, 1 / np.cosh(finite) ** 2),
            )
        logits = x / self.t
        self.m = logits[self.rows, self.k]
        self.a = self.m[:, None] - logits
        e = np.exp(-self.a)
        e[self.rows, self.k] = 0
        self.r = e.sum(1)
        self.c = 1 / (1 + self.r)
        self.p = e * self.c[:, None]
        self.p[self.rows, self.k] = self.c
        self.lse = self.m + np.log1p(self.r)
        self.mu = (self.p * np.where(self.p == 0, 0, self.a)).sum(1)
        w = np.ones(classes) if weight is None else weight.numpy()
        if target.is_floating_point():
            self.b = w * (label_smoothing / classes + (1 - label_smoothing) * target.numpy().astype(np.longdouble))
        else:
            self.b = np.broadcast_to(w * np.longdouble(label_smoothing) / classes, x.shape).copy()
            self.b[self.rows, target.numpy()] += (1 - label_smoothing) * w[target.numpy()]
        extra = 2 * z_loss * self.lse
        self.beta = self.b.sum(1) + extra
        self.e = self.beta[:, None] * self.p - self.b
        others = self.b.copy()
        others[self.rows, self.k] = 0
        self.e[self.rows, self.k] = others.sum(1) + extra - self.beta * self.r * self.c
        self.slope = slope / self.t
        far = np.where(self.b == 0, 0, self.a) + np.log1p(self.r)[:, None]
        self.loss = (self.b * far).sum(1) + z_loss * self.lse**2
        self.target = target

    def signals(self) -> dict[str, np.ndarray]:
        found = {
            "loss": self.loss,
            "entropy": np.log1p(self.r) + self.mu,
            "grad_norm": np.sqrt(((self.slope * self.e) ** 2).sum(1)),
            "lse": self.lse,
            "confidence": self.c,
            "least_confidence": self.r * self.c,
            "prediction": self.k,
        }
        missed = 1 - self.p
        missed[self.rows, self.k] = self.r * self.c
        found["gini"] = (self.p * missed).sum(1)
        second = self.a.copy()
        second[self.rows, self.k] = np.inf
        found["margin"] = -np.expm1(-second.min(1)) * self.c
        if not self.target.is_floating_point():
            y = self.target.numpy()
            found["target_margin"] = np.where(y == self.k, found["margin"], np.expm1(-self.a[self.rows, y]) * self.c)
        return found

    def subtracted(self) -> np.ndarray:
        """The norm of what the entries beta p_j - b_j subtract from each other: it stays where p meets b."""
        both = np.minimum(np.abs(self.beta[:, None] * self.p), self.b)
        both[self.rows, self.k] = 0
        return np.sqrt(((self.slope * both) ** 2).sum(1))

    def grads(self, gL, gH) -> np.ndarray:
        a = np.where(self.p == 0, 0, self.a) - self.mu[:, None]
        gL, gH = (0.0 if g is None else g.double().numpy()[:, None] for g in (gL, gH))
        return self.slope * (gL * self.e + gH * self.p * a)


def check(found: dict, x: torch.Tensor, target: torch.Tensor, options: dict) -> None:
    """What was found, within the contract of GPUs."""
    exact = Exact(x, target, **options)
    softcap, smoothing = options.get("softcap"), options.get("label_smoothing", 0.0)
    uniform = smoothing > 0 and not target.is_floating_point() and options.get("weight") is None and softcap is None
    tolerance = 2e-6 + (0 if softcap is None else 2.0**-23 * softcap / np.min(exact.t))
    signals = exact.signals()
    for name in found:
        value, got = signals[name], found[name].double().numpy()
        if name == "prediction":
            assert np.array_equal(found[name].numpy(), value)
            continue
        allowed = tolerance * np.abs(value) + 1e-36
        if softcap is not None and "margin" in name:  # a difference of two capped logits
            allowed = allowed + tolerance * exact.c
        if name == "lse":  # where its parts cancel
            allowed = tolerance * np.maximum(np.abs(value), np.abs(exact.m))
        if name == "grad_norm":
            allowed = allowed + 2.0**-21 * exact.subtracted()
        if name == "grad_norm" and uniform:
            miss = 1 - exact.p[exact.rows, target.numpy()]
            allowed = (
                2e-6
                + 2e-6 * value
                + 4e-4 * np.maximum(1, np.abs(exact.beta)) * miss / np.sqrt(max(x.shape[1] - 1, 1)) / np.ravel(exact.t)
            )
        bad = ~((np.abs(got - value) <= allowed) | (got == value))
        assert not bad.any(), f"{name} of rows {np.flatnonzero(bad)} under {[*options]}: {got[bad]}, exact {value[bad]}"


def case(name: str, classes: int, count: int) -> dict:
    w, t = weights(classes), temperatures(count)
    return {
        "temperature": {"temperature": 0.7},
        "temperatures": {"temperature": t},
        "weight": {"weight": w, "temperature": 1.6},
        "z_loss": {"z_loss": 1e-3, "weight": w, "temperature": t},
        "smoothing": {"label_smoothing": 0.1},
        "smoothing and all": {"label_smoothing": 0.2, "weight": w, "temperature": t, "z_loss": 1e-3},
        "smoothing, z_loss": {"label_smoothing": 0.1, "temperature": 1.3, "z_loss": 1e-2},
        "softcap": {"softcap": 30.0},
        "softcap and all": {"softcap": 12.0, "label_smoothing": 0.1, "weight": w, "temperature": t, "z_loss": 1e-3},
        "nothing": {},
    }[name]


NAMES = ["temperature", "temperatures", "weight", "z_loss", "smoothing", "smoothing, z_loss", "smoothing and all"]
NAMES += ["softcap", "softcap and all"]


def rows_of(options: dict, at: torch.Tensor) -> dict:
    """The options of some rows."""
    return {k: v[at] if k == "temperature" and isinstance(v, torch.Tensor) else v for k, v in options.items()}


def labelled(name: str, classes: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """Rows, targets and options; without the row that has classes at -inf where those would make the loss infinite."""
    x, y = batch(classes, dtype)
    options = case(name, classes, len(x))
    if options.get("label_smoothing"):
        at = torch.arange(len(x)) != 2
        return x[at], y[at], rows_of(options, at)
    return x, y, options


def shared_out(names: list[str], classes: int, dtype: torch.dtype) -> list[str]:
    """All of them for some rows of each kernel in float32; else a third, in turn."""
    if dtype == torch.float32 and classes in (33, 1000, 1025):
        return names
    turn = CLASSES.index(classes) + DTYPES.index(dtype)
    return [name for i, name in enumerate(names) if (i + turn) % 3 == 0]
