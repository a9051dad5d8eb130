"""Where a test runs: a backend on a device."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import pytest
import torch
from torchassay.backends import BACKENDS, why_not


class Place(NamedTuple):
    """A backend on a device, and what may be asked of it."""

    name: str
    backend: str
    device: str

    @property
    def slow(self) -> bool:
        """Triton's interpreter takes milliseconds for each program."""
        return self.name == "triton-interpreter"

    @property
    def double(self) -> bool:
        """It takes float64."""
        return self.backend == "reference" or (self.backend == "native" and self.device == "cpu")

    @property
    def tolerance(self) -> float:
        """The relative error that float32 signals may have: the contract for CPUs and for GPUs."""
        return 1e-6 if self.device == "cpu" else 2e-6

    @property
    def dtypes(self) -> list[torch.dtype]:
        wide = [torch.float32, torch.float64] if self.double else [torch.float32]
        return [*wide, torch.bfloat16, torch.float16]

    def marks(self):
        reason = why_not(self.backend, self.device, torch.float32)
        if not reason and self.backend == "triton":
            found = importlib.util.find_spec("torchassay.triton_kernels.row_scores")
            reason = "" if found else "torchassay.triton_kernels.row_scores is not there"
        return [pytest.mark.skip(reason=f"{self.name}: {reason}")] if reason else []

    def some(self, rows: torch.Tensor, limit: int = 6) -> torch.Tensor:
        """Indices of ``rows``: all, or for the slow interpreter at most ``limit``, evenly spread from end to end."""
        count = len(rows)
        if not self.slow or count <= limit:
            return torch.arange(count)
        return torch.linspace(0, count - 1, limit).round().long()

    def __str__(self) -> str:
        return self.name


PLACES = [Place("native-cpu", "native", "cpu"), Place("reference-cpu", "reference", "cpu")]
if torch.cuda.is_available():
    PLACES += [Place(f"{backend}-cuda", backend, "cuda") for backend in BACKENDS]
else:
    PLACES += [Place("triton-interpreter", "triton", "cpu")]
