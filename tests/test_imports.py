"""`import torchassay` brings torch and nothing more: what a feature needs is imported where it is used."""

import json
import subprocess
import sys

# By hand, not from the metadata: an optional library stays outside even where a dependency of ours has it.
OPTIONAL = {
    "accelerate",
    "cleanlab",
    "click",
    "datasets",
    "lightning",
    "matplotlib",
    "pandas",
    "pyarrow",
    "ray",
    "rich",
}
OPTIONAL |= {"scipy", "sklearn", "tqdm", "transformers", "triton", "trl"}
CODE = "import json, sys, torch; before = set(sys.modules); {}; print(json.dumps(sorted(set(sys.modules) - before)))"


def imported_by(statement: str) -> set[str]:
    """The modules that a statement imports, in a process that has imported torch."""
    done = subprocess.run([sys.executable, "-c", CODE.format(statement)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_import_brings_no_optional_library():
    found = imported_by("import torchassay")
    assert "torchassay.functional" in found
    assert not {name for name in found if name.partition(".")[0] in OPTIONAL}
    assert not {
        name for name in found if name.startswith(("torch.distributed.tensor", "torch._dynamo", "torch._inductor"))
    }


def test_import_brings_no_part_that_has_its_own_name():
    found = imported_by("import torchassay")
    for part in ("cli", "compare", "demo", "doctor", "integrations", "plots", "scoring", "speed", "triton_kernels"):
        assert f"torchassay.{part}" not in found
