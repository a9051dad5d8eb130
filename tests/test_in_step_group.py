"""In-step methods on several processes: the same picks as one, uneven ones without a hang, the mean over samples."""

from __future__ import annotations

import pytest
import torch
import torchassay as ta
from picking import everything, regrouped
from ranks import on_ranks
from small import D, dataset
from torchassay.samplers import SelectiveBackprop

PICKED = [7, 0]
COUNTS = {
    "one rank picks nearly nothing": [[10, 10, 10, 10], [1, 0, 2, 0]],
    "all differ": [[3, 8, 5, 9], [9, 2, 7, 4]],
    "loaders of different lengths": [[5, 5, 5, 5, 5, 5], [10]],
    "one rank never has any": [[0, 0, 0], [0, 0, 4]],
}
FOUR = [[2, 9], [4, 4], [10, 10], [0, 1]]


@pytest.fixture(scope="module")
def values() -> torch.Tensor:
    return torch.rand(6, 32, generator=torch.Generator().manual_seed(20))


@pytest.fixture(scope="module")
def parts(tmp_path_factory, values) -> list[dict]:
    """What two ranks found."""
    return on_ranks(2, tmp_path_factory.mktemp("ranks"), everything, values, PICKED, list(COUNTS.values()))


def test_ranks_pick_what_one_process_picks(parts, values):
    picker = SelectiveBackprop(1.0, capacity=64, seed=3)
    whole = values.clone().requires_grad_()
    masks = []
    for row in whole:
        pick = picker.pick({"loss": row})
        pick.mean(row**2).backward()
        masks.append(pick.mask)
    found = torch.stack([part["selective"]["mask"] for part in parts], dim=2).flatten(1)
    assert torch.equal(found, torch.stack(masks))
    grad = torch.stack([part["selective"]["grad"] for part in parts], dim=2).flatten(1) / 2  # as DDP averages
    torch.testing.assert_close(grad, whole.grad)


def test_uneven_picks_average_to_the_mean_over_samples(parts):
    x, y = dataset(40).tensors
    rows = [i for rank, count in enumerate(PICKED) for i in range(rank, 40, 2)[:count]]
    torch.manual_seed(0)
    model = torch.nn.Linear(D, 4)
    ta.cross_entropy(model(x[rows]), y[rows]).backward()
    for part in parts:
        torch.testing.assert_close(part["gradients"], model.weight.grad)


def check_regrouped(parts: list[dict], counts: list[list[int]]) -> None:
    world = len(counts)
    rounds = {len(part["seen"]) for part in parts}
    assert len(rounds) == 1
    for rank, part in enumerate(parts):
        own = list(range(rank, 200, world))
        expected = [own[10 * k + i] for k, count in enumerate(counts[rank]) for i in range(count)]
        came = zip(part["seen"], part["weights"], strict=True)
        assert [i for seen, weights in came for i, w in zip(seen, weights, strict=True) if w > 0] == expected
        assert all(2 <= len(seen) <= 10 for seen in part["seen"])
        assert torch.equal(part["parameters"], parts[0]["parameters"])
    for k in range(rounds.pop()):  # the mean over ranks of means is the mean over all picked samples of the round
        total = sum(sum(w > 0 for w in part["weights"][k]) for part in parts)
        for part in parts:
            weights = part["weights"][k]
            assert all(w / len(weights) / world == pytest.approx(1 / total) for w in weights if w > 0)


@pytest.mark.parametrize("name", COUNTS)
def test_uneven_picks_do_not_hang(parts, name):
    check_regrouped([part["regrouped"][list(COUNTS).index(name)] for part in parts], COUNTS[name])


def test_uneven_picks_of_four_ranks_do_not_hang(tmp_path):
    check_regrouped(on_ranks(4, tmp_path, regrouped, FOUR), FOUR)


def test_a_rank_without_any_sample_is_an_error_on_all(parts):
    message = "Firsts.batches: the loader of each rank must give a batch, one gave none"
    assert [part["empty"]["error"] for part in parts] == [message, message]
