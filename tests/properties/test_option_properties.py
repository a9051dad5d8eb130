"""Properties of losses, signals and gradients under options, for labels and for class probabilities."""

from __future__ import annotations

import math

import option_contract
import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from hypothesis import strategies as st
from option_oracle import Case, truth
from strategies import (
    SEEDS,
    batches,
    classes_of,
    examples,
    keywords,
    logits,
    noise,
    option_cases,
    unchanged,
    within_cap,
)
from torchassay.scores import ROW_SIGNALS, Scores

OF_PROBABILITIES = tuple(name for name in ROW_SIGNALS if name != "target_margin")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
MILD = st.floats(-40, 40, width=32) | st.sampled_from([0.0, 1.0, -1.0, 30.0, -30.0])


@examples(14, logits(rows=5, dtypes=DTYPES, dead=False), st.data())
def test_scores_under_any_options_are_the_oracles(fast_place, x, data):
    if x.dtype == torch.float64 and not fast_place.double:
        return
    y = classes_of(data.draw, x)
    case = data.draw(option_cases(x))._replace(z_loss=0.0)
    here = {"signals": ROW_SIGNALS, "backend": fast_place.backend, **keywords(case, fast_place)}
    found = ta.score(x.to(fast_place.device), y.to(fast_place.device), **here)
    allowed = option_contract.tolerance(case, x.dtype)
    option_contract.check(str(case), found.cpu(), truth(x, y, case), case, x, allowed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("row", [[18.0, 19.0], [19.0, 18.0], [18.0, 20.0, 19.0], [-3.0, 18.0, 19.0], [83.6875, 81.375]])
def test_a_norm_where_the_cap_makes_tops_of_others(place, row, dtype):
    """Found by the test above: of logits beyond nine caps, whose capped values are one, each was taken for the top."""
    if dtype == torch.float64 and not place.double:
        return
    x = torch.tensor(row, dtype=dtype).repeat(len(row), 1)
    y, case = torch.arange(len(row)), Case(softcap=2.0)
    here = {"signals": ROW_SIGNALS, "backend": place.backend, **keywords(case, place)}
    found = ta.score(x.to(place.device), y.to(place.device), **here).cpu()
    exact = truth(x, y, case).signals["grad_norm"]
    flushed = 1e-19 if dtype == torch.float32 else 0.0  # squares that underflow
    torch.testing.assert_close(found.grad_norm.double(), exact, rtol=4e-6, atol=flushed)


@pytest.mark.parametrize("target", [0, 1])
def test_a_norm_whose_squares_underflow(fast_place, target):
    """Found by the test above: under the cap the tops have no slope, the others e^-103 squared. 1.7e-23 was off by 2 %,
    which is 3e-6 of the least that a sum of squares in float32 holds."""
    x, y = torch.tensor([[1e4, 0.0, 0.0, 1e4, 0.0]]), torch.tensor([target])
    case = Case(temperature=1.9374, softcap=100.0)
    here = {"signals": ROW_SIGNALS, "backend": fast_place.backend, **keywords(case, fast_place)}
    found = ta.score(x.to(fast_place.device), y.to(fast_place.device), **here).cpu()
    option_contract.check(str(case), found, truth(x, y, case), case, x, option_contract.tolerance(case, x.dtype))


@examples(10, logits(rows=5, dtypes=DTYPES, values=MILD, dead=False), st.data())
def test_scores_for_class_probabilities_are_the_oracles(fast_place, x, data):
    if x.dtype == torch.float64 and not fast_place.double:
        return
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    p = torch.softmax(torch.randn(x.shape, generator=noise(data.draw(SEEDS)), dtype=wide) * 3, 1)
    case = data.draw(option_cases(x))._replace(z_loss=0.0)
    x = within_cap(x, case)
    here = x.to(fast_place.device)
    how = {"signals": OF_PROBABILITIES, "backend": fast_place.backend, **keywords(case, fast_place)}
    found = ta.score(here, p.to(fast_place.device), **how).cpu()
    allowed = 4 * option_contract.tolerance(case, x.dtype)
    option_contract.check(str(case), found, truth(x, p, case), case, x, allowed)


@examples(10, batches(dtypes=DTYPES, dead=False), st.data())
def test_cross_entropy_is_the_reduction_of_its_rows(fast_place, batch, data):
    """For any layout and dimension, under any options; its mean is torch's, where torch keeps its digits."""
    if batch.rows.dtype == torch.float64 and not fast_place.double:
        return
    before, y = batch.memory.clone(), batch.classes.clone()
    y[1::3] = -100
    case = data.draw(option_cases(batch.rows))
    by_row = isinstance(case.temperature, torch.Tensor)
    options = keywords(case, fast_place)
    if by_row:
        options["temperature"] = options["temperature"].view(batch.target.shape)
    x, target = batch.input.to(fast_place.device), y.view(batch.target.shape).to(fast_place.device)

    def called(reduction: str) -> torch.Tensor:
        how = {"dim": batch.dim, "reduction": reduction, "backend": fast_place.backend}
        return ta.cross_entropy(x, target, **how, **options)

    rows = called("none").cpu()
    counted = (case.weight if case.weight is not None else torch.ones(batch.rows.shape[1]))[y.clamp(min=0)]
    counted = counted.double() * (y >= 0)
    assert rows.shape == batch.target.shape and (batch.flat(rows)[y < 0] == 0).all() and (rows >= 0).all()
    torch.testing.assert_close(called("sum").cpu().double(), rows.double().sum(), rtol=1e-2, atol=1e-6)
    mean = rows.double().sum() / counted.sum()
    torch.testing.assert_close(called("mean").cpu().double(), mean, rtol=1e-2, atol=1e-6, equal_nan=True)
    unchanged(batch.memory, before)
    if batch.rows.dtype == torch.float64 and case.softcap is None and case.z_loss == 0 and not by_row:
        scaled = batch.rows / case.temperature
        eager = F.cross_entropy(scaled, y, case.weight, label_smoothing=case.label_smoothing, reduction="none")
        torch.testing.assert_close(batch.flat(rows), eager, rtol=1e-9, atol=1e-9)


@examples(12, logits(rows=5, classes=40, dtypes=DTYPES, values=MILD, dead=False), st.data())
def test_gradients_under_any_options_are_the_oracles(fast_place, x, data):
    """Those of every row's loss, with upstreams of their own; they sum to what the options say they do."""
    if x.dtype == torch.float64 and not fast_place.double:
        return
    y, case = classes_of(data.draw, x), data.draw(option_cases(x))
    y[1::4] = -100
    up = torch.randint(-8, 9, (len(x),), generator=noise(data.draw(SEEDS))) / 4
    leaf = x.clone().to(fast_place.device).requires_grad_()
    how = {"reduction": "none", "backend": fast_place.backend}
    loss = ta.cross_entropy(leaf, y.to(fast_place.device), **how, **keywords(case, fast_place))
    loss.backward(up.to(loss))
    exact = truth(x, y, case)
    found = leaf.grad.cpu()
    assert found.isfinite().all() and (found[y < 0] == 0).all()
    parts = exact.parts.where(y >= 0, 0) * up.abs()
    allowed = option_contract.tolerance(case, x.dtype) * 4
    option_contract.check_gradient(str(case), found, exact.grad_loss * up[:, None], parts, allowed)
    if case.softcap is None and case.z_loss == 0:
        off = found.double().sum(1).abs()
        eps = {torch.float64: 1e-12, torch.float32: 1e-5}.get(x.dtype, 1e-2)
        assert (off <= eps * (parts + 1e-30) * math.sqrt(x.shape[1]) + 1e-30).all()


@examples(10, logits(rows=4, classes=40, values=MILD, dead=False), st.integers(1, 30), st.data())
def test_dead_classes_change_nothing_under_options(fast_place, x, dead, data):
    y = classes_of(data.draw, x)
    case = data.draw(option_cases(x, smoothing=False))
    more = torch.cat([x, torch.full((len(x), dead), -math.inf)], 1)
    wider = case
    if case.weight is not None:
        wider = case._replace(weight=torch.cat([case.weight, torch.rand(dead)]))
    found = []
    for rows, options in ((x, case), (more, wider)):
        leaf = rows.clone().to(fast_place.device).requires_grad_()
        how = {"reduction": "none", "signals": ROW_SIGNALS, "backend": fast_place.backend}
        loss, s = ta.cross_entropy(leaf, y.to(fast_place.device), **how, **keywords(options, fast_place))
        loss.sum().backward()
        found.append((s.cpu(), leaf.grad.cpu()))
    (plain, grad), (padded, padded_grad) = found
    for name in ROW_SIGNALS:
        close = {"rtol": 4e-6, "atol": 4e-6 if name in ("lse", "margin", "target_margin", "grad_norm") else 1e-30}
        torch.testing.assert_close(getattr(padded, name), getattr(plain, name), **close, msg=name)
    assert (padded_grad[:, x.shape[1] :] == 0).all()
    torch.testing.assert_close(padded_grad[:, : x.shape[1]], grad, rtol=1e-4, atol=1e-6)


@examples(8, logits(rows=6, classes=60, dtypes=DTYPES, dead=False), st.integers(0, 6), st.data())
def test_a_row_is_the_same_in_any_batch_under_options(fast_place, x, at, data):
    if x.dtype == torch.float64 and not fast_place.double:
        return
    y, case = classes_of(data.draw, x).to(fast_place.device), data.draw(option_cases(x))._replace(z_loss=0.0)
    options, at = keywords(case, fast_place), min(at, len(x))
    x = x.to(fast_place.device)

    def of(part: slice) -> Scores:
        mine = dict(options)
        if isinstance(case.temperature, torch.Tensor):
            mine["temperature"] = options["temperature"][part]
        return ta.score(x[part], y[part], signals=ROW_SIGNALS, backend=fast_place.backend, **mine)

    whole, split = of(slice(None)), Scores.cat([of(slice(at)), of(slice(at, None))])
    for name in ROW_SIGNALS:
        assert torch.equal(getattr(whole, name), getattr(split, name)), name


@examples(3, logits(rows=2, classes=20, values=MILD, dead=False), st.data())
def test_loss_and_gradient_on_every_backend(place, x, data):
    """The interpreter among them, which is why there are few."""
    y, case = classes_of(data.draw, x), data.draw(option_cases(x))
    leaf = x.clone().to(place.device).requires_grad_()
    how = {"reduction": "none", "backend": place.backend}
    loss = ta.cross_entropy(leaf, y.to(place.device), **how, **keywords(case, place))
    loss.sum().backward()
    exact, allowed = truth(x, y, case), 8 * option_contract.tolerance(case, x.dtype)
    size = exact.signals["loss"].abs() + exact.signals["lse"].abs() + 1
    assert ((loss.detach().cpu().double() - exact.signals["loss"]).abs() <= allowed * size).all()
    option_contract.check_gradient(str(case), leaf.grad.cpu(), exact.grad_loss, exact.parts, allowed)
