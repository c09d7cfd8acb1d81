"""What `show` and `compare` show of single trials, section by section."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moldistill.delivery.comparing import Comparison, Side, by_gain
from moldistill.delivery.disk_use import human
from moldistill.delivery.tables import duration, shown
from moldistill.delivery.trial_view import MEASURES, TrialReport
from moldistill.verbs.sections import Section, printable
from moldistill.verbs.studies_view import figure, reason_text, title_of

EPOCHS = 12
"""Epochs of a trial that are shown, evenly, the first and the last among them."""


def trial_sections(found: TrialReport) -> Iterator[Section]:
    """One trial."""
    yield Section(f"trial {found.trial.number} of {found.study}", (), list(_trial_head(found)))
    rows = [[one.key, _setting(one.base), _setting(one.value), one.origin] for one in found.settings]
    yield Section("settings that are not the base's", ("setting", "base", "trial", ""), rows)
    if found.curve:
        names = [name for name in MEASURES if any(name in record for record in found.curve)]
        rows = [
            [str(int(record["epoch"])), *(_number(record, name) for name in names)] for record in _some(found.curve)
        ]
        yield Section("epochs", ("epoch", *names), rows)
    attempts = [[f"attempt {place}", _attempt(one)] for place, one in enumerate(found.trial.attempts, 1)]
    if attempts:
        yield Section("attempts that failed", (), attempts, alarm=True)
    for split, classes in found.errors_by_size.items():
        rows = [
            [
                f"{one['smallest']} to {one['largest']}",
                f"{one['rows']:,}",
                f"{one['mae']:.4f}",
                "*" if one["beyond"] else "",
            ]
            for one in classes
        ]
        beyond = ("* larger than every training molecule",) if any(one["beyond"] for one in classes) else ()
        yield Section(f"errors by size on {split}", ("heavy atoms", "rows", "MAE, eV", ""), rows, beyond)
    if found.replicates:
        rows = [
            [f"seed {seed}", figure("eV", value) if value is not None else "failed"]
            for seed, value in sorted(found.replicates.items())
        ]
        yield Section("over fresh seeds, eV", (), rows)
    if found.warnings:
        rows = [[f"epoch {epoch}", text] for epoch, text in found.warnings]
        yield Section("what its loss terms do", (), rows, alarm=True)
    whole = sum(use.bytes for use in found.disk)
    yield Section(
        f"files: {human(whole)}", ("", "files", "size"), [[u.kind, f"{u.files:,}", human(u.bytes)] for u in found.disk]
    )


def _trial_head(found: TrialReport) -> Iterator[list[str]]:
    row = found.trial
    yield [
        "state",
        row.state
        + (f" by the scheduler at epoch {found.stopped_at}" if found.stopped_at and row.state == "pruned" else ""),
    ]
    if row.reason:
        yield ["reason", reason_text(row.reason)]
    for metric, value in zip(found.objectives, row.values or (row.value,), strict=False):
        yield [title_of(metric), figure(metric, value)]
    yield ["epochs", f"{row.epochs} of {found.allowed}"]
    if row.seconds:
        yield ["time held", duration(row.seconds)]
    if found.parameters:
        yield ["parameters", f"{found.parameters:,}"]
    if found.accumulate:
        yield ["memory", f"batches are split into {found.accumulate} parts, because it ran out of memory"]
    yield ["folder", row.folder + ("" if found.finished else " (not finished: no weights and predictions)")]


def _setting(value: Any) -> str:
    return "-" if value is None else printable(shown(value))


def _number(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    return "-" if value is None else f"{value:.3g}" if name == "learning_rate" else f"{value:.4f}"


def _some(curve: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    if len(curve) <= EPOCHS:
        return list(curve)
    places = sorted({round(place * (len(curve) - 1) / (EPOCHS - 1)) for place in range(EPOCHS)})
    return [curve[place] for place in places]


def _attempt(one: Mapping[str, Any]) -> str:
    seconds = one.get("seconds")
    return reason_text(str(one.get("reason"))) + (f" (after {duration(float(seconds))})" if seconds is not None else "")


def comparison_sections(found: Comparison) -> Iterator[Section]:
    """Two trials against each other."""
    first, second = found.first, found.second
    header = ("", first.name, second.name)
    yield Section(found.verdict, header, list(_sides(found, first, second)))
    yield Section("how sure that is", (), list(_sure(found)), (*found.covers, *found.notes))
    if found.settings:
        rows = [[one.key, _setting(one.first), _setting(one.second)] for one in found.settings]
        yield Section("settings that differ", header, rows)
    else:
        yield Section("settings", (), [], notes=("None differ: these are two trainings of one configuration.",))


def _sides(found: Comparison, first: Side, second: Side) -> Iterator[list[str]]:
    both = (first, second)
    yield ["state", *(side.state for side in both)]
    yield ["epochs", *(str(side.epochs) for side in both)]
    yield [f"{found.metric} in the search, eV", *(figure(found.metric, side.value) for side in both)]
    if found.common_epoch is not None and first.epochs != second.epochs:
        yield [
            f"{found.metric} at epoch {found.common_epoch}, eV",
            *(figure(found.metric, side.common) for side in both),
        ]
    if (over := found.over_molecules) is not None:
        yield [f"MAE on {over.rows:,} rows of {over.split}, eV", f"{over.first:.4f}", f"{over.second:.4f}"]
    if (seeds := found.over_seeds) is not None:
        yield [f"mean over {seeds.seeds} fresh seeds, eV", f"{seeds.first:.4f}", f"{seeds.second:.4f}"]


def _sure(found: Comparison) -> Iterator[list[str]]:
    """The intervals, each for the one that has the smaller error."""
    for what, over in (("over seeds", found.over_seeds), ("over molecules", found.over_molecules)):
        if over is not None:
            better, _, gain = by_gain(found.first.name, found.second.name, over.gain)
            yield [what, f"{better} is better by {gain}"]
