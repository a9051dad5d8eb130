"""Linear heads under torch.compile, and their ops as torch.library wants them."""

import pytest
import torch
import torchassay as ta
from linear_heads import gradients, head
from torch._dynamo.testing import CompileCounterWithBackend
from torchassay import ops, reference
from torchassay.options import Options
from torchassay.scores import STATS

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch", "ignore::UserWarning:torch"
)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def loss(h, w, b, y, **how):
    return ta.linear_cross_entropy(h, w, y, linear_bias=b, **how)


def loss_with_all(h, w, b, y, **how):
    how["weight"] = torch.linspace(0.5, 2, w.shape[0], device=w.device)
    signals = ("entropy", "weight_grad_norm")
    return loss(h, w, b, y, label_smoothing=0.1, softcap=5.0, z_loss=1e-3, signals=signals, **how)


def log_prob_and_entropy(h, w, b, y, **how):
    return ta.linear_log_prob_entropy(h, w, y, linear_bias=b, temperature=0.7, **how)


def score(h, w, b, y, **how):
    return ta.linear_score(h, w, y, linear_bias=b, signals=("grad_norm", "noisy_entropy"), feature_noise_std=0.2, **how)


@pytest.mark.parametrize("function", [loss, loss_with_all, log_prob_and_entropy, score])
def test_compiled_as_eager_for_any_number_of_rows_from_one_compilation(function, fast_place):
    if fast_place.backend == "reference":
        pytest.skip("what is traced is the same as for another backend")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    graphs = []
    for rows in (6, 9, 33):
        results = []
        for one in (compiled, function):
            h = head(rows, 5, 1100, place=fast_place).leaves()
            leaves = torch.utils._pytree.tree_leaves(one(*h, backend=fast_place.backend))
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            results.append((leaves, gradients(sum(leaf.sum() for leaf in wanted), h) if wanted else []))
        for ours, eager in zip(*results, strict=True):
            for one, other in zip(ours, eager, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        graphs.append(counter.frame_count)
    assert graphs == graphs[:1] * 3


def test_draws_of_noise_compile(fast_place):
    """The mean softmax of several draws too."""
    names = ("noisy_entropy", "predictive_entropy", "mutual_information")

    def function(h, w, b, seed):
        how = {"feature_noise_std": 0.2, "feature_noise_draws": 2, "backend": fast_place.backend}
        return ta.linear_score(h, w, linear_bias=b, signals=names, seed=seed, **how).as_dict()

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    h = head(7, 5, 1100, place=fast_place)
    seed = torch.tensor(3, device=fast_place.device)
    for ours, eager in zip(compiled(*h[:3], seed).values(), function(*h[:3], seed).values(), strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-6)


def test_a_compiled_call_still_names_a_class_out_of_range(fast_place):
    if fast_place.device != "cpu":
        pytest.skip("a GPU call can't look; its row is NaN")
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    h = head(6, 5, 9, ignored=False, place=fast_place)
    h.target[4] = 9
    with pytest.raises(ValueError) as error:
        compiled(*h, backend=fast_place.backend)
    expected = "linear_cross_entropy: target must hold 0 <= class < 9 or ignore_index=-100, got class 9 at row 4"
    assert str(error.value) == expected


OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("kind", ["plain", "all", "no target", "no rows", "bfloat16"])
def test_opcheck(kind, fast_place):
    """Schemas, fakes and dynamic shapes of the ops of linear heads, over two chunks."""
    h = head(0 if kind == "no rows" else 5, 4, 12, place=fast_place)
    h = h.to(torch.bfloat16) if kind == "bfloat16" else h
    target = None if kind == "no target" else h.target
    given = Options()
    if kind == "all":
        weight, by_row = (torch.linspace(0.5, 2, n, device=fast_place.device) for n in (12, 5))
        given = Options(weight, 0.1, by_row, 9.0, 1e-3)
    operands = *h[:3], target, *given.flat()
    where = 0, 12, -100, 7, "test", fast_place.backend
    torch.library.opcheck(ops.linear_states, (*operands, *where), test_utils=OPCHECKS)
    numbers, k = ops.linear_states(*operands, *where)
    own = None if given.weight is None else reference.own_weight(given.weight, target, -100)
    of_rows = given._replace(weight=own).flat()
    how = 12, -100, STATS, "test", fast_place.backend
    stats = ops.finish_states(numbers.unsqueeze(0), k.unsqueeze(0), target, *of_rows, *how)[0]
    one = torch.ones(len(h.input), device=fast_place.device)
    upstream = None if target is None else one, one
    for wanted in ((True, True, True), (False, True, False)):
        torch.library.opcheck(ops.linear_grads, (*operands, stats, *upstream, *wanted, *where), test_utils=OPCHECKS)
    if target is not None:
        torch.library.opcheck(ops.linear_squares, (*operands, stats, *where), test_utils=OPCHECKS)
