"""The truth about losses under options, written apart from the package, in extended precision."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Case(NamedTuple):
    """The options of a call; weight [C], temperature a number or [N]."""

    weight: Tensor | None = None
    label_smoothing: float = 0.0
    temperature: float | Tensor = 1.0
    softcap: float | None = None
    z_loss: float = 0.0

    def given(self) -> dict:
        """As keywords, what is at its default left out."""
        return {name: value for name, value in self._asdict().items() if value is not Case._field_defaults[name]}


class Truth(NamedTuple):
    """float64; the gradients by the logits are those of every row's loss and entropy, [N, C]."""

    signals: dict[str, Tensor]
    grad_loss: Tensor
    grad_entropy: Tensor
    parts: Tensor  # [N]: the norm of slope / temperature (beta p + b), of which the loss's gradient is a difference
    mixed: Tensor  # [N]: the norm of slope / temperature p (|a| + mu), likewise

    def gradient(self, upstream_loss: Tensor | None, upstream_entropy: Tensor | None) -> Tensor:
        """[N, C], for upstreams [N] of the loss and the entropy."""
        found = torch.zeros_like(self.grad_entropy)
        for upstream, grad in ((upstream_loss, self.grad_loss), (upstream_entropy, self.grad_entropy)):
            found += 0 if upstream is None else upstream.detach().cpu().double()[:, None] * grad
        return found


def _wide(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy().astype(np.longdouble)


def _narrow(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float64))


def truth(logits: Tensor, target: Tensor | None, case: Case, ignore_index: int = -100) -> Truth:
    """Rows [N, C], labels [N] or probabilities [N, C]."""
    x = _wide(logits)
    n, classes = x.shape
    rows = np.arange(n)
    T = _wide(torch.as_tensor(case.temperature, dtype=torch.float64)).reshape(-1, 1)
    v, slope = x, np.ones_like(x)
    if case.softcap is not None:
        cap = np.longdouble(case.softcap)
        v = np.where(np.isinf(x), x, cap * np.tanh(x / cap))  # a masked class stays masked
        slope = np.cosh(np.clip(x / cap, -5000, 5000)) ** -2
    k = x.argmax(1)
    a = (v[rows, k, None] - v) / T
    e = np.exp(-a)
    e[rows, k] = 0
    r = e.sum(1)
    c = 1 / (1 + r)
    log_c = np.log1p(r)
    lse = v[rows, k] / T[:, 0] + log_c
    p = e * c[:, None]
    p[rows, k] = c
    finite_a = np.where(p == 0, 0, a)
    finite_a[rows, k] = 0
    mu = (p * finite_a).sum(1)
    others = a.copy()
    others[rows, k] = np.inf
    margin = -np.expm1(-others.min(1)) * c
    found = {
        "entropy": log_c + mu,
        "lse": lse,
        "confidence": c,
        "least_confidence": r * c,
        "margin": margin,
        "gini": r * c * c + (e * c[:, None] * (1 - e * c[:, None])).sum(1),
        "prediction": k,
    }
    grad_entropy = slope / T * p * (finite_a - mu[:, None])
    mixed = np.sqrt(((slope / T * p * (np.abs(finite_a) + mu[:, None])) ** 2).sum(1))
    grad_loss, parts = np.zeros_like(x), np.zeros(n)
    if target is not None:
        w = np.ones(classes, np.longdouble) if case.weight is None else _wide(case.weight)
        smoothing = np.longdouble(case.label_smoothing)
        b = np.tile(smoothing / classes * w, (n, 1))
        ignored = np.zeros(n, bool)
        a[rows, k] = 0
        if target.is_floating_point():
            b += (1 - smoothing) * w * _wide(target)
            terms = b * a
        else:
            y = target.cpu().numpy().astype(np.int64)
            ignored = y == ignore_index
            y = np.where(ignored, 0, y)
            b[rows, y] += (1 - smoothing) * w[y]
            terms = np.where(b == 0, 0, b * np.where(b == 0, 0, a))
            found["target_margin"] = np.where(y == k, margin, np.expm1(-a[rows, y]) * c)
        without = b.copy()
        without[rows, k] = 0
        extra = 2 * np.longdouble(case.z_loss) * lse
        beta, rest = b.sum(1) + extra, without.sum(1) + extra
        found["loss"] = b.sum(1) * log_c + terms.sum(1) + np.longdouble(case.z_loss) * lse**2
        entry = beta[:, None] * p - b
        entry[rows, k] = rest - beta * (r * c)
        grad_loss = np.where(ignored[:, None], 0, slope / T * entry)
        found["grad_norm"] = np.sqrt((grad_loss**2).sum(1))
        parts = np.sqrt(((slope / T * (np.abs(beta)[:, None] * p + b)) ** 2).sum(1))
        for name in ("loss", "target_margin"):
            if name in found:
                found[name] = np.where(ignored, 0, found[name])
    signals = {name: _narrow(value) for name, value in found.items() if name != "prediction"}
    signals["prediction"] = torch.from_numpy(found["prediction"])
    return Truth(signals, _narrow(grad_loss), _narrow(grad_entropy), _narrow(parts), _narrow(mixed))
