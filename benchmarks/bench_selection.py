"""The mask of the largest fifth: from histograms, and by what PyTorch has for it."""

from __future__ import annotations

import pytest
import torch
import torchassay as ta
from clock import DEVICE

TOPIC = "Largest fifth of values"


@pytest.mark.parametrize("count", [10_000, 100_000, 1_000_000], ids="{:,}".format)
def test_against_torch(race, record, count):
    values = torch.rand(count, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    fifth = count // 5

    def marked(index: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(values, dtype=torch.bool).index_fill_(0, index, True)

    contenders = {  # the first two do not say which of equal values they take
        "torch.topk": lambda: marked(values.topk(fifth, sorted=False).indices),
        "torch.quantile": lambda: values > values.quantile(0.8),
        "stable sort": lambda: marked(values.argsort(descending=True, stable=True)[:fifth]),
    }
    found, least = ta.top_fraction(values, 0.2), values.topk(fifth).values[-1]
    for name, contender in contenders.items():
        other = contender()
        assert int(other.sum()) == fifth or name == "torch.quantile"
        assert torch.equal(found & (values != least), other & (values != least))
    assert torch.equal(found, contenders["stable sort"]())
    ms = race({"ours": lambda: ta.top_fraction(values, 0.2)} | contenders)
    row = {"what": f"top_fraction of {count:,} values", "ms": ms["ours"]}
    for name in contenders:
        record(TOPIC, row | {"against": name, "ms ": ms[name], "ratio": ms["ours"] / ms[name]})
