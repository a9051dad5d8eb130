"""States of rows of which a slice of the classes is at hand, how they merge, and the scores of a row from them."""

from __future__ import annotations

import torch
from torch import Tensor

from torchassay import checks, reference
from torchassay.backends import choose, native
from torchassay.ops.memory import address, as_rows, computed_in, current, flat_target, flat_values, place
from torchassay.ops.options import OPTIONS, Inputs
from torchassay.ops.rows import asked_slots, by_slot, empty_outputs
from torchassay.options import Options
from torchassay.reference.options import STATS_ROWS
from torchassay.reference.states import NUMBERS, PLAIN

torch.library.define(
    "torchassay::row_states",
    f"(Tensor input, Tensor? target, {OPTIONS}, int dim, SymInt first, SymInt total, int ignore_index, str function,"
    " str backend) -> (Tensor, Tensor)",
)
torch.library.define(
    "torchassay::merge_states",
    f"(Tensor numbers, Tensor k, {OPTIONS}, SymInt total, str function, str backend) -> (Tensor, Tensor)",
)
torch.library.define(
    "torchassay::finish_states",
    f"(Tensor numbers, Tensor k, Tensor? target, {OPTIONS}, SymInt total, int ignore_index, int signals, str function,"
    " str backend) -> Tensor[]",
)


def empty_states(count: int, label_smoothing: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """A state's numbers and its k for ``count`` rows, to be written."""
    numbers = len(NUMBERS) if label_smoothing > 0 else PLAIN
    return torch.empty(numbers, count, dtype=dtype, device=device), torch.empty(count, dtype=torch.int64, device=device)


def _row_states(
    input: Tensor,
    target: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    temperature_rows: Tensor | None,
    temperature: float,
    softcap: float,
    z_loss: float,
    dim: int,
    first: int,
    total: int,
    ignore_index: int,
    function: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    backend = choose(function, input.device.type, input.dtype, total, backend)
    if backend == "reference":
        options = Options.of(weight, label_smoothing, temperature_rows, temperature, softcap, z_loss)
        return reference.row_states(input, target, options, dim, first, total, ignore_index)
    count = input.numel() // input.shape[dim]
    numbers, k = empty_states(count, label_smoothing, computed_in(input), input.device)
    if count == 0:
        return numbers, k
    given = Inputs(input, target, weight, temperature_rows, dim, backend)
    if backend == "triton":
        from torchassay.triton_kernels.row_states import row_states

        by_row = temperature if given.temperature is None else given.temperature.view(-1)
        with current(input):
            row_states(
                as_rows(given.rows, given.where),
                *(given.labels, ignore_index, first, total, given.weight, label_smoothing, by_row, softcap),
                *(numbers, k),
            )
        return numbers, k
    call = (
        *given.addresses(input, ignore_index, label_smoothing, (temperature, softcap, z_loss)),
        *(first, total, numbers.data_ptr(), k.data_ptr()),
    )
    if input.is_cuda:
        device, stream = place(input)
        size = native.cuda_row_states_workspace(call[1], count, given.where[2], device)
        workspace = torch.empty(size, dtype=torch.uint8, device=input.device) if size else None
        with current(input):
            native.cuda_row_states(*call, address(workspace), device, stream)
    else:
        native.row_states(*call, torch.get_num_threads())
    return numbers, k


def _merge_states(
    numbers: Tensor,
    k: Tensor,
    weight: Tensor | None,
    label_smoothing: float,
    temperature_rows: Tensor | None,
    temperature: float,
    softcap: float,
    z_loss: float,
    total: int,
    function: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    backend = choose(function, numbers.device.type, numbers.dtype, total, backend)
    if backend == "reference":
        options = Options.of(weight, label_smoothing, temperature_rows, temperature, softcap, z_loss)
        return reference.merge_states(numbers, k, options)
    out, k_out = empty_states(k.shape[1], label_smoothing, numbers.dtype, numbers.device)
    if k.shape[1] == 0:
        return out, k_out
    temperatures = flat_values(temperature_rows, numbers.dtype)
    if backend == "triton":
        from torchassay.triton_kernels.row_states import merge_states

        with current(numbers):
            merge_states(numbers, k, temperature if temperatures is None else temperatures, softcap, out, k_out)
        return out, k_out
    call = (
        *_addresses(numbers, k),
        *(address(temperatures), temperature, softcap, out.data_ptr(), k_out.data_ptr()),
    )
    if numbers.is_cuda:
        with current(numbers):
            native.cuda_merge_states(*call, *place(numbers))
    else:
        native.merge_states(*call, torch.get_num_threads())
    return out, k_out


def _finish_states(
    numbers: Tensor,
    k: Tensor,
    target: Tensor | None,
    weight: Tensor | None,  # [N], of the targets' classes
    label_smoothing: float,
    temperature_rows: Tensor | None,
    temperature: float,
    softcap: float,
    z_loss: float,
    total: int,
    ignore_index: int,
    signals: int,
    function: str,
    backend: str,
) -> list[Tensor]:
    backend = choose(function, numbers.device.type, numbers.dtype, total, backend)
    if target is not None and (backend != "native" or numbers.is_cuda):
        checks.class_range(function, target, total, ignore_index)
    if backend == "reference":
        options = Options.of(weight, label_smoothing, temperature_rows, temperature, softcap, z_loss)
        return reference.finish_states(numbers, k, target, weight, options, total, ignore_index, signals)
    asked = asked_slots(signals)
    outputs = _empty_outputs(numbers, asked)
    if k.shape[1] == 0 or not outputs:
        return outputs
    target, weight = flat_target(target), flat_values(weight, numbers.dtype)
    temperatures = flat_values(temperature_rows, numbers.dtype)
    if backend == "triton":
        from torchassay.triton_kernels.row_states import finish_states

        slots = by_slot(asked, outputs, None)
        by_row = temperature if temperatures is None else temperatures
        with current(numbers):
            finish_states(
                *(numbers, k, target, ignore_index, total, weight, label_smoothing, by_row, softcap, z_loss, slots)
            )
        return outputs
    pointers = by_slot(asked, (output.data_ptr() for output in outputs), 0)
    call = (
        *_addresses(numbers, k),
        *(address(target), target is not None and target.dtype == torch.int64, ignore_index, total),
        *(address(weight), label_smoothing, address(temperatures), temperature, softcap, z_loss, pointers),
    )
    if numbers.is_cuda:
        with current(numbers):
            native.cuda_finish_states(*call, *place(numbers))
        return outputs
    bad_row = native.finish_states(*call, torch.get_num_threads())
    if bad_row >= 0:
        checks.out_of_range(function, target, bad_row, total, ignore_index)
    return outputs


def _addresses(numbers: Tensor, k: Tensor) -> tuple:
    """States [P, 7 or 10, N] and [P, N], dense, as csrc/bindings.cpp takes them."""
    parts, count = k.shape
    return numbers.data_ptr(), k.data_ptr(), parts, count, numbers.dtype == torch.float64, numbers.shape[1] > PLAIN


def _empty_outputs(numbers: Tensor, asked: tuple[int, ...]) -> list[Tensor]:
    return empty_outputs(numbers[:, 0], 0, asked, STATS_ROWS)  # [P, N]: the parts are gone


torch.library.impl("torchassay::row_states", "CompositeExplicitAutograd", _row_states)
torch.library.impl("torchassay::merge_states", "CompositeExplicitAutograd", _merge_states)
torch.library.impl("torchassay::finish_states", "CompositeExplicitAutograd", _finish_states)


@torch.library.register_fake("torchassay::row_states")
def _(input, target, weight, label_smoothing, rows, number, softcap, z_loss, dim, *_):
    return empty_states(input.numel() // input.shape[dim], label_smoothing, computed_in(input), input.device)


@torch.library.register_fake("torchassay::merge_states")
def _(numbers, k, weight, label_smoothing, *_):
    return empty_states(k.shape[1], label_smoothing, numbers.dtype, numbers.device)


@torch.library.register_fake("torchassay::finish_states")
def _(numbers, k, target, weight, smoothing, rows, number, softcap, z_loss, total, ignore_index, signals, *_):
    return _empty_outputs(numbers, asked_slots(signals))


row_states = torch.ops.torchassay.row_states.default
merge_states = torch.ops.torchassay.merge_states.default
finish_states = torch.ops.torchassay.finish_states.default
