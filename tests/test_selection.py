"""top_fraction: which values are the largest share, on one process and on several."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
import torch.distributed as dist
import torchassay as ta
from ranks import on_ranks
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torchassay import selection
from torchassay.checks import InputTypeError, InputValueError

DTYPES = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
FRACTIONS = [0, 0.01, 0.2, 0.5, 0.9, 1]
WORLD = 4
SHARDS = [13, 0, 250, 1]  # values of the ranks

both = pytest.mark.parametrize("function", [ta.top_fraction, ta.reference.top_fraction], ids=["histograms", "sort"])


def chosen(values: torch.Tensor, fraction: float, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The definition, by a stable sort in Python and a share that is the decimal number one writes."""
    flat = values.detach().double().reshape(-1).tolist()
    counted = [True] * len(flat) if mask is None else mask.reshape(-1).tolist()
    places = [i for i, value in enumerate(flat) if counted[i] and not math.isnan(value)]
    count = math.floor(len(places) * Fraction(str(fraction)) + Fraction(1, 2))
    found = [False] * len(flat)
    for i in sorted(places, key=lambda i: -flat[i])[:count]:
        found[i] = True
    return torch.tensor(found, dtype=torch.bool).view(values.shape)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tied(n: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Of few different values, some of them NaN."""
    values = torch.randint(-4, 5, (n,), generator=generator(seed)).to(dtype) / 4
    values[2::7] = torch.nan
    return values


@both
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_any_bit_patterns(function, dtype, fraction):
    """Every one of the 16-bit values, and random ones of the wider dtypes."""
    bits = DTYPES[dtype]
    if bits == torch.int16:
        patterns = torch.arange(-(1 << 15), 1 << 15)[torch.randperm(1 << 16, generator=generator(1))].to(bits)
    else:
        patterns = torch.empty(1 << 13, dtype=bits).random_(torch.iinfo(bits).min, None, generator=generator(2))
    values = patterns.view(dtype)
    mask = torch.rand(len(values), generator=generator(3)) < 0.7
    before = patterns.clone()
    assert torch.equal(function(values, fraction), chosen(values, fraction))
    assert torch.equal(function(values, fraction, mask), chosen(values, fraction, mask))
    assert torch.equal(patterns, before)


@both
@pytest.mark.parametrize("dtype", DTYPES)
def test_extremes_and_ties(function, dtype):
    """Neighbours that differ in their last bit, of either sign, beside infinities, zeros of both signs and NaN."""
    tiny, one = torch.finfo(dtype).smallest_normal, torch.ones((), dtype=dtype)
    least = torch.ones((), dtype=DTYPES[dtype]).view(dtype)  # the smallest subnormal
    near = torch.stack([one, one.nextafter(2 * one), one.nextafter(0 * one), 0 * one, least, 2 * least])
    far = torch.tensor([torch.inf, torch.nan, torch.finfo(dtype).max, tiny, 0.0], dtype=dtype)
    values = torch.cat([near, far, -near, -far]).repeat(4)[torch.randperm(88, generator=generator(4))]
    for count in range(81):
        expected = chosen(values, count / 80)
        assert int(expected.sum()) == count
        assert torch.equal(function(values, count / 80), expected)


@both
@pytest.mark.parametrize("part", [7, 1 << 20])
def test_equal_values_go_in_order(function, part, monkeypatch):
    monkeypatch.setattr(selection, "PART", part)
    assert function(torch.zeros(2, 3), 0.5).tolist() == [[True, True, True], [False, False, False]]
    mask = torch.tensor([False, True, False, True, True])
    assert function(torch.ones(5), 0.34, mask).tolist() == [False, True, False, False, False]
    for seed in range(5):
        values = tied(100, seed)
        assert torch.equal(function(values, 0.3), chosen(values, 0.3))


@both
def test_how_many_are_those_of_keep(function):
    for n in (0, 1, 2, 3, 7, 10, 45, 100, 333):
        values = torch.randint(0, 50, (n,), generator=generator(n)).float()
        for thousandths in range(0, 1001, 5):
            found = function(values, thousandths / 1000).nonzero().view(-1)
            assert torch.equal(found, ta.keep(values, thousandths / 1000))
    assert int(function(torch.arange(100.0), 0.145).sum()) == 15  # 14.499999999999998


@both
def test_nothing_to_select(function):
    assert function(torch.empty(0), 0.5).shape == (0,)
    assert function(torch.empty(3, 0), 1, torch.ones(3, 0, dtype=torch.bool)).shape == (3, 0)
    nan, off = torch.full((4,), torch.nan), torch.zeros(4, dtype=torch.bool)
    for values, mask in ((nan, None), (torch.arange(4.0), off), (nan, ~off)):
        assert function(values, 1.0, mask).tolist() == [False] * 4


@both
def test_any_shape_and_strides(function):
    base = torch.randn(6, 10, generator=generator(5))
    mask = torch.rand(10, 6, generator=generator(6)) < 0.8
    layouts = [base.T, base[::2, 1::3], base[:, :1].expand(6, 4), base[0, 0], base.view(3, 2, 10).permute(2, 0, 1)]
    for values in layouts:
        assert torch.equal(function(values, 0.4), chosen(values, 0.4))
    assert torch.equal(function(base.T, 0.4, mask), chosen(base.T, 0.4, mask))
    assert torch.equal(function(base, 0.4, mask.T), chosen(base, 0.4, mask.T))
    found = function(base.clone().requires_grad_(), 0.4)
    assert not found.requires_grad and torch.equal(found, chosen(base, 0.4))


def test_more_values_than_float32_can_count():
    n = (1 << 24) + 3
    values = torch.rand(n, generator=generator(7))  # on a grid of 2^-24, so many of them are equal
    count = math.floor(n * 0.2 + 0.5)
    threshold = values.kthvalue(n - count + 1).values
    expected = values > threshold
    equal = (values == threshold).nonzero().view(-1)
    left = count - int(expected.sum())
    assert 0 < left <= len(equal)
    expected[equal[:left]] = True
    assert torch.equal(ta.top_fraction(values, 0.2), expected)


def test_the_host_never_looks_at_a_number():
    """A fake tensor has no numbers: to read one, or to wait for a shape that depends on them, is an error."""
    with FakeTensorMode():
        values = torch.empty(5, 7, dtype=torch.bfloat16)
        found = ta.top_fraction(values, 0.2, values > 0)
        assert found.shape == (5, 7) and found.dtype == torch.bool
        with pytest.raises(DynamicOutputShapeException):
            ta.reference.top_fraction(values, 0.2)  # which does look


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")
def test_compiled_in_one_graph():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, mask: ta.top_fraction(x, 0.3, mask), backend="aot_eager", fullgraph=True)
    for n in (50, 81):
        values, mask = tied(n, seed=n), torch.rand(n, generator=generator(n)) < 0.5
        assert torch.equal(compiled(values, mask), chosen(values, 0.3, mask))


# ---- several processes


def of_rank(rank: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return tied(SHARDS[rank], rank, dtype), torch.rand(SHARDS[rank], generator=generator(rank)) < 0.8


def select(rank: int) -> dict[str, torch.Tensor]:
    """Of groups of the last one to four ranks, so that a rank's number there is another one than in the world."""
    found = {}
    for first in range(WORLD):
        group = dist.new_group(range(first, WORLD))
        for dtype in (torch.bfloat16, torch.float32, torch.float64) if rank >= first else ():
            values, mask = of_rank(rank, dtype)
            for fraction in FRACTIONS:
                name = f"{first} {dtype} {fraction}"
                found[name] = ta.top_fraction(values, fraction, mask, group=group)
                found[f"sorted {name}"] = ta.reference.top_fraction(values, fraction, mask, group=group)
                found[f"unmasked {name}"] = ta.top_fraction(values, fraction, group=group)
    return found


@pytest.fixture(scope="module")
def on_four(tmp_path_factory) -> list[dict[str, torch.Tensor]]:
    return on_ranks(WORLD, tmp_path_factory.mktemp("four"), select)


@pytest.mark.parametrize("first", range(WORLD))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_ranks_find_what_one_process_finds(on_four, first, dtype):
    shards = [of_rank(rank, dtype) for rank in range(first, WORLD)]
    values, mask = (torch.cat(parts) for parts in zip(*shards, strict=True))
    for fraction in FRACTIONS:
        name = f"{first} {dtype} {fraction}"
        masked, unmasked = chosen(values, fraction, mask), chosen(values, fraction)
        assert torch.equal(torch.cat([of[name] for of in on_four[first:]]), masked)
        assert torch.equal(torch.cat([of[f"sorted {name}"] for of in on_four[first:]]), masked)
        assert torch.equal(torch.cat([of[f"unmasked {name}"] for of in on_four[first:]]), unmasked)


def go_wrong(rank: int) -> list[str]:
    """What each rank hears; the last call shows that all are still in step."""
    world, values = dist.group.WORLD, torch.arange(4.0) + rank
    calls = [
        (values, 1.5 if rank == 1 else 0.5, None),
        (values if rank == 0 else [1.0], 0.5, None),
        (values, 0.25 if rank == 1 else 0.5, None),
        (values.double() if rank == 1 else values, 0.5, None),
        (values, 0.5, values if rank == 0 else None),
    ]
    heard = []
    for function in (ta.top_fraction, ta.reference.top_fraction):
        for values, fraction, mask in calls:
            try:
                found = function(values, fraction, mask, group=world)
                heard.append(str(found.tolist()))
            except (InputValueError, InputTypeError) as error:  # kept, it would keep the group alive
                heard.append(f"{type(error).__name__}: {error}")
        heard.append(str(function(torch.arange(4.0) + rank, 0.5, group=world).tolist()))
    return heard


def test_an_error_on_one_rank_is_an_error_on_all(tmp_path):
    start = "InputValueError: top_fraction:"
    fraction, kind = "fraction must be in [0, 1], got 1.5", "values must be a Tensor, got list"
    mask = "mask must be bool of shape (4,) on cpu, got float32 of shape (4,) on cpu"
    refused = [f"{start} rank {rank} of the group refused its arguments" for rank in range(2)]
    differ = [
        f"{start} every rank of the group must be given the same fraction, got [0.5, 0.25]",
        f"{start} every rank of the group must be given the same dtype, got ['float32', 'float64']",
    ]
    first = [refused[1], refused[1], *differ, f"{start} {mask}"]
    second = [f"{start} {fraction}", f"InputTypeError: top_fraction: {kind}", *differ, refused[0]]
    first.append("[False, False, True, True]")  # 0 1 2 3, beside 1 2 3 4: the four largest are 4, both 3, the first 2
    second.append("[False, False, True, True]")
    found = on_ranks(2, tmp_path, go_wrong)
    assert found[0] == first * 2
    assert found[1] == second * 2


# ---- bad arguments

X = torch.arange(3.0)
MESSAGES = {
    "a list": (([1.0], 0.5), InputTypeError, "values must be a Tensor, got list"),
    "integers": ((X.long(), 0.5), InputTypeError, "values must be floating-point, got int64"),
    "a share as text": ((X, "0.5"), InputTypeError, "fraction must be a number, got str"),
    "a share as bool": ((X, True), InputTypeError, "fraction must be a number, got bool"),
    "more than all": ((X, 1.01), InputValueError, "fraction must be in [0, 1], got 1.01"),
    "less than none": ((X, -0.5), InputValueError, "fraction must be in [0, 1], got -0.5"),
    "no share": ((X, math.nan), InputValueError, "fraction must be in [0, 1], got nan"),
    "a mask as list": ((X, 0.5, [True]), InputTypeError, "mask must be a Tensor, got list"),
    "a mask of numbers": (
        (X, 0.5, X),
        InputValueError,
        "mask must be bool of shape (3,) on cpu, got float32 of shape (3,) on cpu",
    ),
    "a mask of another shape": (
        (X, 0.5, X[:2] > 0),
        InputValueError,
        "mask must be bool of shape (3,) on cpu, got bool of shape (2,) on cpu",
    ),
    "a mask elsewhere": (
        (X, 0.5, torch.ones(3, dtype=torch.bool, device="meta")),
        InputValueError,
        "mask must be bool of shape (3,) on cpu, got bool of shape (3,) on meta",
    ),
}


@both
@pytest.mark.parametrize("case", MESSAGES)
def test_messages(function, case):
    arguments, kind, message = MESSAGES[case]
    with pytest.raises(kind) as error:
        function(*arguments)
    assert type(error.value) is kind and str(error.value) == f"top_fraction: {message}"


@both
def test_a_group_that_is_none(function):
    with pytest.raises(
        InputTypeError, match=r"^top_fraction: group must be a torch.distributed.ProcessGroup, got str$"
    ):
        function(X, 0.5, group="world")
