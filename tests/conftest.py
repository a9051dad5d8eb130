"""Without a GPU the Triton kernels run in Triton's interpreter, which must be chosen before anything imports triton."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the other processors are taken; tests of threads ask for as many as they need

import oracle
import pytest
import strategies
from places import PLACES, Place


def _params(places):
    return [pytest.param(place, id=place.name, marks=place.marks()) for place in places]


@pytest.fixture(params=_params(PLACES))
def place(request) -> Place:
    """Every backend on every device it runs on here; the interpreter for small shapes only (`Place.some`)."""
    return request.param


@pytest.fixture(params=_params([place for place in PLACES if not place.slow]))
def fast_place(request) -> Place:
    """The same without the interpreter: long rows and large batches."""
    return request.param


@pytest.fixture(params=_params([place for place in PLACES if place.double]))
def double_place(request) -> Place:
    """The backends that take float64."""
    return request.param


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(20)


@pytest.fixture
def threads():
    """`torch.set_num_threads`, undone afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def pytest_sessionfinish(session):
    """A process of several hands over what it saw."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["worst"] = [[*key, error] for key, error in oracle.WORST.items()]
        session.config.workeroutput["examples"] = dict(strategies.RUN)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    strategies.RUN.update(getattr(node, "workeroutput", {}).get("examples", {}))
    for *key, error in getattr(node, "workeroutput", {}).get("worst", ()):
        oracle.WORST[tuple(key)] = max(oracle.WORST.get(tuple(key), 0.0), error)


def pytest_terminal_summary(terminalreporter):
    """Examples of hypothesis, kills survived, and the worst relative error of each backend, dtype and signal."""
    if strategies.RUN:
        terminalreporter.section("made up by hypothesis")
        if strategies.FUZZ:
            for name, count in sorted(strategies.RUN.items()):
                terminalreporter.line(f"{count:>6} {name}")
        terminalreporter.line(f"{strategies.RUN.total()} examples in {len(strategies.RUN)} tests")
    properties = [pair for report in terminalreporter.stats.get("passed", ()) for pair in report.user_properties]
    if kills := sum(count for name, count in properties if name == "kills"):
        terminalreporter.line(f"kills survived: {kills}")
    if not oracle.WORST:
        return
    terminalreporter.section("worst relative errors seen")
    columns = sorted({key[:2] for key in oracle.WORST})
    names = dict.fromkeys(key[2] for key in oracle.WORST)
    width = max(len(f"{place} {dtype}") for place, dtype in columns)
    terminalreporter.line(" " * width + "".join(f"{name:>20}" for name in names))
    for place, dtype in columns:
        found = (oracle.WORST.get((place, dtype, name)) for name in names)
        cells = "".join(f"{'':>20}" if error is None else f"{error:>20.1e}" for error in found)
        terminalreporter.line(f"{place + ' ' + dtype:<{width}}{cells}")
