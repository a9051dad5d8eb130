"""The CUDA kernels' source compiled for the host with simt.h, under AddressSanitizer and UBSan."""

import os
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "csrc"
COMPILER = os.environ.get("CXX", "g++")
FLAGS = (
    *("-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    *(f"-I{folder}" for folder in (HERE, SOURCES, SOURCES / "cuda")),
)


def compiled(source: Path, program: Path, *defines: str) -> str:
    """What the compiler has to complain about; nothing if it made the program."""
    command = [*COMPILER.split(), *FLAGS, *(f"-D{define}" for define in defines), str(source), "-o", str(program)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr or f"{COMPILER} ended with status {done.returncode}"


@pytest.fixture(scope="session")
def host_program(tmp_path_factory) -> Callable[..., Path]:
    """build("run_cdf.cpp", "ROWS=3") -> the program of tests/simt/run_cdf.cpp compiled with -DROWS=3."""
    probe = tmp_path_factory.mktemp("probe") / "probe.cpp"
    probe.write_text("int main() { void* fiber[5]; return __builtin_setjmp(fiber); }\n")
    if complaint := compiled(probe, probe.with_suffix("")):
        pytest.skip(f"no compiler with the sanitizers and __builtin_setjmp: {complaint.splitlines()[0]}")

    @cache
    def build(source_name: str, *defines: str) -> Path:
        name = Path(source_name).stem
        program = tmp_path_factory.mktemp(name) / name
        complaint = compiled(HERE / source_name, program, *defines)
        assert not complaint, complaint[-4000:]
        return program

    return build
