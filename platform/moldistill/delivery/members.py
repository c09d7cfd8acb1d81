"""Finding the runs that an ensemble may be made of, and reading their predictions without trusting them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moldistill.core.artifacts import MANIFEST, Manifest, read_manifest
from moldistill.core.errors import InputError
from moldistill.core.progress import log, progress
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


@dataclass(frozen=True, slots=True)
class Pool:
    """Candidates with different predictions. predictions: eV, (candidates, labelled validation rows).

    copies: of each candidate whose predictions for all splits are, bit for bit, those of an earlier one, which one.
    """

    candidates: tuple[Candidate, ...]
    predictions: npt.NDArray[np.float64]
    copies: tuple[tuple[Candidate, Candidate], ...]


def find_candidates(sources: Sequence[Path]) -> list[Candidate]:
    """The finished student runs among run folders, studies and folders of these, each once.

    Of a study: trials that did not fail and came to predictions, and finalists. Of a plain folder: its finished runs
    and studies; teachers and unfinished folders in it are passed by. Raises InputError where a source is none of these,
    a run that is named is a teacher, or nothing is left.
    """
    found: dict[Path, Candidate] = {}
    for source in sources:
        for candidate in _of_source(source.expanduser().absolute()):
            found.setdefault(candidate.path.resolve(), candidate)
    if not found:
        raise InputError(
            "no member can be taken from " + (", ".join(map(str, sources)) or "nothing"),
            expected="at least one trial that did not fail, or a finished run of a student",
            remedy="search with more trials, or name a run folder",
        )
    return list(found.values())


def _of_source(path: Path) -> list[Candidate]:
    if path.is_dir() and not (path / MANIFEST).is_file():
        children = [child for child in sorted(path.iterdir()) if (child / MANIFEST).is_file()]
        manifests = [(child, read_manifest(child)) for child in children]
        known = [(child, one) for child, one in manifests if one.kind == "study" or _is_student(one)]
        if known:
            return [candidate for child, one in known for candidate in _of_folder(child, one)]
    manifest = read_manifest(path)  # which says what is missing
    if manifest.kind == "run":
        _refuse_teacher(path, manifest)
    return _of_folder(path, manifest)


def _of_folder(path: Path, manifest: Manifest) -> list[Candidate]:
    """The candidates of a run or a study."""
    if manifest.kind == "run":
        return [Candidate(path, manifest)]
    if manifest.kind == "study":
        return _of_study(path, manifest)
    raise InputError(
        f"{path} cannot give members",
        got=manifest.kind,
        expected="a study, a run, or a folder of runs",
        remedy="name folders that `search` or `train` wrote",
    )


def _of_study(study: Path, manifest: Manifest) -> list[Candidate]:
    """Trials that ended with predictions, those that were stopped early too (the selection judges), and finalists."""
    trials = [study / trial["folder"] for trial in manifest.facts["trials"] if trial["state"] != "failed"]
    finalists = [study / one["folder"] for one in manifest.facts.get("finalists") or () if one["value"] is not None]
    folders = [path for path in (*trials, *finalists) if (path / MANIFEST).is_file()]
    if left := len(trials) + len(finalists) - len(folders):
        log(f"{study}: {left} stopped or unfinished trials have no predictions, and are passed by")
    runs = [(path, read_manifest(path, "run")) for path in folders]
    for path, run in runs:
        _refuse_teacher(path, run)
    return [Candidate(path, run) for path, run in runs]


def _is_student(manifest: Manifest) -> bool:
    return manifest.kind == "run" and manifest.facts.get("role") == "student"


def _refuse_teacher(path: Path, manifest: Manifest) -> None:
    if not _is_student(manifest):
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


def read_pool(candidates: Sequence[Candidate], store: Store, rows: Rows) -> Pool:
    """Predictions for the validation rows `rows`, after checking every candidate's file of every split."""
    expected = {split: store.rows(split) for split in SPLITS if len(store.rows(split))}
    places = np.searchsorted(expected["valid"], rows)
    first: dict[bytes, Candidate] = {}
    lines, copies = [], []
    with progress("reading members", len(candidates)) as bar:
        for candidate in candidates:
            digest = hashlib.sha256()
            for split, wanted in expected.items():
                loaded = load_predictions(candidate.path, split, wanted)
                digest.update(loaded.tobytes())
                if split == "valid":
                    line = loaded[places].astype(np.float64)
            earlier = first.setdefault(digest.digest(), candidate)
            if earlier is candidate:
                lines.append(line)
            else:
                copies.append((candidate, earlier))
            bar.advance(1)
    return Pool(tuple(first.values()), np.stack(lines), tuple(copies))


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
