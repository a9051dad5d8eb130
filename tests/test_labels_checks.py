"""What label reports say of scores and arguments that they cannot take."""

import numpy as np
import pytest
from labelled import COLUMNS
from torchassay import labels
from torchassay.checks import InputTypeError, InputValueError


@pytest.mark.parametrize(
    ("scores", "arguments", "message"),
    [
        (COLUMNS, {"by": "entropy"}, "by must be one of loss, self_confidence, target_margin, got 'entropy'"),
        (COLUMNS, {"k": 0}, "k must be at least 1, got 0"),
        ({"entropy": [1.0]}, {}, "scores must have a column 'loss', got entropy"),
        ({"loss": [1.0]}, {"by": "target_margin"}, "scores must have a column 'target_margin', got loss"),
        (
            {"entropy": [1.0]},
            {"by": "self_confidence"},
            "scores must have a column 'self_confidence', 'loss_last' or 'loss', got entropy",
        ),
        ({"loss": [np.nan]}, {}, "scores: column 'loss' must hold a number for some sample, got NaN only"),
        ({}, {}, "scores must have columns of a value a sample, got none"),
        ({"loss": []}, {}, "scores must have at least one sample, got none"),
        (
            {"loss": [1.0], "given": [1, 2]},
            {},
            "scores must have columns of one length, got loss 1, given 2",
        ),
        (
            {"loss": [[1.0]]},
            {},
            "scores: column 'loss' must hold a number a sample, got float64 of shape (1, 1)",
        ),
        ({"loss": ["1", "x"]}, {}, "scores: column 'loss' must hold a number a sample, got 'x'"),
        (
            {"loss": [1.0, 2.0], "index": [3, 3]},
            {},
            "scores: column 'index' must name each sample once, got one twice",
        ),
        (
            {"loss": [1.0, 2.0], "index": [-1, 3]},
            {},
            "scores: column 'index' must hold integers of at least 0, got -1",
        ),
        (
            {"loss": [1.0], "given": [0.5]},
            {},
            "scores: column 'given' must hold integers of at least 0, got float64 of shape (1,)",
        ),
        ({"loss": [1.0]}, {"given": [0.5]}, "given must be integers of shape (n,), got float64 of shape (1,)"),
        ({"loss": [1.0]}, {"true": [0]}, "true must come with given labels, got none in scores"),
        ({"loss": [1.0]}, {"given": [0, 1]}, "given must have 1 samples, as scores has, got 2"),
        ({"loss": [1.0], "index": [3]}, {"given": [0, 1]}, "given must have at least 4 samples, got 2"),
        (
            {"loss": [1.0]},
            {"images": np.zeros((1, 4))},
            "images must be numbers of shape (n, H, W), (n, H, W, 3) or (n, 3, H, W), got float64 of shape (1, 4)",
        ),
        ({"loss": [1.0]}, {"images": np.zeros((2, 4, 4))}, "images must have 1 samples, as scores has, got 2"),
        (
            {"loss": [1.0], "given": [0], "pred_probs": [0.5]},
            {},
            "scores: pred_probs must hold floats of shape (1, classes), got float64 of shape (1,)",
        ),
        (
            {"loss": [1.0], "given": [0], "pred_probs": [[0.5, 0.6]]},
            {},
            "scores: pred_probs must be at least 0 and sum to 1 in every row, got others",
        ),
        (
            {"loss": [1.0], "given": [2], "pred_probs": [[0.5, 0.5]]},
            {},
            "given must be in [0, 2), the classes of pred_probs, got 2",
        ),
    ],
)
def test_bad_arguments(scores, arguments, message):
    with pytest.raises(InputValueError) as error:
        labels.report(scores, **arguments)
    assert str(error.value) == f"labels.report: {message}"


@pytest.mark.parametrize(
    ("scores", "arguments", "message"),
    [
        (3, {}, "scores must be a file, a SampleMemory, Scores or a mapping, got int"),
        (COLUMNS, {"k": True}, "k must be an int or a sequence of ints, got True"),
        (COLUMNS, {"k": 1.5}, "k must be an int or a sequence of ints, got 1.5"),
    ],
)
def test_bad_types(scores, arguments, message):
    with pytest.raises(InputTypeError) as error:
        labels.report(scores, **arguments)
    assert str(error.value) == f"labels.report: {message}"
