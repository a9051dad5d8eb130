"""Lightning's Trainer with our samplers: stopped, resumed, and left alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torchassay as ta
from click.testing import CliRunner
from integrations.launch import two_ranks
from torch.utils.data import DataLoader, TensorDataset
from torchassay import doctor
from torchassay.cli import main
from torchassay.samplers import (
    InfoBatch,
    MixedOrder,
    OnlineImportance,
    SelectiveBackprop,
    Shuffle,
)

L = pytest.importorskip("lightning")

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from torchassay.integrations.lightning import SamplerCallback  # noqa: E402

N, BATCH, EPOCHS = 43, 5, 3
SIGNALS = ("loss", "grad_norm")
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def dataset() -> ta.Indexed:
    random = torch.Generator().manual_seed(3)
    inputs, labels = torch.randn(N, 4, generator=random), torch.randint(3, (N,), generator=random)
    return ta.Indexed(TensorDataset(inputs, labels))


class Classifier(L.LightningModule):
    """Logs what it was trained on; ``die`` stops it in a batch."""

    def __init__(self, picker=None, die: int | None = None):
        super().__init__()
        torch.manual_seed(1)
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        self.picker, self.die, self.seen = picker, die, []

    def training_step(self, batch, batch_idx):
        if self.die == self.global_step:
            raise KeyboardInterrupt
        x, y, index, *weight = batch
        loss, s = ta.cross_entropy(self.layers(x), y, reduction="none", signals=SIGNALS)
        self.seen.append((self.current_epoch, index.tolist()))
        if self.picker is not None:
            return {"loss": self.picker.pick(s, index=index).mean(loss), "scores": s}
        return {"loss": (weight[0] * loss).mean() if weight else loss.mean(), "scores": s}

    def validation_step(self, batch, batch_idx):
        self.log("accuracy", (self.layers(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)


def fit(folder: Path, method=Shuffle, pick: bool = False, workers=0, die=None, ckpt=None, saved=None, **options):
    """Train, with a checkpoint at each step or as ``saved`` says."""
    saved = {"every_n_train_steps": 1} if saved is None else saved
    data = dataset()
    sampler = method(data, batch_size=BATCH, seed=7)
    picker = SelectiveBackprop(seed=2) if pick else None
    model = Classifier(picker, die)
    save = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}-{step}", **saved)
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        callbacks=[save, SamplerCallback(sampler, picker)],
        **QUIET | options,
    )
    loader = DataLoader(data, batch_size=BATCH, sampler=sampler, num_workers=workers)
    validation = DataLoader(data, batch_size=BATCH) if "val_check_interval" in options else None
    try:
        trainer.fit(model, loader, validation, ckpt_path=ckpt)
    except (KeyboardInterrupt, SystemExit):
        assert die is not None
    return model, trainer, sampler, picker


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.stem.partition("step=")[2])


METHODS = {
    "Shuffle": Shuffle,
    "MixedOrder": partial(MixedOrder, pivot=0, by="loss"),
    "InfoBatch": partial(InfoBatch, epochs=EPOCHS, delta=0.7),
    "OnlineImportance": OnlineImportance,
    "OnlineImportance-keep": partial(OnlineImportance, keep=0.7),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("die", [4, 9, 13])  # in the first epoch, just behind its last batch, in the second
def test_a_stopped_training_goes_on(tmp_path, name, die):
    whole, *_ = fit(tmp_path / "whole", METHODS[name])
    stopped, *_ = fit(tmp_path / "stopped", METHODS[name], die=die)
    assert stopped.seen == whole.seen[:die]
    last = max((tmp_path / "stopped").glob("*.ckpt"), key=step_of)
    resumed, *_ = fit(tmp_path / "resumed", METHODS[name], ckpt=last)
    assert resumed.seen == whole.seen[die:]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.parametrize("name, workers", [("InfoBatch", 0), ("OnlineImportance", 0), ("OnlineImportance", 2)])
@pytest.mark.parametrize("when", ["epoch", "within", "validation", "batch"])
def test_a_checkpoint_at_a_boundary(tmp_path, name, when, workers):
    """Behind an epoch, in the validations within one and at its end, and behind its last batch."""
    options = {
        "epoch": {"saved": {"every_n_epochs": 1, "save_on_train_epoch_end": True}},
        "within": {"saved": {}, "val_check_interval": 0.5},
        "validation": {"saved": {}, "val_check_interval": 1.0},
        "batch": {"saved": {"every_n_train_steps": 9}},
    }[when]
    fitted = partial(fit, method=METHODS[name], workers=workers, num_sanity_val_steps=0, **options)
    whole, *_ = fitted(tmp_path)
    found = sorted((step_of(path), path) for path in tmp_path.glob("*.ckpt"))
    assert len(found) >= EPOCHS - 1 and (when == "within" or found[0][0] == 9)
    for step, path in found:
        resumed, *_ = fitted(tmp_path / "resumed", ckpt=path)
        assert resumed.seen == whole.seen[step:], path


def test_each_of_two_processes_goes_on(tmp_path):
    """From one checkpoint; together they see every sample in every epoch."""
    of_ranks = two_ranks("lightning", tmp_path)
    for epoch in range(EPOCHS):
        seen = [i for found in of_ranks for number, batch in found["seen"] if number == epoch for i in batch]
        assert sorted(seen) == list(range(N))
    for key, value in of_ranks[0]["model"].items():
        assert torch.equal(of_ranks[1]["model"][key], value)


def test_with_the_callback_off_the_curve_is_lightnings_own(tmp_path):
    """Bit for bit, of a training with the same order."""
    ours, *_ = fit(tmp_path)
    model, data = Classifier(), dataset()
    loader = DataLoader(data, batch_sampler=Batches([batch for _, batch in ours.seen]))
    trainer = L.Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    trainer.fit(model, loader)
    assert [batch for _, batch in model.seen] == [batch for _, batch in ours.seen]
    for key, value in ours.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


class Batches(torch.utils.data.Sampler):
    """Batches that were written down."""

    def __init__(self, batches: list[list[int]]):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def test_a_picker_is_saved_too(tmp_path):
    whole, _, _, picker = fit(tmp_path, pick=True)
    path = next(tmp_path.glob("epoch=1-step=13.ckpt"))
    resumed, _, _, again = fit(tmp_path / "resumed", pick=True, ckpt=path)
    assert resumed.seen == whole.seen[13:] and 0.2 < again.counters()["backward_items"] / (N * EPOCHS) < 0.8
    assert again.counters() | {"scoring_ms": 0} == picker.counters() | {"scoring_ms": 0}
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value)


def test_accumulated_gradients(tmp_path):
    """A batch is observed, however many make a step."""
    whole, *_ = fit(tmp_path, OnlineImportance, accumulate_grad_batches=2)
    path = next(tmp_path.glob("epoch=1-step=7.ckpt"))
    resumed, *_ = fit(tmp_path / "resumed", OnlineImportance, ckpt=path, accumulate_grad_batches=2)
    assert resumed.seen == whole.seen[-len(resumed.seen) :] and len(resumed.seen) == 14


def test_findings(tmp_path):
    data = dataset()
    sampler = Shuffle(data, batch_size=BATCH)
    trainer = L.Trainer(devices=2, strategy="ddp", callbacks=[SamplerCallback(sampler)], **QUIET)
    apart = "2 processes train, the Shuffle shares out among 1: make the sampler behind "
    shared = "each process takes a share of what the Shuffle has shared out already: "
    found = [(apart + "torch.distributed.init_process_group", True)]
    found += [(shared + "Trainer(use_distributed_sampler=False)", True)]
    assert doctor.check(trainer) == found
    bare = L.Trainer(**QUIET)
    loader = DataLoader(data, batch_size=BATCH, sampler=sampler)
    fix = "Trainer(callbacks=[SamplerCallback(sampler)])"
    assert doctor.check(bare, loader) == [(f"nobody tells the Shuffle what was trained on: {fix}", True)]
    once = L.Trainer(overfit_batches=2, callbacks=[SamplerCallback(sampler)], **QUIET)
    fix = "Trainer(limit_train_batches=...)"
    assert doctor.check(once) == [(f"overfit_batches puts another sampler in the place of this one: {fix}", True)]


class Normed(Classifier):
    """With BatchNorm, and a learning rate that goes by steps."""

    def __init__(self):
        super().__init__()
        self.layers.insert(1, torch.nn.BatchNorm1d(8))

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def test_what_may_surprise_is_a_warning(tmp_path):
    data = dataset()
    sampler = InfoBatch(data, batch_size=BATCH, epochs=EPOCHS)
    loader = DataLoader(data, batch_size=BATCH, sampler=sampler)
    trainer = L.Trainer(max_epochs=1, enable_checkpointing=False, callbacks=[SamplerCallback(sampler)], **QUIET)
    with pytest.warns(UserWarning) as caught:
        trainer.fit(Normed(), loader)
    ours = [str(warning.message) for warning in caught if str(warning.message).startswith("SamplerCallback")]
    assert ours == [
        "SamplerCallback: BatchNorm's statistics become those of what InfoBatch draws: "
        "torch.optim.swa_utils.update_bn(plain_loader, model) before evaluating",
        "SamplerCallback: epochs of InfoBatch have other lengths than the learning rate counts: "
        "a schedule of as many steps as will be taken, or a schedule by epochs",
    ]
    lone = Shuffle(data, batch_size=6)
    trainer = L.Trainer(max_epochs=1, enable_checkpointing=False, callbacks=[SamplerCallback(lone)], **QUIET)
    with pytest.raises(ValueError) as error:
        trainer.fit(Normed(), DataLoader(data, batch_size=6, sampler=lone))
    refused = "the last batch has one sample, which BatchNorm refuses in training: Shuffle(drop_last=True)"
    assert str(error.value) == f"SamplerCallback: {refused}"


def test_errors(tmp_path):
    with pytest.raises(TypeError) as error:
        SamplerCallback()
    assert str(error.value) == "SamplerCallback: sampler or picker must be given, got neither"
    with pytest.raises(TypeError) as error:
        SamplerCallback(SelectiveBackprop())
    expected = "a torchassay.samplers.CrossEpoch"
    assert str(error.value) == f"SamplerCallback: sampler must be {expected}, got SelectiveBackprop"
    callback = SamplerCallback(picker=SelectiveBackprop())
    with pytest.raises(ValueError) as error:
        callback.load_state_dict({})
    assert str(error.value) == "SamplerCallback: the checkpoint must hold the state of a picker, got nothing"

    class Silent(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx)["loss"]

    data = dataset()
    sampler = OnlineImportance(data, batch_size=BATCH)
    trainer = L.Trainer(enable_checkpointing=False, callbacks=[SamplerCallback(sampler)], **QUIET)
    with pytest.raises(ValueError) as error:
        trainer.fit(Silent(), DataLoader(data, batch_size=BATCH, sampler=sampler))
    expected = "a dict with 'loss' and 'scores' for OnlineImportance"
    assert str(error.value) == f"SamplerCallback: training_step must return {expected}, got 'loss'"


TRAINER = """
import lightning as L
import torchassay as ta
from torchassay.integrations.lightning import SamplerCallback

sampler = ta.samplers.Shuffle(43, batch_size=5)
quiet = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
trainer = L.Trainer(callbacks=[SamplerCallback(sampler)], **quiet)

def of_two():
    return L.Trainer(devices=2, overfit_batches=2, callbacks=[SamplerCallback(sampler)], **quiet)

number = 3
"""


def test_the_doctor_as_a_command(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(TRAINER)
    fine = CliRunner().invoke(main, ["doctor", f"{path}:trainer"])
    assert (fine.exit_code, fine.output.splitlines()[-1]) == (0, "no known trap found")
    wrong = CliRunner().invoke(main, ["doctor", f"{path}:of_two"])
    assert wrong.exit_code == 1
    assert [line for line in wrong.output.splitlines() if line.startswith("wrong: overfit_batches puts")]
    refused = CliRunner().invoke(main, ["doctor", f"{path}:number"])
    assert refused.exit_code == 1
    expected = "check: trainer must be a trainer of Lightning, Transformers or Accelerate, got int"
    assert refused.stderr.splitlines()[-1] == f"torchassay doctor: {expected}"


@pytest.mark.parametrize("when", ["epoch", "validation", "batch"])
def test_more_workers_after_a_boundary(tmp_path, when):
    """They fetch before Lightning says which epoch begins."""
    options = {
        "epoch": {"saved": {"every_n_epochs": 1, "save_on_train_epoch_end": True}},
        "validation": {"saved": {}, "val_check_interval": 1.0},
        "batch": {"saved": {"every_n_train_steps": 9}},
    }[when]
    fitted = partial(fit, num_sanity_val_steps=0, **options)
    whole, *_ = fitted(tmp_path)
    path = next(tmp_path.glob("*step=9.ckpt"))
    resumed, *_ = fitted(tmp_path / "resumed", workers=2, ckpt=path)
    assert resumed.seen == whole.seen[9:]
