"""The picks' uniforms in every backend, and the words of the reference. The CUDA kernel on the host: simt/."""

import math

import pytest
import random123
import torch
import torchassay.checks as checks
from torch._dynamo.testing import CompileCounterWithBackend
from torchassay.philox import random_words, uniforms

IDS = torch.arange(6)


@pytest.mark.parametrize(("counter", "key", "words"), random123.VECTORS.values(), ids=random123.VECTORS)
def test_published_words(counter, key, words):
    """Of the test's own Philox, and of the reference with the seed as a number and as a tensor."""
    assert random123.philox4x32(counter, key) == words
    seed, tag, row, draw, n = random123.place(counter, key)
    for given in (seed, torch.tensor(seed)):
        found = random_words(given, tag, torch.tensor([row]), draw, n)
        assert tuple(int(word) for word in found) == words


@pytest.mark.parametrize("seed", random123.SEEDS)
def test_words_of_the_reference(seed):
    for draw in random123.STEPS:
        found = random_words(seed, random123.PICKS, torch.tensor(random123.ROWS), draw, 5)
        expected = [random123.words(seed, random123.PICKS, row, draw, 5) for row in random123.ROWS]
        assert list(zip(*(word.tolist() for word in found), strict=True)) == expected


@pytest.mark.parametrize("seed", random123.SEEDS)
def test_uniforms_bit_by_bit(seed, place):
    row_id = torch.tensor(random123.ROWS, device=place.device)
    for step in random123.STEPS:
        expected = random123.uniforms(random123.ROWS, seed, step)
        found = uniforms(row_id, seed=seed, step=step, backend=place.backend)
        assert found.dtype == torch.float32 and found.device == row_id.device
        assert torch.equal(found.cpu(), expected)
        given = torch.tensor(seed, device=place.device)
        assert torch.equal(uniforms(row_id, seed=given, step=step, backend=place.backend).cpu(), expected)


def test_any_64_bits_and_any_step(place):
    """Seeds by two's complement, steps modulo 2^32."""
    row_id = IDS.to(place.device)
    expected = random123.uniforms(range(6), -3, 1)
    for seed, step in ((-3, 1), (2**64 - 3, 1), (-3, 2**32 + 1), (2**64 - 3, 2**70 + 1)):
        assert torch.equal(uniforms(row_id, seed=seed, step=step, backend=place.backend).cpu(), expected)


def test_split_over_calls_and_in_any_order(place):
    row_id = torch.arange(2**33 - 500, 2**33 + 501, device=place.device)
    whole = uniforms(row_id, seed=9, step=4, backend=place.backend)
    parts = [uniforms(part, seed=9, step=4, backend=place.backend) for part in row_id.split([1, 299, 0, 700, 1])]
    assert torch.equal(torch.cat(parts), whole)
    for view in (row_id.flip(0), row_id[::3], row_id.repeat(2, 1).t().reshape(-1), row_id[500:501].expand(70)):
        expected = whole[view - row_id[0]]
        assert torch.equal(uniforms(view, seed=9, step=4, backend=place.backend), expected)
        strided = torch.stack((view, view), 1)[:, 0]
        assert torch.equal(uniforms(strided, seed=9, step=4, backend=place.backend), expected)


def test_no_rows(place):
    found = uniforms(IDS[:0].to(place.device), seed=1, step=1, backend=place.backend)
    assert found.shape == (0,) and found.dtype == torch.float32


def kolmogorov_smirnov(x: torch.Tensor) -> float:
    """The probability that uniform numbers lie further from their distribution."""
    x = x.double().sort().values
    n = len(x)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = float(torch.maximum((steps[1:] - x).max(), (x - steps[:-1]).max()))
    t = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * distance
    if t < 0.3:  # where the series below converges slowly
        return 1.0
    return min(1.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * t) ** 2) for k in range(1, 101)))


@pytest.mark.parametrize(
    ("first", "stride", "seed", "step"),
    [(0, 1, 0, 0), (2**33 + 7, 1, 2**63 - 5, 1), (0, 2**32, -1, 10**6), (5, 4096, 1, 0)],
)
def test_distribution(first, stride, seed, step, fast_place):
    """Also of ids that differ in their high word alone: the numbers are uniform, and neighbours know nothing of
    each other."""
    n = 200_000
    row_id = first + stride * torch.arange(n, device=fast_place.device)
    u = uniforms(row_id, seed=seed, step=step, backend=fast_place.backend).cpu().double()
    assert 0 <= u.min() < 1e-4 and 1 - 1e-4 < u.max() < 1
    assert abs(u.mean() - 0.5) < 4 * math.sqrt(1 / 12 / n)
    assert abs((u - 0.5).square().mean() - 1 / 12) < 4 * math.sqrt(1 / 180 / n)
    assert abs(((u[1:] - 0.5) * (u[:-1] - 0.5)).mean() * 12) < 4 / math.sqrt(n)
    assert kolmogorov_smirnov(u) > 1e-3


def test_steps_and_seeds_know_nothing_of_each_other(fast_place):
    n = 100_000
    row_id = torch.arange(n, device=fast_place.device)
    drawn = [(0, 0), (0, 1), (1, 0), (1, 1), (2**32, 0), (-1, 2**32 - 1)]
    u = torch.stack([uniforms(row_id, seed=s, step=t, backend=fast_place.backend) for s, t in drawn]).cpu().double()
    between = torch.corrcoef(u) - torch.eye(len(drawn))
    assert between.abs().max() < 4.5 / math.sqrt(n)


def test_the_statistic_itself():
    """It finds numbers that are off by a hundredth."""
    even = (torch.arange(100_000) + 0.5) / 100_000
    assert kolmogorov_smirnov(even) == 1.0
    assert kolmogorov_smirnov(even * 0.99) < 1e-6
    assert kolmogorov_smirnov(even**1.03) < 1e-6


def test_seed_on_the_device_is_read_in_every_call(place):
    row_id, seed = IDS.to(place.device), torch.tensor(1, device=place.device)
    first = uniforms(row_id, seed=seed, step=0, backend=place.backend)
    seed += 1
    second = uniforms(row_id, seed=seed, step=0, backend=place.backend)
    assert torch.equal(first.cpu(), random123.uniforms(range(6), 1, 0))
    assert torch.equal(second.cpu(), random123.uniforms(range(6), 2, 0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("backend", ["native", "triton", "reference"])
def test_in_a_cuda_graph(backend):
    row_id, seed = IDS.cuda(), torch.tensor(1, device="cuda")
    uniforms(row_id, seed=seed, step=0, backend=backend)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = uniforms(row_id, seed=seed, step=0, backend=backend)
    for value in (5, -5):
        seed.fill_(value)
        graph.replay()
        assert torch.equal(found.cpu(), random123.uniforms(range(6), value, 0))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")
def test_under_compile(place):
    """One graph, compiled for one step, then for all; no code is generated."""
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    drawn = torch.compile(
        lambda row_id, seed, step: uniforms(row_id, seed=seed, step=step, backend=place.backend),
        backend=backend,
        fullgraph=True,
    )
    row_id = IDS.to(place.device)
    for seed in (2**63 + 1, torch.tensor(-5, device=place.device)):
        before = backend.frame_count
        for step in (3, 4, 5, 6, 2**31):
            assert torch.equal(drawn(row_id, seed, step).cpu(), random123.uniforms(range(6), int(seed), step))
        assert backend.frame_count <= before + 2
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::UserWarning")  # opcheck compiles through every deprecated corner of torch
def test_op():
    op = torch.ops.torchassay.uniforms.default
    for seed in (None, torch.tensor(7)):
        for backend in ("native", "reference"):
            torch.library.opcheck(op, (IDS, seed, 3, 4, backend))


CASES = {
    "row_id not a tensor": ([1, 2], 1, 1, TypeError, "row_id must be a Tensor, got list"),
    "row_id of floats": (IDS.float(), 1, 1, TypeError, "row_id must be int64, got float32"),
    "row_id of int32": (IDS.int(), 1, 1, TypeError, "row_id must be int64, got int32"),
    "row_id 2-d": (IDS[None], 1, 1, ValueError, "row_id must have shape (N,), got (1, 6)"),
    "seed a float": (IDS, 1.0, 1, TypeError, "seed must be an int or a 0-d int64 Tensor, got float"),
    "seed a bool": (IDS, True, 1, TypeError, "seed must be an int or a 0-d int64 Tensor, got bool"),
    "no seed": (IDS, None, 1, TypeError, "seed must be an int or a 0-d int64 Tensor, got NoneType"),
    "seed too large": (IDS, 2**64, 1, ValueError, f"seed must have 64 bits, got {2**64}"),
    "seed too small": (IDS, -(2**63) - 1, 1, ValueError, f"seed must have 64 bits, got {-(2**63) - 1}"),
    "seed 1-d": (IDS, IDS[:1], 1, ValueError, "seed must be 0-d where it is a tensor, got (1,)"),
    "seed int32": (IDS, torch.tensor(1).int(), 1, TypeError, "seed must be int64 where it is a tensor, got int32"),
    "seed elsewhere": (
        IDS,
        torch.tensor(1, device="meta"),
        1,
        ValueError,
        "seed must be on row_id's device, cpu, got meta",
    ),
    "step a float": (IDS, 1, 1.0, TypeError, "step must be an int, got float"),
    "step a bool": (IDS, 1, True, TypeError, "step must be an int, got bool"),
    "step negative": (IDS, 1, -1, ValueError, "step must be >= 0, got -1"),
}


@pytest.mark.parametrize(("row_id", "seed", "step", "error", "message"), CASES.values(), ids=CASES)
def test_errors(row_id, seed, step, error, message):
    with pytest.raises(error) as raised:
        uniforms(row_id, seed=seed, step=step)
    assert str(raised.value) == f"uniforms: {message}"
    assert isinstance(raised.value, checks.InputTypeError if error is TypeError else checks.InputValueError)
