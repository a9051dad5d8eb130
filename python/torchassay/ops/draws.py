"""Scores over several draws: noisy copies of rows of logits, or the members of an ensemble."""

from __future__ import annotations

import torch
from torch import Tensor

from torchassay import reference
from torchassay.backends import choose, native
from torchassay.ops.memory import DTYPES, address, as_rows, computed_in, current, layout, place
from torchassay.scores import BIT, NOISY_SIGNALS

torch.library.define(  # SymInt: compiled code is not for one seed alone
    "torchassay::draw_scores",
    "(Tensor input, Tensor? top, Tensor? std, float std_number, Tensor? scale, float scale_number, Tensor? row_id,"
    " Tensor? seed_tensor, SymInt seed, int draws, int dim, int signals, str function, str backend) -> Tensor[]",
)


def _empty_outputs(input: Tensor, ensemble: bool, dim: int, signals: int) -> list[Tensor | None]:
    """One tensor for each of NOISY_SIGNALS, None where it was not asked for."""
    shape = input.shape[1 if ensemble else 0 : dim] + input.shape[dim + 1 :]
    dtype = computed_in(input)
    return [
        torch.empty(shape, dtype=dtype, device=input.device) if signals & BIT[name] else None for name in NOISY_SIGNALS
    ]


def _draw_scores(
    input: Tensor,  # [..., C, ...]; of an ensemble [draws, ..., C, ...]
    top: Tensor | None,  # [N], in the dtype that is computed in; None: an ensemble
    std: Tensor | None,  # [N], or None: std_number for all
    std_number: float,
    scale: Tensor | None,  # [N], or None: scale_number for all
    scale_number: float,
    row_id: Tensor | None,  # [N] int64; None: 0 to N - 1
    seed_tensor: Tensor | None,  # 0-d int64, instead of seed
    seed: int,
    draws: int,
    dim: int,
    signals: int,
    function: str,
    backend: str,
) -> list[Tensor]:
    backend = choose(function, input.device.type, input.dtype, input.shape[dim], backend)
    ensemble = top is None
    dtype = computed_in(input)
    std, scale = (n if n is None else n.to(dtype).contiguous() for n in (std, scale))
    if backend == "reference":
        std, scale = std_number if std is None else std, scale_number if scale is None else scale
        key = seed if seed_tensor is None else seed_tensor
        return reference.draw_scores(input, top, std, scale, row_id, key, draws, dim, signals)
    slots = _empty_outputs(input, ensemble, dim, signals)
    outputs = [output for output in slots if output is not None]
    if not outputs or input.numel() == 0:
        return outputs
    row_id = None if row_id is None else row_id.contiguous()
    stride, member, member_dim = 0, input, dim
    if ensemble:
        member, member_dim = input[0], dim - 1
    rows, *where = layout(member, member_dim)
    if ensemble:
        if rows.data_ptr() != input.data_ptr():  # it had to be copied: then so do all members
            input = input.movedim(dim, -1).contiguous()
            rows, *where = layout(input[0], input.dim() - 2)
        stride = input.stride(0)
    outer, inner, classes, *strides = where
    if backend == "triton":
        from torchassay.triton_kernels.draw_scores import draw_scores

        if ensemble:
            rows = input.as_strided((draws, outer, inner, classes), (stride, *strides, 1))
        else:
            rows = as_rows(rows, where)
        std, scale = std_number if std is None else std, scale_number if scale is None else scale
        flat = [output if output is None else output.view(-1) for output in slots]
        with current(input):
            draw_scores(rows, top, std, scale, row_id, seed_tensor, seed, draws, flat)
        return outputs

    call = (
        *(rows.data_ptr(), DTYPES[input.dtype], *where, draws, stride, address(top)),
        *(address(std), std_number, address(scale), scale_number, address(row_id), address(seed_tensor), seed),
        [address(output) for output in slots],
    )
    if input.is_cuda:
        device, stream = place(input)
        size = native.cuda_draw_scores_workspace(DTYPES[input.dtype], outer * inner, classes, draws, device)
        workspace = torch.empty(size, dtype=torch.uint8, device=input.device) if size else None
        with current(input):
            native.cuda_draw_scores(*call, address(workspace), device, stream)
    else:
        native.draw_scores(*call, torch.get_num_threads())
    return outputs


torch.library.impl("torchassay::draw_scores", "CompositeExplicitAutograd", _draw_scores)


@torch.library.register_fake("torchassay::draw_scores")
def _(
    input, top, std, std_number, scale, scale_number, row_id, seed_tensor, seed, draws, dim, signals, function, backend
):
    return [output for output in _empty_outputs(input, top is None, dim, signals) if output is not None]


draw_scores = torch.ops.torchassay.draw_scores.default
