"""`score` and `cross_entropy` with a group whose ranks hold slices of the classes: what one process finds."""

import option_contract
import option_oracle
import pytest
import torch
from ranks import on_ranks
from torchassay.scores import ROW_SIGNALS, Scores
from vocabularies import BACKENDS, CUTS, INPUTS, WORLD, cases, chosen, everything, outcome, shapes, upstream

WORLDS = list(CUTS)
both = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What each of four ranks found."""
    return on_ranks(WORLD, tmp_path_factory.mktemp("ranks"), everything)


def of_group(found: list[dict], key: str) -> list[dict[str, torch.Tensor]]:
    """What the ranks of a group found, in the order of their slices."""
    return [of_rank[key] for of_rank in found if key in of_rank]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit, NaN for NaN."""
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def assert_near(gradient: torch.Tensor, exact: torch.Tensor, what: object) -> None:
    """To 2e-6 of the row's norm, and the rounding of bfloat16."""
    assert gradient.dtype == exact.dtype and torch.equal(gradient.isnan(), exact.isnan()), what
    rounding = 2**-8 if exact.dtype == torch.bfloat16 else 0.0
    gradient, exact = gradient.double().nan_to_num(), exact.double().nan_to_num()
    limit = 2e-6 * exact.norm(dim=-1, keepdim=True) + rounding * exact.abs()
    assert ((gradient - exact).abs() <= limit).all(), what


@both
@pytest.mark.parametrize("world", WORLDS)
def test_signals_and_gradients_against_the_oracle(world, backend, found):
    for of_backend, name, dtype, case in chosen(world):
        if of_backend != backend or name == "poisoned":
            continue
        parts = of_group(found, f"{world} {backend} {name} {dtype} {case}")
        x, y = INPUTS[name](dtype)
        options = cases(dtype)[case]
        truth = option_oracle.truth(x, y, options)
        allowed = 2 * option_contract.tolerance(options, dtype)
        scores = Scores({signal: parts[0][signal] for signal in ROW_SIGNALS})
        option_contract.check((name, dtype, case), scores, truth, options, x, allowed)
        given = upstream(len(x)).double()
        gradient = torch.cat([part["gradient"] for part in parts], 1)
        exact = given[:, None] * truth.grad_loss
        option_contract.check_gradient((name, dtype, case), gradient, exact, truth.parts * given.abs(), 2 * allowed)


@both
@pytest.mark.parametrize("world", WORLDS)
def test_slices_give_what_one_process_finds(world, backend, found):
    """Also in rows that hold no number, and for classes at -inf."""
    for of_backend, *what in chosen(world):
        if of_backend != backend:
            continue
        parts = of_group(found, f"{world} {backend} {' '.join(map(str, what))}")
        assert len(parts) == world
        one = outcome(*what, slice(None), backend=backend)
        gradient = one.pop("gradient")
        for signal, exact in one.items():
            value = parts[0][signal]
            assert value.dtype == exact.dtype and value.shape == exact.shape
            limit = {"rtol": 2e-6, "atol": 1e-37} if exact.dtype != torch.bfloat16 else {"rtol": 2**-8, "atol": 0}
            torch.testing.assert_close(value, exact, **limit, equal_nan=True, msg=f"{what} {signal}: {{}}".format)
        assert_near(torch.cat([part["gradient"] for part in parts], 1), gradient, what)


def test_all_ranks_have_the_same_bits(found):
    for key, first in found[WORLD - 1].items():
        for part in of_group(found, key):
            for name, value in part.items():
                assert name.startswith("gradient") or same(value, first[name]), (key, name)


def test_twice_the_same_bits(found):
    for of_rank in found:
        first, again = of_rank[f"{WORLD} reference plain torch.float32 all"], of_rank["again"]
        assert all(same(first[name], again[name]) for name in first)


@both
@pytest.mark.parametrize("world", WORLDS)
def test_shapes_reductions_and_history(world, backend, found):
    parts = of_group(found, f"{world} {backend} shapes")
    one = shapes(slice(None), backend=backend)
    assert one.keys() == parts[0].keys()
    for name, exact in one.items():
        value = parts[0][name]
        if name.startswith("gradient"):
            assert_near(torch.cat([part[name] for part in parts], -1), exact, name)
        else:
            limit = {"rtol": 2e-6, "atol": 1e-37, "equal_nan": True}
            torch.testing.assert_close(value, exact, **limit, msg=f"{name}: {{}}".format)
