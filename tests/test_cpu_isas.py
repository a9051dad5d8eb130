"""Every build of the CPU kernels that this machine can run, not only the one it takes."""

import oracle
import pytest
import rows
import torch
import torchassay as ta
from places import Place
from torchassay.backends import native
from torchassay.scores import ROW_SIGNALS

ISAS = native.cpu_isas().split(",") if native else []
pytestmark = pytest.mark.skipif(native is None, reason="the C++ extension is not built")


@pytest.fixture(params=ISAS)
def isa(request):
    before = native.cpu_isa()
    native.set_cpu_isa(request.param)
    yield Place(request.param, "native", "cpu")
    native.set_cpu_isa(before)


# rows in lanes (with and without a multiple of four), along memory (one segment, a tail, many segments)
@pytest.mark.parametrize("classes", [1, 3, 10, 127, 256, 257, 1000, 4097, 50257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_values(isa, dtype, classes):
    for family in ("gaps", "offsets", "masked", "ties") if classes == 50257 else rows.FAMILIES:
        x, y, exact = rows.case(family, classes, dtype)
        oracle.check(isa, ta.score(x, y, signals=ROW_SIGNALS), exact, x)


@pytest.mark.parametrize("classes", [1, 3, 10, 127, 1000, 9000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_gradients_are_those_of_the_reference(isa, dtype, classes):
    x, y, _ = rows.case("gaps", classes, dtype)
    a, b = (x.clone().requires_grad_() for _ in range(2))
    ours, theirs = ta.log_prob_entropy(a, y), ta.log_prob_entropy(b, y, backend="reference")
    upstream = [torch.linspace(-1, 2, len(y)).to(ours[0].dtype), torch.linspace(1, -1, len(y)).to(ours[0].dtype)]
    torch.autograd.backward(ours, upstream)
    torch.autograd.backward(theirs, upstream)
    # half precision: one rounding each, so a unit in the last place; subnormal results may flush
    eps = {torch.float32: 2e-6, torch.float64: 1e-14}.get(dtype, 2 * torch.finfo(dtype).eps)
    off = (a.grad.double() - b.grad.double()).norm(dim=1)
    assert (off <= eps * b.grad.double().norm(dim=1) + torch.finfo(dtype).tiny * classes).all()


@pytest.mark.parametrize("classes", [10, 127, 1000, 20000])
def test_a_row_has_the_same_bits_alone_in_a_batch_and_on_any_number_of_threads(isa, classes, threads):
    x = torch.randn(64, classes, generator=torch.Generator().manual_seed(classes)).bfloat16()
    y = torch.arange(64) % classes
    threads(1)
    alone = ta.Scores.cat([ta.score(x[i : i + 1], y[i : i + 1], signals=ROW_SIGNALS) for i in range(64)])
    for count in (1, 2, 4):
        threads(count)
        for part in (slice(0, 64), slice(3, 6)):  # many rows; few, whose segments are shared out
            found = ta.score(x[part], y[part], signals=ROW_SIGNALS)
            for name in ROW_SIGNALS:
                assert torch.equal(getattr(found, name), getattr(alone, name)[part]), (count, part, name)


def test_an_instruction_set_that_is_not_there_is_refused():
    with pytest.raises(ValueError) as error:
        native.set_cpu_isa("mmx")
    assert str(error.value) == f"instruction set must be one of {native.cpu_isas()}, got mmx"
