"""States of slices of the classes against the truth of whole rows: values, merging, gradients of a slice, edges."""

import itertools

import option_oracle
import oracle
import pytest
import rows
import torch
import torchassay as ta
from option_contract import batch, cases, check, check_gradient, steps, tolerance, wide
from option_oracle import Case
from torchassay import ops, reference
from torchassay.options import Options
from torchassay.scores import BIT, ROW_BITS, ROW_SIGNALS, STATS

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CUTS = {5: ([], [2], [1, 2, 3, 4]), 300: ([1], [7, 8, 299], [100, 101, 250]), 9000: ([8192], [1, 1025, 5000, 8999])}


class Slices:
    """Rows of logits cut into slices of their classes, each given to the ops as if the others were elsewhere."""

    def __init__(self, x, target, options: Options, cuts, place, ignore_index=-100, dim=1):
        self.options, self.target, self.place = options, target, place
        self.total, self.ignore_index, self.dim = x.shape[dim], ignore_index, dim
        edges = [0, *cuts, self.total]
        self.parts = [
            (x.narrow(dim, first, end - first), first, self.of_slice(first, end))
            for first, end in itertools.pairwise(edges)
        ]

    def of_slice(self, first, end) -> tuple:
        weight = self.options.weight
        return self.options._replace(weight=None if weight is None else weight[first:end]).flat()

    def states(self) -> tuple[torch.Tensor, torch.Tensor]:
        how = self.total, self.ignore_index, "test", self.place.backend
        found = [ops.row_states(x, self.target, *flat, self.dim, first, *how) for x, first, flat in self.parts]
        return tuple(torch.stack(of_parts) for of_parts in zip(*found, strict=True))

    def of_rows(self) -> tuple:
        """The options as rows have them: the weights of the targets' classes."""
        weight = self.options.weight
        if weight is not None and self.target is not None:
            weight = weight[self.target.reshape(-1).clamp(0, self.total - 1)]
        return self.options._replace(weight=weight).flat()

    def merged(self, numbers, k) -> tuple[torch.Tensor, torch.Tensor]:
        return ops.merge_states(numbers, k, *self.of_rows(), self.total, "test", self.place.backend)

    def finished(self, numbers, k, signals=ROW_BITS | STATS) -> list[torch.Tensor]:
        flat = None if self.target is None else self.target.reshape(-1)
        how = self.total, self.ignore_index, signals, "test", self.place.backend
        return ops.finish_states(numbers, k, flat, *self.of_rows(), *how)

    def grads(self, stats, grad_loss, grad_entropy) -> torch.Tensor:
        how = self.dim, self.ignore_index, "test", self.place.backend
        upstream = stats, grad_loss, grad_entropy
        return torch.cat(
            [ops.option_grads(x, self.target, *flat, *upstream, *how, at, self.total) for x, at, flat in self.parts],
            self.dim,
        )


def scores(outputs) -> ta.Scores:
    return ta.Scores(dict(zip(ROW_SIGNALS, (output.cpu() for output in outputs[: len(ROW_SIGNALS)]), strict=True)))


def same(found, expected):
    """Bit for bit, NaN where NaN."""
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.nan_to_num(nan=12345.0), theirs.nan_to_num(nan=12345.0))


@pytest.mark.parametrize("cuts", [*CUTS[5], *CUTS[300], *CUTS[9000]], ids=str)
@pytest.mark.parametrize("family", rows.FAMILIES)
def test_values_and_gradients(family, cuts, fast_place):
    (classes,) = (classes for classes, known in CUTS.items() if cuts in known)
    for dtype in fast_place.dtypes if classes < 9000 else fast_place.dtypes[:1]:
        x, y, exact = rows.case(family, classes, dtype)
        y = y.clone()
        y[len(y) // 2] = -100
        exact = oracle.signals(x, y)
        slices = Slices(x.to(fast_place.device), y.to(fast_place.device), Options(), cuts, fast_place)
        states = slices.states()
        *outputs, stats = slices.finished(*states)
        oracle.check(fast_place, scores(outputs), exact, x)
        one = tuple(of_all.unsqueeze(0) for of_all in slices.merged(*states))
        same(slices.finished(*one), [*outputs, stats])

        up = torch.linspace(-1, 2, len(x), dtype=wide(dtype))
        both = slices.grads(stats, up.to(fast_place.device), up.flip(0).to(fast_place.device)).cpu()
        expected = oracle.grads(x, y, up, up.flip(0))
        parts = expected.norm(dim=1) + oracle.subtracted_norm(x) * up.flip(0).abs()
        check_gradient(family, both, expected, parts, 1e-13 if dtype == torch.float64 else 2 * fast_place.tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("classes", "cuts"), [(1, []), (2, [1]), (17, [5, 9, 10]), (257, [256]), (1000, [1, 100, 999])])
def test_options(classes, cuts, dtype, fast_place):
    if dtype not in fast_place.dtypes:
        pytest.skip(f"{fast_place}: no {dtype}")
    x, y = batch(classes, dtype)
    upstream = steps(len(x)).to(wide(dtype))
    for name, case in cases(classes, len(x), dtype).items():
        truth = option_oracle.truth(x, y, case)
        given = Options(*(value.to(fast_place.device) if isinstance(value, torch.Tensor) else value for value in case))
        slices = Slices(x.to(fast_place.device), y.to(fast_place.device), given, cuts, fast_place)
        states = slices.states()
        *outputs, stats = slices.finished(*states)
        found = scores(outputs).as_dict()
        if reference.needs_sweep(given):
            assert found["grad_norm"][y != -100].isnan().all()
            found.pop("grad_norm")
        allowed = tolerance(case, dtype)
        check(name, ta.Scores(found), truth, case, x, allowed)
        one = tuple(of_all.unsqueeze(0) for of_all in slices.merged(*states))
        same(slices.finished(*one), [*outputs, stats])

        up = upstream.to(fast_place.device)
        found = slices.grads(stats, up, None).cpu()
        exact = upstream.double()[:, None] * truth.grad_loss
        check_gradient(name, found, exact, truth.parts * upstream.double().abs(), 2 * allowed)
        if case.softcap:  # no function differentiates an entropy of capped logits
            continue
        found = slices.grads(stats, None, up).cpu()
        exact = upstream.double()[:, None] * truth.grad_entropy
        check_gradient(name, found, exact, truth.mixed * upstream.double().abs(), 3 * allowed)
