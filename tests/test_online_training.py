"""OnlineImportance in training: its ranks, its state, its loaders, a regression and a classifier."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from importance import SCORES, N, batches, train
from torch.utils.data import DataLoader, Dataset
from torchassay.checks import InputValueError
from torchassay.samplers import OnlineImportance

# ---- ranks


@pytest.mark.parametrize(("n", "world", "size"), [(103, 2, 10), (103, 4, 8), (9, 2, 4), (5, 4, 3), (81, 4, 5)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_the_samples_and_have_equally_many_batches(n, world, size, drop_last):
    score = np.random.default_rng(7).random(n).astype(np.float32)
    seen = set()
    for rank in range(world):
        sampler = OnlineImportance(n, batch_size=size, rank=rank, num_replicas=world, drop_last=drop_last)
        own = len(range(rank, n, world))
        rounds = n // world // size if drop_last else math.ceil(math.ceil(n / world) / size)
        repeated = own <= (rounds - 1) * size  # a rank with nothing left has its first sample again
        length = rounds * size if drop_last else own + repeated
        assert len(sampler) == length
        given = train(sampler, 3, lambda index: score[index])
        assert all((index % world == rank).all() for _, index, _ in given)
        for epoch in range(3):
            lengths = [len(index) for e, index, _ in given if e == epoch]
            assert len(lengths) == rounds and sum(lengths) == length
        seen |= {i for epoch, index, _ in given if epoch == 0 for i in index}
        if not drop_last:
            assert torch.equal(sampler.memory["importance"] > 0, torch.ones(own, dtype=torch.bool))
    assert seen == set(range(n)) or drop_last


def test_ranks_draw_other_batches():
    ranks = [OnlineImportance(100, batch_size=10, rank=r, num_replicas=2) for r in range(2)]
    first, second = ([index // 2 for _, index, _ in train(r, 2, lambda i: np.ones(len(i)))] for r in ranks)
    assert not any(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


# ---- state


@pytest.mark.parametrize("options", [{}, {"replacement": False, "keep": 0.8, "adaptive": True}], ids=["plain", "other"])
@pytest.mark.parametrize("at", [0, 5, 11, 14, 25])
def test_goes_on_where_it_was(tmp_path, at, options):
    """Without a loader here: with one, and its workers, below."""
    whole = OnlineImportance(N, batch_size=10, **options)
    expected = train(whole, 4)
    first = OnlineImportance(N, batch_size=10, **options)
    begun = []
    for epoch in range(4):
        first.set_epoch(epoch)
        for index, weight in batches(first):
            if len(begun) == at:
                break
            begun.append((epoch, index, weight))
            first.observe(torch.from_numpy(index), {"grad_norm": torch.from_numpy(SCORES[index])})
        if len(begun) == at:
            break
    first.save(tmp_path / "state")
    second = OnlineImportance(N, batch_size=10, **options)
    second.load(tmp_path / "state")
    found = begun + train(second, 4)
    assert len(found) == len(expected)
    for (epoch, index, weight), (e, i, w) in zip(found, expected, strict=True):
        assert epoch == e and np.array_equal(index, i) and np.array_equal(weight, w)
    assert torch.equal(second.memory["importance"], whole.memory["importance"])
    assert second.counters()["staleness"] == whole.counters()["staleness"]


def test_a_state_of_other_options_is_refused():
    state = OnlineImportance(N, batch_size=10).state_dict()
    for options, message in (
        ({"alpha": 0.3}, "OnlineImportance: the state must have alpha=0.3, got 0.2"),
        ({"signal": "loss"}, "OnlineImportance: the state must have signal='loss', got 'grad_norm'"),
        ({"keep": 0.5}, "OnlineImportance: the state must have keep=0.5, got None"),
        ({"replacement": False}, "OnlineImportance: the state must have replacement=False, got True"),
    ):
        with pytest.raises(InputValueError) as error:
            OnlineImportance(N, batch_size=10, **options).load_state_dict(state)
        assert str(error.value) == message


def test_a_mapped_memory_draws_what_one_in_ram_does(tmp_path):
    mapped = OnlineImportance(N, batch_size=10, plan_dir=tmp_path, keep=0.9)
    assert isinstance(mapped.memory._array("importance"), np.memmap)
    for (_, index, weight), (_, i, w) in zip(
        train(mapped, 3), train(OnlineImportance(N, batch_size=10, keep=0.9), 3), strict=True
    ):
        assert np.array_equal(index, i) and np.array_equal(weight, w)
    assert not list(tmp_path.iterdir())


def test_counters():
    sampler = OnlineImportance(N, batch_size=10)
    train(sampler, 3)
    found = sampler.counters()
    assert found["forward_items"] == found["backward_items"] == 3 * N
    assert 0.2 < found["effective_sample_size"] < 0.9 and 1 < found["staleness"] < 22
    assert sum(found["reuse"]) == N


# ---- in training


class Points(Dataset):
    """Of a line with noise of two sizes."""

    def __init__(self):
        generator = torch.Generator().manual_seed(8)
        self.x = torch.randn(N, 3, generator=generator)
        noise = torch.randn(N, 1, generator=generator) * torch.where(torch.arange(N) % 4 == 0, 2.0, 0.02)[:, None]
        self.y = self.x @ torch.tensor([[1.0], [-2.0], [0.5]]) + noise

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[i], self.y[i]


def descend(model: torch.nn.Module, loss: torch.Tensor, rate: float) -> None:
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= rate * parameter.grad


def regress(
    sampler: OnlineImportance, model: torch.nn.Module, until: int, workers: int = 0, batches: int | None = None
) -> list[list[int]]:
    """A regression's training loop from where the sampler and the model are; the batches it saw, at most so many."""
    dataset = ta.Indexed(Points())
    loader = DataLoader(dataset, batch_size=sampler.batch_size, sampler=sampler, num_workers=workers)
    seen: list[list[int]] = []
    for epoch in range(sampler.epoch, until):
        sampler.set_epoch(epoch)
        for x, y, index, weight in loader:
            if batches is not None and len(seen) == batches:
                return seen
            assert weight.dtype == torch.float32
            output = model(x)
            scores = ta.score_regression(output, y)
            loss = F.mse_loss(output, y, reduction="none").sum(1)
            descend(model, (weight * loss).mean(), 0.01)
            seen.append(index.tolist())
            sampler.observe(index, scores)
    return seen


def line() -> torch.nn.Module:
    torch.manual_seed(9)
    return torch.nn.Linear(3, 1)


def test_a_regression():
    data, model, sampler = Points(), line(), OnlineImportance(N, batch_size=8, alpha=0.0)
    seen = regress(sampler, model, 30)
    exact = torch.linalg.lstsq(torch.cat([data.x, torch.ones(N, 1)], 1), data.y).solution
    found = torch.cat([model.weight, model.bias[None]], 1).T
    assert (found - exact).abs().max() < 0.15
    noisy = np.concatenate([batch for batch in seen[13:]]) % 4 == 0
    assert noisy.mean() > 0.6  # a quarter of the samples; their residuals stay large
    error = 2 * (model(data.x) - data.y).abs()[:, 0].detach()
    importance = sampler.memory["importance"]
    assert np.corrcoef(error, importance)[0, 1] > 0.8


@pytest.mark.parametrize("workers", [0, 2])
def test_goes_on_in_a_loader(tmp_path, workers):
    whole = regress(OnlineImportance(N, batch_size=8, seed=2), line(), 3, workers)
    sampler, model = OnlineImportance(N, batch_size=8, seed=2), line()
    begun = regress(sampler, model, 3, workers, batches=16)
    sampler.save(tmp_path / "state")
    other = OnlineImportance(N, batch_size=8, seed=2)
    other.load(tmp_path / "state")
    assert begun + regress(other, model, 3, workers) == whole


def test_another_prefetch_is_refused(tmp_path):
    sampler, model = OnlineImportance(N, batch_size=8), line()
    regress(sampler, model, 3, workers=2, batches=16)
    sampler.save(tmp_path / "state")
    other = OnlineImportance(N, batch_size=8)
    other.load(tmp_path / "state")
    expected = "the loader must draw 4 batches ahead, as when the state was saved, got 0; use the same num_workers"
    with pytest.raises(RuntimeError, match=f"OnlineImportance: {expected} and prefetch_factor"):
        regress(other, model, 3)


def test_a_classifier_learns():
    generator = torch.Generator().manual_seed(10)
    y = torch.randint(3, (300,), generator=generator)
    x = torch.randn(300, 2, generator=generator) + 3 * F.one_hot(y, 3)[:, :2]
    dataset = ta.Indexed(torch.utils.data.TensorDataset(x, y))
    sampler = OnlineImportance(dataset, batch_size=20)
    torch.manual_seed(11)
    model = torch.nn.Linear(2, 3)
    loader = DataLoader(dataset, batch_size=20, sampler=sampler)
    for epoch in range(6):
        sampler.set_epoch(epoch)
        for inputs, target, index, weight in loader:
            loss, s = ta.cross_entropy(model(inputs), target, reduction="none", signals=sampler.needs)
            descend(model, (weight * loss).mean(), 0.3)
            sampler.observe(index, s)
    assert (model(x).argmax(1) == y).float().mean() > 0.9
    e = torch.softmax(model(x).double(), 1) - F.one_hot(y, 3)
    assert np.corrcoef(e.norm(dim=1).detach(), sampler.memory["importance"])[0, 1] > 0.7
