"""The definition of correct: every public function and op in plain torch, for any float dtype and any strides."""

from torchassay.reference.cdf import cdf
from torchassay.reference.draws import draw_scores
from torchassay.reference.ensemble import ensemble_score, mean_log_probs
from torchassay.reference.functional import (
    cross_entropy,
    entropy,
    log_prob,
    log_prob_entropy,
    own_weight,
    reduced,
    score,
)
from torchassay.reference.heads import head_scores, score_binary, score_regression
from torchassay.reference.options import capped, inverse_of, option_grads, option_scores
from torchassay.reference.rows import by_class, exp_difference, labels, row_grads, row_scores, scaled
from torchassay.reference.selection import top_fraction
from torchassay.reference.states import finish_states, flattened, merge_states, needs_sweep, row_states

__all__ = [
    "by_class",
    "capped",
    "cdf",
    "cross_entropy",
    "draw_scores",
    "ensemble_score",
    "entropy",
    "exp_difference",
    "finish_states",
    "flattened",
    "head_scores",
    "inverse_of",
    "labels",
    "log_prob",
    "log_prob_entropy",
    "mean_log_probs",
    "merge_states",
    "needs_sweep",
    "option_grads",
    "option_scores",
    "own_weight",
    "reduced",
    "row_grads",
    "row_scores",
    "row_states",
    "scaled",
    "score",
    "score_binary",
    "score_regression",
    "top_fraction",
]
