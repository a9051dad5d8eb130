"""The same bits from any number of threads, again, side by side, in workers, and in every mode of torch.

That a row's bits do not depend on its batch: test_row_scores_invariance.py and the tests of each operation. CUDA
graphs: gpu/test_gpu_streams.py.
"""

from concurrent.futures import ThreadPoolExecutor

import linear_heads
import pytest
import torch
import torchassay as ta
from repeatable import OPERATIONS, Repeated, bits
from torchassay.backends import native
from torchassay.scores import ROW_SIGNALS

pytestmark = pytest.mark.skipif(native is None, reason="the C++ extension is not built")
EACH = pytest.mark.parametrize("name", OPERATIONS)


@EACH
def test_any_number_of_threads_and_again(name, threads):
    threads(1)
    once = bits(OPERATIONS[name]())
    assert any(any(one) for one in once)  # not all zeros
    for count in (1, 2, 4, 2):
        threads(count)
        assert bits(OPERATIONS[name]()) == once, count


def test_side_by_side(threads):
    """Callers in several Python threads, none of which waits for another."""
    threads(2)
    once = {name: bits(operation()) for name, operation in OPERATIONS.items()}
    with ThreadPoolExecutor(3) as callers:
        found = [(name, callers.submit(OPERATIONS[name])) for name in OPERATIONS for _ in range(2)]
        assert all(bits(future.result()) == once[name] for name, future in found)


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12: fork in a process with threads
def test_workers_after_the_parent_used_threads(start, threads):
    """Backwards too: OpenMP's threads are gone in a forked child, and the kernels start their own."""
    threads(2)
    data = Repeated()
    once = [data[i] for i in range(len(data))]
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context=start, timeout=120
    )
    assert list(loader) == once


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "slices"])
def test_autocast_changes_nothing(name):
    once = bits(OPERATIONS[name]())
    with torch.autocast("cpu", torch.bfloat16):
        assert bits(OPERATIONS[name]()) == once


def test_inference_mode_changes_nothing():
    """What has no gradient; the losses that have one: test_compile.py."""
    calls = {name: OPERATIONS[name] for name in ("slices", "noise", "ensemble", "heads", "history", "weighted draws")}
    for name, call in calls.items():
        once = bits(call())
        for mode in (torch.inference_mode, torch.no_grad):
            with mode():
                assert bits(call()) == once, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_linear_heads_repeat_on_as_many_threads(count, dtype, threads):
    """Their products are torch's, and may be rounded otherwise on another number of threads."""
    threads(count)
    head = linear_heads.head(57, 64, 3001, dtype)

    def step():
        leaves = head.leaves()
        loss, found = ta.linear_cross_entropy(
            leaves.input, leaves.weight, leaves.target, linear_bias=leaves.bias, signals=("loss", "entropy")
        )
        loss.backward()
        scores = ta.linear_score(*head[:2], head.target, linear_bias=head.bias, signals=ROW_SIGNALS)
        gradients = [leaf.grad for leaf in leaves.operands]
        return bits([loss, *found.as_dict().values(), *gradients, *scores.as_dict().values()])

    once = step()
    assert all(step() == once for _ in range(3))
