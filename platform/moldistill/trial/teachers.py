"""Finished teachers' runs, as `cache` asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from moldistill.core.errors import InputError
from moldistill.data.store import Store
from moldistill.training.asking import Teacher
from moldistill.trial.folder import LoadedRun, load_run_folder


def load_teacher(path: Path, store: Store) -> LoadedRun:
    """A finished teacher's run; InputError for a student, or a teacher of another store."""
    run = load_run_folder(path)
    if run.settings.role != "teacher":
        raise InputError(f"{path} is not a teacher's run", got=run.settings.role, remedy="name a teacher's run")
    if run.manifest.facts["store"] != store.identity:
        raise InputError(
            f"{path} was trained on another store",
            got=store.identity,
            expected=run.manifest.facts["store"],
            remedy="name the store that it was trained on",
        )
    return run


def load_fold_teachers(paths: Sequence[Path], store: Store) -> list[LoadedRun]:
    """Teachers that were each trained on all parts but one, in the order of the parts they left out.

    InputError where a run left out no part, where they cut the rows into different numbers of parts, and where a part
    is missing or left out twice.
    """
    found: dict[int, LoadedRun] = {}
    for path in paths:
        run = load_teacher(path, store)
        training = run.settings.training
        if training.folds is None:
            raise InputError(
                f"{path} was trained on all rows: it cannot say soft labels of rows that it did not see",
                got="training.folds null",
                expected="a run with training.folds=K training.fold=k",
                remedy="train one teacher for each k from 0 to K - 1, and name them all",
            )
        others = next(iter(found.values()), run)
        if training.folds != others.settings.training.folds:
            raise InputError(
                "soft labels: the teachers cut the rows into different numbers of parts",
                got=f"training.folds {training.folds} in {path}",
                expected=f"{others.settings.training.folds}, as in {others.path}",
                remedy="name the runs of one training.folds",
            )
        if training.fold in found:
            raise InputError(
                f"soft labels: two teachers left out part {training.fold}",
                got=f"{found[training.fold].path} and {path}",
                expected="each training.fold once",
                remedy="leave one of them out",
            )
        found[training.fold] = run
    if found:
        _check_complete(found)
    return [found[fold] for fold in sorted(found)]


def _check_complete(found: dict[int, LoadedRun]) -> None:
    folds = next(iter(found.values())).settings.training.folds
    assert folds is not None
    missing = sorted(set(range(folds)) - set(found))
    if missing:
        raise InputError(
            "soft labels: some rows were seen by every one of these teachers",
            got=f"no teacher with training.fold {', '.join(map(str, missing))} of training.folds {folds}",
            expected="one for each part",
            remedy="train the missing ones, and name them all with --soft-labels",
        )


def asked(run: LoadedRun, device: torch.device) -> Teacher:
    """The run's model on a device, ready to be asked."""
    return Teacher(run.model.to(device), run.scale, run.manifest.identity)
