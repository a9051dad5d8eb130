"""Accelerate beside our samplers: stopped, resumed, and left alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torchassay as ta
from integrations.launch import two_ranks
from torch.utils.data import DataLoader, TensorDataset
from torchassay import doctor
from torchassay.samplers import InfoBatch, OnlineImportance, SelectiveBackprop, Shuffle

accelerate = pytest.importorskip("accelerate")

from torchassay.integrations.accelerate import _OfAllRanks, register  # noqa: E402

N, BATCH, EPOCHS = 43, 5, 3
DATA = ta.Indexed(TensorDataset(torch.randn(N, 4, generator=torch.Generator().manual_seed(3)), torch.arange(N) % 3))


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


class Training:
    """A loop that saves before the steps in ``saves`` and logs what it was trained on."""

    def __init__(self, method=OnlineImportance, picks: bool = False, workers: int = 0):
        torch.manual_seed(1)
        self.accelerator = accelerate.Accelerator(cpu=True)
        self.sampler = method(DATA, batch_size=BATCH, seed=7)
        self.picker = SelectiveBackprop(seed=2) if picks else None
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        register(self.accelerator, *filter(None, (self.sampler, self.picker)))
        own = torch.Generator()  # a loader draws from the global one whenever it is iterated, and dropout would differ
        self.loader = DataLoader(DATA, BATCH, sampler=self.sampler, num_workers=workers, generator=own)
        self.seen, self.losses = [], []

    def run(self, folder=None, saves: tuple[int, ...] = ()) -> Training:
        for epoch in range(self.sampler.epoch, EPOCHS):
            self.sampler.set_epoch(epoch)
            for x, y, index, *weight in self.loader:
                loss, s = ta.cross_entropy(self.model(x), y, reduction="none", signals=("loss", "grad_norm"))
                mean = self.picker.pick(s, index=index).mean(loss) if self.picker else (weight[0] * loss).mean()
                self.optimizer.zero_grad()
                self.accelerator.backward(mean)
                self.optimizer.step()
                self.sampler.observe(index, s)
                self.seen.append(index.tolist())
                self.losses.append(mean.item())
                if len(self.seen) in saves:
                    self.accelerator.save_state(str(folder / str(len(self.seen))))
        return self


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "method, picks",
    [(OnlineImportance, False), (partial(InfoBatch, epochs=EPOCHS, delta=0.7), False), (Shuffle, True)],
    ids=["OnlineImportance", "InfoBatch", "SelectiveBackprop"],
)
def test_a_stopped_training_goes_on(tmp_path, method, picks, workers):
    """Within the first epoch, at its end, and in the last one; dropout included."""
    saves = (4, 9, 20)
    whole = Training(method, picks, workers).run(tmp_path, saves)
    for step in saves:
        resumed = Training(method, picks, workers)
        resumed.accelerator.load_state(str(tmp_path / str(step)))
        resumed.run()
        assert resumed.seen == whole.seen[step:] and resumed.losses == whole.losses[step:]
        for mine, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(mine, theirs)


def test_a_prepared_loader_is_refused():
    training = Training()
    training.accelerator.prepare(training.loader)
    text = (
        "a prepared loader shares out the OnlineImportance's batches again and resets its epoch: "
        "accelerator.prepare(model, optimizer) without the loader"
    )
    assert doctor.check(training.accelerator) == [(text, True)]
    with pytest.raises(ValueError, match="register: a prepared loader shares out"):
        register(training.accelerator, Shuffle(DATA, batch_size=BATCH))


def test_why_a_prepared_loader_is_refused():
    """It tells the sampler of a resumed training that the epoch is 0."""
    sampler = Shuffle(DATA, batch_size=BATCH)
    sampler.set_epoch(2)
    prepared = accelerate.Accelerator(cpu=True).prepare(DataLoader(DATA, batch_size=BATCH, sampler=sampler))
    next(iter(prepared))
    assert sampler.epoch == 0


def test_with_the_sampler_off_the_curve_is_accelerates_own():
    """A prepared loader of the same order, and nothing of ours in the loop, against `Shuffle` with `register`."""
    ours = Training(Shuffle)
    ours.picker = SelectiveBackprop(warmup_epochs=EPOCHS)  # picks everything
    ours.picker.set_epoch(0)
    ours.run()
    torch.manual_seed(1)
    accelerator = accelerate.Accelerator(cpu=True)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    batches = [DATA[i] for batch in ours.seen for i in batch]
    sizes = [list(part) for part in torch.arange(len(batches)).split([len(batch) for batch in ours.seen])]
    loader = DataLoader(batches, batch_sampler=sizes, generator=torch.Generator())
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    losses = []
    for x, y, _ in loader:
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    torch.testing.assert_close(torch.tensor(ours.losses), torch.tensor(losses), rtol=3e-6, atol=0)


def test_each_of_two_processes_goes_on(tmp_path):
    """With its own draws from its own half of the samples, and one model."""
    of_ranks = two_ranks("accelerate", tmp_path)
    for rank, found in enumerate(of_ranks):
        assert {i % 2 for batch in found["seen"] for i in batch} == {rank}
    for key, value in of_ranks[0]["model"].items():
        assert torch.equal(of_ranks[1]["model"][key], value)


def test_findings():
    accelerator = accelerate.Accelerator(cpu=True)
    sampler = Shuffle(DATA, batch_size=BATCH)
    loader = DataLoader(DATA, batch_size=BATCH, sampler=sampler)
    fix = "torchassay.integrations.accelerate.register(accelerator, sampler)"
    assert doctor.check(accelerator) == []
    missing = (f"save_state keeps no Shuffle of each process: {fix}", True)
    assert doctor.check(accelerator, loader) == [missing]
    accelerator.register_for_checkpointing(sampler)
    assert doctor.check(accelerator) == [missing]
    register(accelerator, sampler)
    shuffled = DataLoader(DATA.dataset, batch_size=8, shuffle=True)
    assert [finding.text for finding in doctor.check(accelerator, shuffled)][:3] == [
        "the loader draws from a RandomSampler: DataLoader(..., sampler=sampler) with the Shuffle itself, and without "
        "shuffle=True",
        "the loader's batch_size is 8, the sampler's 5: DataLoader(batch_size=5)",
        "batches do not say which samples they hold: torchassay.Indexed(dataset) for the loader and the sampler",
    ]


def test_errors(tmp_path):
    accelerator = accelerate.Accelerator(cpu=True)
    with pytest.raises(TypeError) as error:
        register(accelerator, 3)
    assert str(error.value) == "register: parts must be torchassay.samplers.CrossEpoch or InStep, got int"
    with pytest.raises(TypeError) as error:
        doctor.check(3)
    expected = "a trainer of Lightning, Transformers or Accelerate"
    assert str(error.value) == f"check: trainer must be {expected}, got int"
    part = _OfAllRanks(Shuffle(DATA, batch_size=BATCH))
    with pytest.raises(ValueError) as error:
        part.load_state_dict({"ranks": part.state_dict()["ranks"] * 2})
    expected = "the states of 1 process, as many as there are now"
    assert str(error.value) == f"register: the checkpoint must hold {expected}, got 2"
