"""Predictions for a CSV of SMILES: every input row gets an output row, whatever becomes of it."""

from __future__ import annotations

import csv
import gzip
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import torch

from moldistill.chem.reader import SourceRow, read_csv
from moldistill.core.artifacts import atomic_path, read_manifest
from moldistill.core.errors import InputError
from moldistill.core.progress import progress
from moldistill.core.settings import PrepareSettings
from moldistill.core.vocabulary import FLAGS
from moldistill.data.building import FLAGGED
from moldistill.data.prepare import prepare
from moldistill.data.store import Store
from moldistill.delivery.ensemble import load_ensemble
from moldistill.training import evaluate
from moldistill.trial.run import LoadedRun, load_run_folder

HEADER = ("row", "smiles", "prediction", "spread", "flag", "reason")

CHUNK = 20_000
"""Rows that are prepared and predicted at a time: memory does not grow with the file."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PredictSummary:
    """What was written: rows, those that no model could predict, and those outside the training molecules' sizes."""

    path: str
    rows: int
    refused: int
    outside: int
    members: int


@dataclass(frozen=True, slots=True)
class _Predictor:
    """Models with weights (sum 1), the value for what they cannot predict (eV), and the sizes that they trained on."""

    runs: tuple[LoadedRun, ...]
    weights: Floats
    median: float
    sizes: tuple[int, int]


def predict(model: Path, source: Path, out: Path, *, device: str = "auto", chunk: int = CHUNK) -> PredictSummary:
    """Predict every row of a CSV of SMILES (gzip or not) with a run or an ensemble, and write a CSV.

    Columns: row (from 0), smiles as given, prediction and spread (eV; weighted standard deviation over the members,
    empty for one), flag (a name of `vocabulary.FLAGS`) and reason. Rows without a graph hold the training median.
    Raises InputError for a teacher, an unfinished model, or a file that cannot be read; then nothing is written.
    """
    _check_out(source, out)
    predictor = _load(model)
    where = _device(device)
    summary = PredictSummary(str(out), 0, 0, 0, len(predictor.runs))
    rows = read_csv(source)
    with (
        tempfile.TemporaryDirectory(prefix="moldistill-predict-") as scratch,
        atomic_path(out) as temporary,
        _open_text(temporary, gzipped=out.suffix == ".gz") as stream,
        progress("predicting") as bar,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(HEADER)
        for number, part in enumerate(_chunks(rows, chunk)):
            folder = Path(scratch) / str(number)
            lines, refused, outside = _predict_chunk(predictor, part, folder, summary.rows, where)
            shutil.rmtree(folder)
            writer.writerows(lines)
            summary = PredictSummary(
                summary.path,
                summary.rows + len(lines),
                summary.refused + refused,
                summary.outside + outside,
                summary.members,
            )
            bar.advance(len(lines))
    return summary


def _check_out(source: Path, out: Path) -> None:
    if out.is_dir():
        raise InputError(f"{out} is a folder", expected="the name of a CSV to write", remedy="name a file with --out")
    if out.exists() and source.exists() and out.samefile(source):
        raise InputError(f"{out} is the input", expected="another file", remedy="name another file with --out")


@contextmanager
def _open_text(path: Path, *, gzipped: bool) -> Iterator[IO[str]]:
    """A text file to write, compressed or not."""
    if gzipped:
        with gzip.open(path, "wt", encoding="utf-8", newline="") as stream:
            yield stream
    else:
        with path.open("w", encoding="utf-8", newline="") as stream:
            yield stream


def _device(name: str) -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)


def _load(model: Path) -> _Predictor:
    """The models of a run or an ensemble folder."""
    manifest = read_manifest(model)
    if manifest.kind == "run":
        run = _load_student(model)
        return _Predictor((run,), np.ones(1), run.scale.median, (0, int(manifest.facts["largest_training_molecule"])))
    if manifest.kind != "ensemble":
        raise InputError(
            f"{model} cannot predict", got=manifest.kind, expected="a run or an ensemble", remedy="name one of those"
        )
    summary = load_ensemble(model)
    for member in summary.members:
        identity = read_manifest(Path(member.path), "run").identity
        if identity != member.identity:
            raise InputError(
                f"{member.path} has changed since it became a member of {model}",
                got=identity,
                expected=member.identity,
                remedy="make the ensemble again",
            )
    runs = tuple(_load_student(Path(member.path)) for member in summary.members)
    weights = np.array([member.weight for member in summary.members])
    return _Predictor(runs, weights, summary.training_median, summary.training_sizes)


def _load_student(path: Path) -> LoadedRun:
    run = load_run_folder(path)
    if run.settings.role != "student":
        raise InputError(
            f"{path} is a teacher: it sees 3D geometry, and SMILES have none",
            got=run.settings.role,
            expected="a student, or an ensemble of students",
            remedy="distil it into a student (`cache`, then `train` with targets=…), and predict with that",
        )
    return run


def _chunks(rows: Iterator[SourceRow], size: int) -> Iterator[list[SourceRow]]:
    while part := list(islice(rows, size)):
        yield part


def _predict_chunk(
    predictor: _Predictor, part: Sequence[SourceRow], folder: Path, first: int, device: torch.device
) -> tuple[list[tuple[object, ...]], int, int]:
    """Output lines of a chunk whose first row is row `first`, and how many were refused and outside the sizes."""
    store, reasons = _prepared(part, folder)
    rows = np.arange(len(part), dtype=np.int64)
    usable = store.usable(rows)
    values = np.full((len(predictor.runs), len(part)), predictor.median)
    for line, run in zip(values, predictor.runs, strict=True):
        line[usable] = evaluate.predict(run.model, store, usable, role="student", scale=run.scale, device=device)
    mean, spread = _combined(values, predictor.weights)
    sizes = store.size(rows)
    low, high = predictor.sizes
    trained = f"{low} to {high}" if low else f"at most {high}"
    known = np.isin(rows, usable)
    outside = known & ((sizes < low) | (sizes > high))
    lines: list[tuple[object, ...]] = []
    for row, source in enumerate(part):
        reason = reasons.get(row, "")
        if outside[row]:
            note = f"{sizes[row]} atoms, training molecules have {trained}"
            reason = f"{reason}; {note}" if reason else note
        shown = f"{spread[row]:.6f}" if known[row] and len(values) > 1 else ""
        flag = FLAGS[int(store.flag[row])]
        lines.append((first + row, source.smiles, f"{mean[row]:.6f}", shown, flag, reason))
    return lines, len(part) - len(usable), int(np.count_nonzero(outside))


def _combined(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weighted mean and standard deviation over members; values of shape (members, rows)."""
    mean: Floats = weights @ values
    spread: Floats = np.sqrt(weights @ (values - mean) ** 2)
    return mean, spread


def _prepared(part: Sequence[SourceRow], folder: Path) -> tuple[Store, dict[int, str]]:
    """A temporary store of these rows, and the reason of each flagged one."""
    folder.mkdir()
    table = folder / "rows.csv"
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("idx", "smiles"))
        writer.writerows((row, source.smiles) for row, source in enumerate(part))
    prepare(table, folder / "store", PrepareSettings(valid_3d=0.0))
    with (folder / "store" / FLAGGED).open(encoding="utf-8", newline="") as stream:
        reasons = {int(line["row"]): line["reason"] for line in csv.DictReader(stream)}
    return Store.open(folder / "store"), reasons
