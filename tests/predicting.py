"""What the tests of `predict` and `export` share: files of SMILES, tables read back, ensembles of given weights."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moldistill.core.artifacts import read_manifest, write_json, write_manifest
from moldistill.core.settings import ModelSettings, RunSettings, TrainingSettings
from moldistill.core.vocabulary import vocabulary_hash
from moldistill.delivery.ensemble_summary import EnsembleSummary, Member
from moldistill.delivery.selection import Score

SMILES = ["CCO", "c1ccccc1O", "C1CC", "F[Si](F)(F)(F)(F)F", "C" * 40, "", "CC(=O)N", "CCO"]
"""Fine, but for: refused, unsanitized and of an element that is not trained on, too large for the training, empty."""

CALIBRATION = {"levels": [0.5, 0.9], "edges": [7], "a": [[0.1, 0.3], [0.2, 0.6]], "b": [[1.0, 2.0], [0.5, 1.5]]}


def settings(seed: int, role: str = "student", name: str = "transformer") -> RunSettings:
    model = ModelSettings(name=name, width=16, depth=1, heads=2)
    return RunSettings(role=role, model=model, training=TrainingSettings(epochs=1, seed=seed))  # type: ignore[arg-type]


def table_of(smiles: Sequence[str], column: str = "smiles") -> str:
    """A CSV with a name beside each SMILES."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(("name", column))
    writer.writerows((f"molecule {place}", item) for place, item in enumerate(smiles))
    return text.getvalue()


def write_smiles(path: Path, smiles: Sequence[str]) -> Path:
    content = table_of(smiles).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a table, as text."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def column(path: Path, name: str) -> np.ndarray:
    """A column of numbers; NaN where it is empty."""
    return np.array([float(line[name] or "nan") for line in read(path)])


def make_ensemble(folder: Path, runs: Sequence[Path], weights: Sequence[float], **keys: Any) -> Path:
    """An ensemble's folder with these members and weights; keys of `ensemble.json` in addition."""
    folder.mkdir()
    facts = read_manifest(runs[0]).facts
    score = Score(1.0, 0.5, 1.5)
    members = tuple(
        Member(str(run), read_manifest(run).identity, weight, 1.0, 1.0, 100)
        for run, weight in zip(runs, weights, strict=True)
    )
    summary = EnsembleSummary(
        seed=0,
        store=facts["store"],
        store_path=facts["store_path"],
        split_hash=facts["split_hash"],
        vocabulary=vocabulary_hash(),
        rows_chosen_on=6,
        rows_scored_on=6,
        score=score,
        best_single=str(runs[0]),
        best_single_score=score,
        difference=score,
        mean_of_all=1.0,
        median_predictor=1.0,
        training_median=facts["scale"]["median"],
        training_range=(1.0, 9.0),
        training_sizes=(2, int(facts["largest_training_molecule"])),
        members=members,
        passed_over=(),
    )
    write_json(folder / "ensemble.json", summary.to_mapping(folder) | keys)
    write_manifest(folder, "ensemble", files=["ensemble.json"], inputs=summary.inputs)
    return folder
