"""The draws called directly: normals, noise and ensembles against float64, of words that Python's integers make.

A row has up to 1024 blocks of four columns a tile, so a second tile begins at column 4096. Up to 512 columns several
rows share a program. The interpreter takes some 10 ms a program: a few rows and draws a case.
"""

import math

import numpy as np
import pytest
import random123
import torch
from torchassay.philox import Purpose
from torchassay.triton_kernels.philox import normals

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("noisy_entropy", "predictive_entropy", "mutual_information")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def exact_words(seed, purpose, row, draw, columns) -> tuple[np.ndarray, np.ndarray]:
    """[4, columns] words of every column's block, and which of them is the column's own."""
    j = np.arange(columns)
    words = random123.words(seed, purpose, row, draw, (j // 32 * 8 + j % 8).astype(np.uint64))
    return np.stack([np.broadcast_to(word, j.shape).astype(np.uint32) for word in words]), j // 8 % 4


def exact_normals(seed, purpose, row, draw, columns) -> np.ndarray:
    words, q = exact_words(seed, purpose, row, draw, columns)
    at = np.arange(columns)
    radius = np.sqrt(-2 * np.log(((words[q // 2 * 2, at] >> 9) + 0.5) / 2**23))
    angle = 2 * np.pi * words[q // 2 * 2 + 1, at].view(np.int32) / 2**32
    return radius * np.where(q % 2, np.sin(angle), np.cos(angle))


def entropy(p, rest) -> float:
    """Of probabilities p, all but the largest of which add up to rest."""
    others = np.delete(p, p.argmax())
    others = others[others > 0]
    return float(-(others * np.log(others)).sum() - (1 - rest) * np.log1p(-rest))


def exact_scores(y) -> tuple[float, float, float]:
    """The three signals of one row's draws y [T, C], in extended precision."""
    y = y.astype(np.longdouble)
    e = np.exp(y - y.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    mean = p.mean(0)
    noisy = np.mean([entropy(each, np.delete(each, each.argmax()).sum()) for each in p])
    predictive = entropy(mean, np.delete(mean, mean.argmax()).sum())
    return float(noisy), predictive, max(0.0, predictive - float(noisy))


def exact_noisy(x, count, std, scale, row_id, seed) -> list[tuple[float, float, float]]:
    N, C = x.shape
    x, found = x.double().numpy(), []
    std, scale = (np.broadcast_to(np.float32(given), N).astype(np.float64) for given in (std, scale))
    for i, row in enumerate(range(N) if row_id is None else row_id.tolist()):
        noise = np.stack([exact_normals(seed, Purpose.LOGIT_NOISE, row, t, C) for t in range(count)])
        found.append(exact_scores(((x[i] - x[i].max()) + std[i] * noise) * scale[i]))
    return found


def check(found, exact, tolerance=1e-5):
    """Relative to the signal, and mutual_information to the predictive entropy, of which it is a difference."""
    exact = torch.tensor(exact, dtype=torch.float64)
    for i, name in enumerate(NAMES):
        error = (found[name].double() - exact[:, i]).abs()
        allowed = tolerance * exact[:, min(i, 1)] + 1e-37
        assert (error <= allowed).all(), f"{name}: {found[name]}, exact {exact[:, i]}, {(error / allowed).max():.2g}"


def logits(classes, dtype, count=3):
    """Rows of growing confidence: the gap between the top and the rest goes up to 80."""
    x = torch.randn(count, classes, generator=torch.Generator().manual_seed(classes)).clamp(max=3)
    x[torch.arange(count), torch.arange(count) * 7 % classes] += torch.linspace(0, 80, count)
    return x.to(dtype)


def drawn(row_id, columns, seed=0, purpose=Purpose.LOGIT_NOISE, draw=0, uniform=False) -> torch.Tensor:
    """What the launcher writes."""
    out = torch.full((len(row_id), columns), -7.0, device=DEVICE)
    row_id = torch.tensor(row_id, device=DEVICE)
    seeds = (seed.to(DEVICE), 0) if isinstance(seed, torch.Tensor) else (None, seed)
    normals(row_id, *seeds, int(purpose), draw, uniform, out)
    return out.cpu()


@pytest.mark.parametrize("columns", [1, 2, 31, 33, 100, 1000, 2100])
def test_normals(columns):
    rows = [0, 2**33 + 7, -3]
    found = drawn(rows, columns, 2**63 - 5, Purpose.FEATURE_NOISE, 3)
    for i, row in enumerate(rows):
        exact = exact_normals(2**63 - 5, Purpose.FEATURE_NOISE, row, 3, columns)
        assert np.abs(found[i].double().numpy() - exact).max() <= 1e-6


@pytest.mark.parametrize("seed", random123.SEEDS)
def test_normals_and_uniforms_of_any_place(seed):
    """Of all ids and draws at once; the uniforms to the bit."""
    for draw in random123.STEPS[::2]:
        found = drawn(random123.ROWS, 40, seed, Purpose.CORRUPTIONS, draw)
        flat = drawn(random123.ROWS, 40, torch.tensor(seed), Purpose.CORRUPTIONS, draw, uniform=True)
        for i, row in enumerate(random123.ROWS):
            exact = exact_normals(seed, Purpose.CORRUPTIONS, row, draw, 40)
            assert np.abs(found[i].double().numpy() - exact).max() <= 1e-6
            words, q = exact_words(seed, Purpose.CORRUPTIONS, row, draw, 40)
            exact = (words[q, np.arange(40)] >> 8) / 2**24
            assert np.array_equal(flat[i].double().numpy(), exact)


def test_normals_are_normal():
    """28800 of them: moments within four standard errors, Kolmogorov and Smirnov's distance at the level 0.001."""
    found = drawn([0, 1, 2], 9600, seed=11).double().flatten()
    n = len(found)
    assert abs(found.mean()) <= 4 / math.sqrt(n)
    assert abs(found.var() - 1) <= 4 * math.sqrt(2 / n)
    assert abs((found**4).mean() - 3) <= 4 * math.sqrt(96 / n)
    below = torch.special.ndtr(found.sort().values)
    step = torch.arange(n) / n
    assert torch.maximum(below - step, step + 1 / n - below).max() <= 1.95 / math.sqrt(n)
    pairs = found.view(-1, 4, 8)  # cosine and sine of one angle, and the next word's
    assert abs((pairs[:, 0] * pairs[:, 1]).mean()) <= 4 / math.sqrt(n / 4)
    assert abs((pairs[:, 1] * pairs[:, 2]).mean()) <= 4 / math.sqrt(n / 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("classes", "count"), [(1, 1), (2, 5), (10, 1), (33, 5), (100, 2), (257, 1), (1000, 2)])
def test_noise_against_float64(classes, count, dtype, draws):
    x = logits(classes, dtype, 3 if classes < 200 else 2)
    check(draws(x, count, 0.7, seed=3), exact_noisy(x, count, 0.7, 1, None, 3))


def test_a_second_tile(draws):
    x = logits(4200, torch.bfloat16, 2)
    x[1, 4199] = x[1].max() + 1
    check(draws(x, 2, 1.0, seed=4), exact_noisy(x, 2, 1, 1, None, 4))


def test_numbers_of_each_row(draws):
    """A deviation and a scale a row, ids and seeds that fill their words; the seed by address is the same."""
    x = logits(100, torch.float32, 4)
    std, scale = torch.tensor([0.0, 0.3, 2.0, 5.0]), torch.tensor([1.0, 0.1, 2.5, 0.5])
    row_id = torch.tensor([2**33 + 7, -1, 2**55 + 5, 0])
    found = draws(x, 2, std, scale, row_id, -(2**63) + 9)
    check(found, exact_noisy(x, 2, std, scale, row_id, -(2**63) + 9))
    for name, value in draws(x, 2, std, scale, row_id, torch.tensor(-(2**63) + 9)).items():
        assert torch.equal(value, found[name])
    plain = draws(x, 1, 0.3, 2.5, row_id, 9)
    for name, value in draws(x, 1, torch.full((4,), 0.3), torch.full((4,), 2.5), row_id, 9).items():
        assert torch.equal(value, plain[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("classes", "members"), [(1, 2), (2, 1), (10, 5), (33, 2), (257, 5), (1000, 2)])
def test_ensembles_against_float64(classes, members, dtype, draws):
    others = torch.randn(members - 1, 3, classes, generator=torch.Generator().manual_seed(9)).mul(9)
    x = torch.stack([logits(classes, dtype), *others.to(dtype)])
    check(draws(x.unsqueeze(1)), [exact_scores(x[:, i].double().numpy()) for i in range(3)])


@pytest.mark.parametrize("count", [2, None])
def test_offsets_and_masks(count, draws):
    """Logits around 1e4, and classes at -inf or at the lowest number, which add nothing."""
    x = logits(70, torch.float32, 4)
    x[1] += 1e4
    x[2, ::3] = -torch.inf
    x[3, 5:40] = torch.finfo(torch.float32).min
    if count is None:
        x = torch.stack([x, x.flip(0) - 3])
        check(draws(x.unsqueeze(1)), [exact_scores(x[:, i].double().numpy()) for i in range(4)])
    else:
        check(draws(x, count, 0.5), exact_noisy(x, count, 0.5, 1, None, 0))


def test_one_class_left(draws):
    x = torch.full((3, 40), -torch.inf)
    x[0, 39] = 2
    x[1, [0, 8]] = 3
    x[2, [4, 5]] = torch.finfo(torch.float32).min
    found = draws(torch.stack([x, x]).unsqueeze(1))
    for name in NAMES[:2]:
        torch.testing.assert_close(found[name], torch.log(torch.tensor([1.0, 2.0, 2.0])), rtol=1e-6, atol=0)
    found = draws(x, 2, 0.4)
    assert found["noisy_entropy"][0] == 0
    check(found, exact_noisy(x, 2, 0.4, 1, None, 0))


@pytest.mark.parametrize("count", [3, None])
def test_poison_stays_in_its_row(count, draws):
    x = torch.randn(6, 50, generator=torch.Generator().manual_seed(5))
    clean = x.clone()
    x[0, 49] = torch.nan
    x[1, 20] = torch.inf
    x[2] = -torch.inf
    x[3, [1, 9]] = torch.inf
    x[4, [1, 9]] = torch.tensor([torch.inf, torch.nan])
    if count is None:
        x, clean = torch.stack([clean, x]).unsqueeze(1), torch.stack([clean, clean]).unsqueeze(1)
    expected = draws(clean, count, 0.5)
    for name, value in draws(x, count, 0.5).items():
        assert value[:5].isnan().all(), name
        assert value[5] == expected[name][5], name


def test_a_number_that_is_nan_poisons_its_row(draws):
    x = logits(20, torch.float32)
    for value in draws(x, 2, torch.tensor([0.5, torch.nan, 0.5])).values():
        assert value.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(("classes", "count"), [(10, 3), (300, 1)])
def test_a_row_by_its_id(classes, count, draws):
    """Alone, permuted, in parts, elsewhere in memory: the bits of a row are those of its id."""
    x = logits(classes, torch.bfloat16, 4)
    row_id = torch.tensor([4, 2**40, -9, 0])
    together = draws(x, count, 0.6, row_id=row_id, seed=8)
    order = torch.tensor([3, 0, 2, 1])
    memory = torch.zeros(4, classes + 3, dtype=x.dtype)
    memory[:, 1:-2] = x[order]
    permuted = draws(memory[:, 1:-2], count, 0.6, row_id=row_id[order], seed=8)
    parts = [draws(x[at], count, 0.6, row_id=row_id[at], seed=8) for at in (slice(0, 1), slice(1, 4))]
    for name, value in together.items():
        assert torch.equal(permuted[name], value[order]), name
        assert torch.equal(torch.cat([part[name] for part in parts]), value), name
    other = draws(x[:2], count, 0.6, seed=8)["noisy_entropy"]
    assert other[0] != together["noisy_entropy"][0]


def test_rows_of_two_strides_and_each_signal_alone(draws):
    cube = torch.randn(3, 2, 2, 40, generator=torch.Generator().manual_seed(6))
    views = {2: cube.permute(2, 0, 1, 3)[:, :, 1], None: cube.permute(1, 2, 0, 3)}  # [2, 3, 40], [2, 2, 3, 40]
    for count, x in views.items():
        before = cube.clone()
        together = draws(x, count, 0.5)
        assert torch.equal(cube, before)
        plain = draws(x.clone(memory_format=torch.contiguous_format), count, 0.5)
        for name in NAMES:
            assert torch.equal(together[name], plain[name])
            assert torch.equal(draws(x, count, 0.5, names=(name,))[name], together[name]), name


@pytest.mark.parametrize("classes", [3, 100])
def test_with_the_errors_of_the_hardware(classes, draws, hardware_exp2):
    x = logits(classes, torch.float32)
    check(draws(x, 2, 0.7), exact_noisy(x, 2, 0.7, 1, None, 0))
    x = torch.stack([x, x.flip(0)])
    check(draws(x.unsqueeze(1)), [exact_scores(x[:, i].double().numpy()) for i in range(3)])


@pytest.mark.parametrize("classes", [5, 300])
def test_no_address_outside_the_tensors(classes, draws, only_own_addresses):
    memory = torch.randn(2, 2, 4, classes + 3, generator=torch.Generator().manual_seed(7)).bfloat16()
    before = memory.clone()
    numbers = {"std": torch.full((4,), 0.5), "row_id": torch.arange(4) - 2**60, "seed": torch.tensor(7)}
    draws(memory[0, :, 1:3, :classes], 2, **numbers)
    draws(memory[:, :, 1:3, :classes])
    assert torch.equal(memory, before)
    found = drawn([5, 6, 7], classes)
    assert not (found == -7).any()
