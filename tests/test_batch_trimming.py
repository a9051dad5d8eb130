"""Mini-batch trimming and OHEM against the papers' formulas."""

from __future__ import annotations

import pytest
import torch
from small import loader, network
from torchassay.samplers import BatchTrimming


def test_the_share_falls_linearly_with_the_epoch():
    picker = BatchTrimming(epochs=5, p_end=0.2)
    shares = []
    for epoch in range(7):
        picker.set_epoch(epoch)
        shares.append(picker.share)
    assert shares == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])
    only = BatchTrimming(epochs=1)
    only.set_epoch(0)
    assert only.share == 1.0


@pytest.mark.parametrize("n, p, kept", [(10, 0.25, 2), (10, 0.35, 4), (10, 0.01, 1), (10, 1.0, 10), (1, 0.2, 1)])
def test_the_largest_losses_are_kept(n, p, kept, random):
    loss = torch.rand(n, generator=random)
    pick = BatchTrimming(p=p).pick({"loss": loss})
    expected = sorted(range(n), key=lambda i: -loss[i])[:kept]
    assert set(pick.mask.nonzero()[:, 0].tolist()) == set(expected)
    assert pick.mean(loss).item() == pytest.approx(sum(float(loss[i]) for i in expected) / kept)


def test_picks_are_harder_than_chance(random):
    picker = BatchTrimming(p=0.4)
    picked = torch.zeros(10)
    for _ in range(50):
        loss = torch.rand(100, generator=random)
        picked += torch.bincount((loss[picker.pick({"loss": loss}).mask] * 10).long(), minlength=10)
    expected = picked.sum() / 10
    assert float(((picked - expected) ** 2 / expected).sum()) > 1000  # 9 degrees of freedom: 33.7 is 1 in 10,000
    assert picked[:5].sum() < 0.02 * picked.sum()


def test_masked_rows_neither_count_nor_come():
    loss = torch.tensor([9.0, 1.0, 2.0, 8.0, 3.0])
    mask = torch.tensor([False, True, True, False, True])
    pick = BatchTrimming(p=0.67).pick({"loss": loss}, mask=mask)
    assert pick.mask.tolist() == [False, False, True, False, True] and pick.count == 2
    nothing = BatchTrimming(p=0.5).pick({"loss": loss}, mask=torch.zeros(5, dtype=torch.bool))
    assert not nothing.mask.any() and nothing.mean(loss).item() == 0


def test_batches_trim_what_the_schedule_says():
    picker, model = BatchTrimming(epochs=3, p_end=0.5), network()
    sizes = [sum(len(weight) for _, weight in picker.batches(loader(n=200), model)) for _ in range(3)]
    assert sizes == [200, 150, 100]


def test_bad_arguments():
    for arguments, message in (
        ({}, "BatchTrimming: one of epochs and p must be given, got None and None"),
        ({"epochs": 3, "p": 0.5}, "BatchTrimming: one of epochs and p must be given, got 3 and 0.5"),
        ({"epochs": 0}, "BatchTrimming: epochs must be at least 1, got 0"),
        ({"epochs": 2.5}, "BatchTrimming: epochs must be an int, got float"),
        ({"epochs": 2, "p_end": 0}, "BatchTrimming: p_end must be in (0, 1], got 0"),
        ({"p": 1.5}, "BatchTrimming: p must be in (0, 1], got 1.5"),
    ):
        with pytest.raises((ValueError, TypeError)) as error:
            BatchTrimming(**arguments)
        assert str(error.value) == message
    with pytest.raises(ValueError, match=r"BatchTrimming: signal must be one of loss, entropy, .*, got 'los'"):
        BatchTrimming(p=0.5, signal="los")
    with pytest.raises(RuntimeError, match=r"its schedule is by epochs; call set_epoch\(epoch\)"):
        BatchTrimming(epochs=3).pick({"loss": torch.zeros(3)})
