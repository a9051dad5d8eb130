"""The public functions of hidden states and a linear head: the logits are never held at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch.distributed as dist
from torch import Tensor

from torchassay import checks, reference
from torchassay.history import History
from torchassay.linear_rows import LinearRows
from torchassay.options import given, noise_given
from torchassay.scores import BIT, ROW_BITS, Scores


def linear_score(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | None = None,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    signals: Sequence[str] | str | None = None,
    feature_noise_std: float | Tensor = 0.0,
    feature_noise_draws: int = 1,
    max_workspace_bytes: int | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    seed: int | Tensor = 0,
    row_id: Tensor | None = None,
    history: History | None = None,
    group: dist.ProcessGroup | None = None,
    backend: str | None = None,
) -> Scores:
    """`score` of ``F.linear(input, linear_weight, linear_bias)`` without holding these logits; detached.

    The logits are computed for some classes at a time, in the dtype of ``input``, as ``F.linear`` gives them (float32
    becomes TF32 only where torch is told to do so in general), and reduced to a few numbers a row.

    Args:
        input: hidden states, [..., D], float16, bfloat16, float32 or float64.
        linear_weight: [V, D], of the same dtype: ``lm_head.weight``.
        target: class indices, [...], or None.
        linear_bias: [V], or None.
        weight: [V], class weights.
        signals: names among `torchassay.LINEAR_SIGNALS`: those of `score` and weight_grad_norm.
        feature_noise_std: >= 0, one number or a tensor of one a row: the signals noisy_entropy, predictive_entropy and
            mutual_information are those of ``feature_noise_draws`` copies of the hidden states with normal noise of
            this deviation, a function of ``seed``, the row's id, the draw and the feature alone. Every copy is a
            product with ``linear_weight`` of its own; predictive_entropy and mutual_information take two.
        feature_noise_draws: how many copies, >= 1.
        max_workspace_bytes: at most so much memory for logits. Default: 32 MiB on the CPU, 512 MiB on a GPU, or what
            1024 classes of all rows take, if that is more.
        ignore_index, label_smoothing, temperature, softcap, seed, row_id, history, backend: as in `score`. With label
            smoothing and either class weights or a softcap, grad_norm takes the product with ``linear_weight`` twice.
        group: a process group whose ranks hold slices of the vocabulary, in the order of ranks: ``linear_weight``,
            ``linear_bias`` and ``weight`` are this rank's slice, of any size; ``input`` and ``target``, which counts
            the classes of all, are the same on every rank, as is all else. Every rank gets the scores, and an error on
            one rank is an error on all. ``linear_weight`` may also be a DTensor sharded on its first dimension, which
            needs no group, and ``input`` one that is replicated there. What is sent, and when a host waits for a GPU:
            docs/vocabulary_parallel.md.

    Returns:
        `Scores` with one tensor [...] a signal, as `score`; on every rank of a group all of them.

    Raises:
        ValueError, TypeError, RuntimeError: as `score`; also where D or V do not fit, the workspace is too small for
            1024 classes, or ranks of a group were given different things.

    weight_grad_norm is the norm of the loss's gradient by ``linear_weight`` (and ``linear_bias``, if there is one) of
    this row alone: ||p - y|| ||h||, with a bias ||p - y|| sqrt(||h||^2 + 1) (GraNd of the last layer, Paul et al. 2021,
    section 2.1).

    Example:
        >>> import torch, torchassay as ta
        >>> hidden, head = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.eye(2)
        >>> s = ta.linear_score(hidden, head, torch.tensor([0, 0]), signals=("loss", "weight_grad_norm"))
        >>> s.loss, s.weight_grad_norm
        (tensor([0.1269, 3.0486]), tensor([0.3372, 4.0414]))
    """
    options = given(weight, label_smoothing, temperature, softcap)
    noise = noise_given(feature_noise_std, feature_noise_draws, seed, row_id)
    input, linear_weight, linear_bias = reference.autocast(input, linear_weight, linear_bias)
    of_call = options, ignore_index, backend, group
    rows = LinearRows("linear_score", input, linear_weight, linear_bias, target, *of_call)
    call = rows.check(signals, max_workspace_bytes, differentiable=False, history=history, noise=noise)
    rows.detach()
    bits = _bits(call)
    outputs = rows.scores(bits, 0) if bits else {}
    if noise is not None:
        outputs |= rows.noisy(noise, call.signals)
    if call.signals & BIT["weight_grad_norm"]:
        outputs["weight_grad_norm"] = outputs["grad_norm"] * rows.feature_norm()
    in_order = [outputs[name] for name in call.in_order]
    scores = call.scores(in_order)
    if history is None:
        return scores
    of_rows = None if rows.target is None else rows.target.view(rows.shape)
    return call.with_probability(scores, in_order, history, of_rows, ignore_index)


@overload
def linear_cross_entropy(  # type: ignore[overload-overlap]  # of signals that may be empty mypy cannot know
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = ...,
    weight: Tensor | None = ...,
    reduction: str = ...,
    ignore_index: int = ...,
    label_smoothing: float = ...,
    signals: tuple[()] = ...,
    temperature: float | Tensor = ...,
    softcap: float | None = ...,
    z_loss: float = ...,
    max_workspace_bytes: int | None = ...,
    group: dist.ProcessGroup | None = ...,
    backend: str | None = ...,
) -> Tensor: ...
@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = ...,
    weight: Tensor | None = ...,
    reduction: str = ...,
    ignore_index: int = ...,
    label_smoothing: float = ...,
    signals: Sequence[str] | str,
    temperature: float | Tensor = ...,
    softcap: float | None = ...,
    z_loss: float = ...,
    max_workspace_bytes: int | None = ...,
    group: dist.ProcessGroup | None = ...,
    backend: str | None = ...,
) -> tuple[Tensor, Scores]: ...
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    signals: Sequence[str] | str = (),
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    max_workspace_bytes: int | None = None,
    group: dist.ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Scores]:
    """`cross_entropy` of ``F.linear(input, linear_weight, linear_bias)`` without holding these logits or their
    gradient, with the scores of the batch for free.

    Named as ``torch.nn.functional.linear_cross_entropy``, with class indices. Differentiable in input, linear_weight
    and linear_bias; the backward computes the logits once more, a few classes at a time. The gradient of ``input`` is
    summed in float32 over all classes and rounded once, that of ``linear_weight`` comes from one product a class.

    Args:
        input: hidden states, [..., D].
        linear_weight, linear_bias, weight, group: as in `linear_score`. With a group the gradient of ``input``, which
            all ranks share, is summed over them, in float32 too, and there is no second derivative. The gradients of
            DTensors are DTensors, and their mean and sum are over the rows of all processes.
        target: class indices, [...]. Rows with ``ignore_index`` are left out before any product with linear_weight,
            unless a signal is asked for that needs no target; counting them waits for a GPU once, and is left out while
            a CUDA graph is captured.
        reduction, ignore_index, label_smoothing, temperature, softcap, z_loss: as in `cross_entropy`.
        signals: names among `torchassay.LINEAR_SIGNALS`, but for those of noise: also return the `Scores`.
        max_workspace_bytes: at most so much memory for logits and their gradient; default as in `linear_score`.
        backend: "native", "triton" or "reference" instead of the usual one.

    Returns:
        As `cross_entropy`: the loss in the input's dtype, and with ``signals`` the pair (loss, `Scores`).

    Raises:
        As `linear_score`.
    """
    input, linear_weight, linear_bias = reference.autocast(input, linear_weight, linear_bias)
    of_call = given(weight, label_smoothing, temperature, softcap, z_loss), ignore_index, backend, group
    rows = LinearRows("linear_cross_entropy", input, linear_weight, linear_bias, target, *of_call)
    call = rows.check(signals, max_workspace_bytes, reduction=reduction, skip_ignored=True)
    outputs = rows.scores(_bits(call) | BIT["loss"], BIT["loss"])
    of_rows = rows.input, rows.target.view(rows.shape), rows.options.weight, ignore_index
    loss = rows.vocabulary.reduced(outputs["loss"], *of_rows, reduction)
    if not signals:
        return loss
    if call.signals & BIT["weight_grad_norm"]:
        outputs["weight_grad_norm"] = outputs["grad_norm"] * rows.feature_norm()
    return loss, call.scores([outputs[name].detach() for name in call.in_order])


def linear_log_prob_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    max_workspace_bytes: int | None = None,
    group: dist.ProcessGroup | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`log_prob_entropy` of ``F.linear(input, linear_weight, linear_bias)``, without holding these logits.

    Args and errors as in `linear_cross_entropy`.

    Returns:
        (log-probability of ``target``, entropy of the row), each [...], float32 (float64 for float64 input), both
        differentiable in input, linear_weight and linear_bias.
    """
    input, linear_weight, linear_bias = reference.autocast(input, linear_weight, linear_bias)
    of_call = given(None, 0.0, temperature, softcap), ignore_index, backend, group
    rows = LinearRows("linear_log_prob_entropy", input, linear_weight, linear_bias, target, *of_call)
    rows.check((), max_workspace_bytes)
    bits = BIT["loss"] | BIT["entropy"]
    found = rows.scores(bits, bits)
    return -found["loss"], found["entropy"]


def _bits(call: checks.Call) -> int:
    """The signals of rows that a call's signals take."""
    bits = call.signals & ROW_BITS
    return bits | BIT["grad_norm"] if call.signals & BIT["weight_grad_norm"] else bits
