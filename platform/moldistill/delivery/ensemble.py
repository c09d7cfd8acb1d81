"""An ensemble of finished runs: everything about it chosen on half of the validation rows, scored on the other half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from moldistill.core.artifacts import new_folder, write_json, write_manifest
from moldistill.core.errors import InputError
from moldistill.core.vocabulary import SPLITS as ALL_SPLITS
from moldistill.data.predictions import Predictions
from moldistill.data.store import Store
from moldistill.delivery.ensemble_summary import EnsembleSummary, Member, Validation, load_ensemble
from moldistill.delivery.making import Made, Options
from moldistill.delivery.members import SPLITS, Rows, find_candidates, load_predictions, open_store, read_pool
from moldistill.delivery.selection import Floats
from moldistill.delivery.telling import tell

__all__ = ["EnsembleSummary", "Member", "Validation", "ensemble", "load_ensemble"]

MIN_ROWS = 20
"""Fewest labelled validation rows that can be halved with any meaning."""


def ensemble(sources: Sequence[Path], out: Path, *, store: Path | None = None, **options: Any) -> EnsembleSummary:
    """Choose members, combiner and weights among finished runs, and write the ensemble's folder.

    One half of the labelled validation rows chooses, by cross-validation within it; the other half scores that choice,
    once, and calibrates its intervals. Then the chosen rule makes the weights again from all labelled rows. No label of
    a test is read. store: where the members' store lies now; by default where they say it does. options: of `Options`.
    Raises InputError for members of another store, split or vocabulary, for broken predictions, with the row, and for a
    budget that no member fits.
    """
    wanted = Options(**options)
    if wanted.max_members < 1:
        raise InputError("max_members is too small", got=wanted.max_members, expected="1 or more")
    wanted.combiners(1)
    found = find_candidates(sources)
    opened = open_store(found, store)
    rows, target = _labelled(opened)
    pool = read_pool(found, opened, rows)
    made = Made.of(pool, opened, rows, target, wanted)
    summary = made.summary()
    with new_folder(out) as folder:
        made.validation(summary.best_single).save(folder)
        files = ["ensemble.json", "validation.npz", *_combine(summary, opened, folder)]
        write_json(folder / "ensemble.json", summary.to_mapping(out.expanduser().absolute()))
        facts = {
            "mae": asdict(summary.score),
            "members": len(summary.members),
            "candidates": len(found),
            "inference": made.inference(),
        }
        write_manifest(folder, "ensemble", files=files, inputs=summary.inputs, facts=facts)
    tell(summary)
    return summary


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


def _combine(summary: EnsembleSummary, store: Store, folder: Path) -> list[str]:
    """Write the members' combined predictions for each split; return the files' names."""
    names = []
    paths = [Path(item.path) for item in summary.members]
    for split in ALL_SPLITS[1:]:
        rows = store.rows(split)
        # valid-3d is for reports only: an older run may lack it, and then so does the ensemble.
        missing = split not in SPLITS and any(not (path / "predictions" / f"{split}.npz").is_file() for path in paths)
        if not len(rows) or missing:
            continue
        predictions = np.stack([load_predictions(path, split, rows) for path in paths]).astype(np.float64)
        value = summary.rule.apply(predictions, store.size(rows)).value
        name = f"predictions/{split}.npz"
        flags = np.asarray(store.flag[rows], dtype=np.uint8)
        Predictions(rows, value.astype(np.float32), flags).save(folder / name)
        names.append(name)
    return names
