"""The ledger of a study: the Optuna storage and the run folders, and nothing else.

Each Optuna trial carries user attributes:

- `folder`: its run folder's name; `parameters`: values by dotted key; `accumulate`, where memory made it split batches;
- `seconds`: wall time that it held its resources; `attempts`: what went wrong before; `epochs`, of several objectives;
- `reason`: why it failed or was cut short; `failed`: it did, though the sampler was told a penalty;
- `memory`: it ran out of memory; `refused`: it was never trained, because its settings contradict themselves;
- `imported`: it belongs to another study, and only the sampler hears of it.

A driver that takes the study over raises its number (`driver`), and the one before may not write any more.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from moldistill.core.errors import InputError, RunError
from moldistill.core.progress import log
from moldistill.search.compile import quiet_optuna
from moldistill.search.generations import UNCOUNTED, searched, take_over
from moldistill.search.parse import load_space
from moldistill.search.pruners import make_pruner
from moldistill.search.space import Space
from moldistill.search.starting import enqueue
from moldistill.search.study import (
    ENDED,
    SPACE,
    TRIALS,
    StudySummary,
    TrialRow,
    best_first,
    front,
    open_storage,
    row_of,
)

READY = "ready"
SEARCHED = "searched"
SPENT = "spent/"


class DriverLostError(RunError):
    """Another search has taken the study over."""


class Ledger:
    """A study's storage, and what the search writes to it."""

    def __init__(self, out: Path, space: Space, study: Study) -> None:
        self.out, self.space, self.study = out, space, study
        self.driver = 0
        study.pruner = make_pruner(space.scheduler, space.epochs, space.sampler.seed)

    @classmethod
    def create(
        cls, out: Path, space: Space, inputs: Mapping[str, str], *, storage: BaseStorage | None = None
    ) -> Ledger:
        """The ledger of the study in `out`, new or as it was left; a new generation of it where the space has changed.

        inputs: identities of what its trials read. storage: in place of the one that the space names. InputError where
        the study was made with other inputs.
        """
        storage = storage or open_storage(out, space.options.storage)
        name = name_in(storage, out, space)
        generation = latest_generation(storage, name)
        study = _study(storage, generation_name(name, generation or 1), space)
        if READY not in study.user_attrs:
            _begin(study, space, inputs)
        _check_inputs(out, study, inputs)
        if study.user_attrs[SEARCHED] != searched(space):
            study = _next_generation(storage, name, generation or 1, space, study)
        return cls(out, space, study)

    @classmethod
    def open(cls, out: Path) -> Ledger:
        """The ledger of a study that was begun, to be read. InputError where `out` holds none."""
        out = Path(out).expanduser().absolute()
        if not (out / SPACE).is_file():
            raise InputError(
                f"{out} holds no study", expected=f"a folder that `search` wrote, with {SPACE}", remedy="check the path"
            )
        space = load_space(out / SPACE)
        storage = open_storage(out, space.options.storage)
        name = name_in(storage, out, space)
        generation = latest_generation(storage, name)
        if generation is None:
            raise InputError(
                f"{out} holds a space, and no study of it", remedy="the search ended early: continue it with --resume"
            )
        with quiet_optuna():
            study = optuna.load_study(study_name=generation_name(name, generation), storage=storage)
        return cls(out, space, study)

    # -- who writes -------------------------------------------------------------------------------------------------

    def take(self) -> None:
        """Become the study's driver: whoever was before may not write any more."""
        before = self.study.user_attrs.get("driver", {}).get("number", 0)
        self.driver = before + 1
        said = {"number": self.driver, "host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        self.study.set_user_attr("driver", said)

    def check(self) -> None:
        """DriverLostError where another search has taken the study over since `take`."""
        now = self.study.user_attrs.get("driver", {})
        if now.get("number", 0) != self.driver:
            raise DriverLostError(
                f"another search has taken over {self.out}",
                got=f"driver {now.get('number')} on {now.get('host')}, process {now.get('pid')}",
                expected=f"driver {self.driver}, this one",
                remedy="nothing is lost: let the other one go on",
            )

    # -- trials -----------------------------------------------------------------------------------------------------

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Trials of these states (default: all) that are this study's own and were meant to be trained."""
        found = self.study.get_trials(deepcopy=False, states=states or None)
        return [trial for trial in found if not UNCOUNTED & set(trial.user_attrs)]

    def handle(self, trial: FrozenTrial) -> Trial:
        """A trial of the storage, to be reported to."""
        return Trial(self.study, trial._trial_id)

    def folder(self, trial: FrozenTrial) -> Path:
        """The trial's run folder."""
        return self.out / TRIALS / folder_name(trial)

    def row(self, trial: FrozenTrial) -> TrialRow:
        """The trial as the study's tables have it."""
        return row_of(trial, f"{TRIALS}/{folder_name(trial)}")

    def rows(self) -> tuple[TrialRow, ...]:
        """Every trial that ended, by number."""
        return tuple(self.row(trial) for trial in self.trials(*ENDED))

    def running(self) -> tuple[TrialRow, ...]:
        """Trials that run, or were left when their driver died."""
        return tuple(self.row(trial) for trial in self.trials(TrialState.RUNNING))

    def note(self, trial: Trial, **attributes: Any) -> None:
        """Keep user attributes of a trial; those that are None are left out."""
        for key, value in attributes.items():
            if value is not None:
                trial.set_user_attr(key, value)

    # -- what was spent ---------------------------------------------------------------------------------------------

    def spend(self, seconds: float, gpu_seconds: float) -> None:
        """Say what this driver has spent so far."""
        self.study.set_user_attr(f"{SPENT}{self.driver}", [round(seconds, 3), round(gpu_seconds, 3)])

    def spent(self, *, before: bool = False) -> tuple[float, float]:
        """Seconds of wall time and of GPUs that all drivers have spent; `before`: those before this one."""
        total, gpus = 0.0, 0.0
        for key, value in self.study.user_attrs.items():
            if key.startswith(SPENT) and not (before and key == f"{SPENT}{self.driver}"):
                total, gpus = total + value[0], gpus + value[1]
        return total, gpus

    def summary(self, concurrent: int) -> StudySummary:
        """The study as it stands."""
        rows = self.rows()
        ranked = best_first(rows)
        seconds, gpu_seconds = self.spent()
        return StudySummary(
            out=self.out,
            objectives=self.space.objectives,
            trials=rows,
            best=ranked[0] if ranked else None,
            front=front(rows, self.space.objectives) if len(self.space.objectives) > 1 else (),
            seconds=seconds,
            gpu_hours=gpu_seconds / 3600,
            concurrent=concurrent,
        )


def folder_name(trial: FrozenTrial) -> str:
    """The name of a trial's run folder."""
    return str(trial.user_attrs.get("folder") or f"{trial.number:04d}")


def name_in(storage: BaseStorage, out: Path, space: Space) -> str:
    """The study's name in the storage: its folder's, when it was begun. A journal goes where its folder goes."""
    if space.options.storage == "journal":
        with quiet_optuna():
            first = [name for name in optuna.get_all_study_names(storage) if "@" not in name]
        if len(first) == 1:
            return first[0]
    return out.name


def generation_name(name: str, generation: int) -> str:
    """The name in the storage of a study's generation: each change of what is searched makes a new one."""
    return name if generation == 1 else f"{name}@{generation}"


def latest_generation(storage: BaseStorage, name: str) -> int | None:
    """The study's last generation that is complete, from 1; None where the storage has none."""
    with quiet_optuna():
        known = set(optuna.get_all_study_names(storage))
        found, generation = None, 1
        while (candidate := generation_name(name, generation)) in known:
            study = optuna.load_study(study_name=candidate, storage=storage)
            if READY in study.user_attrs or (generation == 1 and study.get_trials(deepcopy=False)):
                found = generation
            generation += 1
    return found


def _study(storage: BaseStorage, name: str, space: Space) -> Study:
    with quiet_optuna():
        return optuna.create_study(
            storage=storage,
            study_name=name,
            directions=[objective.direction for objective in space.objectives],
            load_if_exists=True,
        )


def _begin(study: Study, space: Space, inputs: Mapping[str, str]) -> None:
    """What a new study holds; a driver that dies here leaves one that is begun again."""
    for kind, identity in inputs.items():
        study.set_user_attr(kind, identity)
    with quiet_optuna():
        study.set_metric_names([str(objective.metric) for objective in space.objectives])
        enqueue(study, space)
    _seal(study, space)


def _seal(study: Study, space: Space) -> None:
    study.set_user_attr(SEARCHED, searched(space))
    study.set_user_attr(READY, True)


def _next_generation(storage: BaseStorage, name: str, generation: int, space: Space, earlier: Study) -> Study:
    name = generation_name(name, generation + 1)
    with quiet_optuna():
        if name in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=name, storage=storage)  # a driver died while it took trials over
        later = _study(storage, name, space)
        for key, value in earlier.user_attrs.items():
            if key not in (READY, SEARCHED):
                later.set_user_attr(key, value)
        later.set_metric_names([str(objective.metric) for objective in space.objectives])
        fits, outside = take_over(earlier, later, space)
        enqueue(later, space)
        _seal(later, space)
    beside = f"; {outside} lie outside the new space: they stay, and the sampler does not learn from them"
    log(f"the space has changed: {fits} earlier trials fit it{beside if outside else ''}")
    return later


def _check_inputs(out: Path, study: Study, inputs: Mapping[str, str]) -> None:
    for kind, identity in inputs.items():
        before = study.user_attrs.get(kind, identity)
        if before != identity:
            what = "store" if kind == "store" else "teacher's targets"
            raise InputError(
                f"{out} was made with another {what}",
                got=identity,
                expected=before,
                remedy=f"name that {what}, or start a new study (--warm-start takes over what this one found)",
            )
