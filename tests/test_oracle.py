"""The oracle against mpmath: what every other test leans on."""

import mpmath
import oracle
import pytest
import rows
import torch

FAMILIES = [*rows.FAMILIES]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 127])
def test_signals_agree_with_mpmath(family, classes):
    x, y, exact = rows.case(family, classes, torch.float64)
    for i in range(0, len(x), 3):
        truth = oracle.mp_signals(x[i], int(y[i]))
        for name, value in truth.items():
            got = mpmath.mpf(exact[name][i].item())
            scale = max(abs(value), abs(x[i].max().item())) if name == "lse" else abs(value)
            assert abs(got - value) <= 1e-14 * scale + mpmath.mpf(10) ** -320, (name, i, got, value)


def test_grads_agree_with_central_differences_in_mpmath():
    """One confident row, one wrong row: the derivative of the textbook definitions, to 1e-14 of each entry."""
    x = torch.tensor([[31.0, 0.25, -1.5, 2.0], [0.0, 3.0, -40.0, 1.0]], dtype=torch.float64)
    y, gL, gH = torch.tensor([0, 2]), torch.tensor([1.5, -2.0]), torch.tensor([0.75, 3.0])
    found = oracle.grads(x, y, gL, gH)
    with mpmath.workdps(320):
        for i in range(2):

            def value(row, i=i):
                total = mpmath.fsum(map(mpmath.exp, row))
                p = [mpmath.exp(v) / total for v in row]
                entropy = -mpmath.fsum(q * mpmath.log(q) for q in p)
                return -mpmath.mpf(gL[i].item()) * mpmath.log(p[y[i]]) + mpmath.mpf(gH[i].item()) * entropy

            h = mpmath.mpf(10) ** -30
            for j in range(4):
                row = [mpmath.mpf(v) for v in x[i].tolist()]
                ahead, behind = row.copy(), row.copy()
                ahead[j] += h
                behind[j] -= h
                slope = (value(ahead) - value(behind)) / (2 * h)
                assert abs(mpmath.mpf(found[i, j].item()) - slope) <= 1e-14 * abs(slope), (i, j)


def test_float64_eager_would_not_do_as_an_oracle():
    """The reason for all this: at a gap of 40 float64 eager loses the loss altogether."""
    x = torch.tensor([[40.0, 0.0, 0.0]], dtype=torch.float64)
    eager = torch.nn.functional.cross_entropy(x, torch.tensor([0]))
    exact = oracle.signals(x, torch.tensor([0]))["loss"]
    assert eager == 0 and exact > 8e-18
