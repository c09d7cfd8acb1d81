"""Finding the runs that an ensemble may be made of, and reading their predictions without trusting them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moldistill.core.artifacts import Manifest, read_manifest
from moldistill.core.errors import InputError
from moldistill.core.vocabulary import vocabulary_hash
from moldistill.data.predictions import Predictions
from moldistill.data.store import Store

Rows = npt.NDArray[np.int64]

SPLITS = ("valid", "test-dev", "test-challenge")
"""Splits that every member must have predicted, where the store has rows of them."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A finished run that may become a member."""

    path: Path
    manifest: Manifest


def find_candidates(sources: Sequence[Path]) -> list[Candidate]:
    """The finished student runs among run folders and the trials of study folders that did not fail, each once.

    Raises InputError where a folder is neither, a single run is a teacher, or nothing is left.
    """
    found: dict[Path, Candidate] = {}
    for source in sources:
        path = source.expanduser().absolute()
        manifest = read_manifest(path)
        if manifest.kind == "run":
            _refuse_teacher(path, manifest)
            found[path.resolve()] = Candidate(path, manifest)
        elif manifest.kind == "study":
            for candidate in _trials(path, manifest):
                found[candidate.path.resolve()] = candidate
        else:
            raise InputError(
                f"{source} cannot give members",
                got=manifest.kind,
                expected="a study or a run",
                remedy="name folders that `search` or `train` wrote",
            )
    if not found:
        raise InputError(
            "no member can be taken from " + (", ".join(map(str, sources)) or "nothing"),
            expected="at least one trial that did not fail, or a finished run of a student",
            remedy="search with more trials, or name a run folder",
        )
    return list(found.values())


def _trials(study: Path, manifest: Manifest) -> list[Candidate]:
    """Complete trials, and those that the scheduler stopped: they have predictions, too, and the selection judges."""
    folders = [study / trial["folder"] for trial in manifest.facts["trials"] if trial["state"] != "failed"]
    runs = [(path, read_manifest(path, "run")) for path in folders]
    for path, run in runs:
        _refuse_teacher(path, run)
    return [Candidate(path, run) for path, run in runs]


def _refuse_teacher(path: Path, manifest: Manifest) -> None:
    if manifest.facts.get("role") != "student":
        raise InputError(
            f"{path} cannot be a member",
            got=f"a {manifest.facts.get('role')}",
            expected="a student: test molecules have no geometry for a teacher to see",
            remedy="name runs or studies of students",
        )


def open_store(candidates: Sequence[Candidate], store: Path | None) -> Store:
    """The store that the candidates were trained on: `store`, or where the first of them says it lies.

    Raises InputError where it is gone, or where a candidate was made from another store, split or vocabulary.
    """
    place = store or candidates[0].manifest.facts.get("store_path")
    if place is None or not Path(place).exists():
        raise InputError(
            "the store of the members was not found",
            got=place or f"no path in {candidates[0].path}",
            expected="the store that they were trained on",
            remedy="name it with --store",
        )
    opened = Store.open(Path(place))
    # The store's identity covers its split and vocabulary; those are compared first because their message says more.
    wanted = (
        ("vocabulary", "feature vocabulary", vocabulary_hash()),
        ("split_hash", "split", opened.split_hash),
        ("store", "store", opened.identity),
    )
    for candidate in candidates:
        for key, name, value in wanted:
            got = candidate.manifest.facts.get(key)
            if got != value:
                raise InputError(
                    f"{candidate.path} was made with another {name}",
                    got=got,
                    expected=value,
                    remedy="leave it out, or train it again on this store",
                )
    return opened


def load_predictions(path: Path, split: str, rows: Rows) -> npt.NDArray[np.float32]:
    """Predictions (eV) of a run for exactly these rows of the store, in their order.

    Raises InputError, with the row, where the file is missing, short, long, in another order, or not finite.
    """
    file = path / "predictions" / f"{split}.npz"
    remedy = "leave this member out, or make it again"
    if not file.is_file():
        raise InputError(f"{path} has no predictions for {split}", expected=str(file), remedy=remedy)
    loaded = Predictions.load(file)
    common = min(len(loaded.row), len(rows))
    different = np.flatnonzero(loaded.row[:common] != rows[:common])
    if len(different) or len(loaded.row) != len(rows):
        place = int(different[0]) if len(different) else common
        got = f"row {loaded.row[place]}" if place < len(loaded.row) else "the end of the file"
        expected = f"row {rows[place]}" if place < len(rows) else "the end of the file"
        raise InputError(
            f"{file} does not hold the rows of {split} ({len(loaded.row):,} of {len(rows):,} rows)",
            got=f"{got} at place {place}",
            expected=expected,
            remedy=remedy,
        )
    return loaded.y_pred
