"""The public functions of hidden states and a linear head: the logits are never held at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from torchassay import checks, ops, reference
from torchassay.backends import for_op
from torchassay.history import History
from torchassay.linear_head import LinearScores
from torchassay.options import Noise, Options, given, noise_given
from torchassay.philox import Purpose, seed_parts
from torchassay.scores import BIT, ROW_BITS, TARGET_SIGNALS, Scores
from torchassay.slices import Call, finished
from torchassay.vocabulary import Facts, Vocabulary, agreed, local, plain

SEGMENT = 1024  # classes; a chunk of the vocabulary is a multiple of it
WORKSPACE = {"cpu": 32 << 20, "cuda": 512 << 20}  # bytes, unless a segment of all rows takes more


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
        group: a process group whose ranks hold the slices of the vocabulary in the order of ranks: ``linear_weight``,
            ``linear_bias`` and ``weight`` are this rank's, ``input`` and ``target``, which counts the classes of all,
            are the same on every rank. ``linear_weight`` may also be a DTensor sharded on its first dimension.

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
    function = "linear_score"
    options = given(weight, label_smoothing, temperature, softcap)
    noise = noise_given(feature_noise_std, feature_noise_draws, seed, row_id)
    extra = "" if history is None else checks.signal_of(history, function)
    target = plain(target)
    head = _Head(function, input, linear_weight, linear_bias, group)
    call = head.check(target, signals, options, ignore_index, max_workspace_bytes, 1, extra, noise)
    head.detach()
    asked = call.signals | (BIT["grad_norm"] if call.signals & BIT["weight_grad_norm"] else 0)
    bits, how = asked & ROW_BITS, (ignore_index, 0, backend)
    outputs = dict(zip(_names(bits), head.scores(target, options, bits, *how), strict=True)) if bits else {}
    if noise is not None:
        outputs |= head.noisy(noise, options, call.signals, backend)
    if call.signals & BIT["weight_grad_norm"]:
        outputs["weight_grad_norm"] = outputs["grad_norm"] * head.feature_norm()
    in_order = [outputs[name].view(input.shape[:-1]) for name in call.in_order]
    scores = call.scores(in_order)
    return scores if history is None else call.with_probability(scores, in_order, history, target, ignore_index)


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
            all ranks share, is summed over them.
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
    function = "linear_cross_entropy"
    input, linear_weight, linear_bias = _autocast(input, linear_weight, linear_bias)
    options = given(weight, label_smoothing, temperature, softcap, z_loss)
    target = plain(target)
    head = _Head(function, input, linear_weight, linear_bias, group)
    call = head.check(target, signals, options, ignore_index, max_workspace_bytes, 2, reduction=reduction)
    bits = (call.signals & ROW_BITS) | BIT["loss"]
    if call.signals & BIT["weight_grad_norm"]:
        bits |= BIT["grad_norm"]
    if set(call.names) <= set(TARGET_SIGNALS) and _may_wait(input):
        found = head.scores_of_counted(target, options, bits, ignore_index, BIT["loss"], backend)
    else:
        found = head.scores(target, options, bits, ignore_index, BIT["loss"], backend)
    outputs = dict(zip(_names(bits), (rows.view(target.shape) for rows in found), strict=True))
    own = None if weight is None or reduction != "mean" else head.vocabulary.own_weight(weight, target, ignore_index)
    loss = reference.reduced(outputs["loss"], input, target, own, ignore_index, reduction)
    if not signals:
        return loss
    if call.signals & BIT["weight_grad_norm"]:
        outputs["weight_grad_norm"] = outputs["grad_norm"] * head.feature_norm().view(target.shape)
    return loss, call.scores([outputs[name].detach() for name in call.in_order])


def linear_log_prob_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
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
    function = "linear_log_prob_entropy"
    input, linear_weight, linear_bias = _autocast(input, linear_weight, linear_bias)
    options = given(None, 0.0, temperature, None)
    target = plain(target)
    head = _Head(function, input, linear_weight, linear_bias, group)
    bits = BIT["loss"] | BIT["entropy"]
    head.check(target, (), options, ignore_index, max_workspace_bytes, 2)
    loss, entropy = head.scores(target, options, bits, ignore_index, bits, backend)
    return -loss.view(target.shape), entropy.view(target.shape)


class _Head:
    """Hidden states as rows, a linear head, and where its classes stand."""

    def __init__(self, function: str, input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, group):
        self.function, self.group = function, group
        self.weight, self.vocabulary = local(function, "linear_weight", linear_weight, 0, group)
        self.bias = linear_bias
        if self.vocabulary is not None:
            input = plain(input)
            self.bias, _ = local(function, "linear_bias", linear_bias, 0, group)
        self.input = input

    def check(
        self,
        target: Tensor | None,
        signals: Sequence[str] | str | None,
        options: Options | None,
        ignore_index: int,
        most: int | None,
        buffers: int,
        extra: str = "",
        noise: Noise | None = None,
        reduction: str = "mean",
    ) -> checks.Call:
        """The call, after every rank of a group has checked its own."""
        found = []
        function = self.function

        def check() -> Facts:
            if reduction not in ("none", "mean", "sum"):
                expected = "'none', 'mean' or 'sum'"
                raise checks.InputValueError(f"{function}: reduction must be {expected}, got {reduction!r}")
            checks.process_group(function, self.group)
            head = self.input, self.weight, self.bias
            call = checks.linear(function, *head, target, signals, options, ignore_index, extra, noise)
            found.append(call)
            rows, features = self.input.numel() // max(self.input.shape[-1], 1), self.input.shape[-1]
            self._cut(rows, buffers, most)
            numbers = None if options is None else [n for n in options[1:] if not isinstance(n, Tensor)]
            rest = self.input.dtype, call.signals, ignore_index, numbers, noise is None, target is None
            return Facts(rows, len(self.weight), features, rest)

        if self.vocabulary is None and self.group is not None and isinstance(self.group, dist.ProcessGroup):
            self.vocabulary = agreed(function, self.group, check)
        else:
            check()
        if self.vocabulary is None:
            self.vocabulary = Vocabulary(0, len(self.weight))
        self.input = self.input.reshape(-1, self.input.shape[-1])
        if target is not None:
            checks.class_range(function, target, self.vocabulary.total, ignore_index)
        return found[0]

    def _cut(self, rows: int, buffers: int, most: int | None) -> None:
        """How many classes a chunk has: equal chunks, as few as the memory for logits and their gradient allows."""
        classes, rows = len(self.weight), max(rows, 1)
        segment = min(SEGMENT, classes)
        least = rows * segment * self.input.element_size() * buffers
        checks.workspace(self.function, most, least, f"{segment} classes of {rows} rows")
        if most is None:
            most = max(WORKSPACE.get(self.input.device.type, WORKSPACE["cuda"]), least)
        segments, fit = -(-classes // segment), most // least
        chunks = -(-segments // fit)
        self.columns = -(-segments // chunks) * segment

    def detach(self) -> None:
        self.input, self.weight = self.input.detach(), self.weight.detach()
        self.bias = None if self.bias is None else self.bias.detach()

    def scores(
        self,
        target: Tensor | None,
        options: Options | None,
        signals: int,
        ignore_index: int,
        differentiable: int,
        backend: str | None,
        input: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Signals of rows, flat, in the order of their bits."""
        flat = target if target is None else target.reshape(-1)
        input = self.input if input is None else input
        call = Call(ignore_index, signals, self.vocabulary, self.function, for_op(backend))
        options = reference.flattened(options or Options())
        return LinearScores.apply(
            input, self.weight, self.bias, flat, *options.flat(), self.columns, *call, differentiable
        )

    def scores_of_counted(self, target: Tensor, options: Options | None, *call) -> tuple[Tensor, ...]:
        """The same where all of them need the target: only for rows that are not ignored, 0 for the others."""
        signals, ignore_index, *rest = call
        counted = (target.reshape(-1) != ignore_index).nonzero().squeeze(-1)
        if len(counted) == len(self.input):
            return self.scores(target, options, signals, ignore_index, *rest)
        options = reference.flattened(options or Options())
        if isinstance(options.temperature, Tensor):
            options = options._replace(temperature=options.temperature[counted])
        of_counted = target.reshape(-1)[counted]
        found = self.scores(of_counted, options, signals, ignore_index, *rest, self.input[counted])
        return tuple(rows.new_zeros(len(self.input)).index_copy(0, counted, rows) for rows in found)

    def noisy(self, noise: Noise, options: Options | None, signals: int, backend: str | None) -> dict[str, Tensor]:
        """The signals over copies of the hidden states with noise: each copy's entropy, and that of their mean."""
        options, by_op = reference.flattened(options or Options()), for_op(backend)
        call = Call(-100, BIT["entropy"], self.vocabulary, self.function, by_op)
        first, total, _ = self.vocabulary
        copies = _Copies(self.input, noise, by_op)
        head, how = (self.weight, self.bias), (first, total, self.columns, self.function, by_op)
        of_draws, entropies = [], 0
        for draw in range(noise.draws):
            numbers, k = ops.linear_states(
                copies(draw), *head, None, *options.flat(), first, total, -100, self.columns, self.function, by_op
            )
            (entropy,), stats = finished(numbers, k, None, options, call)
            entropies = entropies + entropy
            of_draws.append(stats)
        found = {"noisy_entropy": entropies / noise.draws}
        if signals & (BIT["predictive_entropy"] | BIT["mutual_information"]):
            numbers, k = ops.mixture_states(copies, of_draws, *head, options, *how)
            (found["predictive_entropy"],), _ = finished(numbers, k, None, Options(), call)
            excess = found["predictive_entropy"] - found["noisy_entropy"]
            found["mutual_information"] = excess.clamp(min=0)
        return found

    def feature_norm(self) -> Tensor:
        """What the norm of a gradient by the logits is multiplied by in that by the head's parameters, [N]."""
        wide = torch.float64 if self.input.dtype == torch.float64 else torch.float32
        norm = torch.linalg.vector_norm(self.input.detach(), dim=-1, dtype=wide)
        return norm if self.bias is None else torch.hypot(norm, torch.ones_like(norm))


class _Copies:
    """Hidden states with noise; each is made anew, so that no more than one is held."""

    def __init__(self, input: Tensor, noise: Noise, backend: str):
        self.input, self.noise, self.backend = input, noise, backend
        rows = torch.arange(len(input), device=input.device)
        self.row_id = rows if noise.row_id is None else noise.row_id.reshape(-1)
        self.std = noise.std.reshape(-1, 1) if isinstance(noise.std, Tensor) else noise.std

    def __call__(self, draw: int) -> Tensor:
        seed, purpose = seed_parts(self.noise.seed), Purpose.FEATURE_NOISE
        eps = ops.normals(self.row_id, *seed, purpose, draw, self.input.shape[1], False, self.backend)
        wide = self.input if self.input.dtype == torch.float64 else self.input.float()
        return (wide + self.std * eps.to(wide.dtype)).to(self.input.dtype)


def _names(bits: int) -> list[str]:
    return [name for name, bit in BIT.items() if bits & bit & ROW_BITS]


def _may_wait(input: Tensor) -> bool:
    """Whether the host may look at values: not in a trace, nor while a CUDA graph is captured."""
    if torch.compiler.is_compiling():
        return False
    return not (input.is_cuda and torch.cuda.is_current_stream_capturing())


def _autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The operands of a linear layer as autocast would take them."""
    kind = tensors[0].device.type if isinstance(tensors[0], Tensor) else "cpu"
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    dtype = torch.get_autocast_dtype(kind)
    cast = [t.to(dtype) if isinstance(t, Tensor) and t.dtype != torch.float64 else t for t in tensors]
    return cast
