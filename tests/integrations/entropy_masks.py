"""What the ranks of test_trl.py do; in a module without TRL, which would take each of them seconds to import."""

from types import SimpleNamespace

from torch import Tensor
from torchassay.integrations.trl import OneReadMixin


def mask_of(rank: int, entropies: list[Tensor], masks: list[Tensor], threshold: float) -> Tensor:
    trainer = SimpleNamespace(accelerator=SimpleNamespace(num_processes=len(masks)))
    return OneReadMixin.get_high_entropy_mask(trainer, entropies[rank], masks[rank], threshold)
