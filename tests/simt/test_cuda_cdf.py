"""The kernel behind History run on the host, against the reference: by a warp, by a block, and at every seam."""

import host_kernels
import pytest
import torch
from torchassay import reference

TIES = pytest.mark.parametrize("midrank", [False, True], ids=["strict", "midrank"])


@pytest.fixture(scope="session")
def cdf(host_program):
    return host_kernels.Cdf(host_program("run_cdf.cpp"))


def noise(count: int, seed: int = 1) -> torch.Tensor:
    """With ties, both zeros among them."""
    return (torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 4).round() / 4


def check(cdf, window, total, values, midrank):
    expected = reference.cdf(window, torch.tensor(total), values, midrank)
    torch.testing.assert_close(cdf(window, total, values, midrank), expected, rtol=0, atol=0, equal_nan=True)


@TIES
@pytest.mark.parametrize("capacity", [1, 2, 3, 4, 5, 127, 128, 131, 1000, 1024, 2048, 2049, 3073])
def test_windows(capacity, midrank, cdf):
    """Lanes, whole vectors and what is left of one; from 2049 on a block counts together."""
    for total in {0, 1, capacity - 1, capacity, capacity + 1, 2**40}:
        check(cdf, noise(capacity), total, noise(13, 2), midrank)


@TIES
@pytest.mark.parametrize("capacity", [100, 2100])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 65, 130])
def test_any_number_of_values(count, capacity, midrank, cdf):
    check(cdf, noise(capacity), capacity - 3, noise(count, 2), midrank)


@TIES
@pytest.mark.parametrize("capacity", [40, 2100])
def test_numbers_of_every_kind(capacity, midrank, cdf):
    kinds = torch.tensor([-torch.inf, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1e-40, 1.0, torch.inf])
    window = kinds.repeat(capacity // len(kinds) + 1)[:capacity].clone()
    check(cdf, window, capacity, torch.cat([kinds, torch.tensor([torch.nan])]), midrank)
    window[capacity // 2 :] = torch.nan  # not valid yet
    check(cdf, window, capacity // 2, torch.cat([kinds, torch.tensor([torch.nan])]), midrank)


@pytest.mark.parametrize("stride", [0, 1, 3])
def test_values_of_any_stride(stride, cdf):
    values = noise(60, 2).as_strided((19,), (stride,))
    check(cdf, noise(50), 50, values, False)
