"""The CUDA kernels run on the host, each in both orders of its threads, against the oracle.

Every kernel, every way that rows can lie in memory, and every seam (lanes, vectors, spans).
"""

import subprocess

import host_kernels
import oracle
import pytest
import rows
import torch

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
UPSTREAM = {"loss": (True, False), "entropy": (False, True), "both": (True, True)}
# Columns and multiprocessors: with one, no rows are few. Vectors have 4 columns in float32, else 8; a row of up to 1024
# is held by 1 to 32 lanes, up to 8192 walked by a warp in spans of 512 or 1024, above by a block in spans of 4096 or
# 8192.
SHORT = {f"short {classes}": (classes, 132) for classes in (1, 2, 10, 32, 33, 100, 128, 1000, 1023, 1024)}
WARP = {f"warp {classes}": (classes, 132) for classes in (1025, 1032, 2048, 5001, 8192)}
BLOCK = {f"block {classes}": (classes, 1) for classes in (8193, 8200, 16384, 20001, 50257)}
SPANS = {f"spans {classes}": (classes, 132) for classes in (8193, 8200, 16384, 20001)}
ALL = SHORT | WARP | BLOCK | SPANS
SOME = {name: ALL[name] for name in ("short 10", "short 100", "short 1000", "warp 2048", "block 20001", "spans 8200")}


def each(variants):
    return pytest.mark.parametrize(("classes", "multiprocessors"), variants.values(), ids=variants)


@pytest.fixture(scope="session")
def kernels(host_program):
    return host_kernels.Kernels(host_program("run_kernels.cpp"))


def test_indices_beyond_32_bits(host_program):
    done = subprocess.run([host_program("index_cases.cpp")], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("all right\n", 0), done.stderr


def noise(*shape: int, seed: int = 1, scale: float = 4.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def few(family, classes, dtype):
    x, y, exact = rows.case(family, classes, dtype)
    at = torch.linspace(0, len(x) - 1, min(len(x), 21 if classes < 200 else 7 if classes < 2000 else 3)).round().long()
    return x[at], y[at], {name: value[at] for name, value in exact.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each(ALL)
def test_signals(classes, multiprocessors, dtype, kernels):
    parts = [few(family, classes, dtype) for family in rows.FAMILIES]
    x, y = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    exact = {name: torch.cat([part[2][name] for part in parts]) for name in parts[0][2]}
    found = kernels.scores(x, y, multiprocessors=multiprocessors)
    for name, value in exact.items():
        if name == "prediction":
            assert torch.equal(found[name], value)
        else:
            error = oracle.relative_errors(name, found[name], value, x)
            oracle.note("cuda-on-host", dtype, name, float(error.max()))
            assert error.max() <= 1e-6, f"{name} of row {int(error.argmax())}: error {error.max():.1e}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [5, 100, 1000, 1032, 5001, 8200, 9001])
def test_any_address_and_stride_gives_the_same_bits(classes, dtype, kernels):
    """Also as 16-byte aligned vectors, where the row has such."""
    x, y = noise(3, classes).to(dtype), torch.tensor([classes - 1, 0, 3])
    expected = kernels.scores(x, y)
    for offset, gap in ((1, 0), (2, 3), (4, 8), (3, 5), (8, 24)):
        view = torch.zeros(3 * (classes + gap) + 32, dtype=dtype)[offset:]
        view = view.as_strided((3, classes), (classes + gap, 1))
        view.copy_(x)
        for name, value in kernels.scores(view, y).items():
            assert torch.equal(value, expected[name]), (name, offset, gap)


@pytest.mark.parametrize("classes", [40, 1030, 8196])
def test_rows_of_two_strides(classes, kernels):
    cube = noise(3, 2, 2, classes)
    x = cube.permute(2, 0, 1, 3)[:, :, 1]  # [2, 3, classes]: neither folded nor contiguous
    y = torch.arange(6)
    expected = kernels.scores(x.reshape(6, classes), y)
    for name, value in kernels.scores(x, y).items():
        assert torch.equal(value, expected[name]), name
    gradient = kernels.grads(x, y, expected["stats"], torch.ones(6), None)
    assert torch.equal(gradient, kernels.grads(x.reshape(6, classes), y, expected["stats"], torch.ones(6), None))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [7, 33, 130, 1000, 2050, 8200])
def test_a_row_has_the_same_bits_in_any_batch(classes, dtype, kernels):
    """Alone, in any place, with one multiprocessor (many rows a warp, no row cut into spans) or with 132."""
    count = 70 if classes < 1024 else 5
    x, y = noise(count, classes).to(dtype), torch.arange(count) % classes
    together = kernels.scores(x, y)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(2))
    others = {
        "permuted": (kernels.scores(x[order], y[order]), order),
        "alone": (kernels.scores(x[2:3], y[2:3]), torch.tensor([2])),
        "one multiprocessor": (kernels.scores(x, y, multiprocessors=1), torch.arange(count)),
    }
    for how, (found, at) in others.items():
        for name, value in found.items():
            assert torch.equal(value, together[name][..., at]), (how, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [8193, 33001, 50257])
def test_cut_into_spans_or_not_gives_the_same_bits(classes, dtype, kernels):
    x, y = noise(2, classes).to(dtype), torch.tensor([3, classes - 1])
    x[1, 100:9000] = -torch.inf
    cut, whole = (kernels.scores(x, y, multiprocessors=count) for count in (132, 1))
    for name, value in cut.items():
        assert torch.equal(value, whole[name]), name


@each(SOME)
def test_each_signal_alone_has_the_bits_it_has_with_all(classes, multiprocessors, kernels):
    x, y = noise(3, classes), torch.tensor([classes - 1, 7, 0])
    together = kernels.scores(x, y, multiprocessors=multiprocessors)
    for name in together:
        alone = kernels.scores(x, y, (name,), multiprocessors=multiprocessors)
        assert torch.equal(alone[name], together[name]), name
    without = kernels.scores(x, multiprocessors=multiprocessors)
    assert "loss" not in without
    for name, value in without.items():
        if name != "stats":
            assert torch.equal(value, together[name]), name
    assert torch.equal(without["stats"][[0, 1, 2, 3, 5]], together["stats"][[0, 1, 2, 3, 5]])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@each(SOME)
def test_targets_ignored_and_out_of_range(classes, multiprocessors, dtype, kernels):
    x = noise(6, classes)
    y = torch.tensor([0, classes, -1, 5, 2**31 - 1, -(2**31)], dtype=dtype)
    out_of_range, ignored = [1, 2, 4, 5], [3]
    clean = kernels.scores(x, torch.zeros(6, dtype=dtype), multiprocessors=multiprocessors)
    found = kernels.scores(x, y, ignore_index=5, multiprocessors=multiprocessors)
    for name, value in found.items():
        if name in host_kernels.NEED_TARGET:
            assert value[out_of_range].isnan().all()
            assert torch.equal(value[ignored], torch.zeros(1))
            assert value[0] == clean[name][0]
        elif name != "stats":
            assert torch.equal(value, clean[name])
    assert found["stats"][4, out_of_range].isnan().all()
    assert found["stats"][4, 3] == 0


@each(SOME)
def test_poison_stays_in_its_row(classes, multiprocessors, kernels):
    x, y = noise(6, classes), torch.tensor([0, 1, 2, 3, 4, 5])
    clean = kernels.scores(x, y, multiprocessors=multiprocessors)
    x[0, classes - 1] = torch.nan
    x[1, classes // 2] = torch.inf
    x[2] = -torch.inf
    x[3, [1, classes - 1]] = torch.tensor([torch.inf, torch.nan])
    x[4] = torch.nan
    found = kernels.scores(x, y, ignore_index=4, multiprocessors=multiprocessors)
    assert found["prediction"].tolist()[:5] == x.argmax(1).tolist()[:5]
    for name, value in found.items():
        if name not in ("prediction", "stats"):
            assert value[: 4 if name in host_kernels.NEED_TARGET else 5].isnan().all(), name
            assert value[5] == clean[name][5]
    assert [found[name][4] for name in host_kernels.NEED_TARGET] == [0, 0, 0]


@each({name: ALL[name] for name in ("short 33", "short 1000", "warp 5001", "block 20001", "spans 20001")})
def test_ties_give_the_lowest_class(classes, multiprocessors, kernels):
    """In one lane, in two, in one span, in two: lane order is not class order."""
    pairs = [(0, classes - 1), (3, 4), (9, 16), (classes // 2, classes // 2 + 1), (classes - 2, classes - 1)]
    if classes > 1024:
        pairs += [(31, 128), (5, 1029), (1020, 1024), (1023, 1024)]
    if classes > 8192:
        pairs += [(2047, 2048), (5, 8197), (8195, 8197), (8191, 8192), (2040, 2048), (4095, 12000)]
    for dtype in DTYPES:
        x = noise(len(pairs), classes, scale=1.0).clamp(max=4).to(dtype)
        for i, pair in enumerate(pairs):
            x[i, list(pair)] = 9
        found = kernels.scores(x, torch.zeros(len(pairs), dtype=torch.int64), multiprocessors=multiprocessors)
        assert found["prediction"].tolist() == [pair[0] for pair in pairs]
        assert torch.equal(found["margin"], torch.zeros(len(pairs)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each({name: ALL[name] for name in ("short 100", "warp 5001", "block 20001", "spans 20001")})
def test_zeros_of_both_signs_tie(classes, multiprocessors, dtype, kernels):
    x = torch.full((2, classes), -1.0, dtype=dtype)
    x[0, 3], x[0, classes - 2] = -0.0, 0.0
    x[1, 5], x[1, classes - 1] = 0.0, -0.0
    found = kernels.scores(x, torch.tensor([classes - 2, 5]), multiprocessors=multiprocessors)
    assert found["prediction"].tolist() == [3, 5]
    assert torch.equal(found["margin"], torch.zeros(2)) and torch.equal(found["target_margin"], torch.zeros(2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each({name: ALL[name] for name in ("short 100", "short 1023", "warp 5001", "block 20001", "spans 20001")})
def test_one_finite_logit_at_every_seam(classes, multiprocessors, dtype, kernels):
    seams = (0, 3, 4, 7, 8, 31, 32, 255, 256, 511, 512, 1023, 1024, 2047, 2048, 4095, 4096, 8191, 8192, classes - 1)
    at = [column for column in seams if column < classes]
    x = torch.full((len(at), classes), -torch.inf, dtype=dtype)
    x[torch.arange(len(at)), torch.tensor(at)] = -2.5
    found = kernels.scores(x, torch.zeros(len(at), dtype=torch.int64), multiprocessors=multiprocessors)
    assert found["prediction"].tolist() == at
    assert torch.equal(found["lse"], torch.full((len(at),), -2.5))
    for name in ("entropy", "least_confidence"):
        assert torch.equal(found[name], torch.zeros(len(at))), name
    for name in ("confidence", "margin"):
        assert torch.equal(found[name], torch.ones(len(at))), name
    assert found["loss"].tolist() == [0.0] + [torch.inf] * (len(at) - 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each(SOME)
def test_the_lowest_number_is_a_logit_like_any_other(classes, multiprocessors, dtype, kernels):
    """The kernels start from it: classes at -inf before it must neither hide it nor count."""
    lowest = torch.finfo(dtype).min
    x = torch.full((3, classes), -torch.inf, dtype=dtype)
    x[0, classes - 5 :] = lowest
    x[1, classes - 1] = lowest
    x[2] = lowest
    x[2, 3] = 1
    found = kernels.scores(x, torch.tensor([classes - 5, classes - 1, 3]), multiprocessors=multiprocessors)
    assert found["prediction"].tolist() == [classes - 5, classes - 1, 3]
    expected = torch.tensor([1 / 5, 1, 1])
    torch.testing.assert_close(found["confidence"], expected)
    torch.testing.assert_close(found["entropy"], torch.log(1 / expected), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(found["loss"], torch.log(1 / expected), atol=1e-7, rtol=1e-6)
    assert torch.equal(found["stats"][1] == -torch.inf, torch.tensor([False, True, False]))


def test_monotone_in_the_gap(kernels):
    """The loss falls strictly and grad_norm never rises on a grid of gaps from -80 to 80."""
    gap = torch.arange(-80, 80.25, 0.25)
    x = torch.cat([gap[:, None], torch.tensor([[0.0, -1.0]]).expand(len(gap), 2)], 1)
    found = kernels.scores(x, torch.zeros(len(gap), dtype=torch.int64))
    assert (found["loss"].diff() < 0).all()
    assert (found["grad_norm"].diff() <= found["grad_norm"][1:] * 2**-22).all()


# ---- gradients


def upstreams(which, count):
    generator = torch.Generator().manual_seed(40)
    return [torch.randn(count, generator=generator) if wanted else None for wanted in UPSTREAM[which]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", UPSTREAM)
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 100, 129, 1000, 8200])
def test_gradients(classes, which, dtype, kernels):
    """Rows of all lengths: a vector holds several, or begins in one and ends in the next."""
    for family in ("gaps", "random", "masked", "ties") if classes > 2 else ("gaps", "random"):
        x, y, _ = few(family, classes, dtype)
        gL, gH = upstreams(which, len(x))
        stats = kernels.scores(x, y, ("stats",))["stats"]
        found = kernels.grads(x, y if gL is not None else None, stats, gL, gH)
        oracle.check_gradient(found, oracle.grads(x, y, gL, gH), 2e-6 if gH is not None else 1e-6)
        assert torch.equal(found[x == -torch.inf], torch.zeros_like(found[x == -torch.inf]))


@pytest.mark.parametrize("classes", [2, 100, 4097])
def test_the_target_keeps_its_digits(classes, kernels):
    """A confident row: p_y - 1 is the rest's probability, to a relative 1e-6."""
    x, y, _ = rows.case("gaps", classes, torch.float32)
    at = torch.arange(len(x) - 12, len(x), 4)
    x, y, ones = x[at], y[at], torch.ones(3)
    found = kernels.grads(x, y, kernels.scores(x, y, ("stats",))["stats"], ones, None)
    own = torch.arange(len(x)), y
    torch.testing.assert_close(found[own].double(), oracle.grads(x, y, ones, None)[own], rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [3, 10, 100, 1001])
def test_gradients_of_any_view_and_upstream(classes, dtype, kernels):
    x, y = noise(9, classes).to(dtype), torch.arange(9) % classes
    stats = kernels.scores(x, y, ("stats",))["stats"]
    gL, gH = upstreams("both", 9)
    expected = kernels.grads(x, y, stats, gL, gH)
    spread = torch.stack([gL, gL], 1)[:, 0]  # stride 2
    one = torch.tensor(0.25).expand(9)  # stride 0
    assert torch.equal(kernels.grads(x, y, stats, spread, gH), expected)
    assert torch.equal(kernels.grads(x, y, stats, one, None), kernels.grads(x, y, stats, one.clone(), None))
    for offset, gap in ((1, 0), (3, 5), (8, 24), (4, 8)):
        view = torch.zeros(9 * (classes + gap) + 32, dtype=dtype)[offset:]
        view = view.as_strided((9, classes), (classes + gap, 1))
        view.copy_(x)
        assert torch.equal(kernels.grads(view, y, stats, gL, gH), expected), (offset, gap)


@pytest.mark.parametrize("which", UPSTREAM)
@pytest.mark.parametrize("classes", [10, 100, 1001])
def test_gradients_of_ignored_poisoned_and_out_of_range_rows(classes, which, kernels):
    x, y = noise(7, classes), torch.tensor([0, 4, -100, 3, classes, -1, 2])
    gL, gH = upstreams(which, 7)
    target = y if gL is not None else None
    clean = kernels.grads(x, target, kernels.scores(x, y, ("stats",))["stats"], gL, gH)
    x[1, classes - 1] = torch.nan
    x[2, 0] = torch.inf
    found = kernels.grads(x, target, kernels.scores(x, y, ("stats",))["stats"], gL, gH)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 3, 6]], clean[[0, 3, 6]])
    if which == "loss":
        assert (found[2] == 0).all()  # ignored, though it is poisoned
    else:
        assert found[2].isnan().all()
    assert found[4:6].isnan().all() == (gL is not None)


def test_rounded_once_to_nearest_even(kernels):
    """Half-way cases: p is 1/2 at a tie, so dx is half the upstream, which has one bit too many."""
    for dtype, bits in ((torch.bfloat16, 8), (torch.float16, 11)):
        x = torch.zeros(64, 2, dtype=dtype)
        up = (2**bits + torch.arange(64)) * 2.0 ** (1 - bits)
        y = torch.zeros(64, dtype=torch.int64)
        found = kernels.grads(x, y, kernels.scores(x, y, ("stats",))["stats"], up, None)
        assert torch.equal(found[:, 1], (up / 2).to(dtype))
        assert torch.equal(found[:, 0], (-up / 2).to(dtype))
