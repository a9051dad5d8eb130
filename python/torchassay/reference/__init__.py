"""The definition of correct: every public function and op in plain torch, for any float dtype and any strides."""

from torchassay.reference.cdf import cdf
from torchassay.reference.draws import draw_scores
from torchassay.reference.ensemble import ensemble_score, mean_log_probs
from torchassay.reference.functional import cross_entropy, entropy, log_prob, log_prob_entropy, reduced, score
from torchassay.reference.options import option_scores
from torchassay.reference.rows import exp_difference, labels, row_grads, row_scores

__all__ = [
    "cdf",
    "cross_entropy",
    "draw_scores",
    "ensemble_score",
    "entropy",
    "exp_difference",
    "labels",
    "log_prob",
    "log_prob_entropy",
    "mean_log_probs",
    "option_scores",
    "reduced",
    "row_grads",
    "row_scores",
    "score",
]
