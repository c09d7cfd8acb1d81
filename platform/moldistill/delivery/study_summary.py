"""A study at a glance: what is searched and spent, what it came to, and which command is next."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moldistill.core.artifacts import MANIFEST, read_manifest
from moldistill.core.errors import MoldistillError
from moldistill.delivery.disk_use import DiskUse, usage
from moldistill.delivery.finalists import Finals, judge
from moldistill.delivery.importance import parameter_importance
from moldistill.delivery.study_view import (
    STATES,
    Driver,
    Study,
    differing,
    driver_of,
    finalists_of,
    ordered,
    read,
    replicates_of,
    state_of,
)
from moldistill.search.study import SPACE, TrialRow, best_first, front

TOP = 5
"""Trials that a study is summed up by."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What of a budget is used; allowed is None where the space sets no limit."""

    what: str
    used: float
    allowed: float | None


@dataclass(frozen=True, slots=True)
class StudyReport:
    """A study at a glance.

    state: running, finished, or interrupted. counts: trials by STATES. epochs: trained in all; full_epochs: what they
    would be if no trial had been stopped early. failures: how often each reason. missing: finalists yet to be trained.
    """

    study: str
    state: str
    driver: Driver | None
    role: str
    objectives: tuple[tuple[str, str], ...]
    sampler: str
    scheduler: str
    storage: str
    counts: Mapping[str, int]
    budget: tuple[Spent, ...]
    epochs: int
    full_epochs: int
    best: TrialRow | None
    front: tuple[int, ...]
    keys: tuple[str, ...]
    top: tuple[TrialRow, ...]
    failures: tuple[tuple[str, int], ...]
    finals: Finals | None
    missing: int
    importance: tuple[tuple[str, float], ...]
    importance_method: str | None
    disk: tuple[DiskUse, ...]
    following: str


def summed_up(study: Study) -> StudyReport:
    """The study at a glance."""
    space, ended = study.ledger.space, study.ended
    counted = Counter(row.state for row in study.rows)
    ranked = best_first(ended)
    several = len(space.objectives) > 1
    shown = [row for row in ended if row.number in front(ended, space.objectives)] if several else ranked[:TOP]
    replicates = replicates_of(study)
    important = parameter_importance(
        [(r.parameters, r.value) for r in ended if r.state == "complete" and r.value is not None]
    )
    return StudyReport(
        study=str(study.out),
        state=state_of(study),
        driver=driver_of(study),
        role=space.role,
        objectives=tuple((str(objective.metric), objective.direction) for objective in space.objectives),
        sampler=space.sampler.name,
        scheduler=space.scheduler.name,
        storage=_without_password(space.options.storage),
        counts={state: counted[state] for state in STATES},
        budget=_budget(study),
        epochs=sum(row.epochs for row in study.rows),
        full_epochs=sum(_full_epochs(study, row) for row in study.rows),
        best=ranked[0] if ranked else None,
        front=front(ended, space.objectives) if several else (),
        keys=differing(shown),
        top=tuple(ordered(shown)),
        failures=tuple(Counter(row.reason or "no reason" for row in ended if row.state == "failed").most_common()),
        finals=judge(replicates, {row.number: row.value for row in ended}, space.metric),
        missing=_missing(study),
        importance=tuple(sorted(important[0], key=lambda item: -item[1])) if important else (),
        importance_method=important[1] if important else None,
        disk=usage(study.out),
        following=following(study),
    )


def _budget(study: Study) -> tuple[Spent, ...]:
    budget, (seconds, gpu_seconds) = study.ledger.space.budget, study.ledger.spent()
    trials = budget.trials
    if trials is None and budget.hours is None and budget.gpu_hours is None:
        trials = study.ledger.space.most_trials
    found = [Spent("trials", len(study.ended), trials), Spent("hours", seconds / 3600, budget.hours)]
    if gpu_seconds or budget.gpu_hours is not None:
        found.append(Spent("GPU-hours", gpu_seconds / 3600, budget.gpu_hours))
    return tuple(found)


def _full_epochs(study: Study, row: TrialRow) -> int:
    if row.state != "pruned":
        return row.epochs
    return max(row.epochs, int(row.parameters.get("training.epochs", study.ledger.space.epochs)))


def _without_password(storage: str) -> str:
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:…@", storage)


def _missing(study: Study) -> int:
    options = study.ledger.space.options.replicates
    wanted = len(finalists_of(study)) * options.seeds
    return max(0, wanted - len(replicates_of(study)))


def following(study: Study) -> str:
    """The command that comes next."""
    state, best = state_of(study), best_first(study.ended)
    if state == "running":
        return f"moldistill list {study.out}"
    if state == "interrupted":
        return f"moldistill search {study.out / SPACE} --store {_store(study)} --out {study.out} --resume"
    if study.ledger.space.role == "teacher" and best:
        return f"moldistill cache {study.out / best[0].folder} --store {_store(study)} --out targets"
    return f"moldistill ensemble {study.out} --out ensemble"


def _store(study: Study) -> str:
    """Where the trials' store lay, as far as a run says so."""
    for row in study.ended:
        folder = study.out / row.folder
        if (folder / MANIFEST).is_file() and (place := read_manifest(folder, "run").facts.get("store_path")):
            return str(place)
    return "STORE"


@dataclass(frozen=True, slots=True)
class Overview:
    """A study in a line. problem: why it could not be read, in which case nothing else is known."""

    study: str
    state: str | None = None
    metric: str | None = None
    best: TrialRow | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    hours: float | None = None
    problem: str | None = None


def overview(path: Path) -> Overview:
    """A study in a line; one that cannot be read does not hide the others."""
    try:
        study = read(path)
    except MoldistillError as error:
        return Overview(str(path), problem=error.what)
    counted, ranked = Counter(row.state for row in study.rows), best_first(study.ended)
    return Overview(
        study=str(path),
        state=state_of(study),
        metric=study.ledger.space.metric,
        best=ranked[0] if ranked else None,
        counts={state: counted[state] for state in STATES},
        hours=study.ledger.spent()[0] / 3600,
    )
