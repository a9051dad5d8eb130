"""Samplers: the methods of the papers, in two protocols.

In-step methods (`InStep`) score a batch and pick from it. Cross-epoch methods (`CrossEpoch`) keep values of every
sample and plan epochs, or draw batches, from them.
"""

from torchassay.samplers.balance_aware import BalanceAware
from torchassay.samplers.batch_trimming import BatchTrimming
from torchassay.samplers.cross_epoch import CrossEpoch
from torchassay.samplers.in_step import InStep, Pick
from torchassay.samplers.info_batch import InfoBatch
from torchassay.samplers.modalities import balance_scores
from torchassay.samplers.selective_backprop import SelectiveBackprop
from torchassay.samplers.shuffle import Shuffle

__all__ = [
    "BalanceAware",
    "BatchTrimming",
    "CrossEpoch",
    "InStep",
    "InfoBatch",
    "Pick",
    "SelectiveBackprop",
    "Shuffle",
    "balance_scores",
]
