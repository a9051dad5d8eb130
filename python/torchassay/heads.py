"""Scores for heads that are no softmax over classes: independent labels, and regression."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchassay import checks, ops
from torchassay.backends import for_op
from torchassay.scores import Scores


def score_binary(
    input: Tensor,
    target: Tensor,
    *,
    pos_weight: Tensor | None = None,
    signals: Sequence[str] | str | None = None,
    backend: str | None = None,
) -> Scores:
    """Score every sample of a multi-label (or binary) classifier in one read; detached from the graph.

    Args:
        input: logits, [N] or [N, L] for L independent labels, float16, bfloat16, float32 or float64, any strides;
            never written to.
        target: the input's shape; 0 and 1, or probabilities, in any float or integer dtype or bool. It is taken as
            float32 (float64 for float64 input).
        pos_weight: [L] or 0-d, a float dtype: what a positive label counts, as in
            `F.binary_cross_entropy_with_logits`.
        signals: names among loss, entropy and grad_norm. Default: all three.
        backend: "native", "triton" or "reference" instead of the usual one.

    Returns:
        `Scores` with one tensor [N] a signal, float32 (float64 for float64 input), each a sum over the labels: nothing
        is divided by L. Loss and entropy are in nats. A sample with NaN or an infinite logit has NaN in every signal,
        as one with NaN in its target has in loss and grad_norm.

    Raises:
        ValueError: a shape, device or signal that does not fit.
        TypeError: a dtype that does not fit.
        RuntimeError: a forced backend that can't take the call.

    Signals, with p = sigmoid(x) of a label, y its target and w its pos_weight: loss = -sum w y log p + (1 - y) log(1 -
    p), as `F.binary_cross_entropy_with_logits` without reduction, summed; entropy = -sum p log p + (1 - p) log(1 - p);
    grad_norm = ||(1 - y) p - w y (1 - p)||_2, the norm of the loss's gradient by the logits: what EL2N (Paul et al.
    2021, section 2.2) and the upper bound of Katharopoulos and Fleuret (2018, eq. 20) become for this loss. For targets
    of 0 and 1 all keep their relative precision however sure the model is, until ``e^-|x|`` underflows; for others
    grad_norm is a difference, and as precise as what is subtracted.

    Example:
        >>> import torch, torchassay as ta
        >>> s = ta.score_binary(torch.tensor([[2.0, -1.0], [30.0, -40.0]]), torch.tensor([[1, 1], [1, 0]]))
        >>> [f"{value:.4g}" for value in s.loss.tolist()]
        ['1.44', '9.358e-14']
        >>> [f"{value:.4g}" for value in s.grad_norm.tolist()]
        ['0.7407', '9.358e-14']
    """
    names = checks.binary("score_binary", input, target, pos_weight, signals)
    with torch.no_grad():
        outputs = ops.head_scores(input, target, pos_weight, "binary", 1.0, names, for_op(backend))
    return Scores(dict(zip(names, outputs, strict=True)))


def score_regression(
    input: Tensor,
    target: Tensor,
    *,
    loss: str = "mse",
    delta: float = 1.0,
    signals: Sequence[str] | str | None = None,
    backend: str | None = None,
) -> Scores:
    """Score every sample of a regression in one read; detached from the graph.

    Args:
        input: predictions, [N] or [N, D], float16, bfloat16, float32 or float64, any strides; never written to.
        target: the input's shape, any float dtype. It is taken as float32 (float64 for float64 input).
        loss: "mse", "l1" or "huber".
        delta: > 0, where huber turns from a square into a line; in units of the input.
        signals: names among loss and grad_norm. Default: both.
        backend: "native", "triton" or "reference" instead of the usual one.

    Returns:
        `Scores` with one tensor [N] a signal, float32 (float64 for float64 input), over the D dimensions: nothing is
        divided by D. A sample with NaN has NaN in every signal.

    Raises:
        ValueError: a shape, device, signal, loss or delta that does not fit.
        TypeError: a dtype that does not fit.
        RuntimeError: a forced backend that can't take the call.

    Signals, with d = input - target: loss = sum d^2, ``sum |d|``, or the sum of `F.huber_loss`; grad_norm = the L2 norm
    of the loss's gradient by the input, which is 2 d, sign(d) (0 at d = 0), or d clamped to [-delta, delta]. A
    grad_norm in the dtype's range is right, also where the loss, a square, underflows or overflows.

    Example:
        >>> import torch, torchassay as ta
        >>> s = ta.score_regression(torch.tensor([[3.0, 0.0], [0.0, 0.5]]), torch.zeros(2, 2), loss="huber")
        >>> s.loss.tolist(), s.grad_norm.tolist()
        ([2.5, 0.125], [1.0, 0.5])
    """
    names = checks.regression("score_regression", input, target, loss, delta, signals)
    with torch.no_grad():
        outputs = ops.head_scores(input, target, None, loss, delta, names, for_op(backend))
    return Scores(dict(zip(names, outputs, strict=True)))
