"""`linear_score` against materialised logits in float64: signals, options, noise on the features, layouts."""

import functools

import linear_heads
import oracle
import pytest
import torch
import torch.nn.functional as F
import torchassay as ta
from linear_heads import SHAPES, Head, head
from option_oracle import Case
from torchassay import reference
from torchassay.philox import Purpose, normals
from torchassay.scores import NOISY_SIGNALS, ROW_SIGNALS

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIGNALS = (*ROW_SIGNALS, "weight_grad_norm")


def scored(h, place, **how) -> ta.Scores:
    how = {"signals": SIGNALS, "linear_bias": h.bias, "backend": place.backend, **how}
    return ta.linear_score(h.input, h.weight, h.target, **how)


def close_to(found: ta.Scores, exact: dict, logits: torch.Tensor, errors: torch.Tensor, contract: float):
    """Within the contract, and what an error of the logits as large as `F.linear`'s own makes of a signal."""
    for name in found.signals:
        value = getattr(found, name).cpu()
        if name == "prediction":
            assert (logits.gather(1, value[:, None])[:, 0] >= logits.amax(1) - 2 * errors).all()
            continue
        slack = errors * (4 + 2 * exact["entropy"]) * (1 + exact[name].abs())
        if name == "weight_grad_norm":
            slack = slack * (exact[name] / exact["grad_norm"]).nan_to_num(nan=1.0)
        error = (value.double() - exact[name]).abs()
        allowed = slack + contract * (exact[name].abs() + exact["lse"].abs())
        assert (error <= allowed).all(), f"{name}: {(error / allowed).max():.2f} of what is allowed"


@functools.cache
def example(shape, dtype):
    """A head, its logits and its signals in float64, and twice the errors of `F.linear`."""
    h = head(*shape, dtype)
    logits = linear_heads.logits(h)
    exact = oracle.signals(logits, h.target)
    features = torch.hypot(h.input.double().norm(dim=1), torch.ones(len(logits)).double())
    return h, logits, exact | {"weight_grad_norm": exact["grad_norm"] * features}, 2 * linear_heads.logit_errors(h)


@pytest.mark.parametrize("chunks", ["one segment at a time", "default"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_signals(dtype, shape, chunks, fast_place):
    if dtype not in fast_place.dtypes:
        pytest.skip(f"{fast_place}: no {dtype}")
    h, logits, exact, errors = example(shape, dtype)
    most = h.least() if chunks == "one segment at a time" else None
    found = scored(h.to(fast_place.device), fast_place, max_workspace_bytes=most)
    close_to(found, exact, logits, errors, 1e-13 if dtype == torch.float64 else fast_place.tolerance)
    assert found.signals == SIGNALS and found.loss.shape == (shape[0],)
    assert found.loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def options(h, names) -> dict:
    """As keywords, in the dtype of the scores."""
    wide = torch.float64 if h.input.dtype == torch.float64 else torch.float32
    how = {"dtype": wide, "device": h.input.device}
    weight = torch.linspace(0.2, 2.2, len(h.weight), **how)
    weight[len(weight) // 2] = 0 if len(weight) > 2 else 1
    known = {
        "weight": weight,
        "smoothing": 0.1,
        "temperature": 0.7,
        "temperatures": torch.linspace(0.5, 2.0, len(h.input), **how),
        "softcap": 5.0,
        "z_loss": 1e-2,
    }
    keyword = {"smoothing": "label_smoothing", "temperatures": "temperature"}
    return {keyword.get(name, name): known[name] for name in names}


OPTIONS = [
    ("weight",),
    ("smoothing",),
    ("temperature",),
    ("temperatures",),
    ("softcap",),
    ("weight", "smoothing"),
    ("softcap", "smoothing"),
    ("weight", "temperatures", "softcap"),
    ("weight", "smoothing", "temperatures", "softcap"),
]


@pytest.mark.parametrize("names", OPTIONS, ids=", ".join)
@pytest.mark.parametrize("shape", [(7, 5, 3), (23, 17, 1100)], ids=str)
def test_options(shape, names, fast_place):
    """In float64 to the last digits, in float32 as near as the reference on materialised logits."""
    for dtype in (torch.float64, torch.float32):
        if dtype not in fast_place.dtypes:
            continue
        h = head(*shape, dtype, place=fast_place)
        given = options(h, names)
        exact = linear_heads.truth(h, Case(**given)).signals
        features = torch.hypot(h.input.cpu().double().norm(dim=1), torch.ones(shape[0]).double())
        exact["grad_norm"] = torch.where(h.target.cpu() == -100, 0, exact["grad_norm"])
        exact["weight_grad_norm"] = exact["grad_norm"] * features
        found = scored(h, fast_place, max_workspace_bytes=h.least(), **given)
        close = {"rtol": 1e-11, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-6}
        for name in SIGNALS:
            value = getattr(found, name).cpu()
            torch.testing.assert_close(value.to(exact[name].dtype), exact[name], **close, msg=lambda m, n=name: n + m)


def test_weight_grad_norm_is_the_norm_of_each_rows_own_gradient(double_place):
    """By `linear_weight`, and by `linear_bias` if there is one: autograd of one row's loss at a time."""
    for bias in (True, False):
        h = head(6, 5, 7, torch.float64, bias=bias, place=double_place)
        for names in ((), ("weight", "smoothing", "temperature", "softcap")):
            given = options(h, names)
            found = scored(h, double_place, signals="weight_grad_norm", **given).weight_grad_norm
            for i in range(6):
                row = Head(h.input[i : i + 1], *h[1:3], h.target[i : i + 1]).leaves()
                x = F.linear(*row[:3])
                loss = reference.cross_entropy(x, row.target, reduction="sum", **given)
                grads = torch.autograd.grad(loss, row.operands[1:])
                expected = torch.sqrt(sum(grad.square().sum() for grad in grads))
                torch.testing.assert_close(found[i], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", [(), (0,), (6,), (2, 3), (2, 0, 3), (2, 1, 3)], ids=str)
def test_leading_dimensions(shape, fast_place):
    """Those of the hidden states: [D] is one row; there may be none."""
    count = torch.Size(shape).numel()
    h = head(count, 5, 9, place=fast_place)
    std, ids = torch.full(shape, 0.3, device=fast_place.device), torch.arange(count, device=fast_place.device) * 7
    more = {"linear_bias": h.bias, "feature_noise_draws": 2, "backend": fast_place.backend}
    more["signals"] = ta.LINEAR_SIGNALS
    T = torch.linspace(0.5, 2, count, device=fast_place.device)
    flat = {"temperature": T, "feature_noise_std": std.reshape(-1), "row_id": ids}
    expected = ta.linear_score(h.input, h.weight, h.target, **flat, **more)
    shaped = {name: value.view(shape) for name, value in flat.items()}
    found = ta.linear_score(h.input.view(*shape, 5), h.weight, h.target.view(shape), **shaped, **more)
    for name in ta.LINEAR_SIGNALS:
        assert getattr(found, name).shape == shape
        assert torch.equal(getattr(found, name).view(-1), getattr(expected, name)), name


def test_strides(fast_place):
    h = head(12, 9, 1500, place=fast_place)
    expected = scored(h, fast_place, max_workspace_bytes=h.least())
    for name, view in linear_heads.strided(h):
        found = scored(view, fast_place, max_workspace_bytes=h.least())
        for signal in SIGNALS:
            close = {"rtol": 1e-5, "atol": 1e-6, "msg": f"{name}: {signal}"}
            torch.testing.assert_close(getattr(found, signal), getattr(expected, signal), **close)
    alike = h._replace(input=h.input[:1].expand(12, 9), bias=h.bias[:1].expand(1500))  # strides of 0
    dense = h._replace(input=alike.input.contiguous(), bias=alike.bias.contiguous())
    found, expected = (scored(operands, fast_place) for operands in (alike, dense))
    for signal in SIGNALS:
        torch.testing.assert_close(getattr(found, signal), getattr(expected, signal), rtol=1e-5, atol=1e-6)


def test_defaults_and_the_order_asked_for(fast_place):
    h = head(6, 5, 7, place=fast_place)
    found = ta.linear_score(h.input, h.weight, h.target, backend=fast_place.backend)
    assert found.signals == ("loss", "entropy", "grad_norm")
    found = ta.linear_score(h.input, h.weight, backend=fast_place.backend)
    assert found.signals == ("entropy", "confidence", "margin")
    found = ta.linear_score(h.input, h.weight, feature_noise_std=0.1, backend=fast_place.backend)
    assert found.signals == ("entropy", "confidence", "margin", "noisy_entropy")
    asked = ("weight_grad_norm", "noisy_entropy", "prediction", "loss")
    all = scored(h, fast_place, signals=ta.LINEAR_SIGNALS, feature_noise_std=0.1)
    found = scored(h, fast_place, signals=asked, feature_noise_std=0.1)
    assert found.signals == asked and all.signals == ta.LINEAR_SIGNALS
    for name in asked:
        alone = getattr(scored(h, fast_place, signals=name, feature_noise_std=0.1), name)
        assert torch.equal(getattr(found, name), getattr(all, name)) and torch.equal(getattr(all, name), alone)


def test_nothing_has_a_gradient_and_nothing_is_written(fast_place):
    h = head(6, 5, 2000, place=fast_place).leaves()
    before = [operand.detach().clone() for operand in (*h.operands, h.target)]
    found = scored(h, fast_place, signals=ta.LINEAR_SIGNALS, feature_noise_std=0.1, max_workspace_bytes=h.least())
    assert not any(value.requires_grad for value in found.as_dict().values())
    assert all(torch.equal(now, then) for now, then in zip((*h.operands, h.target), before, strict=True))


def test_edges_of_hidden_states(fast_place):
    """A poisoned row is NaN in every float signal and harms no other; an ignored one is 0 in what needs the target."""
    h = head(8, 5, 1200, place=fast_place)
    h.target[5] = -100
    input = h.input.clone()
    input[1, 0], input[3, 4], input[5, 2] = torch.nan, torch.inf, torch.nan
    expected, found = scored(h, fast_place), scored(h._replace(input=input), fast_place)
    for name in SIGNALS:
        value, clean = getattr(found, name), getattr(expected, name)
        assert torch.equal(value[[0, 2, 4, 6, 7]], clean[[0, 2, 4, 6, 7]]), name
        if name != "prediction":
            assert value[[1, 3]].isnan().all(), name
            needs = name in ("loss", "grad_norm", "target_margin")
            assert value[5] == 0 if needs else value[5].isnan(), name


def test_a_masked_class_changes_nothing(fast_place):
    """A bias of -inf: a class of the vocabulary's padding."""
    h = head(10, 6, 1500, ignored=False, place=fast_place)
    h.target[:] %= 1400
    bias = h.bias.clone()
    bias[1400:] = -torch.inf
    found = scored(h._replace(bias=bias), fast_place)
    expected = scored(h._replace(weight=h.weight[:1400], bias=h.bias[:1400]), fast_place)
    for name in SIGNALS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=2e-6, atol=1e-6)


NOISE = {"signals": NOISY_SIGNALS, "feature_noise_draws": 3, "seed": 2**40 + 7}


def noisy(h, std, row_id, temperature=1.0, softcap=None) -> dict:
    """By the definition, from the normals of the reference and materialised logits in float64."""
    wide = h.to("cpu").to(torch.float64)
    std, temperature = (torch.as_tensor(n, dtype=torch.float64).cpu().view(-1, 1) for n in (std, temperature))
    p = []
    for draw in range(NOISE["feature_noise_draws"]):
        eps = normals(row_id.cpu(), NOISE["seed"], Purpose.FEATURE_NOISE, draw, h.input.shape[1]).double()
        copy = wide.input + std * eps
        if h.input.dtype in (torch.bfloat16, torch.float16):
            copy = copy.float().to(h.input.dtype).double()
        x = F.linear(copy, *wide[1:3])
        x = x if softcap is None else softcap * torch.tanh(x / softcap)
        p.append(torch.softmax(x / temperature, 1))

    def entropy(p):
        return -torch.special.xlogy(p, p).sum(1)

    mean, whole = sum(map(entropy, p)) / len(p), entropy(sum(p) / len(p))
    return {"noisy_entropy": mean, "predictive_entropy": whole, "mutual_information": whole - mean}


@pytest.mark.parametrize("kind", ["plain", "by row", "softcap", "no bias"])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_noise_on_the_features(dtype, kind, fast_place):
    if dtype not in fast_place.dtypes:
        pytest.skip(f"{fast_place}: no {dtype}")
    if dtype == torch.bfloat16 and kind != "by row":
        pytest.skip("the rounding of a copy is tried once")
    h = head(7, 33, 1100, dtype, bias=kind != "no bias", place=fast_place)
    ids = torch.tensor([9, 2**40, -3, 7, 7, 0, 11], device=fast_place.device)
    by_row = torch.linspace(0.2, 1.5, 7, device=fast_place.device)
    given = {"plain": {}, "no bias": {}, "softcap": {"softcap": 4.0}, "by row": {"temperature": by_row.flip(0)}}[kind]
    std = by_row if kind == "by row" else 0.7
    for most in (h.least(), None):
        how = {"feature_noise_std": std, "row_id": ids, "max_workspace_bytes": most, **NOISE, **given}
        found = scored(h, fast_place, **how)
        tolerance = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]  # normals are float32
        if dtype == torch.float64 and fast_place.backend == "reference":
            tolerance = 1e-11
        expected = noisy(h, std, ids, **given)
        for name, value in expected.items():
            error = (getattr(found, name).cpu().double() - value).abs()
            assert (error <= tolerance * expected["predictive_entropy"]).all(), f"{name}: {error.max():.2e}"
        if dtype != torch.bfloat16:
            assert (found.mutual_information[: 2 if kind == "by row" else 7] > 0).all()


def test_the_noise_follows_the_row_id(fast_place):
    """However a batch is split, a row has the same noise; and the same numbers, but for the rounding of its product."""
    h = head(6, 33, 1100, ignored=False, place=fast_place)
    ids = torch.tensor([9, 2**40, -3, 7, 7, 0], device=fast_place.device)
    more = {"feature_noise_std": 0.7, **NOISE}
    whole = scored(h, fast_place, row_id=ids, **more)
    again = scored(h, fast_place, row_id=ids, **more)
    order = torch.tensor([4, 0, 5, 2], device=fast_place.device)
    some = Head(h.input[order], h.weight, h.bias, h.target[order])
    part = scored(some, fast_place, row_id=ids[order], **more)
    other = scored(h, fast_place, row_id=ids + 1, **more)
    for name in NOISY_SIGNALS:
        assert torch.equal(getattr(again, name), getattr(whole, name))
        torch.testing.assert_close(getattr(part, name), getattr(whole, name)[order], rtol=2e-5, atol=2e-6)
        assert ((getattr(other, name) - getattr(whole, name)).abs() > 1e-3).any()
    seed = torch.tensor(NOISE["seed"], device=fast_place.device)
    by_tensor = scored(h, fast_place, row_id=ids, **{**more, "seed": seed})
    assert torch.equal(by_tensor.noisy_entropy, whole.noisy_entropy)


def test_noise_changes_no_other_signal(fast_place):
    h = head(9, 6, 40, place=fast_place)
    clean, found = scored(h, fast_place), scored(h, fast_place, feature_noise_std=0.5)
    assert all(torch.equal(getattr(found, name), getattr(clean, name)) for name in SIGNALS)
    std = torch.zeros(9, device=fast_place.device)
    found = scored(h, fast_place, signals=("entropy", *NOISY_SIGNALS), feature_noise_std=std)
    for name in ("noisy_entropy", "predictive_entropy"):
        torch.testing.assert_close(getattr(found, name), clean.entropy, rtol=2e-6, atol=1e-7)
    assert (found.mutual_information <= 2e-6 * found.entropy).all()


def test_autocast(fast_place):
    """As `F.linear` under autocast: operands of whatever dtype become bfloat16, but for float64."""
    h = head(9, 6, 1100, place=fast_place)
    expected = scored(h.to(torch.bfloat16), fast_place)
    with torch.autocast(fast_place.device, torch.bfloat16):
        found = scored(h, fast_place)
        mixed = scored(h._replace(input=h.input.to(torch.bfloat16)), fast_place)
        defined = reference.linear_score(h.input, h.weight, h.target, linear_bias=h.bias, signals=SIGNALS)
    for name in SIGNALS:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
        assert torch.equal(getattr(mixed, name), getattr(expected, name)), name
        close = {"rtol": 2e-2, "atol": 2e-2} if name != "prediction" else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(getattr(found, name), getattr(defined, name), **close)


def test_a_history_has_its_signal_and_gives_the_probability(fast_place):
    h = head(12, 6, 40, place=fast_place)
    ours, theirs = ta.History(64), ta.History(64)
    found = scored(h, fast_place, signals="entropy", history=ours)
    expected = ta.score(
        F.linear(*h[:3]), h.target, signals="entropy", history=theirs, backend=fast_place.backend
    ).select_prob
    assert found.signals == ("entropy", "select_prob")
    torch.testing.assert_close(found.select_prob, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("names", [(), ("weight", "smoothing", "temperatures", "softcap")], ids=["plain", "options"])
def test_the_reference_on_materialised_logits(names, fast_place):
    """Signal for signal, noise included, what the definition gives."""
    for dtype in (torch.float64, torch.bfloat16):
        if dtype not in fast_place.dtypes:
            continue
        h = head(9, 6, 1100, dtype, place=fast_place)
        given = {"linear_bias": h.bias, "signals": ta.LINEAR_SIGNALS, **options(h, names)}
        given |= {"feature_noise_std": 0.4, "feature_noise_draws": 2, "seed": 3}
        found = ta.linear_score(h.input, h.weight, h.target, backend=fast_place.backend, **given)
        expected = reference.linear_score(h.input, h.weight, h.target, **given)
        close = {"rtol": 1e-11, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-2, "atol": 1e-2}
        for name in ta.LINEAR_SIGNALS:
            if name in NOISY_SIGNALS:  # of normals that are float32
                torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=2e-2, atol=1e-2)
            elif name != "prediction" or dtype == torch.float64:
                torch.testing.assert_close(getattr(found, name), getattr(expected, name), **close)
