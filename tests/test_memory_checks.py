"""What ``SampleMemory`` says of arguments that it cannot take."""

import pytest
import torch
import torchassay as ta
from torchassay.checks import InputTypeError, InputValueError

ONE = {"loss": torch.ones(1)}
AT = torch.tensor([0])
BAD = {
    "n": (lambda: ta.SampleMemory(0), ValueError, "SampleMemory: n must be at least 1, got 0"),
    "n 2.0": (lambda: ta.SampleMemory(2.0), TypeError, "SampleMemory: n must be an int, got float"),
    "rule": (
        lambda: ta.SampleMemory(1, {"loss": "median"}),
        ValueError,
        "SampleMemory: a rule must be last, mean, max, forgetting or ema:DECAY with DECAY in [0, 1), and may go on "
        "with ' of SIGNAL'; got 'median'",
    ),
    "decay": (lambda: ta.SampleMemory(1, {"loss": "ema:1"}), ValueError, "; got 'ema:1'"),
    "no decay": (lambda: ta.SampleMemory(1, {"loss": "ema:x"}), ValueError, "; got 'ema:x'"),
    "rule 1": (
        lambda: ta.SampleMemory(1, {"loss": 1}),
        TypeError,
        "SampleMemory: fields must map a name to a rule, got str: int",
    ),
    "name": (
        lambda: ta.SampleMemory(1, {"visits": "last"}),
        ValueError,
        "SampleMemory: names of fields must be identifiers other than index, fields, visits and last_step, "
        "got 'visits'",
    ),
    "path in a name": (lambda: ta.SampleMemory(1, {"../loss": "last"}), ValueError, "got '../loss'"),
    "index": (
        lambda: ta.SampleMemory(1).update(AT.int(), ONE, 0),
        ValueError,
        "SampleMemory.update: index must be int64 of shape (B,), got int32 of shape (1,)",
    ),
    "index list": (
        lambda: ta.SampleMemory(1).update([0], ONE, 0),
        TypeError,
        "SampleMemory.update: index must be a Tensor, got list",
    ),
    "out of range": (
        lambda: ta.SampleMemory(1).update(AT + 1, ONE, 0),
        ValueError,
        "SampleMemory.update: index must be in [0, 1), got 1",
    ),
    "negative": (
        lambda: ta.SampleMemory(1).update(AT - 1, ONE, 0),
        ValueError,
        "SampleMemory.update: index must be in [0, 1), got -1",
    ),
    "missing": (
        lambda: ta.SampleMemory(1, {"el2n": "mean of grad_norm"}).update(AT, ONE, 0),
        ValueError,
        "SampleMemory.update: scores must hold 'grad_norm', got loss",
    ),
    "no scores": (
        lambda: ta.SampleMemory(1).update(AT, torch.ones(1), 0),
        TypeError,
        "SampleMemory.update: scores must be Scores or a mapping, got Tensor",
    ),
    "shape": (
        lambda: ta.SampleMemory(1).update(AT, {"loss": torch.ones(1, 2)}, 0),
        ValueError,
        "SampleMemory.update: scores['loss'] must have index's shape (1,), got (1, 2)",
    ),
    "step": (
        lambda: ta.SampleMemory(1).update(AT, ONE, 0.5),
        TypeError,
        "SampleMemory.update: step must be an int or a Tensor, got float",
    ),
    "steps": (
        lambda: ta.SampleMemory(1).update(AT, ONE, torch.zeros(2, dtype=torch.int64)),
        ValueError,
        "SampleMemory.update: step must be an int or int64 of shape (1,), got int64 of shape (2,)",
    ),
    "step -1": (
        lambda: ta.SampleMemory(1).update(AT, ONE, -1),
        ValueError,
        "SampleMemory.update: step must be in [0, 2147483648), got -1",
    ),
    "field": (
        lambda: ta.SampleMemory(1, {"a": "last", "b": "last"})["c"],
        ValueError,
        "SampleMemory: field must be one of a, b, got 'c'",
    ),
    "iteration": (lambda: list(ta.SampleMemory(1)), TypeError, "'SampleMemory' object is not iterable"),
    "k": (lambda: ta.SampleMemory(1).top("loss", -1), ValueError, "SampleMemory.top: k must be at least 0, got -1"),
    "k 1.0": (lambda: ta.SampleMemory(1).top("loss", 1.0), TypeError, "SampleMemory.top: k must be an int, got float"),
    "state of other fields": (
        lambda: ta.SampleMemory(1).load_state_dict(ta.SampleMemory(1, {"loss": "max"}).state_dict()),
        ValueError,
        "SampleMemory.load_state_dict: state must have fields {'loss': 'last'}, got {'loss': 'max'}",
    ),
    "state of another n": (
        lambda: ta.SampleMemory(1).load_state_dict(ta.SampleMemory(2).state_dict()),
        ValueError,
        "SampleMemory.load_state_dict: state must have 'loss' as float32 (1,), got float32 (2,)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, kind, message = BAD[case]
    with pytest.raises(kind) as error:
        call()
    assert str(error.value).endswith(message)
    assert case == "iteration" or isinstance(error.value, (InputValueError, InputTypeError))


def test_a_refused_update_changes_nothing():
    memory = ta.SampleMemory(2)
    with pytest.raises(ValueError):
        memory.update(torch.tensor([0, 2]), {"loss": torch.ones(2)}, 0)
    assert memory["loss"].isnan().all() and not memory.visits.numpy().any()
    memory.update(torch.tensor([0]), ONE, 1)
    assert memory.visits.tolist() == [1, 0]
