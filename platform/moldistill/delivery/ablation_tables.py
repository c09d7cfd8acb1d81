"""Tables of an ablation: errors with paired differences, fractions of the length, gradient shares, costs, settings."""

from __future__ import annotations

from collections.abc import Callable

from moldistill.core.config import to_mapping
from moldistill.core.tables import text_table
from moldistill.delivery.ablation_figures import AblationSummary, ArmFigures
from moldistill.delivery.paired import Estimate, verdict
from moldistill.delivery.report import METRICS
from moldistill.delivery.tables import NONE, Line, Table, duration, number, shown
from moldistill.search.ablate import Prepared
from moldistill.search.ablation import flat
from moldistill.search.ablation_plan import ArmPlan
from moldistill.search.checks import unread


def part_name(summary: AblationSummary, part: str) -> str:
    """A part of the errors, in words."""
    names = {"up_to": f"up to {summary.boundary} heavy atoms", "above": f"above {summary.boundary} heavy atoms"}
    return names.get(part, "overall" if part == "overall" else "valid-3d")


def estimate(found: Estimate | None, write: Callable[[float], str]) -> str:
    """`0.2314 ± 0.0021`, without an interval where there is none."""
    if found is None:
        return NONE
    return write(found.value) + (f" ± {write(found.half)}" if found.half is not None else "")


def percent(found: Estimate | None) -> str:
    """`-11.2% (-13.0 to -9.4)`."""
    if found is None:
        return NONE
    reach = f" ({found.low:+.1f} to {found.high:+.1f})" if found.low is not None else ""
    return f"{found.value:+.1f}%{reach}"


def error_table(summary: AblationSummary, part: str) -> Table:
    """The arms on one part of the rows: mean, paired difference to the baseline, and whether it is clear of 0."""
    lines = []
    for arm in whole(summary):
        told = verdict(arm.differences.get(part))
        mine = arm.arm == summary.baseline
        lines.append(
            Line(
                (
                    arm.arm,
                    estimate(arm.errors.get(part), number),
                    NONE if mine else percent(arm.differences.get(part)),
                    "baseline" if mine else told,
                    str(arm.seeds),
                    number(arm.cpu_seconds, 1),
                    NONE if arm.steps is None else f"{arm.steps:,}",
                ),
                strong=told == "lower",
                faint=not arm.errors,
            )
        )
    what = METRICS["valid_3d_mae" if part == "valid_3d" else summary.metric]
    caption = f"{what} (eV), {part_name(summary, part)}; difference to {summary.baseline}, paired by seed."
    head = ("Arm", "MAE", f"Against {summary.baseline}", "Verdict", "Seeds", summary.clock, "Steps")
    return Table(caption, head, tuple(lines), frozenset({1, 2, 4, 5, 6}))


def fraction_table(summary: AblationSummary) -> Table:
    """The difference to the baseline at each fraction of the length, both trained from scratch for so long."""
    parts = tuple(sorted(summary.fractions))
    lines = []
    for arm in whole(summary):
        at = [summary.arm(arm.arm, part) for part in parts]
        cells = [
            estimate(one.errors.get("overall"), number) + " eV"
            if arm.arm == summary.baseline
            else percent(one.differences.get("overall"))
            for one in at
        ]
        lines.append(Line((arm.arm, *cells), strong=arm.arm == summary.baseline))
    caption = (
        "Difference at fractions of the length, each trained from scratch: a gain that shrinks is faster learning."
    )
    head = ("Arm", *(f"{part:g} of the length" for part in parts))
    return Table(caption, head, tuple(lines), frozenset(range(1, len(head))))


def closed_table(summary: AblationSummary) -> Table:
    """Errors on valid-3d, and how much of the baseline's gap to the teacher is closed there."""
    goal = min((teacher.valid_3d for teacher in summary.teachers), default=None)
    lines = [
        Line(
            (
                arm.arm,
                estimate(arm.errors.get("valid_3d"), number),
                percent(arm.differences.get("valid_3d")),
                percent(arm.closed),
            )
        )
        for arm in whole(summary)
    ]
    lines += [
        Line((f"teacher: {one.name} ({duration(one.seconds)})", number(one.valid_3d), NONE, NONE), faint=True)
        for one in summary.teachers
    ]
    words = f"the gap is that of {summary.baseline} to a teacher of {number(goal)}" if goal else "no teacher was named"
    caption = f"MAE on valid-3d (eV), training molecules held out; {words}."
    return Table(caption, ("Arm", "MAE", "Difference", "Gap closed"), tuple(lines), frozenset({1, 2, 3}))


def share_table(summary: AblationSummary) -> Table:
    """Shares of the gradient's norm, means over seeds of the last epoch; those by size stay in the JSON."""
    told = dict.fromkeys(name for arm in whole(summary) for name in arm.shares)
    names = [name for name in told if "_" not in name]
    lines = [
        Line((arm.arm, *(f"{100 * arm.shares[name]:.1f}%" if name in arm.shares else NONE for name in names)))
        for arm in whole(summary)
    ]
    caption = "Share of each term in the norm of the gradient, in the last epoch; mean over seeds."
    return Table(caption, ("Arm", *names), tuple(lines), frozenset(range(1, len(names) + 1)))


def plan_table(prepared: Prepared) -> Table:
    """What the arms cost when they were timed, and the weight of their atom term."""
    evaluations = prepared.ablation.settings.evaluations
    lines = tuple(
        Line(
            (
                arm.name,
                f"{1000 * arm.step:.2f}",
                f"{arm.evaluation:.2f}",
                f"{arm.steps[1.0]:,}" if arm.steps else NONE,
                f"{arm.seconds(1.0, evaluations):.1f}" if arm.steps else NONE,
                f"{arm.settings.distill.atom.weight:.4g}",
                "its own scale"
                if scales_itself(arm)
                else NONE
                if arm.mean_weight is None
                else f"{arm.mean_weight:.4g}",
            ),
            faint=arm.reason is not None,
        )
        for arm in prepared.plan.arms
    )
    clock = prepared.plan.clock
    caption = f"Cost as timed before the first training ({clock}), and the atom term; mean weight: w · mean of c(N)·N."
    head = ("Arm", "ms per step", "s per evaluation", "Steps", f"Foreseen {clock}", "Atom weight", "Mean weight")
    return Table(caption, head, lines, frozenset(range(1, 7)))


def scales_itself(arm: ArmPlan) -> bool:
    atom = arm.settings.distill.atom
    return atom.weight > 0 and atom.normalization == "gradient_matched"


def settings_table(prepared: Prepared) -> Table:
    """What each arm changes: the keys that something reads and that differ from the baseline's."""
    base = next(arm for arm in prepared.plan.arms if arm.name == prepared.ablation.settings.baseline)
    before = flat(to_mapping(base.settings))
    lines = []
    for arm in prepared.plan.arms:
        for key, value in flat(to_mapping(arm.settings)).items():
            read = unread(key, arm.settings) is None or unread(key, base.settings) is None
            if key != "targets" and read and before[key] != value:
                lines.append(Line((arm.name, key, shown(before[key]), shown(value))))
    caption = f"Settings that differ from {base.name}. Those that neither arm reads are left out."
    return Table(caption, ("Arm", "Key", base.name, "Here"), tuple(lines))


def failure_table(summary: AblationSummary) -> Table:
    """Runs that failed, and why."""
    lines = tuple(
        Line((run.arm, f"{run.fraction:g}", str(run.seed), run.reason))
        for run in summary.runs
        if run.reason is not None
    )
    return Table("Trainings that failed; they are tried again by --resume.", ("Arm", "Part", "Seed", "Reason"), lines)


def whole(summary: AblationSummary) -> list[ArmFigures]:
    """The arms at their whole length."""
    return [arm for arm in summary.arms if arm.fraction == 1]


def result_tables(summary: AblationSummary) -> list[Table]:
    """The tables of results that there is something to fill with."""
    baseline = summary.arm(summary.baseline)
    found = [error_table(summary, part) for part in ("overall", "up_to", "above") if part in baseline.errors]
    if len(summary.fractions) > 1:
        found.append(fraction_table(summary))
    if summary.metric != "valid_3d_mae" and "valid_3d" in baseline.errors:
        found.append(closed_table(summary))
    if any(run.reason is not None for run in summary.runs):
        found.append(failure_table(summary))
    return found


def as_text(table: Table) -> str:
    """A table for a terminal."""
    return f"{table.caption}\n" + text_table(table.head, [line.cells for line in table.lines])
