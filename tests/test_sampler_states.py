"""States of samplers: where an iteration goes on, what a file holds however its writing ends."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torchassay as ta
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchassay.samplers import OnlineImportance, Shuffle, states
from torchassay.samplers.in_step import Chosen, InStep
from torchassay.samplers.planned import Planned

N = 103


def observe(sampler: Shuffle, batches: int) -> None:
    first = sampler.position * 10
    for part in np.split(sampler.plan()[first : first + 10 * batches].astype(np.int64), batches):
        sampler.observe(torch.from_numpy(part), {"loss": torch.zeros(10)})


def written(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def loaded(state: dict) -> Shuffle:
    sampler = Shuffle(N, batch_size=10)
    sampler.load_state_dict(written(state))
    return sampler


# ---- where an iteration goes on


def test_an_epoch_that_was_fetched_is_not_over_before_it_is_observed():
    sampler = Shuffle(N, batch_size=10)
    whole = list(sampler)  # as workers fetch ahead
    observe(sampler, 4)
    again = loaded(sampler.state_dict())
    assert list(again) == list(sampler) == whole[40:]  # no set_epoch
    assert list(again) == whole[40:] and again.epoch == 0
    sampler.set_epoch(1), again.set_epoch(1)
    assert list(again) == list(sampler) and again.epoch == 1


def test_an_epoch_that_nobody_observes_is_over_when_it_was_fetched():
    sampler = Shuffle(N, batch_size=10)
    orders = [list(sampler) for _ in range(3)]
    assert sampler.epoch == 2 and len({tuple(order) for order in orders}) == 3
    assert list(loaded(sampler.state_dict())) == orders[2]  # begins anew


def test_the_end_of_an_epoch_goes_on_with_the_next():
    sampler = Shuffle(30, batch_size=10)
    assert len(list(sampler)) == 30
    observe(sampler, 3)
    again = Shuffle(30, batch_size=10)
    again.load_state_dict(sampler.state_dict())
    assert list(again) == list(sampler) and again.epoch == sampler.epoch == 1


def test_a_loop_without_values_can_advance():
    sampler = Shuffle(25, batch_size=10)
    plan = sampler.plan().tolist()
    sampler.advance()
    assert list(sampler) == plan[10:] and sampler.memory.visits.int().sum() == 0
    assert sampler.counters()["backward_items"] == 10 and sampler.counters()["forward_items"] == 0
    sampler.advance(), sampler.advance()
    with pytest.raises(ValueError) as error:
        sampler.advance()
    assert str(error.value) == (
        "Shuffle.advance: there must be a batch that was not observed, got none left of the 3 batches of epoch 0"
    )


# ---- plans of other lengths


class Fewer(Planned):
    """With weights; half as many samples in each epoch after the first, the least and the most of them."""

    weighted: ClassVar[bool] = True
    plans_from_memory: ClassVar[bool] = False

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        order = self._shuffled()
        order = order[order < self.n >> epoch]
        return order, np.float32(epoch + 1) + order / np.float32(self.n)


def test_a_longer_plan_than_the_last_one_can_be_loaded():
    long, short = Fewer(64, batch_size=8), Fewer(64, batch_size=8)
    state = written(long.state_dict())
    short.set_epoch(2)
    assert len(short) == 16
    short.load_state_dict(state)
    assert list(short) == list(long) and len(short) == 64


def test_a_state_that_is_kept_is_that_of_the_epoch_under_way():
    sampler, again = Fewer(64, batch_size=8), Fewer(64, batch_size=8)
    state = sampler.state_dict()
    sampler.set_epoch(1)
    again.load_state_dict(state)
    assert list(again) == list(sampler) and again.epoch == 1


def test_a_signal_is_named_once():
    class Two(Shuffle):
        fields: ClassVar[dict[str, str]] = {"mean": "mean of loss", "last": "last of loss", "entropy": "max"}

    assert Two(4, batch_size=2).needs == ("loss", "entropy")


def test_a_folder_holds_what_is_kept_and_nothing_is_left_in_it(tmp_path):
    mapped, held = Fewer(64, batch_size=8, plan_dir=tmp_path / "new" / "plans"), Fewer(64, batch_size=8)
    assert isinstance(mapped._order, np.memmap) and not list((tmp_path / "new" / "plans").iterdir())
    for _ in range(3):
        assert list(mapped) == list(held)
        for sampler in (mapped, held):
            for _ in range(len(sampler) // 8):
                sampler.advance()
    assert mapped.counters() | {"scoring_ms": 0} == held.counters() | {"scoring_ms": 0}
    mapped.load_state_dict(written(Fewer(64, batch_size=8).state_dict()))
    assert mapped.epoch == 0 and len(mapped) == 64


def test_draws_want_a_loader_that_fetches_as_far_ahead():
    sampler, again = OnlineImportance(60, batch_size=5), OnlineImportance(60, batch_size=5)
    keys = iter(sampler)

    def fetch() -> torch.Tensor:
        return torch.tensor([next(keys)[0] for _ in range(5)])

    fetched = [fetch() for _ in range(4)]
    for _ in range(3):  # four ahead
        fetched.append(fetch())
        index = fetched.pop(0)
        sampler.observe(index, {"grad_norm": index.float()})
    again.load_state_dict(written(sampler.state_dict()))
    keys = iter(again)
    for index in fetched:
        assert torch.equal(fetch(), index)
        again.observe(index, {"grad_norm": index.float()})
    expected = "must draw 4 batches ahead, as when the state was saved, got 0; use the same num_workers and prefetch_"
    with pytest.raises(RuntimeError, match=f"^OnlineImportance: the loader {expected}factor$"):
        fetch()


# ---- files


def nest() -> dict:
    return {"number": 3, "parts": [{"batch": (torch.arange(3), {"tensor": torch.ones(2)}), "none": None}]}


@pytest.mark.parametrize("size", [1, 500_000])
def test_a_file_holds_the_nest_as_it_was(tmp_path, size):
    states.save(tmp_path / "state", nest() | {"large": torch.arange(size)})
    found = states.load(tmp_path / "state")
    assert found["large"].shape == (size,) and found["number"] == 3
    ((x, y),) = (part["batch"] for part in found["parts"])
    assert type(found["parts"][0]["batch"]) is tuple and found["parts"][0]["none"] is None
    assert torch.equal(x, torch.arange(3)) and torch.equal(y["tensor"], torch.ones(2))


@pytest.mark.parametrize("replaced", [0, 1])
def test_a_save_that_breaks_off_leaves_the_old_state(tmp_path, monkeypatch, replaced):
    """The process ends before a file gets its name: the one beside, or the main one."""
    path, done = tmp_path / "state[1]", []
    states.save(path, {"large": torch.zeros(500_000)})

    def replace(self: Path, target: Path) -> None:
        if len(done) == replaced:
            raise KeyboardInterrupt
        done.append(target)
        self.rename(target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", replace)
        states.save(path, {"large": torch.ones(500_000)})
    assert torch.equal(states.load(path)["large"], torch.zeros(500_000))
    killed = f".partial-{32 * 'a'}-"
    for name in ("state[1]", "state[1].0123456789abcdef"):  # of saves of this state that were killed
        (tmp_path / (killed + name)).touch()
    others = [tmp_path / name for name in ("state[1].1", f"{killed}state[1].1", "state[1].0.0123456789abcdef", "s")]
    for other in others:  # of other states
        other.touch()
    states.save(path, {"large": torch.full((500_000,), 2.0)})
    assert torch.equal(states.load(path)["large"], torch.full((500_000,), 2.0))
    assert all(other.exists() for other in others) and len(list(tmp_path.iterdir())) == 2 + len(others)
    states.save(path, {"large": torch.zeros(1)})  # needs no file beside it
    assert len(list(tmp_path.iterdir())) == 1 + len(others)


def test_a_live_part_is_written_as_it_is_then():
    known = {"a": 1}
    live = states.Live(lambda: dict(known))
    known["b"] = 2
    assert dict(live) == dict(live.items()) == {"a": 1, "b": 2} and len(live) == 2
    assert pickle.loads(pickle.dumps(live)) == {"a": 1, "b": 2}


def test_a_state_can_be_sent_to_another_process():
    """As torch.distributed's gather_object sends it."""
    sampler, again = Shuffle(N, batch_size=10), Shuffle(N, batch_size=10)
    observe(sampler, 4)
    sampler.memory.visits.numpy()[:] = 40_000
    again.load_state_dict(pickle.loads(pickle.dumps(sampler.state_dict())))
    assert again.position == 4 and torch.equal(again.memory.visits, sampler.memory.visits)
    assert list(again) == list(sampler)


# ---- in-step methods


class Some(InStep):
    """Picks 4, 3, 4 of batches of 4: of the second flush one is left over."""

    def _choose(self, scores, index, mask) -> Chosen:
        weight = (torch.arange(4) < (4, 3, 2)[self.step % 3]).float()
        return Chosen(weight, weight.sum())


def regrouped(sampler: Shuffle, picker: Some, until: int = 99, path: Path | None = None) -> list:
    """An epoch's batches and weights; after so many both states are saved."""
    loader = DataLoader(ta.Indexed(TensorDataset(torch.arange(12.0))), batch_size=4, sampler=sampler)
    seen = []
    sampler.set_epoch(sampler.epoch)
    for (x, index), weight in picker.batches(loader, nn.Identity()):
        seen.append((x.tolist(), index.tolist(), weight.tolist()))
        if len(seen) == until:
            sampler.save(path / "sampler")
            picker.save(path / "picker")
    return seen


@pytest.mark.parametrize("at", [1, 2])
def test_picked_samples_and_those_that_fill_up_survive(tmp_path, at):
    whole = regrouped(Shuffle(12, batch_size=4), Some(()), at, tmp_path)
    assert [len(weight) for _, _, weight in whole] == [4, 4, 2] and whole[2][2][1] == 0
    sampler, picker = Shuffle(12, batch_size=4), Some(())
    sampler.load(tmp_path / "sampler")
    picker.load(tmp_path / "picker")
    assert regrouped(sampler, picker) == whole[at:]
