"""History: the authors' rule, in a window and in a histogram, from masked, poisoned and empty batches."""

import collections
import copy

import numpy as np
import pytest
import torch
import torchassay as ta
from torchassay.backends import native
from torchassay.checks import InputTypeError, InputValueError


def official(window: collections.deque, values: np.ndarray, beta: float, p_min: float = 0.0) -> np.ndarray:
    """The authors' rule, sample by sample: append the batch, then the share strictly below to the power of beta."""
    window.extend(values.tolist())
    latest = np.array(window, dtype=np.float32)
    return np.array([max(p_min, np.float32((latest < value).mean()) ** beta) for value in values])


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_a_thousand_batches_of_the_official_rule(beta, place):
    generator = np.random.default_rng(3)
    window, history = collections.deque(maxlen=512), ta.History(512, beta=beta)
    for step in range(20 if place.slow else 1000):
        size = int(generator.choice([1, 7, 64, 700]))  # the last overruns the window
        values = generator.gamma(2.0, size=size).round(1 if step % 2 else 6).astype(np.float32)
        found = history.probability(torch.from_numpy(values).to(place.device))
        np.testing.assert_allclose(found.cpu().numpy(), official(window, values, beta), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("beta", "share"), [(1.0, 0.5), (2.0, 1 / 3), (3.0, 0.25)])
@pytest.mark.parametrize("bins", [None, True])
def test_the_selected_share(beta, share, bins):
    generator = torch.Generator().manual_seed(1)
    history, selected = ta.History(1024, beta=beta, bins=bins), []
    for step in range(200):
        values = torch.rand(1024, generator=generator).log().neg()
        selected.append(history.select(values, seed=5, step=step).float().mean())
    assert torch.stack(selected[1:]).mean().item() == pytest.approx(share, abs=0.01)


def test_a_sample_keeps_its_draw_however_the_batch_is_split():
    values, ids = torch.rand(300), torch.randperm(300) + (1 << 33)
    whole = ta.History().select(values, seed=1, step=2, row_id=ids)
    history = ta.History().frozen()
    chance = ta.History()
    chance.update(values)
    halves = [
        chance.frozen().select(values[part], seed=1, step=2, row_id=ids[part]) for part in (slice(150), slice(150, 300))
    ]
    assert torch.equal(torch.cat(halves), whole)
    assert not torch.equal(chance.frozen().select(values, seed=1, step=3, row_id=ids), whole)
    assert history.select(values, seed=1, step=2).all()  # an empty window selects everything


def test_ignored_rows_and_nan_leave_the_window_alone():
    values = torch.tensor([1.0, torch.nan, 3.0, 2.0, 9.0, torch.inf])
    mask = torch.tensor([True, True, True, True, False, True])
    history = ta.History(8, p_min=0.1)
    found = history.probability(values, mask=mask)
    assert torch.equal(found, torch.tensor([0.1, 0.1, 0.5, 0.25, 0.0, 0.75]))  # of 1, 3, 2, inf
    assert torch.equal(history.cdf(torch.tensor([10.0, 0.5, 1e30])), torch.tensor([0.75, 0.0, 0.75]))
    nothing = ta.History(8)
    assert torch.equal(nothing.probability(values, mask=torch.zeros(6, dtype=torch.bool)), torch.zeros(6))
    assert torch.equal(nothing.cdf(torch.tensor([1.0])), torch.ones(1))  # still empty


def test_ignored_rows_do_not_lift_the_selected_share():
    """60 % ignored rows at loss 0 in the window would lift the share at beta = 3 from 0.25 to above 0.5."""
    generator, history, shares = torch.Generator().manual_seed(2), ta.History(1024, beta=3.0), []
    for _ in range(100):
        x = torch.randn(500, 10, generator=generator)
        y = torch.randint(10, (500,), generator=generator).masked_fill(torch.rand(500, generator=generator) < 0.6, -100)
        chance = ta.score(x, y, history=history).select_prob
        assert (chance[y == -100] == 0).all()
        shares.append(chance[y != -100].mean())
    assert torch.stack(shares[5:]).mean().item() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("ties", ["strict", "midrank"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_one_native_call_is_the_chain_of_ops(beta, ties, monkeypatch):
    if native is None:
        pytest.skip("the C++ extension is not built")
    generator = torch.Generator().manual_seed(9)
    options = {"beta": beta, "ties": ties, "p_min": 0.05}
    a, b = ta.History(100, **options), ta.History(100, **options)
    for size in (1, 0, 30, 250, 99, 100, 7):
        values = torch.randn(size, 2, generator=generator).mul(4).round().div(4)[:, 0]
        values[torch.rand(size, generator=generator) < 0.1] = torch.nan
        mask = None if size == 30 else torch.rand(size, generator=generator) < 0.7
        update = size != 99
        one = a.probability(values, mask=mask, update=update)
        with monkeypatch.context() as patch:
            patch.setenv("TORCHASSAY_BACKEND", "reference")
            chain = b.probability(values, mask=mask, update=update)
        torch.testing.assert_close(one, chain, rtol=1e-6, atol=0)
        if beta == 1.0:
            assert torch.equal(one, chain)
        for name, value in a.state_dict().items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(b.state_dict()[name])), name


@pytest.mark.parametrize("capacity", [1, 5, 64, 1000])
def test_appending_without_waiting_is_appending(capacity):
    """What a GPU does, where the host may not look how many values are valid, against what the CPU does."""
    generator, a, b = torch.Generator().manual_seed(capacity), ta.History(capacity), ta.History(capacity)
    for size in (3, 0, 1, 64, 7, 2 * capacity + 3, 5, 1):
        values = torch.randn(size, generator=generator)
        valid = torch.rand(size, generator=generator) < 0.7
        for history in (a, b):
            if not history._state:
                history._begin(values.device)
        a._append(values, valid)
        b._append_without_waiting(values, valid)
        held = min(capacity, int(a._state["total"]))
        assert a._state["total"] == b._state["total"]
        assert torch.equal(a._state["window"][:held], b._state["window"][:held])


@pytest.mark.parametrize("ties", ["strict", "midrank"])
def test_the_histogram_is_within_a_bin_of_the_window(ties):
    """One batch fills both; a bin is at most 2^-7 of its values wide."""
    values = torch.randn(4096, generator=torch.Generator().manual_seed(4)).exp()
    exact, rough = ta.History(4096, ties=ties), ta.History(4096, ties=ties, bins=True)
    exact.update(values)
    rough.update(values)
    at = torch.logspace(-3, 2, 500)
    low, high = exact.cdf(at * (1 - 2**-7)), exact.cdf(at * (1 + 2**-7))
    found = rough.cdf(at)
    assert ((found >= low - 1e-6) & (found <= high + 1e-6)).all()
    assert torch.equal(rough.cdf(torch.tensor([-1.0, -0.0, 0.0])), torch.zeros(3))
    assert rough.cdf(torch.tensor(torch.nan)).isnan()


def test_the_histogram_forgets_at_the_pace_of_the_window():
    history = ta.History(1000, bins=True)
    for _ in range(10):
        history.update(torch.full((100,), 1.0))
    for _ in range(10):
        history.update(torch.full((100,), 4.0))
    assert history.cdf(torch.tensor([2.0])).item() == pytest.approx(0.9**10 * (1 - 0.9**10) / (1 - 0.9**20), rel=1e-4)
    assert history._state["counts"].nbytes == 128 << 10


def test_ties():
    same = torch.full((10,), 2.0)
    assert (ta.History(ties="strict").probability(same) == 0).all()
    assert (ta.History(ties="strict", p_min=0.2).probability(same) == 0.2).all()
    assert (ta.History(ties="midrank").probability(same) == 0.5).all()
    assert (ta.History(ties="midrank", bins=True).probability(same) == 0.5).all()


def test_score_gives_the_probability_of_its_signal(place):
    x = torch.randn(40, 7, generator=torch.Generator().manual_seed(6)).to(place.device)
    y = torch.arange(40, device=place.device) % 7
    for signal, asked in (("loss", None), ("entropy", ("margin",)), ("grad_norm", ("grad_norm", "loss"))):
        history, other = ta.History(signal=signal, beta=2), ta.History(signal=signal, beta=2)
        for _ in range(2):
            found = ta.score(x, y, signals=asked, history=history, backend=place.backend)
            names = asked or ("loss", "entropy", "grad_norm")
            assert found.signals == (*names, "select_prob")
            values = getattr(ta.score(x, y, signals=(signal,), backend=place.backend), signal)
            assert torch.equal(found.select_prob, other.probability(values))
    before = copy.deepcopy(history.state_dict())
    frozen = ta.score(x, y, signals=asked, history=history.frozen(), backend=place.backend).select_prob
    assert torch.equal(frozen, found.select_prob)
    assert all(torch.equal(before[name], value) for name, value in history.state_dict().items() if name in ("window",))
    shaped = ta.score(x.view(5, 8, 7), y.view(5, 8), history=ta.History(), backend=place.backend).select_prob
    assert shaped.shape == (5, 8)
    entropy = ta.History(signal="entropy")
    assert ta.score(x, history=entropy, backend=place.backend).select_prob.shape == (40,)
    assert ta.reference.score(x, y, history=ta.History()).signals[-1] == "select_prob"


def test_nan_logits_are_never_picked_unless_p_min_picks_them(place):
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(7)).to(place.device)
    x[3, 1] = torch.nan
    y = torch.zeros(20, dtype=torch.int64, device=place.device)
    history = ta.History()
    chance = ta.score(x, y, history=history, backend=place.backend).select_prob
    assert chance[3] == 0 and not chance.isnan().any()
    assert history.state_dict()["total"] == 19
    assert ta.score(x, y, history=ta.History(p_min=0.3), backend=place.backend).select_prob[3] == torch.tensor(0.3)


@pytest.mark.parametrize("bins", [None, True])
def test_the_state_is_taken_up_where_it_was_left(bins):
    values = torch.rand(5, 50, generator=torch.Generator().manual_seed(8))
    straight, first = ta.History(64, bins=bins), ta.History(64, bins=bins)
    for batch in values[:3]:
        straight.probability(batch)
        first.probability(batch)
    second = ta.History(64, bins=bins)
    second.load_state_dict(first.state_dict())
    first.update(values[0])  # the state was a copy
    for batch in values[3:]:
        assert torch.equal(second.probability(batch), straight.probability(batch))
    empty = ta.History(64, bins=bins)
    empty.load_state_dict(ta.History(64, bins=bins).state_dict())
    assert torch.equal(empty.cdf(values[0]), torch.ones(50))


@pytest.mark.filterwarnings("ignore:Dynamo does not know:UserWarning")
def test_compiled_code_leaves_its_graph_for_a_history():
    compiled, plain = ta.History(), ta.History()
    score = torch.compile(lambda x, y: ta.score(x, y, history=compiled).select_prob * 2, backend="eager")
    for seed in range(3):
        x = torch.randn(20, 7, generator=torch.Generator().manual_seed(seed))
        y = torch.arange(20) % 7
        assert torch.equal(score(x, y), ta.score(x, y, history=plain).select_prob * 2)
    assert compiled.state_dict()["total"] == plain.state_dict()["total"] == 60


def test_frozen_views_share_the_window():
    history = ta.History(4)
    view = history.frozen()
    history.update(torch.tensor([1.0, 2.0]))
    assert torch.equal(view.probability(torch.tensor([1.5])), torch.tensor([0.5]))
    with pytest.raises(RuntimeError, match=r"^History.update: this is a frozen view of a history$"):
        view.update(torch.tensor([1.0]))


def test_half_precision_and_double_values_are_taken_as_float32():
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        values = torch.tensor([0.5, 1.5, 1.0]).to(dtype)
        assert torch.equal(ta.History().probability(values), torch.tensor([0.0, 2 / 3, 1 / 3]))


BAD = {
    "capacity 0": (
        lambda: ta.History(0),
        ValueError,
        r"History: capacity must be in \[1, 1048576\], or at least 1 with",
    ),
    "capacity -1": (lambda: ta.History(-1, bins=True), ValueError, "History: capacity must be at least 1, got -1"),
    "capacity 2.0": (lambda: ta.History(2.0), TypeError, "History: capacity must be an int, got float"),
    "too large": (lambda: ta.History((1 << 20) + 1), ValueError, "or at least 1 with bins=True, got 1048577"),
    "beta": (lambda: ta.History(beta=-0.5), ValueError, "History: beta must be at least 0 and finite, got -0.5"),
    "beta nan": (lambda: ta.History(beta=float("nan")), ValueError, "History: beta must be at least 0 and finite"),
    "p_min": (lambda: ta.History(p_min=1.5), ValueError, r"History: p_min must be in \[0, 1\], got 1.5"),
    "ties": (lambda: ta.History(ties="x"), ValueError, "History: ties must be 'strict' or 'midrank', got 'x'"),
    "signal": (lambda: ta.History(signal="prediction"), ValueError, "History: signal must be one of loss, entropy"),
    "values": (
        lambda: ta.History().update(torch.arange(3)),
        TypeError,
        "History.update: values must be floating-point",
    ),
    "no tensor": (lambda: ta.History().cdf(1.0), TypeError, "History.cdf: values must be a Tensor, got float"),
    "mask": (
        lambda: ta.History().update(torch.ones(3), torch.ones(2, dtype=torch.bool)),
        ValueError,
        r"History.update: mask must be bool of shape \(3,\) on cpu, got bool of shape \(2,\) on cpu",
    ),
    "row_id": (
        lambda: ta.History().select(torch.ones(3), seed=0, step=0, row_id=torch.arange(2)),
        ValueError,
        r"History.select: row_id must have the shape of values \(3,\), got \(2,\)",
    ),
    "state": (
        lambda: ta.History(8).load_state_dict(ta.History(9).state_dict()),
        ValueError,
        "History: the state must have capacity=8, got 9",
    ),
    "history": (
        lambda: ta.score(torch.ones(2, 3), history="loss"),
        TypeError,
        "score: history must be a History, got str",
    ),
    "no target": (
        lambda: ta.score(torch.ones(2, 3), history=ta.History()),
        ValueError,
        "score: signal 'loss' needs a target, got none",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message) as error:
        call()
    assert isinstance(error.value, (InputValueError, InputTypeError))


def test_a_history_on_another_device():
    history = ta.History()
    history.update(torch.ones(3))
    with pytest.raises(ValueError, match=r"^History.cdf: values must be on the window's device, cpu, got meta$"):
        history.cdf(torch.ones(3, device="meta"))


def test_a_corrupted_state_is_refused():
    state = ta.History(8).state_dict() | {"window": torch.zeros(7), "total": torch.zeros((), dtype=torch.int64)}
    with pytest.raises(
        ValueError, match=r"^History: the state must have 'window' of shape \(8,\), float32, got \(7,\)"
    ):
        ta.History(8).load_state_dict(state)
    del state["total"]
    state["window"] = torch.zeros(8)
    with pytest.raises(ValueError, match=r"^History: the state must have 'total' of shape \(\), int64, got none"):
        ta.History(8).load_state_dict(state)
