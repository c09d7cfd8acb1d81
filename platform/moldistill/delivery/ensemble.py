"""An ensemble of finished runs: members and weights chosen on half of the validation rows, scored on the other half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moldistill.core.artifacts import atomic_path, new_folder, read_json, read_manifest, write_json, write_manifest
from moldistill.core.errors import InputError
from moldistill.core.progress import log, progress
from moldistill.core.vocabulary import SPLITS as ALL_SPLITS
from moldistill.core.vocabulary import vocabulary_hash
from moldistill.data.predictions import Predictions
from moldistill.data.store import Store
from moldistill.delivery.members import SPLITS, Candidate, Rows, find_candidates, load_predictions, open_store
from moldistill.delivery.selection import Floats, Score, bootstrap_means, greedy_weights, halves
from moldistill.training.evaluate import target_scale

MIN_ROWS = 20
"""Fewest labelled validation rows that can be halved with any meaning."""


@dataclass(frozen=True, slots=True)
class Member:
    """A run that was considered: its weight (0: not taken) and its MAE (eV) on the choosing and the scoring half."""

    path: str
    identity: str
    weight: float
    chosen_on: float
    scored_on: float
    parameters: int


@dataclass(frozen=True, slots=True)
class EnsembleSummary:
    """What `ensemble.json` holds. Energies in eV.

    score, best_single_score: MAE on the scoring half of the ensemble, and of the run that is best on the choosing half.
    difference: ensemble minus best single run, row by row (negative: the ensemble is better).
    mean_of_all, median_predictor: MAE on the same half of the plain mean, and of the training median.
    members: the runs with a weight, heaviest first. passed_over: the other runs.
    """

    seed: int
    store: str
    store_path: str
    split_hash: str
    vocabulary: str
    rows_chosen_on: int
    rows_scored_on: int
    score: Score
    best_single: str
    best_single_score: Score
    difference: Score
    mean_of_all: float
    median_predictor: float
    training_median: float
    training_range: tuple[float, float]
    training_sizes: tuple[int, int]
    members: tuple[Member, ...]
    passed_over: tuple[Member, ...]

    @property
    def inputs(self) -> dict[str, str]:
        """Identity of everything that it was made from."""
        return {"store": self.store} | {f"member {place}": item.identity for place, item in enumerate(self.members)}


@dataclass(frozen=True, slots=True)
class Validation:
    """Labelled validation rows as the ensemble saw them, for reports: `validation.npz`. Energies in eV.

    row: store row. size: heavy atoms. scored_on: whether the row lies in the scoring half.
    """

    row: Rows
    size: Rows
    target: Floats
    ensemble: Floats
    best_single: Floats
    scored_on: npt.NDArray[np.bool_]

    @classmethod
    def load(cls, folder: Path) -> Validation:
        with np.load(folder / "validation.npz", allow_pickle=False) as content:
            return cls(**{name: content[name] for name in cls.__slots__})

    def save(self, folder: Path) -> None:
        with atomic_path(folder / "validation.npz") as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, **{name: getattr(self, name) for name in self.__slots__})


def ensemble(
    sources: Sequence[Path], out: Path, *, store: Path | None = None, seed: int = 0, max_members: int = 32
) -> EnsembleSummary:
    """Choose members and weights among the runs of studies (and single runs), and write the ensemble's folder.

    store: where the members' store lies now; by default where they say it does. seed: of the halving and the bootstrap.
    Raises InputError for members of another store, split or vocabulary, and for broken predictions, with the row.
    """
    if max_members < 1:
        raise InputError("max_members is too small", got=max_members, expected="1 or more")
    candidates = find_candidates(sources)
    opened = open_store(candidates, store)
    rows, target = _labelled(opened)
    chosen, scored = halves(len(rows), seed)
    predictions = _validation_predictions(candidates, opened, rows)
    weights = greedy_weights(predictions[:, chosen], target[chosen], max_members=max_members)
    combined = weights @ predictions
    summary = _summary(candidates, opened, predictions, target, weights, chosen, scored, seed)
    best = [str(item.path) for item in candidates].index(summary.best_single)
    in_scored = np.zeros(len(rows), dtype=np.bool_)
    in_scored[scored] = True
    with new_folder(out) as folder:
        Validation(rows, opened.size(rows), target, combined, predictions[best], in_scored).save(folder)
        files = ["ensemble.json", "validation.npz", *_combine(candidates, weights, opened, folder)]
        write_json(folder / "ensemble.json", asdict(summary))
        facts = {"mae": asdict(summary.score), "members": len(summary.members), "candidates": len(candidates)}
        write_manifest(folder, "ensemble", files=files, inputs=summary.inputs, facts=facts)
    log(
        f"ensemble of {len(summary.members)} of {len(candidates)} runs: MAE {summary.score.value:.4f} eV on "
        f"{len(scored):,} unseen rows, best single run {summary.best_single_score.value:.4f} eV"
    )
    return summary


def load_ensemble(folder: Path) -> EnsembleSummary:
    """The summary of a finished ensemble folder."""
    read_manifest(folder, "ensemble")
    raw: dict[str, Any] = read_json(folder / "ensemble.json")
    try:
        for name in ("score", "best_single_score", "difference"):
            raw[name] = Score(**raw[name])
        for name in ("members", "passed_over"):
            raw[name] = tuple(Member(**item) for item in raw[name])
        for name in ("training_range", "training_sizes"):
            raw[name] = tuple(raw[name])
        return EnsembleSummary(**raw)
    except (KeyError, TypeError) as error:
        what = f"{folder / 'ensemble.json'} does not hold an ensemble"
        raise InputError(what, got=repr(error), remedy="make the folder again") from error


def _labelled(store: Store) -> tuple[Rows, Floats]:
    """Validation rows with a target, and their targets; no other split's label is read for choosing or scoring."""
    rows = store.rows("valid")
    target = np.asarray(store.target[rows], dtype=np.float64)
    known = np.isfinite(target)
    if np.count_nonzero(known) < MIN_ROWS:
        raise InputError(
            f"{store.path} has too few labelled validation rows to choose and to score on",
            got=int(np.count_nonzero(known)),
            expected=f"at least {MIN_ROWS}",
            remedy="prepare the store with more rows",
        )
    return rows[known], target[known]


def _validation_predictions(candidates: Sequence[Candidate], store: Store, rows: Rows) -> Floats:
    """Predictions of shape (candidates, rows), after checking every candidate's file of every split."""
    expected = {split: store.rows(split) for split in SPLITS}
    places = np.searchsorted(expected["valid"], rows)
    predictions = np.empty((len(candidates), len(rows)))
    with progress("reading members", len(candidates)) as bar:
        for line, candidate in zip(predictions, candidates, strict=True):
            for split, wanted in expected.items():
                if len(wanted):
                    loaded = load_predictions(candidate.path, split, wanted)
                    if split == "valid":
                        line[:] = loaded[places]
            bar.advance()
    return predictions


def _summary(
    candidates: Sequence[Candidate],
    store: Store,
    predictions: Floats,
    target: Floats,
    weights: Floats,
    chosen: Rows,
    scored: Rows,
    seed: int,
) -> EnsembleSummary:
    errors = np.abs(predictions - target)
    on_chosen, on_scored = errors[:, chosen].mean(axis=1), errors[:, scored].mean(axis=1)
    best = int(on_chosen.argmin())
    ours = np.abs(weights @ predictions[:, scored] - target[scored])
    single = errors[best, scored]
    score, best_score, difference = bootstrap_means(np.stack([ours, single, ours - single]), seed)
    members = _members(candidates, weights, on_chosen, on_scored)
    median, limits, sizes = _training(store)
    return EnsembleSummary(
        seed=seed,
        store=store.identity,
        store_path=str(store.path),
        split_hash=store.split_hash,
        vocabulary=vocabulary_hash(),
        rows_chosen_on=len(chosen),
        rows_scored_on=len(scored),
        score=score,
        best_single=members[best].path,
        best_single_score=best_score,
        difference=difference,
        mean_of_all=float(np.abs(predictions[:, scored].mean(axis=0) - target[scored]).mean()),
        median_predictor=float(np.abs(median - target[scored]).mean()),
        training_median=median,
        training_range=limits,
        training_sizes=sizes,
        members=tuple(sorted((item for item in members if item.weight > 0), key=lambda item: -item.weight)),
        passed_over=tuple(item for item in members if item.weight == 0),
    )


def _members(candidates: Sequence[Candidate], weights: Floats, on_chosen: Floats, on_scored: Floats) -> list[Member]:
    """Every candidate with its weight and its MAE on both halves."""
    return [
        Member(
            path=str(item.path),
            identity=item.manifest.identity,
            weight=float(weights[place]),
            chosen_on=float(on_chosen[place]),
            scored_on=float(on_scored[place]),
            parameters=int(item.manifest.facts.get("parameters", 0)),
        )
        for place, item in enumerate(candidates)
    ]


def _training(store: Store) -> tuple[float, tuple[float, float], tuple[int, int]]:
    """Median and range of the training targets (eV), and range of the training molecules' sizes."""
    rows = store.rows("train")
    target = np.asarray(store.target[rows], dtype=np.float64)
    target = target[np.isfinite(target)]
    sizes = store.size(store.usable(rows))
    limits = (float(target.min()), float(target.max()))
    return target_scale(store).median, limits, (int(sizes.min()), int(sizes.max()))


def _combine(candidates: Sequence[Candidate], weights: Floats, store: Store, folder: Path) -> list[str]:
    """Write the weighted mean of the members' predictions for each split; return the files' names."""
    names = []
    for split in ALL_SPLITS[1:]:
        rows = store.rows(split)
        taken = [(item, weight) for item, weight in zip(candidates, weights, strict=True) if weight > 0]
        # valid-3d is for reports only: an older run may lack it, and then so does the ensemble.
        missing = split not in SPLITS and any(
            not (item.path / "predictions" / f"{split}.npz").is_file() for item, _ in taken
        )
        if not len(rows) or missing:
            continue
        total = np.zeros(len(rows))
        for item, weight in taken:
            total += weight * load_predictions(item.path, split, rows)
        name = f"predictions/{split}.npz"
        flags = np.asarray(store.flag[rows], dtype=np.uint8)
        Predictions(rows, total.astype(np.float32), flags).save(folder / name)
        names.append(name)
    return names
