"""Preparation at scale: what a second process brings, and how much memory many rows take."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stderr
from dataclasses import asdict
from pathlib import Path

from inputs import Inputs, roots
from memory import watched
from repeated import repeat_root
from timing import Figure, side_by_side, single

from moldistill.core.cluster import cluster
from moldistill.core.settings import PrepareSettings
from moldistill.data.prepare import prepare


def processes(inputs: Inputs) -> list[Figure]:
    """The whole preparation by one process and by two under Ray, which is started beforehand."""
    name = inputs.names[0]
    root, out = _large(inputs, name), inputs.scratch / "processes"

    def run(source: Path, count: int) -> None:
        shutil.rmtree(out, ignore_errors=True)
        with redirect_stderr(io.StringIO()):
            prepare(source, out, PrepareSettings(), processes=count)

    figures = []
    with cluster(2):
        run(root, 2)  # workers load and compile what they need
        rows = json.loads((out / "manifest.json").read_text())["facts"]["rows"]
        for what, source in (("SMILES alone", _smiles_of(root)), ("with geometries", root)):
            figures.append(
                side_by_side(
                    f"two processes, {what}",
                    name,
                    "one process's time / two processes'",
                    lambda source=source: run(source, 1),
                    lambda source=source: run(source, 2),
                    rounds=inputs.rounds,
                    rows=rows,
                )
            )
    return figures


def _smiles_of(root: Path) -> Path:
    """The table of a root as a plain CSV."""
    path = root / "smiles.csv"
    with gzip.open(root / "raw" / "data.csv.gz", "rt", encoding="utf-8", newline="") as stream:
        rows = [(row["smiles"], row["homolumogap"]) for row in csv.DictReader(stream)]
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([("smiles", "homolumogap"), *rows])
    return path


def preparing_memory(inputs: Inputs) -> list[Figure]:
    """Anonymous memory that one process holds at its peak while it prepares few and many rows."""
    name = inputs.names[0]
    figures = []
    for source in (roots()[name], _large(inputs, name)):
        command = [sys.executable, __file__, str(source), str(inputs.scratch / "memory")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        measured = json.loads(done.stdout)
        reading = f"MB of private memory at the peak of preparing {measured['rows']:,} rows"
        reading += f" (of these {measured['before']:.0f} by imports)"
        figures.append(single("memory of preparing", name, reading, measured["peak"], **measured))
        shutil.rmtree(inputs.scratch / "memory")
    return figures


def _large(inputs: Inputs, name: str) -> Path:
    """A root of over 100,000 rows (of few, where the benchmarks only show that they run)."""
    out = inputs.scratch / f"{name}-repeated"
    if not out.is_dir():
        times = 2 if inputs.rounds < 3 else 40 if name == "sample" else 4
        repeat_root(roots()[name], times, out)
    return out


def _measure(source: Path, out: Path) -> None:
    start = time.perf_counter()
    with watched() as memory, redirect_stderr(io.StringIO()):
        manifest = prepare(source, out, PrepareSettings(), processes=1)
    seconds = time.perf_counter() - start
    print(json.dumps({"rows": manifest.facts["rows"], "seconds": seconds} | asdict(memory)))


if __name__ == "__main__":
    _measure(Path(sys.argv[1]), Path(sys.argv[2]))
