"""Sections of the report on a study: the search, its trade-off between several objectives, and its finalists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moldistill.delivery import plots, study_plots
from moldistill.delivery.finalists import Finals
from moldistill.delivery.importance import parameter_importance
from moldistill.delivery.page import Section
from moldistill.delivery.sources import StudyView
from moldistill.delivery.study_tables import COSTS, failure_table, finals_table, pairs_table, trial_table

METRICS = {"valid_3d_mae": "MAE on valid-3d", "valid_mae": "MAE on valid"}
"""Names for people of what runs report."""


def study_sections(study: StudyView) -> tuple[Section | None, ...]:
    """What there is to say of a study."""
    return (
        _search_section(study),
        _front_section(study) if len(study.objectives) > 1 else None,
        _finals_section(study.finals) if study.finals else None,
    )


def _search_section(study: StudyView) -> Section:
    trials, what = study.trials, METRICS.get(study.objective, study.objective)
    figures = []
    if any(trial.value is not None for trial in trials):
        columns = ([t.number for t in trials], [t.value for t in trials], [t.state for t in trials])
        figures.append(plots.history(*columns, what))
    lines = []
    for trial in trials:
        kind = "best" if trial.number == study.best else trial.state
        if line := curve_line(trial.curve, study.objective, f"trial {trial.number}", kind):
            lines.append(line)
    if lines:
        figures.append(plots.learning_curves(lines, what))
    finished = [(t.params, t.value) for t in trials if t.state == "complete" and t.value is not None]
    if found := parameter_importance(finished):
        figures.append(plots.importance(*found))
    texts = (("Search space", study.space),) if study.space else ()
    found_tables = tuple(table for table in (trial_table(study), failure_table(study)) if table is not None)
    return Section("search", "Search", figures=tuple(figures), tables=found_tables, texts=texts)


def _front_section(study: StudyView) -> Section | None:
    """The first objective against each other one."""
    ended = [trial for trial in study.trials if len(trial.values) == len(study.objectives)]
    if not ended:
        return None
    names = [METRICS.get(metric, COSTS.get(metric, metric)) for metric, _ in study.objectives]
    figures = tuple(
        study_plots.trade_off(
            [(trial.number, trial.values[place], trial.values[0]) for trial in ended],
            study.front,
            (names[place], f"{names[0]} (eV)"),
            f"front-{place}",
        )
        for place in range(1, len(names))
    )
    several = len(study.front) > 1
    lead = (
        f"{len(study.front)} of {len(ended)} trials that trained to their end "
        f"{'are' if several else 'is'} on the front: no other one is at least as good in all of {_listed(names)}, and "
        "better in one."
    )
    return Section("front", "Trade-off", lead, figures=figures)


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _finals_section(finals: Finals) -> Section:
    figure = study_plots.finalists(finals, METRICS.get(finals.metric, finals.metric))
    tables = tuple(table for table in (finals_table(finals), pairs_table(finals)) if table is not None)
    curse = (
        f" The search's own values were {abs(finals.optimism):.1f}% too {'good' if finals.optimism >= 0 else 'bad'} in "
        "the mean, and are left out of the figures below: they are what these trials were chosen by."
        if finals.optimism is not None
        else ""
    )
    return Section(
        "finalists", "Finalists", finals.conclusion + curse, figures=(figure,) if figure else (), tables=tables
    )


def curve_line(curve: tuple[Mapping[str, Any], ...], key: str, label: str, kind: str) -> plots.Line | None:
    """The points of a run's curve that tell `key`; None where there is none."""
    points = [(item["epoch"], item[key]) for item in curve if item.get(key) is not None and np.isfinite(item[key])]
    if not points:
        return None
    epochs, values = np.array(points, dtype=np.float64).T
    return plots.Line(label, kind, epochs, values)
