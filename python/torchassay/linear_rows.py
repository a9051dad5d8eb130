"""The rows of logits that a linear head would give of hidden states, which are never held at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from torchassay import checks, ops, reference
from torchassay.agreement import contents
from torchassay.backends import for_op
from torchassay.history import History
from torchassay.linear_head import LinearScores
from torchassay.options import Noise, Options
from torchassay.part import Part
from torchassay.philox import Purpose, seed_parts
from torchassay.scores import BIT, ROW_BITS, TARGET_SIGNALS
from torchassay.slices import Call, finished
from torchassay.vocabulary import is_dtensor, refuse_dtensors

SEGMENT = 1024  # classes; a chunk of the vocabulary is a multiple of it
WORKSPACE = {"cpu": 32 << 20, "cuda": 512 << 20}  # bytes, unless a segment of all rows takes more


class LinearRows(Part):
    """Hidden states, and the linear head or this process's slice of one."""

    def __init__(
        self,
        function: str,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        target: Tensor | None,
        options: Options | None,
        ignore_index: int,
        backend: str | None,
        group: dist.ProcessGroup | None,
    ):
        layout = None
        if group is None and (is_dtensor(linear_weight) or is_dtensor(input)):
            from torchassay.dtensors import Layout

            layout = Layout.of_head(function, input, linear_weight)
        super().__init__(function, input, target, options, ignore_index, backend, group, layout)
        self.weight, self.bias = linear_weight, linear_bias
        self.counted: Tensor | None = None  # the rows that are computed; None: all

    def take(self) -> None:
        super().take()
        if self.layout is not None:
            self.input = self.layout.of_rows("input", self.input)
            self.weight = self.layout.slice("linear_weight", self.weight)
            self.bias = self.layout.slice("linear_bias", self.bias)
        elif self.group is not None:
            refuse_dtensors(self.function, linear_weight=self.weight, linear_bias=self.bias)

    def classes(self) -> int:
        return len(self.weight)

    def check(
        self,
        signals: Sequence[str] | str | None,
        most: int | None,
        *,
        differentiable: bool = True,
        reduction: str = "mean",
        skip_ignored: bool = False,
        history: History | None = None,
        noise: Noise | None = None,
    ) -> checks.Call:
        """The call, after every rank of a group has checked its own; the rows are flat from then on.

        Args:
            most: bytes for a chunk of logits and its gradient.
            differentiable: the target is needed, and ranks share the gradient of the hidden states.
            skip_ignored: leave out ignored rows, unless a signal is asked for that those have too.
        """

        def look() -> checks.Call:
            checks.reduced_by(self.function, reduction)
            extra = "" if history is None else checks.signal_of(history, self.function)
            of_rows = self.target, signals, self.options, self.ignore_index, extra, noise
            call = checks.linear(self.function, self.input, self.weight, self.bias, *of_rows, loss=differentiable)
            norm = call.signals & (BIT["grad_norm"] | BIT["weight_grad_norm"])
            swept = bool(norm) and self.options is not None and reference.needs_sweep(self.options)
            self._cut(self.input.shape[:-1].numel(), 2 if differentiable or swept else 1, most)
            if skip_ignored and set(call.names) <= set(TARGET_SIGNALS) and _may_wait(self.input):
                self.counted = (self.target.reshape(-1) != self.ignore_index).nonzero().squeeze(-1)
            return call

        def same() -> dict[str, object]:
            found = {
                "hidden features": self.input.shape[-1],
                "linear_bias": "none" if self.bias is None else "one",
                "reduction": reduction,
            }
            if differentiable:
                found["requires_grad of input"] = torch.is_grad_enabled() and self.input.requires_grad
            if self.counted is not None:
                found["number of rows that are not ignored"] = len(self.counted)
            if noise is not None:
                found |= {f"feature noise's {name}": contents(value) for name, value in noise._asdict().items()}
            return found

        call = self.agree(look, same)
        self.shape = self.input.shape[:-1]
        self.input = self.input.reshape(-1, self.input.shape[-1])
        self.target = None if self.target is None else self.target.reshape(-1)
        self.options = reference.flattened(self.options)
        return call

    def _cut(self, rows: int, buffers: int, most: int | None) -> None:
        """How many classes a chunk has: equal chunks, as few as the memory for logits and their gradient allows."""
        classes, rows = len(self.weight), max(rows, 1)
        segment = min(SEGMENT, classes)
        least = rows * segment * self.input.element_size() * buffers
        checks.workspace(self.function, most, least, segment, rows)
        if most is None:
            most = max(WORKSPACE.get(self.input.device.type, WORKSPACE["cuda"]), least)
        segments, fit = -(-classes // segment), most // least
        chunks = -(-segments // fit)
        self.columns = -(-segments // chunks) * segment

    def detach(self) -> None:
        self.input, self.weight = self.input.detach(), self.weight.detach()
        self.bias = None if self.bias is None else self.bias.detach()

    def scores(self, signals: int, differentiable: int) -> dict[str, Tensor]:
        """Signals of rows, shaped like them; rows that are not computed have 0."""
        input, target, options, counted = self.input, self.target, self.options, self.counted
        if counted is not None and len(counted) == len(input):
            counted = None
        if counted is not None:
            input, target = input[counted], target[counted]
            if isinstance(options.temperature, Tensor):
                options = options._replace(temperature=options.temperature[counted])
        head = input, self.weight, self.bias, target, *options.flat(), self.columns
        found = LinearScores.apply(*head, *self._call(signals, self.ignore_index), differentiable)
        if counted is not None:
            found = [rows.new_zeros(len(self.input)).index_copy(0, counted, rows) for rows in found]
        names = [name for name, bit in BIT.items() if signals & bit & ROW_BITS]
        return {name: rows.view(self.shape) for name, rows in zip(names, found, strict=True)}

    def noisy(self, noise: Noise, signals: int) -> dict[str, Tensor]:
        """The signals over copies of the hidden states with noise: each copy's entropy, and that of their mean."""
        call = self._call(BIT["entropy"], -100)
        first, total, *_ = self.vocabulary
        options = self.options._replace(weight=None, label_smoothing=0.0)  # of the loss alone
        copies = _Copies(self.input, noise, call.backend)
        head, how = (self.weight, self.bias), (self.columns, self.function, call.backend)
        of_draws, entropies = [], 0
        for draw in range(noise.draws):
            of_draw = copies(draw), *head, None, *options.flat()
            (entropy,), stats = finished(*ops.linear_states(*of_draw, first, total, -100, *how), None, options, call)
            entropies = entropies + entropy
            of_draws.append(stats)
        found = {"noisy_entropy": entropies / noise.draws}
        if signals & (BIT["predictive_entropy"] | BIT["mutual_information"]):
            states = ops.mixture_states(copies, of_draws, *head, options, first, total, *how)
            (found["predictive_entropy"],), _ = finished(*states, None, Options(), call)
            excess = found["predictive_entropy"] - found["noisy_entropy"]
            found["mutual_information"] = excess.clamp(min=0)
        return {name: rows.view(self.shape) for name, rows in found.items()}

    def feature_norm(self) -> Tensor:
        """What the norm of a gradient by a row's logits is multiplied by in that by the head's parameters."""
        wide = torch.float64 if self.input.dtype == torch.float64 else torch.float32
        norm = torch.linalg.vector_norm(self.input.detach(), dim=-1, dtype=wide).view(self.shape)
        return norm if self.bias is None else torch.hypot(norm, torch.ones_like(norm))

    def _call(self, signals: int, ignore_index: int) -> Call:
        return Call(ignore_index, signals, self.vocabulary, self.function, for_op(self.backend))


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


def _may_wait(input: Tensor) -> bool:
    """Whether the host may look at values: not in a trace, nor while a CUDA graph is captured."""
    if torch.compiler.is_compiling():
        return False
    return not (input.is_cuda and torch.cuda.is_current_stream_capturing())
