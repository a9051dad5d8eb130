"""Streams, devices, graphs, waiting and memory: what the host sees of the kernels."""

import gc
import warnings

import pytest
import torch
import torchassay as ta
from torchassay.scores import ROW_SIGNALS

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

SHAPES = pytest.mark.parametrize(("rows", "classes"), [(2000, 10), (300, 1000), (5, 4097), (7, 50257)])
THREE = ("loss", "entropy", "grad_norm")
LONG = 1_000_000_000  # cycles: about half a second, for the host may be busy with other tests


def step(x, y, backend):
    """A training step: loss, scores, gradient."""
    loss, scores = ta.cross_entropy(x, y, signals=THREE, backend=backend)
    return [loss.detach(), *scores.as_dict().values(), torch.autograd.grad(loss, x)[0]]


@SHAPES
def test_work_on_another_stream_waits_for_its_input_there(rows, classes, backend, batch):
    """The input comes into being on a side stream, after a kernel that takes long: nothing else orders the two."""
    source, y = batch(rows, classes)
    expected = step(source.clone().requires_grad_(), y, backend)
    x = torch.zeros_like(source).requires_grad_()
    step(x, y, backend)  # what is compiled and allocated at first takes no part
    torch.cuda.synchronize()
    side, done = torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(side):
        torch.cuda._sleep(LONG)
        x.data.copy_(source)
        found = step(x, y, backend)
        done.record()
    assert not done.query()  # nobody waited for the side stream: the kernels are queued on it
    torch.cuda.current_stream().wait_event(done)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    torch.cuda.synchronize()


@SHAPES
def test_another_device_than_the_current_one(rows, classes, backend, batch):
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    x, y = batch(rows, classes)
    expected = step(x.requires_grad_(), y, backend)
    there = [tensor.detach().to("cuda:1") for tensor in (x, y)]
    found = step(there[0].requires_grad_(), there[1], backend)
    assert torch.cuda.current_device() == 0
    assert all(value.device.index == 1 for value in found)
    if torch.cuda.get_device_name(0) == torch.cuda.get_device_name(1):
        assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(found, expected, strict=True))


@SHAPES
def test_a_captured_graph_gives_what_a_call_gives_for_new_inputs(rows, classes, backend, batch):
    x, y = batch(rows, classes)
    x.requires_grad_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            ta.score(x, y, signals=ROW_SIGNALS, backend=backend)
            step(x, y, backend)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        scores = ta.score(x, y, signals=ROW_SIGNALS, backend=backend)
        stepped = step(x, y, backend)
    for seed in (1, 2):
        fresh, target = batch(rows, classes, seed=seed)
        x.data.copy_(fresh)
        y.copy_(target)
        graph.replay()
        torch.cuda.synchronize()
        expected = ta.score(fresh, target, signals=ROW_SIGNALS, backend=backend)
        assert all(torch.equal(getattr(scores, name), value) for name, value in expected.as_dict().items())
        again = step(fresh.requires_grad_(), target, backend)
        assert all(torch.equal(a, b) for a, b in zip(stepped, again, strict=True))


@pytest.fixture
def never_wait():
    """Every call that makes the host wait for the GPU is an error."""

    def switch(mode):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that not every such call is noticed
            torch.cuda.set_sync_debug_mode(mode)

    yield lambda: switch("error")
    switch("default")


@SHAPES
def test_targets_out_of_range_are_nan_and_nobody_waits(rows, classes, backend, batch, never_wait):
    x, y = batch(rows, classes)
    expected = ta.score(x, y, signals=ROW_SIGNALS, backend=backend)
    wrong = y.clone()
    bad = torch.tensor([0, rows // 2, rows - 1], device="cuda")
    wrong[bad] = torch.tensor([-1, classes, 2**40], device="cuda")
    x.requires_grad_()
    ta.score(x, wrong, signals=ROW_SIGNALS, backend=backend)
    slope = step(x, y, backend)[-1]  # and everything is compiled
    never_wait()
    found = ta.score(x, wrong, signals=ROW_SIGNALS, backend=backend)
    none, scores = ta.cross_entropy(x, wrong, reduction="none", signals=THREE, backend=backend)
    gradient = torch.autograd.grad(none.sum() / rows, x)[0]
    torch.cuda.set_sync_debug_mode("default")
    right = torch.ones(rows, dtype=torch.bool, device="cuda")
    right[bad] = False
    for name, value in found.as_dict().items():
        if name in ("loss", "grad_norm", "target_margin"):
            assert value[bad].isnan().all(), name
            assert torch.equal(value[right], getattr(expected, name)[right]), name
        else:
            assert torch.equal(value, getattr(expected, name)), name
    assert none[bad].isnan().all() and scores.loss[bad].isnan().all()
    assert gradient[bad].isnan().all()
    torch.testing.assert_close(gradient[right], slope[right], rtol=1e-6, atol=0)


@SHAPES
def test_ignored_rows_and_a_mean_make_nobody_wait(rows, classes, backend, batch, never_wait):
    x, y = batch(rows, classes)
    x.requires_grad_()
    y[::2] = -100
    before = step(x, y, backend)
    never_wait()
    found = step(x, y, backend)
    torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(found, before, strict=True))
    assert (found[-1][::2] == 0).all() and found[0].isfinite()


@SHAPES
def test_no_memory_stays_behind(rows, classes, backend, batch):
    x, y = batch(rows, classes)
    x.requires_grad_()

    def left() -> int:
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    for _ in range(2):
        step(x, y, backend)
    before = left()
    for _ in range(20):
        step(x, y, backend)
        ta.score(x, y, signals=ROW_SIGNALS, backend=backend)
    assert left() == before


def test_a_forced_backend_raises_for_what_it_cannot_do(backend, batch):
    x, y = batch(4, 10)
    with pytest.raises(RuntimeError, match=f"score: backend '{backend}' is not available for this call: .*float64"):
        ta.score(x.double(), y, backend=backend)
    with pytest.raises(ValueError, match="score: target"):
        ta.score(x, y.cpu(), backend=backend)
    assert ta.score(x, y, backend=backend).loss.isfinite().all()


def test_inputs_are_not_written_to(backend, batch, bits):
    for rows, classes in ((300, 127), (3, 50257)):
        x, y = batch(rows, classes, torch.bfloat16)
        before = x.clone(), y.clone()
        x.requires_grad_()
        step(x, y, backend)
        assert torch.equal(bits(x.detach()), bits(before[0])) and torch.equal(y, before[1])


@pytest.mark.parametrize("bins", [None, True], ids=["window", "histogram"])
def test_a_history_is_that_of_the_cpu_and_nobody_waits(bins, backend, never_wait, monkeypatch):
    monkeypatch.setenv("TORCHASSAY_BACKEND", backend)
    there, here = ta.History(1000, beta=2, bins=bins), ta.History(1000, beta=2, bins=bins)
    generator = torch.Generator().manual_seed(4)
    batches = [
        (torch.rand(size, generator=generator), torch.rand(size, generator=generator) < 0.8) for size in (300, 2500, 7)
    ]
    moved = [(values.cuda(), mask.cuda()) for values, mask in batches]
    seed = torch.tensor(11, device="cuda")
    ta.History(1000, bins=bins).select(*moved[0][:1], seed=seed, step=0, mask=moved[0][1])  # compiled by now
    torch.cuda.synchronize()
    never_wait()
    found = [there.select(values, seed=seed, step=step, mask=mask) for step, (values, mask) in enumerate(moved)]
    torch.cuda.set_sync_debug_mode("default")
    monkeypatch.delenv("TORCHASSAY_BACKEND")
    for step, (values, mask) in enumerate(batches):
        expected = here.select(values, seed=11, step=step, mask=mask)
        assert (found[step].cpu() != expected).float().mean() < 0.01  # a probability may differ by one rounding


def test_the_top_fraction_is_that_of_the_cpu_captured_or_not_and_nobody_waits(never_wait):
    generator = torch.Generator().manual_seed(6)
    batches = [torch.randn(2, 3000, generator=generator).bfloat16().float() for _ in range(3)]  # many are equal
    mask = torch.rand(2, 3000, generator=generator) < 0.6
    values, there = batches[0].cuda(), mask.cuda()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        ta.top_fraction(values, 0.2, there)
    torch.cuda.synchronize()
    never_wait()
    called = ta.top_fraction(values, 0.2, there)
    torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(called.cpu(), ta.top_fraction(batches[0], 0.2, mask))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        captured = ta.top_fraction(values, 0.2, there)
    for batch in batches[1:]:
        values.copy_(batch)
        graph.replay()
        assert torch.equal(captured.cpu(), ta.top_fraction(batch, 0.2, mask))
