"""Tables and facts of the report, as text: what was compared, tried, chosen and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moldistill.core import units
from moldistill.core.vocabulary import SPLITS
from moldistill.data.predictions import Predictions
from moldistill.data.store import Store
from moldistill.delivery.selection import Score, bootstrap_means
from moldistill.delivery.sources import ReportData, RunView
from moldistill.training.evaluate import median_error, target_scale

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

NONE = "\N{EN DASH}"


@dataclass(frozen=True, slots=True)
class Line:
    """Cells of a table row. bar: length (0 to 1) of a bar in the last cell. strong: the row that matters most."""

    cells: tuple[str, ...]
    bar: float | None = None
    strong: bool = False
    faint: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table. numeric: which columns hold numbers. folded: whether it starts closed."""

    caption: str
    head: tuple[str, ...]
    lines: tuple[Line, ...]
    numeric: frozenset[int] = frozenset()
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """A line of the comparison; MAE in eV on `valid` (or the scoring half of it) and on `valid-3d`, None unknown."""

    name: str
    sees: str
    valid: float | None
    valid_3d: float | None
    parameters: int | None
    seconds: float | None


def number(value: float | None, digits: int = 4) -> str:
    """A number for people, a dash where there is none."""
    return NONE if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def duration(seconds: float | None) -> str:
    """A time for people, a dash where there is none."""
    return NONE if seconds is None else units.duration(seconds)


def interval(score: Score) -> str:
    """`0.0812 (0.0790 to 0.0834)`."""
    return f"{score.value:.4f} ({score.low:.4f} to {score.high:.4f})"


def scoring_rows(data: ReportData) -> Rows | None:
    """Validation rows that all students are compared on: the ensemble's scoring half, or every labelled row."""
    if data.validation is not None:
        return data.validation.row[data.validation.scored_on]
    if data.store is None:
        return None
    rows: Rows = data.store.rows("valid")
    known: Rows = rows[np.isfinite(data.store.target[rows])]
    return known


def saved_predictions(run: RunView, store: Store, split: str, rows: Rows) -> Floats | None:
    """Predictions (eV) that a run saved for rows of a split; None where it has none, or is of another store."""
    file = run.path / "predictions" / f"{split}.npz"
    if not file.is_file() or not len(rows) or run.manifest.facts.get("store") != store.identity:
        return None
    saved = Predictions.load(file)
    places = np.searchsorted(saved.row, rows)
    if not np.array_equal(saved.row.take(places, mode="clip"), rows):
        return None
    return saved.y_pred[places].astype(np.float64)


def run_score(run: RunView, data: ReportData, rows: Rows | None) -> Score | None:
    """MAE on `valid` rows with its interval, where predictions and labels are at hand."""
    if rows is None or data.store is None:
        return None
    values = saved_predictions(run, data.store, "valid", rows)
    return None if values is None else bootstrap_means(np.abs(values - data.store.target[rows])[None], 0)[0]


def stages(data: ReportData) -> tuple[Stage, ...]:
    """Median predictor, teacher, student, distilled student and ensemble, those that are there."""
    rows = scoring_rows(data)
    found: list[Stage] = []
    if data.store is not None and rows is not None and len(rows):
        errors = np.abs(np.asarray(data.store.target[rows]) - target_scale(data.store).median)
        found.append(
            Stage("Median predictor", "nothing", float(errors.mean()), median_error(data.store, "valid-3d"), None, None)
        )
    elif data.ensemble is not None:
        found.append(Stage("Median predictor", "nothing", data.ensemble.median_predictor, None, None, None))
    distilled = "Distilled student"
    if data.study is not None:
        is_distilled = data.distilled is not None and data.distilled.distilled
        distilled = f"Best trial{' (distilled student)' if is_distilled else ''}"
    for name, run in (("Teacher", data.teacher), ("Student alone", data.student), (distilled, data.distilled)):
        if run is not None:
            facts, metrics = run.manifest.facts, run.manifest.facts.get("metrics", {})
            score = run_score(run, data, rows) if run.role == "student" else None
            valid = score.value if score else metrics.get("valid_mae")
            sees = "3D geometry" if run.role == "teacher" else "2D graph"
            parameters, seconds = facts.get("parameters"), facts.get("seconds")
            found.append(Stage(name, sees, valid, metrics.get("valid_3d_mae"), parameters, seconds))
    if data.ensemble is not None:
        parameters = sum(member.parameters for member in data.ensemble.members)
        name = f"Ensemble of {len(data.ensemble.members)}"
        found.append(Stage(name, "2D graph", data.ensemble.score.value, _ensemble_3d(data), parameters, None))
    return tuple(found)


def _ensemble_3d(data: ReportData) -> float | None:
    if data.store is None or data.ensemble_path is None:
        return None
    file = data.ensemble_path / "predictions" / "valid-3d.npz"
    if not file.is_file():
        return None
    saved = Predictions.load(file)
    errors = np.abs(saved.y_pred - np.asarray(data.store.target[saved.row]))
    known = np.isfinite(errors)
    return float(errors[known].mean()) if known.any() else None


def stage_table(data: ReportData) -> Table:
    """The comparison, with each stage's error as a bar against the largest."""
    found = stages(data)
    errors = [stage.valid if stage.valid is not None else stage.valid_3d for stage in found]
    largest = max((error for error in errors if error is not None), default=1.0) or 1.0
    base = next((stage for stage in found if stage.name == "Median predictor"), None)
    lines = []
    for stage, error in zip(found, errors, strict=True):
        gains = []
        if base is not None and stage is not base:
            pairs = ((stage.valid, base.valid), (stage.valid_3d, base.valid_3d))
            gains = [1 - own / other for own, other in pairs if own is not None and other]
        below = f"{100 * gains[0]:.0f}%" if gains else NONE
        size = NONE if stage.parameters is None else f"{stage.parameters:,}"
        cells = (
            stage.name,
            stage.sees,
            number(stage.valid),
            number(stage.valid_3d),
            below,
            size,
            duration(stage.seconds),
            "",
        )
        lines.append(Line(cells, None if error is None else error / largest, stage is found[-1]))
    where = "the half of valid that chose nothing of the ensemble" if data.validation else "valid"
    caption = f"Mean absolute error in eV on {where}, and on valid-3d (training molecules held out, with geometry)."
    head = ("Stage", "Sees", "valid", "valid-3d", "Below median", "Parameters", "CPU time", "Error")
    return Table(caption, head, tuple(lines), frozenset(range(2, 7)))


def data_facts(data: ReportData) -> list[tuple[str, str]]:
    """What was done: data, and models."""
    facts: list[tuple[str, str]] = []
    if data.store is not None:
        counts = {split: len(data.store.rows(split)) for split in SPLITS}
        facts.append(("Data", ", ".join(f"{count:,} {split}" for split, count in counts.items() if count)))
        flagged = int(np.count_nonzero(data.store.flag))
        facts.append(("Flagged rows", f"{flagged:,} of {len(data.store):,}"))
        facts.append(("Store", data.store.identity))
    best = "Best trial" if data.study is not None else "Distilled student"
    for name, run in (("Teacher", data.teacher), ("Student alone", data.student), (best, data.distilled)):
        if run is not None:
            facts.append((name, run_text(run)))
    return facts


def run_text(run: RunView) -> str:
    """A model and its training in a line."""
    model, training = run.settings.get("model") or {}, run.settings.get("training") or {}
    parts = [str(model.get("name", "model"))]
    parts += [f"{name} {model[name]}" for name in ("width", "depth", "heads") if name in model]
    parts.append(f"{len(run.curve)} epochs")
    if training.get("atoms_per_batch"):
        parts.append(f"{training['atoms_per_batch']} atoms per batch")
    elif "batch_size" in training:
        parts.append(f"batch size {training['batch_size']}")
    terms = run.settings.get("distill") or {}
    active = [
        f"{name} {term['weight']:.3g}" for name, term in terms.items() if isinstance(term, dict) and term.get("weight")
    ]
    return ", ".join(parts) + (f"; distilled with {', '.join(active)}" if active else "")


def shown(value: Any) -> str:
    """A parameter's value, floats in four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def member_table(data: ReportData) -> Table:
    """Members with their weights as bars, then the runs that were passed over."""
    assert data.ensemble is not None
    members = [*data.ensemble.members, *data.ensemble.passed_over]
    largest = max(member.weight for member in members)
    lines = tuple(
        Line(
            (
                short_path(member.path),
                f"{100 * member.weight:.1f}%" if member.weight else NONE,
                number(member.chosen_on),
                number(member.scored_on),
                "",
            ),
            bar=member.weight / largest,
            strong=member.path == data.ensemble.best_single,
            faint=member.weight == 0,
        )
        for member in members
    )
    caption = "Members by weight. MAE in eV on both halves of valid; the best single run on the choosing half is bold."
    head = ("Run", "Weight", "Choosing half", "Scoring half", "")
    return Table(caption, head, lines, frozenset({1, 2, 3}), folded=len(lines) > 60)


def short_path(path: str) -> str:
    """The part of a path that tells a run from others: `study / 0003`, or the folder's name."""
    parts = Path(path).parts
    return f"{parts[-3]} / {parts[-1]}" if len(parts) > 2 and parts[-2] == "trials" else parts[-1]


def check_table(certificate: Mapping[str, Any]) -> Table:
    """Checks of the submission."""
    checks: Sequence[Mapping[str, str]] = certificate["checks"]
    lines = tuple(
        Line((item["split"], item["name"], item["result"], item["detail"]), strong=item["result"] != "passed")
        for item in checks
    )
    return Table("What was checked before the files were written.", ("Split", "Check", "Result", "Detail"), lines)
