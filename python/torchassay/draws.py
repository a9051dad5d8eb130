"""The signals of noisy logits, by the op of all draws."""

from __future__ import annotations

import torch
from torch import Tensor

from torchassay import ops, reference
from torchassay.backends import for_op
from torchassay.options import Noise, Options
from torchassay.philox import seed_parts


def noise_scores(
    function: str,
    input: Tensor,
    top: Tensor,  # the largest logit of every row, after a softcap
    noise: Noise,
    options: Options | None,
    dim: int,
    signals: int,
    backend: str | None,
) -> list[Tensor]:
    """The signals of ``signals`` over the draws of softmax((logits + noise) / temperature)."""
    options = options or Options()
    if options.softcap is not None:  # beside Philox and an exponential for every draw one pass more is little
        input = reference.capped(input if input.dtype == torch.float64 else input.float(), options.softcap)[0]
    inverse = reference.inverse_of(options.temperature)
    return ops.draw_scores(
        input,
        top.reshape(-1),
        *_number(noise.std),
        *_number(inverse),
        None if noise.row_id is None else noise.row_id.reshape(-1),
        *seed_parts(noise.seed),
        noise.draws,
        dim,
        signals,
        function,
        for_op(backend),
    )


def _number(value: float | Tensor) -> tuple[Tensor | None, float]:
    return (value.detach().reshape(-1), 1.0) if isinstance(value, Tensor) else (None, value)
