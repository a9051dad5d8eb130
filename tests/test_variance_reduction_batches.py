"""Variance reduction around a loader, on one process and several."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from ranks import on_ranks
from small import B, N, loader, network, plain, train
from torch import nn
from torchassay.samplers import VarianceReduction
from variance import NEVER, as_given, columns, drawn, tau_of

# ---- around a loader


def test_no_weight_is_lost_on_the_way(random):
    scores = torch.rand(100, generator=random).double()
    loss = torch.rand(100, generator=random)
    picker = VarianceReduction(3, gate=False, seed=6)
    came = list(picker.batches(columns(scores, 20), nn.Identity(), as_given))
    assert [len(weight) for _, weight in came] == [20, 13]  # of 60 and of what is left, 40: 13.3
    for step, ((rows, _), weight) in enumerate(came):
        first, last = (0, 60) if step == 0 else (60, 100)
        pool = scores[first:last]
        expected = [first + row for row in drawn(pool.tolist(), len(weight), 6, step)]
        assert rows.tolist() == expected
        by_hand = sum(float(loss[i]) * float(pool.mean() / scores[i]) for i in expected) / len(expected)
        assert float((weight * loss[rows]).mean()) == pytest.approx(by_hand, rel=1e-5)
    average = 0.1 * tau_of(scores[:60].tolist())
    assert picker.tau == pytest.approx(0.9 * average + 0.1 * tau_of(scores[60:].tolist()))
    assert picker.epoch == 1 and picker.step == 2 and picker.counters()["forward_items"] == 100


def test_a_single_draw_comes_beside_a_sample_without_weight(random):
    scores = torch.rand(14, generator=random).double()
    picker = VarianceReduction(3, gate=False, seed=6)
    (_, (last, weight)) = picker.batches(columns(scores, 4), nn.Identity(), as_given)
    (row,) = drawn(scores[12:].tolist(), 1, 6, 1)
    assert last[0].tolist() == [12 + row, 0]
    assert weight.tolist() == pytest.approx([2 * float(scores[12:].mean() / scores[12 + row]), 0])  # a mean over two


def test_the_form_without_weights(random):
    picker = VarianceReduction(2, signal="loss", weighted=False, warmup=False, seed=1)
    scores = F.one_hot(torch.tensor([0, 20, 40, 60]), 80).sum(0) + torch.rand(80, generator=random) / 100
    came = list(picker.batches(columns(scores, 20), nn.Identity(), as_given))
    assert [len(weight) for _, weight in came] == [20, 20, 10] and picker.needs == ("loss",)
    assert all((weight == 1).all() for _, weight in came)
    assert torch.equal(came[0][0][0], torch.arange(20))  # of one batch tau was known: the gate is open
    assert set(came[1][0][0].tolist()) & {20, 40} and came[1][0][0].min() >= 20 and came[1][0][0].max() < 60


class Counting(nn.Module):
    """Counts the rows it sees, and those in training mode."""

    def __init__(self):
        super().__init__()
        self.inner, self.rows, self.in_training = network(), 0, 0

    def forward(self, x):
        self.rows += len(x)
        self.in_training += len(x) * self.training
        return self.inner(x)


@pytest.mark.parametrize("observed", [True, False])
def test_with_the_gate_shut_the_loaders_batches_come_out(observed):
    model, picker, average = Counting(), VarianceReduction(tau_threshold=NEVER), 0.0
    batches, came = list(loader()), []
    for batch, weight in picker.batches(batches, model):
        came.append(batch)
        assert torch.equal(weight, torch.ones(len(batch[0])))
        _, s = ta.cross_entropy(model(batch[0]), batch[1], reduction="none", signals=picker.needs)
        evaluated = ta.score(model.inner.eval()(batch[0]).detach(), batch[1], signals=picker.needs)
        model.inner.train()
        average = 0.9 * average + 0.1 * tau_of((s if observed else evaluated).grad_norm.double().tolist())
        if observed:
            picker.observe(s)
            picker.observe(s)  # once is enough: nothing happens
    assert all(mine is theirs for mine, theirs in zip(came, batches, strict=True))
    assert picker.tau == pytest.approx(average, rel=1e-5)
    assert model.in_training == N and model.rows == (N if observed else 2 * N)
    counters = picker.counters()
    assert counters["forward_items"] == N == counters["backward_items"] and counters["effective_sample_size"] == 1


def test_of_drawn_batches_tau_knows_the_pool(random):
    picker = VarianceReduction(2, gate=False)
    batches = picker.batches(columns(torch.rand(40, generator=random), 10), nn.Identity(), as_given)
    next(batches)
    before = picker.tau
    picker.observe({"grad_norm": torch.rand(10, generator=random)})
    assert picker.tau == before and picker.counters()["forward_items"] == 20


@pytest.mark.parametrize("form", ["pick", "batches"])
def test_with_the_gate_shut_training_is_the_plain_loop_to_the_bit(form):
    picker = VarianceReduction(tau_threshold=NEVER)

    def picked(model):
        for x, y in loader():
            loss, s = ta.cross_entropy(model(x), y, reduction="none", signals=picker.needs)
            yield picker.pick(s).mean(loss)

    def whole(model):
        for (x, y), weight in picker.batches(loader(), model):
            yield (weight * ta.cross_entropy(model(x), y, reduction="none")).mean()

    expected = train(plain, network())
    found = train(picked if form == "pick" else whole, network())
    assert picker.step == 55
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("observed", [True, False])
def test_goes_on_in_the_middle_of_batches(tmp_path, observed):
    """The gate opens on the way; a state is taken after each batch, with and without its scores known."""
    batches = list(loader(index=True))
    model = network()

    def made():
        return VarianceReduction(2, tau_threshold=0.25, seed=7)

    def walked(picker, feed, stop=None):
        came = []
        for batch, weight in picker.batches(feed, model):
            came.append((batch[2].tolist() if len(batch) > 2 else batch, weight.tolist()))
            if observed:
                picker.observe(ta.score(model.eval()(batch[0]).detach(), batch[1], signals=picker.needs))
                model.train()
            if len(came) == stop:
                break
        return came

    one = made()
    whole = walked(one, batches)
    sizes = [len(weight) for _, weight in whole]
    assert max(sizes) == B and len(whole) < len(batches)  # both: whole batches and drawn ones
    for at in range(1, len(whole)):
        first, second, fed = made(), made(), []
        begun = walked(first, (fed.append(1) or batch for batch in batches), at)
        first.save(tmp_path / "state")
        second.load(tmp_path / "state")
        assert begun + walked(second, batches[len(fed) :]) == whole
        assert second.tau == one.tau and second.step == one.step
        assert second.counters()["backward_items"] == one.counters()["backward_items"]


def test_a_pool_half_collected_is_in_the_state(tmp_path, random):
    batches = columns(torch.rand(100, generator=random), 10)
    whole = list(VarianceReduction(3, gate=False, seed=4).batches(batches, nn.Identity(), as_given))
    first, second = (VarianceReduction(3, gate=False, seed=4) for _ in range(2))

    def interrupted():
        yield from batches[:5]
        raise KeyboardInterrupt

    begun = first.batches(interrupted(), nn.Identity(), as_given)
    next(begun)
    with pytest.raises(KeyboardInterrupt):
        next(begun)
    second.load_state_dict(first.state_dict())
    rest = list(second.batches(batches[5:], nn.Identity(), as_given))
    assert [batch[0].tolist() for batch, _ in rest] == [batch[0].tolist() for batch, _ in whole[1:]]
    assert all(torch.equal(mine, theirs) for (_, mine), (_, theirs) in zip(rest, whole[1:], strict=True))


def test_counters_know_duplicates_and_noise():
    picker = VarianceReduction(2, gate=False, seed=9)
    corrupted = torch.arange(N) % 3 == 0
    picker.track(corrupted)
    came = list(picker.batches(loader(index=True), network()))
    indices = torch.cat([batch[2] for batch, _ in came])
    counters = picker.counters()
    times = torch.bincount(indices, minlength=N)
    assert counters["reuse"] == torch.bincount(times, minlength=11).tolist() and times.max() > 1
    assert counters["backward_items"] == len(indices) and counters["forward_items"] == N
    assert counters["noise_share"] == pytest.approx(float(corrupted[indices].float().mean()))
    sizes = [float(w.sum() ** 2 / w.square().sum()) / len(w) for _, w in came]
    assert counters["effective_sample_size"] == pytest.approx(sum(sizes) / len(sizes), rel=1e-5)


# ---- several processes


def scores_of(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """14 scores on each rank; 7 of the first count, 11 of the second."""
    scores = torch.rand(14, generator=torch.Generator().manual_seed(rank)).double()
    return scores, torch.arange(14) < (7, 11)[rank]


def on_rank(rank: int) -> dict:
    group = torch.distributed.group.WORLD
    scores, mask = scores_of(rank)
    shares = VarianceReduction(3, gate=False, weighted=False, group=group)
    picker = VarianceReduction(3, gate=False, seed=4, group=group)
    found: dict = {"pick": shares.pick({"grad_norm": scores}, mask=mask).weight, "tau": torch.tensor(shares.tau)}
    values = scores.sqrt() + rank
    means = [float(picker.pick({"grad_norm": scores}, mask=mask).mean(values)) for _ in range(500)]
    found["means"] = torch.tensor(means)
    batches = columns(scores[: (10, 4)[rank]], 4)  # the second rank has one batch only
    for name, arguments in (
        ("open", {"gate": False, "weighted": False}),
        ("observed", {"tau_threshold": NEVER}),
        ("shut", {"tau_threshold": NEVER}),
    ):
        picker, weights = VarianceReduction(2, seed=4, group=group, **arguments), []
        for batch, weight in picker.batches(batches, nn.Identity(), as_given):
            weights.append(weight)
            if name == "observed":
                picker.observe(as_given(None, batch))
        found[name] = {"weights": weights, "tau": torch.tensor(picker.tau)}
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    return on_ranks(2, tmp_path_factory.mktemp("ranks"), on_rank)


def test_ranks_pick_from_their_parts_and_know_one_tau(ranks):
    every = torch.cat([scores[mask] for scores, mask in map(scores_of, range(2))])
    for rank, found in enumerate(ranks):
        assert float(found["tau"]) == pytest.approx(0.1 * tau_of(every.tolist()))
        assert float(found["pick"].sum()) / (2 + 4) == pytest.approx((7, 11)[rank] / 18)  # by their sizes, not 2 and 4
    estimates = (ranks[0]["means"] + ranks[1]["means"]) / 2  # as DistributedDataParallel does
    values = torch.cat([scores[mask].sqrt() + rank for rank, (scores, mask) in enumerate(map(scores_of, range(2)))])
    assert abs(float(estimates.mean() - values.mean())) < 3 * float(estimates.std()) / math.sqrt(500)


@pytest.mark.parametrize("name", ["open", "observed", "shut"])
def test_ranks_with_uneven_loaders_take_equally_many_steps(ranks, name):
    mine, theirs = (scores_of(rank)[0][: (10, 4)[rank]].tolist() for rank in range(2))
    if name == "open":  # pools of 8 and 4, then of 2 and none
        expected = [[4 / 3] * 4, [4.0, 0.0]], [[2 / 3] * 2, [0.0, 0.0]]
        pools = [mine[:8] + theirs, mine[8:]]
    else:
        expected = [[1.0] * 4, [2.0] * 4, [2.0] * 2], [[1.0] * 4, [0.0] * 2, [0.0] * 2]
        pools = [mine[:4] + theirs, mine[4:8], mine[8:]]
    average = 0.0
    for pool in pools:
        average = 0.9 * average + 0.1 * tau_of(pool)
    for found, weights in zip((rank[name] for rank in ranks), expected, strict=True):
        assert [weight.tolist() for weight in found["weights"]] == [pytest.approx(by_hand) for by_hand in weights]
        assert float(found["tau"]) == pytest.approx(average)
    assert torch.equal(ranks[0][name]["tau"], ranks[1][name]["tau"])
