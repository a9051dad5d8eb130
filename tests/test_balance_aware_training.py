"""BalanceAware in training, against BSS's formulas in slow loops: what it measures, plans, keeps and goes on with."""

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
from torchassay.samplers.balance_aware import BalanceAware
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
