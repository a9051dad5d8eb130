"""A comparison that never ran: numbers from formulas, so that a report's values can be worked out by hand.

A run's error, 0.9 at most, halves from epoch to epoch until it is at its best, in epoch `LAST` (from 0 on), and stays.
"""

import json

import numpy as np

NAMES = (
    *("sgd", "sb:beta=1", "sbe", "subset", "random", "sb:beta=2", "stale-sb", "composer-sb", "vr:pool=3", "vr:pool=2"),
    *("trim", "ohem", "low", "rho", "ois", "ais", "ois:keep=0.9", "mombs", "bss-h", "bss-l", "infobatch"),
)
EPOCHS = 8
TRAIN = 400
BEST = {"sgd": 0.02, "sb:beta=1": 0.022, "sbe": 0.018}  # others: 0.025, which is more than 1.2 x 0.02
LAST = {"sgd": (5, 5, 5), "sb:beta=1": (3, 3, 5), "sbe": (4, 5, 4)}  # by seed
BACKWARD = {"sgd": 400, "sb:beta=1": 200, "sbe": 200}  # an epoch
SECONDS = {"sgd": 2.0, "sb:beta=1": 1.0, "sbe": 4.0}
NOISE = {"sgd": 0.25, "sb:beta=1": 0.5, "sbe": 0.3}  # in the last epochs; 0.25 in the first


def title(name):
    return name.upper().replace(":", ", ")


def run(name, seed, *, corrupt=True, epochs=EPOCHS):
    """One run as in ``results.json``; another than the three named methods never gets to the target."""
    place = NAMES.index(name)
    best, last = BEST.get(name, 0.025 + 0.001 * place), LAST.get(name, (4, 5, 6))[seed % 3]
    backward, seconds = BACKWARD.get(name, 300), SECONDS.get(name, 1.5 + 0.1 * place)
    noise = NOISE.get(name, 0.2 + 0.015 * place)
    weighted = name in ("low", "ois", "ois:keep=0.9", "vr:pool=3", "infobatch")
    rows = [
        {
            "epoch": epoch,
            "forward": 500 * (epoch + 1),
            "backward": backward * (epoch + 1),
            "seconds": seconds * (epoch + 1),
            "test_error": min(0.9, best * (1 + 0.1 * seed) * 2.0 ** max(0, last - epoch)),
            "test_loss": 0.1,
            "train_loss": 0.2,
            "noise_share": (noise if epoch else 0.25) if corrupt else None,
            "ess": 1 - 0.02 * (place + epoch) if weighted else 1 - 1e-12,
        }
        for epoch in range(epochs)
    ]
    arrays = f"runs/{place}-{seed}.npz"
    done = {"done": epochs == EPOCHS, "arrays": arrays, "versions": {"numpy": np.__version__}, "counters": {}}
    return {"method": name, "title": title(name), "seed": seed, "epochs": rows} | done


def arrays(name, *, corrupt=True):
    """What a run's npz holds. A quarter of the samples is corrupted; half of those kept their labels by chance."""
    i, place = np.arange(TRAIN), NAMES.index(name)
    corrupted = (i % 4 == 0) & corrupt
    loss = (0.05 + (i * 37 % 101) / 50 + 1.5 * corrupted).astype(np.float32)
    found = {
        "picks": (EPOCHS + (i * 29 % (2 * place + 1)) - place + place * corrupted).clip(0).astype(np.int32),
        "loss": loss,
        "entropy": (0.1 + (i * 53 % 97) / 60).astype(np.float32),
        "target_margin": (1 - loss).astype(np.float32),
        "loss_last": loss,
        "given": i % 10,
        "true": np.where(i % 8 == 0, (i + 1) % 10, i % 10) if corrupt else i % 10,
        "corrupted": corrupted,
        "changed": corrupted & (i % 8 == 0),
    }
    return found | ({"uncertainty": found["entropy"] / 2} if name == "mombs" else {})


def images():
    """Uint8 [TRAIN, 8, 8], no two alike."""
    return np.random.default_rng(5).integers(0, 256, (TRAIN, 8, 8), np.uint8)


def build(out, names=NAMES[:3], seeds=3, *, corrupt=True, pictured=True):
    """Write a comparison into the folder ``out``; its results."""
    data = {"name": "digits", "train": TRAIN, "test": 500, "classes": 10, "shape": [1, 8, 8], "modalities": 1}
    about = {
        **{"version": "0.1.0", "torch": "2.13.0", "machine": "a machine", "date": "2026-11-21", "device": "cpu"},
        **{"command": f"torchassay compare --methods {','.join(names)}", "data": data, "model": "mlp"},
        **{"corrupt": "labels:0.25" if corrupt else None, "corrupted": 100 * corrupt, "changed": 50 * corrupt},
        **{"epochs": EPOCHS, "budget": "backprops", "batch_size": 64, "seeds": list(range(seeds))},
    }
    runs = [run(name, seed, corrupt=corrupt) for name in names for seed in range(seeds)]
    (out / "runs").mkdir(parents=True)
    for found in runs:
        np.savez(out / found["arrays"], **arrays(found["method"], corrupt=corrupt))
    if pictured:
        np.savez(out / "data.npz", images=images())
    results = {"about": about, "runs": runs}
    save(out, results)
    return results


def save(out, results):
    (out / "results.json").write_text(json.dumps(results), encoding="utf-8")
