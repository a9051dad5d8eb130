"""Rows of logits that a linear head would give: the vendor's GEMM over chunks of the vocabulary, into one workspace.

With Triton their states come from a kernel that keeps the logits on the chip; all else goes by chunks there, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from torchassay import reference
from torchassay.backends import choose
from torchassay.ops.memory import computed_in, current, flat_target, flat_values
from torchassay.ops.options import OPTIONS, write_option_grads
from torchassay.ops.states import empty_states, merge_states, row_states
from torchassay.options import Options

_HEAD = "Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor? target"
_SLICE = "SymInt first, SymInt total, int ignore_index, SymInt columns, str function, str backend"
torch.library.define("torchassay::linear_states", f"({_HEAD}, {OPTIONS}, {_SLICE}) -> (Tensor, Tensor)")
torch.library.define(
    "torchassay::linear_grads",
    f"({_HEAD}, {OPTIONS}, Tensor stats, Tensor? grad_loss, Tensor? grad_entropy, bool of_input, bool of_weight,"
    f" bool of_bias, {_SLICE}) -> Tensor[]",
)
torch.library.define("torchassay::linear_squares", f"({_HEAD}, {OPTIONS}, Tensor stats, {_SLICE}) -> Tensor")


class _Chunks:
    """The logits [N, up to `columns`] of one chunk of the vocabulary after the other, in the same memory."""

    def __init__(self, input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, columns: int):
        self.input, self.weight, self.bias = input, linear_weight, linear_bias
        self.columns = min(columns, len(linear_weight))
        self.memory = self.empty()

    def empty(self) -> Tensor:
        """Memory for a chunk."""
        return torch.empty(len(self.input) * self.columns, dtype=self.input.dtype, device=self.input.device)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(self.weight), self.columns):
            at = slice(start, min(start + self.columns, len(self.weight)))
            logits = self.within(self.memory, at)
            transposed = self.weight[at].t()
            if self.bias is None:
                torch.mm(self.input, transposed, out=logits)
            else:
                torch.addmm(self.bias[at], self.input, transposed, out=logits)
            yield at, logits

    def within(self, memory: Tensor, at: slice) -> Tensor:
        """A chunk's place in such memory."""
        rows, columns = len(self.input), at.stop - at.start
        return memory[: rows * columns].view(rows, columns)


def _linear_states(
    input: Tensor,  # [N, D]
    linear_weight: Tensor,  # [V, D], the classes first to first + V of total
    linear_bias: Tensor | None,  # [V]
    target: Tensor | None,  # [N]
    weight: Tensor | None,  # [V]
    label_smoothing: float,
    temperature_rows: Tensor | None,
    temperature: float,
    softcap: float,
    z_loss: float,
    first: int,
    total: int,
    ignore_index: int,
    columns: int,  # of a chunk
    function: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    options = label_smoothing, temperature_rows, temperature, softcap, z_loss
    of_rows = input.stride(1) == linear_weight.stride(1) == 1
    if of_rows and choose(function, input.device.type, input.dtype, total, backend) == "triton":
        from torchassay.triton_kernels import linear_scores

        of_class, of_row = flat_values(weight, torch.float32), flat_values(temperature_rows, torch.float32)
        head = input, linear_weight, linear_bias, flat_target(target), ignore_index, first, total
        with current(input):
            states = linear_scores.linear_states(
                *head, of_class, label_smoothing, temperature if of_row is None else of_row, softcap
            )
        return merge_states(*states, None, *options, total, function, backend)
    parts = []
    for at, logits in _Chunks(input, linear_weight, linear_bias, columns):
        of_chunk = None if weight is None else weight[at]
        here = 1, first + at.start, total, ignore_index, function, backend
        parts.append(row_states(logits, target, of_chunk, *options, *here))
    if len(parts) == 1:
        return parts[0]
    numbers, k = (torch.stack(of_parts) for of_parts in zip(*parts, strict=True))
    return merge_states(numbers, k, None, *options, total, function, backend)


def _linear_grads(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    temperature_rows: Tensor | None,
    temperature: float,
    softcap: float,
    z_loss: float,
    stats: Tensor,  # [7, N]
    grad_loss: Tensor | None,  # [N]
    grad_entropy: Tensor | None,
    of_input: bool,
    of_weight: bool,
    of_bias: bool,
    first: int,
    total: int,
    ignore_index: int,
    columns: int,
    function: str,
    backend: str,
) -> list[Tensor]:
    """Those wanted of the gradients of input, linear_weight and linear_bias, in this order.

    That of input is a sum over classes, of which other processes may have more: it is not rounded to input's dtype.
    """
    options = label_smoothing, temperature_rows, temperature, softcap, z_loss
    found = _empty_grads(input, linear_weight, linear_bias, of_input, of_weight, of_bias)
    dx, dw, db = found
    if of_input:
        dx.zero_()
    chunks = _Chunks(input, linear_weight, linear_bias, columns)
    memory = chunks.empty()
    for at, logits in chunks:
        grad = chunks.within(memory, at)
        of_chunk = None if weight is None else weight[at]
        upstream = stats, grad_loss, grad_entropy
        here = 1, ignore_index, function, backend, first + at.start, total
        write_option_grads(grad, logits, target, of_chunk, *options, *upstream, *here)
        if of_input:
            _add_product(dx, grad, linear_weight[at])
        if of_weight:
            torch.mm(grad.t(), input, out=dw[at])
        if of_bias:
            db[at] = grad.sum(0, dtype=computed_in(grad))
    return [grad for grad in found if grad is not None]


def _add_product(sum: Tensor, a: Tensor, b: Tensor) -> None:
    """sum += a @ b, never rounded to the dtype of half-precision factors."""
    if sum.dtype == a.dtype:
        sum.addmm_(a, b)
    elif a.is_cuda:
        sum += torch.mm(a, b, out_dtype=sum.dtype)
    else:
        sum.addmm_(a.to(sum.dtype), b.to(sum.dtype))


def _empty_grads(input, linear_weight, linear_bias, of_input, of_weight, of_bias) -> list[Tensor | None]:
    dx = torch.empty(input.shape, dtype=computed_in(input), device=input.device) if of_input else None
    wanted = (of_weight, linear_weight), (of_bias, linear_bias)
    return [dx, *(torch.empty(t.shape, dtype=t.dtype, device=t.device) if asked else None for asked, t in wanted)]


def _linear_squares(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    temperature_rows: Tensor | None,
    temperature: float,
    softcap: float,
    z_loss: float,
    stats: Tensor,
    first: int,
    total: int,
    ignore_index: int,
    columns: int,
    function: str,
    backend: str,
) -> Tensor:
    """The sum of the squares of the loss's gradient by the logits, [N] float64."""
    options = label_smoothing, temperature_rows, temperature, softcap, z_loss
    squares = torch.zeros(len(input), dtype=torch.float64, device=input.device)
    one = torch.ones_like(stats[0])
    for at, logits in _Chunks(input, linear_weight, linear_bias, columns):
        start = at.start
        for part in logits.split(max(columns // 8, 1), 1):  # wide, its gradient, squares: at most a chunk
            wide = part.to(computed_in(part))
            grad = torch.empty(wide.shape, dtype=wide.dtype, device=wide.device)
            of_part = None if weight is None else weight[start : start + part.shape[1]]
            here = 1, ignore_index, function, backend, first + start, total
            write_option_grads(grad, wide, target, of_part, *options, stats, one, None, *here)
            squares += torch.linalg.vector_norm(grad, dim=1, dtype=torch.float64) ** 2
            start += part.shape[1]
    return squares


def mixture_states(
    copies: Callable[[int], Tensor],  # hidden states [N, D] of a draw
    stats: list[Tensor],  # [7, N] of each draw
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    options: Options,
    first: int,
    total: int,
    columns: int,
    function: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The states of logits whose softmax is the mean of the softmax of all draws: the mean's logarithm."""
    parts = []
    columns = max(columns // 8, 1)  # several tensors of this size, in float32 beside half precision
    for start in range(0, len(linear_weight), columns):
        at = slice(start, start + columns)
        mean = 0
        for draw, of_draw in enumerate(stats):
            bias = None if linear_bias is None else linear_bias[at]
            ((_, logits),) = _Chunks(copies(draw), linear_weight[at], bias, columns)
            wide, _ = reference.capped(logits.to(computed_in(logits)), options.softcap)
            m, _, _, r, *_ = of_draw.unsqueeze(-1)
            inverse = reference.by_class(reference.inverse_of(options.temperature))
            mean = mean + torch.exp(reference.scaled(wide - m, inverse)) / (1 + r)
        here = 1, first + start, total, -100, function, backend
        parts.append(row_states((mean / len(stats)).log(), None, None, 0.0, None, 1.0, 0.0, 0.0, *here))
    numbers, k = (torch.stack(of_parts) for of_parts in zip(*parts, strict=True))
    return merge_states(numbers, k, None, 0.0, None, 1.0, 0.0, 0.0, total, function, backend)


torch.library.impl("torchassay::linear_squares", "CompositeExplicitAutograd", _linear_squares)
torch.library.impl("torchassay::linear_states", "CompositeExplicitAutograd", _linear_states)
torch.library.impl("torchassay::linear_grads", "CompositeExplicitAutograd", _linear_grads)


@torch.library.register_fake("torchassay::linear_states")
def _(input, linear_weight, linear_bias, target, weight, label_smoothing, *_):
    return empty_states(input.shape[0], label_smoothing, computed_in(input), input.device)


@torch.library.register_fake("torchassay::linear_grads")
def _(input, linear_weight, linear_bias, target, weight, smoothing, rows, number, softcap, z_loss, *rest):
    _, _, _, *wanted = rest[:6]
    return [grad for grad in _empty_grads(input, linear_weight, linear_bias, *wanted) if grad is not None]


@torch.library.register_fake("torchassay::linear_squares")
def _(input, *_):
    return torch.empty(input.shape[0], dtype=torch.float64, device=input.device)


linear_squares = torch.ops.torchassay.linear_squares.default
linear_states = torch.ops.torchassay.linear_states.default
linear_grads = torch.ops.torchassay.linear_grads.default
