"""A study as people look at it, while it runs or after: its trials, what it spent, what it came to, its disk use.

The ledger is the truth: Optuna's storage and the run folders. Nothing is written here, and nothing is locked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from moldistill.core.artifacts import MANIFEST, read_manifest
from moldistill.core.errors import InputError
from moldistill.core.locking import is_held
from moldistill.search.ledger import Ledger
from moldistill.search.study import (
    FINALISTS,
    LOCK,
    SPACE,
    TRIALS,
    TrialRow,
    best_first,
    final_metrics,
    finalists,
    recorded_values,
)

STATES = ("complete", "pruned", "failed", "running", "interrupted")
"""States of a trial, as they are shown; `interrupted`: its search has ended, and --resume goes on with it."""

Sort = Literal["value", "number", "epochs", "seconds"]


@dataclass(frozen=True, slots=True)
class Study:
    """A study that was read: its ledger, whether a search runs it, and all its trials by number."""

    ledger: Ledger
    held: bool
    rows: tuple[TrialRow, ...]

    @property
    def out(self) -> Path:
        """The study's folder."""
        return self.ledger.out

    @property
    def ended(self) -> tuple[TrialRow, ...]:
        """Trials that ended."""
        return tuple(row for row in self.rows if row.state not in ("running", "interrupted"))

    def row(self, number: int) -> TrialRow:
        """The trial of this number. InputError where there is none, or it was never trained."""
        for row in self.rows:
            if row.number == number:
                return row
        known = f"{self.rows[0].number} to {self.rows[-1].number}" if self.rows else "none yet"
        raise InputError(
            f"{self.out} has no trial {number}",
            got=self._never_trained(number),
            expected=f"the number of a trial: {known}",
            remedy=f"see them with: moldistill list {self.out}",
        )

    def _never_trained(self, number: int) -> str | None:
        for trial in self.ledger.study.get_trials(deepcopy=False):
            if trial.number == number and (refused := trial.user_attrs.get("refused")):
                return f"a configuration that was never trained: {refused}"
            if trial.number == number and "imported" in trial.user_attrs:
                return f"a trial of {trial.user_attrs['imported']}, which the sampler was shown"
        return None


def read(path: Path, *, held: bool | None = None) -> Study:
    """The study in `path`. InputError where there is none.

    held: whether a search runs it, by default whether anybody holds its lock; for a caller who holds that himself.
    """
    path = path.expanduser()
    if not path.is_dir():
        raise InputError(f"{path} does not exist", expected="a folder that `search` wrote", remedy="check the path")
    ledger = Ledger.open(path)
    runs = is_held(ledger.out / LOCK) if held is None else held
    under_way = [_under_way(ledger, row, runs) for row in ledger.running()]
    ended = ledger.rows()  # after those that run: one that ends meanwhile is in both, and none is lost
    known = {row.number for row in ended}
    rows = [*ended, *(row for row in under_way if row.number not in known)]
    return Study(ledger, runs, tuple(sorted(rows, key=lambda row: row.number)))


def _under_way(ledger: Ledger, row: TrialRow, held: bool) -> TrialRow:
    """A trial that has not ended. With several objectives the storage hears of it at its end only: its folder tells."""
    row = replace(row, state="running" if held else "interrupted")
    told = {} if row.epochs else recorded_values(ledger.out / row.folder, ledger.space.metric)
    return replace(row, epochs=max(told), value=told[max(told)]) if told else row


def studies_in(path: Path) -> list[Path]:
    """The study that `path` is, or those in it by name. InputError where there is none."""
    path = path.expanduser()
    if (path / SPACE).is_file():
        return [path]
    found = sorted(child for child in path.iterdir() if _is_study(child)) if path.is_dir() else []
    if not found:
        what = "holds no study" if path.is_dir() else "does not exist"
        raise InputError(
            f"{path} {what}", expected="a study that `search` wrote, or a folder of them", remedy="check the path"
        )
    return found


def _is_study(path: Path) -> bool:
    return (path / SPACE).is_file() and (path / TRIALS).is_dir()


@dataclass(frozen=True, slots=True)
class Listing:
    """Trials of a study in the order that was asked for. keys: parameters in which they differ. of: all its trials."""

    study: str
    objectives: tuple[str, ...]
    keys: tuple[str, ...]
    of: int
    trials: tuple[TrialRow, ...]


def listing(study: Study, sort: Sort = "value", states: Sequence[str] = (), top: int | None = None) -> Listing:
    """Trials of these states (default: all), sorted: `value` best first, the others largest first, `number` from 0."""
    rows = ordered([row for row in study.rows if not states or row.state in states], sort)[:top]
    objectives = tuple(str(objective.metric) for objective in study.ledger.space.objectives)
    return Listing(str(study.out), objectives, differing(rows), len(study.rows), tuple(rows))


def ordered(rows: Sequence[TrialRow], sort: Sort = "value") -> list[TrialRow]:
    """Trials sorted. By value: complete ones, stopped ones (later ones first), those under way, those that failed."""
    if sort == "number":
        return sorted(rows, key=lambda row: row.number)
    if sort == "epochs":
        return sorted(rows, key=lambda row: (-row.epochs, row.number))
    if sort == "seconds":
        return sorted(rows, key=lambda row: (-row.seconds, row.number))
    best = best_first(tuple(rows))
    known = {row.number for row in best}
    rest = [row for row in rows if row.number not in known]
    return best + sorted(rest, key=lambda row: (row.state == "failed", row.value is None, -row.epochs, row.number))


def differing(rows: Sequence[TrialRow]) -> tuple[str, ...]:
    """Parameters that do not have the same value in all of these trials, those of branches included."""
    keys = dict.fromkeys(key for row in rows for key in row.parameters)
    return tuple(key for key in keys if len({repr(row.parameters.get(key)) for row in rows}) > 1)


@dataclass(frozen=True, slots=True)
class Driver:
    """The process that runs the search, or the last that did. since: seconds since 1970."""

    number: int
    host: str
    pid: int
    since: float


def state_of(study: Study) -> str:
    """Whether a search runs the study, has finished it, or was cut off."""
    if study.held:
        return "running"
    return "finished" if (study.out / MANIFEST).is_file() else "interrupted"


def driver_of(study: Study) -> Driver | None:
    """Who runs the study, or did last."""
    said = study.ledger.study.user_attrs.get("driver")
    return Driver(said["number"], said["host"], said["pid"], said["since"]) if said else None


def finalists_of(study: Study) -> list[int]:
    """Numbers of the trials that are finalists as the study stands, the best first; none where it asks for none."""
    options = study.ledger.space.options.replicates
    if not options.top:
        return []
    return [row.number for row in finalists(study.ended, options.top)]


_FOLDER = re.compile(r"(?P<trial>\d+)-seed(?P<seed>\d+)")


def replicates_of(study: Study) -> list[Mapping[str, Any]]:
    """The finalists' trainings: those of the manifest, or of a study that has none, those that are on disk so far."""
    if not study.held and (study.out / MANIFEST).is_file():
        return list(read_manifest(study.out, "study").facts.get("finalists", ()))
    folder, options = study.out / FINALISTS, study.ledger.space.options.replicates
    wanted = set(finalists_of(study))
    found = list[Mapping[str, Any]]()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _FOLDER.fullmatch(path.name)
        if (
            match
            and int(match["trial"]) in wanted
            and int(match["seed"]) <= options.seeds
            and (path / MANIFEST).is_file()
        ):
            value = final_metrics(path).get(study.ledger.space.metric)
            place = f"{FINALISTS}/{path.name}"
            found.append({"trial": int(match["trial"]), "seed": int(match["seed"]), "folder": place, "value": value})
    return found
