"""Scoring a batch by a forward of its own: what the batch holds, and a model that is left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from torchassay import checks, data
from torchassay.scores import Scores

Forward = Callable[[nn.Module, Any], "Scores | dict[str, Tensor] | tuple[Tensor, Tensor]"]


def default_forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """The model's output for the first thing in a batch, and the second as the target, on the model's device."""
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        expected = "given for batches that are not (input, target, ...)"
        raise checks.InputTypeError(f"batches: forward must be {expected}, got None and a {type(batch).__name__}")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return model(batch[0].to(device, non_blocking=True)), batch[1].to(device, non_blocking=True)


def index_of(loader: Any, batch: Any) -> Tensor | None:
    """The places in the data set that `torchassay.Indexed` put into the batch; None where it is not in use."""
    dataset = getattr(loader, "dataset", None)
    while dataset is not None:
        if isinstance(dataset, data.Indexed):
            if isinstance(batch, dict):
                return batch["index"]
            return batch[-2] if batch[-1].is_floating_point() else batch[-1]  # behind it a weight may stand
        dataset = getattr(dataset, "dataset", None)
    return None


def rows_of(batch: Any) -> int:
    """How many samples a batch holds."""
    return len(_first_tensor(batch))


def device_of(batch: Any) -> torch.device:
    """Where a batch lies."""
    return _first_tensor(batch).device


def _first_tensor(batch: Any) -> Tensor:
    return next(leaf for leaf in _pytree.tree_leaves(batch) if isinstance(leaf, Tensor))


def unwrapped(model: nn.Module) -> nn.Module:
    """Without DistributedDataParallel, whose forward waits for other ranks."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """All modules in eval mode, and afterwards each as it was."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
