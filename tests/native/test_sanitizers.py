"""Every native entry point on threads under ThreadSanitizer; mistakes planted in a copy, which sanitizers find."""

import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "csrc"
COMPILER = os.environ.get("CXX", "g++").split()
FLAGS = (  # the baseline alone: what threads share is the same in every instruction set
    *("-std=c++17", "-O1", "-g1", "-DTORCHASSAY_ISA=baseline", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi"),
    *("-fno-sanitize-recover=all", f"-I{SOURCES}", f"-I{HERE}"),
)
PROGRAMS = {  # by sanitizer
    "thread": [*(SOURCES / "cpu").glob("*.cpp"), HERE / "parallel.cpp"],
    "address,undefined": [SOURCES / "cpu" / "cdf.cpp", SOURCES / "cpu" / "threads.cpp", HERE / "window.cpp"],
}
PLANTS = {  # sanitizer, file, what stands there, what is put in its place, what is said of it
    "a buffer that is too short": (
        *("address,undefined", "cdf.cpp", "new int32_t[few ? count : 2 * count]", "new int32_t[count]"),
        "AddressSanitizer: heap-buffer-overflow",
    ),
    "an index outside an array": (
        *("address,undefined", "cdf.cpp", "for (int j = 0; j < kGroup; ++j) found[j] = 0;"),
        "for (int j = 0; j <= kGroup; ++j) found[j] = 0;",
        "runtime error: index 64 out of bounds",
    ),
    "a loop that does not wait for its threads": (
        *("thread", "threads.cpp", "for (int i = 0; inside_.load(", "for (int i = 0; false && inside_.load("),
        "ThreadSanitizer: data race",
    ),
    "chunks that two threads take": (
        *("thread", "threads.cpp", "next.fetch_add(chunk);", "next.load(); next.store(begin + chunk);"),
        "ThreadSanitizer: data race",
    ),
}


def run(*command) -> subprocess.CompletedProcess:
    environment = os.environ | {"TSAN_OPTIONS": "die_after_fork=0"}  # a child of a process with threads is tried too
    return subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment)


def built(sanitizer: str, sources: list[Path], objects: list[Path], folder: Path) -> Path:
    """The program of sources and of what is compiled already."""

    def compiled(source: Path) -> Path:
        done = run(*COMPILER, *FLAGS, f"-fsanitize={sanitizer}", "-c", source, "-o", folder / f"{source.stem}.o")
        assert done.returncode == 0, done.stderr[-4000:]
        return folder / f"{source.stem}.o"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [*objects, *pool.map(compiled, sources)]
    done = run(*COMPILER, f"-fsanitize={sanitizer}", *objects, "-o", folder / "program", "-lpthread", "-ldl")
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "program"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Callable[[str], Path]:
    """The program of a sanitizer, in a folder with its objects."""

    @cache
    def build(sanitizer: str) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        (folder / "probe.cpp").write_text("int main() {}\n")
        if run(*COMPILER, f"-fsanitize={sanitizer}", folder / "probe.cpp", "-o", folder / "probe").returncode != 0:
            pytest.skip(f"{COMPILER[0]} has no -fsanitize={sanitizer} here")
        return built(sanitizer, PROGRAMS[sanitizer], [], folder)

    return build


def test_every_entry_point_on_threads(whole):
    done = run(whole("thread"))
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout.split()[0]) > 100  # calls


def test_the_window(whole):
    done = run(whole("address,undefined"))
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "0.25\n")


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_mistake_is_found(whole, plant, tmp_path):
    sanitizer, name, right, wrong, said = PLANTS[plant]
    shutil.copytree(SOURCES, tmp_path / "csrc")
    source = tmp_path / "csrc" / "cpu" / name
    text = source.read_text()
    assert text.count(right) == 1
    source.write_text(text.replace(right, wrong))
    others = [part for part in whole(sanitizer).parent.glob("*.o") if part.stem != source.stem]
    done = run(built(sanitizer, [source], others, tmp_path))
    assert done.returncode != 0 and said in done.stderr, done.stderr[-2000:]
