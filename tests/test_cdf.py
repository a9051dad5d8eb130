"""The op behind History's exact mode, against counting in NumPy: the same bits from every backend."""

import numpy as np
import pytest
import torch
from torchassay import ops
from torchassay.backends import native

FLOATS = np.array(
    [-np.inf, -3e38, -1.0, -1e-38, -1e-45, -0.0, 0.0, 1e-45, 1e-40, 1e-38, 1.0, 1.5, 3e38, np.inf], np.float32
)
TIES = pytest.mark.parametrize("midrank", [False, True], ids=["strict", "midrank"])


def counted(window: np.ndarray, total: int, values: np.ndarray, midrank: bool) -> np.ndarray:
    """The definition, one value after the other."""
    entries = window[:total]
    found = np.ones(len(values), np.float32)
    for i, value in enumerate(values):
        if len(entries):
            below, equal = np.sum(entries < value), np.sum(entries == value)
            half = 2 if midrank else 1
            found[i] = np.float32(half * below + midrank * equal) / np.float32(half * len(entries))
    found[np.isnan(values)] = np.nan
    return found


def check(place, window, total, values, midrank):
    window, values = (torch.as_tensor(x, dtype=torch.float32) for x in (window, values))
    before = window.clone(), values.clone()
    total = torch.tensor(total, device=place.device)
    found = ops.cdf(window.to(place.device), total, values.to(place.device), midrank, place.backend)
    expected = torch.from_numpy(counted(window.numpy(), int(total), values.numpy(), midrank))
    assert found.dtype == torch.float32 and found.device.type == place.device
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0, equal_nan=True)
    for tensor, copy in zip((window, values), before, strict=True):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0, equal_nan=True)


def drawn(count: int, seed: int, ties: bool = False) -> torch.Tensor:
    """Like losses: most below 1, a few large; a third of ``ties`` repeat."""
    x = torch.rand(count, generator=torch.Generator().manual_seed(seed)).clamp(1e-7).log().neg()
    return (x * 8).round() / 8 if ties else x


@TIES
@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 63, 100, 1000, 1024, 2049])
def test_like_counting(capacity, midrank, place):
    window = drawn(capacity, 1, ties=True)
    values = torch.cat([drawn(20, 2, ties=True), window[:9], drawn(12, 3)])
    for total in {0, 1, capacity - 1, capacity, capacity + 1, 2**40}:
        check(place, window, total, values, midrank)


@TIES
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 16, 17, 64, 65, 129])
def test_any_number_of_values(count, midrank, place):
    check(place, drawn(100, 1, ties=True), 77, drawn(count, 2, ties=True), midrank)


@TIES
@pytest.mark.parametrize(("capacity", "total"), [(20000, 20000), (20000, 4095), (4096, 10**6), (20000, 19997)])
def test_long_windows(capacity, total, midrank, place):
    values = drawn(5000, 2)
    check(place, drawn(capacity, 1), total, values[place.some(values, 9)], midrank)


@TIES
@pytest.mark.parametrize("count", [5, 300])
def test_the_longest_window(count, midrank, fast_place):
    capacity = 2**20
    check(fast_place, drawn(capacity, 1), capacity + 5, drawn(count, 2), midrank)
    check(fast_place, torch.full((capacity,), 0.5), capacity, torch.tensor([0.25, 0.5, 0.75]).repeat(20), midrank)


@TIES
@pytest.mark.parametrize("repeat", [1, 3, 300])
def test_infinities_denormals_and_both_zeros(repeat, midrank, place):
    """In the window and among the values, counted (few values) and searched (many); NaN stays NaN."""
    if place.slow:
        repeat = min(repeat, 3)
    values = np.concatenate([np.tile(FLOATS, repeat), [np.nan, -np.nan, 1.0]])
    check(place, np.tile(FLOATS, repeat), 2**31, values, midrank)
    check(place, FLOATS, 0, values, midrank)


@TIES
def test_the_order_of_all_floats(midrank, fast_place):
    """Every sign, exponent and a few digits: patterns that differ in one place of a sort only, too."""
    bits = np.arange(2**16, dtype=np.uint32) << 16
    numbers = bits.view(np.float32)[np.isfinite(bits.view(np.float32))]
    window = np.random.default_rng(0).permutation(numbers)
    check(fast_place, window, len(window), np.concatenate([numbers[::37], np.nextafter(numbers[::41], 0)]), midrank)
    close = (np.arange(5000, dtype=np.uint32) + 0x3F7FF000).view(np.float32)
    check(fast_place, close[::-1].copy(), 5000, close[::7], midrank)


@TIES
@pytest.mark.parametrize("count", [5, 100])
def test_a_window_of_one_number(count, midrank, place):
    for number in (0.0, -0.0, 2.5, -np.inf, np.inf):
        values = torch.tensor([-np.inf, -1.0, 0.0, 2.5, 3.0, np.inf]).repeat(count)[:count]
        check(place, torch.full((37,), number), 30, values, midrank)


@TIES
def test_what_is_not_valid_yet_does_not_matter(midrank, place):
    window = drawn(50, 1)
    window[20:] = torch.tensor([torch.nan, -torch.inf, torch.inf]).repeat(10)
    for values in (drawn(9, 2), torch.cat([drawn(40, 2), torch.tensor([torch.inf, -torch.inf])])):
        check(place, window, 20, values, midrank)


@TIES
def test_values_and_window_anywhere(midrank, place):
    """Values of any stride; a window that begins off 16 bytes, of a length that is no multiple of them."""
    memory = drawn(101, 1).to(place.device)
    values = drawn(60, 2).view(20, 3).to(place.device)
    total = torch.tensor(10**6, device=place.device)
    for offset in (0, 1, 3):
        window = memory[offset : offset + 97]
        for view in (values[:, 1], values[::2, 0], values[0, :1].expand(19), values.view(-1)[5:]):
            found = ops.cdf(window, total, view, midrank, place.backend)
            assert torch.equal(found, ops.cdf(window.clone(), total, view.clone(), midrank, place.backend))
            expected = counted(window.cpu().numpy(), 97, view.cpu().numpy(), midrank)
            assert torch.equal(found.cpu(), torch.from_numpy(expected))


@pytest.mark.skipif(native is None, reason="the C++ extension is not built")
def test_threads_change_nothing(threads):
    window, values, total = drawn(3000, 1), drawn(40001, 2), torch.tensor(3000)
    found = []
    for count in (1, 2, 5):
        threads(count)
        found.append(ops.cdf(window, total, values, False, "native"))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.skipif(native is None, reason="the C++ extension is not built")
def test_where_the_processor_flushes_denormals():
    values = torch.tensor([-1e-45, -0.0, 0.0, 1e-45, 1e-40]).repeat(9)
    expected = [ops.cdf(values, torch.tensor(45), part, True, "native") for part in (values, values[:5])]
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    try:
        found = [ops.cdf(values, torch.tensor(45), part, True, "native") for part in (values, values[:5])]
    finally:
        torch.set_flush_denormal(False)
    assert all(map(torch.equal, found, expected))


def test_the_fake_has_the_shape_and_dtype():
    window, total, values = drawn(30, 1), torch.tensor(9), drawn(60, 2)[::3]
    torch.library.opcheck(ops.cdf, (window, total, values, True, "reference"))
