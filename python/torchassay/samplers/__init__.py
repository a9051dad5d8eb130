"""Samplers: the methods of the papers, in two protocols.

In-step methods (`InStep`) score a batch and pick from it. Cross-epoch methods (`CrossEpoch`) keep values of every
sample and plan epochs, or draw batches, from them. `WeightedSampler` draws from weights that are given.
"""

from torchassay.samplers.balance_aware import BalanceAware
from torchassay.samplers.batch_trimming import BatchTrimming
from torchassay.samplers.cross_epoch import CrossEpoch
from torchassay.samplers.in_step import InStep, Pick
from torchassay.samplers.info_batch import InfoBatch
from torchassay.samplers.low import LOW
from torchassay.samplers.mixed_order import MixedOrder
from torchassay.samplers.modalities import balance_scores
from torchassay.samplers.online_importance import OnlineImportance
from torchassay.samplers.rho_loss import RHOLoss
from torchassay.samplers.selective_backprop import SelectiveBackprop
from torchassay.samplers.shuffle import Shuffle
from torchassay.samplers.variance_reduction import VarianceReduction
from torchassay.samplers.weighted import WeightedSampler

__all__ = [
    "LOW",
    "BalanceAware",
    "BatchTrimming",
    "CrossEpoch",
    "InStep",
    "InfoBatch",
    "MixedOrder",
    "OnlineImportance",
    "Pick",
    "RHOLoss",
    "SelectiveBackprop",
    "Shuffle",
    "VarianceReduction",
    "WeightedSampler",
    "balance_scores",
]
