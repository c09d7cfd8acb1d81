"""Verbs that search: explain, search."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from moldistill.core.progress import log
from moldistill.verbs.common import Json, Out, Overrides, Resume, StoreAt, done

Targets = Annotated[
    list[str] | None, typer.Option(help="Folder that `cache` wrote, for distilled students; once for each teacher.")
]


def explain(
    space: Annotated[str, typer.Argument(metavar="SPACE.yaml", help="A search space, or the name of a shipped one.")],
    overrides: Overrides = None,
    targets: Targets = None,
    as_json: Json = False,
) -> None:
    """Show what a search space means: its tree, five sampled configurations, its cost; refuse dead parameters.

    Example: moldistill explain normalization
    """
    from moldistill.search.explain import explain as run_explain

    explanation = run_explain(space, overrides or [], targets=targets or ())
    sys.stdout.write((json.dumps(asdict(explanation), default=str, indent=2) if as_json else explanation.text()) + "\n")


def search(
    space: Annotated[str, typer.Argument(metavar="SPACE.yaml", help="A search space, or the name of a shipped one.")],
    store: StoreAt,
    out: Out,
    overrides: Overrides = None,
    targets: Targets = None,
    resume: Resume = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything; start and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Search loss weights, normalization schemes or anything else with Ray Tune and Optuna.

    Example: moldistill search loss_weights --targets targets budget.trials=16 --store store --out study
    """
    from moldistill.search.tuner import search as run_search

    summary = run_search(
        space, store, out, overrides=overrides or [], targets=targets or (), resume=resume, dry_run=dry_run
    )
    if dry_run:
        log(f"{space} is well: {summary.concurrent} trials at a time; nothing was written")
        return
    done(summary, as_json, out, f"moldistill ensemble {out} --store {store} --out ensemble")
