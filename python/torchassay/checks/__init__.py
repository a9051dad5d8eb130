"""Argument checks. One message format: function, argument, what was expected, what came.

``InputValueError`` is a ``ValueError`` and ``InputTypeError`` a ``TypeError``, and both are also what
``F.cross_entropy`` raises for the same mistakes, so that an ``except`` written for it goes on working.
"""

from torchassay.checks.arguments import (
    FLOATS,
    INTEGERS,
    InputTypeError,
    InputValueError,
    by_row,
    class_range,
    dtype_name,
    floating,
    ignored_index,
    integer,
    labels,
    logits,
    mask_of,
    out_of_range,
    probabilities,
    process_group,
    reduced_by,
    same_device,
    seed,
    tensor,
)
from torchassay.checks.calls import Call, cross_entropy, log_prob, score, signal_of, signals
from torchassay.checks.ensembles import Ensemble, ensemble
from torchassay.checks.files import json_object
from torchassay.checks.heads import binary, regression
from torchassay.checks.linear import linear, workspace
from torchassay.checks.options import draws, loss_options, noise, seed_of, temperatures
from torchassay.checks.selection import top_fraction

__all__ = [
    "FLOATS",
    "INTEGERS",
    "Call",
    "Ensemble",
    "InputTypeError",
    "InputValueError",
    "binary",
    "by_row",
    "class_range",
    "cross_entropy",
    "draws",
    "dtype_name",
    "ensemble",
    "floating",
    "ignored_index",
    "integer",
    "json_object",
    "labels",
    "linear",
    "log_prob",
    "logits",
    "loss_options",
    "mask_of",
    "noise",
    "out_of_range",
    "probabilities",
    "process_group",
    "reduced_by",
    "regression",
    "same_device",
    "score",
    "seed",
    "seed_of",
    "signal_of",
    "signals",
    "temperatures",
    "tensor",
    "top_fraction",
    "workspace",
]
