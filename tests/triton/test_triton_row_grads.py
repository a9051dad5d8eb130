"""The backward kernel called directly, against the oracle in float64."""

import oracle
import pytest
import rows
import torch

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
UPSTREAM = {"loss": (True, False), "entropy": (False, True), "both": (True, True)}


def upstream(which, count):
    generator = torch.Generator().manual_seed(40)
    return [torch.randn(count, generator=generator) if wanted else None for wanted in UPSTREAM[which]]


def few(family, classes, dtype, count=4):
    x, y, _ = rows.case(family, classes, dtype)
    at = torch.linspace(0, len(x) - 1, count).round().long()
    return x[at], y[at]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", UPSTREAM)
@pytest.mark.parametrize("classes", [1, 2, 10, 100, 1000, 4097, 8200])  # 4096 columns a program
def test_against_the_oracle(classes, which, dtype, grads):
    for family in ("gaps", "random", "masked") if classes > 2 else ("gaps", "random"):
        x, y = few(family, classes, dtype, 4 if classes < 4096 else 2)
        gL, gH = upstream(which, len(x))
        found = grads(x, y if gL is not None else None, gL, gH)
        oracle.check_gradient(found, oracle.grads(x, y, gL, gH), 1e-6)
        assert torch.equal(found[x == -torch.inf], torch.zeros_like(found[x == -torch.inf]))


@pytest.mark.parametrize("which", UPSTREAM)
@pytest.mark.parametrize("family", ["gaps", "offsets", "masked", "ties"])
def test_with_the_errors_of_the_hardware(family, which, grads, hardware_exp2):
    for classes in (3, 100, 4097):
        x, y = few(family, classes, torch.float32, 3)
        gL, gH = upstream(which, len(x))
        oracle.check_gradient(grads(x, y, gL, gH), oracle.grads(x, y, gL, gH), 2e-6)


@pytest.mark.parametrize("classes", [2, 100, 4097])
def test_the_target_keeps_its_digits(classes, grads):
    """A confident row: p_y - 1 is the rest's probability, to a relative 1e-6."""
    x, y, exact = rows.case("gaps", classes, torch.float32)
    at = torch.arange(len(x) - 12, len(x), 4)
    x, y = x[at], y[at]
    ones = torch.ones(len(x))
    found = grads(x, y, ones, None)
    exact = oracle.grads(x, y, ones, None)
    own = torch.arange(len(x)), y
    torch.testing.assert_close(found[own].double(), exact[own], rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_rounded_once_to_nearest_even(dtype, grads):
    """Half-way cases: p is 1/2 at a tie, so dx is half the upstream, which has one bit too many."""
    x = torch.zeros(64, 2, dtype=dtype)
    bits = 8 if dtype == torch.bfloat16 else 11
    gL = 1 + (2 * torch.arange(64) + 1) * 2.0**-bits  # half-way between two numbers of the dtype
    found = grads(x, torch.zeros(64, dtype=torch.int64), gL, None)
    expected = (torch.stack([-gL, gL], 1) / 2).to(dtype)
    assert torch.equal(found, expected)


def test_upstreams_of_any_stride(grads):
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(41))
    y = torch.arange(5)
    plain = torch.randn(5, generator=torch.Generator().manual_seed(42))
    spread = torch.empty(5, 3)[:, 1].copy_(plain)
    one = torch.tensor(1.25)
    expected = grads(x, y, plain, torch.full((5,), 1.25))
    assert torch.equal(grads(x, y, spread, one.expand(5)), expected)
    expected = grads(x, y, torch.full((5,), 1.25), plain)
    assert torch.equal(grads(x, y, one.expand(5), spread), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_targets_ignored_and_out_of_range(dtype, grads):
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(43))
    y = torch.tensor([3, 40, -1, 7, 2**31 - 1], dtype=dtype)
    gL, gH = upstream("both", 5)
    loss, entropy, both = grads(x, y, gL, None, 7), grads(x, y, None, gH, 7), grads(x, y, gL, gH, 7)
    for found in (loss, both):
        assert found[[1, 2, 4]].isnan().all()
        assert not found[[0, 3]].isnan().any()
    assert torch.equal(loss[3], torch.zeros(40))
    assert torch.equal(both[3], entropy[3])
    assert not entropy.isnan().any()


def test_poison_stays_in_its_row(grads):
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(44))
    y = torch.tensor([0, 1, 2, 3, 4, 5])
    gL, gH = upstream("both", 6)
    clean = grads(x, y, gL, gH)
    x[0, 39] = torch.nan
    x[1, 20] = torch.inf
    x[2] = -torch.inf
    x[4, 4] = torch.nan
    for a, b in ((gL, None), (None, gH), (gL, gH)):
        found = grads(x, y, a, b, ignore_index=4)
        assert found[:3].isnan().all()
        assert torch.equal(found[4], torch.zeros(40)) if b is None else found[4].isnan().all()
        assert not found[[3, 5]].isnan().any()
    assert torch.equal(found[[3, 5]], clean[[3, 5]])


@pytest.mark.parametrize("classes", [5, 72, 4104])
def test_no_address_outside_the_tensors(classes, grads, only_own_addresses):
    memory = torch.randn(2, 4, classes + 3, generator=torch.Generator().manual_seed(46)).bfloat16()
    x = memory[:, 1:3, :classes]
    gL, gH = upstream("both", 4)
    found = grads(x, torch.tensor([0, classes, -1, 2**62]), gL[:1].expand(4), gH)
    assert torch.equal(found.isnan().all(1), torch.tensor([False, True, True, True]))


@pytest.mark.parametrize("classes", [7, 1001, 4097])
def test_layouts_and_places(classes, grads):
    """Two strides, a misaligned start, alone and in a batch: the same values, for one layout the same bits."""
    cube = torch.randn(2, 2, classes + 1, generator=torch.Generator().manual_seed(45))
    x = cube.transpose(0, 1)[..., 1:]
    y = torch.arange(4)
    gL, gH = upstream("both", 4)
    before = x.clone()
    found = grads(x, y, gL, gH)
    assert torch.equal(x, before)
    plain = x.reshape(4, classes).clone()
    torch.testing.assert_close(grads(plain, y, gL, gH), found, rtol=1e-6, atol=1e-7)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(grads(plain[order], y[order], gL[order], gH[order]), grads(plain, y, gL, gH)[order])
    assert torch.equal(grads(plain[1:2], y[1:2], gL[1:2], gH[1:2]), grads(plain, y, gL, gH)[1:2])
