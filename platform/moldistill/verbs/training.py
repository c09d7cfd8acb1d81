"""Verbs that train: train, cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moldistill.core.artifacts import check_out
from moldistill.core.errors import InputError
from moldistill.core.progress import log
from moldistill.verbs.common import Json, Out, Overrides, Resume, StoreAt, done


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
    log(_errors(result.path, settings.role))
    following = f"moldistill report {out} --out report.html"
    if settings.role == "teacher":
        following = f"moldistill cache {out} --store {store} --out targets"
    done(result, as_json, out, following)


def _errors(run: Path, role: str) -> str:
    """Table of the run's errors by molecule size."""
    from moldistill.core.artifacts import read_manifest
    from moldistill.core.tables import text_table

    split = "valid" if role == "student" else "valid-3d"
    classes = read_manifest(run, "run").facts["errors_by_size"].get(split, [])
    if not classes:
        return f"no labelled rows in {split}"
    rows = [
        [
            f"{item['smallest']} to {item['largest']}" + (" (larger than in training)" if item["beyond"] else ""),
            f"{item['rows']:,}",
            f"{item['mae']:.4f}",
        ]
        for item in classes
    ]
    return text_table([f"heavy atoms ({split})", "rows", "MAE (eV)"], rows)


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
    done(None, False, out, f"moldistill train student-small-distilled targets={out} --store {store} --out student")
