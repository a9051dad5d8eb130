"""A random order, anew in each epoch: plain training that can be resumed and shared between processes."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from torchassay.samplers.planned import Planned


class Shuffle(Planned):
    """Every sample once an epoch, in a random order: the plain loop, with a `CrossEpoch`'s memory and resume.

    What other samplers are compared with, and what a `DataLoader` for the in-step methods wants for a sampler where it
    must go on in mid-epoch. The arguments are those of `CrossEpoch`.
    """

    plans_from_memory: ClassVar[bool] = False

    def _plan(self, epoch: int) -> tuple[np.ndarray, None]:
        return self._shuffled(), None
