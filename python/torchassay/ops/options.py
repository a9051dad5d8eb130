"""Scores of rows of logits under the options of a loss, or for class probabilities, and their gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from torchassay import checks, reference
from torchassay.backends import choose, native
from torchassay.ops.memory import (
    DTYPES,
    address,
    as_rows,
    computed_in,
    current,
    empty_grad,
    empty_rows,
    flat_target,
    layout,
    native_layout,
    place,
    with_classes_last,
)
from torchassay.ops.rows import STATS_SLOT, asked_slots, by_slot, empty_outputs
from torchassay.options import Options
from torchassay.reference.options import STATS_ROWS

OPTIONS = (
    "Tensor? weight, float label_smoothing, Tensor? temperature_rows, float temperature, float softcap, float z_loss"
)
torch.library.define(
    "torchassay::option_scores",
    f"(Tensor input, Tensor? target, {OPTIONS}, int dim, int ignore_index, int signals, str function, str backend)"
    " -> Tensor[]",
)
torch.library.define(
    "torchassay::option_grads",
    f"(Tensor input, Tensor? target, {OPTIONS}, Tensor stats, Tensor? grad_loss, Tensor? grad_entropy, int dim,"
    " int ignore_index, str function, str backend, SymInt first=0, SymInt total=0) -> Tensor",
)


class Inputs:
    """A call's tensors as the kernels read them: dense, and in the dtype that they compute in."""

    def __init__(
        self,
        input: Tensor,
        target: Tensor | None,
        weight: Tensor | None,
        temperature: Tensor | None,
        dim: int,
        backend: str,
    ):
        dtype = computed_in(input)
        self.rows, *self.where = native_layout(input, dim) if backend == "native" else layout(input, dim)
        self.labels = self.probabilities = None
        if target is not None and target.is_floating_point():
            target = target.detach()
            if backend != "native" or input.is_cuda:
                self.probabilities = target.movedim(dim, -1).to(dtype).contiguous()
            else:
                self.probabilities = _like(target, empty_rows(input, dim, dtype))
        else:
            self.labels = flat_target(target)
        self.weight = None if weight is None else weight.detach().to(dtype).contiguous()
        self.temperature = None if temperature is None else temperature.detach().to(dtype).contiguous()

    def addresses(self, input: Tensor, ignore_index: int, label_smoothing: float, numbers: tuple[float, ...]) -> tuple:
        """Rows, targets and options as csrc/bindings.cpp takes them; the tensors must outlive the call."""
        wide = self.labels is not None and self.labels.dtype == torch.int64
        return (
            *(self.rows.data_ptr(), DTYPES[input.dtype], *self.where, address(self.labels), wide, ignore_index),
            *(address(self.weight), address(self.probabilities), label_smoothing, address(self.temperature)),
            *numbers,
        )


def _like(values: Tensor, empty: Tensor) -> Tensor:
    """The values as the empty tensor would hold them, which is filled where they are not so already."""
    same = values.dtype == empty.dtype and values.stride() == empty.stride()
    return values if same else empty.copy_(values)


def _option_scores(
    input: Tensor,
    target: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    temperature_rows: Tensor | None,
    temperature: float,
    softcap: float,
    z_loss: float,
    dim: int,
    ignore_index: int,
    signals: int,
    function: str,
    backend: str,
) -> list[Tensor]:
    backend = choose(function, input.device.type, input.dtype, input.shape[dim], backend)
    labelled = target is not None and not target.is_floating_point()
    if labelled and backend != "native":
        checks.class_range(function, target, input.shape[dim], ignore_index)
    if backend == "reference":
        options = Options.of(weight, label_smoothing, temperature_rows, temperature, softcap, z_loss)
        return reference.option_scores(input, target, options, dim, ignore_index, signals)
    asked = asked_slots(signals)
    outputs = empty_outputs(input, dim, asked, STATS_ROWS)
    if not outputs or input.numel() == 0:
        return outputs
    given = Inputs(input, target, weight, temperature_rows, dim, backend)
    if backend == "triton":
        from torchassay.triton_kernels.option_scores import option_scores

        flat = (
            output.view(STATS_ROWS, -1) if slot == STATS_SLOT else output.view(-1)
            for slot, output in zip(asked, outputs, strict=True)
        )
        slots = by_slot(asked, flat, None)
        by_row = temperature if given.temperature is None else given.temperature.view(-1)
        with current(input):
            option_scores(
                as_rows(given.rows, given.where),
                *(given.labels, given.probabilities, given.weight, label_smoothing, by_row, softcap, z_loss),
                *(ignore_index, slots),
            )
        return outputs
    pointers = by_slot(asked, (output.data_ptr() for output in outputs), 0)
    call = *given.addresses(input, ignore_index, label_smoothing, (temperature, softcap, z_loss)), pointers
    if input.is_cuda:
        device, stream = place(input)
        outer, inner, classes = given.where[:3]
        size = native.cuda_option_scores_workspace(DTYPES[input.dtype], outer * inner, classes, device)
        workspace = torch.empty(size, dtype=torch.uint8, device=input.device) if size else None
        with current(input):
            native.cuda_option_scores(*call, address(workspace), device, stream)
        return outputs
    bad_row = native.option_scores(*call, torch.get_num_threads())
    if bad_row >= 0:
        checks.out_of_range(function, given.labels, bad_row, input.shape[dim], ignore_index)
    return outputs


def write_option_grads(
    grad: Tensor,  # as `empty_grad` would be
    input: Tensor,
    target: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    temperature_rows: Tensor | None,
    temperature: float,
    softcap: float,
    z_loss: float,
    stats: Tensor,
    grad_loss: Tensor | None,
    grad_entropy: Tensor | None,
    dim: int,
    ignore_index: int,
    function: str,
    backend: str,
    first: int = 0,  # the input's classes are those from here on
    total: int = 0,  # of so many; 0: there are no others
) -> None:
    """The op option_grads, into memory that is there."""
    total = total or input.shape[dim]
    backend = choose(function, input.device.type, input.dtype, total, backend)
    if backend == "reference":
        options = Options.of(weight, label_smoothing, temperature_rows, temperature, softcap, z_loss)
        upstream = grad_loss, grad_entropy
        grad.copy_(reference.option_grads(input, target, options, stats, *upstream, dim, ignore_index, first, total))
        return
    if grad.numel() == 0:
        return
    given = Inputs(input, None if grad_loss is None else target, weight, temperature_rows, dim, backend)
    upstream = [None if g is None else g.to(stats.dtype).reshape(-1) for g in (grad_loss, grad_entropy)]
    if backend == "triton":
        from torchassay.triton_kernels.option_grads import option_grads

        by_row = temperature if given.temperature is None else given.temperature.view(-1)
        with current(input), with_classes_last(grad, dim) as out:
            option_grads(
                as_rows(given.rows, given.where),
                *(given.labels, given.probabilities, given.weight, label_smoothing, by_row, softcap),
                *(stats.view(STATS_ROWS, -1), *upstream, ignore_index, first, total, out),
            )
        return
    call = (
        *given.addresses(input, ignore_index, label_smoothing, (temperature, softcap, z_loss)),
        stats.data_ptr(),
        *(number for g in upstream for number in ((0, 0) if g is None else (g.data_ptr(), g.stride(0)))),
        *(grad.data_ptr(), first, total),
    )
    if input.is_cuda:
        with current(input):
            native.cuda_option_grads(*call, *place(input))
    else:
        native.option_grads(*call, torch.get_num_threads())


def _option_grads(
    input, target, weight, smoothing, rows, number, softcap, z_loss, stats, grad_loss, grad_entropy, dim, *call
) -> Tensor:
    grad = empty_grad(input, dim)
    options = weight, smoothing, rows, number, softcap, z_loss
    write_option_grads(grad, input, target, *options, stats, grad_loss, grad_entropy, dim, *call)
    return grad


torch.library.impl("torchassay::option_scores", "CompositeExplicitAutograd", _option_scores)
torch.library.impl("torchassay::option_grads", "CompositeExplicitAutograd", _option_grads)


@torch.library.register_fake("torchassay::option_scores")
def _(input, target, weight, label_smoothing, rows, number, softcap, z_loss, dim, ignore_index, signals, *_):
    return empty_outputs(input, dim, asked_slots(signals), STATS_ROWS)


@torch.library.register_fake("torchassay::option_grads")
def _(input, target, weight, label_smoothing, rows, number, softcap, z_loss, stats, grad_loss, grad_entropy, dim, *_):
    return empty_grad(input, dim)


option_scores = torch.ops.torchassay.option_scores.default
option_grads = torch.ops.torchassay.option_grads.default
