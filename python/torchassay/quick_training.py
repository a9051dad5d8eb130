"""A small network trained on a data set for the sake of its samples' scores."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from tqdm import tqdm

from torchassay import checks, functional
from torchassay.data import corrupt
from torchassay.memory import SampleMemory
from torchassay.score_files import read
from torchassay.threads import one_thread

FIELDS = {"loss": "mean", "target_margin": "mean", "entropy": "mean", "loss_last": "last of loss"}
BATCH = 64

_SIGNALS = ("loss", "target_margin", "entropy")
_WIDTH = 128
_DROPOUT = 0.5  # keeps so small a network from learning the wrong labels by heart
_RATE = 3e-3


class Data(NamedTuple):
    """Samples to train on."""

    x: np.ndarray  # [n, ...]
    given: np.ndarray  # int64 [n], labels as they are trained on
    true: np.ndarray | None  # int64 [n], where they are known

    @property
    def images(self) -> np.ndarray | None:
        """``x``, if it looks like images: [n, H, W], or with channels, 1 or 3, first or last."""
        shape = self.x.shape
        channels = len(shape) == 4 and (shape[1] in (1, 3) or shape[3] in (1, 3))
        return self.x if len(shape) == 3 or channels else None


def load(name: str) -> Data:
    """The digits of scikit-learn, or a .npz with ``x_train``, ``y_train`` and, if known, ``y_train_true``.

    Raises:
        ValueError: arrays that are not there or do not fit.
        ImportError: the digits without scikit-learn.
    """
    if name == "digits":
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise ImportError('labels: digits needs scikit-learn: pip install "torchassay[demo]"') from None
        bunch = load_digits()
        return Data(bunch.images.astype(np.float32) / 16, bunch.target.astype(np.int64), None)
    if not name.endswith(".npz"):
        raise checks.InputValueError(f"labels: data must be digits or a .npz file, got '{name}'")
    file = read("labels", Path(name), ("x_train", "y_train", "y_train_true"))
    x = file["x_train"]
    if x.ndim < 2 or x.dtype.kind not in "biuf":
        raise file.error(f"{file.where}: x_train must hold numbers of shape (N, ...), got {x.dtype} of shape {x.shape}")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise file.error(f"{file.where}: x_train must be finite, got {x[~np.isfinite(x)][0]}")
    given = file.labels("y_train")
    if given.max() >= len(given):
        expected = f"classes 0, 1, ..., of which there are no more than samples ({len(given)})"
        raise file.error(f"{file.where}: y_train must hold {expected}, got {given.max()}")
    return Data(x, given, file.labels("y_train_true") if "y_train_true" in file else None)


def flip(data: Data, fraction: float, seed: int) -> Data:
    """Draw a share of the labels anew, as `data.corrupt` does; those before are the true ones, if none are known."""
    given = torch.from_numpy(data.given)
    noisy = corrupt(TensorDataset(given, given), "labels", fraction, seed=seed, targets=given)
    labels = data.given.copy()
    for i in noisy.mask.nonzero()[:, 0].tolist():
        labels[i] = noisy[i][1]
    return data._replace(given=labels, true=data.given if data.true is None else data.true)


def train(data: Data, epochs: int, seed: int, folds: int = 1) -> dict[str, Tensor]:
    """Train a small network on the given labels, on the CPU, and score every sample in every epoch.

    With one fold the scores are those of the training itself, which has seen the labels, and come before each step.
    With more, each part of the samples is scored by a network that is trained on the other parts.

    Returns:
        By name, float32 [n]: the means over the epochs of ``loss``, ``target_margin`` and ``entropy``, and the
        ``loss_last`` of the last one; float32 [n, classes]: ``pred_probs`` of the trained network, without dropout.
    """
    if not 1 <= folds <= len(data.given):
        raise checks.InputValueError(f"labels: folds must be from 1 to the samples' number, got {folds}")
    x, given = _standardized(data.x), torch.from_numpy(data.given)
    n, classes = len(given), int(given.max()) + 1
    memory, probabilities = SampleMemory(n, FIELDS), torch.zeros(n, classes)
    generator = torch.Generator().manual_seed(seed)
    with one_thread(), torch.random.fork_rng(devices=[]):  # leaves the caller's random numbers alone
        torch.manual_seed(seed)
        bar = tqdm(total=folds * epochs, desc="training", unit="epoch")
        for held in torch.randperm(n, generator=generator).tensor_split(folds):
            seen = torch.ones(n, dtype=torch.bool)
            seen[held] = folds == 1
            seen = seen.nonzero()[:, 0]
            model, optimizer = small_network(x.shape[1], classes)
            for epoch in range(epochs):
                for batch in seen[torch.randperm(len(seen), generator=generator)].split(BATCH):
                    loss, scores = functional.cross_entropy(model(x[batch]), given[batch], signals=_SIGNALS)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    if folds == 1:
                        memory.update(batch, scores, epoch)
                if folds > 1:
                    memory.update(held, functional.score(_logits(model, x[held]), given[held], signals=_SIGNALS), epoch)
                bar.update()
            probabilities[held] = _logits(model, x[held]).softmax(-1)
        bar.close()
    return {name: memory[name] for name in FIELDS} | {"pred_probs": probabilities}


def small_network(features: int, classes: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network for [n, features], with one hidden layer, and its optimizer."""
    hidden = nn.Linear(features, _WIDTH)
    model = nn.Sequential(hidden, nn.ReLU(), nn.Dropout(_DROPOUT), nn.Linear(_WIDTH, classes))
    return model, torch.optim.AdamW(model.parameters(), lr=_RATE)


def _standardized(x: np.ndarray) -> Tensor:
    """[n, features] of mean 0 and deviation 1: each feature of vectors by itself, the values of images all together."""
    values = torch.from_numpy(x.astype(np.float32))
    std, mean = torch.std_mean(values, 0 if x.ndim == 2 else None, correction=0)
    return ((values - mean) / std.clamp_min(1e-6)).flatten(1)


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """Without dropout."""
    model.eval()
    with torch.inference_mode():
        logits = model(x)
    model.train()
    return logits
