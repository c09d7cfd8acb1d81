"""What an ensemble is worth: of a search's trials against the best single one, over many random halvings of valid.

`python tests/benchmarks/ensembles.py` searches first (16 trials of small students; on `$MOLDISTILL_DATA/xtb_24k` and
`qm9_24k`, else on the embedded sample), or takes `--study FOLDER`. For each halving, everything is decided on one half:
members, combiner, weights, and the estimate that the ensemble would print for itself; and the best trial. The other
half then tells the error of both, and whether the estimate's interval holds it. Prints a table and writes
`.bench/ensembles.json`.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from inputs import quietly_prepare, roots
from timing import Figure, save, single, table

ROOT = Path(__file__).resolve().parents[2]

SPACE: dict[str, Any] = {
    "base": "student-tiny",
    "parameters": {
        "optimizer.learning_rate": {"log_uniform": [5e-4, 8e-3]},
        "model.width": {"choice": [64, 96, 128]},
        "model.depth": {"choice": [3, 4, 6]},
        "training.batch_size": {"choice": [32, 64, 128]},
        "optimizer.weight_decay": {"log_uniform": [1e-3, 0.3]},
    },
    "sampler": {"name": "tpe", "startup_trials": 8, "seed": 0},
    "scheduler": {"name": "none"},
    "resources": {"cpus": 1, "gpus": 0, "concurrent": 2},
}


@dataclass(frozen=True)
class Halving:
    """One halving: MAE (eV) on the unseen half of the ensemble and the best trial; percent by which the first is lower,
    with its bootstrap interval over rows; whether the interval printed beforehand holds the ensemble's MAE."""

    ensemble: float
    best: float
    percent: float
    low: float
    high: float
    held: bool
    combiner: str


def study_of(root: Path, folder: Path, trials: int, overrides: list[str]) -> tuple[Path, Path]:
    """Store and study of a data set, made in `folder`."""
    from moldistill.core.cluster import cluster
    from moldistill.search.tuner import search

    store, study = folder / "store", folder / "study"
    quietly_prepare(root, store, None)
    with cluster(2):
        search(SPACE, store, study, overrides=[f"budget.trials={trials}", *overrides])
    return store, study


def halvings(study: Path, store: Path | None, count: int) -> list[Halving]:
    """The halvings of a study's validation rows."""
    from moldistill.delivery.combiners import Sample
    from moldistill.delivery.members import find_candidates, open_store, read_pool

    candidates = find_candidates([study])
    opened = open_store(candidates, store)
    rows = opened.rows("valid")
    rows = rows[np.isfinite(opened.target[rows])]
    pool = read_pool(candidates, opened, rows)
    target = np.asarray(opened.target[rows], dtype=np.float64)
    sample = Sample(pool.predictions, target, np.asarray(opened.size(rows), dtype=np.int64))
    return [_halving(sample, seed) for seed in range(count)]


def _halving(sample: Any, seed: int) -> Halving:
    from moldistill.delivery.combiners import library
    from moldistill.delivery.nested import choose, fit_within
    from moldistill.delivery.selection import bootstrap_means, halves

    seen_rows, unseen_rows = halves(len(sample.target), seed)
    seen, unseen = sample.rows(seen_rows), sample.rows(unseen_rows)
    # What `ensemble` does with the rows that it has, which here are one half.
    chosen, scored = (seen.rows(part) for part in halves(len(seen.target), seed + 1_000))
    choice = choose(chosen, library(len(sample.predictions), 32), seed)
    (printed,) = bootstrap_means(_errors(fit_within(choice.combiner, chosen, None), scored)[None], seed)
    ours = _errors(fit_within(choice.combiner, seen, None), unseen)
    best = np.abs(unseen.predictions[int(seen.mae.argmin())] - unseen.target)
    (gain,) = bootstrap_means((best - ours)[None], seed)
    scale = 100 / float(best.mean())
    held = printed.low <= float(ours.mean()) <= printed.high
    return Halving(
        float(ours.mean()),
        float(best.mean()),
        gain.value * scale,
        gain.low * scale,
        gain.high * scale,
        held,
        choice.combiner.name,
    )


def _errors(made: Any, part: Any) -> Any:
    return np.abs(made.apply(part.predictions, part.sizes).value - part.target)


def figures(data: str, found: list[Halving]) -> list[Figure]:
    """Medians over the halvings, with their range."""
    percents = np.array([one.percent for one in found])
    detail = {
        "halvings": len(found),
        "percents": percents.tolist(),
        "clear_of_0": sum(one.low > 0 for one in found),
        "combiners": sorted({one.combiner for one in found}),
        "ensemble": float(np.mean([one.ensemble for one in found])),
        "best_trial": float(np.mean([one.best for one in found])),
    }
    name, reading = "ensemble", "% lower MAE than the best trial, unseen half"
    low, high = (float(value) for value in np.quantile(percents, [0.025, 0.975]))
    return [
        Figure(name, data, reading, float(percents.mean()), low, high, {"rounds": len(found), **detail}),
        single("of these, clear of 0", data, f"of {len(found)} halvings, by their own interval", detail["clear_of_0"]),
        single(
            "printed interval", data, f"of {len(found)} halvings hold the unseen error", sum(one.held for one in found)
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, help="a finished study, instead of a search")
    parser.add_argument("--store", type=Path, help="its store, if it was moved")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--halvings", type=int, default=20)
    parser.add_argument(
        "--work", type=Path, help="folder for stores and studies, which are kept; default: a temporary one"
    )
    parser.add_argument("--quick", action="store_true", help="4 trials of a few steps: shows that it runs")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override of the space")
    parser.add_argument("--out", type=Path, default=ROOT / ".bench")
    asked = parser.parse_args()
    found: list[Figure] = []
    if asked.study is not None:
        found += figures(asked.study.name, halvings(asked.study, asked.store, asked.halvings))
    else:
        trials, overrides = asked.trials, asked.set
        if asked.quick:
            trials, overrides = 4, ["fixed.training.epochs=2", *asked.set]
        with tempfile.TemporaryDirectory(prefix="moldistill-ensembles-") as scratch:
            for name, root in roots().items():
                folder = (asked.work or Path(scratch)) / name
                store, study = study_of(root, folder, trials, overrides)
                found += figures(f"{name}, {trials} trials", halvings(study, store, asked.halvings))
    print(table(found))
    asked.out.mkdir(parents=True, exist_ok=True)
    save(asked.out / "ensembles.json", found, name="ensembles")


if __name__ == "__main__":
    main()
