"""Every error message, exactly; and nothing half done when one is raised. Types of errors: test_cross_entropy.py."""

import messages
import pytest
import torch
import torchassay as ta
from torchassay.checks import InputTypeError, InputValueError
from torchassay.scores import ROW_SIGNALS

X, Y = torch.zeros(4, 21, 8, 8), torch.zeros(4, 8, 8, dtype=torch.long)
ROWS, LABELS = torch.zeros(4, 5), torch.tensor([0, 1, 2, 3])
NAMES = ", ".join(ta.SIGNALS)
FLOATS = "float16, bfloat16, float32 or float64"

CASES = {
    # argument kinds
    "input not a tensor": ((ta.score, [1.0]), TypeError, "score: input must be a Tensor, got list"),
    "target not a tensor": ((ta.score, ROWS, [0] * 4), TypeError, "score: target must be a Tensor, got list"),
    "no target": ((ta.cross_entropy, ROWS, None), TypeError, "cross_entropy: target must be a Tensor, got NoneType"),
    "integer logits": ((ta.score, ROWS.long()), TypeError, f"score: input must be {FLOATS}, got int64"),
    "bool logits": ((ta.entropy, ROWS > 0), TypeError, f"entropy: input must be {FLOATS}, got bool"),
    "float labels": (
        (ta.score, ROWS, LABELS.float()),
        TypeError,
        "score: target must have an integer dtype (class indices), got float32",
    ),
    "integer probabilities": (
        (ta.score, ROWS, ROWS.long()),
        TypeError,
        "score: target must have a float dtype where it has input's shape (class probabilities), got int64",
    ),
    "ignore_index not an int": (
        (ta.log_prob, ROWS, LABELS, {"ignore_index": 1.5}),
        TypeError,
        "log_prob: ignore_index must be an int, got float",
    ),
    "ignore_index a bool": (
        (ta.score, ROWS, LABELS, {"ignore_index": True}),
        TypeError,
        "score: ignore_index must be an int, got bool",
    ),
    # shapes
    "0-d input": (
        (ta.score, ROWS[0, 0]),
        ValueError,
        "score: input must have a class dimension, got a 0-d tensor",
    ),
    "no classes": (
        (ta.score, torch.zeros(3, 0)),
        ValueError,
        "score: input must have at least one class, got shape (3, 0)",
    ),
    "dim too large": (
        (ta.entropy, ROWS, {"dim": 2}),
        ValueError,
        "entropy: dim must be in [-2, 1] for an input of shape (4, 5), got 2",
    ),
    "dim too small": (
        (ta.score, ROWS, {"dim": -3}),
        ValueError,
        "score: dim must be in [-2, 1] for an input of shape (4, 5), got -3",
    ),
    "another class dimension": (
        (ta.score, X, Y),
        ValueError,
        "score: target has shape (4, 8, 8) but input (4, 21, 8, 8) without dim -1 is (4, 21, 8); did you mean dim=1?",
    ),
    "classes last": (
        (ta.cross_entropy, torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.long)),
        ValueError,
        "cross_entropy: target has shape (2, 3) but input (2, 3, 5) without dim -2 is (2, 5); did you mean dim=-1?",
    ),
    "classes first": (
        (ta.log_prob, torch.zeros(5, 4), LABELS),
        ValueError,
        "log_prob: target has shape (4,) but input (5, 4) without dim -1 is (5,); did you mean dim=0?",
    ),
    "mismatched N": (
        (ta.score, ROWS, LABELS[:3]),
        ValueError,
        "score: target has shape (3,) but input (4, 5) without dim -1 is (4,)",
    ),
    "wrong rank": (
        (ta.log_prob_entropy, ROWS, LABELS.view(4, 1, 1)),
        ValueError,
        "log_prob_entropy: target has shape (4, 1, 1) but input (4, 5) without dim -1 is (4,)",
    ),
    "several classes where one is asked": (
        (ta.log_prob_entropy, ROWS, LABELS[:, None].expand(4, 2)),
        ValueError,
        "log_prob_entropy: target must have shape (4,), one class a row, got (4, 2)",
    ),
    "probabilities of another shape": (
        (ta.score, ROWS, torch.rand(3, 5)),
        ValueError,
        "score: target must have input's shape (4, 5) where it holds class probabilities, got (3, 5)",
    ),
    # values
    "class too large": (
        (ta.score, ROWS, torch.tensor([0, 1, 5, 9])),
        ValueError,
        "score: target must hold 0 <= class < 5 or ignore_index=-100, got class 5 at row 2",
    ),
    "class negative": (
        (ta.cross_entropy, ROWS, torch.tensor([0, -1, 2, 3]), {"ignore_index": 7}),
        ValueError,
        "cross_entropy: target must hold 0 <= class < 5 or ignore_index=7, got class -1 at row 1",
    ),
    "class out of range among several": (
        (ta.log_prob, ROWS, torch.tensor([[0, 1], [2, 3], [4, 5], [0, 0]])),
        ValueError,
        "log_prob: target must hold 0 <= class < 5 or ignore_index=-100, got class 5 at row 2",
    ),
    "ignore_index with probabilities": (
        (ta.cross_entropy, ROWS, ROWS.softmax(1), {"ignore_index": 3}),
        ValueError,
        "cross_entropy: ignore_index must be negative where target holds class probabilities, got 3",
    ),
    "unknown reduction": (
        (ta.cross_entropy, ROWS, LABELS, {"reduction": "avg"}),
        ValueError,
        "cross_entropy: reduction must be 'none', 'mean' or 'sum', got 'avg'",
    ),
    "smoothing above 1": (
        (ta.score, ROWS, LABELS, {"label_smoothing": 1.5}),
        ValueError,
        "score: label_smoothing must be in [0, 1], got 1.5",
    ),
    "smoothing below 0": (
        (ta.cross_entropy, ROWS, LABELS, {"label_smoothing": -0.5}),
        ValueError,
        "cross_entropy: label_smoothing must be in [0, 1], got -0.5",
    ),
    # signals
    "unknown signal": (
        (ta.score, ROWS, {"signals": ("entropy", "los")}),
        ValueError,
        f"score: signals must be among {NAMES}; got 'los'",
    ),
    "signal without its target": (
        (ta.score, ROWS, {"signals": "grad_norm"}),
        ValueError,
        "score: signal 'grad_norm' needs a target, got none",
    ),
    "signal of class indices": (
        (ta.score, ROWS, ROWS.softmax(1), {"signals": "target_margin"}),
        ValueError,
        "score: signal 'target_margin' needs class indices, got class probabilities",
    ),
    "weight without a target": (
        (ta.score, ROWS, {"weight": torch.ones(5)}),
        ValueError,
        "score: weight and label_smoothing need a target, got none",
    ),
    # weight
    "weight not a tensor": (
        (ta.cross_entropy, ROWS, LABELS, {"weight": [1.0] * 5}),
        TypeError,
        "cross_entropy: weight must be a Tensor, got list",
    ),
    "integer weight": (
        (ta.cross_entropy, ROWS, LABELS, {"weight": torch.ones(5, dtype=torch.long)}),
        TypeError,
        "cross_entropy: weight must have a float dtype, got int64",
    ),
    "weight of another shape": (
        (ta.score, ROWS, LABELS, {"weight": torch.ones(4)}),
        ValueError,
        "score: weight must have shape (5,), one number a class, got (4,)",
    ),
    # temperature, softcap, z_loss
    "temperature of zero": (
        (ta.score, ROWS, {"temperature": 0.0}),
        ValueError,
        "score: temperature must be finite and > 0, got 0.0",
    ),
    "a negative temperature among them": (
        (ta.log_prob, ROWS, LABELS, {"temperature": torch.tensor([1.0, -1.0, 1.0, 1.0])}),
        ValueError,
        "log_prob: temperature must be finite and > 0 in every row",
    ),
    "temperature no number": (
        (ta.entropy, ROWS, {"temperature": "hot"}),
        TypeError,
        "entropy: temperature must be a number or a Tensor of one a row, got str",
    ),
    "temperatures of another shape": (
        (ta.log_prob_entropy, ROWS, LABELS, {"temperature": torch.ones(5)}),
        ValueError,
        "log_prob_entropy: temperature must have shape (4,), one number a row, got (5,)",
    ),
    "integer temperatures": (
        (ta.cross_entropy, ROWS, LABELS, {"temperature": torch.ones(4, dtype=torch.long)}),
        TypeError,
        "cross_entropy: temperature must have a float dtype where it is a tensor, got int64",
    ),
    "a temperature to be learned": (
        (ta.cross_entropy, ROWS, LABELS, {"temperature": torch.ones(4, requires_grad=True)}),
        ValueError,
        "cross_entropy: temperature must not require grad: it is a constant here; detach it",
    ),
    "softcap of zero": (
        (ta.score, ROWS, {"softcap": 0.0}),
        ValueError,
        "score: softcap must be finite and > 0, got 0.0",
    ),
    "softcap no number": (
        (ta.score, ROWS, {"softcap": True}),
        TypeError,
        "score: softcap must be a number, got bool",
    ),
    "negative z_loss": (
        (ta.cross_entropy, ROWS, LABELS, {"z_loss": -1e-4}),
        ValueError,
        "cross_entropy: z_loss must be finite and >= 0, got -0.0001",
    ),
    # noise
    "negative noise": (
        (ta.score, ROWS, {"noise_std": -0.1}),
        ValueError,
        "score: noise_std must be finite and >= 0, got -0.1",
    ),
    "negative noise in a row": (
        (ta.score, ROWS, {"noise_std": torch.tensor([0.0, 1.0, -1.0, 1.0])}),
        ValueError,
        "score: noise_std must be finite and >= 0 in every row",
    ),
    "a noisy signal without noise": (
        (ta.score, ROWS, {"signals": ("entropy", "noisy_entropy")}),
        ValueError,
        "score: signal 'noisy_entropy' needs noise_std > 0, got 0.0",
    ),
    "a noisy signal of a loss": (
        (ta.cross_entropy, ROWS, LABELS, {"signals": "noisy_entropy"}),
        ValueError,
        f"cross_entropy: signals must be among {', '.join(ta.scores.ROW_SIGNALS)}; got 'noisy_entropy'",
    ),
    "no draws": (
        (ta.score, ROWS, {"noise_std": 1.0, "noise_draws": 0}),
        ValueError,
        "score: noise_draws must be >= 1, got 0",
    ),
    "half a draw": (
        (ta.score, ROWS, {"noise_std": 1.0, "noise_draws": 0.5}),
        TypeError,
        "score: noise_draws must be an int, got float",
    ),
    "row ids of another shape": (
        (ta.score, ROWS, {"noise_std": 1.0, "row_id": torch.arange(5)}),
        ValueError,
        "score: row_id must have shape (4,), one number a row, got (5,)",
    ),
    "row ids of another dtype": (
        (ta.score, ROWS, {"noise_std": 1.0, "row_id": torch.arange(4).int()}),
        TypeError,
        "score: row_id must be int64, got int32",
    ),
    "a seed of 65 bits": (
        (ta.score, ROWS, {"noise_std": 1.0, "seed": 1 << 64}),
        ValueError,
        f"score: seed must have 64 bits, got {1 << 64}",
    ),
    "a seed elsewhere": (
        (ta.score, ROWS, {"noise_std": 1.0, "seed": torch.tensor(1, device="meta")}),
        ValueError,
        "score: seed must be on input's device, cpu, got meta",
    ),
    # devices
    "target elsewhere": (
        (ta.score, ROWS, LABELS.to("meta")),
        ValueError,
        "score: target must be on input's device, cpu, got meta",
    ),
    "probabilities elsewhere": (
        (ta.cross_entropy, ROWS, ROWS.to("meta")),
        ValueError,
        "cross_entropy: target must be on input's device, cpu, got meta",
    ),
    "weight elsewhere": (
        (ta.cross_entropy, ROWS, LABELS, {"weight": torch.ones(5, device="meta")}),
        ValueError,
        "cross_entropy: weight must be on input's device, cpu, got meta",
    ),
    # backends
    "unknown backend": (
        (ta.score, ROWS, {"backend": "cuda"}),
        ValueError,
        "score: backend must be one of native, triton, reference, got 'cuda'",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_message(case):
    messages.check(CASES[case])


@pytest.mark.parametrize("name", ["score", "cross_entropy", "log_prob", "log_prob_entropy", "entropy"])
def test_the_reference_module_checks_alike(name):
    """Same name, same signature, same messages."""
    message = f"{name}: input must be {FLOATS}, got int64"
    arguments = (ROWS.long(),) if name in ("score", "entropy") else (ROWS.long(), LABELS)
    for module in (ta, ta.reference):
        with pytest.raises(InputTypeError) as error:
            getattr(module, name)(*arguments)
        assert str(error.value) == message


@pytest.mark.parametrize("bad", [5, -1, -101, 1 << 40])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=["int64", "int32"])
def test_case_19_out_of_range_is_no_wild_read(bad, dtype, place):
    """On the CPU the first bad row is named and nothing is returned; on a GPU, which can't look, the row is NaN."""
    if dtype == torch.int32 and bad == 1 << 40:
        pytest.skip("not an int32")
    y = torch.tensor([0, 4, bad, bad, 1], dtype=dtype, device=place.device)
    x = torch.randn(5, 5, generator=torch.Generator().manual_seed(90)).to(place.device).requires_grad_()
    calls = [
        ("score", lambda: ta.score(x, y, signals=ROW_SIGNALS, backend=place.backend)),
        ("cross_entropy", lambda: ta.cross_entropy(x, y, reduction="none", backend=place.backend)),
        ("log_prob", lambda: ta.log_prob(x, y, backend=place.backend)),
        ("log_prob_entropy", lambda: ta.log_prob_entropy(x, y, backend=place.backend)[0]),
    ]
    for name, function in calls:
        if place.device == "cpu":
            with pytest.raises(InputValueError) as error:
                function()
            expected = f"0 <= class < 5 or ignore_index=-100, got class {bad} at row 2"
            assert str(error.value) == f"{name}: target must hold {expected}"
        elif name == "score":
            assert function().loss.isnan().tolist() == [False, False, True, True, False]
        else:
            out = function()
            (grad,) = torch.autograd.grad(out[[0, 1, 4]].sum() + out[2:4].nansum(), x)
            assert out.isnan().tolist() == [False, False, True, True, False]
            assert grad[[0, 1, 4]].isfinite().all()


def test_out_of_range_rows_are_counted_over_all_row_dimensions():
    with pytest.raises(ValueError) as error:
        ta.score(torch.zeros(2, 3, 5), torch.tensor([[0, 1, 2], [3, 7, 4]]), backend="reference")
    expected = "score: target must hold 0 <= class < 5 or ignore_index=-100, got class 7 at row 4"
    assert str(error.value) == expected
