"""The numerics contract: every signal of every kind of row, against the oracle."""

import oracle
import pytest
import rows
import torch
import torchassay as ta
from torchassay.scores import ROW_SIGNALS

FAMILIES = [*rows.FAMILIES]
NOT_LSE = [name for name in ROW_SIGNALS if name != "lse"]


def score(place, x, y=None, **options):
    target = None if y is None else y.to(place.device)
    return ta.score(x.to(place.device), target, backend=place.backend, **options)


# 1, 2, 3: degenerate; 10: rows in lanes; 127: odd; 1000, 1024: off and on a power of two; 4097: one past a block
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 127, 1000, 1024, 4097])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32(family, classes, place):
    x, y, exact = rows.case(family, classes, torch.float32)
    at = place.some(x, 6 if classes <= 1024 else 3)
    found = score(place, x[at], y[at], signals=ROW_SIGNALS)
    oracle.check(place, found, {name: value[at] for name, value in exact.items()}, x[at])


# vocabularies: GPT-2's, odd; Qwen's, about 18 segments of 8192; the upper end of the contract
@pytest.mark.parametrize("classes", [50257, 151936, 262144])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_of_a_vocabulary(family, classes, fast_place):
    x, y, exact = rows.case(family, classes, torch.float32)
    at = torch.arange(0, len(x), 1 if classes == 50257 else 2)
    found = score(fast_place, x[at], y[at], signals=ROW_SIGNALS)
    oracle.check(fast_place, found, {name: value[at] for name, value in exact.items()}, x[at])


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 127, 1000, 4097, 50257])
@pytest.mark.parametrize("family", FAMILIES)
def test_float64(family, classes, double_place):
    x, y, exact = rows.case(family, classes, torch.float64)
    oracle.check(double_place, score(double_place, x, y, signals=ROW_SIGNALS), exact, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("classes", [1, 3, 10, 127, 1000, 4097])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_exact_for_the_values_it_holds(family, classes, dtype, place):
    x, y, exact = rows.case(family, classes, dtype)
    at = place.some(x, 3)
    found = score(place, x[at], y[at], signals=ROW_SIGNALS)
    oracle.check(place, found, {name: value[at] for name, value in exact.items()}, x[at])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_of_a_vocabulary(dtype, fast_place):
    for family in ("gaps", "blocks", "masked"):
        x, y, exact = rows.case(family, 50257, dtype)
        oracle.check(fast_place, score(fast_place, x, y, signals=ROW_SIGNALS), exact, x)


@pytest.mark.parametrize("classes", [2, 3, 127, 1000])
def test_nothing_is_negative(classes, place):
    for family in FAMILIES:
        x, y, _ = rows.case(family, classes, torch.float32)
        at = place.some(x, 2)
        found = score(place, x[at], y[at], signals=ROW_SIGNALS)
        for name in ("loss", "entropy", "grad_norm", "confidence", "least_confidence", "margin"):
            assert (getattr(found, name) >= 0).all(), (family, name)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_case_15_loss_falls_strictly_with_the_gap(classes, fast_place):
    """On a grid of 2^-10, in windows of 257 steps over the range, up to a gap of 80."""
    rest = -torch.rand(classes - 1, generator=torch.Generator().manual_seed(5)) * 3
    rest[0] = 0
    for start in (-80.0, -20.0, -3.0, -0.125, 0.0, 5.0, 15.0, 30.0, 79.75):
        gap = start + torch.arange(257) * 2.0**-10
        x = torch.cat([gap[:, None], rest.expand(257, -1)], 1)
        loss = score(fast_place, x, torch.zeros(257, dtype=torch.long)).loss
        assert (loss.diff() < 0).all(), (start, int((loss.diff() >= 0).sum()))
        assert (loss > 0).all()


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_case_15_grad_norm_falls_with_the_gap(classes, fast_place):
    """Never up by more than 2 ulp anywhere; strictly down for gaps of -8 and more on a grid of 0.25."""
    rest = -torch.rand(classes - 1, generator=torch.Generator().manual_seed(6)) * 3
    rest[0] = 0

    def norms(gap):
        x = torch.cat([gap[:, None], rest.expand(len(gap), -1)], 1)
        return score(fast_place, x, torch.zeros(len(gap), dtype=torch.long)).grad_norm.cpu()

    for step in (2.0**-10, 2.0**-4, 0.25):
        norm = norms(torch.arange(-20, 80, max(step, 2.0**-6)) if step < 0.25 else torch.arange(-80, 80.25, step))
        assert (norm[1:] <= norm[:-1] * (1 + 2 * 2.0**-23)).all()
    norm = norms(torch.arange(-8, 80.25, 0.25))
    assert (norm.diff() < 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_case_20_two_tops_and_a_vocabulary_of_equal_others(dtype, fast_place):
    """151,934 equal terms add up without drift, whatever the height of the two tops."""
    x = torch.zeros(5, 151936, dtype=dtype)
    x[:, 77] = x[:, 151935] = torch.tensor([0.5, 3.0, 11.0, 12.0, 40.0], dtype=dtype)
    y = torch.tensor([77, 151935, 5, 77, 77])
    found = score(fast_place, x, y, signals=ROW_SIGNALS)
    oracle.check(fast_place, found, oracle.signals(x, y), x)
    assert (found.margin == 0).all() and (found.prediction == 77).all()


def test_case_16_results_are_float32_whatever_the_half_precision_input(place):
    for dtype in (torch.bfloat16, torch.float16):
        found = score(place, torch.zeros(2, 3, dtype=dtype), torch.tensor([0, 1]), signals=ROW_SIGNALS)
        assert {name: getattr(found, name).dtype for name in NOT_LSE} == {
            name: torch.int64 if name == "prediction" else torch.float32 for name in NOT_LSE
        }
