"""The CUDA kernels of several draws run on the host, each in both orders of its threads, against NumPy in float64."""

import host_kernels
import numpy as np
import pytest
import random123
import torch
from torchassay.scores import NOISY_SIGNALS

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
# A row is shared by 8 lanes up to 256 columns, 16 up to 512, then 32, from 4097 on 256; a span is 64 columns a lane.
CLASSES = pytest.mark.parametrize("classes", [1, 2, 10, 33, 100, 257, 1000, 4096, 9000])
SEED = 2**40 + 17


@pytest.fixture(scope="session")
def kernels(host_program):
    return host_kernels.Draws(host_program("run_draws.cpp"))


def logits(classes: int, dtype: torch.dtype) -> torch.Tensor:
    """Easy and hard rows, one far from 0, one with masks; [7, C]."""
    x = torch.randn(7, classes, generator=torch.Generator().manual_seed(classes)) * 3
    for row, gap in ((1, 10.0), (2, 40.0), (3, 80.0)):
        x[row, row % classes] = gap
    x[4] += 1e4
    x[5, 1::2] = -torch.inf
    x[6] = 0.5
    return x.to(dtype)


def top_of(x: torch.Tensor) -> torch.Tensor:
    return x.float().amax(-1)


def noisy(x, draws, std, scale, row_id, seed) -> np.ndarray:
    """The noisy copies, float64 [T, N, C]."""
    wide = x.double().numpy() - top_of(x).double().numpy()[:, None]
    std, scale = (np.broadcast_to(np.asarray(n, dtype=np.float64), len(x))[:, None] for n in (std, scale))
    eps = [
        [random123.normals(seed, 0, int(row), t, x.shape[-1]) for row in row_id]  # tag 0: noise of logits
        for t in range(draws)
    ]
    return (wide + std * np.array(eps)) * scale


def entropy(p: np.ndarray) -> np.ndarray:
    """-sum p ln p along the last axis; from the other classes where one is nearly certain."""
    rest = np.sort(p, -1)[..., :-1]
    s = rest.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        top = np.where(s < 0.5, -(1 - s) * np.log1p(-s), -p.max(-1) * np.log(p.max(-1)))
        return top + np.where(rest > 0, -rest * np.log(rest), 0).sum(-1)


def exact(y: np.ndarray) -> dict[str, np.ndarray]:
    """The signals of draws [T, N, C]."""
    e = np.exp(y - y.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    noisy_entropy, predictive = entropy(p).mean(0), entropy(p.mean(0))
    return dict(zip(NOISY_SIGNALS, (noisy_entropy, predictive, np.maximum(predictive - noisy_entropy, 0)), strict=True))


def check(found, y):
    """1e-5 relative to float64; the difference, of what it is taken from."""
    expected = exact(y)
    for name, value in found.items():
        against = expected["predictive_entropy" if name == "mutual_information" else name]
        error = np.abs(value.double().numpy() - expected[name]) / np.where(against == 0, 1, against)
        assert error.max() <= 1e-5, f"{name} of row {error.argmax()}: error {error.max():.1e}"


@DTYPES
@CLASSES
def test_noise(classes, dtype, kernels):
    x = logits(classes, dtype)
    ids = torch.arange(len(x))
    std, scale = torch.linspace(0, 2, len(x)), torch.linspace(0.5, 1.25, len(x))
    found = kernels(x, top_of(x), 5, std, scale, ids, SEED)
    check(found, noisy(x, 5, std, scale, ids, SEED))
    if dtype == torch.float32:
        for draws in (1, 2):
            found = kernels(x, top_of(x), draws, 1.5, 0.75, None, -5)
            check(found, noisy(x, draws, 1.5, 0.75, ids, -5))


@DTYPES
@CLASSES
def test_ensembles(classes, dtype, kernels):
    members = torch.stack([logits(classes, dtype).roll(shift, 0) for shift in (0, 1, 0, 0, 2)])
    members[..., 5, :] = members[0, 5] + members[:, 0]  # the same masks, other values
    for draws in (1, 2, 5):
        check(kernels(members[:draws]), members[:draws].double().numpy())
