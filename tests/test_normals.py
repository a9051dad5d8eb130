"""The normal and uniform numbers of rows and columns, in every backend. The CUDA kernel on the host: simt/."""

import functools
import math

import drawn
import numpy as np
import pytest
import random123
import torch
from torchassay import ops
from torchassay.backends import native
from torchassay.philox import Purpose

ROWS = torch.tensor(random123.ROWS)
ISAS = native.cpu_isas().split(",") if native else []


def numbers(place, row_id, seed=5, purpose=Purpose.LOGIT_NOISE, draw=0, columns=201, uniform=False):
    drawn.has_kernels(place)
    key = (seed, 0) if isinstance(seed, torch.Tensor) else (None, seed)
    found = ops.normals(row_id.to(place.device), *key, purpose, draw, columns, uniform, place.backend)
    assert found.shape == (len(row_id), columns) and found.dtype == torch.float32
    return found.cpu()


@pytest.fixture(params=ISAS)
def isa(request):
    before = native.cpu_isa()
    native.set_cpu_isa(request.param)
    yield request.param
    native.set_cpu_isa(before)


@pytest.mark.parametrize("seed", random123.SEEDS)
def test_against_numpy(seed, place):
    for draw, purpose in ((0, Purpose.LOGIT_NOISE), (2**32 - 1, Purpose.FEATURE_NOISE)):
        where = [(seed, purpose, row, draw, 201) for row in random123.ROWS]
        exact = np.array([random123.normals(*at) for at in where])
        found = numbers(place, ROWS, seed, purpose, draw)
        assert np.abs(found.double().numpy() - exact).max() <= 1e-6
        exact = np.array([random123.column_uniforms(*at) for at in where])
        found = numbers(place, ROWS, seed, purpose, draw, uniform=True)
        assert np.array_equal(found.double().numpy(), exact)


@functools.cache
def a_million(uniform):
    return ops.normals(torch.arange(1000) - 500, None, 3, 0, 1, 1000, uniform, "reference")


@pytest.mark.skipif(native is None, reason="the C++ extension is not built")
def test_every_instruction_set(isa):
    """A million numbers, down to the rarest words."""
    row_id = torch.arange(1000) - 500
    for columns in (1, 7, 8, 31, 33, 1000):
        found = ops.normals(row_id, None, 3, 0, 1, columns, False, "native")
        assert (found - a_million(False)[:, :columns]).abs().max() <= 1e-6
        found = ops.normals(row_id, None, 3, 0, 1, columns, True, "native")
        assert torch.equal(found, a_million(True)[:, :columns])


def test_a_number_depends_on_its_row_and_column_alone(place, threads):
    row_id = torch.arange(7) + 2**33
    whole = numbers(place, row_id, columns=70)
    for columns in (1, 8, 31, 32, 33, 64, 69):
        assert torch.equal(numbers(place, row_id, columns=columns), whole[:, :columns])
    assert torch.equal(numbers(place, row_id[::2], columns=70), whole[::2])
    assert torch.equal(numbers(place, row_id[3:4].expand(5), columns=70), whole[3:4].expand(5, 70))
    assert torch.equal(numbers(place, row_id, torch.tensor(5, device=place.device), columns=70), whole)
    threads(1)
    assert torch.equal(numbers(place, row_id, columns=70), whole)


def test_nothing_else_is_the_same(place):
    """Another seed, purpose, draw or row gives other numbers."""
    row_id = torch.tensor([4])
    whole = numbers(place, row_id, columns=40)
    for other in ({"seed": 6}, {"seed": 5 + 2**32}, {"purpose": 1}, {"draw": 1}, {"row_id": torch.tensor([4 + 2**32])}):
        assert (numbers(place, **{"row_id": row_id, "columns": 40} | other) != whole).all()


def test_no_rows_and_no_columns(place):
    assert numbers(place, ROWS[:0]).numel() == 0
    assert numbers(place, ROWS, columns=0).shape == (len(ROWS), 0)


@pytest.mark.parametrize("seed", [0, 2**63 - 5])
def test_distribution(seed, fast_place):
    row_id = torch.arange(200 if fast_place.backend == "reference" else 1000)  # a million where that takes no time
    z = numbers(fast_place, row_id, seed, columns=1000).double().numpy()
    n = z.size
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs((z**2).mean() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)
    for lag in (1, 8, 16, 24, 32):  # neighbours, and the columns that share a block
        assert abs((z[:, lag:] * z[:, :-lag]).mean()) < 4.5 / math.sqrt(n)
    assert abs((z[1:] * z[:-1]).mean()) < 4 / math.sqrt(n)
    other = numbers(fast_place, row_id, seed, draw=1, columns=1000).double().numpy()
    assert abs((z * other).mean()) < 4 / math.sqrt(n)
    below = np.array([math.erf(value) for value in np.sort(z, None) / math.sqrt(2)]) / 2 + 0.5
    steps = np.arange(n + 1) / n
    distance = max((steps[1:] - below).max(), (below - steps[:-1]).max())
    assert distance < 1.95 / math.sqrt(n)  # Kolmogorov and Smirnov, one in a thousand


@pytest.mark.filterwarnings("ignore::UserWarning")  # opcheck compiles through every deprecated corner of torch
def test_op():
    for seed in (None, torch.tensor(7)):
        for backend in ("native", "reference"):
            torch.library.opcheck(ops.normals, (ROWS, seed, 3, 0, 4, 33, False, backend))
