"""The stages in order, each skipped when nothing that it depends on has changed since it last ran.

`pipeline.json` in the output folder remembers, per stage, a key over settings and inputs, and the identity of what came
out. A stage that was cut off keeps its key, so that training and search go on from their checkpoints.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moldistill import __version__
from moldistill.chem.sample import resolve_source
from moldistill.core.artifacts import (
    MANIFEST,
    check_out,
    hash_file,
    hash_object,
    read_json,
    read_manifest,
    write_json,
)
from moldistill.core.cluster import cluster
from moldistill.core.config import load_run, to_mapping
from moldistill.core.errors import InputError
from moldistill.core.progress import log
from moldistill.core.settings import PipelineSettings, RunSettings
from moldistill.data.prepare import prepare
from moldistill.data.store import Store
from moldistill.delivery.ensemble import ensemble, load_ensemble
from moldistill.delivery.report import report
from moldistill.delivery.sources import PIPELINE, ReportInputs
from moldistill.delivery.submission import submission
from moldistill.search.parse import load_space
from moldistill.search.tuner import search
from moldistill.training.cache import Cached, CacheSettings, cache_targets
from moldistill.training.evaluate import median_error
from moldistill.trial.ray_train import train_under_ray
from moldistill.trial.run import choose_device
from moldistill.trial.spec import TrialSpec
from moldistill.trial.teachers import asked, load_fold_teachers, load_teacher

LEDGER = PIPELINE
RESULTS = "results.json"
REPORT = "report.html"


@dataclass(frozen=True, slots=True)
class Figure:
    """Validation errors (MAE, eV) of one way to predict; None where it cannot be told."""

    name: str
    valid: float | None
    valid_3d: float | None


@dataclass(frozen=True, slots=True)
class PipelineResult:
    """Where things lie, what they came to, and which stages ran or were skipped (seconds of wall time by stage)."""

    out: Path
    report: Path
    submission: Path
    figures: tuple[Figure, ...]
    trials: Mapping[str, int]
    ran: Mapping[str, float]
    skipped: tuple[str, ...]


class _Stages:
    """Runs stages or skips them, and starts Ray before the first that needs it."""

    def __init__(self, out: Path, stack: ExitStack) -> None:
        self.out, self.stack = out, stack
        self.records: dict[str, Any] = read_json(out / LEDGER) if (out / LEDGER).is_file() else {}
        self.ran: dict[str, float] = {}
        self.skipped: list[str] = []

    def run(self, name: str, depends: Any, make: Callable[[Path, bool], object], *, ray: bool = False) -> str:
        """Make the folder `name` unless it stands with the same key; returns its identity.

        `make` is given the folder, and whether a run that was cut off there can be continued.
        """
        folder = self.out / name
        key = hash_object([name, __version__, depends])
        record = self.records.get(name, {})
        known = record.get("key") == key
        stands = _identity(folder)
        if known and stands is not None and record.get("identity", stands) == stands:
            self.skipped.append(name)
            log(f"{name}: unchanged, skipped")
            self._remember(name, record | {"identity": stands})
            return stands
        unfinished = known and "identity" not in record
        if folder.exists() and not unfinished:
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        self._remember(name, {"key": key})
        log(f"{name} …")
        start = time.monotonic()
        if ray:
            self.stack.enter_context(cluster())
        make(folder, unfinished)
        self.ran[name] = time.monotonic() - start
        identity = _identity(folder)
        assert identity is not None
        self._remember(name, {"key": key, "identity": identity, "seconds": round(self.ran[name], 2)})
        return identity

    def _remember(self, name: str, record: dict[str, Any]) -> None:
        self.records[name] = record
        write_json(self.out / LEDGER, self.records)


def _identity(path: Path) -> str | None:
    """Identity of a finished folder or hash of a file; None where there is neither."""
    if path.is_file():
        return hash_file(path)
    if not (path / MANIFEST).is_file():
        return None
    try:
        return read_manifest(path).identity
    except InputError:
        return None  # damaged: it is made again


def _source_hash(source: Path) -> dict[str, str]:
    """Content hash of every file that prepare may read."""
    if not source.exists():
        raise InputError(
            f"the source {source} does not exist",
            expected="sample, a root in PCQM4Mv2's layout, or a CSV",
            remedy="check source=",
        )
    files = [source] if source.is_file() else [path for path in source.glob("**/*") if path.is_file()]
    kinds = (".csv", ".gz", ".pt", ".sdf")
    return {str(path.relative_to(source)): hash_file(path) for path in sorted(files) if path.suffix in kinds}


def run_pipeline(settings: PipelineSettings, out: Path) -> PipelineResult:
    """Run all stages into `out`, which must be new, empty, or a pipeline's own folder."""
    out = out.expanduser().absolute()
    if not (out / LEDGER).is_file():
        check_out(out)
    teacher, student = load_run(settings.teacher), load_run(settings.student)
    load_space(dict(settings.search))
    source = resolve_source(settings.source)
    if source.is_file():
        raise InputError(
            f"{source} has no geometry for a teacher to see",
            got="a file",
            expected="sample, or a root in PCQM4Mv2's layout",
            remedy="make a root of it with `moldistill label`, or train a student alone with `prepare` and `train`",
        )
    hashes = _source_hash(source)
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stages = _Stages(out, stack)
        _train_stages(stages, settings, source, hashes, teacher, student)
        inputs = ReportInputs(
            teacher=out / "teacher",
            student=out / "student",
            study=out / "study",
            ensemble=out / "ensemble",
            submission=out / "submission",
            store=out / "store",
        )
        identities = {name: record.get("identity") for name, record in stages.records.items() if name != REPORT}
        stages.run(REPORT, identities, lambda path, _: report(inputs, path))
    result = _result(out, stages)
    write_json(out / RESULTS, asdict(result))
    return result


def _train_stages(
    stages: _Stages,
    settings: PipelineSettings,
    source: Path,
    hashes: dict[str, str],
    teacher: RunSettings,
    student: RunSettings,
) -> None:
    store = stages.out / "store"
    targets = stages.out / "targets"
    space = dict(settings.search)

    def train(run: RunSettings, title: str) -> Callable[[Path, bool], object]:
        return lambda path, known: train_under_ray(TrialSpec(run, store, path, resume=known), title)

    data = stages.run(
        "store", [hashes, to_mapping(settings.prepare)], lambda path, _: prepare(source, path, settings.prepare)
    )
    taught = stages.run("teacher", [data, to_mapping(teacher)], train(teacher, "teacher"), ray=True)
    cached = stages.run("targets", [data, taught], lambda path, _: cache_teacher(stages.out / "teacher", store, path))
    stages.run("student", [data, to_mapping(student)], train(student, "undistilled student"), ray=True)
    resolved = to_mapping_of_space(space, targets)
    studied = stages.run(
        "study",
        [data, cached, resolved],
        lambda path, known: search(
            space, store, path, targets=str(targets), mode="resume" if known and path.exists() else "new"
        ),
        ray=True,
    )
    chosen = stages.run(
        "ensemble", [data, studied], lambda path, _: ensemble([stages.out / "study"], path, store=store)
    )
    stages.run("submission", [data, chosen], lambda path, _: submission(stages.out / "ensemble", store, path))


def to_mapping_of_space(space: Mapping[str, Any], targets: Path) -> dict[str, Any]:
    """The resolved search space, as its study will save it."""
    return dict(load_space(dict(space), targets=str(targets)).mapping)


def cache_teacher(
    teacher: Path,
    store: Path,
    out: Path,
    settings: CacheSettings | None = None,
    soft_labels: Sequence[Path] = (),
) -> Cached:
    """Write the targets of a finished teacher run, unless they stand already.

    soft_labels: runs of teachers that each left out one part of the rows, of which each row's prediction is taken from
    the one that did not see it. InputError for a student, a teacher of another store, or parts that are not complete.
    """
    opened = Store.open(store)
    run = load_teacher(teacher, opened)
    device = choose_device(run.settings)
    others = [asked(other, device) for other in load_fold_teachers(soft_labels, opened)]
    return cache_targets(asked(run, device), opened, out, settings=settings, soft_labels=others, device=device)


def _result(out: Path, stages: _Stages) -> PipelineResult:
    store = Store.open(out / "store")
    study = read_manifest(out / "study", "study").facts
    states = [trial["state"] for trial in study["trials"]]
    chosen = load_ensemble(out / "ensemble")
    runs = {
        "teacher (3D)": out / "teacher",
        "student, undistilled": out / "student",
        "student, distilled (best trial)": out / "study" / study["best"]["folder"],
    }
    figures = [Figure("median predictor", median_error(store, "valid"), median_error(store, "valid-3d"))]
    for name, path in runs.items():
        metrics = read_manifest(path, "run").facts["metrics"]
        figures.append(Figure(name, metrics.get("valid_mae"), metrics.get("valid_3d_mae")))
    figures.append(Figure(f"ensemble of {len(chosen.members)}, on unseen valid rows", chosen.score.value, None))
    return PipelineResult(
        out=out,
        report=out / REPORT,
        submission=out / "submission",
        figures=tuple(figures),
        trials={state: states.count(state) for state in ("complete", "pruned", "failed")},
        ran={name: round(seconds, 2) for name, seconds in stages.ran.items()},
        skipped=tuple(stages.skipped),
    )
