"""Variance reduction against the formulas of Katharopoulos and Fleuret (2018), by hand and by autograd."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from small import B, C, D, dataset, loader, network
from torch import nn
from torchassay.philox import uniforms
from torchassay.samplers import VarianceReduction
from torchassay.samplers.variance_reduction import tau
from variance import drawn, tau_of

# ---- the statistic and the gate


def test_tau_is_the_papers(random):
    scores = torch.rand(50, generator=random).double()
    assert float(tau(scores)) == pytest.approx(tau_of(scores.tolist()), rel=1e-12)
    assert tau(torch.full((9,), 0.3)) == pytest.approx(1.0)
    assert tau(F.one_hot(torch.tensor(4), 49).float()) == 7.0
    assert tau(torch.zeros(5)) == 1.0
    spoilt = torch.tensor([3.0, torch.nan, -2.0, 1.0])
    assert float(tau(spoilt)) == pytest.approx(tau_of([3.0, 0.0, 0.0, 1.0]))
    assert float(tau(torch.tensor([torch.inf, 1.0]))) == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("pool, momentum", [(3, 0.9), (2, 0.5)])
def test_the_gate_opens_after_the_average_has_passed_the_threshold(pool, momentum, warmup, random):
    picker = VarianceReduction(pool, momentum=momentum, warmup=warmup, seed=1)
    assert picker.tau_threshold == pytest.approx((pool + 3) / 3)
    average, was_open = 0.0 if warmup else None, []
    for step in range(40):
        scores = torch.rand(30, generator=random) ** (1 + step / 4)  # more and more uneven
        is_open = average is not None and average > (pool + 3) / 3
        pick = picker.pick({"grad_norm": scores})
        assert int(pick.count) == (30 // pool if is_open else 30)
        assert pick.mask.all().item() != is_open
        new = tau_of(scores.double().tolist())
        average = new if average is None else momentum * average + (1 - momentum) * new
        assert picker.tau == pytest.approx(average, rel=1e-9)
        was_open.append(is_open)
    assert not was_open[0] and was_open[-1]


def test_without_warm_up_the_gate_may_open_in_the_second_step():
    uneven = {"grad_norm": F.one_hot(torch.tensor(0), 30).float()}
    for warmup, count in ((True, 30), (False, 10)):
        picker = VarianceReduction(warmup=warmup)
        assert picker.pick(uneven).count == 30 and picker.pick(uneven).count == count
    assert math.isnan(VarianceReduction(warmup=False).tau) and VarianceReduction().tau == 0


# ---- draws


@pytest.mark.parametrize("weighted", [True, False])
def test_picks_are_the_draws_and_the_weights_the_papers(weighted, random):
    picker = VarianceReduction(4, weighted=weighted, gate=False, seed=11)
    for step in range(5):
        scores = torch.rand(42, generator=random).double()
        scores[7] = 0
        pick = picker.pick({"grad_norm": scores})
        rows = drawn(scores.tolist(), 10, 11, step)  # 42 / 4 = 10.5, to even
        g = scores / scores.sum()
        expected = [rows.count(i) * (1 / (42 * float(g[i])) if weighted else 1) if i in rows else 0 for i in range(42)]
        assert pick.weight.tolist() == pytest.approx(expected, rel=1e-6) and pick.count == 10
        assert pick.mask.tolist() == [i in rows for i in range(42)]
        loss = torch.rand(42, generator=random)
        by_hand = sum(float(loss[i]) * (1 / (42 * float(g[i])) if weighted else 1) for i in rows) / 10
        assert float(pick.mean(loss)) == pytest.approx(by_hand, rel=1e-5)


def test_a_draw_is_finer_than_the_24_bits_of_one_number():
    high, low = (float(uniforms(torch.tensor([id]), seed=5, step=0)) for id in (0, 1 << 40))
    for split in (high + low / 2**25, high + low / 2**24):  # the second is the draw itself, and a draw is in [0, 1)
        scores = torch.tensor([split, 1 - split], dtype=torch.float64)
        pick = VarianceReduction(2, gate=False, seed=5).pick({"grad_norm": scores})
        assert pick.mask.tolist() == [False, True]


def test_samples_are_drawn_in_proportion_to_their_scores(random):
    scores = torch.rand(20, generator=random)
    picker = VarianceReduction(2, weighted=False, gate=False, seed=5)
    times = sum(picker.pick({"grad_norm": scores}).weight for _ in range(1000))
    expected = 10_000 * scores / scores.sum()
    assert float(((times - expected) ** 2 / expected).sum()) < 43.8  # 19 degrees of freedom: 1 in 1,000
    uniform = torch.full((20,), 500.0)
    assert float(((times - uniform) ** 2 / uniform).sum()) > 1000


def test_masked_rows_neither_count_nor_come(random):
    scores = torch.rand(30, generator=random).double()
    mask = torch.rand(30, generator=random) < 0.6
    scores[~mask] = 100.0
    picker = VarianceReduction(3, gate=False, seed=2)
    pick = picker.pick({"grad_norm": scores}, mask=mask)
    n, total = int(mask.sum()), float(scores[mask].sum())
    rows = drawn(torch.where(mask, scores, 0).tolist(), max(1, round(n / 3)), 2, 0)
    expected = [rows.count(i) * total / n / float(scores[i]) for i in range(30)]
    assert pick.weight.tolist() == pytest.approx(expected, rel=1e-6) and pick.count == len(rows)
    assert picker.tau == pytest.approx(0.1 * tau_of(scores[mask].tolist()))
    shut = VarianceReduction(3).pick({"grad_norm": scores}, mask=mask)
    assert torch.equal(shut.mask, mask) and torch.equal(shut.weight, mask.float()) and shut.count == n


@pytest.mark.parametrize("gate", [True, False])
def test_nothing_to_pick(gate):
    picker = VarianceReduction(gate=gate)
    pick = picker.pick({"grad_norm": torch.rand(4)}, mask=torch.zeros(4, dtype=torch.bool))
    assert not pick.mask.any() and pick.count == 0 and pick.mean(torch.rand(4)) == 0
    assert picker.pick({"grad_norm": torch.zeros(0)}).weight.shape == (0,)


def test_scores_of_zero_are_all_equal():
    mask = torch.arange(12) % 2 == 0
    pick = VarianceReduction(2, gate=False, seed=3).pick({"grad_norm": torch.zeros(12)}, mask=mask)
    rows = drawn(mask.double().tolist(), 3, 3, 0)
    assert pick.weight.tolist() == [rows.count(i) for i in range(12)]


def test_nothing_waits_for_a_gpu():
    """Tensors without values: whoever asked for one would be told so."""
    for gate in (True, False):
        scores = {"grad_norm": torch.empty(30, device="meta")}
        mask = torch.empty(30, dtype=torch.bool, device="meta")
        picker = VarianceReduction(gate=gate)
        assert picker.pick(scores).weight.is_meta and picker.pick(scores, mask=mask).count.is_meta


def test_tokens_are_picked_as_rows_are(random):
    scores = torch.rand(6, 5, generator=random)
    one, two = (VarianceReduction(gate=False, seed=1).pick({"grad_norm": s}) for s in (scores, scores.view(-1)))
    assert one.weight.shape == (6, 5) and torch.equal(one.weight.view(-1), two.weight)


# ---- the estimate


def projected(model: nn.Module, loss: torch.Tensor, direction: list[torch.Tensor]) -> float:
    """The gradient along one direction."""
    found = torch.autograd.grad(loss, list(model.parameters()))
    return float(sum((gradient * part).sum() for gradient, part in zip(found, direction, strict=True)))


@pytest.mark.parametrize("signal", ["grad_norm", "loss"])
@pytest.mark.parametrize("form", ["pick", "batches"])
def test_the_mean_gradient_is_that_of_the_full_pool(form, signal):
    torch.manual_seed(0)
    n, b = 600, 200
    model = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, C))
    x, y = dataset(n).tensors
    direction = [torch.randn_like(parameter) for parameter in model.parameters()]
    one_by_one = [projected(model, F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), direction) for i in range(n)]
    full = sum(one_by_one) / n
    score = getattr(ta.score(model(x).detach(), y, signals=(signal,)), signal).double()
    g = (score / score.sum()).tolist()
    variance = sum(p * (each / (n * p) - full) ** 2 for p, each in zip(g, one_by_one, strict=True))
    picker = VarianceReduction(3, signal=signal, gate=False, seed=8)
    estimates = []
    for _ in range(10_000 // b):
        if form == "pick":
            loss, s = ta.cross_entropy(model(x), y, reduction="none", signals=picker.needs)
            estimates.append(projected(model, picker.pick(s).mean(loss), direction))
            continue
        for (some, labels), weight in picker.batches(list(zip(x.split(b), y.split(b), strict=True)), model):
            loss = F.cross_entropy(model(some), labels, reduction="none")
            estimates.append(projected(model, (weight * loss).mean(), direction))
    assert len(estimates) == 10_000 // b
    assert abs(sum(estimates) / len(estimates) - full) < 3 * math.sqrt(variance / 10_000)


# ---- arguments


def test_bad_arguments():
    for arguments, message in (
        ({"pool": 1}, "VarianceReduction: pool must be at least 2, got 1"),
        ({"pool": 2.5}, "VarianceReduction: pool must be an int, got float"),
        ({"tau_threshold": -1}, "VarianceReduction: tau_threshold must be at least 0 and finite, got -1"),
        ({"momentum": 1.0}, "VarianceReduction: momentum must be in [0, 1), got 1.0"),
    ):
        with pytest.raises((ValueError, TypeError)) as error:
            VarianceReduction(**arguments)
        assert str(error.value) == message
    with pytest.raises(ValueError, match=r"VarianceReduction: signal must be one of loss, entropy, .*, got 'hardness'"):
        VarianceReduction(signal="hardness")
    for call, message in (
        (lambda: tau([1.0]), "tau: scores must be a Tensor, got list"),
        (lambda: tau(torch.arange(3)), "tau: scores must be floating-point, got int64"),
    ):
        with pytest.raises(TypeError) as error:
            call()
        assert str(error.value) == message
    picker = VarianceReduction()
    next(picker.batches(loader(), network()))
    with pytest.raises(ValueError) as error:
        picker.observe({"grad_norm": torch.rand(7)})
    expected = f"VarianceReduction: scores must have one value for each of the batch's {B} samples, got 7"
    assert str(error.value) == expected
