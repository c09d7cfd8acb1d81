"""chemprop at its defaults on the rows that our students train on; run by the Python of `make peers`.

    python accuracy_chemprop.py ROOT STORE OUT.json --epochs 40 --seed 0

It trains on `train`, keeps the epoch that is best on `valid-3d`, and is scored on `valid`. Writes errors (eV) and the
CPU seconds of its process.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SPLITS = {0: "train", 4: "val", 1: "test"}
BOUNDARY = 20


def main() -> None:
    """Train, predict, and write what came out."""
    parser = argparse.ArgumentParser()
    for name in ("root", "store", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    asked = parser.parse_args()
    split, target, row = (np.load(asked.store / f"{name}.npy") for name in ("split", "target", "row"))
    sizes = np.diff(np.load(asked.store / "atom_offsets.npy"))
    with gzip.open(asked.root / "raw" / "data.csv.gz", "rt") as file:
        smiles = [line["smiles"] for line in csv.DictReader(file)]
    chosen = [i for i in range(len(split)) if int(split[i]) in SPLITS and np.isfinite(target[i]) and sizes[i]]
    with tempfile.TemporaryDirectory() as folder:
        table, out = Path(folder) / "table.csv", Path(folder) / "out"
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["smiles", "gap", "split"])
            writer.writerows([smiles[row[i]], repr(float(target[i])), SPLITS[int(split[i])]] for i in chosen)
        command = [str(Path(sys.executable).with_name("chemprop")), "train", "--data-path", str(table)]
        command += ["--task-type", "regression", "--smiles-columns", "smiles", "--target-columns", "gap"]
        command += ["--splits-column", "split", "--epochs", str(asked.epochs), "--pytorch-seed", str(asked.seed)]
        command += ["--output-dir", str(out), "--num-workers", "0", "--accelerator", "cpu"]
        single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        subprocess.run(command, check=True, env=os.environ | single)
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        (predictions,) = out.rglob("test_predictions.csv")
        with predictions.open() as file:
            predicted = np.array([float(line["gap"]) for line in csv.DictReader(file)])
    scored = np.array([i for i in chosen if split[i] == 1])
    assert len(predicted) == len(scored)
    errors, large = np.abs(predicted - target[scored]), sizes[scored] > BOUNDARY
    found = {"overall": float(errors.mean())}
    if large.any():
        found |= {"up_to": float(errors[~large].mean()), "above": float(errors[large].mean())}
    asked.out.write_text(json.dumps({"errors": found, "cpu_seconds": spent.ru_utime + spent.ru_stime}))


if __name__ == "__main__":
    main()
