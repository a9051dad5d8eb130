"""`score` with noise: its signals against float64, with every option, history and split of the batch."""

import math

import pytest
import random123
import torch
import torchassay as ta
from torchassay.philox import Purpose, normals

NOISY = ("noisy_entropy", "predictive_entropy", "mutual_information")


def entropy(p: torch.Tensor) -> torch.Tensor:
    return -torch.special.xlogy(p, p).sum(-1)


def exact(x, std, draws, seed, row_id, temperature=1.0, softcap=None) -> dict[str, torch.Tensor]:
    """By the definition, from the normals of the reference; for rows that are not too sure of themselves."""
    x = x.double().cpu()
    if softcap:
        x = softcap * torch.tanh(x / softcap)
    std, temperature = (torch.as_tensor(n).double().cpu().expand(len(x))[:, None] for n in (std, temperature))
    p = [
        torch.softmax((x + std * normals(row_id, seed, Purpose.LOGIT_NOISE, t, x.shape[1]).double()) / temperature, -1)
        for t in range(draws)
    ]
    mean, whole = sum(map(entropy, p)) / draws, entropy(sum(p) / draws)
    return {"noisy_entropy": mean, "predictive_entropy": whole, "mutual_information": whole - mean}


def rows(n: int = 5, classes: int = 40) -> torch.Tensor:
    return torch.randn(n, classes, generator=torch.Generator().manual_seed(classes)) * 2


def agree(found: ta.Scores, expected: dict[str, torch.Tensor]):
    for name, value in expected.items():
        tolerance = 1e-5 * expected["predictive_entropy"]
        error = (getattr(found, name).cpu().double() - value).abs()
        assert (error <= tolerance).all(), f"{name}: {(error / tolerance).max():.2f} of what is allowed"


@pytest.mark.parametrize("temperature", [1.0, 0.6, "rows"])
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("std", [0.5, "rows"])
def test_values(std, softcap, temperature, place):
    x = rows()
    by_row = torch.linspace(0.5, 1.5, len(x))
    std = by_row if std == "rows" else std
    temperature = by_row.flip(0) if temperature == "rows" else temperature
    ids = torch.tensor(random123.ROWS[:5])
    options = {"softcap": softcap, "noise_draws": 3, "seed": 2**40 + 7}
    given = {"noise_std": std, "temperature": temperature, "row_id": ids}
    moved = {name: n.to(place.device) if isinstance(n, torch.Tensor) else n for name, n in given.items()}
    found = ta.score(x.to(place.device), signals=NOISY, backend=place.backend, **options, **moved)
    agree(found, exact(x, std, 3, 2**40 + 7, ids, temperature, softcap))


def test_other_signals_are_those_of_the_clean_logits(place):
    x, y = rows().to(place.device), torch.arange(5, device=place.device)
    clean = ta.score(x, y, signals=ta.scores.ROW_SIGNALS, backend=place.backend)
    found = ta.score(x, y, signals=ta.SIGNALS, noise_std=0.3, backend=place.backend)
    assert found.signals == ta.SIGNALS
    for name in clean.signals:
        assert torch.equal(getattr(found, name), getattr(clean, name)), name
    assert ta.score(x, y, noise_std=0.3, backend=place.backend).signals == (
        *("loss", "entropy", "grad_norm"),
        "noisy_entropy",
    )
    assert ta.score(x, noise_std=0.3, backend=place.backend).signals[-1] == "noisy_entropy"


def test_one_draw_has_no_mutual_information(place):
    found = ta.score(rows().to(place.device), signals=NOISY, noise_std=1.0, backend=place.backend)
    torch.testing.assert_close(found.noisy_entropy, found.predictive_entropy, rtol=2e-6, atol=0)
    assert (found.mutual_information <= 2e-6 * found.predictive_entropy).all()


def test_no_noise_in_a_row_of_deviation_0(place):
    x = rows().to(place.device)
    std = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0], device=place.device)
    found = ta.score(x, signals=("entropy", "noisy_entropy"), noise_std=std, noise_draws=2, backend=place.backend)
    torch.testing.assert_close(found.noisy_entropy[::2], found.entropy[::2], rtol=2e-6, atol=0)
    assert ((found.noisy_entropy - found.entropy).abs()[1::2] > 1e-3).all()


def test_the_noise_follows_the_row_id(place):
    x = rows(6).to(place.device)
    ids = torch.tensor([9, 2**40, -3, 7, 7, 0], device=place.device)
    options = {"signals": NOISY, "noise_std": 0.7, "noise_draws": 2, "seed": 5, "backend": place.backend}
    whole = ta.score(x, row_id=ids, **options)
    order = torch.tensor([4, 0, 5, 2], device=place.device)
    part = ta.score(x[order], row_id=ids[order], **options)
    for name in NOISY:
        assert torch.equal(getattr(part, name), getattr(whole, name)[order]), name
    again = ta.score(x, row_id=ids, **options)
    assert torch.equal(again.noisy_entropy, whole.noisy_entropy)
    assert not torch.equal(ta.score(x, row_id=ids + 1, **options).noisy_entropy, whole.noisy_entropy)
    by_tensor = options | {"seed": torch.tensor(5, device=place.device)}
    assert torch.equal(ta.score(x, row_id=ids, **by_tensor).noisy_entropy, whole.noisy_entropy)


def test_any_class_dimension(place):
    x = rows(24, 10).view(2, 3, 4, 10).to(place.device)
    expected = ta.score(x, signals=NOISY, noise_std=0.4, backend=place.backend)
    found = ta.score(x.movedim(-1, 1), signals=NOISY, noise_std=0.4, dim=1, backend=place.backend)
    for name in NOISY:
        assert getattr(found, name).shape == (2, 3, 4)
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-6, atol=1e-7)


def test_seeds_give_independent_noise():
    """Over seeds the entropies' mean settles on the expectation: two halves of the seeds agree within their errors."""
    x = rows(1, 20).expand(400, -1)
    values = ta.score(x, signals="noisy_entropy", noise_std=1.0, seed=3).noisy_entropy
    other = ta.score(x, signals="noisy_entropy", noise_std=1.0, seed=4).noisy_entropy
    error = math.sqrt((values.var() + other.var()).item() / 400)
    assert abs(float(values.mean() - other.mean())) < 4 * error
    assert abs(float(torch.corrcoef(torch.stack([values, other]))[0, 1])) < 0.2


def test_history_of_a_noisy_signal(place):
    history = ta.History(64, signal="noisy_entropy")
    x = rows(8).to(place.device)
    found = ta.score(x, noise_std=0.5, history=history, signals="confidence", backend=place.backend)
    assert found.signals == ("confidence", "select_prob")
    values = ta.score(x, noise_std=0.5, signals="noisy_entropy", backend=place.backend).noisy_entropy
    assert torch.equal(found.select_prob, (values[None] < values[:, None]).float().mean(1))


def test_reference_twin():
    x = rows()
    given = {"signals": NOISY, "noise_std": 0.5, "noise_draws": 2, "softcap": 5.0, "temperature": 0.8, "seed": 1}
    expected = ta.score(x, backend="reference", **given)
    for name, value in ta.reference.score(x, **given).as_dict().items():
        assert torch.equal(value, getattr(expected, name))


def test_a_row_without_a_number(place):
    x = rows(6).to(place.device)
    x[1, 2], x[2, 0], x[4] = torch.nan, torch.inf, -torch.inf
    x[5, 3] = -torch.inf
    given = {"signals": NOISY, "noise_std": 0.5, "noise_draws": 2, "backend": place.backend}
    found = ta.score(x, **given)
    clean = ta.score(rows(6).to(place.device), **given)
    for name in NOISY:
        value = getattr(found, name)
        assert value[[1, 2, 4]].isnan().all(), name
        assert torch.equal(value[[0, 3]], getattr(clean, name)[[0, 3]]), name
        assert value[5].isfinite(), name
