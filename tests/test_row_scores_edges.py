"""What bit others: the cases by number; values that are legal but odd, long tensors, ties, layouts.

Cases 15, 16, 21 are in test_row_scores_values.py, 22 in test_row_scores_invariance.py, 11 to 14 and 17 in
test_row_grads.py, 18 in test_cross_entropy.py, 19 in test_checks.py, 23 in test_compile.py. Softcap (2), tensor
parallelism (24) and the linear head (25) come with those features.
"""

import oracle
import pytest
import rows
import torch
import torchassay as ta
from torchassay.scores import ROW_SIGNALS

FLOATS = oracle.FLOAT_SIGNALS
NEED_TARGET = ("loss", "grad_norm", "target_margin")


def score(place, x, y=None, signals=ROW_SIGNALS, **options):
    target = None if y is None else y.to(place.device)
    return ta.score(x.to(place.device), target, signals=signals, backend=place.backend, **options).cpu()


def bits(scores: ta.Scores) -> dict[str, list]:
    """Every value as its bit pattern, so that equality is bitwise and NaN equals NaN."""
    kind = {torch.float32: torch.int32, torch.float64: torch.int64, torch.int64: torch.int64}
    return {name: value.cpu().view(kind[value.dtype]).tolist() for name, value in scores.as_dict().items()}


# not a multiple of any block: one past, one short, prime
@pytest.mark.parametrize("classes", [5, 17, 129, 1009, 1025, 2049])
def test_case_01_padded_block_peaked_row(classes, place):
    x, y, exact = rows.case("peaked", classes, torch.float32)
    oracle.check(place, score(place, x, y), exact, x)


@pytest.mark.parametrize("classes", [2, 10, 129, 1025])
def test_case_03_all_logits_far_below_zero(classes, place):
    x = rows.FAMILIES["random"](classes)[0][8:14].float() - 500
    y = x.argmin(1)
    oracle.check(place, score(place, x, y), oracle.signals(x, y), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("classes", [10, 1000])
def test_a_top_far_above_the_lowest_number(classes, dtype, place):
    """The gap times the sum of the rest overflows; the rest itself has long been 0."""
    if dtype not in place.dtypes:
        pytest.skip(f"{place}: no {dtype}")
    x = torch.full((2, classes), torch.finfo(dtype).min, dtype=dtype)
    x[0, 3] = 1
    found = score(place, x, torch.tensor([3, 3]))
    uniform = torch.tensor(float(classes)).log().item()
    assert (found.entropy[0], found.loss[0], found.grad_norm[0], found.prediction[0]) == (0, 0, 0, 3)
    assert [found.entropy[1].item(), found.loss[1].item()] == pytest.approx([uniform, uniform], rel=1e-6)


@pytest.mark.parametrize("classes", [3, 100, 9000])
def test_zeros_of_both_signs_tie(classes, place):
    x = torch.full((2, classes), -1.0)
    x[0, 0], x[0, classes - 1] = -0.0, 0.0
    x[1, 1], x[1, classes - 1] = 0.0, -0.0
    found = score(place, x, torch.tensor([classes - 1, 1]))
    assert found.prediction.tolist() == [0, 1]
    assert found.margin.tolist() == found.target_margin.tolist() == [0, 0]


@pytest.mark.parametrize("shift", [1e3, 1e4, -1e4])
def test_case_04_shift_invariance_is_bitwise(shift, place):
    """Logits on a grid of 2^-9 stay exact when shifted, so only lse may change."""
    x = (rows.FAMILIES["random"](130)[0][8:14].clamp(-8, 8) * 512).round().div(512).float()
    y = torch.tensor([0, 129, 5, 64, 77, 1])
    names = [name for name in ROW_SIGNALS if name != "lse"]
    assert bits(score(place, x, y, names)) == bits(score(place, x + shift, y, names))


@pytest.mark.parametrize("classes", [3, 130, 1030])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_case_05_one_finite_logit(classes, dtype, place):
    at = [i for i in (0, 1, 7, 8, 127, 128, 1023, 1024, classes - 1) if i < classes]
    x = torch.full((len(at), classes), -torch.inf, dtype=dtype)
    x[range(len(at)), at] = torch.linspace(-60, 50, len(at)).to(dtype)
    found = score(place, x, torch.tensor(at))
    for name in ("loss", "entropy", "grad_norm", "least_confidence"):
        assert (getattr(found, name) == 0).all(), name
    for name in ("confidence", "margin", "target_margin"):
        assert (getattr(found, name) == 1).all(), name
    assert torch.equal(found.lse, x[range(len(at)), at].float())
    assert found.prediction.tolist() == at


def test_case_06_masked_tail_adds_exactly_nothing(place):
    """A dead class changes nothing, to the bit, where it does not move the others into other blocks."""
    x = rows.FAMILIES["random"](100)[0][4:10].float()
    y = torch.tensor([0, 99, 50, 3, 98, 1])
    tail = torch.full((6, 28), -torch.inf)
    dead = score(place, torch.cat([x, tail], 1), y)
    oracle.check(place, dead, oracle.signals(x, y), x)
    lower = torch.cat([x, torch.full((6, 28), -1e30)], 1)  # finite, but no part of any sum
    assert bits(score(place, lower, y)) == bits(dead)


def test_case_06_the_lowest_float16_is_a_logit_like_any_other(place):
    x = torch.full((2, 40), -65504.0, dtype=torch.float16)
    x[1, 7] = -torch.inf
    y = torch.tensor([3, 39])
    oracle.check(place, score(place, x, y), oracle.signals(x, y), x)


@pytest.mark.parametrize("classes", [3, 40, 1030])
def test_case_07_target_logit_at_minus_infinity(classes, place):
    x = torch.randn(4, classes, generator=torch.Generator().manual_seed(7))
    y = torch.tensor([0, classes - 1, 1, 2])
    x[range(4), y] = -torch.inf
    found = score(place, x, y)
    assert (found.loss == torch.inf).all()
    exact = oracle.signals(x, y)
    oracle.check(place, found, exact, x)
    assert torch.allclose(found.target_margin.double(), -exact["confidence"], rtol=place.tolerance)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 40, 127, 1030])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_case_07_a_poisoned_logit_poisons_its_row_alone(poison, classes, dtype, place):
    x = torch.randn(5, classes, generator=torch.Generator().manual_seed(8)).to(dtype)
    y = torch.tensor([0, classes - 1, 0, classes // 2, 0])
    clean = score(place, x, y)
    dirty = x.clone()
    dirty[1, classes // 3] = poison
    dirty[3, classes - 1] = poison
    found = score(place, dirty, y)
    for name in FLOATS:
        assert getattr(found, name)[[1, 3]].isnan().all(), name
    assert bits(found[[0, 2, 4]]) == bits(clean[[0, 2, 4]])
    assert torch.equal(found.prediction, dirty.argmax(1))


@pytest.mark.parametrize("classes", [1, 2, 40, 1030])
def test_case_07_a_row_all_at_minus_infinity_is_nan(classes, place):
    x = torch.randn(3, classes, generator=torch.Generator().manual_seed(9))
    x[1] = -torch.inf
    found = score(place, x, torch.zeros(3, dtype=torch.long))
    for name in FLOATS:
        assert getattr(found, name).isnan().tolist() == [False, True, False], name
    assert found.prediction[1] == 0


def test_case_07_several_poisons_and_torch_argmax_agree(place):
    """Infinities, NaN after a larger number, NaN first: the index that torch.argmax gives."""
    inf, nan = float("inf"), float("nan")
    x = torch.tensor(
        [[1, inf, inf, 0], [9, nan, inf, nan], [nan, 2, 3, nan], [-inf, -inf, nan, -inf], [inf, -inf, 0, 1]]
    )
    found = score(place, x, torch.zeros(5, dtype=torch.long))
    assert torch.equal(found.prediction, x.argmax(1))
    assert all(getattr(found, name).isnan().all() for name in FLOATS)


def test_case_08_more_than_two_to_the_31_elements(fast_place):
    """The last rows of a tensor whose offsets do not fit 32 bits; rows 2^20 apart, so only what is read is touched."""
    classes, stride = 1000, 1 << 20
    count = (1 << 31) // stride + 3
    if fast_place.device != "cpu" and torch.cuda.mem_get_info()[0] < 6 << 30:
        pytest.skip("needs 5 GB of device memory")
    store = torch.empty(count * stride, dtype=torch.bfloat16, device=fast_place.device)
    x = store.as_strided((count, classes), (stride, 1))
    x.zero_()
    x[-3:] = torch.randn(3, classes, generator=torch.Generator().manual_seed(10)).to(x)
    y = torch.arange(count, device=x.device) % classes
    names = ("loss", "entropy", "grad_norm", "margin", "prediction")
    found = ta.score(x, y, signals=names, backend=fast_place.backend)
    alone = ta.score(x[-3:].clone(), y[-3:], signals=names, backend=fast_place.backend)
    assert bits(found[-3:]) == bits(alone)
    oracle.check(fast_place, found[-3:], oracle.signals(x[-3:], y[-3:]), x[-3:])
    expected = ta.score(torch.zeros(1, classes, device=x.device), signals="entropy", backend=fast_place.backend)
    assert (found.entropy[:-3] == expected.entropy).all()


def test_case_09_more_than_65535_rows(fast_place):
    x = torch.randn(70_001, 3, generator=torch.Generator().manual_seed(11))
    y = torch.arange(70_001) % 3
    oracle.check(fast_place, score(fast_place, x, y), oracle.signals(x, y), x)


def test_case_09_one_class(place):
    found = score(place, torch.tensor([[3.5], [-2.0]]), torch.tensor([0, 0]))
    assert found.lse.tolist() == [3.5, -2.0] and found.prediction.tolist() == [0, 0]
    for name in ("loss", "entropy", "grad_norm", "least_confidence"):
        assert getattr(found, name).tolist() == [0, 0], name
    for name in ("confidence", "margin", "target_margin"):
        assert getattr(found, name).tolist() == [1, 1], name


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5), (0, 4, 1), (0, 2100)], ids=str)
def test_case_09_no_rows(shape, place):
    found = score(place, torch.zeros(shape), torch.zeros(shape[:-1], dtype=torch.long))
    assert found.signals == ROW_SIGNALS
    assert all(getattr(found, name).shape == shape[:-1] for name in ROW_SIGNALS)
    assert found.prediction.dtype == torch.int64 and found.loss.dtype == torch.float32


def test_case_09_one_row_is_a_scalar(place):
    x, y = torch.tensor([0.5, 2.0, -1.0]), torch.tensor(1)
    found = score(place, x, y)
    assert found.loss.shape == ()
    oracle.check(
        place, ta.Scores({n: v[None] for n, v in found.as_dict().items()}), oracle.signals(x[None], y[None]), x
    )


@pytest.mark.parametrize("classes", [300, 2100])
def test_case_20_ties_across_blocks_give_the_lowest_index_and_no_margin(classes, place):
    pairs = [(0, classes - 1), (7, 8), (63, 64), (127, 128), (255, 256), (3, 259), (classes - 2, classes - 1)]
    pairs += [(1023, 1024), (500, 1500), (1, 2048)] if classes > 2048 else []
    x = torch.randn(len(pairs), classes, generator=torch.Generator().manual_seed(12)).clamp(max=2)
    for i, (first, second) in enumerate(pairs):
        x[i, first] = x[i, second] = 2.5
    y = torch.tensor([second for _, second in pairs])
    found = score(place, x, y)
    assert found.prediction.tolist() == [first for first, _ in pairs]
    assert (found.margin == 0).all() and (found.target_margin == 0).all()
    oracle.check(place, found, oracle.signals(x, y), x)


def test_case_20_a_class_index_beyond_float32(fast_place):
    """2^24 + 1 is no float32: the index must not go through one. bfloat16 keeps the row at 34 MB."""
    classes = (1 << 24) + 4
    x = torch.zeros(1, classes, dtype=torch.bfloat16)
    x[0, (1 << 24) + 1] = 30
    found = score(fast_place, x, signals=("prediction", "entropy"))
    assert found.prediction.item() == (1 << 24) + 1


def test_ignored_rows_have_zero_in_what_needs_the_target_and_the_rest_as_ever(place):
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(13))
    x[4, 3] = torch.nan
    y = torch.tensor([1, -100, 3, -100, -100, 39])
    found = score(place, x, y)
    kept = score(place, x, torch.where(y == -100, 0, y))
    for name in ROW_SIGNALS:
        if name in NEED_TARGET:
            assert (getattr(found, name)[y == -100] == 0).all(), name
            assert torch.equal(getattr(found, name)[y != -100], getattr(kept, name)[y != -100]), name
        else:
            assert torch.equal(getattr(found, name).nan_to_num(), getattr(kept, name).nan_to_num()), name
    assert found.entropy[4].isnan()


@pytest.mark.parametrize("ignore_index", [0, 5, 39, -1, -100, 1 << 40, -(1 << 40)])
def test_any_ignore_index(ignore_index, place):
    x = torch.randn(4, 40, generator=torch.Generator().manual_seed(14))
    y = torch.tensor([0, ignore_index, 5, 39])
    found = score(place, x, y, ignore_index=ignore_index)
    oracle.check(place, found, oracle.signals(x, y, ignore_index), x)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_integer_targets_of_any_dtype(dtype, place):
    x = torch.randn(5, 100, generator=torch.Generator().manual_seed(15))
    y = torch.tensor([0, 99, 50, 7, 98])
    assert bits(score(place, x, y.to(dtype))) == bits(score(place, x, y))


@pytest.mark.parametrize("name", ROW_SIGNALS)
def test_each_signal_alone_has_the_bits_it_has_with_all_others(name, place):
    for classes in (10, 300):
        x, y, _ = rows.case("random", classes, torch.float32)
        at = place.some(x, 4)
        together = score(place, x[at], y[at])
        target = y[at] if name in NEED_TARGET else None
        assert bits(score(place, x[at], target, (name,))) == {name: bits(together)[name]}
