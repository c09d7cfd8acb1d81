"""Verbs that look at studies and tidy them up: list, show, compare, clean, cancel."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from moldistill.core.progress import log
from moldistill.verbs.common import Json, print_json

StudyAt = Annotated[Path, typer.Argument(metavar="STUDY", help="A study that `search` wrote, or is writing.")]


class State(StrEnum):
    """States of trials to choose from (typer knows no lists of literals)."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"
    RUNNING = "running"
    INTERRUPTED = "interrupted"


def list_(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A study, or a folder of studies.")],
    sort: Annotated[
        Literal["value", "number", "epochs", "seconds"], typer.Option(help="Order; `value` has the best first.")
    ] = "value",
    state: Annotated[
        list[State] | None,
        typer.Option(help="Only trials of this state; repeatable."),
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Only the first so many.")] = None,
    as_json: Json = False,
) -> None:
    """List a study's trials, best first, while it runs or after; of a folder of studies, one a line.

    Example: moldistill list study --sort seconds --state complete --top 10
    """
    from moldistill.delivery.study_summary import overview
    from moldistill.delivery.study_view import listing, read, studies_in
    from moldistill.verbs.sections import show as show_sections
    from moldistill.verbs.studies_view import listed, overviews

    found = studies_in(study)
    if found != [study.expanduser()]:
        lines = [overview(path) for path in found]
        print_json([asdict(line) for line in lines]) if as_json else show_sections(list(overviews(lines)))
        return
    trials = listing(read(found[0]), sort, state or (), top)
    print_json(trials) if as_json else show_sections(list(listed(trials)))


def show(
    study: StudyAt,
    trial: Annotated[int | None, typer.Argument(metavar="[TRIAL]", min=0, help="The number of one trial.")] = None,
    as_json: Json = False,
) -> None:
    """Show a study at a glance, with finalists and what mattered; or one of its trials, with all there is to know.

    Examples: moldistill show study;  moldistill show study 12
    """
    from moldistill.delivery.study_summary import summed_up
    from moldistill.delivery.study_view import read
    from moldistill.delivery.trial_view import trial_report
    from moldistill.verbs.sections import show as show_sections
    from moldistill.verbs.studies_view import study_sections
    from moldistill.verbs.trials_view import trial_sections

    opened = read(study)
    if trial is not None:
        one = trial_report(opened, trial)
        print_json(one) if as_json else show_sections(list(trial_sections(one)))
        return
    whole = summed_up(opened)
    print_json(whole) if as_json else show_sections(list(study_sections(whole)))
    log(f"next:  {whole.following}")


def compare(
    trials: Annotated[
        list[str],
        typer.Argument(metavar="STUDY A B | STUDY1 STUDY2", help="Two trials of a study, or two studies' best ones."),
    ],
    as_json: Json = False,
) -> None:
    """Say whether one trial is better than another, over molecules and over seeds, and what differs in their settings.

    Examples: moldistill compare study 3 12;  moldistill compare study other-study
    """
    from moldistill.delivery.comparing import compare as run_compare
    from moldistill.verbs.sections import show as show_sections
    from moldistill.verbs.trials_view import comparison_sections

    found = run_compare(trials)
    print_json(found) if as_json else show_sections(list(comparison_sections(found)))


def clean(
    study: StudyAt,
    keep: Annotated[
        int | None, typer.Option(min=0, help="Best trials whose checkpoints stay; by default as the space says.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Free disk: checkpoints beyond the best trials', and what interrupted searches left. Weights and predictions stay.

    Example: moldistill clean study --keep 3 --dry-run
    """
    from moldistill.delivery.cleaning import clean as run_clean
    from moldistill.delivery.disk_use import human

    done = run_clean(study, keep=keep, dry_run=dry_run)
    if as_json:
        print_json(done)
    for removal in done.removed:
        log(f"{removal.path}: {removal.what}, {human(removal.bytes)}")
    for sentence in done.stays:
        log(sentence)
    for sentence in done.lost:
        log(f"can {'then' if dry_run else 'now'} no longer be done: {sentence}")
    log(f"{'would free' if dry_run else 'freed'} {human(done.bytes)} in {len(done.removed)} places")


def cancel(
    study: StudyAt,
    trial: Annotated[int, typer.Argument(metavar="TRIAL", min=0, help="The number of the trial to end.")],
) -> None:
    """End one running trial of a search; the others go on. What it has written stays.

    Example: moldistill cancel study 12
    """
    from moldistill.delivery.cancelling import cancel as run_cancel

    log(run_cancel(study, trial))
