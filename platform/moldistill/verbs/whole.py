"""Verbs about the whole: pipeline, demo, doctor."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from moldistill.core.progress import log
from moldistill.verbs.common import Json, Overrides, print_json


def pipeline(
    file: Annotated[str, typer.Argument(metavar="PIPELINE.yaml", help="A pipeline, or `demo`.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for all stages; run again to go on.")],
    overrides: Overrides = None,
    limit: Annotated[int | None, typer.Option(help="Short for prepare.limit=N.")] = None,
    as_json: Json = False,
) -> None:
    """Run all stages, from a source to a submission and a report; unchanged stages are skipped.

    Example: moldistill pipeline demo source=ROOT --limit 2000 --out run
    """
    changes = [*(overrides or []), *([f"prepare.limit={limit}"] if limit is not None else [])]
    _run_pipeline(file, changes, out, as_json)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for all stages; run again to go on.")] = Path("demo"),
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """The pipeline on the embedded sample: a teacher, a search, an ensemble, a submission and a report in minutes."""
    _run_pipeline("demo", overrides or [], out, as_json)


def _run_pipeline(file: str, overrides: list[str], out: Path, as_json: bool) -> None:
    from moldistill.core.config import load_pipeline
    from moldistill.core.tables import text_table
    from moldistill.pipeline import run_pipeline

    result = run_pipeline(load_pipeline(file, overrides), out)
    if as_json:
        print_json(result)
    shown = [
        [figure.name, *(f"{error:.4f}" if error is not None else "-" for error in (figure.valid, figure.valid_3d))]
        for figure in result.figures
    ]
    log("mean absolute errors in eV\n" + text_table(["", "valid", "valid-3d"], shown))
    log("trials: " + ", ".join(f"{count} {state}" for state, count in result.trials.items()))
    total = sum(result.ran.values())
    log(f"stages: {len(result.ran)} ran in {total:.0f} s, {len(result.skipped)} unchanged and skipped")
    log(f"submission: {result.submission}")
    log(f"report:     {result.report}")


def doctor(
    store: Annotated[Path | None, typer.Option(help="A store to verify, every byte.")] = None,
    as_json: Json = False,
) -> None:
    """Say what works on this machine: versions, Ray, GPU, disk, port, data.

    Example: moldistill doctor --store store
    """
    from moldistill.doctor import examine

    findings = examine(store)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        marks = {"ok": "ok     ", "warning": "warning", "failed": "FAILED "}
        for finding in findings:
            sys.stdout.write(f"{marks[finding.result]}  {finding.name:<9} {finding.detail}\n")
    if any(finding.result == "failed" for finding in findings):
        raise typer.Exit(1)
