"""``DatasetScorer`` on batches of every form, against `torchassay.score` on the model's own logits."""

import numpy as np
import pytest
import scorable
import torch
import torchassay as ta
from torch import nn

pytest.importorskip("pyarrow")

import pyarrow
from torchassay.scoring import BrokenRows, DatasetScorer

SCORABLE = scorable.__file__
X = np.random.default_rng(0).normal(size=(5, scorable.D)).astype(np.float32)
Y = np.array([0, 1, 2, 3, 0])
ALL = tuple(name for name in ta.LINEAR_SIGNALS if name not in (*ta.scores.NOISY_SIGNALS, "weight_grad_norm"))


def logits_of(model, x=X):
    model.eval()
    with torch.no_grad():
        return model(torch.from_numpy(x))


def test_every_signal_is_that_of_score():
    model = scorable.network()
    expected = ta.score(logits_of(scorable.network()), torch.from_numpy(Y), signals=ALL)
    table = DatasetScorer(model, ALL, probs=True)({"index": np.arange(5) + 10, "x": X, "y": Y})
    assert table.column_names == ["index", "given", *ALL, "pred_probs"]
    assert table["index"].to_pylist() == [10, 11, 12, 13, 14] and table["given"].to_pylist() == Y.tolist()
    for name in ALL:
        assert np.array_equal(table[name].to_numpy(), getattr(expected, name).numpy()), name
    assert table.schema.field("pred_probs").type == pyarrow.list_(pyarrow.float32(), scorable.C)
    probs = np.array(table["pred_probs"].to_pylist())
    np.testing.assert_allclose(probs, logits_of(scorable.network()).softmax(1).numpy(), rtol=1e-6)


def test_the_model_is_left_as_it_was():
    model = scorable.network()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scorer = DatasetScorer(model, "loss")
    assert scorer.model is model
    scorer({"index": [0, 1], "x": X[:2], "y": Y[:2]})
    assert [module.training for module in model] == [True, False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    other = DatasetScorer(model, "loss", dtype="float64")  # a copy
    assert other({"index": [0], "x": X[:1], "y": Y[:1]}).schema.field("loss").type == pyarrow.float64()
    assert {value.dtype for value in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "columns",
    [
        {"x": X, "y": Y},
        {"x": X.astype(np.float64), "label": Y.astype(np.uint8)},
        {"input": list(X), "target": [np.int32(y) for y in Y]},
        {"inputs": X.tolist(), "labels": Y.tolist(), "name": ["a", "b", "c", "d", "e"]},
        {"x": torch.from_numpy(X), "targets": torch.from_numpy(Y).short()},
        {"x": np.array([*X, None], object)[:5], "y": Y},
    ],
    ids=["arrays", "other dtypes", "rows", "lists", "tensors", "objects"],
)
def test_columns_of_every_kind(columns):
    expected = ta.score(logits_of(scorable.network()), torch.from_numpy(Y), signals="loss").loss
    table = DatasetScorer(f"{SCORABLE}:network", "loss")(columns | {"index": np.arange(5)})
    np.testing.assert_allclose(table["loss"].to_numpy(), expected.numpy(), rtol=1e-6)
    assert table["given"].to_pylist() == Y.tolist()


def test_columns_go_to_the_arguments_of_their_name():
    class Two(nn.Module):
        def forward(self, left, right):
            return left - right

    zero = np.zeros_like(X)
    batch = {"index": np.arange(5), "right": X, "other": zero, "left": zero}
    table = DatasetScorer(Two(), "prediction")(batch)
    assert table["prediction"].to_pylist() == X.argmin(1).tolist()
    assert table.column_names == ["index", "prediction"]  # no target, none given


def test_class_probabilities_as_the_target():
    soft = np.full((5, scorable.C), 1 / scorable.C, np.float32)
    table = DatasetScorer(scorable.network(), "loss")({"index": np.arange(5), "x": X, "y": soft})
    expected = ta.score(logits_of(scorable.network()), torch.from_numpy(soft), signals="loss").loss
    assert np.array_equal(table["loss"].to_numpy(), expected.numpy()) and "given" not in table.column_names


class Tokens(nn.Module):
    """Logits for each token."""

    def __init__(self, loss_type=None):
        super().__init__()
        torch.manual_seed(1)
        self.embedding, self.loss_type = nn.Embedding(11, 7), loss_type

    def forward(self, input_ids):
        return self.embedding(input_ids)


@pytest.mark.parametrize("loss_type", [None, "ForTokenClassification"])
def test_logits_of_tokens(loss_type):
    """Those of the next token, or of the same where Hugging Face says so; padding and ignored tokens do not count."""
    model = Tokens(loss_type)
    ids, labels = [[1, 2, 3, 4], [5], [6, 7]], [[6, -100, 2, 1], [3], [-100, 5]]
    scorer = DatasetScorer(model, ("loss", "prediction"), tokens=True)
    table = scorer({"index": [0, 1, 2], "input_ids": ids, "labels": labels})
    shift = loss_type is None
    for row, (tokens, target) in enumerate(zip(ids, labels, strict=True)):
        at = [t for t in range(shift, len(tokens)) if target[t] != -100]
        found = {name: table[name][row].as_py() for name in table.column_names}
        logits = model(torch.tensor(tokens))[[t - shift for t in at]]
        wanted = torch.tensor([target[t] for t in at], dtype=torch.int64)
        expected = ta.score(logits.detach(), wanted, signals=("loss", "prediction"))
        assert found["tokens"] == len(at)
        assert (found["token_position"], found["token_id"]) == (at, wanted.tolist())
        assert found["token_loss"] == expected.loss.tolist()
        assert found["token_prediction"] == expected.prediction.tolist()
        mean = expected.loss.double().mean().item() if at else 0.0
        assert found["loss"] == pytest.approx(mean, rel=1e-6)
    assert "prediction" not in table.column_names


@pytest.mark.parametrize(
    ("change", "row", "reason"),
    [
        ({"y": [0, 1, 9, 1, 9]}, 12, "must hold values in [0, 4) in the target, got 9, and 1 more of its batch"),
        ({"y": [0, None, 1, 1, 1]}, 11, "must hold numbers in 'y', got nothing"),
        ({"y": [0, 1, 1, 1, "cat"]}, 14, "must hold numbers in 'y', got a str"),
        (
            {"x": [X[0], X[1][:3], *X[2:]]},
            11,
            "must have the shape (6,) of other rows in 'x', got (3,)",
        ),
        ({"x": [X[0], [[1], [1, 2]], *X[2:]]}, 11, "must hold numbers in 'x', got lists of different lengths"),
    ],
)
def test_broken_rows_are_named(change, row, reason):
    batch = {"index": np.arange(5) + 10, "x": X, "y": Y} | change
    with pytest.raises(BrokenRows) as error:
        DatasetScorer(scorable.network(), "loss")(batch)
    assert str(error.value) == f"DatasetScorer: row {row} {reason}"
    assert row in error.value.reasons


@pytest.mark.parametrize(
    ("batch", "row", "reason"),
    [
        ({"input_ids": [[1, 2], [3, 11]]}, 1, "must hold values in [0, 11) in input_ids, got 11"),
        ({"input_ids": [[], [1]]}, 0, "must hold at least one token in 'input_ids', got 0"),
        ({"input_ids": [[1, 2], [1]], "labels": [[1], [1]]}, 0, "must hold 2 values, one a token, in 'labels', got 1"),
    ],
)
def test_broken_rows_of_tokens_are_named(batch, row, reason):
    class Known(Tokens):
        def get_input_embeddings(self):
            return self.embedding

    with pytest.raises(BrokenRows) as error:
        DatasetScorer(Known(), "entropy")(batch | {"index": [0, 1]})
    assert str(error.value) == f"DatasetScorer: row {row} {reason}" and list(error.value.reasons) == [row]


def test_a_row_on_which_the_model_fails_is_found():
    class Picky(nn.Module):
        def forward(self, x):
            if (x > 100).any():
                raise RuntimeError("too large\nfor me")
            return x

    x = X.copy()
    x[3] = 1000
    with pytest.raises(BrokenRows) as error:
        DatasetScorer(Picky(), "entropy")({"index": np.arange(5) + 10, "x": x})
    reason = "must be one that the model takes, got RuntimeError: too large"
    assert str(error.value) == f"DatasetScorer: row 13 {reason}"
    with pytest.raises(
        ValueError, match=r"^DatasetScorer: model must take x \(5, 6\), got RuntimeError: too large$"
    ) as e:
        DatasetScorer(Picky(), "entropy")({"index": np.arange(5), "x": x * 0 + 1000})
    assert not isinstance(e.value, BrokenRows)


MUST = "DatasetScorer: model must give"


@pytest.mark.parametrize(
    ("model", "got"),
    [
        (scorable.Features(), "logits, or an output with .logits, got dict with last_hidden_state, pooled"),
        (nn.Flatten(0), "logits of shape (5, C) or (5, T, C) for 5 rows, got float32 of shape (30,)"),
    ],
)
def test_a_model_without_logits(model, got):
    with pytest.raises(TypeError) as error:
        DatasetScorer(model, "entropy")({"index": np.arange(5), "x": X})
    assert str(error.value) == f"{MUST} {got}"


SIGNALS = ", ".join(ta.scores.ROW_SIGNALS)


@pytest.mark.parametrize(
    ("arguments", "batch", "message"),
    [
        (
            {"signals": ("loss", "noisy_entropy")},
            {},
            f"signals must be among {SIGNALS}, weight_grad_norm; got 'noisy_entropy'",
        ),
        ({"signals": ()}, {}, "signals must name at least one, got none"),
        ({"dtype": "int8"}, {}, "dtype must be one of float32, bfloat16, float16, float64, got 'int8'"),
        ({"device": "moon"}, {}, "device must be cpu, cuda or cuda:N, got 'moon'"),
        ({"model": 3}, {}, "model must be an nn.Module, a callable that makes one, or the name of either, got int"),
        ({"model": f"{SCORABLE}:not_a_module"}, {}, "model must make an nn.Module, got int"),
        ({"model": f"{SCORABLE}:nobody"}, {}, f"model must be a name in '{SCORABLE}', got 'nobody'"),
        ({"model": "scorable"}, {}, "model must be package.module:name or path.py:name, got 'scorable'"),
        (
            {"model": "no.such:net"},
            {},
            "model must be one that can be imported, got 'no.such:net' (ModuleNotFoundError: No module named 'no')",
        ),
        ({}, {"x": X}, "batch must have a column 'index', got x"),
        (
            {},
            {"index": [0.5] * 5, "x": X},
            "column 'index' must hold integers of shape (B,), got float64 of shape (5,)",
        ),
        ({}, {"index": [0], "x": X}, "column 'x' must have 1 rows, as 'index' has, got 5"),
        (
            {},
            {"index": [0], "image": X[:1]},
            "batch must have a column that the model's forward names, or input_ids, x, input or inputs, got image",
        ),
        (
            {},
            {"index": [0], "x": X[:1]},
            "signal 'loss' needs a target, a column labels, label, target, targets or y, got x",
        ),
        (
            {"signals": "weight_grad_norm"},
            {"index": [0], "x": X[:1], "y": [1]},
            "signal 'weight_grad_norm' needs a causal LM whose head is linear, got Sequential",
        ),
        (
            {"tokens": True},
            {"index": [0], "x": X[:1], "y": [1]},
            "tokens must be off where the model gives logits for a row",
        ),
        (
            {"model": Tokens(), "probs": True},
            {"index": [0], "input_ids": [[1, 2]]},
            "probs must be off where the model gives logits for every token",
        ),
        (
            {"model": Tokens(), "signals": "prediction"},
            {"index": [0], "input_ids": [[1, 2]]},
            "signal 'prediction' of tokens has no mean: it needs tokens=True",
        ),
    ],
)
def test_bad_arguments(arguments, batch, message):
    with pytest.raises((ValueError, TypeError)) as error:
        DatasetScorer(**{"model": scorable.network()} | arguments)(batch)
    assert str(error.value) == f"DatasetScorer: {message}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    with pytest.raises(ValueError) as error:
        DatasetScorer(f"{SCORABLE}:network", device="cuda")
    assert str(error.value) == "DatasetScorer: device must be there, got 'cuda', but torch sees no GPU"


def test_without_pyarrow(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError) as error:
        DatasetScorer(scorable.network())
    assert str(error.value) == 'DatasetScorer needs pyarrow: pip install "torchassay[io]"'


def test_about():
    about = DatasetScorer(f"{SCORABLE}:network", ("loss",), dtype="bfloat16").about()
    weights = about.pop("weights")
    assert about.pop("revision") == weights and len(weights) == 64
    assert about == {
        "model": f"{SCORABLE}:network",
        "dtype": "bfloat16",
        "device": "cpu",
        "signals": ["loss"],
        "tokens": False,
        "probs": False,
        "head": "logits",
    }
    model = scorable.network()
    before = DatasetScorer(model).about()["weights"]
    model[1].running_mean[3] += 1
    assert DatasetScorer(model).about()["weights"] != before


def test_docstring_example():
    import doctest

    from torchassay.scoring import dataset_scorer

    result = doctest.testmod(dataset_scorer)
    assert result.attempted >= 4 and result.failed == 0
