"""The forward kernels called directly: every kernel and every seam in it (lanes, tiles, segments) against the oracle.

A tile has 2048 columns (1024 in float32), a segment 4 tiles; rows of up to 32 and of up to 4096 columns have kernels of
their own. A program takes the interpreter 10 to 100 ms: a few rows a case.
"""

import oracle
import pytest
import rows
import torch
from torchassay.triton_kernels import row_scores as launcher

FAMILIES = [*rows.FAMILIES]
NEED_TARGET = ("loss", "grad_norm", "target_margin")
HALF = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, *HALF]


def few(family, classes, dtype, count=3):
    """Some rows of a family spread evenly, their targets, and the exact signals."""
    x, y, exact = rows.case(family, classes, dtype)
    at = torch.linspace(0, len(x) - 1, count).round().long()
    return x[at], y[at], {name: value[at] for name, value in exact.items()}


def check(found, exact, x, tolerance):
    for name, value in exact.items():
        if name == "prediction":
            assert torch.equal(found[name], value)
        else:
            error = oracle.relative_errors(name, found[name], value, x)
            assert error.max() <= tolerance, f"{name}: {found[name]}, exact {value}, error {error.max():.1e}"


# 32 and 33: the lane's rows end; 4096 and 4097: the register's end, 3 or 5 tiles; 8192: whole segments;
# 8193: a tail of one column; 12289: one, three segments; 50257: GPT-2's vocabulary
@pytest.mark.parametrize("classes", [32, 33, 100, 4096, 4097, 8192, 8193, 12289, 50257])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32(family, classes, scores):
    x, y, exact = few(family, classes, torch.float32, 3 if classes < 10000 else 2)
    check(scores(x, y), exact, x, 1e-6)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("classes", [32, 33, 1024, 8192, 16385, 50257])
@pytest.mark.parametrize("family", ["gaps", "masked", "blocks"])
def test_half_precision(family, classes, dtype, scores):
    x, y, exact = few(family, classes, dtype, 2)
    check(scores(x, y), exact, x, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [3, 127, 8200, 20000])
@pytest.mark.parametrize("family", FAMILIES)
def test_with_the_errors_of_the_hardware(family, classes, dtype, scores, hardware_exp2):
    x, y, exact = few(family, classes, dtype, 3 if classes < 1000 else 2)
    check(scores(x, y), exact, x, 2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [20, 1000, 8200, 9001])
def test_each_signal_alone_has_the_bits_it_has_with_all(classes, dtype, scores):
    x = torch.randn(2, classes, generator=torch.Generator().manual_seed(1)).mul(4).to(dtype)
    y = torch.tensor([classes - 1, 7])
    together = scores(x, y)
    for name in together:
        asked = ("stats", "entropy") if name == "stats" else (name,)  # mu is 0 without the entropy
        assert torch.equal(scores(x, y, names=asked)[name], together[name]), name
    assert torch.equal(scores(x, y, names=("stats",))["stats"][:5], together["stats"][:5])
    assert torch.equal(scores(x, y, names=("stats",))["stats"][5], torch.zeros(2))


@pytest.mark.parametrize("classes", [20, 100, 8200])
def test_no_target_needs_none(classes, scores):
    x = torch.randn(2, classes, generator=torch.Generator().manual_seed(2))
    with_target = scores(x, torch.zeros(2, dtype=torch.int64))
    names = [name for name in with_target if name not in (*NEED_TARGET, "stats")]
    for name, value in scores(x, names=names).items():
        assert torch.equal(value, with_target[name])
    stats = scores(x, names=("entropy", "stats"))["stats"]
    assert torch.equal(stats[[0, 1, 2, 3, 5]], with_target["stats"][[0, 1, 2, 3, 5]])
    assert torch.equal(stats[4], torch.zeros(2))


@pytest.mark.parametrize("classes", [3, 200, 8200])
def test_stats_of_the_backward(classes, scores):
    x, y, exact = few("gaps", classes, torch.float32, 5)
    m, u, z, r, miss, mu = scores(x, y)["stats"].double()
    top2 = x.double().topk(2).values
    assert torch.equal(m, top2[:, 0])
    assert torch.equal(u, top2[:, 1])
    wide = x.double()
    others = torch.softmax(wide, 1).scatter(1, y[:, None], 0).sum(1)
    torch.testing.assert_close(z, torch.exp(u - m), rtol=1e-6, atol=1e-37)
    torch.testing.assert_close(r, exact["least_confidence"] / exact["confidence"], rtol=1e-6, atol=1e-37)
    torch.testing.assert_close(miss, others, rtol=1e-6, atol=1e-37)
    torch.testing.assert_close(mu, exact["entropy"] - torch.log1p(r), rtol=2e-6, atol=1e-6 * float(mu.max()))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("classes", [10, 100, 4097])
def test_targets_ignored_and_out_of_range(classes, dtype, scores):
    x = torch.randn(6, classes, generator=torch.Generator().manual_seed(3))
    y = torch.tensor([0, classes, -1, 5, 2**31 - 1, -(2**31)], dtype=dtype)
    out_of_range, ignored = [1, 2, 4, 5], [3]
    clean = scores(x, torch.zeros(6, dtype=dtype))
    found = scores(x, y, ignore_index=5)
    for name, value in found.items():
        if name in NEED_TARGET:
            assert value[out_of_range].isnan().all()
            assert torch.equal(value[ignored], torch.zeros(1))
            assert value[0] == clean[name][0]
        elif name != "stats":
            assert torch.equal(value, clean[name])
    assert found["stats"][4, out_of_range].isnan().all()
    assert found["stats"][4, 3] == 0


@pytest.mark.parametrize("ignore_index", [-100, 0, 3, 10**6, 2**40, -(2**40)])
def test_any_ignore_index(ignore_index, scores):
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(4))
    y = torch.tensor([ignore_index, 1])
    found = scores(x, y, ignore_index=ignore_index)
    plain = scores(x, torch.tensor([2, 1]))
    for name in NEED_TARGET:
        assert found[name][0] == 0
        assert found[name][1] == plain[name][1]


@pytest.mark.parametrize("classes", [5, 72, 100, 4104, 4099, 16390])
def test_no_address_outside_the_tensors(classes, scores, only_own_addresses):
    """Rows at odd strides, targets out of range: the kernels read the logits of the rows and nothing else."""
    memory = torch.randn(2, 4, classes + 3, generator=torch.Generator().manual_seed(5)).bfloat16()
    before = memory.clone()
    x = memory[:, 1:3, :classes]
    y = torch.tensor([0, classes, -1, 2**62])
    plain = scores(x.reshape(4, classes).clone(), y)
    for name, value in scores(x, y).items():
        torch.testing.assert_close(value, plain[name], rtol=1e-6, atol=0, equal_nan=True)
    assert torch.equal(memory, before)


def test_offsets_beyond_32_bits(scores):
    """Rows 2^31 elements apart; only their own pages of the 8 GB are ever touched."""
    try:
        memory = torch.empty(2**32 + 64, dtype=torch.float16, device="cuda" if torch.cuda.is_available() else "cpu")
    except RuntimeError:
        pytest.skip("8 GB of address space are not to be had")
    steps = [(2**31 + 8, 2**30 + 1), (2**30 + 1, 2**31 + 8), (2**32 + 16, 2**31 + 8)]  # the last: one stride in all
    for classes in (10, 64):
        for step_a, step_b in steps:
            last = 1 if step_a == 2**32 + 16 else 2
            x = memory.as_strided((last, 2, classes), (step_a, step_b, 1))
            x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(6)))
            plain = x.reshape(-1, classes).clone()
            y = torch.arange(len(plain))
            expected = scores(plain, y)
            for name, value in scores(x, y).items():
                torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=0)


@pytest.mark.parametrize("classes", [30, 200, 4099])
def test_rows_of_two_strides(classes, scores):
    cube = torch.randn(3, 2, 2, classes, generator=torch.Generator().manual_seed(7))
    x = cube.permute(2, 0, 1, 3)[:, :, 1]  # [2, 3, classes]: neither folded nor contiguous
    y = torch.arange(6)
    plain = scores(x.reshape(6, classes), y)
    for name, value in scores(x, y).items():
        assert torch.equal(value, plain[name]), name
    one = scores(x[:, :1].expand(2, 3, classes), y)  # stride 0
    for name in ("entropy", "margin"):
        assert torch.equal(one[name].view(2, 3)[:, 2], plain[name].view(2, 3)[:, 0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [20, 100, 4104])
def test_misaligned_views_have_the_bits_of_their_class(classes, dtype, scores):
    """Views that are not 16-byte aligned give one another's bits, and the aligned rows' values."""
    x = torch.randn(2, classes, generator=torch.Generator().manual_seed(8)).to(dtype)
    y = torch.tensor([3, classes - 1])
    memory = torch.empty(2, classes + 8, dtype=dtype)
    aligned, views = scores(x, y), []
    for offset in (1, 2, 3, 5):
        view = memory[:, offset : offset + classes]
        view.copy_(x)
        views.append(scores(view, y))
    for name, value in aligned.items():
        torch.testing.assert_close(views[0][name], value, rtol=1e-6, atol=0)
        for view in views[1:]:
            assert torch.equal(view[name], views[0][name]), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [7, 130, 8200, 8201])
def test_alone_in_three_and_permuted(classes, dtype, scores):
    x = torch.randn(3, classes, generator=torch.Generator().manual_seed(9)).mul(5).to(dtype)
    y = torch.tensor([1, 2, 6])
    together = scores(x, y)
    order = torch.tensor([2, 0, 1])
    for name, value in scores(x[order], y[order]).items():
        assert torch.equal(value, together[name][..., order]), name
    for name, value in scores(x[1:2], y[1:2]).items():
        assert torch.equal(value, together[name][..., 1:2]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [16384, 33001, 50257])
def test_cut_into_segments_or_not_gives_the_same_bits(classes, dtype, scores, monkeypatch):
    x = torch.randn(2, classes, generator=torch.Generator().manual_seed(10)).to(dtype)
    x[1, 100:9000] = -torch.inf
    y = torch.tensor([3, classes - 1])
    monkeypatch.setattr(launcher, "FEW", 0)
    whole = scores(x, y)
    monkeypatch.setattr(launcher, "FEW", 64)
    for name, value in scores(x, y).items():
        assert torch.equal(value, whole[name]), name
    for names in (("loss",), ("grad_norm", "margin"), ("entropy", "prediction")):
        for name, value in scores(x, y, names=names).items():
            assert torch.equal(value, whole[name]), name


@pytest.mark.parametrize("classes", [40, 100, 1000])
def test_finished_one_by_one_or_32_together_gives_the_same_bits(classes, scores, monkeypatch):
    x = torch.randn(35, classes, generator=torch.Generator().manual_seed(11)).mul(5)[: 35 if classes == 40 else 5]
    y = torch.arange(len(x))
    one_by_one = scores(x, y)
    monkeypatch.setattr(launcher, "MANY", 1)
    for name, value in scores(x, y).items():
        assert torch.equal(value, one_by_one[name]), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_finite_logit_at_every_seam(dtype, scores):
    """Between lanes, tiles and segments of either tile shape."""
    for classes in (8200, 9001):
        seams = [0, 7, 8, 255, 256, 1023, 1024, 2047, 2048, 4095, 4096, 8191, 8192, classes - 1]
        for at in (seams[::2], seams[1::2]) if dtype == torch.float32 else (seams[::4],):
            x = torch.full((len(at), classes), -torch.inf, dtype=dtype)
            x[torch.arange(len(at)), torch.tensor(at)] = -2.5
            y = torch.tensor([at[0]] * len(at))
            found = scores(x, y)
            assert found["prediction"].tolist() == at
            assert torch.equal(found["lse"], torch.full((len(at),), -2.5))
            for name in ("entropy", "least_confidence"):
                assert torch.equal(found[name], torch.zeros(len(at))), name
            for name in ("confidence", "margin"):
                assert torch.equal(found[name], torch.ones(len(at))), name
            assert found["loss"].tolist() == [0.0] + [torch.inf] * (len(at) - 1)


@pytest.mark.parametrize("classes", [17, 300, 20000, 20001])
def test_ties_give_the_lowest_class(classes, scores):
    """In one lane, in two, in one tile, in two, in the first segment and the last."""
    pairs = [(0, classes - 1), (3, 4), (9, 16), (classes // 2, classes // 2 + 1), (classes - 2, classes - 1)]
    if classes > 10000:
        pairs = [(255, 256), (5, 8197), (8195, 8197), (8191, 8192), (0, classes - 1)]  # lane order is not class order
    x = torch.randn(len(pairs), classes, generator=torch.Generator().manual_seed(12)).clamp(max=4)
    for i, pair in enumerate(pairs):
        x[i, list(pair)] = 9
    found = scores(x, torch.zeros(len(pairs), dtype=torch.int64))
    assert found["prediction"].tolist() == [pair[0] for pair in pairs]
    assert torch.equal(found["margin"], torch.zeros(len(pairs)))


@pytest.mark.parametrize("classes", [6, 50, 9000, 9001])
def test_poison_stays_in_its_row(classes, scores):
    x = torch.randn(6, classes, generator=torch.Generator().manual_seed(13))
    y = torch.tensor([0, 1, 2, 3, 4, 5])
    clean = scores(x, y)
    x[0, classes - 1] = torch.nan
    x[1, classes // 2] = torch.inf
    x[2] = -torch.inf
    x[3, [1, classes - 1]] = torch.tensor([torch.inf, torch.nan])
    x[4] = torch.nan
    found = scores(x, y, ignore_index=4)
    assert found["prediction"].tolist()[:5] == x.argmax(1).tolist()[:5]
    for name, value in found.items():
        if name not in ("prediction", "stats"):
            last = 4 if name in NEED_TARGET else 5
            assert value[:last].isnan().all(), name
            assert value[5] == clean[name][5]
    assert [found[name][4] for name in NEED_TARGET] == [0, 0, 0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [20, 100, 17000])
def test_the_lowest_number_is_a_logit_like_any_other(classes, dtype, scores):
    """The kernels start from it: classes at -inf before it must neither hide it nor count."""
    lowest = torch.finfo(dtype).min
    x = torch.full((3, classes), -torch.inf, dtype=dtype)
    x[0, classes - 5 :] = lowest
    x[1, classes - 1] = lowest
    x[2] = lowest
    x[2, 3] = 1
    found = scores(x, torch.tensor([classes - 5, classes - 1, 3]))
    assert found["prediction"].tolist() == [classes - 5, classes - 1, 3]
    expected = torch.tensor([1 / 5, 1, 1])
    torch.testing.assert_close(found["confidence"], expected)
    torch.testing.assert_close(found["entropy"], torch.log(1 / expected), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(found["loss"], torch.log(1 / expected), atol=1e-7, rtol=1e-6)
    assert torch.equal(found["stats"][1] == -torch.inf, torch.tensor([False, True, False]))


def test_monotone_in_the_gap(scores):
    """The loss falls strictly and grad_norm never rises on a grid of gaps from -80 to 80."""
    gap = torch.arange(-80, 80.25, 0.25)
    x = torch.cat([gap[:, None], torch.tensor([[0.0, -1.0]]).expand(len(gap), 2)], 1)
    found = scores(x, torch.zeros(len(gap), dtype=torch.int64))
    assert (found["loss"].diff() < 0).all()
    norm = found["grad_norm"]
    assert (norm.diff() <= 2.4e-7 * norm[:-1]).all()
    assert (norm[gap >= -8].diff() < 0).all()
    for name, value in found.items():
        if name not in ("lse", "target_margin", "stats"):
            assert (value >= 0).all(), name
