"""What `list` and `show` show of studies, section by section."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from moldistill.delivery.disk_use import human
from moldistill.delivery.finalists import Finals
from moldistill.delivery.paired import Estimate
from moldistill.delivery.study_summary import Overview, StudyReport
from moldistill.delivery.study_view import Listing
from moldistill.delivery.tables import duration, shown
from moldistill.search.study import TrialRow
from moldistill.verbs.sections import BAR, Section, bar, percent

LONGEST = 200
"""Characters of a reason that are shown; --json has all."""

KEYS = 8
"""Parameters that have a column; --json has all."""


def figure(metric: str, value: float | None) -> str:
    """A value of an objective; errors in eV."""
    if value is None:
        return "-"
    if metric == "parameters":
        return f"{value:,.0f}"
    return f"{value:,.1f}" if metric == "cpu_seconds" else f"{value:.4f}"


def reason_text(text: str) -> str:
    """Why a trial failed, which may be anything, in one line."""
    shown_ = "".join(character if character.isprintable() else " " for character in text)
    return shown_ if len(shown_) <= LONGEST else shown_[: LONGEST - 1] + "…"


def title_of(metric: str) -> str:
    """The head of an objective's column."""
    return {"parameters": "parameters", "cpu_seconds": "CPU s"}.get(metric, f"{metric}, eV")


def short_names(keys: Sequence[str]) -> list[str]:
    """The last two parts of each dotted key, or more where two keys share them."""

    def tail(key: str, parts: int) -> str:
        return ".".join(key.split(".")[-parts:])

    found = []
    for key in keys:
        parts = 2
        while tail(key, parts) != key and any(tail(other, parts) == tail(key, parts) for other in keys if other != key):
            parts += 1
        found.append(tail(key, parts))
    return found


def overviews(found: Sequence[Overview]) -> Iterator[Section]:
    """Several studies, one a line."""
    header = ("study", "state", "trials", "stopped", "failed", "running", "best", "value, eV", "metric", "time")
    rows = [
        [
            one.study,
            str(one.state),
            str(sum(one.counts.values())),
            *(str(one.counts[state]) for state in ("pruned", "failed", "running")),
            str(one.best.number) if one.best else "-",
            figure(str(one.metric), one.best.value if one.best else None),
            str(one.metric),
            duration(None if one.hours is None else one.hours * 3600),
        ]
        for one in found
        if one.problem is None
    ]
    notes = [f"{one.study} cannot be read: {one.problem}" for one in found if one.problem]
    yield Section("1 study" if len(found) == 1 else f"{len(found)} studies", header, rows, notes, alarm=bool(notes))


def listed(found: Listing) -> Iterator[Section]:
    """Trials of a study, and why some failed."""
    if not found.trials:
        yield Section(f"study {found.study}", (), [], notes=("No trial to show.",))
        return
    yield trial_table(f"study {found.study}: {_of(found)}", found.trials, found.objectives, found.keys)
    reasons = [[f"trial {row.number}", reason_text(row.reason)] for row in found.trials if row.reason]
    if reasons:
        yield Section("why they failed or were cut short", (), reasons)


def _of(found: Listing) -> str:
    shown_, whole = len(found.trials), found.of
    return f"{whole} trial{'' if whole == 1 else 's'}" if shown_ == whole else f"{shown_} of {whole} trials"


def trial_table(title: str, rows: Sequence[TrialRow], objectives: Sequence[str], keys: Sequence[str]) -> Section:
    """Trials with the parameters in which they differ."""
    columns = keys[:KEYS]
    header = ("trial", "state", *map(title_of, objectives), "epochs", "time", *short_names(columns))
    lines = [
        [
            str(row.number),
            row.state,
            *_values(row, objectives),
            str(row.epochs),
            duration(row.seconds) if row.seconds else "-",
            *(shown(row.parameters[key]) if key in row.parameters else "" for key in columns),
        ]
        for row in rows
    ]
    more = len(keys) - len(columns)
    notes = (f"{more} more parameters differ: see --json, or one trial with `show`.",) if more else ()
    return Section(title, header, lines, notes)


def _values(row: TrialRow, objectives: Sequence[str]) -> list[str]:
    further = row.values[1:] if len(row.values) == len(objectives) else [None] * (len(objectives) - 1)
    return [figure(metric, value) for metric, value in zip(objectives, [row.value, *further], strict=True)]


def study_sections(found: StudyReport) -> Iterator[Section]:
    """A study at a glance."""
    yield Section(f"study {found.study}", (), list(_head(found)))
    objectives = [metric for metric, _ in found.objectives]
    if found.top:
        title = "the front: no trial is better in all" if found.front else "best trials"
        yield trial_table(title, found.top, objectives, found.keys)
    if found.finals is not None:
        yield from finals_sections(found.finals, found.missing)
    elif found.missing:
        yield Section("finalists", (), [], notes=(f"{found.missing} trainings of finalists are still to come.",))
    if found.importance:
        most = max(share for _, share in found.importance)
        rows = [[name, percent(share, 1), bar(share, most)] for name, share in found.importance]
        notes = ("With few trials this is a hint, not a finding.",)
        yield Section(
            f"what mattered ({found.importance_method})", ("", "share", "".ljust(BAR)), rows, notes, bars=True
        )
    if found.failures:
        rows = [[reason_text(reason), str(count)] for reason, count in found.failures]
        yield Section("failures", ("reason", "trials"), rows, alarm=True)
    whole = sum(use.bytes for use in found.disk)
    rows = [[use.kind, f"{use.files:,}", human(use.bytes)] for use in found.disk]
    yield Section(f"disk: {human(whole)}", ("", "files", "size"), rows)


def _head(found: StudyReport) -> Iterator[list[str]]:
    objectives = " and ".join(f"{direction} {metric}" for metric, direction in found.objectives)
    yield ["searched", f"{objectives} of {found.role}s"]
    yield ["by", f"{found.sampler}, stopped early by {found.scheduler}; storage {found.storage}"]
    yield ["state", _state(found)]
    states = ", ".join(f"{count} {state}" for state, count in found.counts.items() if count)
    yield ["trials", states or "none yet"]
    for spent in found.budget:
        used = f"{spent.used:.0f}" if spent.what == "trials" else f"{spent.used:.2f}"
        yield [f"{spent.what} spent", used if spent.allowed is None else f"{used} of {spent.allowed:g}"]
    if found.epochs:
        saved = max(0, found.full_epochs - found.epochs)
        yield [
            "epochs",
            f"{found.epochs:,}" + (f", {percent(saved, found.full_epochs)} saved by stopping" if saved else ""),
        ]
    if found.best is not None:
        yield ["best", f"trial {found.best.number}, {figure(found.objectives[0][0], found.best.value)} eV"]


def _state(found: StudyReport) -> str:
    driver = found.driver
    if driver is None or found.state != "running":
        return found.state if found.state != "interrupted" else "interrupted: no search runs it, and it is not finished"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(driver.since))
    return f"running: process {driver.pid} on {driver.host}, since {since}"


def finals_sections(found: Finals, missing: int) -> Iterator[Section]:
    """Finalists over fresh seeds, and each pair of them."""
    rows = [
        [
            str(one.trial),
            str(len(one.values)),
            figure(found.metric, one.mean.value if one.mean else None),
            reach(one.mean, figure_of(found.metric)),
            figure(found.metric, one.searched),
            "-" if one.optimism is None else f"{one.optimism:+.1f}%",
        ]
        for one in found.finalists
    ]
    header = ("trial", "seeds", f"mean {title_of(found.metric)}", "95% interval", "in the search", "too good by")
    notes = []
    if found.optimism is not None:
        notes.append("The search's own values are left out of the means: they were chosen for being small.")
    if missing:
        notes.append(f"{missing} trainings are still to come.")
    yield Section(f"Finalists over fresh seeds. {found.conclusion}", header, rows, notes)
    if found.pairs:
        rows = [
            [
                f"{pair.better} against {pair.worse}",
                "-" if pair.difference is None else f"{pair.difference.value:+.1f}%",
                reach(pair.difference, "{:+.1f}".format),
                "-" if pair.p is None else _p(pair.p),
                _p(pair.adjusted),
                "better" if pair.clear else "not told apart",
            ]
            for pair in found.pairs
        ]
        note = "Student's t, paired by seed; intervals are of each pair alone, Holm's p counts all pairs."
        header = ("trials", "difference", "95% interval", "p", "Holm's p", "")
        yield Section("finalists against each other", header, rows, (note,))


def figure_of(metric: str) -> Callable[[float], str]:
    """`figure` of a metric."""
    return lambda value: figure(metric, value)


def reach(found: Estimate | None, text: Callable[[float], str]) -> str:
    """The interval of an estimate."""
    return (
        "-" if found is None or found.low is None or found.high is None else f"{text(found.low)} to {text(found.high)}"
    )


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
