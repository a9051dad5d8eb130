"""Everything that is measured on a GPU: the card itself, then ours against PyTorch and peers, shape by shape."""

from __future__ import annotations

from typing import NamedTuple

import bandwidth
import gpu_cases
import gpu_linear
import peers
import pytest
import rotation
import torch
from clock import DEVICE, QUICK
from torchassay.backends import why_not

VOCABULARIES = [(8192, 50257), (4096, 151936), (8192, 32000)]
FEW_CLASSES = [(1 << 20, 100), (1 << 17, 1000), (16384, 4096)]
COMPARED = [(1 << 22, 10), (1 << 22, 32), (1 << 19, 256), (1 << 14, 8192)]  # for the rule that chooses between ours
TRAINED = [(1 << 17, 1000), (8192, 32000), (8192, 50257), (4096, 151936)]
WITH_OPTIONS = [(8192, 50257), (1 << 17, 1000)]
BF16, FP32, FP16 = torch.bfloat16, torch.float32, torch.float16


class Case(NamedTuple):
    """A shape in a table; the first ones matter most, for time may run out."""

    kind: str
    rows: int
    classes: int
    dtype: torch.dtype
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.kind}-{self.rows}x{self.classes}-{str(self.dtype).removeprefix('torch.')}"


def cases(quick: bool) -> list[Case]:
    if quick:
        return [
            Case("five", 8192, 50257, BF16, True),
            Case("five", 1 << 17, 1000, BF16, True),
            Case("training", 8192, 50257, BF16),
            Case("options", 8192, 50257, BF16),
            Case("five", 1 << 20, 100, BF16),
            Case("five", 4096, 151936, BF16),
            Case("five", 8192, 32000, FP32),
            Case("noisy", 1 << 17, 1000, BF16),
        ]
    return [
        *(Case("five", *shape, BF16, True) for shape in VOCABULARIES + FEW_CLASSES),
        *(Case("training", *shape, BF16) for shape in TRAINED),
        *(Case("five", *shape, FP32) for shape in VOCABULARIES + FEW_CLASSES),
        Case("five", 8192, 50257, FP16),
        *(Case("noisy", *shape, BF16) for shape in ((1 << 17, 1000), (8192, 50257))),
        *(Case("ours", *shape, dtype) for dtype in (BF16, FP32) for shape in COMPARED),
        *(Case("training", *shape, FP32) for shape in TRAINED),
        *(Case("options", *shape, dtype) for dtype in (BF16, FP32) for shape in WITH_OPTIONS),
    ]


HEADS = [(8192, 4096, 128256), (8192, 4096, 151936), (8192, 2048, 128256), (8192, 2048, 151936)]


@pytest.mark.parametrize("training", [False, True], ids=["scores", "training"])
@pytest.mark.parametrize("shape", HEADS[:1] if QUICK else HEADS, ids=str)
def test_linear_head(shape, training, bench):
    assert gpu_linear.linear_head(bench, *shape, BF16, training=training) == []


@pytest.fixture(scope="session")
def card() -> dict[str, float]:
    """GB/s of this card's memory."""
    return bandwidth.measure(DEVICE, 1 << 29)


@pytest.fixture
def bench(card, race, record) -> gpu_cases.Bench:
    properties = torch.cuda.get_device_properties(DEVICE)
    return gpu_cases.Bench(
        device=DEVICE,
        backends=[name for name in ("native", "triton") if not why_not(name, DEVICE, FP32)],
        race=race,
        record=record,
        read=bandwidth.best_read(card),
        beyond=max(4 * properties.L2_cache_size, 256 << 20),
        capture=rotation.captured,
        hopper=properties.major == 9,
    )


def test_bandwidth(card, record):
    for name, speed in card.items():
        record("Memory bandwidth of the card", {"what": name, "GB/s": speed})
    for name, note in (peers.find()[1] | peers.find(peers.HEADS)[1]).items():
        record(gpu_cases.PEERS, {"peer": name, "note": note})


def test_host_cost(bench):
    assert gpu_cases.host_cost(bench) == []


@pytest.mark.parametrize("case", cases(QUICK), ids=str)
def test_case(case, bench):
    shape = case.rows, case.classes, case.dtype
    if case.kind == "training":
        wrong = gpu_cases.training_step(bench, *shape)
    elif case.kind == "options":
        wrong = gpu_cases.five_signals_under_options(bench, *shape)
    elif case.kind == "noisy":
        wrong = gpu_cases.noisy_entropy(bench, *shape)
    else:
        wrong = gpu_cases.five_signals(bench, *shape, others=case.kind == "five", compiled=case.compiled)
    assert wrong == []
