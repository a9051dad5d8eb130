"""Properties of the signals on rows that hypothesis makes up."""

import math

import oracle
import pytest
import torch
import torchassay as ta
from hypothesis import strategies as st
from strategies import examples
from torchassay.scores import ROW_SIGNALS

LOGIT = st.floats(-300, 300, width=32) | st.sampled_from([0.0, 1.0, -1.0, 80.0, -80.0, 1e4, -1e4, -math.inf])
NEED_TARGET = ("loss", "grad_norm", "target_margin")


@st.composite
def batches(draw, top=90):
    """[N, C] float32 with at least one finite logit a row, and targets."""
    rows, classes = draw(st.integers(1, 4)), draw(st.integers(1, top))
    pool = draw(st.lists(LOGIT, min_size=1, max_size=12))  # few values: ties are common
    picks = draw(st.lists(st.integers(0, len(pool) - 1), min_size=rows * classes, max_size=rows * classes))
    x = torch.tensor([pool[i] for i in picks]).view(rows, classes)
    for i in range(rows):
        if (x[i] == -math.inf).all():
            x[i, draw(st.integers(0, classes - 1))] = 0.5
    y = torch.tensor(draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows)))
    return x, y


def scored(place, x, y):
    return ta.score(x.to(place.device), y.to(place.device), signals=ROW_SIGNALS, backend=place.backend).cpu()


def close(a, b, names, tolerance):
    for name in names:
        ours, theirs = getattr(a, name).double(), getattr(b, name).double()
        flushed = (ours.abs() <= 1e-37) & (theirs.abs() <= 1e-37)
        both = torch.where(flushed, 0, ours), torch.where(flushed, 0, theirs)
        torch.testing.assert_close(*both, rtol=tolerance, atol=0, msg=lambda text, name=name: f"{name}: {text}")


@examples(20, batches())
def test_every_signal_is_that_of_the_oracle(fast_place, batch):
    x, y = batch
    oracle.check_but_for_underflow(fast_place, scored(fast_place, x, y), oracle.signals(x, y), x)


@examples(4, batches(top=40))
def test_every_signal_is_that_of_the_oracle_on_every_backend(place, batch):
    x, y = batch
    oracle.check_but_for_underflow(place, scored(place, x, y), oracle.signals(x, y), x)


@examples(20, batches(), st.randoms(use_true_random=False))
def test_the_order_of_the_classes_does_not_matter(fast_place, batch, shuffle):
    x, y = batch
    order = torch.tensor(shuffle.sample(range(x.shape[1]), x.shape[1]))
    place_of = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    names = [name for name in oracle.FLOAT_SIGNALS if name != "lse"]
    close(scored(fast_place, x[:, order], place_of[y]), scored(fast_place, x, y), names, 2e-6)


@examples(20, batches(), st.integers(1, 40))
def test_dead_classes_change_nothing(fast_place, batch, dead):
    x, y = batch
    padded = torch.cat([x, torch.full((len(x), dead), -math.inf)], 1)
    names = [name for name in oracle.FLOAT_SIGNALS if name != "lse"]
    close(scored(fast_place, padded, y), scored(fast_place, x, y), names, 2e-6)
    assert torch.equal(scored(fast_place, padded, y).prediction, scored(fast_place, x, y).prediction)


@examples(20, batches())
def test_signals_stay_in_their_ranges_and_agree_with_each_other(fast_place, batch):
    x, y = batch
    s = scored(fast_place, x, y)
    alive = (x > -math.inf).sum(1)
    ulp = 1 + 4 * 2.0**-23
    for name in ("loss", "entropy", "grad_norm", "least_confidence", "margin"):
        assert (getattr(s, name) >= 0).all(), name
    assert (s.confidence <= 1).all() and (s.least_confidence <= 1).all() and (s.margin <= 1).all()
    assert (s.confidence * alive * ulp >= 1).all()
    assert (s.gini >= 0).all() and (s.gini <= (1 - 1 / alive.double()) * ulp).all()
    assert (s.entropy <= alive.double().log() * ulp + 1e-37).all()
    assert (s.grad_norm <= math.sqrt(2) * ulp).all()
    assert (s.target_margin.abs() <= s.margin.where(s.prediction == y, s.confidence) * ulp).all()
    assert (s.target_margin >= 0)[s.prediction == y].all() and (s.target_margin <= 0)[s.prediction != y].all()
    assert (s.lse * (1 + 2.0**-22 * s.lse.sign()) + 2.0**-22 >= x.amax(1)).all()
    assert ((s.confidence + s.least_confidence - 1).abs() <= 2.0**-22).all()
    finite = s.loss.isfinite()
    assert torch.equal(finite, x.gather(1, y[:, None])[:, 0] > -math.inf)


@examples(20, batches(top=40), st.randoms(use_true_random=False))
def test_gradients_are_those_of_the_oracle_and_sum_to_zero(fast_place, batch, rng):
    x, y = batch
    x[x == -math.inf] = -1e30  # the loss of a masked target is infinite
    up = torch.tensor([[rng.uniform(-2, 2) for _ in range(len(x))] for _ in range(2)])
    logits = x.clone().to(fast_place.device).requires_grad_()
    logp, entropy = ta.log_prob_entropy(logits, y.to(fast_place.device), backend=fast_place.backend)
    upstream = [-up[0].to(logp), up[1].to(entropy)]
    torch.autograd.backward([logp, entropy], upstream)
    parts = oracle.grads(x, y, up[0], None), oracle.grads(x, y, None, up[1])
    scale = parts[0].norm(dim=1) + parts[1].norm(dim=1) + up[1].abs() * oracle.subtracted_norm(x)
    error = (logits.grad.cpu().double() - sum(parts)).norm(dim=1)
    # where tops tie, only classes far below them move the entropy, each by its rounded distance times its tiny p;
    # and e^-88 times its distance to the top is already flushed
    tolerance = fast_place.tolerance + 2.0**-24 * 104
    flushed = 1e-37 * 200 * x.shape[1]
    assert (error <= tolerance * scale + flushed).all(), (error / scale).max()
    assert (logits.grad.double().sum(1).abs().cpu() <= 1e-5 * scale + flushed).all()


@examples(20, batches(), st.sampled_from([torch.bfloat16, torch.float16]))
def test_half_precision_gives_what_the_same_values_upcast_give(fast_place, batch, dtype):
    x, y = batch
    x = x.to(dtype)
    close(scored(fast_place, x, y), scored(fast_place, x.float(), y), oracle.FLOAT_SIGNALS, 1e-6)


@pytest.mark.parametrize("gap", [0.0, 2.0**-10, 1e-3, 0.5, 5.0, 20.0, 40.0, 80.0])
def test_two_classes_are_the_sigmoid(gap, place):
    """loss = log1p(e^-gap), grad_norm = sqrt(2) sigmoid(-gap), margin = tanh(gap / 2), in closed form."""
    gap = torch.tensor(gap).item()
    s = scored(place, torch.tensor([[gap, 0.0]]), torch.tensor([0]))
    p = math.exp(-gap) / (1 + math.exp(-gap))
    truth = {
        "loss": math.log1p(math.exp(-gap)),
        "entropy": math.log1p(math.exp(-gap)) + gap * p,
        "grad_norm": math.sqrt(2) * p,
        "least_confidence": p,
        "margin": math.tanh(gap / 2),
        "target_margin": math.tanh(gap / 2),
    }
    for name, value in truth.items():
        assert getattr(s, name).item() == pytest.approx(value, rel=place.tolerance, abs=0), name
