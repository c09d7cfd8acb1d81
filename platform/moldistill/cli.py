"""The command line: one verb per stage. It parses, delegates, and says what was written and what comes next.

stdout carries data (with --json, one JSON value), stderr everything else. Exit codes: 0 done, 1 failed, 2 wrong input.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from moldistill import __version__
from moldistill.core.artifacts import check_out
from moldistill.core.errors import InputError, MoldistillError
from moldistill.core.progress import log

app = typer.Typer(
    name="moldistill",
    help="Distil a 3D teacher into a 2D student, search how, and submit the best to OGB-LSC.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Out = Annotated[Path, typer.Option("--out", help="Folder to write; new or empty.")]
StoreAt = Annotated[Path, typer.Option("--store", help="Folder that `prepare` wrote.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to replace.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]


def _done(result: Any, as_json: bool, wrote: Path, following: str) -> None:
    """The end of every verb: data on stdout if asked for, then what was written and the next command."""
    if as_json:
        value = asdict(result) if is_dataclass(result) and not isinstance(result, type) else result
        sys.stdout.write(json.dumps(value, default=str, indent=2) + "\n")
    log(f"wrote {wrote}")
    if following:
        log(f"next:  {following}")


@app.command()
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
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    else:
        marks = {"ok": "ok     ", "warning": "warning", "failed": "FAILED "}
        for finding in findings:
            sys.stdout.write(f"{marks[finding.result]}  {finding.name:<9} {finding.detail}\n")
    if any(finding.result == "failed" for finding in findings):
        raise typer.Exit(1)


@app.command()
def label(
    source: Annotated[Path, typer.Argument(metavar="SMILES.csv", help="CSV with the column smiles; gzip or not.")],
    out: Out,
    seed: Annotated[int, typer.Option(min=0, help="Seed of conformers and splits.")] = 0,
    keep_test_labels: Annotated[bool, typer.Option(help="Also write test_labels.csv.gz.")] = False,
    as_json: Json = False,
) -> None:
    """Give own molecules a 3D structure (ETKDGv3, MMFF94) and a GFN1-xTB HOMO-LUMO gap: a root for `prepare`.

    Example: moldistill label molecules.csv --out root
    """
    from moldistill.chem.label import label as run_label
    from moldistill.chem.label_input import SplitShares
    from moldistill.chem.xtb import LabelSettings

    summary = run_label(
        source,
        out,
        settings=LabelSettings(seed=seed),
        shares=SplitShares(seed=seed),
        keep_test_labels=keep_test_labels,
    )
    _done(summary, as_json, out, f"moldistill prepare {out} --store store")


@app.command()
def prepare(
    source: Annotated[
        Path, typer.Argument(metavar="ROOT|CSV", help="A root in PCQM4Mv2's layout, or a CSV of SMILES.")
    ],
    store: Annotated[Path, typer.Option("--store", help="Folder to write; new or empty.")],
    valid_3d: Annotated[float, typer.Option(help="Share of training rows kept aside to judge teachers.")] = 0.05,
    limit: Annotated[int | None, typer.Option(help="Take a seeded sample of about N rows.")] = None,
    target: Annotated[str | None, typer.Option(help="Column of the target in a CSV.")] = None,
    unit: Annotated[str, typer.Option(help="Its unit: ev, hartree, kcal/mol, kj/mol, none.")] = "ev",
    seed: Annotated[int, typer.Option(help="Seed of the sample and of valid-3d.")] = 0,
    as_json: Json = False,
) -> None:
    """Turn a source into a memory-mapped store.

    Example: moldistill prepare sample --store store
    """
    from moldistill.chem.sample import resolve_source
    from moldistill.core.config import build
    from moldistill.core.settings import PrepareSettings
    from moldistill.data.prepare import prepare as run_prepare

    raw = {"valid_3d": valid_3d, "limit": limit, "target": target, "unit": unit, "seed": seed}
    manifest = run_prepare(resolve_source(str(source)), store, build(PrepareSettings, raw, "prepare"))
    _done(manifest, as_json, store, f"moldistill train teacher-small --store {store} --out teacher")


@app.command()
def train(
    run: Annotated[str, typer.Argument(metavar="RUN.yaml|preset", help="Settings of the run.")],
    store: StoreAt,
    out: Out,
    overrides: Overrides = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Train a teacher or a student under Ray Train.

    Example: moldistill train student-small-distilled targets=targets training.epochs=20 --store store --out student
    """
    from moldistill.core.config import load_run
    from moldistill.trial.ray_train import train_under_ray
    from moldistill.trial.spec import TrialSpec

    settings = load_run(run, overrides or [])
    out = out.expanduser().absolute() if resume else check_out(out)
    result = train_under_ray(TrialSpec(settings, store.expanduser().absolute(), out, resume), settings.role)
    following = f"moldistill report {out} --out report.html"
    if settings.role == "teacher":
        following = f"moldistill cache {out} --store {store} --out targets"
    _done(result, as_json, out, following)


@app.command()
def cache(
    teacher: Annotated[Path, typer.Argument(metavar="TEACHER_RUN", help="A finished teacher's run.")],
    store: StoreAt,
    out: Out,
    layers: Annotated[str, typer.Option(help="Layers to keep, such as 2,4,6; all by default.")] = "all",
) -> None:
    """Write the frozen teacher's predictions and states for every training molecule, once for all students.

    Example: moldistill cache teacher --store store --out targets
    """
    from moldistill.pipeline import cache_teacher

    try:
        kept = None if layers == "all" else tuple(int(part) for part in layers.split(","))
    except ValueError:
        raise InputError("--layers", got=layers, expected="all, or numbers such as 2,4,6", remedy="mend it") from None
    cache_teacher(teacher, store, out, kept)
    _done(None, False, out, f"moldistill train student-small-distilled targets={out} --store {store} --out student")


@app.command()
def explain(
    space: Annotated[str, typer.Argument(metavar="SPACE.yaml", help="A search space, or the name of a shipped one.")],
    overrides: Overrides = None,
    targets: Annotated[str | None, typer.Option(help="Folder that `cache` wrote.")] = None,
    as_json: Json = False,
) -> None:
    """Show what a search space means: its tree, five sampled configurations, its cost; refuse dead parameters.

    Example: moldistill explain normalization
    """
    from moldistill.search.explain import explain as run_explain

    explanation = run_explain(space, overrides or [], targets=targets)
    sys.stdout.write((json.dumps(asdict(explanation), default=str, indent=2) if as_json else explanation.text()) + "\n")


@app.command()
def search(
    space: Annotated[str, typer.Argument(metavar="SPACE.yaml", help="A search space, or the name of a shipped one.")],
    store: StoreAt,
    out: Out,
    overrides: Overrides = None,
    targets: Annotated[str | None, typer.Option(help="Folder that `cache` wrote, for distilled students.")] = None,
    resume: Resume = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything; start and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Search loss weights, normalization schemes or anything else with Ray Tune and Optuna.

    Example: moldistill search loss_weights --targets targets budget.trials=16 --store store --out study
    """
    from moldistill.search.tuner import search as run_search

    summary = run_search(space, store, out, overrides=overrides or [], targets=targets, resume=resume, dry_run=dry_run)
    if dry_run:
        log(f"{space} is well: {summary.concurrent} trials at a time; nothing was written")
        return
    _done(summary, as_json, out, f"moldistill ensemble {out} --store {store} --out ensemble")


@app.command()
def ensemble(
    studies: Annotated[list[Path], typer.Argument(metavar="STUDY...", help="Studies or finished runs.")],
    out: Out,
    store: Annotated[Path | None, typer.Option("--store", help="Where the members' store lies now.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the halving of the validation rows.")] = 0,
    max_members: Annotated[int, typer.Option(help="Most members.")] = 32,
    as_json: Json = False,
) -> None:
    """Choose members and weights on one half of the validation rows; score them on the other.

    Example: moldistill ensemble study --out ensemble
    """
    from moldistill.delivery.ensemble import ensemble as run_ensemble

    summary = run_ensemble(studies, out, store=store, seed=seed, max_members=max_members)
    _done(summary, as_json, out, f"moldistill submit {out} --store {store or 'store'} --out submission")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="RUN|ENSEMBLE", help="A student's run, or an ensemble.")],
    source: Annotated[Path, typer.Argument(metavar="SMILES.csv", help="CSV with the column smiles; gzip or not.")],
    out: Annotated[Path, typer.Option("--out", help="CSV to write; .gz compresses.")],
    as_json: Json = False,
) -> None:
    """Predict molecules from SMILES alone: row,smiles,prediction,spread,flag,reason.

    Example: moldistill predict ensemble molecules.csv --out predictions.csv
    """
    from moldistill.delivery.predict import predict as run_predict

    _done(run_predict(model, source, out), as_json, out, "")


@app.command()
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
            sys.stdout.write(json.dumps(asdict(found), default=str, indent=2) + "\n")
        for item in found.checks:
            log(f"{item.result}: {item.split}: {item.name}: {item.detail}")
        return
    if ensemble_at is None or out is None:
        raise InputError("submit needs an ensemble and --out", expected="submit ENSEMBLE --store DIR --out DIR")
    summary = submission(ensemble_at, store, out)
    _done(summary, as_json, out, f"moldistill report {ensemble_at} --out report.html")


@app.command()
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
    _done(None, False, out, "")


@app.command()
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


@app.command()
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
        sys.stdout.write(json.dumps(asdict(result), default=str, indent=2) + "\n")
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


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Options before the verb."""
    if version:
        sys.stdout.write(f"moldistill {__version__}\n")
        raise typer.Exit


def main() -> None:
    """Entry point: errors that a user can mend are printed without a traceback."""
    try:
        app()
    except MoldistillError as error:
        log(f"error: {error}")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        log("stopped; run the same command again (train and search: with --resume) to go on")
        raise SystemExit(130) from None
