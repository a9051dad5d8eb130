"""The ops behind every function: schema, fake and implementation. The only user of torch.library.

An op gets checked arguments and a class dimension counted from the front. It has no autograd of its own: the
`torch.autograd.Function`s in `autograd.py` stand around it.
"""

from torchassay.ops.cdf import cdf
from torchassay.ops.draws import draw_scores
from torchassay.ops.heads import head_scores
from torchassay.ops.linear import linear_grads, linear_squares, linear_states, mixture_states
from torchassay.ops.options import option_grads, option_scores
from torchassay.ops.random import normals, uniforms
from torchassay.ops.rows import row_grads, row_scores
from torchassay.ops.states import finish_states, merge_states, row_states

__all__ = [
    "cdf",
    "draw_scores",
    "finish_states",
    "head_scores",
    "linear_grads",
    "linear_squares",
    "linear_states",
    "merge_states",
    "mixture_states",
    "normals",
    "option_grads",
    "option_scores",
    "row_grads",
    "row_scores",
    "row_states",
    "uniforms",
]
