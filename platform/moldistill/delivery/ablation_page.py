"""What an ablation came to, for people: in a sentence, as Markdown, and as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moldistill.core.artifacts import write_text
from moldistill.core.config import dump_yaml
from moldistill.delivery import plots
from moldistill.delivery.ablation_figures import AblationSummary, ArmFigures
from moldistill.delivery.ablation_tables import (
    estimate,
    part_name,
    percent,
    plan_table,
    result_tables,
    scales_itself,
    settings_table,
    share_table,
    whole,
)
from moldistill.delivery.paired import verdict
from moldistill.delivery.report import Section, Tile, page
from moldistill.delivery.tables import duration, number
from moldistill.search.ablate import Prepared

INTERVALS = "95% t-intervals over seeds, differences paired by seed"


def sentence(summary: AblationSummary) -> str:
    """The result in words: how many arms are better beyond chance, and the lowest of them."""
    others = [arm for arm in whole(summary) if arm.arm != summary.baseline]
    told = [verdict(arm.differences.get("overall")) for arm in others]
    if len(summary.seeds) == 1:
        return "One seed: there are no intervals, and a difference may be noise. Give more seeds."
    text = f"Against {summary.baseline}, {told.count('lower')} of {len(others)} arms have a lower error"
    text += f" and {told.count('higher')} a higher one, beyond the 95% interval."
    if (best := _lowest(summary)) is not None:
        text += f" The lowest is {best.arm}: {percent(best.differences['overall'])}."
    return text


def _lowest(summary: AblationSummary) -> ArmFigures | None:
    """The arm with the lowest difference to the baseline."""
    known = [arm for arm in whole(summary) if "overall" in arm.differences]
    return min(known, key=lambda arm: arm.differences["overall"].value, default=None)


def _role(arm: ArmFigures) -> str:
    return percent(arm.differences["overall"]) if arm.differences else "baseline"


def _spent(summary: AblationSummary) -> str:
    """How far the seconds that trainings really took are from the budget."""
    budget = summary.budget_seconds
    spent = [run.cpu_seconds / (run.fraction * budget) for run in summary.runs if budget and run.cpu_seconds]
    return f"; they took {min(spent):.0%} to {max(spent):.0%} of it" if spent else ""


def facts(prepared: Prepared, summary: AblationSummary) -> list[tuple[str, str]]:
    """How it was compared."""
    settings, counts = prepared.ablation.settings, len(summary.runs)
    length = "the epochs or steps of each run"
    if summary.budget_seconds is not None:
        length = f"{summary.budget_seconds:g} {summary.clock} of training, evaluation included, turned into steps once"
    found = [
        ("Trainings", f"{counts} ended, {sum(run.reason is not None for run in summary.runs)} of them failed"),
        ("Seeds", ", ".join(map(str, summary.seeds))),
        ("Length", length + _spent(summary)),
        ("Intervals", f"{INTERVALS}; of 20 arms that change nothing one is expected to look lower or higher"),
    ]
    if not summary.complete:
        found.insert(0, ("State", f"under way: {counts} of {len(prepared.runs)} trainings ended"))
    if settings.equal_mean_weight is not None:
        text = "atom weights scaled so that w · mean of c(N)·N over the training molecules is that of "
        text += settings.equal_mean_weight
        if own := [arm.name for arm in prepared.plan.arms if scales_itself(arm)]:
            text += f"; {', '.join(own)}: gradient_matched sets its own scale"
        found.append(("Equal mean weight", text))
    found += [
        (f"Teacher {one.name}", f"{number(one.valid_3d)} eV on valid-3d, {duration(one.seconds)} of its own")
        for one in summary.teachers
    ]
    if not summary.teachers:
        found.append(("Teacher", "not stated; --teacher RUN tells its error and its time"))
    return found


def write_markdown(prepared: Prepared, summary: AblationSummary, path: Path) -> None:
    """The tables in Markdown."""
    tables = [*result_tables(summary), share_table(summary), settings_table(prepared), plan_table(prepared)]
    lines = [f"# Ablation {prepared.out.name}", "", sentence(summary), ""]
    lines += [f"- {name}: {text}" for name, text in facts(prepared, summary)]
    for table in tables:
        lines += ["", table.caption, "", _markdown_line(table.head)]
        lines.append(_markdown_line(["---:" if place in table.numeric else "---" for place in range(len(table.head))]))
        lines += [_markdown_line(line.cells) for line in table.lines]
    write_text(path, "\n".join(lines) + "\n")


def _markdown_line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def write_page(prepared: Prepared, summary: AblationSummary, path: Path) -> None:
    """The HTML page: no script, no network."""
    differences = [
        plots.Difference(arm.arm, part_name(summary, part), found.value, found.low, found.high)
        for arm in whole(summary)
        for part in ("overall", "up_to", "above")
        if (found := arm.differences.get(part)) is not None
    ]
    figures = (plots.forest(differences, summary.baseline),) if differences else ()
    settings = (settings_table(prepared), share_table(summary), plan_table(prepared))
    sections = [
        Section("results", "Results", figures=figures, tables=tuple(result_tables(summary))),
        Section("how", "How it was compared", facts=tuple(facts(prepared, summary))),
        Section(
            "arms",
            "What was compared",
            tables=settings,
            texts=(("The ablation", dump_yaml(dict(prepared.ablation.mapping))),),
        ),
    ]
    ends = [arm for arm in (summary.arm(summary.baseline), _lowest(summary)) if arm is not None]
    tiles = [Tile(arm.arm, estimate(arm.errors.get("overall"), number), "eV, " + _role(arm)) for arm in ends]
    write_text(path, page(f"Ablation {prepared.out.name}", sentence(summary), tiles, sections, INTERVALS))
