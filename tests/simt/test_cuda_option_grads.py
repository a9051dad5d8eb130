"""The CUDA gradients under the options of a loss, on the host, against the definition in extended precision."""

from itertools import pairwise

import host_kernels
import numpy as np
import pytest
import torch
from option_cases import (
    DTYPES,
    NAMES,
    Exact,
    batch,
    case,
    labelled,
    noise,
    probabilities,
    shared_out,
)


@pytest.fixture(scope="session")
def kernels(host_program):
    return host_kernels.OptionKernels(host_program("run_options.cpp"))


def check_gradient(found, exact: Exact, gL, gH, options) -> None:
    """Within the tolerance of the row's norm, and one rounding to the dtype away."""
    wanted = exact.grads(gL, gH)
    softcap = options.get("softcap")
    tolerance = 2e-6 + (0 if softcap is None else 2.0**-22 * softcap / np.min(exact.t))
    eps = 0 if found.dtype == torch.float32 else torch.finfo(found.dtype).eps
    size = np.sqrt((wanted**2).sum(1))
    if gL is not None:
        size = size + 0.25 * np.abs(gL.double().numpy()) * exact.subtracted()
    if gH is not None:  # p (a - mu), where a and mu meet
        part = exact.slope * gH.double().numpy()[:, None] * exact.p * exact.mu[:, None]
        size = size + np.sqrt((part**2).sum(1))
    smallest = 1e-36 if found.dtype != torch.float16 else 2.0**-24
    allowed = tolerance * size[:, None] + eps / 2 * np.abs(wanted) + smallest
    error = np.abs(found.double().numpy() - wanted)
    assert (error <= allowed).all(), f"{float((error / allowed).max()):.2f} of what is allowed"


def upstream(which: str, count: int):
    given = torch.randn(2, count, generator=torch.Generator().manual_seed(40))
    return [given[i] if which in (("loss", "entropy")[i], "both") else None for i in (0, 1)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 5, 33, 100, 1025])
def test_gradients(classes, dtype, kernels):
    for which in ("loss", "entropy", "both"):
        names = NAMES if which == "loss" else ["temperatures", "smoothing and all", "softcap and all"]
        for name in shared_out(names, classes, dtype):
            x, y, options = labelled(name, classes, dtype)
            gL, gH = upstream(which, len(x))
            under = kernels.under(**options)
            stats = under.scores(x, y, ("stats",))["stats"]
            found = under.grads(x, None if gL is None else y, stats, gL, gH)
            check_gradient(found, Exact(x, y, **options), gL, gH, options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [2, 33, 1025])
def test_gradients_of_probabilities(classes, dtype, kernels):
    x, _ = batch(classes, dtype)
    t, (gL, gH) = probabilities(classes, len(x)), upstream("both", len(x))
    for name in ("nothing", "smoothing and all", "softcap and all"):
        options = case(name, classes, len(x))
        under = kernels.under(t, **options)
        stats = under.scores(x, None, ("stats",))["stats"]
        check_gradient(under.grads(x, None, stats, gL, gH), Exact(x, t, **options), gL, gH, options)


@pytest.mark.parametrize("classes", [1, 3, 100])
def test_a_lone_class_has_the_gradient_of_its_z_loss(classes, kernels):
    x = torch.full((1, classes), -torch.inf)
    x[0, 0] = 5.0
    under = kernels.under(z_loss=1e-4, temperature=0.5)
    y = torch.zeros(1, dtype=torch.int64)
    found = under.scores(x, y)
    torch.testing.assert_close(found["grad_norm"], torch.tensor([2e-4 * 10 / 0.5]), rtol=1e-6, atol=0)
    gradient = under.grads(x, y, found["stats"], torch.ones(1), None)
    torch.testing.assert_close(gradient[0, :1], found["grad_norm"], rtol=1e-6, atol=0)
    assert (gradient[0, 1:] == 0).all()


@pytest.mark.parametrize("classes", [10, 1001])
@pytest.mark.parametrize("name", ["temperatures", "smoothing and all", "softcap"])
def test_gradients_of_ignored_poisoned_and_out_of_range_rows(name, classes, kernels):
    x, y = noise(7, classes), torch.tensor([0, 4, -100, 3, classes, -1, 2])
    under = kernels.under(**case(name, classes, 7))
    gL, _ = upstream("loss", 7)
    clean = under.grads(x, y, under.scores(x, y, ("stats",))["stats"], gL, None)
    x[1, classes - 1] = torch.nan
    x[2, 0] = torch.nan
    stats = under.scores(x, y, ("stats",))["stats"]
    found = under.grads(x, y, stats, gL, None)
    assert found[[1, 4, 5]].isnan().all() and (found[2] == 0).all()
    assert torch.equal(found[[0, 3, 6]], clean[[0, 3, 6]])
    view = torch.full((7, classes + 3), torch.nan)[:, 2 : classes + 2]
    view.copy_(x)
    again = under.grads(view, y, stats, torch.stack([gL, gL], 1)[:, 0], None)
    assert torch.equal(again.nan_to_num(nan=9.0), found.nan_to_num(nan=9.0))


# ---- gradients of slices of the classes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [5, 33, 1025])
def test_gradients_of_slices_are_those_of_the_row(classes, dtype, kernels):
    """From the stats of whole rows: the same bits, whether the slice holds the target, the top, both or neither."""
    for name in ("nothing", "smoothing and all", "softcap and all"):
        x, y, options = labelled(name, classes, dtype)
        gL, gH = upstream("both", len(x))
        under = kernels.under(**options)
        stats = under.scores(x, y, ("stats",))["stats"]
        expected = under.grads(x, y, stats, gL, gH)
        cuts = [0, 1, classes // 2, classes]
        for a, b in pairwise(cuts):
            own = options | ({"weight": options["weight"][a:b]} if "weight" in options else {})
            found = kernels.under(**own).grads(x[:, a:b], y, stats, gL, gH, first=a, total=classes)
            assert torch.equal(found, expected[:, a:b]), (name, a, b)


def test_gradients_of_slices_with_targets_ignored_and_out_of_range(kernels):
    """Out of range of all classes, not of the slice."""
    x, y = noise(6, 30), torch.tensor([2, 25, -100, 30, -1, -(2**62)])
    options = case("smoothing, z_loss", 30, 6)
    under = kernels.under(**options)
    gL, _ = upstream("loss", 6)
    stats = under.scores(x, y, ("stats",))["stats"]
    expected = under.grads(x, y, stats, gL, None)
    assert expected[3:].isnan().all() and (expected[2] == 0).all()
    for a, b in ((0, 20), (20, 30)):
        found = under.grads(x[:, a:b], y, stats, gL, None, first=a, total=30)
        assert torch.equal(found.nan_to_num(nan=9.0), expected[:, a:b].nan_to_num(nan=9.0))
