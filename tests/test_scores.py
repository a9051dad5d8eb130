"""Scores: what is there, what is not, and what it goes through unharmed."""

import copy
import pickle

import pytest
import torch
import torchassay as ta
from torch.utils import _pytree


@pytest.fixture
def scores():
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(80))
    return ta.score(x, torch.tensor([0, 1, 2, 3, 4, 0]), signals=("loss", "margin", "prediction"), backend="reference")


def same(a, b):
    return a.signals == b.signals and all(torch.equal(getattr(a, name), getattr(b, name)) for name in a.signals)


def test_only_what_was_asked_is_there_in_the_order_asked(scores):
    assert scores.signals == ("loss", "margin", "prediction")
    x = torch.zeros(2, 3)
    assert ta.score(x, signals=("prediction", "entropy"), backend="reference").signals == ("prediction", "entropy")
    assert ta.score(x, signals=("entropy", "lse", "entropy"), backend="reference").signals == ("entropy", "lse")
    assert ta.score(x, backend="reference").signals == ("entropy", "confidence", "margin")
    y = torch.tensor([0, 1])
    assert ta.score(x, y, backend="reference").signals == ("loss", "entropy", "grad_norm")
    assert ta.score(x, signals="lse", backend="reference").signals == ("lse",)
    assert ta.score(x, signals=[], backend="reference").signals == ()


def test_another_signal_raises_a_named_error(scores):
    with pytest.raises(AttributeError) as error:
        scores.entropy  # noqa: B018
    expected = "Scores has no 'entropy': it was not asked for (signals=('loss', 'margin', 'prediction'))"
    assert str(error.value) == expected
    with pytest.raises(AttributeError) as error:
        scores.los  # noqa: B018
    assert str(error.value) == "Scores has no 'los'; signals=('loss', 'margin', 'prediction')"
    assert not hasattr(scores, "entropy") and hasattr(scores, "loss")


def test_repr_dir_len_and_dict(scores):
    assert repr(scores) == "Scores(loss=(6,), margin=(6,), prediction=(6,))"
    assert {"loss", "margin", "prediction", "per_sample"} <= set(dir(scores))
    assert len(scores) == 6
    values = scores.as_dict()
    assert values["loss"] is scores.loss
    values.clear()
    assert scores.signals == ("loss", "margin", "prediction")


def test_indexing_takes_every_tensor_alike(scores):
    mask = scores.prediction == scores.prediction[0]
    for index in (mask, slice(1, 4), torch.tensor([3, 3, 0]), 2, ..., None):
        part = scores[index]
        assert isinstance(part, ta.Scores)
        assert all(torch.equal(getattr(part, name), getattr(scores, name)[index]) for name in scores.signals)


def test_pytree_round_trip(scores):
    leaves, spec = _pytree.tree_flatten(scores)
    assert [leaf is value for leaf, value in zip(leaves, scores.as_dict().values(), strict=True)] == [True] * 3
    assert same(_pytree.tree_unflatten(leaves, spec), scores)
    doubled = _pytree.tree_map(lambda value: value * 2, (scores, {"s": scores}))
    assert torch.equal(doubled[0].loss, scores.loss * 2) and torch.equal(doubled[1]["s"].margin, scores.margin * 2)
    text = _pytree.treespec_dumps(spec)
    assert _pytree.treespec_loads(text) == spec


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s)), ta.Scores.cpu])
def test_copies_and_pickles(clone, scores):
    again = clone(scores)
    assert isinstance(again, ta.Scores) and same(again, scores)
    with pytest.raises(AttributeError, match="was not asked for"):
        again.entropy  # noqa: B018


def test_deepcopy_and_pickle_share_no_memory(scores):
    for again in (copy.deepcopy(scores), pickle.loads(pickle.dumps(scores))):
        again.loss.zero_()
        assert (scores.loss > 0).all()


def test_cat(scores):
    assert same(ta.Scores.cat([scores[:2], scores[2:3], scores[3:]]), scores)
    assert same(ta.Scores.cat([scores]), scores)
    with pytest.raises(ValueError) as error:
        ta.Scores.cat([])
    assert str(error.value) == "Scores.cat: parts must hold at least one Scores, got none"
    other = ta.Scores({"loss": scores.loss})
    with pytest.raises(ValueError) as error:
        ta.Scores.cat([scores, other])
    expected = "Scores.cat: parts must hold the same signals, got ('loss', 'margin', 'prediction') and ('loss',)"
    assert str(error.value) == expected


@pytest.fixture
def tokens():
    """Three samples of four tokens: one full, one half masked with NaN and infinities under the mask, one empty."""
    loss = torch.tensor([[1.0, 2.0, 3.0, 6.0], [5.0, 1.0, torch.nan, torch.inf], [torch.nan, 1.0, -torch.inf, 2.0]])
    margin = torch.tensor([[-1.0, -2.0, -3.0, -6.0], [-5.0, -1.0, 7.0, 8.0], [1.0, 1.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, True, True], [True, True, False, False], [False, False, False, False]])
    return ta.Scores({"loss": loss, "prediction": loss.long(), "target_margin": margin}), mask


@pytest.mark.parametrize(
    ("reduce", "loss", "margin"),
    [
        ("mean", [3, 3, 0], [-3, -3, 0]),
        ("sum", [12, 6, 0], [-12, -6, 0]),
        ("max", [6, 5, 0], [-1, -1, 0]),  # the largest negative value: nothing masked counts as 0
    ],
)
def test_per_sample(reduce, loss, margin, tokens):
    scores, mask = tokens
    found = scores.per_sample(mask, reduce=reduce)
    assert found.signals == ("loss", "target_margin")  # a class is not a quantity
    assert found.loss.tolist() == loss and found.target_margin.tolist() == margin


def test_per_sample_is_the_mean_by_default_and_keeps_nan_that_counts(tokens):
    scores, mask = tokens
    assert scores.per_sample(mask).loss.tolist() == [3, 3, 0]
    assert scores.per_sample(torch.ones_like(mask)).loss.isnan().tolist() == [False, True, True]


def test_per_sample_of_no_samples_and_no_tokens():
    scores = ta.Scores({"loss": torch.zeros(0, 4)})
    assert scores.per_sample(torch.zeros(0, 4, dtype=torch.bool)).loss.shape == (0,)
    for reduce in ("mean", "sum", "max"):
        scores = ta.Scores({"loss": torch.zeros(2, 0)})
        assert scores.per_sample(torch.zeros(2, 0, dtype=torch.bool), reduce).loss.tolist() == [0, 0]


def test_per_sample_errors(tokens):
    scores, mask = tokens
    cases = [
        (ValueError, (mask, "min"), "Scores.per_sample: reduce must be 'mean', 'sum' or 'max', got 'min'"),
        (TypeError, (mask.float(),), "Scores.per_sample: mask must be bool, got float32"),
        (
            ValueError,
            (mask[:2],),
            "Scores.per_sample: mask and scores must share one shape [B, T], got mask (2, 4) and loss (3, 4)",
        ),
    ]
    for kind, arguments, message in cases:
        with pytest.raises(kind) as error:
            scores.per_sample(*arguments)
        assert str(error.value) == message
    with pytest.raises(ValueError) as error:
        scores[0].per_sample(mask[0])
    expected = "Scores.per_sample: mask and scores must share one shape [B, T], got mask (4,) and loss (4,)"
    assert str(error.value) == expected
