"""Verbs that search: explain, search."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from moldistill.core.progress import log
from moldistill.verbs.common import Json, Out, Overrides, Resume, StoreAt, done, print_json

Targets = Annotated[
    list[str] | None, typer.Option(help="Folder that `cache` wrote, for distilled students; once for each teacher.")
]


def explain(
    space: Annotated[str, typer.Argument(metavar="SPACE.yaml", help="A search space, or the name of a shipped one.")],
    overrides: Overrides = None,
    targets: Targets = None,
    store: Annotated[
        Path | None, typer.Option("--store", help="Folder that `prepare` wrote: times real steps, to foresee the cost.")
    ] = None,
    preflight: Annotated[
        bool,
        typer.Option("--preflight", help="Send empty trials through Ray Tune: does the scheduler hear of metrics?"),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a search space means: its tree, five sampled configurations, its cost; refuse dead parameters.

    Example: moldistill explain normalization --store store --targets targets
    """
    from moldistill.search.explain import explain_space
    from moldistill.search.parse import load_space

    loaded = load_space(space, overrides or [], targets=targets or ())
    explanation = explain_space(loaded, store)
    flown = None
    if preflight:
        from moldistill.search.preflight import preflight as fly

        flown = fly(loaded)
    if as_json:
        print_json(asdict(explanation) | {"preflight": asdict(flown) if flown else None})
        return
    sys.stdout.write("\n".join([explanation.text(), *([flown.text()] if flown else [])]) + "\n")


def search(
    space: Annotated[str, typer.Argument(metavar="SPACE.yaml", help="A search space, or the name of a shipped one.")],
    store: StoreAt,
    out: Out,
    overrides: Overrides = None,
    targets: Targets = None,
    resume: Resume = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="Go on with a study under a larger budget or a changed space.")
    ] = False,
    warm_start: Annotated[
        list[Path] | None, typer.Option("--warm-start", help="A study whose trials a new one begins with; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything; start and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Search loss weights, normalization schemes or anything else with Ray Tune and Optuna.

    Example: moldistill search loss_weights --targets targets budget.trials=16 --store store --out study
    """
    from moldistill.search.tuner import search as run_search

    summary = run_search(
        space,
        store,
        out,
        overrides=overrides or [],
        targets=targets or (),
        mode="extend" if extend else "resume" if resume else "new",
        warm=warm_start or (),
        dry_run=dry_run,
    )
    if dry_run:
        log(f"{space} is well: {summary.concurrent} trials at a time; nothing was written")
        return
    done(summary, as_json, out, f"moldistill ensemble {out} --store {store} --out ensemble")
