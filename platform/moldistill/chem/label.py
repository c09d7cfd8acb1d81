"""`moldistill label`: own molecules → 3D geometry and HOMO-LUMO gap → a root in the layout of OGB's PCQM4Mv2.

Molecules are computed in chunks by Ray tasks. Each finished chunk is kept in a work folder beside the output, named
after everything that decides its content (SMILES, settings, versions), so a run that was killed continues where it
stopped and never mixes what does not belong together. The root is written at the end, in one step.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from moldistill import __version__
from moldistill.chem import root
from moldistill.chem.label_input import (
    SPLIT_NAMES,
    SmilesTable,
    SplitShares,
    given_splits,
    random_splits,
    read_table,
)
from moldistill.chem.xtb import LabelSettings, Outcome, label_molecule, require_tblite
from moldistill.core.artifacts import atomic_path, check_out, hash_file, hash_object, new_folder, write_manifest
from moldistill.core.cluster import cluster, ordered_map
from moldistill.core.errors import RunError
from moldistill.core.progress import log, progress
from moldistill.core.vocabulary import SPLITS, TEST_SPLITS

CHUNK = 32
"""Molecules of a task: a few seconds of work, which is what a killed run loses."""

FAILURES = "failures.csv"
TEST_LABELS = "test_labels.csv.gz"


@dataclass(frozen=True, slots=True)
class LabelSummary:
    """What a labelling run made: molecules per split, failures per stage, and the gap in eV over the training set."""

    out: Path
    molecules: int
    splits: Mapping[str, int]
    failed: Mapping[str, int]
    gap_mean: float
    gap_std: float
    reused: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Task:
    smiles: tuple[str, ...]
    settings: LabelSettings


@dataclass(frozen=True, slots=True)
class _Results:
    """Columns over the rows of the source; the SDF records stay in the chunk files."""

    gap: Float[np.ndarray, " rows"]
    heavy_atoms: Int[np.ndarray, " rows"]
    record_size: Int[np.ndarray, " rows"]
    good: Bool[np.ndarray, " rows"]
    failures: list[tuple[int, str, str]]
    force_fields: Counter[str]
    unconverged: int


def label(
    source: Path,
    out: Path,
    *,
    settings: LabelSettings | None = None,
    shares: SplitShares | None = None,
    keep_test_labels: bool = False,
    origin: str = "",
    cpus: int | None = None,
) -> LabelSummary:
    """Label the SMILES of `source` and write the root `out`.

    source: CSV with the column `smiles` and, if the split is fixed, `split` (train, valid, test-dev, test-challenge);
            `idx`, if there, is repeated in the table of failures.
    shares: of the random split where `source` has no column `split`.
    keep_test_labels: write the gaps of both test splits to `test_labels.csv.gz`; otherwise nothing keeps them.
    origin: a line on where the molecules come from, kept in the manifest.

    Rows of the root are the labelled rows of the source, in order; the others are in `failures.csv` with row, stage
    and reason. Raises InputError for a wrong source or output folder, RunError where no training molecule is left.
    """
    start = time.monotonic()
    settings = settings or LabelSettings()
    require_tblite()
    out = check_out(out)
    table = read_table(source)
    work = _work_folder(out, table, settings)
    reused = len(list(work.glob("chunk-*.json.gz")))
    if reused:
        log(f"continuing {out.name}: {reused} of {-(-len(table) // CHUNK)} chunks were finished before")
    results = _compute(table, settings, work, cpus)
    split = _split(table, results, shares or SplitShares())
    if not (results.good & (split == 0)).any():
        raise RunError(
            "no training molecule could be labelled",
            got="; ".join(f"row {row}: {stage}: {reason}" for row, stage, reason in results.failures[:3])
            or "none given",
            expected="at least one molecule in the training split",
        )
    with new_folder(out) as folder:
        facts = _facts(results, split, settings) | {"origin": origin}
        _write_root(folder, table, results, split, work, keep_test_labels)
        files = [root.TABLE, root.SPLIT, root.SDF_ARCHIVE]
        write_manifest(folder, "root", files=files, inputs={"source": hash_file(source)}, facts=facts)
    _remove_work(work)
    gap = facts["gap_ev"]
    return LabelSummary(
        out, facts["rows"], facts["splits"], facts["failed"], gap["mean"], gap["std"], reused, time.monotonic() - start
    )


def _versions() -> dict[str, str]:
    return {"moldistill": __version__} | {name: importlib.metadata.version(name) for name in ("rdkit", "tblite")}


def _work_folder(out: Path, table: SmilesTable, settings: LabelSettings) -> Path:
    """The folder of the finished chunks; another input, setting or version has another one."""
    smiles = hashlib.sha256("\n".join(table.smiles).encode()).hexdigest()
    work = out.parent / f".{out.name}.work" / hash_object([smiles, asdict(settings), CHUNK, _versions()])
    work.mkdir(parents=True, exist_ok=True)
    return work


def _remove_work(work: Path) -> None:
    shutil.rmtree(work)
    # What another input or setting left unfinished stays, for its own run to continue.
    if not any(work.parent.iterdir()):
        work.parent.rmdir()


def _chunk_file(work: Path, chunk: int) -> Path:
    return work / f"chunk-{chunk:06d}.json.gz"


def _label_chunk(task: _Task) -> bytes:
    outcomes = [asdict(label_molecule(smiles, task.settings)) for smiles in task.smiles]
    return gzip.compress(json.dumps(outcomes).encode(), 6, mtime=0)


def _read_chunk(path: Path) -> list[Outcome]:
    return [Outcome(**value) for value in json.loads(gzip.decompress(path.read_bytes()))]


def _compute(table: SmilesTable, settings: LabelSettings, work: Path, cpus: int | None) -> _Results:
    chunks = range(-(-len(table) // CHUNK))
    missing = [chunk for chunk in chunks if not _chunk_file(work, chunk).is_file()]
    rows = [range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(table))) for chunk in chunks]
    with progress("label", len(table)) as bar:
        bar.advance(len(table) - sum(len(rows[chunk]) for chunk in missing))
        if missing:
            tasks = (_Task(tuple(table.smiles[row] for row in rows[chunk]), settings) for chunk in missing)
            with cluster(cpus):
                for chunk, content in zip(missing, ordered_map(_label_chunk, tasks), strict=True):
                    with atomic_path(_chunk_file(work, chunk)) as temporary:
                        temporary.write_bytes(content)
                    bar.advance(len(rows[chunk]))
    return _collect(table, work)


def _outcomes(work: Path, rows: int) -> Iterator[Outcome]:
    for chunk in range(-(-rows // CHUNK)):
        yield from _read_chunk(_chunk_file(work, chunk))


def _collect(table: SmilesTable, work: Path) -> _Results:
    gap = np.full(len(table), np.nan)
    heavy_atoms, record_size = np.zeros(len(table), dtype=np.int64), np.zeros(len(table), dtype=np.int64)
    failures: list[tuple[int, str, str]] = []
    force_fields: Counter[str] = Counter()
    unconverged = 0
    for row, outcome in enumerate(_outcomes(work, len(table))):
        if outcome.stage:
            failures.append((row, outcome.stage, outcome.reason))
            continue
        gap[row], heavy_atoms[row] = outcome.gap, outcome.heavy_atoms
        record_size[row] = len(outcome.record.encode())
        force_fields[outcome.force_field] += 1
        unconverged += not outcome.converged
    return _Results(gap, heavy_atoms, record_size, np.isfinite(gap), failures, force_fields, unconverged)


def _split(table: SmilesTable, results: _Results, shares: SplitShares) -> Int[np.ndarray, " rows"]:
    if table.split:
        return given_splits(table.split)
    # Over the labelled molecules only: failures shall not use up the places of valid and tests.
    split = np.full(len(table), -1, dtype=np.int64)
    split[results.good] = random_splits(results.heavy_atoms[results.good], shares)
    return split


def _facts(results: _Results, split: Int[np.ndarray, " rows"], settings: LabelSettings) -> dict[str, Any]:
    """Facts of the manifest. They depend on nothing but the input, or a resumed run would differ."""
    train = results.gap[results.good & (split == 0)]
    return {
        "rows": int(results.good.sum()),
        "splits": {name: int((results.good & (split == SPLITS.index(name))).sum()) for name in SPLIT_NAMES},
        "failed": dict(sorted(Counter(stage for _, stage, _ in results.failures).items())),
        "gap_ev": {"mean": round(float(train.mean()), 4), "std": round(float(train.std()), 4), "over": "train"},
        "heavy_atoms": [int(results.heavy_atoms[results.good].min()), int(results.heavy_atoms.max())],
        "method": "ETKDGv3, MMFF94 (else UFF), GFN1-xTB single point",
        "force_fields": dict(sorted(results.force_fields.items())),
        "unconverged_geometries": results.unconverged,
        "settings": asdict(settings),
        "versions": _versions(),
    }


def _write_root(
    folder: Path,
    table: SmilesTable,
    results: _Results,
    split: Int[np.ndarray, " rows"],
    work: Path,
    keep_test_labels: bool,
) -> None:
    rows = np.flatnonzero(results.good).tolist()
    codes = split[rows]
    hidden = np.isin(codes, [SPLITS.index(name) for name in TEST_SPLITS])
    shown = np.where(hidden, np.nan, results.gap[rows])
    columns = ("idx", "smiles", "homolumogap")
    smiles = [table.smiles[row] for row in rows]
    root.write_table(
        folder / root.TABLE, columns, zip(range(len(rows)), smiles, map(root.format_gap, shown), strict=True)
    )
    root.write_split(folder / root.SPLIT, {n: np.flatnonzero(codes == SPLITS.index(n)) for n in SPLIT_NAMES})
    train = results.good & (split == 0)
    records = (outcome.record.encode() for row, outcome in enumerate(_outcomes(work, len(table))) if train[row])
    root.write_sdf_archive(folder / root.SDF_ARCHIVE, records, int(results.record_size[train].sum()))
    if keep_test_labels:
        kept = [(index, root.format_gap(results.gap[rows[index]])) for index in np.flatnonzero(hidden).tolist()]
        root.write_table(folder / TEST_LABELS, ("idx", "homolumogap"), kept)
    failed = (
        (row, *([table.idx[row]] if table.idx else []), table.smiles[row], *why) for row, *why in results.failures
    )
    root.write_table(folder / FAILURES, ("row", *(["idx"] if table.idx else []), "smiles", "stage", "reason"), failed)
