"""The kernels of heads that are no softmax, run on the host against many digits: all numbers of lanes, every seam."""

import head_oracle
import host_kernels
import oracle
import pytest
import torch
from torchassay import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [
    1,
    2,
    8,
    9,
    16,
    17,
    64,
    65,
    100,
    129,
    257,
    1030,
]  # 1 to 32 lanes; groups of 16 outputs a lane, a tail


@pytest.fixture(scope="session")
def heads(host_program):
    return host_kernels.Heads(host_program("run_heads.cpp"))


def noise(*shape, seed=1, scale=4.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def check(found, exact):
    for name, value in exact.items():
        assert oracle.relative_errors(name, found[name], value).max() <= 2e-6, name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_values(size, dtype, heads):
    x, y, w, exact = head_oracle.binary_case(size, dtype)
    check(heads(x, y, w), exact)
    for loss in head_oracle.LOSSES:
        x, y, exact = head_oracle.regression_case(size, dtype, loss)
        check(heads(x, y, head=loss, delta=0.75), exact)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("size", [1, 5, 40, 140])
def test_a_sample_has_the_same_bits_anywhere(size, dtype, heads):
    """Alone, in a batch of several blocks, in a view with a stride and off every alignment, upcast."""
    x, y = noise(70, size).to(dtype), noise(70, size, seed=2).sign().clamp(min=0)
    for head in ("binary", *head_oracle.LOSSES):
        whole = heads(x, y, head=head)
        wide = torch.zeros(70, size + 3, dtype=dtype)[:, 1 : size + 1].copy_(x)
        views = heads(wide, torch.zeros(70, size + 1)[:, 1:].copy_(y), head=head)
        upcast = heads(x.float(), y, head=head)
        alone = heads(x[37:38], y[37:38], head=head)
        for name, value in whole.items():
            assert torch.equal(views[name], value) and torch.equal(upcast[name], value)
            assert torch.equal(alone[name], value[37:38])


def test_one_sample_for_all(heads):
    x, y = noise(1, 30), torch.ones(1, 30)
    found = heads(x.expand(9, 30), y.expand(9, 30))
    for name, value in heads(x, y).items():
        assert torch.equal(found[name], value.expand(9))


@pytest.mark.parametrize("size", [1, 6, 100])
def test_norms_whose_squares_underflow_or_overflow(size, heads):
    sizes = torch.tensor([1e-37, 1e-30, 1e-25, 1e-13, 1e-12, 1.0, 1e17, 1e18, 1e25, 1e37])
    x = torch.rand(len(sizes), size, generator=torch.Generator().manual_seed(7)) * sizes[:, None]
    for loss, delta in (("mse", 1.0), ("huber", 1e38)):
        exact = head_oracle.regression(x, torch.zeros_like(x), loss, delta)["grad_norm"]
        check(heads(x, torch.zeros_like(x), head=loss, delta=delta), {"grad_norm": exact})


def test_the_surest_labels_are_not_0(heads):
    a = torch.linspace(100, 60, 81)[:, None]
    for x, y in ((a, 1.0), (-a, 0.0)):
        for value in heads(x, torch.full_like(x, y)).values():
            assert value[0] > 0 and (value.diff() > 0).all()


@pytest.mark.parametrize("size", [1, 5, 70])
def test_poison_stays_in_its_sample(size, heads):
    x, y = noise(9, size), noise(9, size, seed=2).sign().clamp(min=0)
    clean = heads(x, y)
    x[1, size // 2], x[3, 0], x[4, size - 1], y[6, 0] = torch.nan, torch.inf, -torch.inf, torch.nan
    found, rest = heads(x, y), [0, 2, 5, 7, 8]
    for name, value in found.items():
        assert torch.equal(value[rest], clean[name][rest]) and value[[1, 3, 4]].isnan().all()
    assert found["loss"][6].isnan() and found["grad_norm"][6].isnan()
    for loss in head_oracle.LOSSES:
        found = heads(x, y, head=loss)
        assert found["loss"][[1, 6]].isnan().all() and found["grad_norm"][[1, 6]].isnan().all()
        assert (found["loss"][[3, 4]] == torch.inf).all() and not found["grad_norm"][[3, 4]].isnan().any()


def test_long_sums(heads):
    x, y = noise(2, 30_000), noise(2, 30_000, seed=2).sign().clamp(min=0)
    x[1], y[1] = 0.3, 1.0  # equal terms, whose roundings all go one way
    check(heads(x, y), reference.score_binary(x.double(), y).as_dict())
