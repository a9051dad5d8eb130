"""WeightedSampler: what each rank gets, and the stream of a run that was stopped and went on."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
import torchassay as ta
from importance import chi_square
from ranks import on_ranks
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler
from torchassay.checks import InputTypeError, InputValueError
from torchassay.samplers import WeightedSampler

N = 103
WEIGHTS = np.random.default_rng(1).gamma(0.7, size=N)
WEIGHTS[::10] = 0


def epochs(sampler: WeightedSampler, until: int) -> list[list[int]]:
    found = []
    for epoch in range(sampler.epoch, until):
        sampler.set_epoch(epoch)
        found.append(list(sampler))
    return found


def written(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# ---- what is drawn


def test_an_epoch_is_the_trees_draw():
    sampler = WeightedSampler(WEIGHTS, 60, seed=4)
    for epoch, found in enumerate(epochs(sampler, 5)):
        assert found == ta.SumTree(WEIGHTS).sample(60, seed=(4, epoch)).tolist()
    other = WeightedSampler(WEIGHTS, 60, seed=5)
    other.set_epoch(4)
    assert list(other) != found
    assert ta.WeightedSampler is WeightedSampler


def test_draws_are_in_proportion():
    found = np.concatenate(epochs(WeightedSampler(torch.from_numpy(WEIGHTS), 2000), 10))
    assert abs(chi_square(np.bincount(found, minlength=N), WEIGHTS)) < 4


def test_arguments_are_those_of_torchs_sampler():
    weights = WEIGHTS.tolist()
    mine, torchs = (kind(weights, 50, False, None) for kind in (WeightedSampler, WeightedRandomSampler))
    for sampler in (mine, torchs):
        assert len(sampler) == len(set(sampler)) == 50 and all(type(key) is int for key in sampler)
    loader = DataLoader(TensorDataset(torch.arange(N)), batch_size=8, sampler=mine)
    mine.set_epoch(3)
    found = torch.cat([value for (value,) in loader]).tolist()
    mine.set_epoch(3)
    assert found == list(mine)


def test_an_epoch_follows_the_one_before():
    told, alone = WeightedSampler(WEIGHTS, 30), WeightedSampler(WEIGHTS, 30)
    expected = epochs(told, 4)
    assert [list(alone) for _ in range(4)] == expected and alone.epoch == 3
    assert len({tuple(epoch) for epoch in expected}) == 4
    alone.set_epoch(1)
    assert next(iter(alone)) == expected[1][0]  # looked at: the epoch begins anew
    assert list(alone) == expected[1]


def test_a_generator_gives_the_seed():
    first, same, other = (
        list(WeightedSampler(WEIGHTS, 40, generator=torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)
    )
    assert first == same != other


def test_more_than_two_to_the_24_samples():
    weights = torch.zeros((1 << 24) + 100)
    weights[[5, (1 << 24) + 5]] = torch.tensor([1.0, 3.0])
    with pytest.raises(RuntimeError, match="2\\^24"):
        next(iter(WeightedRandomSampler(weights, 1000)))
    found = list(WeightedSampler(weights, 1000))
    assert set(found) == {5, (1 << 24) + 5}
    assert abs(found.count(5) - 250) < 4 * math.sqrt(1000 * 3 / 16)


# ---- ranks


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("num_samples", [60, 61, 1])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_one_draw(replacement, num_samples, world):
    whole = WeightedSampler(WEIGHTS, num_samples, replacement)
    ranks = [WeightedSampler(WEIGHTS, num_samples, replacement, num_replicas=world, rank=r) for r in range(world)]
    for expected, *parts in zip(*(epochs(sampler, 3) for sampler in (whole, *ranks)), strict=True):
        assert {len(part) for part in parts} == {len(ranks[0])} == {-(-num_samples // world)}
        together = [key for keys in zip(*parts, strict=True) for key in keys]
        assert together[:num_samples] == expected
        assert together[num_samples:] == (expected * world)[: len(together) - num_samples]  # the head again
        assert replacement or len(set(together)) == num_samples


def drawn(rank: int) -> torch.Tensor:
    return torch.tensor(epochs(WeightedSampler(WEIGHTS, 40), 2))


def test_ranks_of_torch_distributed(tmp_path):
    found = on_ranks(2, tmp_path, drawn)
    assert torch.stack(found, 2).flatten(1).tolist() == epochs(WeightedSampler(WEIGHTS, 40), 2)


# ---- weights that change


def test_changed_weights_count_from_the_next_epoch_on():
    sampler, plain = WeightedSampler(WEIGHTS, 200), WeightedSampler(WEIGHTS, 200)
    keys = iter(sampler)
    found = [next(keys) for _ in range(50)]
    sampler.tree.update([3, 4], [0, 100.0])
    assert found + list(keys) == list(plain)
    later = list(sampler)
    assert sampler.epoch == 1 and 3 not in later and later.count(4) > 60


# ---- stopped and gone on with


class Training:
    """A loop that changes a weight a batch, counted by the sampler itself or, where workers ask ahead, by the loop."""

    def __init__(self, workers: int = 0, changes: bool = True, **options):
        self.sampler = WeightedSampler(WEIGHTS, 50, **options)
        self.loader = DataLoader(
            TensorDataset(torch.arange(N)), batch_size=4, sampler=self.sampler, num_workers=workers
        )
        self.tells, self.changes = workers > 0, changes

    def run(self, batches: int, until: int = 3) -> list[list[int]]:
        """The next so many batches."""
        seen = []
        for epoch in range(self.sampler.epoch, until):
            self.sampler.set_epoch(epoch)
            for (value,) in self.loader:
                seen.append(value.tolist())
                if self.tells:
                    self.sampler.advance(len(value))
                if self.changes:
                    self.sampler.tree.update(value[:1], [float(sum(seen[-1]) % 7)])
                if len(seen) == batches:
                    return seen
        return seen


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("options", [{}, {"replacement": False}, {"rank": 1, "num_replicas": 2}])
@pytest.mark.parametrize("changes", [True, False])
def test_a_stopped_run_goes_on(tmp_path, workers, options, changes):
    whole = Training(changes=changes, **options).run(1000)
    for stops in ((5,), (len(whole) // 3,), (2, 9, 1)) if workers == 0 else ((9,),):
        found = []
        for batches in (*stops, 1000):
            training = Training(workers, changes, **options)
            if found:
                training.sampler.load(tmp_path / "state")
            found += training.run(batches)
            training.sampler.save(tmp_path / "state")
        assert found == whole


def test_a_state_is_small_while_no_weight_has_changed():
    sampler = WeightedSampler(WEIGHTS, 50)
    keys = iter(sampler)
    next(keys)
    assert written(sampler.state_dict())["own"] == {}
    sampler.tree.update([1], [2.0])
    assert written(sampler.state_dict())["own"].keys() == {"weights", "order"}
    list(keys)
    next(iter(sampler))  # of the next epoch, drawn from the weights as they are
    assert written(sampler.state_dict())["own"].keys() == {"weights"}


def test_a_tree_in_a_file_goes_back_to_the_state(tmp_path):
    """It may have been changed after the state was written."""
    tree = ta.SumTree(WEIGHTS, path=tmp_path / "tree.npy")
    sampler = WeightedSampler(tree, 50)
    list(sampler)
    tree.update([4], [7.0])
    state = written(sampler.state_dict())
    expected = [list(sampler) for _ in range(2)]
    tree.update([4], [0.5])
    again = WeightedSampler(ta.SumTree.open(tmp_path / "tree.npy"), 50)
    again.load_state_dict(state)
    assert [list(again) for _ in range(2)] == expected and np.load(tmp_path / "tree.npy")[4] == 7


def test_the_state_has_the_seed_that_a_generator_gave():
    sampler = WeightedSampler(WEIGHTS, 50, generator=torch.Generator().manual_seed(1))
    again = WeightedSampler(WEIGHTS, 50, generator=torch.Generator().manual_seed(2))
    again.load_state_dict(sampler.state_dict())
    assert list(again) == list(sampler)


def test_states_of_other_samplers():
    state = WeightedSampler(WEIGHTS, 50).state_dict()
    for weights, options, message in (
        (WEIGHTS[:50], {}, "n=50, got 103"),
        (WEIGHTS, {"num_samples": 51}, "num_samples=51, got 50"),
        (WEIGHTS, {"replacement": False}, "replacement=False, got True"),
        (WEIGHTS, {"seed": 1}, "seed=1, got 0"),
        (WEIGHTS, {"rank": 1, "num_replicas": 2}, "rank=1, got 0"),
        (WEIGHTS * 2, {}, f"total={ta.SumTree(WEIGHTS * 2).total!r}, got {ta.SumTree(WEIGHTS).total!r}"),
    ):
        with pytest.raises(InputValueError) as error:
            WeightedSampler(weights, **{"num_samples": 50} | options).load_state_dict(state)
        assert str(error.value) == f"WeightedSampler: the state must have {message}"


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 with torch 2.13
@pytest.mark.parametrize("workers", [0, 2])
def test_torchdatas_loader_needs_nothing_told(workers):
    loaders = pytest.importorskip("torchdata.stateful_dataloader")

    def made() -> tuple:
        sampler = WeightedSampler(WEIGHTS, 50)
        data = TensorDataset(torch.arange(N))
        return sampler, loaders.StatefulDataLoader(data, batch_size=4, sampler=sampler, num_workers=workers)

    _, loader = made()
    batches, saved = [], []
    for _ in range(3):
        for (value,) in loader:
            batches.append(value.tolist())
            saved.append(written(loader.state_dict()))
    for step in (0, 7, 14, 30):
        _, loader = made()
        loader.load_state_dict(saved[step])
        found = [value.tolist() for _ in range(3 - step // 13) for (value,) in loader]
        assert found == batches[step + 1 :]


# ---- arguments


def test_arguments():
    sampler = WeightedSampler(WEIGHTS, 10)
    next(iter(sampler))
    for call, message in (
        (lambda: WeightedSampler(WEIGHTS, 0), "WeightedSampler: num_samples must be at least 1, got 0"),
        (lambda: WeightedSampler(WEIGHTS, 5, seed=-1), "WeightedSampler: seed must be in [0, 2^64), got -1"),
        (
            lambda: WeightedSampler(WEIGHTS, 5, rank=1),
            "WeightedSampler: rank and num_replicas must be given together, got rank=1 and num_replicas=None",
        ),
        (
            lambda: WeightedSampler(WEIGHTS, 5, rank=2, num_replicas=2),
            "WeightedSampler: rank must be in [0, 1], got 2",
        ),
        (lambda: WeightedSampler([1, -1], 5), "SumTree: weights must be finite and at least 0, got -1.0 at 1"),
        (
            lambda: list(WeightedSampler([1, 0, 2], 3, False)),
            "SumTree.sample: n must be at most 2, the number of weights above 0, got 3",
        ),
        (
            lambda: sampler.advance(2),
            "WeightedSampler.advance: count must be at most 1, the samples given and not told of, got 2",
        ),
        (lambda: sampler.set_epoch(-1), "WeightedSampler: epoch must be at least 0, got -1"),
    ):
        with pytest.raises(InputValueError) as error:
            call()
        assert str(error.value) == message
    for call, message in (
        (lambda: WeightedSampler(WEIGHTS, 5.0), "num_samples must be an int, got float"),
        (lambda: WeightedSampler(WEIGHTS, 5, 1), "replacement must be a bool, got int"),
        (lambda: WeightedSampler(WEIGHTS, 5, generator=3), "generator must be a torch.Generator, got int"),
        (lambda: WeightedSampler(WEIGHTS, 5, seed=(0, 5)), "seed must be an int, got tuple"),
        (lambda: WeightedSampler(WEIGHTS, 5, seed=0.5), "seed must be an int, got float"),
    ):
        with pytest.raises(InputTypeError) as error:
            call()
        assert str(error.value) == f"WeightedSampler: {message}"
