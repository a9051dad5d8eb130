"""torchdata's StatefulDataLoader, which takes the sampler's state with every batch: the stream goes on where it was."""

from __future__ import annotations

import io
from functools import partial

import pytest
import torch
import torchassay as ta
from torch.utils.data import TensorDataset
from torchassay.samplers import InfoBatch, OnlineImportance, Shuffle

StatefulDataLoader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
pytestmark = [
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # torchdata 0.11 with torch 2.13
    pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker"),  # than there are processors
]

N, BATCH, EPOCHS = 43, 5, 3
PER_EPOCH = 9


class Training:
    """A loop over a stateful loader, in the way that its arguments say."""

    def __init__(self, workers: int, every: int = 1, observes: bool = True, tells: bool = True, method=Shuffle):
        data = ta.Indexed(TensorDataset(torch.arange(float(N))))
        self.sampler = method(data, batch_size=BATCH)
        self.loader = StatefulDataLoader(
            data, batch_size=BATCH, sampler=self.sampler, num_workers=workers, snapshot_every_n_steps=every
        )
        self.observes, self.tells, self.epoch = observes, tells, 0

    def run(self, until: int, early: bool = False, states: list | None = None) -> list[list[int]]:
        """The batches of the epochs before ``until``; their states, taken before (``early``) or after observing."""
        seen = []
        for epoch in range(self.epoch, until):
            self.epoch = epoch
            if self.tells:
                self.sampler.set_epoch(epoch)
            for value, index, *_ in self.loader:
                seen.append(index.tolist())
                if early and states is not None:
                    states.append(self.state())
                if self.observes:
                    self.sampler.observe(index, {"loss": value + epoch, "grad_norm": value + epoch})
                if not early and states is not None:
                    states.append(self.state())
        return seen

    def state(self) -> bytes:
        file = io.BytesIO()
        torch.save({"loader": self.loader.state_dict(), "epoch": self.epoch}, file)
        return file.getvalue()

    def load(self, state: bytes) -> None:
        saved = torch.load(io.BytesIO(state), weights_only=True)
        self.loader.load_state_dict(saved["loader"])
        self.epoch = saved["epoch"]


@pytest.mark.parametrize("workers", [0, 4])
@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize(
    "observes, every, early",
    [(True, 1, False), (True, 1, True), (True, 4, False), (False, 1, False), (False, 4, False)],
)
def test_the_stream_goes_on(workers, tells, observes, every, early):
    ways = {"workers": workers, "every": every, "observes": observes, "tells": tells}
    whole, states = Training(**ways), []
    expected = whole.run(EPOCHS, early, states)
    assert len(expected) == len(states) == EPOCHS * PER_EPOCH
    for step in (5,) if early else (0, 5, 10, 17):
        again = Training(**ways)
        again.load(states[step])
        assert again.run(2) == expected[step + (not early) : 2 * PER_EPOCH]
        if observes:
            steps = again.sampler.memory.last_step
            assert steps.min() >= PER_EPOCH and (again.sampler.memory.visits.int() == 2).all()


@pytest.mark.parametrize("workers", [0, 4])
@pytest.mark.parametrize("method", [OnlineImportance, partial(InfoBatch, epochs=EPOCHS, delta=1.0)])
def test_samplers_with_weights_go_on(workers, method):
    whole, states = Training(workers, method=method), []
    expected = whole.run(EPOCHS, states=states)
    for step in (3, 10, 13):
        again = Training(workers, method=method)
        again.load(states[step])
        assert again.run(EPOCHS) == expected[step + 1 :]
        for name, value in whole.sampler.memory.state_dict().items():
            assert name == "fields" or torch.equal(again.sampler.memory.state_dict()[name], value)


def test_draws_need_a_snapshot_with_every_batch():
    whole, states = Training(4, every=4, method=OnlineImportance), []
    whole.run(1, states=states)
    again = Training(4, every=4, method=OnlineImportance)
    again.load(states[5])
    with pytest.raises(RuntimeError, match=r"^OnlineImportance: the loader must draw 8 batches ahead"):
        again.run(1)


def test_the_same_batches_as_from_torchs_loader():
    plain = Shuffle(N, batch_size=BATCH)
    keys = [list(plain) for _ in range(EPOCHS)]
    batches = [order[k : k + BATCH] for order in keys for k in range(0, N, BATCH)]
    assert Training(0).run(EPOCHS) == batches


def test_a_state_that_nobody_writes_costs_nothing(monkeypatch):
    sampler = Shuffle(N, batch_size=BATCH)
    state = sampler.state_dict()
    with monkeypatch.context() as patch:
        patch.setattr(ta.SampleMemory, "state_dict", lambda self: pytest.fail("the memory was read"))
        patch.setattr("torchassay.samplers.counters.Counters.state_dict", lambda self: pytest.fail("counted"))
        sampler.state_dict()
    index = torch.from_numpy(sampler.plan()[:BATCH].copy()).long()
    sampler.observe(index, {"loss": torch.ones(BATCH)})
    assert torch.equal(state["own"]["memory"]["loss"].isfinite().nonzero().squeeze(1), index.sort().values)
