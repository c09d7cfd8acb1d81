"""A source to a store: rows in chunks over the processes of the cluster, written in order, with bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import rdkit

from moldistill import __version__
from moldistill.chem.align import CASES
from moldistill.core.artifacts import FULL, MANIFEST, Manifest, check_out, hash_file, read_manifest, write_manifest
from moldistill.core.cluster import cluster, is_up, ordered_map, usable_cpus
from moldistill.core.errors import InputError, RunError
from moldistill.core.progress import log, progress
from moldistill.core.settings import PrepareSettings
from moldistill.core.vocabulary import FLAGS, SPLITS, vocabulary_hash
from moldistill.data.building import FLAGGED, Building, building, discard_remains
from moldistill.data.chunks import process, warm_up
from moldistill.data.columns import COLUMNS
from moldistill.data.duplicates import duplicates_summary
from moldistill.data.source import TRAIN, Source, open_source, read_tasks
from moldistill.data.splits import mark_valid_3d, sample_rows, split_hash
from moldistill.data.store import STORE_SCHEMA

CHUNK = 2000
"""Rows per task."""

PARALLEL_FROM = 100_000
"""Rows from which on starting Ray pays."""


def prepare(source: Path, out: Path, settings: PrepareSettings, *, processes: int | None = None) -> Manifest:
    """Make the store `out` from a root in PCQM4Mv2's layout or a CSV of SMILES.

    Every source row (or every sampled one) has its row in the store, in order. Equal input and settings give the same
    content, whatever the number of processes. What a killed process left is continued; a store that is already made of
    this source with these settings is left as it is.
    processes: None takes the Ray cluster that is up or that RAY_ADDRESS names, and else starts one for large sources.
    Raises InputError for a wrong source or folder, RunError where the disk is full; then running it again goes on.
    """
    out = Path(out).expanduser().resolve()
    origin = open_source(Path(source), settings)
    plan = _plan(origin, settings)
    if (finished := _already(out, plan)) is not None:
        return finished
    check_out(out)
    try:
        with _space_left(out):
            manifest = _make(out, origin, plan, settings, processes)
    except InputError:
        if (finished := _already(out, plan)) is not None:  # by another process, just now
            return finished
        raise
    _log_summary(manifest.facts)
    return manifest


def _make(
    out: Path, origin: Source, plan: dict[str, Any], settings: PrepareSettings, processes: int | None
) -> Manifest:
    rows = sample_rows(origin.split, settings.limit, settings.seed)
    with building(out, plan) as build:
        if build.rows:
            log(f"going on after {build.rows:,} rows that are prepared already")
        _append_chunks(build, origin, settings, rows, processes)
        target, split = origin.target[rows], origin.split[rows]
        eligible = build.has_positions() & np.isfinite(target)
        split = mark_valid_3d(split, eligible, settings.valid_3d, settings.seed)
        build.complete({"row": rows, "split": split, "target": target})
        facts = _facts(origin, plan, rows, split, target, build) | {"duplicates": duplicates_summary(build.folder)}
        manifest = write_manifest(
            build.folder,
            "store",
            files=[*(spec.file for spec in COLUMNS), FLAGGED],
            inputs=plan["inputs"],
            facts=facts,
        )
        build.publish()
    return manifest


def _plan(origin: Source, settings: PrepareSettings) -> dict[str, Any]:
    """All that decides the content of the store."""
    return {
        "inputs": {path.name: hash_file(path) for path in origin.files},
        "settings": asdict(settings),
        "store_schema": STORE_SCHEMA,
        "vocabulary": vocabulary_hash(),
        "version": __version__,
        "rdkit": rdkit.__version__,
        "chunk": CHUNK,
    }


def _already(out: Path, plan: dict[str, Any]) -> Manifest | None:
    """The manifest of `out` where it is the store that `plan` makes."""
    if not (out / MANIFEST).is_file():
        return None
    manifest = read_manifest(out)
    made = {"inputs": manifest.inputs, "version": manifest.version} | {
        name: manifest.facts.get(name) for name in ("settings", "store_schema", "vocabulary", "rdkit")
    }
    if manifest.kind != "store" or made != {name: value for name, value in plan.items() if name != "chunk"}:
        return None
    discard_remains(out)
    log(f"{out} is that store already: made of the same source, with the same settings and version")
    return manifest


@contextmanager
def _space_left(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise RunError(
                f"no space left while writing {out}", remedy="free disk space, then run again: it goes on where it was"
            ) from error
        raise


def _append_chunks(
    build: Building, origin: Source, settings: PrepareSettings, rows: Any, processes: int | None
) -> None:
    selected = np.zeros(len(origin.split), np.bool_)
    selected[rows] = True
    tasks = read_tasks(origin, settings, selected, CHUNK, skip=build.chunks)
    left = len(rows) - build.rows
    warm_up()
    with _processes(processes, left) as parallel, progress("prepare", total=len(rows), done=build.rows) as bar:
        for chunk in ordered_map(process, tasks) if parallel else map(process, tasks):
            build.append(chunk, rows)
            bar.advance(len(chunk.flag))


@contextmanager
def _processes(wanted: int | None, rows: int) -> Iterator[bool]:
    """A block in which tasks go to Ray (True) or stay in this process (False)."""
    if wanted is None:
        wanted = usable_cpus() if rows >= PARALLEL_FROM or is_up() else 1
        parallel = is_up() or wanted > 1
    else:
        parallel = wanted > 1
    with cluster(wanted) if parallel else nullcontext():
        yield parallel


def _facts(source: Source, plan: dict[str, Any], rows: Any, split: Any, target: Any, build: Building) -> dict[str, Any]:
    known = target[(split == TRAIN) & np.isfinite(target)]
    return {
        "store_schema": STORE_SCHEMA,
        "vocabulary": plan["vocabulary"],
        "split_hash": split_hash(rows, split),
        "source": {
            "kind": source.kind,
            "path": str(source.table),
            "rows": len(source.split),
            "blank_lines": source.blank_lines,
        },
        "settings": plan["settings"],
        "rows": len(rows),
        "splits": {name: int((split == code).sum()) for code, name in enumerate(SPLITS)}
        | {"none": int((split < 0).sum())},
        "flags": dict(zip(FLAGS, build.flags.tolist(), strict=True)),
        "alignment": dict(zip(CASES, build.cases.tolist(), strict=True)),
        "target": dict(_statistics(known)),
        "rdkit": plan["rdkit"],
    }


def _statistics(known: Any) -> Iterator[tuple[str, float | int]]:
    """Statistics (eV) of the known targets of the training rows; only their count where there are none."""
    yield "known", len(known)
    if len(known):
        for name in ("mean", "std", "median", "min", "max"):
            yield name, float(getattr(np, name)(known))


def _log_summary(facts: Any) -> None:
    def counts(name: str) -> str:
        return ", ".join(f"{key} {value:,}" for key, value in facts[name].items() if value) or "none"

    log(f"{facts['rows']:,} rows. Splits: {counts('splits')}. Flags: {counts('flags')}.")
    log(f"SDF records: {counts('alignment')}.")
    if (found := facts["duplicates"])["molecules"]:
        log(
            f"duplicates: {found['molecules']:,} molecules occur more than once, in {found['rows']:,} rows; "
            f"{found['crossing']:,} of them in several splits, {found['contradicting']:,} with labels that contradict "
            "each other (`moldistill stats` lists them)"
        )
    if blank := facts["source"]["blank_lines"]:
        log(f"{blank:,} blank lines of the table are no rows")
    if not facts["target"]["known"]:
        log("warning: no training row has a target: nothing can be trained on this store (--target names the column)")
