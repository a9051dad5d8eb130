"""The public functions: doc, checks, one op call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
import torch.distributed as dist
from torch import Tensor

from torchassay import autograd, checks, ops, reference
from torchassay.backends import describe, for_op
from torchassay.draws import noise_scores
from torchassay.history import History
from torchassay.options import Options, given, noise_given
from torchassay.scores import BIT, ROW_BITS, SIGNALS, STATS, Scores
from torchassay.shards import Shard
from torchassay.vocabulary import is_dtensor


def score(
    input: Tensor,
    target: Tensor | None = None,
    *,
    signals: Sequence[str] | str | None = None,
    dim: int = -1,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    noise_std: float | Tensor = 0.0,
    noise_draws: int = 1,
    seed: int | Tensor = 0,
    row_id: Tensor | None = None,
    history: History | None = None,
    group: dist.ProcessGroup | None = None,
    backend: str | None = None,
) -> Scores:
    """Score every row of logits in one read; detached from the graph.

    Args:
        input: logits, [..., C] (classes at ``dim``), float16, bfloat16, float32 or float64, any strides; never
            written to.
        target: class indices, the input's shape without ``dim``, any integer dtype; or class probabilities of the
            input's shape; or None.
        signals: names among `torchassay.SIGNALS`. Default: loss, entropy and grad_norm with a target; entropy,
            confidence and margin without. What is not asked for is not computed.
        dim: the class dimension.
        weight: [C], class weights as in `F.cross_entropy`; they scale loss and grad_norm.
        ignore_index: rows with this target get exactly 0 in every signal that needs the target.
        label_smoothing: in [0, 1], as in `F.cross_entropy`.
        temperature: > 0, one number or a constant tensor of one a row: every signal is of softmax(input / temperature).
        softcap: > 0: the logits are softcap tanh(input / softcap) (Gemma 2, 2024), before the temperature; a class at
            -inf stays there.
        noise_std: >= 0, one number or a tensor of one a row: the signals noisy_entropy, predictive_entropy and
            mutual_information are those of ``noise_draws`` copies of the logits with normal noise of this deviation
            (after the softcap, before the temperature). The noise is a function of ``seed``, the row's id, the draw and
            the class alone: the same on every backend, however the batch is split.
        noise_draws: how many copies, >= 1.
        seed: a 64-bit int, or a 0-d int64 tensor on the input's device, which a CUDA graph reads anew in every replay.
        row_id: int64, the input's shape without ``dim``: what the noise of a row belongs to; the low 56 bits count.
            Default: 0, 1, 2, ...
        history: a `History`, which is given the values of its signal, ignored rows left out; the scores then also hold
            ``select_prob``, float32, the probability with which Selective-Backprop picks each row.
        group: a process group whose ranks hold slices of the classes, in the order of ranks: ``input`` and ``weight``
            are this rank's slice, of any size, and ``target``, which counts the classes of all, is the same on every
            rank, as is all else. Every rank gets the scores, and an error on one rank is an error on all. Not with
            noise or class probabilities. ``input`` may also be a DTensor sharded on its class dimension, which needs no
            group: then the scores are those of this process's rows. What is sent, and when a host waits for a GPU:
            docs/vocabulary_parallel.md.
        backend: "native", "triton" or "reference" instead of the usual one (see `explain`).

    Returns:
        `Scores` with one tensor a signal, shaped like the input without ``dim``: float32 (float64 for float64 input),
        ``prediction`` int64. Entropy and loss are in nats. A row with NaN or +inf, or of -inf only, has NaN in every
        float signal; a class at -inf has probability 0.

    Raises:
        ValueError: a shape, device, dimension, signal or value that does not fit, a target out of range (on the CPU;
            on a GPU such a row gives NaN, since looking would mean waiting for it).
        TypeError: a dtype that does not fit.
        RuntimeError: a forced backend that can't take the call.

    Signals: loss = -log p_y; entropy = -sum p log p; grad_norm = the norm of the loss's gradient by the input, whatever
    the options; without any it is ||softmax - onehot||_2, also known as EL2N (Paul et al. 2021, section 2.2) and as the
    upper bound of Katharopoulos and Fleuret (2018, eq. 20) for the last layer; margin = p_1st - p_2nd; gini = 1 -
    sum p^2, the Gini impurity (Breiman et al. 1984, chapter 4); target_margin = p_y - the largest other p; lse,
    confidence = max p, least_confidence = 1 - max p, prediction = argmax. Of the noisy copies: noisy_entropy = the mean
    of their entropies; predictive_entropy = the entropy of their mean softmax; mutual_information = what it exceeds
    that mean by (BALD, Houlsby et al. 2011).

    Example:
        >>> import torch, torchassay as ta
        >>> s = ta.score(torch.tensor([[2.0, 0.0], [0.0, 30.0]]), torch.tensor([0, 1]))
        >>> [f"{value:.4g}" for value in s.loss.tolist()]
        ['0.1269', '9.358e-14']
    """
    options = given(weight, label_smoothing, temperature, softcap)
    noise = noise_given(noise_std, noise_draws, seed, row_id)
    if group is not None or is_dtensor(input):
        shard = Shard("score", input, target, dim, options, ignore_index, backend, group)
        return shard.score(signals, noise, history)
    extra = "" if history is None else checks.signal_of(history, "score")
    call = checks.score("score", input, target, signals, dim, options, ignore_index, extra, SIGNALS, noise)
    input = input.detach() if input.requires_grad else input
    if noise is None:
        outputs = _outputs("score", input, target, call, options, ignore_index, backend, 0)
    else:
        of_rows = call._replace(signals=call.signals & ROW_BITS | STATS)
        *of_input, stats = _outputs("score", input, target, of_rows, options, ignore_index, backend, 0)
        of_draws = noise_scores("score", input, stats[0], noise, options, call.dim, call.signals & ~ROW_BITS, backend)
        outputs = [*of_input, *of_draws]
    scores = call.scores(outputs)
    return scores if history is None else call.with_probability(scores, outputs, history, target, ignore_index)


@overload
def cross_entropy(  # type: ignore[overload-overlap]  # of signals that may be empty mypy cannot know
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = ...,
    *,
    ignore_index: int = ...,
    reduction: str = ...,
    label_smoothing: float = ...,
    dim: int | None = ...,
    signals: tuple[()] = ...,
    temperature: float | Tensor = ...,
    softcap: float | None = ...,
    z_loss: float = ...,
    group: dist.ProcessGroup | None = ...,
    backend: str | None = ...,
) -> Tensor: ...
@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = ...,
    *,
    ignore_index: int = ...,
    reduction: str = ...,
    label_smoothing: float = ...,
    dim: int | None = ...,
    signals: Sequence[str] | str,
    temperature: float | Tensor = ...,
    softcap: float | None = ...,
    z_loss: float = ...,
    group: dist.ProcessGroup | None = ...,
    backend: str | None = ...,
) -> tuple[Tensor, Scores]: ...
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    dim: int | None = None,
    signals: Sequence[str] | str = (),
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    group: dist.ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Scores]:
    """`torch.nn.functional.cross_entropy`, exact for easy samples too, with the scores of the batch for free.

    Equivalent to ``F.cross_entropy(input, target, weight, ...)`` in shapes, dtypes, results and types of errors;
    everything after ``weight`` goes by keyword.

    Args:
        input: logits, [C], [N, C] or [N, C, d1, ...]; with ``dim=-1`` [..., C].
        target: class indices, the input's shape without the class dimension; or class probabilities of its shape.
        weight: [C], class weights.
        ignore_index: rows with this target have loss 0, gradient 0, and do not count in the mean.
        reduction: "none", "mean" (over rows not ignored, each counting as its class weight) or "sum".
        label_smoothing: in [0, 1].
        dim: the class dimension. None is torch's rule: 1, or 0 for a single sample.
        signals: names among `torchassay.SIGNALS`: also return the `Scores` of the batch, from the same read.
        temperature, softcap, group: as in `score`. With a group, or of a DTensor, there is no second derivative; the
            gradient of a DTensor is one too, and its mean and sum are over the rows of all processes.
        z_loss: >= 0: every row's loss grows by z_loss lse^2, its squared log-sum-exp (PaLM, Chowdhery et al. 2022,
            section 5), before the reduction.
        backend: "native", "triton" or "reference" instead of the usual one (see `explain`).

    Returns:
        The loss in the dtype `F.cross_entropy` gives, differentiable twice in ``input``; with ``signals`` the pair
        (loss, `Scores`), the scores unreduced and detached.

    Raises:
        As `score`.

    Example:
        >>> import torch, torchassay as ta
        >>> logits, target = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 0])
        >>> loss, s = ta.cross_entropy(logits, target, signals=("entropy", "grad_norm"))
        >>> f"{loss:.4f}", [f"{value:.4f}" for value in s.grad_norm.tolist()]
        ('1.5878', ['0.1686', '1.3471'])
    """
    function = "cross_entropy"
    options = given(weight, label_smoothing, temperature, softcap, z_loss)
    if group is not None or is_dtensor(input):
        shard = Shard(function, input, target, dim, options, ignore_index, backend, group)
        return shard.cross_entropy(signals, reduction)
    call = checks.cross_entropy(function, input, target, signals, dim, options, ignore_index, reduction)
    rows, *outputs = _outputs(function, input, target, call.with_loss(), options, ignore_index, backend, BIT["loss"])
    own = None if reduction != "mean" else reference.own_weight(weight, target, ignore_index)
    loss = reference.reduced(rows, input, target, own, ignore_index, reduction)
    if not signals:
        return loss
    if "loss" in call.names:
        outputs = [rows, *outputs]
    return loss, call.scores([output.detach() for output in outputs])


def log_prob(
    input: Tensor,
    target: Tensor,
    *,
    dim: int = -1,
    temperature: float | Tensor = 1.0,
    ignore_index: int = -100,
    backend: str | None = None,
) -> Tensor:
    """Log-probability of one class a row, or of several: ``log_softmax(input / temperature, dim).gather(dim, target)``.

    Args:
        input: logits, [..., C] (classes at ``dim``).
        target: class indices, [...], or [..., k]: the input's shape without ``dim`` and one more dimension.
        dim: the class dimension.
        temperature: > 0, one number or a constant tensor of one a row.
        ignore_index: a target with this value has log-probability 0 and no gradient.
        backend: "native", "triton" or "reference" instead of the usual one (see `explain`).

    Returns:
        Shaped like ``target``, float32 (float64 for float64 input), differentiable twice in ``input``.

    Raises:
        As `score`.
    """
    function = "log_prob"
    options = given(None, 0.0, temperature, None)
    dim, several = checks.log_prob(function, input, target, dim, options, ignore_index)
    if several:
        checks.class_range(function, target, input.shape[dim], ignore_index, target.shape[-1])
        by_row = None if options is None else temperature
        return autograd.LogProbs.apply(input, target, by_row, dim, ignore_index, function, for_op(backend))
    bits = BIT["loss"]
    return -_row_outputs(function, input, target, options, dim, ignore_index, bits, backend, bits)[0]


def log_prob_entropy(
    input: Tensor,
    target: Tensor,
    *,
    dim: int = -1,
    temperature: float | Tensor = 1.0,
    ignore_index: int = -100,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`log_prob` and `entropy` from one read of the logits, both differentiable: what policy-gradient losses need.

    Args and errors as in `log_prob`, with one class a row.

    Returns:
        (log-probability of ``target``, entropy of the row), each [...], float32 (float64 for float64 input). The
        entropy does not need the target: it is there for ignored rows too.
    """
    function = "log_prob_entropy"
    options = given(None, 0.0, temperature, None)
    dim, _ = checks.log_prob(function, input, target, dim, options, ignore_index, several=False)
    bits = BIT["loss"] | BIT["entropy"]
    loss, entropy = _row_outputs(function, input, target, options, dim, ignore_index, bits, backend, bits)
    return -loss, entropy


def entropy(input: Tensor, *, dim: int = -1, temperature: float | Tensor = 1.0, backend: str | None = None) -> Tensor:
    """Entropy of ``softmax(input / temperature, dim)`` in nats, differentiable twice in ``input``.

    Args:
        input: logits, [..., C] (classes at ``dim``).
        dim: the class dimension.
        temperature: > 0, one number or a constant tensor of one a row.
        backend: "native", "triton" or "reference" instead of the usual one (see `explain`).

    Returns:
        [...], float32 (float64 for float64 input).

    Raises:
        As `score`.
    """
    dim = checks.logits("entropy", input, dim)
    checks.temperatures("entropy", input, temperature, dim)
    options = given(None, 0.0, temperature, None)
    bits = BIT["entropy"]
    return _row_outputs("entropy", input, None, options, dim, -100, bits, backend, bits)[0]


def explain(
    input: Tensor,
    target: Tensor | None = None,
    *,
    signals: Sequence[str] | str | None = None,
    dim: int = -1,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    noise_std: float | Tensor = 0.0,
    noise_draws: int = 1,
    seed: int | Tensor = 0,
    row_id: Tensor | None = None,
    history: History | None = None,
    backend: str | None = None,
) -> str:
    """Say which backend `score` would take for these arguments, and why not each other one.

    Arguments and errors are those of `score`. One line for the backend it takes, one for each that cannot take them.
    """
    extra = "" if history is None else checks.signal_of(history, "explain")
    options = given(weight, label_smoothing, temperature, softcap)
    noise = noise_given(noise_std, noise_draws, seed, row_id)
    call = checks.score("explain", input, target, signals, dim, options, ignore_index, extra, SIGNALS, noise)
    return describe(input.device.type, input.dtype, input.shape[call.dim], backend or "")


def _outputs(
    function: str,
    input: Tensor,
    target: Tensor | None,
    call: checks.Call,
    options: Options | None,
    ignore_index: int,
    backend: str | None,
    differentiable: int,
) -> Sequence[Tensor]:
    if not call.plain and options is None:
        options = Options()  # class probabilities are a matter of the op with options
    return _row_outputs(function, input, target, options, call.dim, ignore_index, call.signals, backend, differentiable)


def _row_outputs(
    function: str,
    input: Tensor,
    target: Tensor | None,
    options: Options | None,
    dim: int,
    ignore_index: int,
    signals: int,
    backend: str | None,
    differentiable: int,  # bits of the signals that carry a gradient
) -> Sequence[Tensor]:
    backend = for_op(backend)
    if options is None:
        if input.requires_grad and torch.is_grad_enabled():
            return autograd.RowScores.apply(
                input, target, dim, ignore_index, signals, differentiable, function, backend
            )
        return ops.row_scores(input, target, dim, ignore_index, signals, function, backend)
    call = input, target, *options.flat(), dim, ignore_index, signals
    by_gradient = input.requires_grad or (target is not None and target.requires_grad)
    if by_gradient and differentiable and torch.is_grad_enabled():
        return autograd.OptionScores.apply(*call, differentiable, function, backend)
    return ops.option_scores(*call, function, backend)
