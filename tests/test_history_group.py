"""History with a group: one window on all ranks, whatever each of them has."""

import pytest
import torch
import torchassay as ta
from ranks import on_ranks
from windows import CAPACITY, STEPS, WORLD, batch, walk


def side_by_side(step: int) -> torch.Tensor:
    """The valid values of all ranks, the latest of each together, ranks in order."""
    kept = []
    for rank in range(WORLD):
        values, mask = batch(rank, step)
        kept.append(values[mask & (values == values)].tolist()[-CAPACITY:])
    columns = [[row[i] for row in kept if -i <= len(row)] for i in range(-CAPACITY, 0)]
    return torch.tensor([value for column in columns for value in column])


@pytest.mark.parametrize("bins", [None, True])
def test_all_ranks_have_the_window_of_one(bins, tmp_path):
    found = on_ranks(WORLD, tmp_path, walk, bins)
    alone = ta.History(CAPACITY, bins=bins)
    for step in range(STEPS):
        if bins:  # a histogram has no order, and forgets as many as came
            batches = [batch(rank, step) for rank in range(WORLD)]
            alone.update(torch.cat([values for values, _ in batches]), torch.cat([mask for _, mask in batches]))
        else:
            alone.update(side_by_side(step))
        for rank in range(WORLD):
            values, mask = batch(rank, step)
            expected = alone.frozen().probability(values, mask=mask)
            torch.testing.assert_close(found[rank][f"chance {step}"], expected, rtol=1e-6, atol=0)
            assert torch.equal(found[rank][f"again {step}"], found[rank][f"chance {step}"])
    for name in ("counts",) if bins else ("window", "total"):
        for rank in range(1, WORLD):
            assert torch.equal(found[rank][name], found[0][name])
    picks = [found[rank]["select"] for rank in range(WORLD)]
    assert not torch.equal(picks[0], picks[1])  # every rank draws for its own samples


def test_bad_groups():
    with pytest.raises(TypeError, match=r"^History: group must be a torch.distributed.ProcessGroup, got str$"):
        ta.History(group="world")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        expected = "^History: capacity must be at most 65536 with a group, or bins=True, got 65537$"
        with pytest.raises(ValueError, match=expected):
            ta.History(65537, group=torch.distributed.group.WORLD)
        assert ta.History(65537, bins=True, group=torch.distributed.group.WORLD).capacity == 65537
    finally:
        torch.distributed.destroy_process_group()
