"""The truth that the tests compare with, written apart from the package.

`signals` and `grads` work in extended precision (at least float64) and keep the top class out of every sum, so they
hold their digits however confident a row is; float64 eager, which subtracts p_y from 1, does not beyond a gap of 30.
`mp_signals` is the textbook definition with 320 decimal digits, and checks the other two.
"""

from __future__ import annotations

import mpmath
import numpy as np
import torch
from torch import Tensor

FLOAT_SIGNALS = (
    *("loss", "entropy", "grad_norm", "lse"),
    *("confidence", "least_confidence", "margin", "gini", "target_margin"),
)
TINY = {torch.float32: 1e-37, torch.float64: 1e-300}  # below, a result may be flushed to 0
WORST: dict[tuple[str, str, str], float] = {}  # (place, dtype, signal): the worst relative error of the session


def _wide(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy().astype(np.longdouble)


def _narrow(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float64))


def _parts(x: np.ndarray):
    """Row numbers; top class and logit; a = m - x and e^-a, 0 at the top and at masked classes; p of the top."""
    rows = np.arange(len(x))
    k = x.argmax(1)
    m = x[rows, k]
    a = m[:, None] - x
    w = np.exp(-a)
    w[rows, k] = 0
    a[w == 0] = 0
    return rows, k, m, a, w, 1 / (1 + w.sum(1))


def signals(logits: Tensor, target: Tensor | None = None, ignore_index: int = -100) -> dict[str, Tensor]:
    """Every signal of finite rows [N, C] (classes at -inf allowed), float64; ``prediction`` int64."""
    x = _wide(logits)
    rows, k, m, a, w, c = _parts(x)
    r = w.sum(1)
    x_rest = x.copy()
    x_rest[rows, k] = -np.inf
    found = {
        "entropy": np.log1p(r) + (w * a).sum(1) * c,
        "lse": m + np.log1p(r),
        "confidence": c,
        "least_confidence": r * c,
        "margin": -np.expm1(x_rest.max(1) - m) * c,
        "gini": r * c * c + (w * c[:, None] * (1 - w * c[:, None])).sum(1),  # sum p (1 - p), of the top 1 - p = r c
    }
    if target is not None:
        y = target.cpu().numpy().astype(np.int64)
        ignored = y == ignore_index
        y = np.where(ignored, 0, y)
        others = w.copy()
        others[rows, k] = 1
        others[rows, y] = 0
        x_y = x[rows, y]
        x_others = x.copy()
        x_others[rows, y] = -np.inf
        rival = x_others.max(1)
        lead = np.where(x_y == rival, 0, x_y - np.where(np.isneginf(x_y), 0, rival))
        larger = np.exp(np.maximum(x_y, rival) - m) * c
        found["loss"] = (m - x_y) + np.log1p(r)
        found["grad_norm"] = np.sqrt(others.sum(1) ** 2 + (others**2).sum(1)) * c
        found["target_margin"] = larger * np.sign(lead) * -np.expm1(-np.abs(lead))
        for name in ("loss", "grad_norm", "target_margin"):
            found[name][ignored] = 0
    return {name: _narrow(value) for name, value in found.items()} | {"prediction": torch.from_numpy(k)}


def draw_signals(y: np.ndarray) -> dict[str, Tensor]:
    """The signals over the draws [T, N, C] of finite rows (classes at -inf allowed), float64."""
    entropies, mean = [], 0
    for x in y.astype(np.longdouble):
        rows, k, _, a, w, c = _parts(x)
        entropies.append(np.log1p(w.sum(1)) + (w * a).sum(1) * c)
        w[rows, k] = 1
        mean = mean + w * c[:, None] / len(y)
    rows, k = np.arange(len(mean)), mean.argmax(1)
    mean[rows, k] = 0
    s = mean.sum(1)
    mixture = -(1 - s) * np.log1p(-s) - (mean * np.log(np.where(mean > 0, mean, 1))).sum(1)
    noisy = sum(entropies) / len(y)
    found = {"noisy_entropy": noisy, "predictive_entropy": mixture, "mutual_information": mixture - noisy}
    return {name: _narrow(value) for name, value in found.items()}


def grads(
    logits: Tensor,
    target: Tensor | None,
    grad_loss: Tensor | None,
    grad_entropy: Tensor | None,
    ignore_index: int = -100,
) -> Tensor:
    """d (sum grad_loss loss + grad_entropy entropy) / d logits, [N, C] float64; ignored rows have no loss."""
    x = _wide(logits)
    rows, k, _, a, w, c = _parts(x)
    p = w * c[:, None]
    p[rows, k] = c
    found = np.zeros_like(x)
    if grad_loss is not None:
        y = target.cpu().numpy().astype(np.int64)
        ignored = y == ignore_index
        y = np.where(ignored, 0, y)
        others = w.copy()
        others[rows, k] = 1
        others[rows, y] = 0
        dloss = p.copy()
        dloss[rows, y] = -others.sum(1) * c
        found += np.where(ignored, 0, _wide(grad_loss))[:, None] * dloss
    if grad_entropy is not None:
        mu = (p * a).sum(1)[:, None]
        found += _wide(grad_entropy)[:, None] * p * (a - mu)
    return _narrow(found)


def subtracted_norm(logits: Tensor) -> Tensor:
    """mu ||p|| of every row: the size of what the entropy's gradient p_j (a_j - mu) subtracts from p_j a_j."""
    _, k, _, a, w, c = _parts(_wide(logits))
    p = w * c[:, None]
    p[np.arange(len(p)), k] = c
    return _narrow((p * a).sum(1) * np.sqrt((p**2).sum(1)))


def mp_signals(row: Tensor, y: int) -> dict[str, mpmath.mpf]:
    """The signals of one row [C] by their textbook definitions, with 320 decimal digits."""
    with mpmath.workdps(320):
        x = [mpmath.mpf(value) for value in row.double().tolist()]
        total = mpmath.fsum(mpmath.exp(value) for value in x)
        return {"lse": mpmath.log(total)} | of_probabilities([mpmath.exp(value) / total for value in x], y)


def of_probabilities(p: list[mpmath.mpf], y: int) -> dict[str, mpmath.mpf]:
    """The signals of a row's probabilities by their textbook definitions, with the digits that mpmath is set to."""
    ranked = [*sorted(p, reverse=True), mpmath.mpf(0)]
    others = p[:y] + p[y + 1 :]
    return {
        "loss": -mpmath.log(p[y]) if p[y] else mpmath.inf,
        "entropy": -mpmath.fsum(q * mpmath.log(q) for q in p if q),
        "grad_norm": mpmath.sqrt(mpmath.fsum(q**2 for q in others) + (1 - p[y]) ** 2),
        "confidence": ranked[0],
        "least_confidence": 1 - ranked[0],
        "margin": ranked[0] - ranked[1],
        "gini": 1 - mpmath.fsum(q**2 for q in p),
        "target_margin": p[y] - max(others, default=mpmath.mpf(0)),
    }


def relative_errors(name: str, found: Tensor, exact: Tensor, logits: Tensor | None = None) -> Tensor:
    """|found - exact| / |exact| of every row; 0 where both are the same infinity, 0 or too small to be told from 0."""
    dtype = found.dtype
    found = found.detach().cpu().double()
    scale = exact.abs()
    if name == "lse" and logits is not None:  # where m + log1p(r) crosses 0 its rounding is relative to its parts
        scale = torch.maximum(scale, logits.detach().cpu().double().amax(-1).abs())
    error = (found - exact).abs() / scale
    same = (found == exact) | ((exact.abs() < TINY[dtype]) & (found.abs() <= TINY[dtype]))
    return torch.where(same, 0, error).nan_to_num(nan=torch.inf)


def check(place, found, exact: dict[str, Tensor], logits: Tensor, tolerance: float | None = None) -> None:
    """Every float signal in ``found`` has at most this relative error (default: the contract), ``prediction`` none."""
    if tolerance is None:
        tolerance = 1e-14 if logits.dtype == torch.float64 else place.tolerance
    for name in found.signals:
        value = getattr(found, name)
        if name == "prediction":
            assert torch.equal(value.cpu(), exact[name]), name
            continue
        assert value.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32), name
        error = relative_errors(name, value, exact[name], logits)
        if not error.numel():
            continue
        worst = int(error.argmax())
        note(place, logits.dtype, name, float(error[worst]))
        got = f"{value[worst].item():.9g}, exact {exact[name][worst].item():.9g}"
        assert error[worst] <= tolerance, f"{name} of row {worst}: {got}, relative error {error[worst]:.2e}"


def check_but_for_underflow(place, found, exact: dict[str, Tensor], logits: Tensor) -> None:
    """`check`, but an e^-gap below the smallest normal number may be 0, and with it what the gap multiplies."""
    tiny = logits.shape[1] * (750 * 2.3e-308 if logits.dtype == torch.float64 else 110 * 1.2e-38)
    for name in FLOAT_SIGNALS:
        value = getattr(found, name).cpu().double()
        exact[name] = torch.where((exact[name].abs() < tiny) & (value.abs() < tiny), value, exact[name])
    check(place, found, exact, logits)


def check_gradient(found: Tensor, exact: Tensor, tolerance: float) -> None:
    """Within the tolerance of the row's norm, and one rounding to the dtype away."""
    rounding = 0 if found.dtype == torch.float32 else torch.finfo(found.dtype).eps / 2
    smallest = torch.finfo(found.dtype).smallest_normal * torch.finfo(found.dtype).eps
    allowed = tolerance * exact.norm(dim=1, keepdim=True) + rounding * exact.abs() + smallest
    error = (found.double() - exact).abs()
    assert (error <= allowed).all(), f"{(error / allowed).max():.2f} of what is allowed"


def note(place, dtype: torch.dtype, name: str, error: float) -> None:
    key = str(place), str(dtype).removeprefix("torch."), name
    WORST[key] = max(WORST.get(key, 0.0), error)
