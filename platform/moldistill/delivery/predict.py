"""Predictions for SMILES, as many as there are: every input row gets an output row, whatever becomes of it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moldistill import __version__
from moldistill.chem.reader import SMILES_COLUMN
from moldistill.core.compiled import announce
from moldistill.core.errors import InputError, RunError
from moldistill.core.progress import log, progress
from moldistill.delivery.engine import Deviation, Engine, Precision, Predicted
from moldistill.delivery.featurizing import Window
from moldistill.delivery.output import HEADER, Writer, form_of
from moldistill.delivery.partial import Line, done, making
from moldistill.delivery.predictor import Predictor, load_predictor
from moldistill.delivery.smiles_source import STDIN, Layout, open_smiles
from moldistill.delivery.streaming import WINDOW, cluster_is_near, predict_on_ray, predict_windows, windows

__all__ = ["HEADER", "PredictSummary", "predict"]


@dataclass(frozen=True, slots=True)
class PredictSummary:
    """What was written: rows, those that no model could predict, and those outside the training sizes or elements.

    resumed: rows that an earlier process had done. elements: whether the training elements were known. level: coverage
    of the interval, None where there is none. deviation: of 16 bits from 32, where they were asked for.
    """

    path: str
    rows: int
    refused: int
    outside: int
    members: int
    resumed: int
    seconds: float
    elements: bool
    level: float | None
    deviation: Deviation | None


@dataclass(frozen=True, slots=True)
class Options:
    """How to predict; the values are those of `predict`."""

    device: str = "auto"
    precision: Precision = "fp32"
    column: str = SMILES_COLUMN
    layout: Layout = "auto"
    form: str | None = None
    level: float | None = None
    store: Path | None = None
    processes: int | None = None
    ray: bool | None = None
    chunk: int = WINDOW


def predict(model: Path, source: Path, out: Path, **options: Any) -> PredictSummary:
    """Predict every row of a file of SMILES with a run, an ensemble or an exported folder, and write a table.

    source: a CSV or a list, gzipped or not; `-` is stdin (`smiles_source.open_smiles`). out: a CSV, gzipped where its
    name ends in .gz, or Parquet; `-` is stdout, as CSV. Columns: row (from 0), smiles as given, prediction and spread
    (eV; spread of the members, empty for one), flag (a name of `vocabulary.FLAGS`), reason (why a row has no
    prediction of its own, or how it lies outside the training molecules' sizes or elements); low and high where the
    ensemble has a calibration. Rows that no student can read hold the training median.

    options (`Options`): device (auto, cpu, cuda); precision (fp32, bf16: what it does is measured and told);
    column, layout (auto, csv, list) of the source; form (csv, parquet; by default as out is named); level of the
    interval; store, which knows the training elements where the run does not; processes that featurize; ray (None:
    where a cluster is joined); chunk (rows that are featurized and sorted together).

    Memory does not grow with the rows. A run that was killed is continued by the same call; until the end nothing
    stands under the name `out`. Raises InputError for a teacher, an unfinished model, a file that cannot be read.
    """
    asked = Options(**options)
    start = time.monotonic()
    _check_out(source, out)
    predictor = load_predictor(model, asked.store)
    engine = Engine(predictor, asked.device, asked.precision).at_level(asked.level)
    calibration = predictor.combination.calibration
    writer = Writer(form_of(out, asked.form), calibration is not None)
    announce()
    with (
        open_smiles(source, column=asked.column, layout=asked.layout) as rows,
        progress("predicting") as bar,
    ):
        job = _Job(engine, asked, bar)
        parts = windows(rows, asked.chunk)
        if out == STDIN:
            lines, resumed = job.to_stdout(parts, writer), 0
        else:
            lines, resumed = job.to_file(parts, writer, out)
    count, refused, outside = done(lines)
    _warn(predictor, job.deviation)
    return PredictSummary(
        str(out),
        count,
        refused,
        outside,
        len(predictor.members),
        resumed,
        time.monotonic() - start,
        predictor.elements is not None,
        None if calibration is None else calibration.levels[engine.level],
        job.deviation,
    )


def _check_out(source: Path, out: Path) -> None:
    if out == STDIN:
        return
    if out.is_dir():
        raise InputError(f"{out} is a folder", expected="the name of a table to write", remedy="name a file with --out")
    if out.exists() and source != STDIN and source.exists() and out.samefile(source):
        raise InputError(f"{out} is the input", expected="another file", remedy="name another file with --out")


def _warn(predictor: Predictor, deviation: Deviation | None) -> None:
    if deviation is not None:
        log(
            f"bf16 moves predictions by {deviation.mean:.2g} eV on average, by {deviation.largest:.2g} eV at most "
            f"(measured on {deviation.molecules:,} molecules)"
        )
    if predictor.elements is None:
        log("elements outside the training molecules are not told: neither the run nor its store says (name --store)")


class _Job:
    """Windows through the engine, to a file or to stdout. deviation: of the first window."""

    def __init__(self, engine: Engine, asked: Options, bar: Any) -> None:
        self.engine, self.asked, self.bar = engine, asked, bar
        self.deviation: Deviation | None = None

    def _predicted(self, parts: Iterator[Window]) -> Iterator[Predicted]:
        on_ray = cluster_is_near() if self.asked.ray is None else self.asked.ray
        found = (
            predict_on_ray(self.engine, parts)
            if on_ray
            else predict_windows(self.engine, parts, processes=self.asked.processes)
        )
        for part in found:
            self.deviation = self.deviation or part.deviation
            yield part
            self.bar.advance(len(part.window.smiles))

    def to_file(self, parts: Iterator[Window], writer: Writer, out: Path) -> tuple[list[Line], int]:
        """Lines of the ledger, and how many rows an earlier process had done."""
        out = out.expanduser().absolute()
        with making(out, self._plan(writer), writer) as partial:
            remaining = partial.remaining(parts)
            for part in self._predicted(remaining):
                partial.append(part)
            resumed = done(partial.lines[: partial.resumed])[0]
            if resumed:
                log(f"{resumed:,} rows had been predicted before")
            partial.publish()
            return partial.lines, resumed

    def to_stdout(self, parts: Iterator[Window], writer: Writer) -> list[Line]:
        """Lines as a ledger would have them."""
        if writer.form == "parquet":
            raise InputError("stdout takes a CSV", got="parquet", remedy="name a file with --out")
        lines = []
        with _stdout() as stream:
            stream.write(writer.head())
            for part in self._predicted(parts):
                stream.write(writer.piece(part))
                stream.flush()
                lines.append(Line(len(part.window.smiles), 0, 0, 0, part.refused, part.outside))
        return lines

    def _plan(self, writer: Writer) -> dict[str, Any]:
        """All that the content of the table depends on, beside the input."""
        predictor, engine = self.engine.predictor, self.engine
        return {
            "version": __version__,
            "model": predictor.identity,
            "combination": predictor.combination.to_mapping(),
            "elements": predictor.elements,
            "form": writer.form,
            "precision": engine.precision,
            "level": engine.level,
            "chunk": self.asked.chunk,
        }


@contextmanager
def _stdout() -> Iterator[Any]:
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again when it ends
        raise RunError("whoever read stdout has gone", remedy="write to a file with --out") from error
