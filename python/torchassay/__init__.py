"""Everything a training loop wants to know about each sample, from one read of its logits."""

from torchassay import data, labels, reference, samplers
from torchassay.backends import BackendFallback, backends
from torchassay.data import Indexed
from torchassay.ensemble import ensemble_score
from torchassay.functional import cross_entropy, entropy, explain, log_prob, log_prob_entropy, score
from torchassay.heads import score_binary, score_regression
from torchassay.history import History
from torchassay.linear import linear_cross_entropy, linear_log_prob_entropy, linear_score
from torchassay.memory import SampleMemory, keep
from torchassay.modules import CrossEntropyLoss, Scorer
from torchassay.noise import FeatureNoise
from torchassay.samplers import WeightedSampler
from torchassay.scores import LINEAR_SIGNALS, SIGNALS, Scores
from torchassay.selection import top_fraction
from torchassay.sum_tree import SumTree

__version__ = "0.1.0"

__all__ = [
    "LINEAR_SIGNALS",
    "SIGNALS",
    "BackendFallback",
    "CrossEntropyLoss",
    "FeatureNoise",
    "History",
    "Indexed",
    "SampleMemory",
    "Scorer",
    "Scores",
    "SumTree",
    "WeightedSampler",
    "backends",
    "cross_entropy",
    "data",
    "ensemble_score",
    "entropy",
    "explain",
    "keep",
    "labels",
    "linear_cross_entropy",
    "linear_log_prob_entropy",
    "linear_score",
    "log_prob",
    "log_prob_entropy",
    "reference",
    "samplers",
    "score",
    "score_binary",
    "score_regression",
    "top_fraction",
]
