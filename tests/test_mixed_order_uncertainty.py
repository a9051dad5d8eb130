"""The uncertainty of MixedOrder against a model's own hooks."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from mixed import inputs, network
from torch import nn
from torchassay.checks import InputValueError
from torchassay.samplers.mixed_order import MixedOrder


def test_goes_on_in_mid_epoch_with_the_same_noise(tmp_path):
    def stream(sampler, model):
        x = inputs()
        sampler.set_epoch(sampler.epoch)
        while sampler.epoch < 3:
            for index in torch.tensor(list(sampler)).split(4):
                found = sampler.uncertainty(model, x[index])
                sampler.observe(index, {"loss": x[index, 0] + sampler.epoch, "uncertainty": found})
                yield index.tolist(), found.tolist()
            sampler.set_epoch(sampler.epoch + 1)

    def made():
        return MixedOrder(22, batch_size=4, pivot=0, layers=["0", "2"], seed=4)

    model, first, second = network(), made(), made()
    whole = list(stream(made(), model))
    begun = list(itertools.islice(stream(first, model), 9))
    first.save(tmp_path / "state")
    second.load(tmp_path / "state")
    assert second.epoch == 1 and begun + list(stream(second, model)) == whole
    assert [batch for batch, _ in whole[6:12]] != [batch for batch, _ in whole[12:]]
    other = MixedOrder(22, batch_size=4, pivot=1, layers=["0", "2"], seed=4)
    with pytest.raises(InputValueError, match="MixedOrder: the state must have pivot=1, got 0"):
        other.load(tmp_path / "state")


class Recorded(nn.Module):
    """The network, and in what state it was when it was called, and what it gave."""

    def __init__(self):
        super().__init__()
        self.network, self.calls = network(), []

    def forward(self, x):
        found = self.network(x)
        self.calls.append(([module.training for module in self.modules()], torch.is_grad_enabled(), found.detach()))
        return found


def entropy(logits: torch.Tensor) -> torch.Tensor:
    mean = F.softmax(torch.stack(tuple(logits)).double(), -1).mean(0)
    return -(mean * mean.log()).sum(-1).float()


def test_uncertainty_is_the_entropy_of_the_mean_of_noisy_forwards():
    model, x = Recorded().train(), inputs()
    model.network[1].eval()  # a frozen BatchNorm stays frozen
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sampler = MixedOrder(46, batch_size=46, layers="network.0", draws=3)
    found = sampler.uncertainty(model, x)
    assert [module.training for module in model.modules()] == modes and torch.is_grad_enabled()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(model.calls) == 3 and not found.requires_grad
    assert all(not any(training) and not grad for training, grad, _ in model.calls)
    outputs = [output for *_, output in model.calls]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(outputs, 2))
    torch.testing.assert_close(found, entropy(outputs), rtol=1e-5, atol=1e-6)
    assert sampler.counters()["forward_items"] == 3 * 46
    torch.testing.assert_close(
        MixedOrder(46, batch_size=46, layers="network.0", std=0.0).uncertainty(model, x),
        entropy([model.eval()(x).detach()]),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("std", [0.01, 0.3])
@pytest.mark.parametrize(("kind", "size"), [("gaussian", 1.0), ("uniform", 3**-0.5), ("clipped", 0.959)])
def test_the_noise_is_that_of_the_arguments(kind, size, std):
    """Its standard deviation, over draws, where the noisy layer is the last."""
    model, x, outputs = network().eval(), inputs(), []
    plain = model(x).detach()
    model.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    MixedOrder(46, batch_size=46, layers="3", std=std, kind=kind, draws=40).uncertainty(model, x)
    scale = plain.abs() if kind == "uniform" else plain.std(1, correction=0, keepdim=True)
    found = (torch.stack(outputs) - plain).std(0) / scale
    assert len(outputs) == 40 and found.mean().item() == pytest.approx(std * size, rel=0.05)


def test_the_noise_is_another_one_in_every_step_and_the_same_from_the_same_seed():
    model, x = network(), inputs()[:5]

    def uncertainties(epochs: int = 2, **arguments) -> list[torch.Tensor]:
        sampler, found = MixedOrder(20, batch_size=5, pivot=9, layers="0", **arguments), []
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            for index in torch.tensor(list(sampler)).split(5):
                found.append(sampler.uncertainty(model, x))
                assert torch.equal(sampler.uncertainty(model, x), found[-1])
                sampler.observe(index, {"loss": torch.zeros(len(index)), "uncertainty": found[-1][: len(index)]})
        return found

    first, other_seed = uncertainties(), uncertainties(seed=1)
    assert len(first) == 8 and not any(torch.equal(a, b) for a, b in itertools.combinations([*first, *other_seed], 2))
    ranks = [uncertainties(epochs=1, rank=rank, num_replicas=2) for rank in (0, 1)]  # which take turns at the batches
    again = [*uncertainties(), *itertools.chain(*zip(*ranks, strict=True))]
    assert all(torch.equal(a, b) for a, b in zip(again, [*first, *first[:4]], strict=True))


def test_uncertainty_of_another_forward():
    model, x = network().eval(), inputs()
    sampler = MixedOrder(46, batch_size=46, layers="0")
    expected = sampler.uncertainty(model, x)
    found = sampler.uncertainty(model, {"x": x}, forward=lambda model, batch: model(batch["x"]))
    assert torch.equal(found, expected)
