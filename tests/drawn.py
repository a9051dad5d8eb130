"""The ops behind the signals over several draws, called as `score` will."""

from __future__ import annotations

import functools
import importlib.util

import numpy as np
import oracle
import pytest
import random123
import torch
from torch import Tensor
from torchassay import ops
from torchassay.scores import BIT, NOISY_SIGNALS

DRAWS_IN_TRITON = importlib.util.find_spec("torchassay.triton_kernels.draw_scores") is not None


def has_kernels(place) -> None:
    if place.backend == "triton" and not DRAWS_IN_TRITON:
        pytest.skip("torchassay.triton_kernels.draw_scores is not there")


def top_of(x: Tensor, dim: int = -1) -> Tensor:
    """The largest logit of each row, in the dtype that is computed in."""
    wide = x if x.dtype == torch.float64 else x.float()
    return wide.amax(dim).reshape(-1)


def draw_scores(
    place,
    x: Tensor,
    *,
    std: Tensor | float = 0.5,
    scale: Tensor | float = 1.0,
    draws: int | None = None,  # None: an ensemble
    row_id: Tensor | None = None,
    seed: int | Tensor = 5,
    dim: int = -1,
    top: Tensor | None = None,
    names: tuple[str, ...] = NOISY_SIGNALS,
) -> dict[str, Tensor]:
    has_kernels(place)
    ensemble = draws is None
    if top is None and not ensemble:
        top = top_of(x, dim)

    def there(value: Tensor | None) -> Tensor | None:
        return value if value is None else value.to(place.device)

    std, scale = ((None, n) if isinstance(n, float) else (there(n), 0.0) for n in (std, scale))
    key = (there(seed), 0) if isinstance(seed, Tensor) else (None, seed)
    which = (there(row_id), *key, len(x) if ensemble else draws, dim % x.dim())
    asked = sum(BIT[name] for name in names)
    found = ops.draw_scores(there(x), there(top), *std, *scale, *which, asked, "test", place.backend)
    return dict(zip((name for name in NOISY_SIGNALS if name in names), (value.cpu() for value in found), strict=True))


def noisy(x: Tensor, eps: np.ndarray, std: Tensor | float, scale: Tensor | float) -> np.ndarray:
    """The draws [T, N, C] of rows [N, C] under the normals eps [T, N, C]."""
    wide = x.double().numpy()
    std, scale = (n.double().numpy()[:, None] if isinstance(n, Tensor) else n for n in (std, scale))
    return ((wide - wide.max(1, keepdims=True)) + std * eps) * scale


@functools.lru_cache(maxsize=4)  # the tests walk the places and dtypes of one case before the next
def exact_normals(seed: int, row_id: tuple[int, ...], draws: int, classes: int) -> np.ndarray:
    return np.array([[random123.normals(seed, 0, i, t, classes) for i in row_id] for t in range(draws)])


def check(place, found: dict[str, Tensor], y: np.ndarray, dtype: torch.dtype, tolerance: float = 1e-5) -> None:
    """Against float64 of the draws y [T, N, C]: relative, the mutual information relative to the entropy.

    float32 loses a class whose probability is below its smallest normal number, and with it less than 1.1e-36.
    """
    exact = oracle.draw_signals(y)
    lost = 0.0 if dtype == torch.float64 else 1.1e-36 * y.shape[-1]
    for name, value in found.items():
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32), name
        scale = exact["predictive_entropy" if name == "mutual_information" else name]
        off = (value.double() - exact[name]).abs()
        told = scale > 1e6 * lost
        if told.any():
            oracle.note(place, dtype, name, float((off / scale)[told].max()))
        allowed = tolerance * scale + lost
        assert (off <= allowed).all(), f"{name} is off by {off.tolist()}, allowed {allowed.tolist()}"
        assert (value >= 0).all(), name
