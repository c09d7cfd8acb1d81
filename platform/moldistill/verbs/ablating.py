"""The verb that compares: ablate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from moldistill.core.progress import log
from moldistill.verbs.common import Json, Out, Overrides, Resume, StoreAt, done
from moldistill.verbs.searching import Targets


def ablate(
    ablation: Annotated[
        str, typer.Argument(metavar="ABLATION.yaml", help="An ablation, or the name of a shipped one.")
    ],
    store: StoreAt,
    out: Out,
    overrides: Overrides = None,
    targets: Targets = None,
    teacher: Annotated[
        list[Path] | None, typer.Option(help="The teacher's run: its error and its time are told beside.")
    ] = None,
    resume: Resume = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and time the arms; write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Compare ways to train at equal cost, over seeds, with intervals and paired differences to a baseline.

    Example: moldistill ablate paper --targets targets seeds=5 budget_seconds=200 --store store --out ablation
    """
    from moldistill.delivery import ablation_tables as tables
    from moldistill.delivery.ablation import PAGE, run_ablation
    from moldistill.delivery.ablation_figures import read_teachers
    from moldistill.delivery.ablation_page import sentence
    from moldistill.search.ablate import prepare_ablation

    teachers = read_teachers(teacher or [], targets or [])
    prepared = prepare_ablation(
        ablation, store, out, overrides=overrides or [], targets=targets or (), resume=resume, dry_run=dry_run
    )
    log(f"{len(prepared.runs)} trainings, about {prepared.seconds:.0f} {prepared.plan.clock} in all")
    if dry_run:
        shown = [tables.settings_table(prepared), tables.plan_table(prepared)]
        sys.stdout.write("\n\n".join(map(tables.as_text, shown)) + "\n")
        log(f"{ablation} is well; nothing was written")
        return
    summary = run_ablation(prepared, teachers)
    if not as_json:
        sys.stdout.write("\n\n".join(map(tables.as_text, tables.result_tables(summary))) + "\n")
    log(sentence(summary))
    done(summary, as_json, out, f"look at {out / PAGE}; more seeds: the same command with --resume and a larger seeds=")
