"""``ensemble_score``: the scores of several draws of the same logits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from torchassay import checks, ops, reference
from torchassay.backends import for_op
from torchassay.scores import Scores


def ensemble_score(
    input: Tensor,
    target: Tensor | None = None,
    *,
    signals: Sequence[str] | str = ("predictive_entropy", "mutual_information"),
    draws_dim: int = 0,
    dim: int = -1,
    ignore_index: int = -100,
    backend: str | None = None,
) -> Scores:
    """Score every row of logits that was predicted several times: by noisy forwards, dropout or an ensemble; detached.

    Args:
        input: logits, [T, ..., C] (draws at ``draws_dim``, classes at ``dim``), float16, bfloat16, float32 or float64,
            any strides; never written to. T and C are at least 1.
        target: class indices, the input's shape without ``draws_dim`` and ``dim``, any integer dtype; or None.
        signals: names among `torchassay.SIGNALS` other than lse. What is not asked for is not computed.
        draws_dim: the dimension of the draws: forwards, or members of the ensemble.
        dim: the class dimension.
        ignore_index: rows with this target get exactly 0 in every signal that needs the target.
        backend: "native", "triton" or "reference" instead of the usual one (see `explain`).

    Returns:
        `Scores` with one tensor a signal, shaped like ``target``: float32 (float64 for float64 input), ``prediction``
        int64. Entropies, mutual information and loss are in nats. A row in which any draw has NaN or +inf, or only
        -inf, has NaN in every float signal; a class at -inf in a draw has probability 0 there.

    Raises:
        As `score`.

    Signals, with p_t the softmax of draw t and pbar = (1/T) sum_t p_t: noisy_entropy = (1/T) sum_t H(p_t);
    predictive_entropy = H(pbar); mutual_information = predictive_entropy - noisy_entropy, what the draws disagree about
    (BALD: Houlsby et al. 2011, arXiv 1112.5745; with dropout: Gal et al. 2017, arXiv 1703.02910).
    All others are those of pbar as the one prediction: loss = -log pbar_y; entropy = predictive_entropy; confidence =
    max pbar; and so on as in `score`. The first two are right to 1e-5 of themselves however confident a row, and so are
    the others but the differences: mutual_information to 1e-5 of predictive_entropy, the margins to 1e-5 of the
    larger of their two probabilities. The signals of pbar other than its entropy take a pass in plain torch first.

    Example:
        >>> import torch, torchassay as ta
        >>> agree, disagree = torch.tensor([[9.0, 0.0], [9.0, 0.0]]), torch.tensor([[9.0, 0.0], [0.0, 9.0]])
        >>> s = ta.ensemble_score(torch.stack([agree, disagree], dim=1))
        >>> [f"{value:.4f}" for value in s.predictive_entropy.tolist()]
        ['0.0012', '0.6931']
        >>> [f"{value:.4f}" for value in s.mutual_information.tolist()]
        ['0.0000', '0.6919']
    """
    function = "ensemble_score"
    call = checks.ensemble(function, input, target, signals, draws_dim, dim, ignore_index)
    members = input.detach().movedim(call.draws_dim, 0)
    backend = for_op(backend)
    noisy = mean = []
    if call.noisy:
        draws = None, None, 0.0, None, 1.0, None, None, 0, len(members)  # the members are the draws: nothing is added
        noisy = ops.draw_scores(members, *draws, call.dim, call.noisy, function, backend)
    if call.mean:
        log_probs = reference.mean_log_probs(members, call.dim)
        mean = ops.row_scores(log_probs, target, log_probs.dim() - 1, ignore_index, call.mean, function, backend)
    return call.scores(noisy, mean)
