"""Instructions of the CPU kernels on fixed inputs, counted by valgrind: a change of more than 3 % is told.

    python tests/native/counts.py            compare with benchmarks/results/counts.md
    python tests/native/counts.py --write    renew it

One thread and two instruction sets, which valgrind knows: the processor does not matter, the compiler does.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "benchmarks" / "results" / "counts.md"
BUILD = ROOT / "build" / "counts"
ISAS = ("baseline", "avx2")
TOLERANCE = 0.03

Counts = dict[str, tuple[int, ...]]  # of a call, for each of ISAS


def configured(build: Path, *options: str) -> None:
    """A build folder of the native code without CUDA."""
    import pybind11

    places = f"-S{ROOT}", f"-B{build}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"
    options = "-GNinja", f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_CUDA_COMPILER=NOTFOUND", *options
    subprocess.run(["cmake", *places, *options], check=True, stdout=subprocess.DEVNULL)


def compiler() -> str:
    """The one that made the program, as GNU 12.2.0."""
    text = next(BUILD.glob("CMakeFiles/*/CMakeCXXCompiler.cmake")).read_text()
    name, version = (re.search(rf'CMAKE_CXX_COMPILER_{what} "(.+)"', text)[1] for what in ("ID", "VERSION"))
    return f"{name} {version}"


def counted() -> Counts:
    configured(BUILD, "-DCMAKE_BUILD_TYPE=Release", "-DTORCHASSAY_COUNTS=ON")
    subprocess.run(["cmake", "--build", BUILD, "--target", "counts"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        valgrind = "valgrind", "--tool=callgrind", "--collect-atstart=no", f"--callgrind-out-file={folder}/out"
        subprocess.run([*valgrind, "--quiet", BUILD / "counts", *ISAS], check=True)
        return told(Path(folder))


def told(folder: Path) -> Counts:
    """What valgrind wrote, a file for each call."""
    found = {}
    for path in folder.iterdir():
        text = path.read_text()
        if call := re.search(r"^desc: Trigger: Client Request: (\w+)\|(.+)$", text, re.M):
            found[call[1], call[2]] = int(re.search(r"^summary: (\d+)$", text, re.M)[1])
    return {name: tuple(found[isa, name] for isa in ISAS) for isa, name in sorted(found) if isa == ISAS[0]}


def table(made_by: str, counts: Counts) -> str:
    about = (
        "# Instructions of the CPU kernels\n\n"
        f"Written by `python tests/native/counts.py --write` from a build with {made_by}; `make counts`\n"
        "compares with it. Instructions of one call on one thread, counted by valgrind, on the inputs of\n"
        "`tests/native/calls.h`. AVX-512 is left out: valgrind does not know it.\n"
    )
    lines = [("call", *ISAS), ("---", *["---:"] * len(ISAS))]
    lines += [(name, *(f"{count:,}" for count in of_call)) for name, of_call in counts.items()]
    return about + "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def committed(text: str) -> tuple[str, Counts]:
    """The compiler, and what it gave."""
    made_by = re.search(r"from a build with (.+);", text)[1]
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    return made_by, {name: tuple(int(count.replace(",", "")) for count in counts) for name, *counts in lines}


def changes(before: Counts, now: Counts) -> list[str]:
    """A line for each call that takes over 3 % more or less than before, or is one of them alone."""
    lines = [f"{name}: only {'here' if name in now else 'in the table'}" for name in sorted(before.keys() ^ now.keys())]
    for name in before.keys() & now.keys():
        for isa, old, new in zip(ISAS, before[name], now[name], strict=True):
            if abs(new - old) > TOLERANCE * old:
                lines.append(f"{name}, {isa}: {old:,} before, {new:,} now ({new / old - 1:+.1%})")
    return sorted(lines)


def main() -> int:
    if not shutil.which("valgrind") or not Path("/usr/include/valgrind/callgrind.h").exists():
        print("no counts: valgrind is not there (Debian: apt-get install valgrind)")
        return 0
    now = counted()
    if "--write" in sys.argv:
        TABLE.write_text(table(compiler(), now))
        return 0
    made_by, before = committed(TABLE.read_text())
    if made_by != compiler():
        print(f"no comparison: the table is of {made_by}, this is {compiler()}")
        return 0
    changed = changes(before, now)
    print(
        *changed, f"{len(now)} calls on {' and '.join(ISAS)}, {len(changed)} changed by over {TOLERANCE:.0%}", sep="\n"
    )
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
