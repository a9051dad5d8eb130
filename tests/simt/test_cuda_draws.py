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


def test_rows_that_are_no_distribution_are_nan_and_alone(kernels):
    """NaN, +inf, nothing but -inf: NaN in every signal, with the first mean and with the second; others untouched."""
    for classes in (10, 300, 5000):
        x = logits(classes, torch.float32)
        spoilt = x.clone()
        spoilt[1, classes - 1], spoilt[3, 0], spoilt[5] = torch.nan, torch.inf, -torch.inf
        whole, bad = torch.tensor([0, 2, 4, 6]), torch.tensor([1, 3, 5])
        for given in ((top_of(spoilt.nan_to_num(-1e30, torch.inf, -torch.inf)), 2, 1.0), ()):
            before, found = (kernels(*((rows, *given) if given else (rows.expand(2, -1, -1),))) for rows in (x, spoilt))
            for name in NOISY_SIGNALS:
                assert found[name][bad].isnan().all(), (classes, name)
                assert torch.equal(found[name][whole], before[name][whole]), (classes, name)


def test_one_bad_member_poisons_its_row(kernels):
    members = torch.randn(3, 4, 20, generator=torch.Generator().manual_seed(1))
    members[1, 2, 5], members[2, 0, 19], members[2, 3] = torch.nan, torch.inf, -torch.inf
    for value in kernels(members).values():
        assert value.isnan().tolist() == [True, False, True, True]


@pytest.mark.parametrize("value", [torch.finfo(torch.float32).min, torch.finfo(torch.float32).max, -1e30])
def test_equal_logits_of_any_size(value, kernels):
    """Masks by the lowest number among them: no class is there that is not."""
    found = kernels(torch.full((2, 3, 37), value))
    for name in ("noisy_entropy", "predictive_entropy"):
        torch.testing.assert_close(found[name], torch.full((3,), 37.0).log(), rtol=1e-6, atol=0)


def test_confident_members_that_disagree(kernels):
    """Entropy of the mean from sure members: its top class is not that of the first one."""
    members = torch.zeros(5, 2, 50)
    members[0, :, 3] = members[1:, :, 7] = 70.0
    members[:, 1, 3], members[:, 1, 7] = 0.0, 60.0
    check(kernels(members), members.double().numpy())


@DTYPES
@pytest.mark.parametrize("classes", [10, 100, 1001, 5000])
def test_a_row_has_its_bits_wherever_it_stands(classes, dtype, kernels):
    """Split batches, ids beyond 32 bits, a seed by address, misaligned rows and two strides: all the same."""
    x = logits(classes, dtype)[:6]
    ids = torch.tensor([2**33 + 7, 3, -(2**40), 2**55, 2**33 + 8, 0])
    std, scale = torch.linspace(0.5, 2, 6), torch.linspace(0.5, 1, 6)
    found = kernels(x, top_of(x), 3, std, scale, ids, SEED)
    check(found, noisy(x, 3, std, scale, ids, SEED))
    view = torch.zeros(2, 3, classes + 3, dtype=dtype)[:, :, 1 : classes + 1]
    view.copy_(x.view(2, 3, classes))
    room = torch.zeros(3 * (2 * classes + 5) + 1, dtype=dtype)  # two strides that no one stride stands for
    apart = room[1:].as_strided((2, 3, classes), (classes, 2 * classes + 5, 1))
    apart.copy_(x.view(2, 3, classes))
    for other in (view, apart):
        again = kernels(other, top_of(x), 3, std, scale, ids, SEED, seed_by_address=True)
        assert all(torch.equal(again[name], found[name]) for name in NOISY_SIGNALS)
    for part in (slice(0, 1), slice(1, 3), slice(3, 6)):
        some = kernels(x[part].clone(), top_of(x[part]), 3, std[part].clone(), scale[part].clone(), ids[part], SEED)
        assert all(torch.equal(some[name], found[name][part]) for name in NOISY_SIGNALS)
    members = torch.stack([x, x.roll(1, 0), x.roll(2, 0)])
    store = torch.zeros(3 * (6 * classes + 1), dtype=dtype)
    scattered = store.as_strided(members.shape, (6 * classes + 1, classes, 1))
    scattered.copy_(members)
    plain, again = kernels(members), kernels(scattered)
    assert all(torch.equal(again[name], plain[name]) for name in NOISY_SIGNALS)


@pytest.mark.parametrize("classes", [10, 300, 5000])
def test_only_what_was_asked_for(classes, kernels):
    """The mean entropy alone needs no second kernel; many rows, so that not all fill a block."""
    x = (
        torch.randn(37, classes, generator=torch.Generator().manual_seed(2))
        if classes < 5000
        else torch.randn(3, classes)
    )
    given = x, top_of(x), 3, 1.0
    found = kernels(*given)
    for names in (("noisy_entropy",), ("predictive_entropy",), ("predictive_entropy", "mutual_information")):
        some = kernels(*given, names=names)
        assert all(torch.equal(some[name], found[name]) for name in names)


@pytest.mark.parametrize("classes", [2, 40])
def test_draws_without_noise_agree(classes, kernels):
    """std 0: every draw is the row itself, and nothing is gained by knowing which."""
    x = logits(classes, torch.float32)
    found = kernels(x, top_of(x), 4, 0.0)
    one = kernels(x, top_of(x), 1, 0.0)
    assert torch.equal(found["noisy_entropy"], one["noisy_entropy"])
    assert (found["mutual_information"] >= 0).all()
    assert (found["mutual_information"] <= 1e-6 * found["predictive_entropy"]).all()
