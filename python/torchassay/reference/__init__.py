"""The definition of correct: every public function and op in plain torch, for any float dtype and any strides."""

from torchassay.reference.cdf import cdf
from torchassay.reference.functional import cross_entropy, entropy, log_prob, log_prob_entropy, reduced, score
from torchassay.reference.heads import head_scores, score_binary, score_regression
from torchassay.reference.options import option_scores
from torchassay.reference.rows import exp_difference, labels, row_grads, row_scores

__all__ = [
    "cdf",
    "cross_entropy",
    "entropy",
    "exp_difference",
    "head_scores",
    "labels",
    "log_prob",
    "log_prob_entropy",
    "option_scores",
    "reduced",
    "row_grads",
    "row_scores",
    "score",
    "score_binary",
    "score_regression",
]
