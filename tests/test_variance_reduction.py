"""Variance reduction against the formulas of Katharopoulos and Fleuret (2018), by hand and by autograd."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from ranks import on_ranks
from small import B, C, D, N, dataset, loader, network, plain, train
from torch import nn
from torchassay.philox import uniforms
from torchassay.samplers import VarianceReduction
from torchassay.samplers.variance_reduction import tau

NEVER = 1e9  # no tau comes that far


def tau_of(scores: list[float]) -> float:
    """As the paper writes it."""
    g = [score / sum(scores) for score in scores]
    return (1 - sum((p - 1 / len(g)) ** 2 for p in g) / sum(p * p for p in g)) ** -0.5


def drawn(scores: list[float], count: int, seed: int, step: int) -> list[int]:
    """Inverse transform sampling with the documented numbers, each of two 24-bit halves."""
    upto = list(accumulate(scores))
    ids = torch.arange(count)
    high, low = (uniforms(ids + half, seed=seed, step=step).double() for half in (0, 1 << 40))
    return [bisect_right(upto, uniform * upto[-1]) for uniform in (high + low / 2**24).tolist()]


def as_given(model, batch):
    """A batch's second column is its scores."""
    return {"grad_norm": batch[1], "loss": batch[1]}


def columns(scores: torch.Tensor, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of (number, score)."""
    return list(zip(torch.arange(len(scores)).split(size), scores.split(size), strict=True))


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
