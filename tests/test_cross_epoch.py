"""The cross-epoch protocol, shown on `Shuffle`: every sample, in order, observed, resumed, refused."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
import torchassay as ta
from torch.utils.data import DataLoader, Dataset
from torchassay.samplers import Shuffle

N = 103


class Numbers(Dataset):
    """Sample i is (i / 2, i)."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.tensor(i / 2), i


def epochs(sampler: Shuffle, workers: int = 0, until: int = 3, batches: int | None = None) -> list[list[int]]:
    """The batches of a training that goes on from where the sampler is; at most so many."""
    seen: list[list[int]] = []
    loader = DataLoader(Numbers(), batch_size=sampler.batch_size, sampler=sampler, num_workers=workers)
    for epoch in range(sampler.epoch, until):
        sampler.set_epoch(epoch)
        for x, index in loader:
            if batches is not None and len(seen) == batches:
                return seen
            seen.append(index.tolist())
            sampler.observe(index, {"loss": x + epoch})
    return seen


def test_every_epoch_holds_every_sample_once_in_another_order():
    seen = epochs(Shuffle(N, batch_size=10))
    assert [len(batch) for batch in seen] == [*[10] * 10, 3] * 3
    by_epoch = [list(chain(*seen[first : first + 11])) for first in (0, 11, 22)]
    assert all(sorted(order) == list(range(N)) for order in by_epoch)
    assert len({tuple(order) for order in by_epoch}) == 3
    assert seen != epochs(Shuffle(N, batch_size=10, seed=1))


def test_what_is_observed_is_kept():
    sampler = Shuffle(N, batch_size=10)
    seen = epochs(sampler)
    assert torch.equal(sampler.memory["loss"], torch.arange(N) / 2 + 2)
    assert sampler.memory.visits.tolist() == [3] * N
    steps = {index: step for step, batch in enumerate(seen) for index in batch}
    assert sampler.memory.last_step.tolist() == [steps[index] for index in range(N)]
    assert sampler.counters()["reuse"][3] == N and sampler.counters()["backward_items"] == 3 * N


def test_drop_last_leaves_out_other_samples_in_each_epoch():
    sampler = Shuffle(N, batch_size=10, drop_last=True)
    assert len(sampler) == 100
    seen = epochs(sampler, until=6)
    missing = [set(range(N)) - set(chain(*seen[first : first + 10])) for first in range(0, 60, 10)]
    assert all(len(left) == 3 for left in missing) and len({tuple(sorted(left)) for left in missing}) > 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("at", [0, 4, 11, 17])
def test_goes_on_where_it_was(tmp_path, workers, at):
    whole = Shuffle(N, batch_size=10)
    expected = epochs(whole, workers)
    first = Shuffle(N, batch_size=10)
    begun = epochs(first, workers, batches=at)
    first.save(tmp_path / "state")
    second = Shuffle(N, batch_size=10)
    second.load(tmp_path / "state")
    assert begun + epochs(second, workers) == expected
    for name in ("loss", "visits", "last_step"):
        mine, theirs = (s.memory.state_dict()[name].numpy() for s in (second, whole))
        np.testing.assert_array_equal(mine, theirs)
    assert second.counters()["reuse"] == whole.counters()["reuse"]


def test_the_state_is_by_reference():
    sampler = Shuffle(N, batch_size=10)
    state = sampler.state_dict()
    epochs(sampler, batches=4, until=1)
    assert state["clock"][1] == 4 and state["own"]["memory"]["loss"].isfinite().sum() == 40


def test_iterations_advance_the_epoch_by_themselves():
    told, untold = Shuffle(N, batch_size=10), Shuffle(N, batch_size=10)
    expected = [list(told) for epoch in range(3) if not told.set_epoch(epoch)]
    assert [list(untold) for _ in range(3)] == expected
    untold.set_epoch(2)
    assert list(untold) == expected[2]


def test_an_epoch_that_was_left_goes_on_behind_what_was_observed():
    sampler = Shuffle(N, batch_size=10)
    whole = sampler.plan().tolist()
    loader = DataLoader(Numbers(), batch_size=10, sampler=sampler)
    for x, index in loader:
        sampler.observe(index, {"loss": x})
        if sampler.position == 3:
            break
    assert list(sampler) == whole[30:]


def test_the_plan_is_an_array_that_nobody_writes_to():
    plan = Shuffle(N, batch_size=10).plan()
    assert plan.dtype == np.int32 and sorted(plan.tolist()) == list(range(N))
    with pytest.raises(ValueError, match="read-only"):
        plan[0] = 1


def test_large_states_have_a_file_beside_them(tmp_path):
    sampler = Shuffle(100_000, batch_size=10)
    sampler.save(tmp_path / "state")
    sampler.memory.update(torch.arange(5), {"loss": torch.arange(5.0)}, 0)
    sampler.save(tmp_path / "state")
    main, beside = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_size)
    assert main.name == "state" and main.stat().st_size < 10_000 and len(list(tmp_path.iterdir())) == 2
    other = Shuffle(100_000, batch_size=10)
    other.load(tmp_path / "state")
    assert torch.equal(other.memory["loss"][:5], torch.arange(5.0))
    data = bytearray(beside.read_bytes())
    data[len(data) // 2] ^= 1
    beside.write_bytes(data)
    with pytest.raises(ValueError, match="must have the checksum"):
        other.load(tmp_path / "state")
    beside.unlink()
    with pytest.raises(ValueError, match=rf"must have {beside.name} beside it, got no such file"):
        other.load(tmp_path / "state")


def test_a_state_of_another_sampler_is_refused():
    state = Shuffle(N, batch_size=10).state_dict()
    for other, message in (
        (Shuffle(N + 1, batch_size=10), "Shuffle: the state must have n=104, got 103"),
        (Shuffle(N, batch_size=5), "Shuffle: the state must have batch_size=5, got 10"),
        (Shuffle(N, batch_size=10, seed=1), "Shuffle: the state must have seed=1, got 0"),
        (Shuffle(N, batch_size=10, rank=1, num_replicas=2), "Shuffle: the state must have rank=1, got 0"),
    ):
        with pytest.raises(ValueError) as error:
            other.load_state_dict(state)
        assert str(error.value) == message


def test_replicas_share_an_epoch():
    whole = Shuffle(N, batch_size=10)
    parts = [Shuffle(N, batch_size=10, rank=rank, num_replicas=2) for rank in range(2)]
    keys = [list(part) for part in parts]
    assert [len(part) for part in parts] == [len(key) for key in keys] == [51, 52]
    assert sorted(keys[0] + keys[1]) == list(range(N))
    plan = whole.plan().tolist()
    for k in range(10):
        assert keys[k % 2][k // 2 * 10 : k // 2 * 10 + 10] == plan[10 * k : 10 * k + 10]


def test_a_rank_without_a_rest_repeats_a_sample():
    parts = [Shuffle(21, batch_size=10, rank=rank, num_replicas=2) for rank in range(2)]
    keys = [list(part) for part in parts]
    assert [len(key) for key in keys] == [11, 11] and sorted(set(keys[0] + keys[1])) == list(range(21))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"data": 0, "batch_size": 1}, "Shuffle: data must have at least 1 sample, got 0"),
        (
            {"data": iter([1]), "batch_size": 1},
            "Shuffle: data must be a data set with a length, or that length, got list_iterator",
        ),
        ({"data": 5, "batch_size": 0}, "Shuffle: batch_size must be at least 1, got 0"),
        ({"data": 5, "batch_size": 2.0}, "Shuffle: batch_size must be an int, got float"),
        ({"data": 5, "batch_size": 2, "seed": -1}, "Shuffle: seed must be at least 0, got -1"),
        (
            {"data": 5, "batch_size": 2, "rank": 0},
            "Shuffle: rank and num_replicas must be given together, got rank=0 and num_replicas=None",
        ),
        ({"data": 5, "batch_size": 2, "rank": 2, "num_replicas": 2}, "Shuffle: rank must be in [0, 1], got 2"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((ValueError, TypeError)) as error:
        Shuffle(**arguments)
    assert str(error.value) == message


def test_weighted_samplers_want_an_indexed_data_set():
    with pytest.raises(TypeError) as error:
        ta.samplers.OnlineImportance(Numbers(), batch_size=2)
    expected = "a torchassay.Indexed, or its length: its keys are pairs of an index and a weight"
    assert str(error.value) == f"OnlineImportance: data must be {expected}, got Numbers"
    assert ta.samplers.OnlineImportance(ta.Indexed(Numbers()), batch_size=2).n == N


def test_another_file_is_no_state(tmp_path):
    for name, content in (("text", b"some text"), ("empty", b""), ("zip", b"PK" + bytes(50))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"load: .*{name} must be what save wrote, got another file \("):
            Shuffle(N, batch_size=10).load(tmp_path / name)


def test_bad_calls():
    sampler = Shuffle(6, batch_size=2)
    plan = sampler.plan().tolist()
    for call, message in (
        (lambda: sampler.set_epoch(-1), "Shuffle: epoch must be at least 0, got -1"),
        (lambda: sampler.set_epoch(1.0), "Shuffle: epoch must be an int, got float"),
        (
            lambda: sampler.observe(torch.tensor(plan[2:4]), {"loss": torch.zeros(2)}),
            f"Shuffle.observe: index must be batch 0 of the epoch, {plan[:2]} (2 samples), "
            f"got {plan[2:4]} (2 samples); the loader must have this sampler, batch_size=2, "
            "and each batch is observed once",
        ),
        (
            lambda: sampler.observe(torch.tensor(plan[:2]).int(), {"loss": torch.zeros(2)}),
            "Shuffle.observe: index must be int64, got int32",
        ),
        (
            lambda: sampler.observe(torch.tensor(plan[:2]), {"entropy": torch.zeros(2)}),
            "SampleMemory.update: scores must hold 'loss', got entropy",
        ),
    ):
        with pytest.raises((ValueError, TypeError)) as error:
            call()
        assert str(error.value) == message
    for first in (0, 2, 4):
        sampler.observe(torch.tensor(plan[first : first + 2]), {"loss": torch.zeros(2)})
    with pytest.raises(ValueError, match="got none left of the 3 batches of epoch 0"):
        sampler.observe(torch.tensor(plan[:2]), {"loss": torch.zeros(2)})


def test_the_share_of_corrupted_samples_is_counted():
    sampler = Shuffle(N, batch_size=10)
    corrupted = torch.arange(N) < 20
    sampler.track(corrupted)
    epochs(sampler, until=1)
    assert sampler.counters()["noise_share"] == pytest.approx(20 / N)
    assert repr(sampler) == "Shuffle(epoch 0, batch 11: 103 forward, 103 backward, ESS 1.00, noise 19.4%)"
    with pytest.raises(ValueError, match="corrupted must be bool with one value a sample, got float32"):
        sampler.track(torch.zeros(3))


def test_exported():
    assert ta.samplers.Shuffle is Shuffle
