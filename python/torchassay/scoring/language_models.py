"""A causal language model taken apart: what comes before its head, and the head."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchassay import checks
from torchassay.scoring import models

_PROBE = 8  # tokens on which the parts are tried


class Parts(NamedTuple):
    """The logits are softcapped ``hidden @ weight.T + bias``, of the hidden states that ``body`` ends with."""

    body: nn.Module
    head: nn.Linear
    softcap: float | None

    def hidden(self, inputs: dict[str, Tensor]) -> Tensor:
        """[B, T, D], without a cache of keys and values."""
        return self.body(**models.taken(self.body, inputs), **models.uncached(self.body)).last_hidden_state


def split(model: nn.Module) -> Parts | None:
    """The parts of a causal LM with Hugging Face's names, ``base_model`` and ``get_output_embeddings()``, or None.

    Some models have more between the two than a softcap (a transform, a scale). So the parts are tried on a few tokens:
    they count only if they give the model's own logits.
    """
    embeddings = getattr(model, "get_output_embeddings", None)
    body = getattr(model, "base_model", None)
    head: Any = embeddings() if callable(embeddings) else None
    weight = getattr(head, "weight", None)
    if body is model or not isinstance(body, nn.Module) or not isinstance(weight, Tensor) or weight.dim() != 2:
        return None
    config = getattr(model, "config", None)
    config = getattr(config, "text_config", None) or config
    parts = Parts(body, head, getattr(config, "final_logit_softcapping", None))
    return parts if weight.dtype in checks.FLOATS and _agree(model, parts) else None


@torch.inference_mode()
def _agree(model: nn.Module, parts: Parts) -> bool:
    """Whether the model and its parts give the same logits for a few tokens; the caller sees to eval mode."""
    weight = parts.head.weight
    inputs = {"input_ids": torch.arange(_PROBE, device=weight.device)[None] % len(weight)}
    try:
        expected = model(**inputs, **models.uncached(model)).logits.float()
        logits = parts.head(parts.hidden(inputs)).float()
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError):
        return False
    if parts.softcap is not None:
        logits = parts.softcap * torch.tanh(logits / parts.softcap)
    if logits.shape != expected.shape:
        return False
    return bool((logits - expected).abs().max() <= 4 * torch.finfo(weight.dtype).eps * expected.abs().max())


def shifts(model: nn.Module) -> bool:
    """Whether token logits are those of the next token: unless Hugging Face gives the model another loss."""
    return getattr(model, "loss_type", None) in (None, "ForCausalLM")


def vocabulary(model: nn.Module) -> int | None:
    """How many tokens the model knows, if it says so."""
    embeddings = getattr(model, "get_input_embeddings", None)
    try:
        weight = getattr(embeddings(), "weight", None) if callable(embeddings) else None
    except (NotImplementedError, AttributeError):  # Hugging Face models whose input is no token
        return None
    return len(weight) if isinstance(weight, Tensor) else None
