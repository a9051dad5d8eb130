"""Scores of samples whose head is no softmax over classes."""

from __future__ import annotations

import torch
from torch import Tensor

from torchassay import reference
from torchassay.backends import choose, native
from torchassay.ops.memory import DTYPES, address, computed_in, current, place

torch.library.define(
    "torchassay::head_scores",
    "(Tensor input, Tensor target, Tensor? pos_weight, str head, float delta, str[] signals, str backend) -> Tensor[]",
)

_HEADS = ("binary", "mse", "l1", "huber")  # csrc/api.h, enum Head
_SLOTS = ("loss", "entropy", "grad_norm")  # csrc/api.h, enum Slot


def _rows(x: Tensor) -> Tensor:
    """As [N, L], the outputs of a sample dense in memory: a view where they are."""
    x = x.unsqueeze(-1) if x.dim() == 1 else x
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def _empty_outputs(input: Tensor, signals: list[str]) -> list[Tensor]:
    return [torch.empty(input.shape[:1], dtype=computed_in(input), device=input.device) for _ in signals]


def _head_scores(
    input: Tensor,
    target: Tensor,
    pos_weight: Tensor | None,
    head: str,
    delta: float,
    signals: list[str],
    backend: str,
) -> list[Tensor]:
    function = "score_binary" if head == "binary" else "score_regression"
    count, outputs = input.shape if input.dim() == 2 else (len(input), 1)
    backend = choose(function, input.device.type, input.dtype, outputs, backend)
    if backend == "reference":
        return reference.head_scores(input, target, pos_weight, head, delta, signals)
    scores = _empty_outputs(input, signals)
    if not scores or count == 0:
        return scores
    x, y = _rows(input), _rows(target.to(scores[0].dtype))
    if pos_weight is not None:
        pos_weight = pos_weight.to(y.dtype).expand(outputs).contiguous()
    slots = dict(zip(signals, scores, strict=True))
    out = [slots.get(name) for name in _SLOTS]
    if backend == "triton":
        from torchassay.triton_kernels.head_scores import head_scores

        with current(input):
            head_scores(x, y, pos_weight, head, delta, out)
        return scores
    call = (
        *(x.data_ptr(), DTYPES[x.dtype], count, outputs, x.stride(0), y.data_ptr(), y.stride(0)),
        *(address(pos_weight), _HEADS.index(head), delta),
        [address(score) for score in out],
    )
    if input.is_cuda:
        with current(input):
            native.cuda_head_scores(*call, *place(input))
    else:
        native.head_scores(*call, torch.get_num_threads())
    return scores


torch.library.impl("torchassay::head_scores", "CompositeExplicitAutograd", _head_scores)


@torch.library.register_fake("torchassay::head_scores")
def _(input, target, pos_weight, head, delta, signals, backend):
    return _empty_outputs(input, signals)


head_scores = torch.ops.torchassay.head_scores.default
