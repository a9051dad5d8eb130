"""LOW's weights against the quadratic programme they solve."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from scipy.optimize import minimize
from small import B, N, dataset, loader, network, plain, train
from torchassay.samplers import LOW


def by_bisection(gamma: list[float], lam: float) -> list[float]:
    """max(0, gamma^2 / (2 lam) - theta), with the theta that makes the sum right."""
    point = [g * g / (2 * lam) for g in gamma]
    low, high = min(point) - 1, max(point)
    for _ in range(200):
        theta = (low + high) / 2
        low, high = (theta, high) if sum(max(0.0, p - theta) for p in point) > len(point) else (low, theta)
    return [max(0.0, p - high) for p in point]


@pytest.mark.parametrize("lam", [0.01, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("n", [1, 2, 37])
def test_weights_are_those_of_the_simplex(n, lam, random):
    gamma = torch.rand(n, generator=random) * 1.4
    pick = LOW(lam).pick({"grad_norm": gamma})
    assert pick.weight.tolist() == pytest.approx(by_bisection(gamma.tolist(), lam), rel=1e-5, abs=1e-6)
    assert float(pick.weight.sum()) == pytest.approx(n) and pick.count == n and (pick.weight >= 0).all()


@pytest.mark.parametrize("lam", [0.1, 0.5])
def test_a_solver_of_quadratic_programmes_agrees(lam, random):
    gamma = (torch.rand(8, generator=random) * 1.4).double()
    linear = (gamma.square() + lam).numpy()
    solved = minimize(
        lambda w: lam * (w * w).sum() - linear @ w,
        [1.0] * 8,
        jac=lambda w: 2 * lam * w - linear,
        bounds=[(0, None)] * 8,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 8, "jac": lambda w: w * 0 + 1},
        method="SLSQP",
    )
    assert solved.success
    weight = LOW(lam).pick({"grad_norm": gamma}).weight
    assert weight.tolist() == pytest.approx(solved.x.tolist(), abs=1e-3)


def test_the_conditions_of_the_optimum(random):
    """Stationarity: the slope lam * 2 w - gamma^2 is one number where w > 0, and not below it where w = 0."""
    gamma, lam = (torch.rand(200, generator=random) * 1.4).double(), 0.03
    weight = LOW(lam).pick({"grad_norm": gamma}).weight.double()
    slope = 2 * lam * weight - gamma.square()
    inside = slope[weight > 0]
    assert 0 < len(inside) < 200 and float(inside.max() - inside.min()) < 1e-5
    assert float(slope[weight == 0].min()) >= float(inside.min()) - 1e-5


@pytest.mark.parametrize("value", [0.0, 0.7, 1e20, float("inf"), float("nan")])
def test_equal_gradients_weigh_one_each(value):
    assert LOW().pick({"grad_norm": torch.full((5,), value)}).weight.tolist() == pytest.approx([1.0] * 5)


def test_one_that_outweighs_all():
    gamma = torch.tensor([0.1, 1e20, 0.2, float("nan")])
    assert LOW().pick({"grad_norm": gamma}).weight.tolist() == [0, 4, 0, 0]


def test_masked_rows_do_not_count(random):
    gamma = torch.rand(12, generator=random)
    mask = torch.arange(12) % 3 != 0
    gamma[0] = 1e9
    pick = LOW(0.01).pick({"grad_norm": gamma}, mask=mask)
    expected = by_bisection(gamma[mask].tolist(), 0.01)
    assert pick.weight[mask].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6) and 0 in expected
    assert (pick.weight[~mask] == 0).all() and pick.count == 8
    nothing = LOW().pick({"grad_norm": gamma}, mask=torch.zeros(12, dtype=torch.bool))
    assert (nothing.weight == 0).all() and nothing.count == 0 and nothing.mean(gamma) == 0
    assert LOW().pick({"grad_norm": torch.zeros(0)}).weight.shape == (0,)


def test_nothing_waits_for_a_gpu():
    """Tensors without values: whoever asked for one would be told so."""
    scores = {"grad_norm": torch.empty(30, device="meta")}
    mask = torch.empty(30, dtype=torch.bool, device="meta")
    assert LOW().pick(scores).weight.is_meta and LOW().pick(scores, mask=mask).count.is_meta


def test_the_count_is_that_of_all(random):
    gamma, loss = torch.rand(32, generator=random), torch.rand(32, generator=random)
    pick = LOW(0.005).pick({"grad_norm": gamma})
    assert 0 < int(pick.mask.sum()) < 16 and pick.count == 32
    by_hand = sum(w * float(each) for w, each in zip(by_bisection(gamma.tolist(), 0.005), loss, strict=True)) / 32
    assert float(pick.mean(loss)) == pytest.approx(by_hand, rel=1e-4)


def gammas(model, x, y) -> torch.Tensor:
    """Of each sample, by its definition."""
    logits = model.eval()(x).detach()
    model.train()
    return (F.softmax(logits.double(), -1) - F.one_hot(y, logits.shape[1])).norm(dim=-1)


def test_no_weight_is_lost_on_the_way():
    picker, model = LOW(0.02), network()
    came = list(picker.batches(loader(index=True), model))
    x, y = dataset().tensors
    values = torch.rand(N, generator=torch.Generator().manual_seed(1))
    kept = by_hand = 0.0
    for first in range(0, N, B):
        rows = range(first, min(first + B, N))
        weight = by_bisection(gammas(model, x[rows.start : rows.stop], y[rows.start : rows.stop]).tolist(), 0.02)
        share = sum(w > 0 for w in weight)
        kept += share
        by_hand += share * sum(w * float(values[i]) for w, i in zip(weight, rows, strict=True)) / len(rows)
    assert 0 < kept < N and sum(len(weight) for _, weight in came) == kept
    assert sum(float((weight * values[batch[2]]).sum()) for batch, weight in came) == pytest.approx(by_hand, rel=1e-4)
    assert picker.counters()["forward_items"] == N and picker.counters()["backward_items"] == kept
    assert picker.counters()["effective_sample_size"] < 1


def test_one_batch_alone_gives_the_methods_mean():
    """Where nothing is regrouped, the mean over what comes out is the estimate itself."""
    picker, model = LOW(0.02), network()
    x, y = dataset(B).tensors
    (((some, labels), weight),) = picker.batches([(x, y)], model)
    loss = F.cross_entropy(model.eval()(x).detach(), y, reduction="none")
    expected = by_bisection(gammas(model, x, y).tolist(), 0.02)
    assert len(some) < B
    model.eval()
    by_hand = sum(w * float(each) for w, each in zip(expected, loss, strict=True)) / B
    found = (weight * F.cross_entropy(model(some).detach(), labels, reduction="none")).mean()
    assert float(found) == pytest.approx(by_hand, rel=1e-4)


def test_with_a_large_lam_training_is_the_plain_loop_to_the_bit():
    picker = LOW(1e12)

    def weighed(model):
        for x, y in loader():
            loss, s = ta.cross_entropy(model(x), y, reduction="none", signals=picker.needs)
            yield picker.pick(s).mean(loss)

    found, expected = train(weighed, network()), train(plain, network())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_goes_on_in_the_middle_of_batches(tmp_path):
    model, batches = network(), list(loader(index=True))
    whole = [(batch[2].tolist(), weight.tolist()) for batch, weight in LOW(0.02).batches(loader(index=True), model)]
    for at in range(1, len(whole)):
        first, second, fed = LOW(0.02), LOW(0.02), []
        begun = first.batches((fed.append(1) or batch for batch in batches), model)
        came = [(batch[2].tolist(), weight.tolist()) for batch, weight in (next(begun) for _ in range(at))]
        first.save(tmp_path / "state")
        second.load(tmp_path / "state")
        came += [(b[2].tolist(), w.tolist()) for b, w in second.batches(batches[len(fed) :], model)]
        for column in range(2):  # indices, weights: batches may be cut at other places
            assert list(chain(*(part[column] for part in came))) == list(chain(*(part[column] for part in whole)))


@pytest.mark.parametrize("lam", [0, -1.0, float("inf")])
def test_bad_arguments(lam):
    with pytest.raises(ValueError) as error:
        LOW(lam)
    assert str(error.value) == f"LOW: lam must be above 0 and finite, got {lam}"
