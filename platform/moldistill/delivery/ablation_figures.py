"""Figures of an ablation: of every run, means and paired differences of every arm, and the teachers beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from moldistill.core.artifacts import read_manifest
from moldistill.core.errors import InputError
from moldistill.data.predictions import Predictions
from moldistill.data.store import Store
from moldistill.delivery.paired import Estimate, closed_percent, mean_interval, paired_percent
from moldistill.delivery.sources import read_curve
from moldistill.search.ablate import Ended, Prepared, Run
from moldistill.training.evaluate import MEASURED, scored

PARTS = ("overall", "up_to", "above", "valid_3d")
"""What is told of each run: the metric over all rows, over those up to and above the boundary, and valid-3d."""


@dataclass(frozen=True, slots=True)
class RunFigures:
    """One training. errors: MAE in eV by PARTS, those that there are. shares: of the gradient's norm by term, in the
    last epoch that tells them. cpu_seconds: as the plan's clock counts. reason: why it failed.
    """

    arm: str
    fraction: float
    seed: int
    errors: Mapping[str, float]
    cpu_seconds: float | None = None
    steps: int | None = None
    epochs: int | None = None
    shares: Mapping[str, float] | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ArmFigures:
    """One arm at one fraction of the length: means over its seeds.

    errors: eV by PARTS. differences: percent of the baseline, paired by seed, by PARTS; empty for the baseline itself.
    closed: percent of the baseline's gap to the teacher on valid-3d.
    """

    arm: str
    fraction: float
    seeds: int
    errors: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]
    closed: Estimate | None
    cpu_seconds: float | None
    steps: int | None
    shares: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class TeacherFigures:
    """A teacher: MAE in eV on valid-3d, and the seconds that its own training took."""

    name: str
    valid_3d: float
    seconds: float


@dataclass(frozen=True, slots=True)
class AblationSummary:
    """What an ablation came to. boundary: heavy atoms. clock: unit of its seconds. complete: whether all runs ended."""

    baseline: str
    metric: str
    boundary: int
    budget_seconds: float | None
    clock: str
    seeds: tuple[int, ...]
    fractions: tuple[float, ...]
    complete: bool
    teachers: tuple[TeacherFigures, ...]
    arms: tuple[ArmFigures, ...]
    runs: tuple[RunFigures, ...]

    def arm(self, name: str, fraction: float = 1.0) -> ArmFigures:
        """The figures of an arm."""
        return next(one for one in self.arms if (one.arm, one.fraction) == (name, fraction))


def read_teachers(paths: Sequence[Path], targets: Sequence[str]) -> tuple[TeacherFigures, ...]:
    """Figures of the teachers' runs. InputError for a run that is no teacher's, or made none of the `targets`."""
    manifests = [read_manifest(Path(folder).expanduser().absolute(), "targets") for folder in targets]
    known = {identity for manifest in manifests for name, identity in manifest.inputs.items() if name != "store"}
    found = []
    for path in paths:
        manifest = read_manifest(path.expanduser().absolute(), "run")
        if manifest.facts["role"] != "teacher":
            raise InputError(f"{path} is not a teacher's run", got="student", remedy="name the teacher's run")
        if known and manifest.identity not in known:
            raise InputError(
                f"{path} is not the teacher that these targets were made by",
                got=manifest.identity,
                expected=" or ".join(sorted(known)),
                remedy="name the run that was given to `moldistill cache`",
            )
        facts = manifest.facts
        found.append(TeacherFigures(path.name, float(facts["metrics"]["valid_3d_mae"]), float(facts["seconds"])))
    return tuple(found)


def summarize(prepared: Prepared, ended: Sequence[Ended], teachers: Sequence[TeacherFigures]) -> AblationSummary:
    """Figures of the runs that ended, and what they say of each arm."""
    settings, store = prepared.ablation.settings, prepared.store
    trained = store.usable(store.rows("train"))
    boundary = settings.boundary or int(store.size(trained).max())
    read = partial(_figures, prepared, boundary)
    runs = sorted(
        (read(one.run, one.reason) for one in ended), key=lambda run: (run.seed, -run.fraction, _place(prepared, run))
    )
    goal = min((teacher.valid_3d for teacher in teachers), default=None)
    arms = [
        _arm(name, fraction, runs, settings.baseline, goal)
        for fraction in prepared.ablation.fractions
        for name in (arm.name for arm in prepared.plan.arms)
    ]
    return AblationSummary(
        baseline=settings.baseline,
        metric=settings.metric,
        boundary=boundary,
        budget_seconds=settings.budget_seconds,
        clock=prepared.plan.clock,
        seeds=settings.known_seeds,
        fractions=prepared.ablation.fractions,
        complete=len(ended) == len(prepared.runs),
        teachers=tuple(teachers),
        arms=tuple(arms),
        runs=tuple(runs),
    )


def _place(prepared: Prepared, run: RunFigures) -> int:
    return [arm.name for arm in prepared.plan.arms].index(run.arm)


def _figures(prepared: Prepared, boundary: int, run: Run, reason: str | None) -> RunFigures:
    if reason is not None or run.spec is None:
        return RunFigures(run.arm, run.fraction, run.seed, {}, reason=reason or "it was not trained")
    try:
        facts = read_manifest(run.spec.out, "run").facts
        errors = _errors(prepared, boundary, run, facts["metrics"])
    except InputError as error:  # a folder that was damaged behind our back
        return RunFigures(run.arm, run.fraction, run.seed, {}, reason=error.what)
    told = [record for record in read_curve(run.spec.out) if any(key.startswith("share_") for key in record)]
    last = told[-1] if told else {}
    shares = {key.removeprefix("share_"): value for key, value in last.items() if key.startswith("share_")}
    return RunFigures(
        run.arm, run.fraction, run.seed, errors, facts["seconds"], facts["steps"], facts["epochs"], shares
    )


def _errors(prepared: Prepared, boundary: int, run: Run, metrics: Mapping[str, float]) -> dict[str, float]:
    """MAE in eV by PARTS; sizes are told from the predictions, so that any boundary will do."""
    assert run.spec is not None
    metric, role = prepared.ablation.settings.metric, run.spec.settings.role
    if metric not in metrics:
        raise InputError(f"{run.spec.out} has no {metric}: the store has no labelled rows for it")
    found = {"overall": float(metrics[metric])}
    store: Store = prepared.store
    split = MEASURED[role][metric]
    rows = scored(store, split, role)
    saved = Predictions.load(run.spec.out / "predictions" / f"{split}.npz")
    errors = np.abs(saved.y_pred[np.searchsorted(saved.row, rows)] - store.target[rows])
    above = store.size(rows) > boundary
    if above.any() and not above.all():
        found |= {"up_to": float(errors[~above].mean()), "above": float(errors[above].mean())}
    if "valid_3d_mae" in metrics:
        found["valid_3d"] = float(metrics["valid_3d_mae"])
    return found


def _arm(name: str, fraction: float, runs: Sequence[RunFigures], baseline: str, goal: float | None) -> ArmFigures:
    mine = [run for run in runs if (run.arm, run.fraction) == (name, fraction) and run.reason is None]
    theirs = [run for run in runs if (run.arm, run.fraction) == (baseline, fraction) and run.reason is None]
    errors: dict[str, Estimate] = {}
    differences: dict[str, Estimate] = {}
    closed = None
    for part in PARTS:
        own, other = _by_seed(mine, part), _by_seed(theirs, part)
        if found := mean_interval(list(own.values())):
            errors[part] = found
        if name == baseline:
            continue
        if found := paired_percent(own, other):
            differences[part] = found
        if part == "valid_3d" and goal is not None:
            closed = closed_percent(own, other, goal)
    return ArmFigures(
        arm=name,
        fraction=fraction,
        seeds=len(mine),
        errors=errors,
        differences=differences,
        closed=closed,
        cpu_seconds=_mean([run.cpu_seconds for run in mine]),
        steps=mine[0].steps if mine else None,
        shares=_mean_shares(mine),
    )


def _by_seed(runs: Sequence[RunFigures], part: str) -> dict[int, float]:
    return {run.seed: run.errors[part] for run in runs if part in run.errors}


def _mean(values: Sequence[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _mean_shares(runs: Sequence[RunFigures]) -> dict[str, float]:
    names = dict.fromkeys(name for run in runs for name in run.shares or {})
    return {name: float(np.mean([(run.shares or {}).get(name, 0.0) for run in runs])) for name in names}
