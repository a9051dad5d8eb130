"""The papers' experiments at a size for a laptop: trains, and writes a page for each paper into this folder.

    python benchmarks/papers/run.py hu2021 --data DIR --out OUT [--quick]
    python benchmarks/papers/run.py all --out OUT --render

README.md says what DIR holds. OUT keeps every result, so a run that was stopped goes on where it was, and pages can be
written again without training.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAPERS = ("hu2021", "cifar10n", "ois", "mombs", "bss", "trimming")


def main(arguments: list[str] | None = None, pages: Path = HERE) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paper", choices=[*PAPERS, "all"])
    parser.add_argument("--data", type=Path, help="the folder of data sets")
    parser.add_argument("--out", type=Path, required=True, help="the folder of results")
    parser.add_argument(
        "--quick", action="store_true", help="far fewer samples, epochs and seeds; pages go to OUT/quick"
    )
    parser.add_argument("--render", action="store_true", help="only write pages, from the results in OUT")
    options = parser.parse_args(arguments)
    if options.data is None and not options.render:
        parser.error("--data is needed to train")
    out, pages = (options.out / "quick",) * 2 if options.quick else (options.out, pages)
    render = _rendering(out, pages, options.quick)
    for name in PAPERS if options.paper == "all" else (options.paper,):
        if not options.render:
            _train(name, options.data, out, options.quick)
        render(name)


def _train(name: str, data: Path, out: Path, quick: bool) -> None:
    import torch

    from papers import study

    torch.set_num_threads(1)
    study.run(importlib.import_module(f"papers.{name}"), study.Place(data, out, quick))


def _rendering(out: Path, folder: Path, quick: bool):
    """What writes a paper's page, and the index."""
    from papers import pages, study

    def render(name: str) -> None:
        every = [(importlib.import_module(f"papers.{paper}"), study.found(out / paper)) for paper in PAPERS]
        folder.mkdir(parents=True, exist_ok=True)
        for paper, results in every:
            if name == paper.NAME and results:
                (folder / f"{name}.md").write_text(pages.markdown(paper, results, quick), encoding="utf-8")
                print(folder / f"{name}.md")
        (folder / "README.md").write_text(pages.index(every), encoding="utf-8")

    return render


if __name__ == "__main__":
    sys.path[0] = str(HERE.parent)  # this folder is the package `papers`
    main()
