"""The functions of linear heads with a group whose ranks hold slices of the vocabulary: what one process finds."""

import option_oracle
import pytest
import torch
from linear_slices import CUTS, SIGNALS, cases, chosen, everything, head, more, outcome, upstream
from ranks import on_ranks
from vocabularies import BACKENDS, WORLD

WORLDS = list(CUTS)
SLICED = ("of weight", "of bias")  # the names of what every rank has of its own classes


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What each of four ranks found."""
    return on_ranks(WORLD, tmp_path_factory.mktemp("ranks"), everything)


def together(found: list[dict], key: str) -> dict[str, torch.Tensor]:
    """What the ranks of a group found: slices joined, the rest, which all have alike, once."""
    parts = [of_rank[key] for of_rank in found if key in of_rank]
    assert len(parts) == int(key[0])
    whole = {}
    for name, first in parts[0].items():
        if name.startswith(SLICED):
            whole[name] = torch.cat([part[name] for part in parts])
        else:
            whole[name] = first
            assert all(torch.equal(part[name], first) for part in parts), (key, name)
    return whole


def assert_close(
    name: str, value: torch.Tensor, exact: torch.Tensor, limit: float, scale: torch.Tensor | None = None
) -> None:
    """Gradients to the norm of all of it, rows to their own size or ``scale``."""
    assert value.shape == exact.shape, name
    value, exact = value.double(), exact.double()
    error = (value - exact).abs()
    if name.startswith("of "):
        assert error.norm() <= limit * exact.norm(), name
    else:
        assert (error <= limit * (exact.abs() if scale is None else scale)).all(), name


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_slices_give_what_one_process_finds(world, backend, found):
    for of_backend, dtype, case in chosen(world):
        if of_backend != backend:
            continue
        limit = {torch.float32: 5e-6, torch.float64: 1e-13, torch.bfloat16: 5e-4}[dtype]  # a product of slices rounds
        values = together(found, f"{world} {backend} {dtype} {case}")
        one = outcome(dtype, case, slice(None), backend=backend)
        assert values.keys() == one.keys()
        for name, exact in one.items():
            scale = one["signal confidence"].double() if "margin" in name else None
            assert values[name].dtype == exact.dtype
            assert_close(name, values[name], exact, limit, scale)
    values, one = together(found, f"{world} {backend} more"), more(slice(None), backend=backend)
    assert values.keys() == one.keys()
    for name, exact in one.items():
        scale = one["noisy_entropy"] if name == "mutual_information" else None  # what it is a difference of
        assert_close(
            name, values[name], exact, 1e-5 if name in ("log_prob", *SIGNALS) or scale is not None else 2e-6, scale
        )


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_against_materialised_logits_in_float64(world, backend, found):
    for of_backend, dtype, case in chosen(world):
        if of_backend != backend or dtype == torch.bfloat16:
            continue
        h, w, b, y = (t.double() if t.is_floating_point() else t for t in head(dtype))
        flat, given = h.flatten(0, 1), cases(dtype)[case]
        if isinstance(given.temperature, torch.Tensor):
            given = given._replace(temperature=given.temperature.flatten())
        truth = option_oracle.truth(flat @ w.t() + b, y.flatten(), given)
        by_logits = upstream().view(-1, 1).double() * truth.grad_loss
        exact = {"of input": (by_logits @ w).view_as(h), "of weight": by_logits.t() @ flat, "of bias": by_logits.sum(0)}
        exact |= {f"signal {name}": value.view(y.shape) for name, value in truth.signals.items()}
        size = (flat**2).sum(-1).add(1).sqrt().view(y.shape)  # with a bias the features have a 1 more
        exact["signal weight_grad_norm"] = exact["signal grad_norm"] * size
        values = together(found, f"{world} {backend} {dtype} {case}")
        limit = 1e-11 if dtype == torch.float64 else 2e-5  # the sums of products of D features
        assert {f"signal {name}" for name in SIGNALS} <= exact.keys()
        for name in exact:
            scale = exact["signal confidence"] if "margin" in name else None
            if "grad_norm" in name and given.label_smoothing and given.weight is None:
                scale = exact[name] + 1e-3 * size  # the contract of the centred form
            assert_close(name, values[name], exact[name], limit, scale)
