"""What a report reads: views of runs, studies, ensembles and submissions, gathered from their folders."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from moldistill.core.artifacts import MANIFEST, Manifest, read_json, read_manifest
from moldistill.core.config import read_yaml
from moldistill.core.errors import InputError
from moldistill.data.store import Store
from moldistill.delivery.ensemble import EnsembleSummary, Validation, load_ensemble
from moldistill.delivery.finalists import Finals, judge

PIPELINE = "pipeline.json"
"""What the pipeline leaves in its folder; its stages lie beside it under the names of `ReportInputs`."""


@dataclass(frozen=True, slots=True)
class ReportInputs:
    """Folders that a report is made of; those left out have no section. student: the run without distillation."""

    teacher: Path | None = None
    student: Path | None = None
    distilled: Path | None = None
    study: Path | None = None
    ensemble: Path | None = None
    submission: Path | None = None
    store: Path | None = None


@dataclass(frozen=True, slots=True)
class RunView:
    """A run: its manifest, settings as written, and one mapping of figures per epoch."""

    path: Path
    manifest: Manifest
    settings: Mapping[str, Any]
    curve: tuple[Mapping[str, Any], ...]

    @property
    def role(self) -> str:
        return str(self.manifest.facts.get("role", "student"))

    @property
    def distilled(self) -> bool:
        """Whether any distillation term has a weight."""
        terms = self.settings.get("distill") or {}
        return any(term.get("weight", 0) for term in terms.values() if isinstance(term, Mapping))


@dataclass(frozen=True, slots=True)
class TrialView:
    """A trial of a study; value in eV, None where it never reported. values: of all objectives, where it ended."""

    number: int
    state: str
    value: float | None
    epochs: int
    params: Mapping[str, Any]
    curve: tuple[Mapping[str, Any], ...]
    path: Path
    values: tuple[float, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class StudyView:
    """A study: its trials in order, the best one's number, and the text of its space.

    objectives: metric and direction of each, the first of which is `objective`. front: numbers of the trials that no
    other one beats, with several objectives. finals: what training the best ones again came to.
    """

    path: Path
    manifest: Manifest
    trials: tuple[TrialView, ...]
    best: int | None
    objective: str
    space: str
    objectives: tuple[tuple[str, str], ...] = ()
    front: tuple[int, ...] = ()
    finals: Finals | None = None


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything that was found."""

    teacher: RunView | None
    student: RunView | None
    distilled: RunView | None
    study: StudyView | None
    ensemble: EnsembleSummary | None
    ensemble_path: Path | None
    validation: Validation | None
    certificate: Mapping[str, Any] | None
    store: Store | None

    @property
    def runs(self) -> tuple[RunView, ...]:
        return tuple(run for run in (self.teacher, self.student, self.distilled) if run is not None)


def as_inputs(source: Path) -> ReportInputs:
    """The slots that a run, study, ensemble or a pipeline's folder fills. Raises InputError for anything else."""
    if (source / PIPELINE).is_file():
        stages = [item.name for item in fields(ReportInputs) if (source / item.name / MANIFEST).is_file()]
        return ReportInputs(**{name: source / name for name in stages})
    manifest = read_manifest(source)
    if manifest.kind == "run":
        run = read_run(source)
        if run.role == "teacher":
            return ReportInputs(teacher=source)
        return ReportInputs(distilled=source) if run.distilled else ReportInputs(student=source)
    if manifest.kind in ("study", "ensemble"):
        return replace(ReportInputs(), **{manifest.kind: source})
    raise InputError(
        f"{source} has no report",
        got=manifest.kind,
        expected="a run, a study, an ensemble or a pipeline's folder",
        remedy="name one of those folders",
    )


def gather(inputs: ReportInputs) -> ReportData:
    """Read the folders; the best trial of the study stands for the distilled student where none is named."""
    study = read_study(inputs.study) if inputs.study else None
    distilled = read_run(inputs.distilled) if inputs.distilled else None
    if distilled is None and study is not None:
        distilled = next((read_run(trial.path) for trial in study.trials if _is_best(study, trial)), None)
    ensemble = load_ensemble(inputs.ensemble) if inputs.ensemble else None
    if inputs.submission:
        read_manifest(inputs.submission, "submission")
    data = ReportData(
        teacher=read_run(inputs.teacher) if inputs.teacher else None,
        student=read_run(inputs.student) if inputs.student else None,
        distilled=distilled,
        study=study,
        ensemble=ensemble,
        ensemble_path=inputs.ensemble,
        validation=Validation.load(inputs.ensemble) if inputs.ensemble else None,
        certificate=read_json(inputs.submission / "certificate.json") if inputs.submission else None,
        store=None,
    )
    return replace(data, store=_store(inputs.store, data))


def _is_best(study: StudyView, trial: TrialView) -> bool:
    """Whether it is the best trial, and a finished run: one that was stopped early may have no predictions."""
    return trial.number == study.best and (trial.path / MANIFEST).is_file()


def _store(named: Path | None, data: ReportData) -> Store | None:
    """The store by its name, or where the folders say it lies if that still holds the same data."""
    if named is not None:
        return Store.open(named)
    told = [(run.manifest.facts.get("store_path"), run.manifest.facts.get("store")) for run in data.runs]
    if data.ensemble is not None:
        told.append((data.ensemble.store_path, data.ensemble.store))
    for path, identity in told:
        if path and (Path(path) / "manifest.json").is_file() and read_manifest(Path(path)).identity == identity:
            return Store.open(Path(path))
    return None


def read_run(path: Path) -> RunView:
    """A finished run folder."""
    manifest = read_manifest(path, "run")
    return RunView(path, manifest, read_yaml(path / "config.yaml"), read_curve(path))


def read_study(path: Path) -> StudyView:
    """A study folder with its trials' curves."""
    manifest = read_manifest(path, "study")
    trials = tuple(
        TrialView(
            int(trial["number"]),
            str(trial["state"]),
            _finite(trial.get("value")),
            int(trial.get("epochs") or 0),
            dict(trial["parameters"] or {}),
            read_curve(path / trial["folder"]),
            path / trial["folder"],
            tuple(trial.get("values") or ()),
            trial.get("reason"),
        )
        for trial in sorted(manifest.facts["trials"], key=lambda trial: int(trial["number"]))
    )
    space = path / "space.yaml"
    text = space.read_text(encoding="utf-8") if space.is_file() else ""
    facts = manifest.facts
    best, metric = facts.get("best"), str(facts["metric"])
    told = facts.get("objectives") or [{"metric": metric, "direction": facts.get("direction", "minimize")}]
    return StudyView(
        path=path,
        manifest=manifest,
        trials=trials,
        best=int(best["number"]) if best else None,
        objective=metric,
        space=text,
        objectives=tuple((str(one["metric"]), str(one["direction"])) for one in told),
        front=tuple(facts.get("front") or ()),
        finals=judge(facts.get("finalists") or (), {trial.number: trial.value for trial in trials}, metric),
    )


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def read_curve(run: Path) -> tuple[Mapping[str, Any], ...]:
    """Lines of a run's `metrics.jsonl`; none where a trial never reported. A last line cut short is left out."""
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    found = []
    for place, line in enumerate(lines):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            if place < len(lines) - 1:
                raise InputError(f"{file}:{place + 1} is not JSON", got=error, remedy="make the run again") from error
    return tuple(found)
