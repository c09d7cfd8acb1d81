"""Verbs that train: train, cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moldistill.core.artifacts import check_out
from moldistill.core.errors import InputError
from moldistill.core.layers import Layers, check_layers
from moldistill.core.progress import log
from moldistill.verbs.common import Json, Out, Overrides, Resume, StoreAt, done, print_json


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
    layers: Annotated[
        str, typer.Option(help="Layers to keep: all, last, 'every 2', or numbers such as 2,4,6.")
    ] = "all",
    channels: Annotated[
        int | None, typer.Option(help="Principal components to keep of each state; all its channels by default.")
    ] = None,
    bits: Annotated[int, typer.Option(help="16, or 8 for half the size and a small error, which is reported.")] = 16,
    views: Annotated[int, typer.Option(help="Times that each molecule is shown, each with other --noise.")] = 1,
    noise: Annotated[float, typer.Option(help="Standard deviation (Å) of noise on the positions shown.")] = 0.0,
    soft_labels: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLD_RUN",
            help="A teacher trained with training.folds, once for each fold: predictions come from the one that did "
            "not see the row.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of noise, and of the sample that channels are fitted on.")] = 0,
    as_json: Json = False,
) -> None:
    """Write the frozen teacher's predictions and states for every training molecule, once for all students.

    Run again on what it wrote, it has nothing to do.

    Example: moldistill cache teacher --store store --out targets
    """
    from moldistill.core.config import build
    from moldistill.pipeline import cache_teacher
    from moldistill.training.cache import CacheSettings

    raw = {"channels": channels, "bits": bits, "views": views, "noise": noise, "seed": seed}
    settings = build(CacheSettings, raw | {"layers": _layers(layers)}, "cache")
    result = cache_teacher(teacher, store, out, settings, soft_labels or [])
    following = f"moldistill train student-small-distilled targets={out} --store {store} --out student"
    if result.made:
        done(result, as_json, out, following)
        return
    if as_json:
        print_json(result)
    log(f"{out} was left as it is: there was nothing to do")
    log(f"next:  {following}")


def _layers(text: str) -> Layers:
    """The layers of the option --layers: a word, or numbers."""
    try:
        layers = tuple(int(part) for part in text.split(",")) if text[:1].isdigit() else text
        check_layers(layers)
    except ValueError:
        expected = "all, last, 'every 2', or numbers such as 2,4,6"
        raise InputError("--layers", got=text, expected=expected, remedy="mend it") from None
    return layers
