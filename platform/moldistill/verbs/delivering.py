"""Verbs that deliver: ensemble, submit, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moldistill.core.errors import InputError
from moldistill.core.progress import log
from moldistill.verbs.common import Json, Out, done, print_json


def ensemble(
    studies: Annotated[
        list[Path], typer.Argument(metavar="SOURCE...", help="Studies, finished runs, folders of runs.")
    ],
    out: Out,
    store: Annotated[Path | None, typer.Option("--store", help="Where the members' store lies now.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the halving of the validation rows.")] = 0,
    max_members: Annotated[int, typer.Option(help="Most members.")] = 32,
    combiner: Annotated[
        str, typer.Option(help="auto (the best of all), mean, median, rank, greedy, lad, huber or by_size.")
    ] = "auto",
    budget: Annotated[
        str | None, typer.Option(help='Most time that predicting may take: "4 h", "30 min", "90 s".')
    ] = None,
    budget_rows: Annotated[int | None, typer.Option(help="Molecules of the budget. Default: the tests'.")] = None,
    refit: Annotated[
        bool, typer.Option("--refit/--keep-half", help="Weigh again on all validation rows after scoring.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Choose members, combiner and weights on one half of the validation rows; score them on the other.

    Examples: moldistill ensemble study --out ensemble;  moldistill ensemble study --budget "4 h" --out fast
    """
    from moldistill.delivery.costs import parse_seconds
    from moldistill.delivery.ensemble import ensemble as run_ensemble

    seconds = None if budget is None else parse_seconds(budget)
    if seconds is None and budget_rows is not None:
        raise InputError("--budget-rows says how many molecules --budget is for", remedy='add --budget, as in "4 h"')
    summary = run_ensemble(
        studies,
        out,
        store=store,
        seed=seed,
        max_members=max_members,
        combiner=combiner,
        budget=seconds,
        budget_rows=budget_rows,
        refit=refit,
    )
    done(summary, as_json, out, f"moldistill submit {out} --store {store or 'store'} --out submission")


def submit(
    ensemble_at: Annotated[Path | None, typer.Argument(metavar="ENSEMBLE", help="A finished ensemble.")] = None,
    store: Annotated[Path, typer.Option("--store", help="Folder that `prepare` wrote.")] = Path("store"),
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; new or empty.")] = None,
    check: Annotated[Path | None, typer.Option("--check", help="Verify anyone's .npz or folder instead.")] = None,
    as_json: Json = False,
) -> None:
    """Write the checked files of an OGB-LSC submission, or verify somebody else's with --check.

    Examples: moldistill submit ensemble --store store --out submission;  moldistill submit --check FILE --store store
    """
    from moldistill.delivery.checks import check_submission
    from moldistill.delivery.submission import submission

    if check is not None:
        found = check_submission(check, store)
        if as_json:
            print_json(found)
        for item in found.checks:
            log(f"{item.result}: {item.split}: {item.name}: {item.detail}")
        return
    if ensemble_at is None or out is None:
        raise InputError("submit needs an ensemble and --out", expected="submit ENSEMBLE --store DIR --out DIR")
    summary = submission(ensemble_at, store, out)
    done(summary, as_json, out, f"moldistill report {ensemble_at} --out report.html")


def report(
    source: Annotated[Path, typer.Argument(metavar="RUN|STUDY|ENSEMBLE", help="What to report on.")],
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")],
) -> None:
    """Write one self-contained HTML page about a run, a study, an ensemble or a pipeline's folder.

    Example: moldistill report study --out report.html
    """
    from moldistill.delivery.report import report as run_report
    from moldistill.delivery.sources import as_inputs

    run_report(as_inputs(source), out)
    done(None, False, out, "")
