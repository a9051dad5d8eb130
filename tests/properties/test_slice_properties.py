"""Rows of which slices of the classes are scored apart: however the classes are cut, the scores are those of all."""

from __future__ import annotations

import itertools

import option_contract
import pytest
import torch
from hypothesis import strategies as st
from option_oracle import Case, truth
from strategies import classes_of, examples, logits, option_cases, put, within_cap
from torchassay import ops
from torchassay.options import Options
from torchassay.scores import BIT, ROW_SIGNALS, Scores

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
BITS = sum(BIT[name] for name in ROW_SIGNALS)


def cut_scores(place, x, y, case: Case, cuts: list[int], merged: bool) -> Scores:
    """By the ops that ranks of a group call, one after the other."""
    x, y = x.to(place.device), y.to(place.device)
    options = Options(*(put(value, place.device) for value in case))
    states = []
    for first, end in itertools.pairwise(cuts):
        mine = options._replace(weight=None if options.weight is None else options.weight[first:end])
        states.append(
            ops.row_states(x[:, first:end], y, *mine.flat(), 1, first, x.shape[1], -100, "test", place.backend)
        )
    numbers, k = (torch.stack(parts) for parts in zip(*states, strict=True))
    of_rows = options._replace(weight=None if options.weight is None else options.weight[y.clamp(min=0)])
    if merged:
        one = ops.merge_states(numbers, k, *of_rows.flat(), x.shape[1], "test", place.backend)
        numbers, k = (part[None] for part in one)
    how = x.shape[1], -100, BITS, "test", place.backend
    found = ops.finish_states(numbers, k, y, *of_rows.flat(), *how)
    return Scores(dict(zip(ROW_SIGNALS, (value.cpu() for value in found), strict=True)))


@examples(16, logits(rows=4, dtypes=DTYPES), st.lists(st.integers(0, 70), max_size=7), st.booleans(), st.data())
def test_however_the_vocabulary_is_cut(fast_place, x, cuts, merged, data):
    if x.dtype == torch.float64 and not fast_place.double:
        return
    y = classes_of(data.draw, x, alive=True)
    masked = bool((x == -torch.inf).any())
    case = data.draw(option_cases(x, smoothing=not masked))._replace(z_loss=0.0)
    if case.label_smoothing and (case.weight is not None or case.softcap):
        case = case._replace(weight=None, softcap=None)  # these have no norm of the gradient from states
    x = within_cap(x, case)
    inside = sorted({cut for cut in cuts if 0 < cut < x.shape[1]})
    found = cut_scores(fast_place, x, y, case, [0, *inside, x.shape[1]], merged)
    allowed = 2 * option_contract.tolerance(case, x.dtype)
    option_contract.check(f"{case} {inside}", found, truth(x, y, case), case, x, allowed)


@pytest.mark.parametrize("row", [[18.0, 19.0], [18.0, 20.0, 19.0], [-3.0, 18.0, 19.0]])
def test_a_norm_where_the_cap_makes_tops_of_others(place, row):
    """Of logits beyond nine caps, whose capped values are one, each was taken for the top."""
    x, y, case = torch.tensor(row).repeat(len(row), 1), torch.arange(len(row)), Case(softcap=2.0)
    found = cut_scores(place, x, y, case, [0, 1, len(row)], False)
    torch.testing.assert_close(found.grad_norm.double(), truth(x, y, case).signals["grad_norm"], rtol=4e-6, atol=0)
