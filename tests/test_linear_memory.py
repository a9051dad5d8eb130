"""What linear heads hold and multiply: memory within the workspace, and no product with rows that do not count."""

import linear_heads
import pytest
import torch
import torchassay as ta
from linear_heads import gradients, head, loss_of, products
from torchassay.scores import NOISY_SIGNALS

ROWS, FEATURES, CLASSES = 64, 16, 20_000
SMALL = 160 << 10  # bytes for what is a number a row, states of chunks, what a library packs for a product


def peak(function, place) -> int:
    """The most bytes that tensors held at a time during a call, beyond those before; its results are among them."""
    if place.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    function()  # what is allocated once and kept is not counted
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def big(place, dtype=torch.float32, **how):
    return head(ROWS, FEATURES, CLASSES, dtype, place=place, **how)


def test_the_measure(fast_place):
    """Two tensors of which one is gone before the next is there."""

    def function():
        first = torch.zeros(1 << 20, device=fast_place.device)
        del first
        return torch.zeros(1 << 19, device=fast_place.device)

    assert 4 << 20 <= peak(function, fast_place) < (4 << 20) + SMALL


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scores_fit_in_the_workspace(dtype, fast_place):
    """Also the sweep for the norm under weights and smoothing, and the draws of noise; the logits would not."""
    if fast_place.backend == "reference":
        pytest.skip("the reference holds several tensors of a chunk's size")
    h = big(fast_place, dtype)
    weight = torch.linspace(0.5, 2, CLASSES, device=fast_place.device)
    logits = ROWS * CLASSES * dtype.itemsize
    for how in ({}, {"weight": weight, "label_smoothing": 0.1}):
        for most in (h.least(), 2 * h.least()):
            used = peak(lambda how=how, most=most: score(h, fast_place, max_workspace_bytes=most, **how), fast_place)
            assert used <= most + SMALL, f"{used} of {most}"
            assert most < logits / 2


def score(h, place, **how):
    return ta.linear_score(h.input, h.weight, h.target, linear_bias=h.bias, backend=place.backend, **how)


def test_draws_of_noise_fit_in_the_workspace(fast_place):
    if fast_place.backend == "reference":
        pytest.skip("the reference holds several tensors of a chunk's size")
    h = big(fast_place)
    copies = 6 * ROWS * FEATURES * 4
    how = {"feature_noise_std": 0.3, "feature_noise_draws": 3, "max_workspace_bytes": 2 * h.least()}
    for names in ("noisy_entropy", NOISY_SIGNALS):
        used = peak(lambda names=names: score(h, fast_place, signals=names, **how), fast_place)
        assert used <= 2 * h.least() + copies + SMALL


@pytest.mark.parametrize("wanted", [(0, 1, 2), (0,), (1,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_training_step_fits_in_the_workspace_beside_its_gradients(dtype, wanted, fast_place):
    if fast_place.backend == "reference":
        pytest.skip("the reference holds several tensors of a chunk's size")
    h = big(fast_place, dtype, ignored=False).leaves()
    for at, operand in enumerate(h.operands):
        operand.requires_grad_(at in wanted)
    asked = [operand for at, operand in enumerate(h.operands) if at in wanted]
    grads = sum(operand.numel() * operand.element_size() for operand in asked)
    sums = ROWS * FEATURES * 4 * 2 if 0 in wanted else 0  # of float32, and a chunk's part of it
    half = dtype != torch.float32 and 0 in wanted
    most = 2 * h.least()
    used = peak(lambda: torch.autograd.grad(loss_of(h, fast_place, max_workspace_bytes=most), asked), fast_place)
    if half and fast_place.device == "cpu":  # a CPU has no product of half precision that is summed in float32
        sums += 4 * (ROWS + FEATURES) * most // (2 * ROWS * dtype.itemsize)
    assert used <= most + grads + sums + SMALL, f"{used} of {most} and {grads}"
    assert most < ROWS * CLASSES * dtype.itemsize / 2


# ---- rows that do not count


def test_ignored_rows_are_left_out_of_every_product(fast_place):
    h = head(20, 6, 2100, place=fast_place).leaves()
    counted = int((h.target != -100).sum())
    assert counted == 16

    def rows_of(**how) -> set[int]:
        with torch.profiler.profile(record_shapes=True, acc_events=True) as profile:
            result = loss_of(h, fast_place, **how)
            (result if torch.is_tensor(result) else result[0]).backward()
        found = products(profile)
        assert len(found) == (3 if fast_place.backend == "triton" else 4)  # whose forward needs no product in memory
        return {size for shapes in found for shape in shapes for size in shape} - {6, 2100}

    assert rows_of() == rows_of(signals=("loss", "grad_norm", "target_margin", "weight_grad_norm")) == {16}
    assert rows_of(signals=("entropy",)) == rows_of(signals=("loss", "prediction")) == {20}
    h.target.fill_(-100)
    assert rows_of() <= {0}


def test_what_an_ignored_row_holds_has_no_effect(fast_place):
    h = head(20, 6, 1300, place=fast_place)
    poisoned = h.input.clone()
    poisoned[4], poisoned[9, 2], poisoned[14, 0] = torch.nan, torch.inf, -torch.inf
    results = []
    for input in (h.input, poisoned):
        leaves = h._replace(input=input).leaves()
        weight = linear_heads.given("weight", h)["weight"]
        T = torch.linspace(0.5, 2, 20, device=fast_place.device)
        options = {"weight": weight, "label_smoothing": 0.1, "temperature": T, "signals": ("loss", "grad_norm")}
        loss, scores = loss_of(leaves, fast_place, **options)
        results.append([loss.detach(), *scores.as_dict().values(), *gradients(loss, leaves)])
    assert all(map(torch.equal, *results))
    loss, scores, _, of_input, *_ = results[1]
    assert loss.isfinite() and not of_input[[4, 9, 14, 19]].any() and not scores[[4, 9, 14, 19]].any()


def test_rows_of_which_more_is_asked_are_not_left_out(fast_place):
    h = head(10, 6, 40, place=fast_place)
    _, scores = loss_of(h, fast_place, signals=("entropy", "loss"))
    expected = ta.linear_score(h.input, h.weight, linear_bias=h.bias, signals="entropy", backend=fast_place.backend)
    assert torch.equal(scores.entropy, expected.entropy) and (scores.entropy[[4, 9]] > 0).all()
    assert not scores.loss[[4, 9]].any()
