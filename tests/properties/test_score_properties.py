"""Properties of plain scores and log-probabilities, in any dtype, layout of memory, dimension and kind of target."""

from __future__ import annotations

import math

import oracle
import torch
import torchassay as ta
from hypothesis import strategies as st
from strategies import FLOATS, SEEDS, batches, classes_of, examples, logits, noise, unchanged
from torchassay.scores import ROW_SIGNALS, Scores


def flat(batch, scores: Scores) -> Scores:
    return Scores({name: batch.flat(value).cpu() for name, value in scores.as_dict().items()})


def same(ours: Scores, theirs: Scores, names=ROW_SIGNALS) -> None:
    for name in names:
        a, b = getattr(ours, name), getattr(theirs, name)
        assert torch.equal(a.nan_to_num(nan=-7.0), b.nan_to_num(nan=-7.0)), name


@examples(14, batches())
def test_scores_are_the_oracles_wherever_the_rows_lie(fast_place, batch):
    if batch.rows.dtype == torch.float64 and not fast_place.double:
        return
    before = batch.memory.clone()
    x, y = batch.input.to(fast_place.device), batch.target.to(fast_place.device)
    found = ta.score(x, y, signals=ROW_SIGNALS, dim=batch.dim, backend=fast_place.backend)
    assert found.loss.shape == batch.target.shape
    oracle.check_but_for_underflow(
        fast_place, flat(batch, found), oracle.signals(batch.rows, batch.classes), batch.rows
    )
    unchanged(batch.memory, before)


@examples(10, batches(), st.sampled_from([-100, -1, 0, 3, 7]))
def test_ignored_rows_are_zero_and_touch_no_other(fast_place, batch, ignore):
    if batch.rows.dtype == torch.float64 and not fast_place.double:
        return
    classes = batch.classes.where(torch.arange(len(batch.classes)) % 2 == 0, ignore)
    x, y = batch.rows.to(fast_place.device), classes.to(fast_place.device)
    found = ta.score(x, y, signals=ROW_SIGNALS, ignore_index=ignore, backend=fast_place.backend).cpu()
    oracle.check_but_for_underflow(fast_place, found, oracle.signals(batch.rows, classes, ignore), batch.rows)
    for name in ("loss", "grad_norm", "target_margin"):
        assert (getattr(found, name)[classes == ignore] == 0).all(), name


@examples(10, batches(rows=6), st.integers(0, 6))
def test_a_row_is_the_same_in_any_batch(fast_place, batch, at):
    if batch.rows.dtype == torch.float64 and not fast_place.double:
        return
    at = min(at, len(batch.rows))
    how = {"signals": ROW_SIGNALS, "backend": fast_place.backend}
    x, y = batch.rows.to(fast_place.device), batch.classes.to(fast_place.device)
    whole = ta.score(x, y, **how)
    parts = [ta.score(x[part], y[part], **how) for part in (slice(at), slice(at, None))]
    same(Scores.cat(parts).cpu(), whole.cpu())
    turned = ta.score(x.flip(0), y.flip(0), **how)
    same(turned[torch.arange(len(x) - 1, -1, -1)].cpu(), whole.cpu())
    one = x[:1].expand(len(x), -1)  # the same memory for every row
    same(ta.score(one, y, **how).cpu(), ta.score(one.contiguous(), y, **how).cpu())


@examples(10, logits(values=st.integers(-300, 300)), st.integers(-(2**13), 2**13), SEEDS)
def test_a_common_shift_changes_nothing_but_lse(fast_place, x, shift, seed):
    """The shift is exact: logits are sixteenths below 2^14."""
    y = torch.randint(x.shape[1], (len(x),), generator=noise(seed))
    how = {"signals": ROW_SIGNALS, "backend": fast_place.backend}
    x, y = x.to(fast_place.device), y.to(fast_place.device)
    same(ta.score(x + shift, y, **how).cpu(), ta.score(x, y, **how).cpu(), [n for n in ROW_SIGNALS if n != "lse"])


@examples(8, logits(rows=1, classes=40), st.data())
def test_a_larger_lead_of_the_target_never_looks_harder(fast_place, x, data):
    """loss falls strictly, grad_norm does not rise, over leads of -30 to 80 in steps of 1/4; each of them alone."""
    y = int(classes_of(data.draw, x, alive=True))
    rest = torch.cat([x[0, :y], x[0, y + 1 :]])
    rest = rest[rest > -math.inf]
    if not len(rest):
        return
    lead = torch.arange(-30, 80, 0.25)
    grid = (x[0] - rest.max()).repeat(len(lead), 1)
    grid[:, y] = lead
    target = torch.full((len(lead),), y)
    s = ta.score(grid.to(fast_place.device), target.to(fast_place.device), backend=fast_place.backend).cpu()
    assert (s.loss.diff() < 0).all() and (s.loss > 0).all()
    assert (s.grad_norm.diff() <= 2 * 2.0**-23 * s.grad_norm[1:]).all() and (s.grad_norm > 0).all()


@examples(10, batches(alive=True), SEEDS)
def test_log_probabilities_of_several_classes(fast_place, batch, seed):
    if batch.rows.dtype == torch.float64 and not fast_place.double:
        return
    x, k = batch.rows, 3
    classes = torch.randint(x.shape[1], (len(x), k), generator=noise(seed))
    classes[:, 0] = batch.classes
    before = batch.memory.clone()
    dim = batch.dim % batch.input.dim()
    shape = batch.input.movedim(dim, -1).shape[:-1]
    here = batch.input.to(fast_place.device)
    found = ta.log_prob(here, classes.view(*shape, k).to(fast_place.device), dim=dim, backend=fast_place.backend)
    for i in range(k):
        one = oracle.signals(x, classes[:, i])["loss"]
        value, eps = -found[..., i].reshape(-1).cpu().double(), 1e-14 if x.dtype == torch.float64 else 2e-6
        near = (value - one).abs() <= eps * one + 1.2e-38 * x.shape[1]
        assert (near | (value == one)).all(), (i, value, one)
    logp, entropy = ta.log_prob_entropy(
        here, batch.target.long().to(fast_place.device), dim=dim, backend=fast_place.backend
    )
    alone = ta.log_prob(here, batch.target.long().to(fast_place.device), dim=dim, backend=fast_place.backend)
    assert torch.equal(logp, alone) and (logp <= 0).all()
    assert torch.equal(entropy, ta.entropy(here, dim=dim, backend=fast_place.backend))
    exact = oracle.signals(x, batch.classes)
    for name, value in (("loss", -logp), ("entropy", entropy)):
        value = batch.flat(value).cpu().double()
        lost = 110 * 1.2e-38 * x.shape[1]
        assert ((value - exact[name]).abs() <= fast_place.tolerance * exact[name] + lost).all(), name
    unchanged(batch.memory, before)


@examples(8, st.sampled_from(FLOATS), st.integers(1, 5), st.integers(1, 40), SEEDS)
def test_a_row_that_is_no_row_is_nan_and_touches_no_other(fast_place, dtype, rows, classes, seed):
    """NaN or +inf somewhere, or nothing but -inf."""
    if dtype == torch.float64 and not fast_place.double:
        return
    generator = noise(seed)
    x = torch.randn(rows + 3, classes, generator=generator).to(dtype)
    y = torch.randint(classes, (rows + 3,), generator=generator)
    at = torch.randint(classes, (2,), generator=generator)
    x[0, at[0]], x[1, at[1]], x[2] = math.nan, math.inf, -math.inf
    order = torch.randperm(rows + 3, generator=generator)
    how = {"signals": ROW_SIGNALS, "backend": fast_place.backend}
    s = ta.score(x[order].to(fast_place.device), y[order].to(fast_place.device), **how).cpu()
    whole = ta.score(x[3:].to(fast_place.device), y[3:].to(fast_place.device), **how).cpu()
    bad = order < 3
    for name in oracle.FLOAT_SIGNALS:
        assert getattr(s, name)[bad].isnan().all(), name
        assert torch.equal(getattr(s, name)[~bad], getattr(whole, name)[order[~bad] - 3]), name
