"""Verbs that give molecules their predictions: predict, and export for predicting elsewhere."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from moldistill.core.errors import InputError
from moldistill.core.progress import log
from moldistill.verbs.common import Json, Out, done, print_json


class Device(StrEnum):
    """Where the models run."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Precision(StrEnum):
    """Of the models' products."""

    FP32 = "fp32"
    BF16 = "bf16"


class Layout(StrEnum):
    """Of the source."""

    AUTO = "auto"
    CSV = "csv"
    LIST = "list"


class Form(StrEnum):
    """Of the table."""

    CSV = "csv"
    PARQUET = "parquet"


class Graph(StrEnum):
    """Of an exported student as a graph of operators."""

    TORCHSCRIPT = "torchscript"
    ONNX = "onnx"


Store = Annotated[Path | None, typer.Option("--store", help="The store, which knows the training elements.")]
Model = Annotated[Path, typer.Argument(metavar="RUN|ENSEMBLE|EXPORT", help="A student's run, or several of them.")]
Source = Annotated[
    Path, typer.Argument(metavar="SMILES", help="CSV with the column smiles, or one SMILES per line; - is stdin.")
]
Table = Annotated[Path, typer.Option("--out", help="Table to write: .csv, .csv.gz or .parquet; - is stdout.")]
Ray = Annotated[bool | None, typer.Option("--ray/--no-ray", help="On a Ray cluster; by default where one is joined.")]


def predict(
    model: Model,
    source: Source,
    out: Table,
    column: Annotated[str, typer.Option("--smiles-column", help="Column of a CSV that holds the SMILES.")] = "smiles",
    layout: Annotated[Layout, typer.Option("--input", help="What the source is, if it does not show.")] = Layout.AUTO,
    form: Annotated[Form | None, typer.Option("--format", help="What to write; by default as --out is named.")] = None,
    device: Annotated[Device, typer.Option(help="Where the models run; auto: on a GPU if there is one.")] = Device.AUTO,
    precision: Annotated[Precision, typer.Option(help="bf16 is faster; what it changes is told.")] = Precision.FP32,
    level: Annotated[float | None, typer.Option(help="Coverage of low to high; the widest by default.")] = None,
    store: Store = None,
    processes: Annotated[int | None, typer.Option(min=0, help="That read SMILES; 0: a thread of this one.")] = None,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Predict molecules from SMILES alone: row,smiles,prediction,spread,flag,reason.

    Every input row has an output row. Killed, it goes on where it was when it is run again.

    Example: moldistill predict ensemble molecules.csv --out predictions.csv
    """
    from moldistill.delivery.predict import predict as run_predict

    to_stdout = out == Path("-")
    if to_stdout and as_json:
        raise InputError("stdout holds the predictions", got="--out - and --json", remedy="name a file with --out")
    options: dict[str, Any] = {
        "column": column,
        "layout": layout.value,
        "form": form and form.value,
        "device": device.value,
    }
    options |= {"precision": precision.value, "level": level, "store": store, "processes": processes, "ray": ray}
    summary = run_predict(model, source, out, **options)
    log(
        f"{summary.rows:,} rows: {summary.refused:,} without a prediction of their own, {summary.outside:,} outside "
        "the training sizes or elements (see the column reason)"
    )
    if not to_stdout:
        done(summary, as_json, out, "")


def export(
    model: Annotated[Path, typer.Argument(metavar="RUN|ENSEMBLE", help="A student's run, or an ensemble.")],
    out: Out,
    graph: Annotated[
        Graph | None, typer.Option("--format", help="Also write each student as a graph of operators.")
    ] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Write one folder with all that `predict` needs, and a model card: to be copied, published, or archived.

    Example: moldistill export ensemble --out model
    """
    from moldistill.delivery.export import export as run_export

    summary = run_export(model, out, store=store, graph=graph.value if graph else None)
    if as_json:
        print_json(summary)
    done(summary, False, out, f"moldistill predict {out} molecules.csv --out predictions.csv")
    log(f"fill in the licence and the intended use in {out / 'README.md'}")
