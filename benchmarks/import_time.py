"""How long `import torchassay` takes, beside `import torch` alone: python benchmarks/import_time.py"""

import statistics
import subprocess
import sys
import time

PAIRS = 10


def seconds(module: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - start


def main() -> None:
    seconds("torchassay")  # reads the files and writes the byte code
    pairs = [(seconds("torch"), seconds("torchassay")) for _ in range(PAIRS)]
    torch, torchassay = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(ours / theirs for theirs, ours in pairs)
    print(f"medians of {PAIRS} pairs: torch {torch:.2f} s, torchassay {torchassay:.2f} s, {ratio:.2f} times")


if __name__ == "__main__":
    main()
