"""SumTree: what it says of arguments that do not fit, after which it is as it was."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchassay import sum_tree
from torchassay.checks import InputTypeError, InputValueError
from torchassay.sum_tree import SumTree


@pytest.fixture(params=["native", "numpy"], autouse=True)
def backend(request, monkeypatch) -> None:
    if request.param == "numpy":
        monkeypatch.setattr(sum_tree, "native", None)
    elif sum_tree.native is None:
        pytest.skip("the C++ extension is not there")


@pytest.mark.parametrize("value", [-1.0, -5e-324, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 600, 69_999])
def test_what_is_no_weight_is_refused(value, at):
    weights = np.ones(70_000)
    weights[[at, 69_999]] = value  # of several the first
    expected = f"must be finite and at least 0, got {value} at {at}"
    with pytest.raises(InputValueError) as error:
        SumTree(weights)
    assert str(error.value) == f"SumTree: weights {expected}"
    tree = SumTree(np.ones(70_000))
    with pytest.raises(InputValueError) as error:
        tree.update([2, at], [5, value])
    assert str(error.value) == f"SumTree.update: weights {expected}"
    assert tree.total == 70_000 and (tree.weights() == 1).all()


def test_a_sum_that_is_infinite():
    with pytest.raises(InputValueError) as error:
        SumTree([1e308, 1e308])
    assert str(error.value) == "SumTree: weights must be of a finite sum, got inf"
    tree = SumTree([1.5e308, 1e306, 1.0])
    before = tree._sums.copy()
    with pytest.raises(InputValueError) as error:
        tree.update([2, 1, 2], [3.0, 2.0, 1e308])
    assert str(error.value) == "SumTree.update: weights must have a finite sum with all others, got inf"
    assert tree.weights().tolist() == [1.5e308, 1e306, 1.0] and tree.positive == 3
    assert np.array_equal(tree._sums, before)
    tree.update([0, 2], [1.0, 1.7e308])  # it takes the place of what was large
    assert tree.total == 1.7e308 + 1e306
    assert set(tree.sample(20, seed=1).tolist()) == {2}


def test_no_weight_above_zero():
    for tree in (SumTree(5), SumTree([-0.0, 0.0])):
        assert tree.total == 0 and tree.positive == 0 and tree.sample(0, seed=0).tolist() == []
        for replacement in (True, False):
            with pytest.raises(InputValueError) as error:
                tree.sample(1, seed=0, replacement=replacement)
            assert str(error.value) == "SumTree.sample: there must be a weight above 0, got none"


def test_values_of_arguments():
    tree = SumTree(np.ones(4))
    for call, message in (
        (lambda: SumTree([]), "SumTree: weights must hold at least one, got none"),
        (lambda: SumTree(0), "SumTree: weights must be at least 1, got 0"),
        (lambda: SumTree(np.ones((2, 2))), "SumTree: weights must have one dimension, got shape (2, 2)"),
        (lambda: tree.sample(-1, seed=0), "SumTree.sample: n must be at least 0, got -1"),
        (lambda: tree.sample(1, seed=-1), "SumTree.sample: seed must be in [0, 2^64), got -1"),
        (lambda: tree.sample(1, seed=(1, 1 << 64)), f"SumTree.sample: seed must be in [0, 2^64), got (1, {1 << 64})"),
        (lambda: tree.update([0, 4], [1, 1]), "SumTree.update: index must be in [0, 4), got 4"),
        (lambda: tree.update([-1], [1]), "SumTree.update: index must be in [0, 4), got -1"),
        (lambda: tree.update([[0]], [1]), "SumTree.update: index must have shape (k,), got (1, 1)"),
        (lambda: tree.update([0, 1], [1]), "SumTree.update: weights must have index's shape (2,), got (1,)"),
        (lambda: tree.update([0], 1.0), "SumTree.update: weights must have one dimension, got shape ()"),
        (lambda: tree.weights([7]), "SumTree.weights: index must be in [0, 4), got 7"),
    ):
        with pytest.raises(InputValueError) as error:
            call()
        assert str(error.value) == message
    assert tree.weights().tolist() == [1] * 4
    tree.update([], [])
    assert tree.total == 4


def test_types_of_arguments():
    tree = SumTree(np.ones(4))
    for call, message in (
        (lambda: SumTree(True), "SumTree: weights must be an int, got bool"),
        (lambda: SumTree(["a"]), "SumTree: weights must be floats or integers, got <U1"),
        (lambda: SumTree([1j]), "SumTree: weights must be floats or integers, got complex128"),
        (lambda: tree.sample(1.0, seed=0), "SumTree.sample: n must be an int, got float"),
        (lambda: tree.sample(1, seed=1.0), "SumTree.sample: seed must be an int or a sequence of ints, got 1.0"),
        (
            lambda: tree.sample(1, seed=[1, True]),
            "SumTree.sample: seed must be an int or a sequence of ints, got [1, True]",
        ),
        (lambda: tree.update([0.5], [1]), "SumTree.update: index must be integers, got float64"),
        (lambda: tree.update(torch.tensor([True]), [1]), "SumTree.update: index must be integers, got bool"),
    ):
        with pytest.raises(InputTypeError) as error:
            call()
        assert str(error.value) == message
