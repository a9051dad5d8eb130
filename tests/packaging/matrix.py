"""`make matrix`: one wheel under the oldest and the newest torch and Triton that the package index has.

    python tests/packaging/matrix.py FOLDER

makes the environments in FOLDER, or goes on with those that are there, builds the wheel once, and runs some tests.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
OLDEST = {
    name: re.search(rf"{name}>=([\d.]+)", (ROOT / "pyproject.toml").read_text())[1] for name in ("torch", "triton")
}
ROWS = {"oldest": [f"{name}=={version}.*" for name, version in OLDEST.items()], "newest": ["torch", "triton"]}
TOOLS = ("numpy", "tqdm", "click", "pyarrow", "pytest", "hypothesis", "mpmath")
# What leans on torch and Triton: ops, pytree, compile, collectives, data loaders, files, the interpreter.
TESTS = ["backends", "compile", "dtensors", "history", "linear_compile", "linear_gradients", "linear_memory", "modules"]
TESTS += ["replicas", "sampler_states", "scores", "weighted_sampler"]
SAID = """
import numpy, platform, torch, triton
print(platform.python_version(), torch.__version__, triton.__version__, numpy.__version__)
"""


def installed(folder: Path, torch: str, triton: str, wheel: Path) -> Path:
    """The environment's Python. torch comes first; Triton may be another version than the one that torch asks for."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    for arguments in ((torch,), ("--no-deps", triton), TOOLS, ("--no-deps", "--force-reinstall", str(wheel))):
        subprocess.run([python, "-m", "pip", "install", "-q", "--upgrade", *arguments], check=True)
    return python


def main(folder: Path) -> int:
    with tempfile.TemporaryDirectory() as out:
        subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, ROOT], check=True)
        [wheel] = Path(out).iterdir()
        lines, worst = [], 0
        for name, (torch, triton) in ROWS.items():
            python = installed(folder / name, torch, triton, wheel)
            versions = subprocess.run([python, "-c", SAID], capture_output=True, text=True, check=True).stdout.split()
            tests = [f"tests/test_{test}.py" for test in TESTS]
            done = subprocess.run([python, "-m", "pytest", "-q", *tests], cwd=ROOT, capture_output=True, text=True)
            print(done.stdout)
            lines.append([name, *versions, done.stdout.strip().splitlines()[-1].strip("= ")])
            worst = max(worst, done.returncode)
    for line in [("", "Python", "torch", "Triton", "NumPy", "tests"), *lines]:
        print("".join(f"{cell:<15}" for cell in line).rstrip())
    return worst


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
