"""Tables and facts of a study in the report: trials, the front, failures, finalists."""

from __future__ import annotations

from collections import Counter

import numpy as np

from moldistill.delivery.finalists import Finals
from moldistill.delivery.paired import Estimate
from moldistill.delivery.sources import StudyView, TrialView
from moldistill.delivery.tables import NONE, Line, Table, duration, number, shown

COSTS = {"parameters": "parameters", "cpu_seconds": "CPU seconds"}
"""Objectives that are no errors."""


def objective_text(metric: str, value: float | None) -> str:
    """A value of an objective for people: errors in eV, costs as numbers."""
    if metric not in COSTS or value is None:
        return number(value)
    return f"{value:,.0f}" if metric == "parameters" else f"{value:,.1f}"


def study_facts(study: StudyView) -> list[tuple[str, str]]:
    """Trials by state, epochs trained and saved, and time."""
    states = Counter(trial.state for trial in study.trials)
    epochs, longest = sum(t.epochs for t in study.trials), max((t.epochs for t in study.trials), default=0)
    full = longest * len(study.trials)
    saved = f", {100 * (1 - epochs / full):.0f}% fewer than running every trial to the end" if full else ""
    names = (("complete", "completed"), ("pruned", "stopped early"), ("failed", "failed"))
    facts = [
        ("Search", ", ".join(f"{states[state]} {name}" for state, name in names if states[state]) + " trials"),
        ("Budget", f"{epochs:,} epochs{saved}"),
    ]
    seconds = study.manifest.facts.get("seconds")
    gpu_hours = study.manifest.facts.get("gpu_hours")
    facts += [("Search time", duration(float(seconds)))] if seconds else []
    return facts + ([("GPUs held", f"{gpu_hours:.2f} GPU-hours")] if gpu_hours else [])


def trial_table(study: StudyView) -> Table:
    """Every trial, best first, then the stopped and the failed ones."""
    order = {"complete": 0, "pruned": 1, "failed": 2}
    trials = sorted(study.trials, key=lambda t: (order.get(t.state, 3), t.value if t.value is not None else np.inf))
    names = {"complete": "completed", "pruned": "stopped early"}
    further = [metric for metric, _ in study.objectives[1:]]
    lines = tuple(
        Line(
            (
                str(trial.number),
                names.get(trial.state, trial.state),
                number(trial.value),
                *_further(trial, further),
                str(trial.epochs),
                ", ".join(f"{name} = {shown(value)}" for name, value in trial.params.items()) or NONE,
            ),
            strong=trial.number in study.front if further else trial.number == study.best,
            faint=trial.state != "complete",
        )
        for trial in trials
    )
    caption = f"Trials by {study.objective} (eV), the best first." + (" The front is bold." if further else "")
    head = ("Trial", "State", study.objective, *(COSTS.get(m, m) for m in further), "Epochs", "Parameters")
    numeric = frozenset({0, *range(2, 4 + len(further))})
    return Table(caption, head, lines, numeric, folded=len(lines) > 40)


def _further(trial: TrialView, metrics: list[str]) -> list[str]:
    values = trial.values[1:] if len(trial.values) == len(metrics) + 1 else [None] * len(metrics)
    return [objective_text(metric, value) for metric, value in zip(metrics, values, strict=True)]


def failure_table(study: StudyView) -> Table | None:
    """How often trials failed for each reason; None where none did."""
    reasons = Counter(trial.reason or "no reason was kept" for trial in study.trials if trial.state == "failed")
    lines = tuple(Line((reason, str(count))) for reason, count in reasons.most_common())
    return Table("Trials that failed, by reason.", ("Reason", "Trials"), lines, frozenset({1})) if lines else None


def finals_table(finals: Finals) -> Table:
    """Finalists over their fresh seeds, the best mean first."""
    lines = tuple(
        Line(
            (
                str(one.trial),
                f"{len(one.values)}" + (f" ({one.failed} failed)" if one.failed else ""),
                number(one.mean.value if one.mean else None),
                _reach(one.mean, 4),
                number(one.searched),
                NONE if one.optimism is None else f"{one.optimism:+.1f}%",
            ),
            strong=one.trial == finals.winner,
        )
        for one in finals.finalists
    )
    caption = f"Finalists by their mean {finals.metric} (eV) over fresh seeds, with 95% t-intervals over seeds."
    head = ("Trial", "Seeds", "Mean", "95% interval", "In the search", "Too good by")
    return Table(caption, head, lines, frozenset(range(6)))


def pairs_table(finals: Finals) -> Table | None:
    """Finalists against each other, seed by seed; None for a single one."""
    lines = tuple(
        Line(
            (
                f"{pair.better} against {pair.worse}",
                NONE if pair.difference is None else f"{pair.difference.value:+.1f}%",
                _reach(pair.difference, 1),
                NONE if pair.p is None else f"{pair.p:.3f}",
                f"{pair.adjusted:.3f}",
                "better" if pair.clear else "not told apart",
            ),
            strong=pair.clear,
        )
        for pair in finals.pairs
    )
    caption = (
        "Differences in percent, paired by seed; below 0 is better. Intervals are of each pair alone, Holm's p counts "
        "all pairs: at most one study in twenty calls any finalist better that is not."
    )
    head = ("Trials", "Difference", "95% interval", "p", "Holm's p", "Verdict")
    return Table(caption, head, lines, frozenset(range(1, 5))) if lines else None


def _reach(found: Estimate | None, digits: int) -> str:
    if found is None or found.low is None or found.high is None:
        return NONE
    return f"{found.low:.{digits}f} to {found.high:.{digits}f}"
