"""Every error message of the functions of linear heads, exactly."""

import messages
import pytest
import torch
import torchassay as ta
from torchassay.checks import InputValueError

H, W, Y = torch.zeros(4, 6), torch.zeros(9, 6), torch.tensor([0, 1, 2, 8])
FLOATS = "float16, bfloat16, float32 or float64"
OF_LOSSES = tuple(name for name in ta.LINEAR_SIGNALS if name not in ("noisy_entropy", "predictive_entropy"))
OF_LOSSES = ", ".join(name for name in OF_LOSSES if name != "mutual_information")
SCORE, LOSS, LOG_PROB = ta.linear_score, ta.linear_cross_entropy, ta.linear_log_prob_entropy

CASES = {
    # kinds and dtypes
    "input a list": ((SCORE, [1.0], W), TypeError, "linear_score: input must be a Tensor, got list"),
    "weight a list": ((LOSS, H, [1.0], Y), TypeError, "linear_cross_entropy: linear_weight must be a Tensor, got list"),
    "bias a number": (
        (LOSS, H, W, Y, {"linear_bias": 1.0}),
        TypeError,
        "linear_cross_entropy: linear_bias must be a Tensor, got float",
    ),
    "target a list": ((SCORE, H, W, [0] * 4), TypeError, "linear_score: target must be a Tensor, got list"),
    "no target": ((LOSS, H, W, None), TypeError, "linear_cross_entropy: target must be a Tensor, got NoneType"),
    "no target either": (
        (LOG_PROB, H, W, None),
        TypeError,
        "linear_log_prob_entropy: target must be a Tensor, got NoneType",
    ),
    "integer input": ((SCORE, H.long(), W), TypeError, f"linear_score: input must be {FLOATS}, got int64"),
    "integer weight": (
        (LOSS, H, W.int(), Y),
        TypeError,
        f"linear_cross_entropy: linear_weight must be {FLOATS}, got int32",
    ),
    "a weight of another dtype": (
        (SCORE, H, W.bfloat16()),
        TypeError,
        "linear_score: linear_weight must have input's dtype, float32, got bfloat16",
    ),
    "an input of another dtype": (
        (LOG_PROB, H.half(), W, Y),
        TypeError,
        "linear_log_prob_entropy: linear_weight must have input's dtype, float16, got float32",
    ),
    "a bias of another dtype": (
        (LOSS, H, W, Y, {"linear_bias": torch.zeros(9).double()}),
        TypeError,
        "linear_cross_entropy: linear_bias must have input's dtype, float32, got float64",
    ),
    "class probabilities": (
        (LOSS, H, W, torch.zeros(4, 9)),
        TypeError,
        "linear_cross_entropy: target must have an integer dtype (class indices), got float32",
    ),
    "ignore_index a float": (
        (SCORE, H, W, Y, {"ignore_index": 0.5}),
        TypeError,
        "linear_score: ignore_index must be an int, got float",
    ),
    # shapes
    "0-d input": (
        (SCORE, H[0, 0], W),
        ValueError,
        "linear_score: input must have shape (..., D), got a 0-d tensor",
    ),
    "another D": (
        (LOSS, H, W[:, :5], Y),
        ValueError,
        "linear_cross_entropy: linear_weight must have shape (V, 6), of input's last dimension, got (9, 5)",
    ),
    "a transposed weight": (
        (SCORE, H, W.t()),
        ValueError,
        "linear_score: linear_weight must have shape (V, 6), of input's last dimension, got (6, 9)",
    ),
    "a weight of one dimension": (
        (LOG_PROB, H, W[0], Y),
        ValueError,
        "linear_log_prob_entropy: linear_weight must have shape (V, 6), of input's last dimension, got (6,)",
    ),
    "no classes": (
        (SCORE, H, W[:0]),
        ValueError,
        "linear_score: linear_weight must have shape (V, 6), of input's last dimension, got (0, 6)",
    ),
    "another V of the bias": (
        (LOSS, H, W, Y, {"linear_bias": torch.zeros(8)}),
        ValueError,
        "linear_cross_entropy: linear_bias must have shape (9,), one number a class, got (8,)",
    ),
    "another V of the class weights": (
        (SCORE, H, W, Y, {"weight": torch.ones(8)}),
        ValueError,
        "linear_score: weight must have shape (9,), one number a class, got (8,)",
    ),
    "integer class weights": (
        (LOSS, H, W, Y, {"weight": torch.ones(9).long()}),
        TypeError,
        "linear_cross_entropy: weight must have a float dtype, got int64",
    ),
    "too few targets": (
        (LOSS, H, W, Y[:3]),
        ValueError,
        "linear_cross_entropy: target must have shape (4,), one class a row, got (3,)",
    ),
    "a target for every feature": (
        (SCORE, H, W, torch.zeros(6, dtype=torch.long)),
        ValueError,
        "linear_score: target must have shape (4,), one class a row, got (6,)",
    ),
    "several classes a row": (
        (LOG_PROB, H, W, Y[:, None].expand(4, 2)),
        ValueError,
        "linear_log_prob_entropy: target must have shape (4,), one class a row, got (4, 2)",
    ),
    "a weight elsewhere": (
        (SCORE, H, W.to("meta")),
        ValueError,
        "linear_score: linear_weight must be on input's device, cpu, got meta",
    ),
    "a target elsewhere": (
        (LOSS, H, W, Y.to("meta")),
        ValueError,
        "linear_cross_entropy: target must be on input's device, cpu, got meta",
    ),
    # values
    "class too large": (
        (SCORE, H, W, torch.tensor([0, 1, 9, 11])),
        ValueError,
        "linear_score: target must hold 0 <= class < 9 or ignore_index=-100, got class 9 at row 2",
    ),
    "class negative": (
        (LOSS, H, W, torch.tensor([0, -1, 2, 3]), {"ignore_index": 7}),
        ValueError,
        "linear_cross_entropy: target must hold 0 <= class < 9 or ignore_index=7, got class -1 at row 1",
    ),
    "class too large for both": (
        (LOG_PROB, H.view(2, 2, 6), W, torch.tensor([[0, 1], [2, 1 << 40]])),
        ValueError,
        f"linear_log_prob_entropy: target must hold 0 <= class < 9 or ignore_index=-100, got class {1 << 40} at row 3",
    ),
    "unknown reduction": (
        (LOSS, H, W, Y, {"reduction": "avg"}),
        ValueError,
        "linear_cross_entropy: reduction must be 'none', 'mean' or 'sum', got 'avg'",
    ),
    "smoothing above 1": (
        (LOSS, H, W, Y, {"label_smoothing": 1.5}),
        ValueError,
        "linear_cross_entropy: label_smoothing must be in [0, 1], got 1.5",
    ),
    "smoothing without a target": (
        (SCORE, H, W, {"label_smoothing": 0.1}),
        ValueError,
        "linear_score: weight and label_smoothing need a target, got none",
    ),
    "temperature of zero": (
        (LOG_PROB, H, W, Y, {"temperature": 0.0}),
        ValueError,
        "linear_log_prob_entropy: temperature must be finite and > 0, got 0.0",
    ),
    "temperatures of another shape": (
        (SCORE, H, W, {"temperature": torch.ones(9)}),
        ValueError,
        "linear_score: temperature must have shape (4,), one number a row, got (9,)",
    ),
    "a softcap of zero": (
        (LOSS, H, W, Y, {"softcap": 0.0}),
        ValueError,
        "linear_cross_entropy: softcap must be finite and > 0, got 0.0",
    ),
    "a negative z_loss": (
        (LOSS, H, W, Y, {"z_loss": -1.0}),
        ValueError,
        "linear_cross_entropy: z_loss must be finite and >= 0, got -1.0",
    ),
    # the workspace
    "a workspace too small for a score": (
        (SCORE, H, W, {"max_workspace_bytes": 4 * 9 * 4 - 1}),
        ValueError,
        "linear_score: max_workspace_bytes must be at least 144, for 9 classes of 4 rows, got 143",
    ),
    "a workspace too small for a loss": (
        (LOSS, H.bfloat16(), torch.zeros(3000, 6).bfloat16(), Y, {"max_workspace_bytes": 0}),
        ValueError,
        "linear_cross_entropy: max_workspace_bytes must be at least 16384, for 1024 classes of 4 rows, got 0",
    ),
    "a workspace too small for a norm that is swept": (
        (SCORE, H, W, Y, {"max_workspace_bytes": 144, "label_smoothing": 0.1, "softcap": 1.0}),
        ValueError,
        "linear_score: max_workspace_bytes must be at least 288, for 9 classes of 4 rows, got 144",
    ),
    "a workspace of a fraction": (
        (LOG_PROB, H, W, Y, {"max_workspace_bytes": 1e9}),
        TypeError,
        "linear_log_prob_entropy: max_workspace_bytes must be an int, got float",
    ),
    "a workspace or none": (
        (LOSS, H, W, Y, {"max_workspace_bytes": True}),
        TypeError,
        "linear_cross_entropy: max_workspace_bytes must be an int, got bool",
    ),
    # signals and noise
    "unknown signal": (
        (SCORE, H, W, {"signals": ("entropy", "los")}),
        ValueError,
        f"linear_score: signals must be among {', '.join(ta.LINEAR_SIGNALS)}; got 'los'",
    ),
    "a signal of noise of a loss": (
        (LOSS, H, W, Y, {"signals": "noisy_entropy"}),
        ValueError,
        f"linear_cross_entropy: signals must be among {OF_LOSSES}; got 'noisy_entropy'",
    ),
    "a signal that needs the target": (
        (SCORE, H, W, {"signals": "weight_grad_norm"}),
        ValueError,
        "linear_score: signal 'weight_grad_norm' needs a target, got none",
    ),
    "a signal that needs noise": (
        (SCORE, H, W, {"signals": ("entropy", "mutual_information")}),
        ValueError,
        "linear_score: signal 'mutual_information' needs feature_noise_std > 0, got 0.0",
    ),
    "negative noise": (
        (SCORE, H, W, {"feature_noise_std": -0.5}),
        ValueError,
        "linear_score: feature_noise_std must be finite and >= 0, got -0.5",
    ),
    "negative noise in a row": (
        (SCORE, H, W, {"feature_noise_std": torch.tensor([0.1, 0.1, -0.1, 0.1])}),
        ValueError,
        "linear_score: feature_noise_std must be finite and >= 0 in every row",
    ),
    "noise of another shape": (
        (SCORE, H, W, {"feature_noise_std": torch.ones(6)}),
        ValueError,
        "linear_score: feature_noise_std must have shape (4,), one number a row, got (6,)",
    ),
    "no draws": (
        (SCORE, H, W, {"feature_noise_std": 0.5, "feature_noise_draws": 0}),
        ValueError,
        "linear_score: feature_noise_draws must be >= 1, got 0",
    ),
    "ids of 32 bits": (
        (SCORE, H, W, {"feature_noise_std": 0.5, "row_id": torch.arange(4).int()}),
        TypeError,
        "linear_score: row_id must be int64, got int32",
    ),
    "ids of another shape": (
        (SCORE, H, W, {"feature_noise_std": 0.5, "row_id": torch.arange(9)}),
        ValueError,
        "linear_score: row_id must have shape (4,), one number a row, got (9,)",
    ),
    "a seed of 65 bits": (
        (SCORE, H, W, {"feature_noise_std": 0.5, "seed": 1 << 64}),
        ValueError,
        f"linear_score: seed must have 64 bits, got {1 << 64}",
    ),
    "no history": (
        (SCORE, H, W, {"history": 5}),
        TypeError,
        "linear_score: history must be a History, got int",
    ),
    "a history of a signal that needs the target": (
        (SCORE, H, W, {"history": ta.History(8, signal="loss"), "signals": "entropy"}),
        ValueError,
        "linear_score: signal 'loss' needs a target, got none",
    ),
    # where it runs
    "unknown backend": (
        (LOSS, H, W, Y, {"backend": "cuda"}),
        ValueError,
        "linear_cross_entropy: backend must be one of native, triton, reference, got 'cuda'",
    ),
    "no process group": (
        (SCORE, H, W, {"group": "world"}),
        TypeError,
        "linear_score: group must be a torch.distributed.ProcessGroup, got str",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_message(case):
    messages.check(CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_the_reference_module_checks_alike(case):
    """Same names, same signatures but for what it has no use of, same messages."""
    (function, *arguments), kind, message = CASES[case]
    given = arguments[-1] if isinstance(arguments[-1], dict) else {}
    if set(given) & {"max_workspace_bytes", "backend", "group"}:
        pytest.skip("the reference has no such argument")
    with pytest.raises(kind) as error:
        messages.call((getattr(ta.reference, function.__name__), *arguments))
    assert str(error.value) == message


@pytest.mark.parametrize("function", [SCORE, LOSS, LOG_PROB])
def test_the_least_workspace_is_enough(function):
    for least in range(0, 400, 4):
        try:
            function(H, W, Y, max_workspace_bytes=least)
            break
        except InputValueError:
            continue
    assert least == (144 if function is SCORE else 288)


def test_everything_after_the_target_goes_by_keyword():
    for function in (SCORE, LOSS, LOG_PROB):
        with pytest.raises(TypeError, match="positional"):
            function(H, W, Y, torch.zeros(9))


def test_out_of_range_is_no_wild_read(fast_place):
    """On the CPU nothing is returned; on a GPU, which can't look, the row is NaN."""
    for bad in (9, -1, -101, 1 << 40):
        y = torch.tensor([0, 4, bad, 8], device=fast_place.device)
        h = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).to(fast_place.device).requires_grad_()
        w = torch.randn(9, 6, generator=torch.Generator().manual_seed(2)).to(fast_place.device)
        if fast_place.device == "cpu":
            for function in (SCORE, LOSS, LOG_PROB):
                with pytest.raises(InputValueError, match=f"got class {bad} at row 2"):
                    function(h, w, y, backend=fast_place.backend)
            continue
        loss = LOSS(h, w, y, reduction="none", backend=fast_place.backend)
        (grad,) = torch.autograd.grad(loss[[0, 1, 3]].sum(), h)
        assert loss.isnan().tolist() == [False, False, True, False] and grad[[0, 1, 3]].isfinite().all()
