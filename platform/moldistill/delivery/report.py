"""One self-contained HTML page on a run, a study, an ensemble, or the whole way from data to submission."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moldistill.core.artifacts import write_text
from moldistill.core.config import dump_yaml
from moldistill.core.errors import InputError
from moldistill.delivery import plots, tables
from moldistill.delivery.canvas import Figure
from moldistill.delivery.page import Section, Tile, page
from moldistill.delivery.shares import share_figures
from moldistill.delivery.sources import ReportData, ReportInputs, RunView, as_inputs, gather
from moldistill.delivery.study_section import METRICS, curve_line, study_sections
from moldistill.delivery.study_tables import study_facts
from moldistill.delivery.submission import package_versions
from moldistill.delivery.tables import interval, number

__all__ = ["METRICS", "ReportInputs", "Section", "Tile", "page", "report"]


def report(source: Path | ReportInputs, out: Path) -> Path:
    """Write the report of a run, a study, an ensemble, or several folders together; returns its path.

    The page holds everything itself: no script, no network. Raises InputError for a folder of another kind.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder", expected="the name of an HTML file", remedy="name a file with --out")
    data = gather(source if isinstance(source, ReportInputs) else as_inputs(source))
    sections = [section for section in _sections(data) if section is not None]
    seeds = "; of finalists, t-intervals over seeds" if data.study and data.study.finals else ""
    intervals = f"bootstrap 95% intervals over molecules{seeds}"
    write_text(out, page(_title(data), _sentence(data), _tiles(data), sections, intervals))
    return out


def _title(data: ReportData) -> str:
    """What the page is about, with the folder's name where that says more."""
    if data.ensemble_path is not None:
        kind, path = "Ensemble", data.ensemble_path
    elif data.study is not None:
        kind, path = "Study", data.study.path
    elif data.runs:
        kind, path = f"{data.runs[-1].role.capitalize()} run", data.runs[-1].path
    else:
        return "Nothing to report"
    name = path.absolute().name
    return kind if name.lower() in kind.lower() else f"{kind} {name}"


def _strong(text: str) -> str:
    return f"<strong>{text}</strong>"


def _sentence(data: ReportData) -> str:
    """The result in one sentence with its interval, as HTML of numbers and fixed words."""
    if (made := data.ensemble) is not None:
        return (
            f"An ensemble of {len(made.members)} runs predicts the target to {_strong(f'{made.score.value:.4f} eV')} "
            f"mean absolute error (95% interval {made.score.low:.4f} to {made.score.high:.4f}) on "
            f"{made.rows_scored_on:,} validation molecules that chose neither its members nor their weights: "
            f"{_change(made.score.value, made.best_single_score.value)} the best single run, "
            f"{_change(made.score.value, made.median_predictor)} predicting the median."
        )
    run = data.distilled or data.student or data.teacher
    if run is None:
        trials = len(data.study.trials) if data.study else 0
        return f"None of the {trials} trials came to an end: there is no result to report."
    rows = tables.scoring_rows(data)
    score = tables.run_score(run, data, rows) if run.role == "student" else None
    if score is not None and rows is not None:
        count = len(rows)
        reached = f"reaches {_strong(f'{score.value:.4f} eV')} mean absolute error (95% interval {score.low:.4f} to "
        reached += f"{score.high:.4f}) on {count:,} validation molecules"
    else:
        split = "valid" if run.role == "student" else "valid-3d"
        mae = run.manifest.facts.get("metrics", {}).get(f"{split.replace('-', '_')}_mae")
        reached = f"reaches {_strong(f'{number(mae)} eV')} mean absolute error on {split}"
    if data.study is not None:
        stopped = sum(trial.state == "pruned" for trial in data.study.trials)
        return (
            f"The best of {len(data.study.trials)} trials {reached}; {stopped} were stopped early. "
            "It was chosen on these molecules, so the figure is a little too good."
            + (f" {data.study.finals.conclusion}" if data.study.finals else "")
        )
    return f"The {'distilled ' if run.distilled else ''}{run.role} {reached}."


def _change(value: float, other: float) -> str:
    share = 100 * (1 - value / other) if other else 0.0
    return f"{abs(share):.1f}% {'below' if share >= 0 else 'above'}"


def _tiles(data: ReportData) -> list[Tile]:
    """The stages' errors, largest to smallest in their order, and the certificate's verdict."""
    found = []
    for stage in tables.stages(data):
        value, split = (stage.valid, "valid") if stage.valid is not None else (stage.valid_3d, "valid-3d")
        if value is not None:
            found.append(Tile(stage.name, f"{value:.4f}", f"eV on {split}"))
    if data.study is not None and data.ensemble is None:
        stopped = sum(trial.state == "pruned" for trial in data.study.trials)
        found.insert(0, Tile("Trials", str(len(data.study.trials)), f"{stopped} stopped early"))
    return found


def _sections(data: ReportData) -> list[Section | None]:
    return [
        Section("done", "What was done", facts=_done(data)),
        Section("stages", "Stages compared", tables=(tables.stage_table(data),))
        if data.runs or data.ensemble
        else None,
        _ensemble_section(data),
        *(study_sections(data.study) if data.study else ()),
        _run_section(data),
        _submission_section(data.certificate) if data.certificate else None,
        _versions_section(data),
    ]


def _done(data: ReportData) -> tuple[tuple[str, str], ...]:
    return (*tables.data_facts(data), *(study_facts(data.study) if data.study else ()))


def _ensemble_section(data: ReportData) -> Section | None:
    made, seen = data.ensemble, data.validation
    if made is None or seen is None:
        return None
    half = seen.scored_on
    target, ours = seen.target[half], seen.ensemble[half]
    errors = [
        ("ensemble", np.abs(ours - target)),
        ("best single run", np.abs(seen.best_single[half] - target)),
    ]
    facts = (
        ("Ensemble", f"{interval(made.score)} eV"),
        ("Best single run", f"{interval(made.best_single_score)} eV"),
        ("Difference, row by row", f"{interval(made.difference)} eV"),
        ("Plain mean of all runs", f"{made.mean_of_all:.4f} eV"),
        ("Rows", f"{made.rows_chosen_on:,} chose, {made.rows_scored_on:,} scored (halved with seed {made.seed})"),
    )
    clear = made.difference.high < 0
    lead = (
        "Members and weights were chosen on one random half of the validation rows and scored on the other; the best "
        "single run was chosen and scored on the same halves. "
        + ("The ensemble is better beyond chance." if clear else "The interval of the difference reaches 0.")
    )
    figures = (
        plots.parity(target, ours, "Ensemble on the scoring half"),
        plots.error_by_size(seen.size[half], errors, made.training_sizes[1]),
    )
    return Section("ensemble", "Ensemble", lead, facts, figures, (tables.member_table(data),))


def _run_section(data: ReportData) -> Section | None:
    """Curves of the runs on the split that they share, and their settings."""
    if not data.runs:
        return None
    figures = []
    best = "best trial" if data.study is not None else "distilled student"
    names = {"teacher": "teacher", "student": "student alone", "distilled": best}
    slots = [(names[slot], getattr(data, slot)) for slot in names if getattr(data, slot) is not None]
    for key, what in METRICS.items():
        found = [curve_line(run.curve, key, name, "other") for name, run in slots]
        lines = [line for line in found if line is not None]
        if lines:
            figures.append(plots.learning_curves(lines, what, name=key.replace("_", "-")))
    if data.distilled is not None:
        figures += share_figures(data.distilled.curve)
    if data.validation is None:
        figures += _error_figures(data)
    texts = tuple((f"Settings of the {name}", dump_yaml(dict(run.settings))) for name, run in slots)
    return Section("runs", "Runs", figures=tuple(figures), texts=texts)


def _error_figures(data: ReportData) -> list[Figure]:
    """Parity and error by size of the best student, where its predictions and labels are at hand."""
    run: RunView | None = data.distilled or data.student
    store = data.store
    split = "valid"
    if run is None:
        run, split = data.teacher, "valid-3d"
    if run is None or store is None:
        return []
    rows = store.rows(split)
    rows = rows[np.isfinite(store.target[rows])]
    values = tables.saved_predictions(run, store, split, rows)
    if values is None:
        return []
    target = np.asarray(store.target[rows])
    largest = run.manifest.facts.get("largest_training_molecule")
    return [
        plots.parity(target, values, f"This {run.role} on {split}"),
        plots.error_by_size(np.asarray(store.size(rows)), [(run.role, np.abs(values - target))], largest),
    ]


def _submission_section(certificate: Mapping[str, Any]) -> Section:
    counts = ", ".join(f"{count:,} {split}" for split, count in certificate["rows"].items())
    official = "as PCQM4Mv2 has them" if certificate["official_counts"] else "not PCQM4Mv2's: for a trial run only"
    facts = (
        ("Rows", f"{counts} ({official})"),
        ("Parameters", f"{certificate['parameters']:,}"),
        ("External data", str(certificate["external_data"])),
        *((name, digest) for name, digest in certificate["files"].items()),
    )
    failed = [item for item in certificate["checks"] if item["result"] != "passed"]
    lead = "Every check passed." if not failed else f"{len(failed)} checks gave a warning."
    return Section("submission", "Submission", lead, facts, tables=(tables.check_table(certificate),))


def _versions_section(data: ReportData) -> Section:
    facts = [*package_versions().items()]
    for name, run in (("teacher", data.teacher), ("student", data.student), ("best run", data.distilled)):
        if run is not None:
            facts.append((f"{name}, identity", run.manifest.identity))
    return Section("versions", "Versions", facts=tuple(facts))
