"""The CUDA kernels under the options of a loss, on the host, against the loss's definition in extended precision."""

import host_kernels
import mpmath
import pytest
import torch
from option_cases import (
    CLASSES,
    DTYPES,
    NAMES,
    OF_LABELS,
    OF_PROBABILITIES,
    Exact,
    batch,
    case,
    check,
    labelled,
    noise,
    probabilities,
    rows_of,
    shared_out,
    weights,
)
from option_oracle import Case, truth


@pytest.fixture(scope="session")
def kernels(host_program):
    return host_kernels.OptionKernels(host_program("run_options.cpp"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_signals_of_labels(classes, dtype, kernels):
    for name in shared_out(NAMES, classes, dtype):
        x, y, options = labelled(name, classes, dtype)
        check(kernels.under(**options).scores(x, y, OF_LABELS), x, y, options)


@pytest.mark.parametrize("row", [[18.0, 19.0], [18.0, 20.0, 19.0]])
def test_a_norm_where_the_cap_makes_tops_of_others(row, kernels):
    """Logits beyond nine caps have one capped value, but slopes of their own; found by tests/properties."""
    x, y = torch.tensor(row).repeat(len(row), 1), torch.arange(len(row))
    found = kernels.under(softcap=2.0).scores(x, y, OF_LABELS)["grad_norm"].double()
    torch.testing.assert_close(found, truth(x, y, Case(softcap=2.0)).signals["grad_norm"], rtol=4e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_signals_of_probabilities(classes, dtype, kernels):
    x, _ = batch(classes, dtype)
    x[2] = noise(classes, seed=8).to(dtype)  # a class at -inf: tested below
    t = probabilities(classes, len(x))
    for name in shared_out(["nothing", "smoothing and all", "softcap and all"], classes, dtype):
        options = case(name, classes, len(x))
        check(kernels.under(t, **options).scores(x, None, OF_PROBABILITIES), x, t, options)


def mp_loss_and_norm(row, b, temperature, z_loss) -> tuple[float, float]:
    """The textbook's, with 120 digits."""
    with mpmath.workdps(120):
        x = [mpmath.mpf(value) / mpmath.mpf(temperature) for value in row.double().tolist()]
        b = [mpmath.mpf(value) for value in b]
        lse = mpmath.log(mpmath.fsum(mpmath.exp(value) for value in x))
        loss = mpmath.fsum(q * (lse - value) for q, value in zip(b, x, strict=True)) + z_loss * lse**2
        beta = mpmath.fsum(b) + 2 * z_loss * lse
        norm = mpmath.fsum((beta * mpmath.exp(v - lse) - q) ** 2 for q, v in zip(b, x, strict=True))
        return float(loss), float(mpmath.sqrt(norm) / mpmath.mpf(temperature))


@pytest.mark.parametrize("classes", [2, 10, 300])
def test_confident_rows_lose_no_digit(classes, kernels):
    """Entries of 1e-25 and less, whose squares no float32 holds, as labels and as probabilities."""
    x = noise(4, classes, scale=1.0)
    x[:, 1] = x.amax(1) + torch.tensor([30.0, 50.0, 58.0, 60.0])
    onehot = torch.zeros(4, classes)
    onehot[:, 1] = 1
    y = torch.ones(4, dtype=torch.int64)
    for target, names in ((y, OF_LABELS), (onehot, OF_PROBABILITIES)):
        under = kernels.under(onehot if target is onehot else None, temperature=0.75)
        found = under.scores(x, y if target is y else None, names)
        for i in range(4):
            loss, norm = mp_loss_and_norm(x[i], onehot[i].tolist(), 0.75, 0)
            assert abs(found["loss"][i] - loss) <= 2e-6 * loss, i
            assert abs(found["grad_norm"][i] - norm) <= 2e-6 * norm, i


def test_the_oracle_is_the_textbook():
    x, y = batch(33, torch.float32)
    exact = Exact(x, y, temperature=0.5, label_smoothing=0.25, z_loss=1e-3)
    for i in (0, 1, 3, 5, 8):
        loss, norm = mp_loss_and_norm(x[i], [float(value) for value in exact.b[i]], 0.5, 1e-3)
        assert abs(loss - exact.loss[i]) <= 1e-12 * loss
        assert abs(norm - exact.signals()["grad_norm"][i]) <= 1e-12 * norm


def test_a_tie_for_the_top_and_its_label(kernels):
    """Whichever of the tied classes is called the top: four rows, the label first, last, between, elsewhere."""
    x = torch.tensor([1.0, 3.0, 0.0, 3.0, 3.0, -1.0]).repeat(4, 1)
    y = torch.tensor([1, 4, 3, 0])
    for name in ("weight", "smoothing and all", "softcap and all"):
        options = case(name, 6, 4)
        check(kernels.under(**options).scores(x, y, OF_LABELS), x, y, options)
    capped = torch.tensor([[500.0, 400.0, 0.0, 450.0]]).repeat(4, 1)  # tie after capping: the top is the raw one
    options = {"softcap": 2.0, "label_smoothing": 0.1}
    found = kernels.under(**options).scores(capped, torch.tensor([0, 1, 2, 3]), OF_LABELS)
    check(found, capped, torch.tensor([0, 1, 2, 3]), options)
    assert (found["margin"] == 0).all() and (found["prediction"] == 0).all()


# ---- classes at -inf, rows that are poisoned, ignored, out of range

POISON = ["temperatures", "z_loss", "smoothing and all", "softcap and all"]


@pytest.mark.parametrize("classes", [2, 33, 1000, 1025, 9000])
@pytest.mark.parametrize("name", POISON)
def test_poison_stays_in_its_row(name, classes, kernels):
    x, y = noise(6, classes), torch.arange(6) % classes
    under = kernels.under(**case(name, classes, 6))
    clean = under.scores(x, y)
    x[0, classes - 1] = torch.nan
    x[1, 0] = torch.nan
    found = under.scores(x, y, ignore_index=int(y[1]))
    ignored = y == y[1]
    assert found["prediction"].tolist()[:2] == [classes - 1, 0]
    for signal, value in found.items():
        if signal in ("prediction", "stats"):
            continue
        needs = signal in host_kernels.NEED_TARGET
        assert value[0].isnan(), signal
        assert value[1] == 0 if needs else value[1].isnan(), signal
        assert (value[ignored] == 0).all() if needs else True
        kept = ~ignored if needs else torch.ones(6, dtype=torch.bool)
        kept[:2] = False
        assert torch.equal(value[kept], clean[signal][kept]), signal
    assert (found["stats"][[4, 6]][:, ignored] == 0).all()


@pytest.mark.parametrize("classes", [33, 1025])
@pytest.mark.parametrize("name", ["temperatures", "smoothing and all", "softcap"])
def test_rows_without_a_finite_top_are_nan(name, classes, kernels):
    """An infinite logit is no number under a softcap either."""
    x, y = noise(3, classes), torch.tensor([0, 1, 2])
    x[0] = -torch.inf
    x[1, 5] = torch.inf
    found = kernels.under(**case(name, classes, 3)).scores(x, y, OF_LABELS)
    for signal, value in found.items():
        assert signal == "prediction" or (value[:2].isnan().all() and value[2].isfinite()), signal
    assert found["prediction"].tolist()[:2] == [0, 5]


@pytest.mark.parametrize("classes", [5, 100, 1025, 9000])
def test_classes_at_minus_infinity(classes, kernels):
    """Outside of the target they take no part; with a share of it the loss is infinite, as torch's; alone, the top."""
    w = weights(classes)
    x = torch.full((3, classes), -torch.inf)
    x[0, :2], x[1, 2] = torch.tensor([1.0, 2.0]), 3.0
    x[2] = noise(classes)
    x[2, 1] = -torch.inf  # a class of weight 0
    y = torch.tensor([0, 2, 0])
    check(kernels.under(weight=w, z_loss=0.1).scores(x, y, OF_LABELS), x, y, {"weight": w, "z_loss": 0.1})
    options = {"weight": w, "label_smoothing": 0.1}
    found = kernels.under(**options).scores(x, y, OF_LABELS)
    assert found["loss"].tolist()[:2] == [torch.inf, torch.inf]
    check({name: value[2:] for name, value in found.items()}, x[2:], y[2:], options)
    t = torch.zeros(3, classes)
    t[:, 2] = 1
    found = kernels.under(t).scores(x, None, OF_PROBABILITIES)
    assert found["loss"][1:].isnan().all()  # 0 * inf, as torch has it
    assert found["grad_norm"].isfinite().all()


@pytest.mark.parametrize("classes", [5, 1025, 9000])
def test_classes_masked_with_the_lowest_number(classes, kernels):
    """Over a temperature below 1 their distance is infinite: as classes at -inf, also where one class is left."""
    x = torch.full((2, classes), torch.finfo(torch.float32).min)
    x[0, 3], x[1, 3], x[1, classes - 2] = 5.0, 5.0, 4.0
    y = torch.tensor([3, 3])
    gone = torch.where(x < -1e30, -torch.inf, x)
    for options in ({"temperature": 0.5}, {"temperature": torch.tensor([0.25, 0.5])}):
        under = kernels.under(**options)
        check(under.scores(x, y, OF_LABELS), gone, y, options)
        stats = under.scores(x, y, ("stats",))["stats"]
        expected = under.grads(gone, y, under.scores(gone, y, ("stats",))["stats"], torch.ones(2), torch.ones(2))
        assert torch.equal(under.grads(x, y, stats, torch.ones(2), torch.ones(2)), expected)


@pytest.mark.parametrize("classes", [10, 1025, 9000])
@pytest.mark.parametrize("name", ["weight", "smoothing", "smoothing and all", "softcap"])
def test_targets_ignored_and_out_of_range(name, classes, kernels):
    x = noise(5, classes)
    under = kernels.under(**case(name, classes, 5))
    clean = under.scores(x, torch.zeros(5, dtype=torch.int64))
    y = torch.tensor([0, classes, -1, 5, 2**40])
    found = under.scores(x, y, ignore_index=5)
    for signal, value in found.items():
        if signal in host_kernels.NEED_TARGET:
            assert value[[1, 2, 4]].isnan().all() and value[3] == 0 and value[0] == clean[signal][0]
        elif signal != "stats":
            assert torch.equal(value, clean[signal])
    assert found["stats"][[4, 6]][:, [1, 2, 4]].isnan().all()
    none = under.scores(x)  # may take another kernel
    torch.testing.assert_close(none["entropy"], clean["entropy"], rtol=2e-6, atol=0)
    assert (none["stats"][[4, 6]] == 0).all()


# ---- bits


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("classes", [5, 100, 1032, 9001])
def test_a_row_has_the_same_bits_anywhere(classes, dtype, kernels):
    """At any address and stride, alone, cut into spans or not."""
    x, y = noise(4, classes).to(dtype), torch.tensor([classes - 1, 0, 3, 1])
    t = probabilities(classes, 4)
    for name in ("z_loss", "smoothing and all", "softcap"):
        options = case(name, classes, 4)
        under = kernels.under(t if name == "softcap" else None, **options)
        target = None if name == "softcap" else y
        names = OF_PROBABILITIES if name == "softcap" else None
        expected = under.scores(x, target, names)
        others = [(under.scores(x, target, names, multiprocessors=1), slice(None))]
        for offset, gap in ((1, 0), (3, 5), (8, 24)):
            view = torch.zeros(4 * (classes + gap) + 32, dtype=dtype)[offset:]
            view = view.as_strided((4, classes), (classes + gap, 1))
            view.copy_(x)
            others.append((under.scores(view, target, names), slice(None)))
        alone = kernels.under(t[2:3] if name == "softcap" else None, **rows_of(options, slice(2, 3)))
        others.append((alone.scores(x[2:3], None if target is None else y[2:3], names), slice(2, 3)))
        for found, at in others:
            for signal, value in found.items():
                assert torch.equal(value, expected[signal][..., at]), (name, signal)


@pytest.mark.parametrize("classes", [10, 1025])
def test_weights_and_probabilities_of_any_address(classes, kernels):
    x, w, t = noise(3, classes), weights(classes), probabilities(classes, 3)
    moved = torch.zeros(4 * classes)
    expected = kernels.under(t, weight=w).scores(x, None, OF_PROBABILITIES)
    shifted_w, shifted_t = moved[3 : classes + 3].copy_(w), moved.clone()[1 : 3 * classes + 1].view(3, -1).copy_(t)
    found = kernels.under(shifted_t, weight=shifted_w).scores(x, None, OF_PROBABILITIES)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    stats = kernels.under(t, weight=w).scores(x, None, ("stats",))["stats"]
    assert torch.equal(
        kernels.under(shifted_t, weight=shifted_w).grads(x, None, stats, torch.ones(3), None),
        kernels.under(t, weight=w).grads(x, None, stats, torch.ones(3), None),
    )
