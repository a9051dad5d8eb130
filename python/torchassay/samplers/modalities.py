"""``balance_scores``: what balance-aware sequence sampling measures of samples with several modalities."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torchassay import checks
from torchassay.functional import score
from torchassay.scores import Scores


def balance_scores(
    logits_per_modality: Sequence[Tensor],
    fused_logits: Tensor,
    target: Tensor,
    *,
    weights: Sequence[float] | None = None,
) -> Scores:
    """How well the modalities of each sample agree and how large its loss is: what BSS measures; detached.

    Args:
        logits_per_modality: the logits of each modality's own head, two or more, [N, C] each, float16, bfloat16,
            float32 or float64, any strides; never written to.
        fused_logits: those of the head on all modalities, [N, C].
        target: class indices [N] or class probabilities [N, C], as for `torchassay.score`.
        weights: what the losses count in the sum: the fused one's, then one a modality, each at least 0; best as in the
            loss that you train on. Default: 1 each. The authors' code has (0.1, 0.9, 0.9) for CREMA-D.

    Returns:
        `Scores` with "similarity", the cosine of two modalities' softmax outputs, the mean over all pairs, in [0, 1];
        and "loss", the weighted sum of cross-entropies in nats; [N] each, float32 (float64 for float64 logits). Both
        are sums of terms that are not negative, so they keep their relative precision however sure the heads are; a
        cosine below 1e-38 is 0 or has fewer digits. NaN as in `torchassay.score`.

    Raises:
        ValueError: fewer than two modalities, shapes or weights that do not fit, or what `score` raises.
        TypeError: a dtype that does not fit.

    The two criteria are "prediction similarity" and "training loss" of BSS (arXiv 2501.01470, IJCAI 2025); the mean
    over pairs is what the authors' code does with three modalities.

    Example:
        >>> import torch, torchassay as ta
        >>> audio, video = torch.tensor([[4.0, 0.0], [4.0, 0.0]]), torch.tensor([[5.0, 0.0], [0.0, 5.0]])
        >>> s = ta.samplers.balance_scores([audio, video], audio + video, torch.tensor([0, 0]))
        >>> [f"{value:.3f}" for value in s.similarity.tolist()], [f"{value:.3f}" for value in s.loss.tolist()]
        (['1.000', '0.025'], ['0.025', '6.338'])
    """
    weights = _check_balance_scores(logits_per_modality, fused_logits, target, weights)
    with torch.no_grad():
        pairs = itertools.combinations([_direction(logits) for logits in logits_per_modality], 2)
        cosines = torch.stack([(u * v).sum(-1) for u, v in pairs])
        similarity = cosines.mean(0).clamp_(max=1)  # rounding can exceed 1
        every = zip(weights, (fused_logits, *logits_per_modality), strict=True)
        losses = [weight * score(logits, target, signals="loss").loss for weight, logits in every if weight]
        loss = torch.stack(losses).sum(0)
    return Scores({"similarity": similarity, "loss": loss})


def _check_balance_scores(
    logits_per_modality: Sequence[Tensor], fused: Tensor, target: Tensor, weights: Sequence[float] | None
) -> Sequence[float]:
    """The checked weights."""
    function = "balance_scores"
    if isinstance(logits_per_modality, Tensor) or not isinstance(logits_per_modality, Sequence):
        expected, got = "a sequence of tensors", type(logits_per_modality).__name__
        raise checks.InputTypeError(f"{function}: logits_per_modality must be {expected}, got {got}")
    if len(logits_per_modality) < 2:
        expected = "those of at least two modalities"
        raise checks.InputValueError(
            f"{function}: logits_per_modality must be {expected}, got {len(logits_per_modality)}"
        )
    names = ["fused_logits", *(f"logits_per_modality[{i}]" for i in range(len(logits_per_modality)))]
    for name, logits in zip(names, (fused, *logits_per_modality), strict=True):
        checks.tensor(function, name, logits)
        if logits.dtype not in checks.FLOATS:
            expected, got = "float16, bfloat16, float32 or float64", checks.dtype_name(logits.dtype)
            raise checks.InputTypeError(f"{function}: {name} must be {expected}, got {got}")
        if logits.dim() != 2 or logits.shape != fused.shape:
            expected = "have shape (N, C)" if fused.dim() != 2 else f"have fused_logits' shape {tuple(fused.shape)}"
            raise checks.InputValueError(f"{function}: {name} must {expected}, got {tuple(logits.shape)}")
        if logits.device != fused.device:
            expected = f"on fused_logits' device, {fused.device}"
            raise checks.InputValueError(f"{function}: {name} must be {expected}, got {logits.device}")
    checks.score(function, fused, target, "loss", -1, None, -100)
    if weights is None:
        return [1.0] * len(names)
    if len(weights) != len(names):
        expected = f"{len(names)} numbers, the fused loss's and one a modality"
        raise checks.InputValueError(f"{function}: weights must be {expected}, got {len(weights)}")
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        expected = "at least 0, finite and not all 0"
        raise checks.InputValueError(f"{function}: weights must be {expected}, got {tuple(weights)}")
    return weights


def _direction(logits: Tensor) -> Tensor:
    """Softmax outputs over their length; what softmax divides by cancels."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    odds = torch.exp(wide - wide.amax(-1, keepdim=True))
    return odds / odds.norm(dim=-1, keepdim=True)
