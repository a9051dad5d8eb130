"""Every sampling method on scikit-learn's digits: what it reaches, what it spends, and whom it picks.

    python benchmarks/digits.py [--noise 0.25] [--seeds 5] [--methods 'sgd,sb:beta=2,mombs']

As `torchassay compare` trains them, with a table of one row each. The budget is one of back-propagated samples: methods
that drop some go through the data more often. Accuracy is that of the best epoch on held-out digits, as Hu et al.
(2021) take it; of 400, so that a digit is a quarter of a point.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile

import torch
from torchassay.compare import Data, run
from torchassay.compare.data import load
from torchassay.compare.methods import parse

BATCH, EPOCHS = 32, 25
METHODS = (
    "sgd,subset,random,sb:warmup=1,sbe:warmup=1,stale-sb:warmup=1,composer-sb,vr:tau=1.2,vr-hu:tau=1.2,trim,ohem,low,"
    "rho:fraction=0.25,ois,ais,ois:keep=0.9,interval=3,min_keep=400,mombs,mombs:order=easy_to_hard,infobatch"
)
OF_HALVES = "sgd,bss-h,bss-l"  # on the left and the right half of a digit, two modalities


def halves() -> Data:
    """The digits cut in two."""
    whole = load("digits")
    inputs, test_inputs = (part[0].split(4, -1) for part in (whole.inputs, whole.test_inputs))
    return dataclasses.replace(whole, name="digits, two halves", inputs=inputs, test_inputs=test_inputs)


def trained(data: str | Data, methods: str, seeds: int, noise: float, epochs: int | None = None) -> list[dict]:
    """The runs of a comparison."""
    corrupt = f"labels:{noise}" if noise else None
    epochs = EPOCHS if epochs is None else epochs
    plan = run.check(data, methods, corrupt=corrupt, epochs=epochs, seeds=seeds, batch_size=BATCH, device="cpu")
    with tempfile.TemporaryDirectory() as out:
        return run.train(plan, out, progress=False)["runs"]


def table_of(data: str | Data, methods: str, seeds: int, noise: float) -> list[dict]:
    """A row for each method: means over the seeds, and the difference to plain training of the same seed."""
    runs = trained(data, methods, seeds, noise)
    best = {(r["method"], r["seed"]): 1 - min(record["test_error"] for record in r["epochs"]) for r in runs}
    rows = []
    for method in dict.fromkeys(r["method"] for r in runs):
        mine = [r for r in runs if r["method"] == method]
        gain = [best[method, seed] - best["sgd", seed] for seed in range(seeds)]
        spread = statistics.stdev(gain) / seeds**0.5 if seeds > 1 else 0.0
        steps = [r["epochs"][-1]["seconds"] / r["epochs"][-1]["backward"] for r in runs if r["method"] == "sgd"]
        time = [r["epochs"][-1]["seconds"] / r["epochs"][-1]["backward"] for r in mine]
        title = mine[0]["title"] if data == "digits" else f"{mine[0]['title']}, two halves"
        rows.append(
            {
                "method": title,
                "best accuracy, %": f"{100 * statistics.mean(best[method, seed] for seed in range(seeds)):.2f}",
                "points over sgd": f"{100 * statistics.mean(gain):+.2f} ± {100 * spread:.2f}",
                "last epoch, %": f"{100 * (1 - statistics.mean(r['epochs'][-1]['test_error'] for r in mine)):.2f}",
                "epochs": f"{statistics.mean(len(r['epochs']) for r in mine):.0f}",
                "corrupted among them": f"{statistics.mean(r['counters'].get('noise_share', 0.0) for r in mine):.3f}",
                "time of a step / sgd's": f"{sum(time) / sum(steps):.2f}",
            }
        )
    return rows


def compare(seeds: int, noise: float) -> list[dict]:
    """All methods, those for several modalities on halves."""
    return table_of("digits", METHODS, seeds, noise) + table_of(halves(), OF_HALVES, seeds, noise)


if __name__ == "__main__":
    from tables import table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", type=float, default=0.0, help="share of labels drawn anew")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", default=None, help="as of torchassay compare; sgd comes along")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.methods is None:
        print(table(compare(options.seeds, options.noise)))
    else:
        names = [str(method) for method in parse(options.methods)]
        chosen = ",".join(names if "sgd" in names else ["sgd", *names])
        print(table(table_of("digits", chosen, options.seeds, options.noise)))
