"""Freeing the disk of a study: checkpoints that nothing needs any more, and what interrupted writers left."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from moldistill.core.artifacts import MANIFEST
from moldistill.core.errors import InputError, RunError
from moldistill.core.locking import exclusive
from moldistill.delivery.disk_use import SCRATCH, bytes_of, is_leftover, walk
from moldistill.delivery.study_view import Study, driver_of, read
from moldistill.search.disk import CHECKPOINTS, kept
from moldistill.search.study import FINALISTS, LOCK, TrialRow


@dataclass(frozen=True, slots=True)
class Removal:
    """Something that can go. path: relative to the study; what: checkpoint, finalist's checkpoint, or leftover."""

    path: str
    what: str
    bytes: int
    trial: int | None = None


@dataclass(frozen=True, slots=True)
class Cleaning:
    """What was removed, or would be. keep: best trials whose checkpoints stay. lost: what can no longer be done."""

    study: str
    keep: int
    dry_run: bool
    removed: tuple[Removal, ...]
    bytes: int
    stays: tuple[str, ...]
    lost: tuple[str, ...]


def clean(path: Path, *, keep: int | None = None, dry_run: bool = False) -> Cleaning:
    """Remove checkpoints of trials that ended beyond the best `keep` (default: what the space says), and leftovers.

    Run folders keep their weights, predictions and records, which is all that reports, ensembles and submissions
    read. Trials that were interrupted keep their checkpoints, which --resume goes on from; so do those that were
    stopped early and belong to the best ones, for as long as their predictions have not been made.

    InputError where a search runs the study, whose lock is held meanwhile; RunError where a folder cannot be removed.
    """
    study = read(path)
    if study.held:
        raise InputError(
            f"a search runs the study {study.out}",
            got=_who(study),
            remedy="wait for it to end, or stop it: it tidies up",
        )
    alone = nullcontext() if dry_run else exclusive(study.out / LOCK, f"a search runs the study {study.out}")
    with alone:
        study = read(path, held=False)
        count = study.ledger.space.options.keep if keep is None else keep
        stays = kept(study.ended, count)
        removals = tuple(_removals(study, stays))
        if not dry_run:
            for removal in removals:
                _remove(study.out / removal.path)
    return Cleaning(
        study=str(study.out),
        keep=count,
        dry_run=dry_run,
        removed=removals,
        bytes=sum(removal.bytes for removal in removals),
        stays=tuple(_stays(study, stays)),
        lost=tuple(_lost(study, removals)),
    )


def _who(study: Study) -> str | None:
    driver = driver_of(study)
    return f"process {driver.pid} on {driver.host}" if driver else None


def _removals(study: Study, stays: set[int]) -> Iterator[Removal]:
    needed = stays | _to_be_finished(study)
    for row in study.ended:
        place = f"{row.folder}/{CHECKPOINTS}"
        if row.number not in needed and (study.out / place).is_dir():
            yield Removal(place, "checkpoint", bytes_of(study.out / place), row.number)
    finalists = study.out / FINALISTS
    for folder in sorted(finalists.iterdir()) if finalists.is_dir() else ():
        if (folder / MANIFEST).is_file() and (folder / CHECKPOINTS).is_dir():
            yield Removal(
                f"{FINALISTS}/{folder.name}/{CHECKPOINTS}", "finalist's checkpoint", bytes_of(folder / CHECKPOINTS)
            )
    if (study.out / SCRATCH).is_dir():
        yield Removal(SCRATCH, "leftover", bytes_of(study.out / SCRATCH))
    for path, size in walk(study.out):
        inside = path.relative_to(study.out)
        if is_leftover(path) and inside.parts[0] != SCRATCH and CHECKPOINTS not in inside.parts:
            yield Removal(str(inside), "leftover", size)


def _to_be_finished(study: Study) -> set[int]:
    """Stopped trials of which the search makes predictions when it ends: those that its own `keep` counts."""
    best = kept(study.ended, study.ledger.space.options.keep)
    return {row.number for row in study.ended if row.number in best and not _is_finished(study, row)}


def _is_finished(study: Study, row: TrialRow) -> bool:
    return (study.out / row.folder / MANIFEST).is_file()


def _remove(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(
            f"{path} cannot be removed", got=error, remedy="check its permissions, then clean again"
        ) from error


def _stays(study: Study, stays: set[int]) -> Iterator[str]:
    """What keeps its checkpoint, and what for."""
    best = [row.number for row in study.ended if row.number in stays and _has_checkpoint(study, row)]
    waiting = sorted(number for number in _to_be_finished(study) - stays)
    begun = [row.number for row in study.rows if row.state == "interrupted"]
    if best:
        yield f"checkpoints of the best trials stay: {_listed(best)}"
    if waiting:
        yield f"stopped trials whose predictions are still to be made keep theirs: {_listed(waiting)}"
    if begun:
        yield f"interrupted trials keep theirs, --resume goes on from them: {_listed(begun)}"


def _has_checkpoint(study: Study, row: TrialRow) -> bool:
    return (study.out / row.folder / CHECKPOINTS).is_dir()


def _lost(study: Study, removals: Sequence[Removal]) -> Iterator[str]:
    """What can no longer be done once these are gone."""
    gone = {removal.trial for removal in removals if removal.trial is not None}
    rows = [row for row in study.ended if row.number in gone]
    finished = [row.number for row in rows if _is_finished(study, row)]
    stopped = [row.number for row in rows if row.state == "pruned" and row.number not in finished]
    failed = [row.number for row in rows if row.state == "failed" and row.number not in finished]
    if finished:
        yield f"train longer from where they ended: trials {_listed(finished)} (weights and predictions stay)"
    if stopped:
        yield f"make predictions of, or go on with, stopped trials {_listed(stopped)} (their curves stay)"
    if failed:
        yield f"go on with failed trials {_listed(failed)}"
    if any(removal.what == "finalist's checkpoint" for removal in removals):
        yield "train finalists longer from where they ended (weights and predictions stay)"


def _listed(numbers: Sequence[int]) -> str:
    """`0 to 3, 7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in runs)
