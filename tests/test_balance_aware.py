"""BalanceAware against BSS's formulas in slow loops and many draws, and in training."""

import itertools
import math
import os

import numpy as np
import pytest
import torch
from ranks import on_ranks
from torch.utils.data import DataLoader, TensorDataset
from torchassay.data import Indexed
from torchassay.samplers import balance_aware
from torchassay.samplers.balance_aware import BalanceAware, balance, highest, share_of_epoch, weighted_order
from torchassay.samplers.modalities import balance_scores

N, CLASSES = 61, 3
TAG = balance_aware._TAG


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)  # the model is tiny


def toy():
    """Two modalities of unequal worth and their class."""
    random = torch.Generator().manual_seed(30)
    target = torch.randint(CLASSES, (N,), generator=random)
    audio, video = torch.randn(2, N, 4, generator=random)
    return TensorDataset(
        audio + 2 * torch.nn.functional.one_hot(target, 4), video + torch.nn.functional.one_hot(target, 4), target
    )


class TwoHeads(torch.nn.Module):
    """A head on each modality, and one on both."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.audio, self.video = torch.nn.Linear(4, CLASSES), torch.nn.Linear(4, CLASSES)
        self.norm, self.dropout = torch.nn.BatchNorm1d(8), torch.nn.Dropout(dropout)
        self.fused = torch.nn.Linear(8, CLASSES)

    def forward(self, audio, video):
        both = self.dropout(self.norm(torch.cat([audio, video], 1)))
        return (self.audio(audio), self.video(video)), self.fused(both)


def scores(model, batch):
    audio, video, target, _ = batch
    return balance_scores(*model(audio, video), target)


def made(dropout=0.0):
    """The data, a model and what trains it, always the same."""
    torch.manual_seed(31)
    model = TwoHeads(dropout)
    return Indexed(toy()), model, torch.optim.SGD(model.parameters(), lr=0.05)


def train(sampler, dataset, model, optimizer, until, batches=None, workers=0):
    """Train on from where the sampler is, at most so many batches: each batch's epoch, samples and scores."""
    seen = []
    loader = DataLoader(dataset, batch_size=sampler.batch_size, sampler=sampler, num_workers=workers)
    for epoch in range(sampler.epoch, until):
        sampler.set_epoch(epoch)
        for audio, video, target, index in loader:
            if batches is not None and len(seen) == batches:
                return seen
            heads, fused = model(audio, video)
            found = balance_scores(heads, fused, target)
            loss = sum(torch.nn.functional.cross_entropy(each, target) for each in (fused, *heads))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sampler.observe(index, found)
            seen.append((epoch, index.tolist(), found))
    return seen


def measured(**options):
    sampler = BalanceAware(N, batch_size=8, **options)
    dataset, *others = made()
    sampler.measure(DataLoader(dataset, batch_size=25), others[0], scores)
    return sampler, dataset, *others


def orders(seen):
    """The samples of each epoch."""
    found = {}
    for epoch, index, _ in seen:
        found.setdefault(epoch, []).extend(index)
    return found


def by_hand(similarity, loss):
    """s of each sample, from dicts."""
    moved = []
    for values in (similarity, loss):
        low, high = min(values.values()), max(values.values())
        moved.append({i: (value - low) / (high - low) for i, value in values.items()})
    return {i: moved[0][i] - moved[1][i] for i in moved[0]}


def chi_square(counts, expected):
    """How far counts are from what is expected, in standard deviations of the statistic."""
    counts, expected = np.asarray(counts, float), np.asarray(expected, float)
    degrees = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees)


def test_share_of_epoch_grows_as_published():
    """lambda(t) of the method's slides, t = epoch + 1."""
    for t, expected in ((1, 0.1864), (10, 0.5074), (20, 0.7106), (39, 0.9875)):
        assert round(share_of_epoch(t - 1), 4) == expected
    assert share_of_epoch(39) == share_of_epoch(100) == 1
    for t in range(1, 8):
        exact = min(1.0, math.sqrt((1 - 0.3**2) / 7 * t + 0.3**2))
        assert share_of_epoch(t - 1, 0.3, 7) == pytest.approx(exact, rel=1e-15)
    for lambda0 in np.linspace(0, 1, 101):
        assert share_of_epoch(6, lambda0, 7) == 1  # exactly, so that no sample is left out


def test_balance_is_the_difference_of_both_scaled_to_one():
    random = np.random.default_rng(2)
    similarity = random.random(200, dtype=np.float32) * np.float32(0.3) + np.float32(0.5)
    loss = random.exponential(size=200).astype(np.float32)
    by_hand = {"both": [], "similarity": [], "loss": []}
    for cosine, nats in zip(similarity.astype(float), loss.astype(float), strict=True):
        agreed = (cosine - similarity.min()) / (float(similarity.max()) - similarity.min())
        lost = (nats - loss.min()) / (float(loss.max()) - loss.min())
        for name, value in (("both", agreed - lost), ("similarity", agreed), ("loss", -lost)):
            by_hand[name].append(value)
    before = similarity.copy(), loss.copy()
    given = {"both": (similarity, loss), "similarity": (similarity, None), "loss": (None, loss)}
    for name, expected in by_hand.items():
        found = balance(*given[name])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-7)
        assert found.min() >= -1 and found.max() <= 1
    assert (similarity == before[0]).all() and (loss == before[1]).all()


def test_balance_of_equal_and_of_infinite_values():
    equal, rising = np.full(4, 0.1, np.float32), np.array([0, 1, 2, 4], np.float32)
    assert balance(equal, equal).tolist() == [0, 0, 0, 0]
    assert balance(equal, rising).tolist() == [0, -0.25, -0.5, -1]
    assert balance(rising, equal).tolist() == [0, 0.25, 0.5, 1]
    infinite = np.array([0, np.inf, 2, 4], np.float32)  # a masked class as target: as bad as the worst other
    assert balance(None, infinite).tolist() == [0, -1, -0.5, -1]
    assert balance(equal, np.full(4, np.inf, np.float32)).tolist() == [0, 0, 0, 0]


def test_highest_takes_the_highest():
    values = np.random.default_rng(3).permutation(500).astype(np.float32)
    by_value = sorted(range(500), key=lambda i: -values[i])
    for count in (1, 2, 250, 499, 500):
        found = highest(values, count, seed=0)
        assert found.dtype == np.int32
        assert found.tolist() == sorted(by_value[:count])


def test_highest_draws_among_equals_once_for_all_epochs():
    values = np.repeat(np.array([1, 0, 2, 1], np.float32), 500)
    before = set()
    for count in (100, 500, 501, 900, 1500, 1501, 2000):
        found = set(highest(values, count, seed=4).tolist())
        assert len(found) == count and before <= found  # the sequence is fixed: more join, none leaves
        before = found
        for value in (2, 1, 0):  # no lower one as long as a higher is left
            of_value = set(np.flatnonzero(values == value).tolist())
            assert of_value <= found or all(values[i] >= value for i in found)
    alike = highest(np.zeros(2000, np.float32), 1000, seed=4)
    assert abs((alike < 1000).sum() - 500) < 4 * math.sqrt(1000 / 4)
    assert not np.array_equal(alike, highest(np.zeros(2000, np.float32), 1000, seed=5))


def test_weighted_order_is_the_order_of_gumbel_keys():
    weight = np.exp(np.random.default_rng(5).uniform(-1, 1, 1000)).astype(np.float32)
    times = np.random.default_rng(6).standard_exponential(1000)
    gumbel = [math.log(float(w)) - math.log(t) for w, t in zip(weight, times, strict=True)]
    found = weighted_order(weight, np.random.default_rng(6))
    assert found.dtype == np.int32
    assert found.tolist() == sorted(range(1000), key=lambda i: -gumbel[i])


def test_weighted_order_of_more_samples_than_a_part():
    n = balance_aware._PART + 1000
    weight = np.random.default_rng(7).random(n, dtype=np.float32) + np.float32(0.01)
    times = np.random.default_rng(8).standard_exponential(n) / weight
    expected = sorted(range(n), key=lambda i: (np.float32(times[i]), i))
    assert weighted_order(weight, np.random.default_rng(8)).tolist() == expected


def test_weighted_order_draws_in_proportion_to_the_weights():
    """Frequencies of whole orders against the chance of each, that of drawing one after the other."""
    weight = np.array([0.4, 0.1, 0.3, 0.9])
    chance = {}
    for order in itertools.permutations(range(4)):
        chance[order] = math.prod(weight[i] / weight[list(order[k:])].sum() for k, i in enumerate(order))
    rng, draws = np.random.default_rng(9), 20_000
    counts = dict.fromkeys(chance, 0)
    for _ in range(draws):
        counts[tuple(weighted_order(weight, rng).tolist())] += 1
    assert abs(chi_square(list(counts.values()), [draws * p for p in chance.values()])) < 3
    first = [sum(count for order, count in counts.items() if order[0] == i) for i in range(4)]
    assert abs(chi_square(first, draws * weight / weight.sum())) < 3
    assert chi_square(first, [draws / 4] * 4) > 100  # which plain shuffling would not pass


@pytest.mark.parametrize(
    ("mode", "beta", "every"), [("paper", 0.6, 1), ("paper", 1.0, 1), ("paper", 0.3, 3), ("official", 0.6, 1)]
)
def test_the_learned_order_is_drawn_from_the_smoothed_scores(mode, beta, every):
    """Six epochs of training against the formulas, from the scores as they were observed."""
    sampler, dataset, model, optimizer = measured(mode=mode, beta=beta, rescore_every=every, seed=5)
    latest = {}
    for batch in DataLoader(dataset, batch_size=N):
        model.eval()
        first = scores(model, batch)
        model.train()
    latest["similarity"] = dict(enumerate(first.similarity.tolist()))
    latest["loss"] = dict(enumerate(first.loss.tolist()))
    seen = train(sampler, dataset, model, optimizer, until=6)
    smoothed = None
    for epoch, order in orders(seen).items():
        if epoch % every == 0:
            s = by_hand(latest["similarity"], latest["loss"])
            if smoothed is None or mode == "official":
                smoothed = s
            smoothed = {i: (1 - beta) * smoothed[i] + beta * s[i] for i in s} if mode == "paper" else s
        times = np.random.default_rng([5, epoch, TAG]).standard_exponential(N)
        rate = {i: math.exp(s) if mode == "paper" else 1 + s + 0.01 for i, s in smoothed.items()}
        assert order == sorted(range(N), key=lambda i: times[i] / rate[i])
        for at, index, found in seen:
            if at == epoch:
                latest["similarity"] |= dict(zip(index, found.similarity.tolist(), strict=True))
                latest["loss"] |= dict(zip(index, found.loss.tolist(), strict=True))
    kept = sampler._smoothed / 32767
    assert max(abs(kept[i] - smoothed[i]) for i in range(N)) < 5e-5
    assert np.ptp(kept) > 0.5  # there was something to tell apart
    for name, values in latest.items():
        assert sampler.memory[name].tolist() == [values[i] for i in range(N)]


def test_measuring_before_every_epoch_is_the_papers_rescoring():
    sampler, dataset, model, optimizer = measured(beta=1.0)
    steps = [sampler.memory.last_step.clone()]
    for epoch in range(1, 4):
        train(sampler, dataset, model, optimizer, until=epoch)
        steps.append(sampler.memory.last_step.clone())
        sampler.measure(DataLoader(dataset, batch_size=25), model, scores)
        steps.append(sampler.memory.last_step.clone())
    assert all(later.min() > earlier.max() for earlier, later in itertools.pairwise(steps))
    sampler.set_epoch(3)
    sampler.plan()
    model.eval()
    (batch,) = DataLoader(dataset, batch_size=N)
    now = scores(model, batch)
    s = by_hand(dict(enumerate(now.similarity.tolist())), dict(enumerate(now.loss.tolist())))
    np.testing.assert_allclose(sampler._smoothed / 32767, [s[i] for i in range(N)], atol=2e-5)
    assert sampler.memory.visits.tolist() == [7] * N  # four measurements and three epochs


def test_the_heuristic_takes_a_growing_share_of_the_highest_first_scores():
    sampler, dataset, model, optimizer = measured(scheduler="heuristic", t_grow=6, lambda0=0.2)
    similarity, loss = sampler.memory["similarity"].clone(), sampler.memory["loss"].clone()
    s = by_hand(dict(enumerate(similarity.tolist())), dict(enumerate(loss.tolist())))
    by_score = sorted(range(N), key=lambda i: -s[i])
    assert sampler.needs == ()
    found = orders(train(sampler, dataset, model, optimizer, until=8))
    for epoch, order in found.items():
        share = min(1, math.sqrt((1 - 0.2**2) / 6 * (epoch + 1) + 0.2**2))
        assert sorted(order) == sorted(by_score[: math.floor(N * share + 1e-9)])
        assert order != sorted(order)  # shuffled
    assert len(found[5]) == len(found[6]) == N and found[5] != found[6]
    assert torch.equal(sampler.memory["similarity"], similarity) and torch.equal(sampler.memory["loss"], loss)
    visits = [1 + sum(i in order for order in found.values()) for i in range(N)]
    assert sampler.memory.visits.tolist() == visits
    sampler.set_epoch(9)
    for first in range(0, N, 8):  # nothing needs to be observed
        sampler.observe(torch.from_numpy(sampler.plan()[first : first + 8].astype(np.int64)), {})


def test_the_heuristic_has_at_least_one_sample():
    sampler = BalanceAware(3, batch_size=2, scheduler="heuristic")
    sampler.memory.update(torch.arange(3), {"similarity": torch.ones(3), "loss": torch.tensor([2.0, 1.0, 3.0])}, 0)
    assert sampler.plan().tolist() == [1] and len(sampler) == 1


@pytest.mark.parametrize(("criterion", "high"), [("similarity", 2), ("loss", 0)])
def test_one_criterion_alone(criterion, high):
    for scheduler in ("learned", "heuristic"):
        sampler = BalanceAware(4, batch_size=2, criterion=criterion, scheduler=scheduler, lambda0=0.5, t_grow=100)
        assert tuple(sampler.memory.fields) == (criterion,)
        sampler.memory.update(torch.arange(4), {criterion: torch.tensor([0.1, 0.3, 0.9, 0.5])}, 0)
        plan = sampler.plan().tolist()
        if scheduler == "learned":
            assert sorted(plan) == list(range(4)) and sampler.needs == (criterion,)
            s = (sampler._smoothed / 32767).tolist()
            expected = [0, 0.25, 1, 0.5] if criterion == "similarity" else [0, -0.25, -1, -0.5]
            assert s == pytest.approx(expected, abs=2e-5)
        else:
            assert plan[0] == high or plan[1] == high


def test_measure_leaves_the_model_as_it_is():
    dataset, model, _ = made(dropout=0.5)
    model.norm.eval()  # frozen, as some train
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sampler = BalanceAware(dataset, batch_size=8)
    graphs = []

    def watched(model, batch):
        graphs.append(torch.is_grad_enabled() or any(module.training for module in model.modules()))
        return scores(model, batch)

    sampler.measure(DataLoader(dataset, batch_size=25), model, watched)
    assert graphs == [False, False, False]
    assert [module.training for module in model.modules()] == [True, True, True, False, True, True]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    (batch,) = DataLoader(dataset, batch_size=N)
    torch.testing.assert_close(sampler.memory["loss"], scores(model, batch).loss, rtol=1e-5, atol=0)
    assert sampler.counters()["forward_items"] == N


def test_measure_says_what_is_wrong():
    sampler, dataset, model, optimizer = measured()
    loader = DataLoader(dataset, batch_size=25)
    name = "BalanceAware.measure: "
    with pytest.raises(ValueError) as raised:
        BalanceAware(N, batch_size=8).measure(DataLoader(toy(), batch_size=8), model, scores)
    assert str(raised.value) == name + "loader must have a torchassay.Indexed data set, got TensorDataset"
    with pytest.raises(ValueError) as raised:
        BalanceAware(N, batch_size=8).measure(loader, model, lambda model, batch: {"loss": torch.zeros(25)})
    assert str(raised.value) == "SampleMemory.update: scores must hold 'similarity', got loss"
    assert all(module.training for module in model.modules())
    train(sampler, dataset, model, optimizer, until=2, batches=3)
    with pytest.raises(RuntimeError) as raised:
        sampler.measure(loader, model, scores)
    expected = "before the first epoch, or between the end of one and set_epoch of the next"
    assert str(raised.value) == name + f"must be called {expected}, got epoch 0 under way"


def test_epochs_wait_for_the_scores_of_all():
    sampler = BalanceAware(10, batch_size=2)
    half = {"similarity": torch.rand(5), "loss": torch.rand(5)}
    sampler.memory.update(torch.arange(5), half, 0)
    half["loss"][3] = torch.nan
    sampler.memory.update(torch.arange(5, 10), half, 0)
    assert "batch 0" in repr(sampler)
    for call in (sampler.plan, lambda: next(iter(sampler)), lambda: len(sampler)):
        with pytest.raises(RuntimeError) as raised:
            call()
        assert str(raised.value) == (
            "BalanceAware: every sample must have a score, got 1 of 10 without one or with NaN, the first of them 8; "
            "call measure(loader, model, forward) first"
        )
    sampler.memory.update(torch.tensor([8]), {"similarity": torch.ones(1), "loss": torch.ones(1)}, 0)
    assert sorted(sampler.plan().tolist()) == list(range(10))


@pytest.mark.parametrize("at", [0, 3, 8, 21])
@pytest.mark.parametrize(
    "options",
    [{}, {"rescore_every": 2}, {"scheduler": "heuristic", "t_grow": 4}],
    ids=["learned", "every 2", "heuristic"],
)
def test_goes_on_where_it_was(tmp_path, options, at):
    whole, *parts = measured(**options)
    expected = train(whole, *parts, until=4)
    first, dataset, model, optimizer = measured(**options)
    begun = train(first, dataset, model, optimizer, until=4, batches=at)
    first.save(tmp_path / "state")
    second = BalanceAware(N, batch_size=8, **options)
    second.load(tmp_path / "state")
    rest = train(second, dataset, model, optimizer, until=4, workers=2 if at == 3 and not options else 0)
    assert [part[:2] for part in begun + rest] == [part[:2] for part in expected]
    assert torch.equal(second.memory["loss"], whole.memory["loss"])
    if not options:
        np.testing.assert_array_equal(second._smoothed, whole._smoothed)


def test_a_state_of_other_arguments_is_refused():
    state = measured()[0].state_dict()
    for options, message in (
        ({"scheduler": "heuristic"}, "scheduler='heuristic', got 'learned'"),
        ({"beta": 0.5}, "beta=0.5, got 0.6"),
        ({"rescore_every": 2}, "rescore_every=2, got 1"),
    ):
        with pytest.raises(ValueError) as raised:
            BalanceAware(N, batch_size=8, **options).load_state_dict(state)
        assert str(raised.value) == f"BalanceAware: the state must have {message}"


def test_a_sample_costs_at_most_20_bytes():
    for scheduler in ("learned", "heuristic"):
        sampler = BalanceAware(1000, batch_size=10, scheduler=scheduler, lambda0=1)
        sampler.memory.update(torch.arange(1000), {name: torch.rand(1000) for name in ("similarity", "loss")}, 0)
        sampler.plan()
        plan = sum(value.nbytes for value in vars(sampler).values() if isinstance(value, np.ndarray))
        assert 18 * 1000 <= sampler.memory.nbytes + plan <= 20 * 1000 + 100


def _on_rank(rank, machines):
    """The plans of three epochs, and one more after all ranks have measured all samples, each something else."""
    os.environ["GROUP_RANK"] = str((rank or 0) % machines)  # torchrun's number of the machine
    dataset, model, _ = made()
    sampler = BalanceAware(dataset, batch_size=8, beta=0.5)
    own = range(N) if rank is None else range(rank, N, 2)
    sampler.measure(DataLoader(dataset, batch_size=7, sampler=list(own)), model, scores)
    plans = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        plans.append(torch.from_numpy(sampler.plan().copy()))
        for audio, video, target, index in DataLoader(dataset, batch_size=8, sampler=sampler):
            with torch.no_grad():
                found = balance_scores(*model.eval()(audio + epoch, video), target)
            sampler.observe(index, found)
    before = sampler.memory.last_step.clone()
    if rank is not None:
        torch.distributed.barrier()
    random = torch.Generator().manual_seed(rank or 0)
    sampler.measure(
        DataLoader(dataset, batch_size=N),
        model,
        lambda model, batch: {name: torch.rand(N, generator=random) for name in sampler.needs},
    )
    sampler.set_epoch(3)
    plans.append(torch.from_numpy(sampler.plan().copy()))
    later = bool((sampler.memory.last_step > before).all())
    return {"plans": plans, "loss": sampler.memory["loss"].clone(), "later": torch.tensor(later)}


@pytest.mark.parametrize("machines", [1, 2])
def test_two_processes_plan_as_one(tmp_path, monkeypatch, machines):
    """With a model that stands still, so that the scores do not depend on the order of steps."""
    monkeypatch.setenv("GROUP_RANK", "0")
    alone = _on_rank(None, 1)
    first, second = on_ranks(2, tmp_path, _on_rank, machines)
    for mine, theirs, expected in zip(first["plans"][:3], second["plans"][:3], alone["plans"][:3], strict=True):
        assert torch.equal(mine, theirs) and torch.equal(mine, expected)
    assert first["later"] and second["later"]
    if machines == 2:  # of one machine the processes share a memory, which either may have written last
        assert torch.equal(first["loss"], second["loss"])
    assert torch.equal(first["plans"][3], second["plans"][3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "both"}, "scheduler must be one of learned, heuristic, got 'both'"),
        ({"criterion": "entropy"}, "criterion must be one of both, similarity, loss, got 'entropy'"),
        ({"mode": "code"}, "mode must be one of paper, official, got 'code'"),
        ({"lambda0": 1.5}, "lambda0 must be in [0, 1], got 1.5"),
        ({"t_grow": 0}, "t_grow must be greater than 0 and finite, got 0"),
        ({"beta": 0}, "beta must be in (0, 1], got 0"),
        ({"beta": math.nan}, "beta must be in (0, 1], got nan"),
        ({"rescore_every": 0}, "rescore_every must be at least 1, got 0"),
        ({"rescore_every": 1.0}, "rescore_every must be an int, got float"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises((ValueError, TypeError)) as raised:
        BalanceAware(5, batch_size=2, **options)
    assert str(raised.value) == f"BalanceAware: {message}"
