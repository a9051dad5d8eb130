"""Which backend a call takes, what a forced one says when it can't, warnings, workers."""

import subprocess
import sys
import threading
import types
import warnings

import pytest
import scored
import torch
import torchassay as ta
from torchassay.ops import memory, rows
from torchassay.scores import ROW_SIGNALS

module = sys.modules["torchassay.backends"]  # the attribute of that name is the function
X, Y = torch.zeros(3, 5), torch.tensor([0, 1, 2])
MISSING = "the C++ extension is not there (none); reinstall with a C++ compiler, without TORCHASSAY_NATIVE=0"
NO_INTERPRETER = "Triton takes CPU tensors only in its interpreter (TRITON_INTERPRET=1)"


@pytest.fixture
def fresh(monkeypatch):
    """No warning given yet, no backend forced from outside."""
    monkeypatch.setattr(module, "_warned", set())
    monkeypatch.delenv("TORCHASSAY_BACKEND", raising=False)
    return monkeypatch


@pytest.fixture
def no_native(fresh):
    fresh.setattr(module, "native", None)
    fresh.setattr(module, "_missing", MISSING, raising=False)
    return fresh


def message(kind, function, *arguments, **options):
    with pytest.raises(kind) as error:
        function(*arguments, **options)
    return str(error.value)


def test_a_forced_backend_that_is_not_built(no_native):
    for function, arguments in ((ta.score, (X,)), (ta.cross_entropy, (X, Y)), (ta.entropy, (X,))):
        name = function.__name__
        expected = f"{name}: backend 'native' is not available for this call: {MISSING}"
        assert message(RuntimeError, function, *arguments, backend="native") == expected


def test_forced_triton_without_its_interpreter_or_a_gpu(fresh):
    fresh.setenv("TRITON_INTERPRET", "0")
    expected = f"score: backend 'triton' is not available for this call: {NO_INTERPRETER}"
    assert message(RuntimeError, ta.score, X, backend="triton") == expected


def test_forced_triton_with_float64(fresh):
    expected = "entropy: backend 'triton' is not available for this call: the GPU kernels have no float64"
    assert message(RuntimeError, ta.entropy, X.double(), backend="triton") == expected


def test_forced_triton_that_is_not_installed(fresh):
    fresh.setattr(module.importlib.util, "find_spec", lambda name: None)
    expected = "score: backend 'triton' is not available for this call: triton is not installed"
    assert message(RuntimeError, ta.score, X, backend="triton") == expected


def test_forced_native_on_another_device(fresh):
    if module.native is None:
        pytest.skip("the C++ extension is not built")
    expected = "the native kernels run on the CPU and on NVIDIA GPUs, the input is on xpu"
    assert module.why_not("native", "xpu", torch.float32) == expected


@pytest.fixture
def gpu(fresh):
    """gpu(cuda=..., capability=...): as if torch saw such a GPU, and the extension had been built with CUDA or not."""

    def seen(cuda=True, capability=(9, 0)):
        module._why_not_cuda.cache_clear()
        fresh.setattr(module, "native", types.SimpleNamespace(cuda=cuda))
        fresh.setattr(torch.cuda, "is_available", lambda: capability is not None)
        fresh.setattr(torch.version, "cuda", "13.0")
        fresh.setattr(torch.cuda, "get_device_capability", lambda: capability)

    yield seen
    module._why_not_cuda.cache_clear()


def test_which_gpus_the_native_kernels_take(gpu):
    def why(dtype=torch.float32):
        return module.why_not("native", "cuda", dtype)

    gpu()
    assert why() == ""
    assert why(torch.float64) == "the GPU kernels have no float64"
    gpu(capability=(7, 5))
    assert why() == "the CUDA kernels need compute capability 8.0, this GPU has 7.5"
    gpu(capability=None)
    assert why() == "torch sees no NVIDIA GPU"
    gpu(cuda=False)
    assert why() == "the C++ extension was built without CUDA; reinstall where nvcc is on PATH"


def test_a_gpu_tensor_takes_the_rule_then_the_other_then_the_reference(gpu):
    def chosen(classes, dtype=torch.float32):
        return module.choose("score", "cuda", dtype, classes, "")

    gpu()
    gpu_rule = ((10, "native", "triton"), (sys.maxsize, "triton", "native"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CUDA_RULE", gpu_rule)
        assert [chosen(classes) for classes in (1, 10, 11)] == ["native", "native", "triton"]
        assert [chosen(classes, torch.bfloat16) for classes in (10, 11)] == ["triton", "native"]
    assert {name for rule in module.CUDA_RULE for name in rule[1:]} <= {"native", "triton"}
    assert chosen(10**6) == module.CUDA_RULE[-1][1]
    gpu(cuda=False)
    assert chosen(1000) == "triton"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.importlib.util, "find_spec", lambda name: None)
        why = "the C\\+\\+ extension was built without CUDA; reinstall where nvcc is on PATH; triton is not installed"
        with pytest.warns(ta.BackendFallback, match=f"^score takes the slow reference: {why}$"):
            assert chosen(1000) == "reference"
    with pytest.warns(ta.BackendFallback, match="^score takes the slow reference: the GPU kernels have no float64$"):
        assert chosen(1000, torch.float64) == "reference"


class Current:
    """Stands in for making a device the current one."""

    entered = False

    def __enter__(self):
        self.entered = True

    def __exit__(self, *_):
        self.entered = False


@pytest.mark.parametrize(("device", "current", "changes"), [(0, 0, False), (1, 1, False), (1, 0, True)])
def test_kernels_run_where_the_tensor_is(device, current, changes, fresh):
    fresh.setattr(torch.cuda, "current_device", lambda: current)
    tensor = types.SimpleNamespace(is_cuda=True, get_device=lambda: device)
    fresh.setattr(torch.cuda, "device_of", lambda given: ("guard", given))
    assert (memory.current(tensor) == ("guard", tensor)) == changes
    assert memory.current(X) is memory._HERE


@pytest.mark.parametrize("classes", [10, 9000])
def test_the_cuda_kernels_are_handed_what_the_cpu_kernels_are(classes, fresh):
    """Without a GPU: the CPU's kernels stand in for those of the GPU, which take a place instead of threads."""
    native = module.native
    if native is None:
        pytest.skip("the C++ extension is not built")
    seen, current = [], Current()

    # the CPU's rows have a stride of the classes too, after their seven numbers
    def scores(*call):
        assert current.entered
        seen.append(call[-3:])
        native.row_scores(*call[:7], 1, *call[7:-3], 1)

    def grads(*call):
        assert current.entered
        seen.append(call[-2:])
        native.row_grads(*call[:7], 1, *call[7:-2], 1)

    def workspace(dtype, rows, classes, device):
        return rows * classes if classes > 8192 else 0

    stand_in = {"cuda_row_scores": scores, "cuda_row_grads": grads, "cuda_row_scores_workspace": workspace}
    x = torch.randn(2, 3, classes, generator=torch.Generator().manual_seed(112))[:, 1:].requires_grad_()
    y = torch.tensor([[0, 3], [classes - 1, 5]])

    def results():
        loss, found = ta.cross_entropy(x, y, dim=-1, signals=ROW_SIGNALS, reduction="sum", backend="native")
        return *found.as_dict().values(), *torch.autograd.grad(loss, x)

    expected = results()
    fresh.setattr(rows, "native", types.SimpleNamespace(**stand_in))
    fresh.setattr(rows, "place", lambda input: (0, 77))
    fresh.setattr(rows, "current", lambda input: current)
    fresh.setattr(torch.Tensor, "is_cuda", True)
    for ours, theirs in zip(results(), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert [call[-2:] for call in seen] == [(0, 77), (0, 77)]
    assert (seen[0][0] != 0) == (classes > 8192)


def test_a_launch_that_fails_raises():
    if module.native is None or not module.native.cuda:
        pytest.skip("built without CUDA")
    device = torch.cuda.device_count()  # one past the last
    with pytest.raises(RuntimeError, match=r"^torchassay: .*: "):
        module.native.cuda_row_scores_workspace(0, 1, 10, device)
    with pytest.raises(RuntimeError, match=r"^torchassay: .*: "):
        module.native.cuda_row_scores(0, 0, 1, 1, 10, 0, 10, 0, False, 0, [0] * (len(ROW_SIGNALS) + 1), 0, device, 0)


def test_the_environment_forces_a_backend(no_native):
    no_native.setenv("TORCHASSAY_BACKEND", "native")
    expected = f"score: backend 'native' is not available for this call: {MISSING}"
    assert message(RuntimeError, ta.score, X) == expected
    no_native.setenv("TORCHASSAY_BACKEND", "reference")
    assert torch.equal(ta.score(X).entropy, ta.score(X, backend="reference").entropy)  # and no warning
    no_native.setenv("TORCHASSAY_BACKEND", "gpu")
    expected = "score: backend must be one of native, triton, reference, got 'gpu'"
    assert message(ValueError, ta.score, X) == expected
    assert ta.score(X, backend="reference").signals  # the argument wins over the environment


def test_a_fallback_warns_once_for_each_reason(no_native):
    def warned(function, *arguments, **options):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            function(*arguments, **options)
        assert all(issubclass(w.category, ta.BackendFallback) for w in found)
        return [str(w.message) for w in found]

    assert warned(ta.score, X) == [f"score takes the slow reference: {MISSING}"]
    assert warned(ta.score, X) == warned(ta.entropy, X) == []
    assert warned(ta.cross_entropy, X, Y, torch.ones(5)) == []
    no_native.setattr(module, "_missing", "it was lent out")
    assert warned(ta.score, X, Y, label_smoothing=0.1) == ["score takes the slow reference: it was lent out"]
    assert warned(ta.score, X, backend="reference") == []


def test_the_warning_points_at_the_caller(no_native):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        ta.score(X)
    assert found[0].filename == __file__


def test_no_warning_under_compile(no_native):
    compiled = torch.compile(lambda x: ta.score(x).entropy, backend="eager", fullgraph=True)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        compiled(X)
    assert not [w for w in found if issubclass(w.category, ta.BackendFallback)]


@pytest.mark.skipif(module.native is None, reason="the C++ extension is not built")
def test_explain_with_everything_there(fresh):
    fresh.setenv("TRITON_INTERPRET", "0")
    assert ta.explain(X) == f"native: cpu tensor, float32\nnot triton: {NO_INTERPRETER}"
    for options in ({"label_smoothing": 0.1}, {"temperature": 0.5, "softcap": 3.0}, {"noise_std": 1.0}):
        assert ta.explain(X, Y, **options) == ta.explain(X)
    assert ta.explain(X.double(), backend="reference") == (
        "reference: cpu tensor, float64\nnot triton: the GPU kernels have no float64"
    )


def test_explain_without_native(no_native):
    no_native.setenv("TRITON_INTERPRET", "0")
    expected = f"reference: cpu tensor, bfloat16\nnot native: {MISSING}\nnot triton: {NO_INTERPRETER}"
    assert ta.explain(X.bfloat16()) == expected
    expected = f"none: cpu tensor, float32\nnot native: {MISSING}\nnot triton: {NO_INTERPRETER}"
    assert ta.explain(X, backend="native") == expected


def test_explain_checks_its_arguments_as_score_does(fresh):
    expected = "explain: target has shape (2,) but input (3, 5) without dim -1 is (3,)"
    assert message(ValueError, ta.explain, X, Y[:2]) == expected
    assert "backend must be one of" in message(ValueError, ta.explain, X, backend="gpu")


def test_the_table_of_backends(no_native):
    lines = ta.backends().splitlines()
    assert lines[0].split() == ["backend", "runs", "on", "available"]
    assert lines[1] == f"native     cpu       no: {MISSING}"
    assert lines[2] == f"native     cuda      no: {MISSING}"
    assert lines[3].startswith("triton ")
    assert lines[4] == "reference  anything  yes"


def test_the_fast_backend_is_taken(place, fresh):
    """What a call without `backend` gives is, to the bit, what the preferred backend gives."""
    x = torch.randn(5, 300, generator=torch.Generator().manual_seed(110)).to(place.device)
    if place.backend not in module.fast_backends(place.device, x.dtype, 300)[:1]:
        pytest.skip(f"{place} is not what a {place.device} tensor takes")
    assert torch.equal(ta.score(x).entropy, ta.score(x, backend=place.backend).entropy)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12: fork in a process with threads
def test_a_dataloader_worker_scores_after_the_parent_used_threads(backend, start):
    if backend == "native" and module.native is None:
        pytest.skip("the C++ extension is not built")
    if start == "spawn" and backend == "reference":
        pytest.skip("plain torch")
    data = scored.Scored(backend)
    before = ta.score(torch.randn(4000, 1000), backend=backend)  # the parent's threads are up
    loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context=start, timeout=120)
    found = torch.cat([loss for loss, _ in loader])
    assert torch.equal(found, torch.stack([data[i][0] for i in range(12)]))
    assert before.entropy.isfinite().all()
    assert ta.score(torch.randn(4000, 1000), backend=backend).entropy.isfinite().all()


def test_import_takes_neither_triton_nor_a_compiler():
    code = "import sys, torchassay; assert 'triton' not in sys.modules or 'torch._inductor' in sys.modules; print('ok')"
    found = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert found.stdout == "ok\n", found.stderr


def test_the_native_kernels_let_other_python_threads_run(threads):
    if module.native is None:
        pytest.skip("the C++ extension is not built")
    threads(1)  # a core is left for the other Python thread
    x, done = torch.randn(2000, 20000), threading.Event()

    def score():
        for _ in range(5):
            ta.score(x, backend="native")
        done.set()

    thread = threading.Thread(target=score)
    before = sys.getswitchinterval()
    sys.setswitchinterval(10)  # nobody is made to give the lock up
    try:
        thread.start()
        turns = 0
        while not done.is_set():
            turns += 1
            done.wait(1e-4)
    finally:
        sys.setswitchinterval(before)
        thread.join()
    assert turns > 20  # one for each call, were the lock held


FORK = """
import os, signal, torch, torchassay as ta
signal.alarm(60)
x = torch.randn(4000, 1000)
torch.set_num_threads(2)
before = ta.score(x, backend="native").entropy  # OpenMP's threads are up; a child has none of them
child = os.fork()
if child == 0:
    same = [(ta.score(x, backend="native").entropy.numpy() == before.numpy()).all() for _ in range(3)]
    os._exit(0 if all(same) else 3)
print(os.waitpid(child, 0)[1])
"""


def test_a_forked_child_starts_threads_of_its_own():
    if module.native is None:
        pytest.skip("the C++ extension is not built")
    command = [sys.executable, "-W", "ignore", "-c", FORK]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.stdout, result.returncode) == ("0\n", 0), result.stderr
