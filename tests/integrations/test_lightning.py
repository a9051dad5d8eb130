"""Lightning's Trainer with our samplers: stopped, resumed, and left alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torchassay as ta
from torch.utils.data import DataLoader, TensorDataset
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
    "InfoBatch": partial(InfoBatch, epochs=EPOCHS, delta=0.5),
    "OnlineImportance": OnlineImportance,
    "OnlineImportance-keep": partial(OnlineImportance, keep=0.7),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("die", [4, 9, 13])  # in the first epoch, just behind its last batch, in the second
def test_a_stopped_training_goes_on(tmp_path, name, die):
    whole, _, sampler, _ = fit(tmp_path / "whole", METHODS[name])
    stopped, *_ = fit(tmp_path / "stopped", METHODS[name], die=die)
    assert stopped.seen == whole.seen[:die]
    last = max((tmp_path / "stopped").glob("*.ckpt"), key=step_of)
    resumed, _, again, _ = fit(tmp_path / "resumed", METHODS[name], ckpt=last)
    assert resumed.seen == whole.seen[die:]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert again.epoch == sampler.epoch == EPOCHS


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("when", ["epoch", "within", "validation", "batch"])
@pytest.mark.parametrize("name", ["Shuffle", "InfoBatch", "OnlineImportance"])
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
