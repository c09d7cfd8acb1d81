"""Synthetic stores, runs, studies and submissions for the tests of `delivery`: real formats, invented numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from moldistill.core.artifacts import write_manifest
from moldistill.core.vocabulary import SPLITS, vocabulary_hash
from moldistill.data.columns import COLUMNS, ColumnWriter
from moldistill.data.predictions import Predictions
from moldistill.data.splits import split_hash
from moldistill.data.store import STORE_SCHEMA, Store

SIZES = {"train": 400, "valid": 300, "test-dev": 60, "test-challenge": 50, "valid-3d": 40}


def make_store(
    folder: Path, sizes: Mapping[str, int] = SIZES, *, seed: int = 0, split_order: str | None = None
) -> Store:
    """A store of one-atom molecules with the given number of rows per split; tests have no labels."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    split = np.concatenate([np.full(count, SPLITS.index(name), np.int8) for name, count in sizes.items()])
    rows = len(split)
    atoms = random.integers(4, 20, rows)
    target = random.normal(5.0, 1.2, rows)
    target[np.isin(split, [2, 3])] = np.nan
    smiles = np.frombuffer(b"C" * rows, np.uint8)
    offsets, none = np.concatenate([[0], np.cumsum(atoms)]), np.zeros(rows + 1)
    columns: dict[str, Any] = {
        "row": np.arange(rows),
        "split": split,
        "target": target,
        "flag": np.zeros(rows),
        "has_positions": np.zeros(rows),
        "atom_offsets": offsets,
        "smiles_offsets": np.arange(rows + 1),
        "smiles_bytes": smiles,
        "atom_features": np.zeros((atoms.sum(), 9)),
        "positions": np.zeros((atoms.sum(), 3)),
    }
    for spec in COLUMNS:
        default = none if spec.per == "row + 1" else np.zeros((0, *spec.shape))
        with ColumnWriter(folder, spec) as writer:
            writer.append(np.asarray(columns.get(spec.name, default)))
    facts = {
        "store_schema": STORE_SCHEMA,
        "vocabulary": vocabulary_hash(),
        "split_hash": split_hash(columns["row"], split),
    }
    if split_order:
        facts["split_order"] = split_order
    write_manifest(folder, "store", files=[spec.file for spec in COLUMNS], inputs={"data.csv.gz": "0" * 8}, facts=facts)
    return Store.open(folder)


def predicted(store: Store, *, noise: float, seed: int) -> dict[str, np.ndarray]:
    """Predictions for each split: the target (where there is none, a number of the same law) and Gaussian noise."""
    random, hidden = np.random.default_rng(seed), np.random.default_rng(99)
    values = {}
    for split in SPLITS[1:]:
        target = np.array(store.target[store.rows(split)])
        target = np.where(np.isfinite(target), target, hidden.normal(5.0, 1.0, len(target)).clip(3.0, 7.0))
        values[split] = (target + noise * random.standard_normal(len(target))).astype(np.float32)
    return values


def make_run(
    folder: Path,
    store: Store,
    values: Mapping[str, np.ndarray],
    *,
    role: str = "student",
    epochs: int = 5,
    settings: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """A finished run folder with these predictions (splits left out are not written)."""
    folder.mkdir(parents=True)
    for split, array in values.items():
        rows = store.rows(split)
        Predictions(rows, array, np.asarray(store.flag[rows])).save(folder / "predictions" / f"{split}.npz")
    config = {"role": role, "model": {"name": "transformer", "width": 32}, "distill": {"graph": {"weight": 0.0}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | dict(settings or {})))
    target = np.asarray(store.target[store.rows("valid")])
    mae = float(np.abs(values["valid"] - target).mean()) if "valid" in values else float("nan")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve(mae, epochs)))
    basic = {
        "role": role,
        "metrics": {"epoch": epochs, "train_loss": 0.1, "valid_mae": mae, "valid_3d_mae": mae * 0.9},
        "parameters": 12_345,
        "store": store.identity,
        "store_path": str(store.path),
        "scale": {"mean": 5.0, "std": 1.2, "median": 5.0},
        "largest_training_molecule": 19,
        "split_hash": store.split_hash,
        "vocabulary": vocabulary_hash(),
        "seconds": 12.5,
        "seed": 0,
    }
    files = ["config.yaml", "metrics.jsonl", *(f"predictions/{split}.npz" for split in values)]
    write_manifest(folder, "run", files=files, inputs={"store": store.identity}, facts=basic | dict(facts or {}))
    return folder


SHARES = {
    "share_label": 0.7,
    "share_atom": 0.3,
    "share_label_6to10": 0.8,
    "share_atom_6to10": 0.2,
    "share_label_11to15": 0.6,
    "share_atom_11to15": 0.4,
}
"""What a probe tells, which is not made at every epoch."""


def curve(final: float, epochs: int, *, start: float = 1.2) -> list[dict[str, float]]:
    """A falling learning curve that ends at `final`."""
    share = np.linspace(0, 1, epochs)
    values = final + (start - final) * (1 - share) ** 2
    return [
        {
            "epoch": epoch,
            "train_loss": value * 0.8,
            "valid_mae": value,
            "valid_3d_mae": value * 0.95,
        }
        | (SHARES if epoch % 3 == 1 else {})
        for epoch, value in enumerate(map(float, values), 1)
    ]


def make_study(folder: Path, store: Store, trials: Sequence[Mapping[str, Any]]) -> Path:
    """A study folder; a trial is {state, noise, params, epochs}, those that did not fail become finished runs."""
    table = []
    for number, trial in enumerate(trials):
        run = folder / "trials" / f"{number:04d}"
        noise, epochs = trial.get("noise", 0.3), trial.get("epochs", 8)
        value = noise * 0.8
        if trial["state"] != "failed":
            values = predicted(store, noise=noise, seed=100 + number)
            make_run(run, store, values, epochs=epochs, facts={"seed": number})
            value = float(np.abs(values["valid"] - np.asarray(store.target[store.rows("valid")])).mean())
        else:
            run.mkdir(parents=True)
            (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve(value, epochs)))
        params = trial.get("params", {"optimizer.learning_rate": 1e-3 * (1 + number)})
        shown = None if trial["state"] == "failed" else value
        row = {"number": number, "state": trial["state"], "value": shown, "parameters": params, "epochs": epochs}
        table.append(row | {"folder": f"trials/{number:04d}", "reason": trial.get("reason")})
    best = min((t for t in table if t["state"] == "complete"), key=lambda t: t["value"], default=None)
    (folder / "space.yaml").write_text("objective: valid_mae\nsearch:\n  trials: 8\n")
    facts = {"trials": table, "best": best, "metric": "valid_mae", "direction": "minimize", "seconds": 61.0}
    write_manifest(folder, "study", files=["space.yaml"], inputs={"store": store.identity}, facts=facts)
    return folder
