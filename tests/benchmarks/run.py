"""`make bench`: ratios against peers and between our own parts, measured side by side, on one thread.

Prints a table and writes `.bench/<benchmark>.json`. See the README beside this file.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inputs import Inputs

ROOT = Path(__file__).resolve().parents[2]

BENCHMARKS = {
    "featurization": "featurize",
    "preparation": "featurize",
    "processes": "scale",
    "preparing_memory": "scale",
    "batches": "loading",
    "padding": "loading",
    "store_bytes": "loading",
    "opening": "loading",
    "loading_memory": "loading",
    "training_step": "step",
    "models": "models",
    "ensemble_inference": "predicting",
    "predict_memory": "predicting",
    "predict_time": "predicting",
    "search_simulated": "search_simulated",
    "submitting": "delivering",
    "weighing": "delivering",
    "trial_overhead": "searching",
    "trial_memory": "searching",
    "driver_kills": "searching",
    "search_peers": "searching",
}
"""Benchmarks (functions) and the modules that hold them, in the order of a run."""


def main() -> int:
    """Run what was asked for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few molecules, 2 rounds: shows that it runs")
    parser.add_argument("--only", action="append", choices=list(BENCHMARKS), help="one benchmark; may be repeated")
    parser.add_argument("--out", type=Path, default=ROOT / ".bench", help="folder for JSON (default: .bench)")
    asked = parser.parse_args()
    # Read when the libraries load, which the imports below do.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    import torch
    from inputs import Inputs

    torch.set_num_threads(1)
    torch.manual_seed(0)
    out: Path = asked.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="moldistill-bench-") as scratch:
        size = (300, "tiny", 2) if asked.quick else (4000, "small", 5)
        inputs = Inputs(Path(scratch), *size)
        what = "sets of MOLDISTILL_DATA" if "sample" not in inputs.names else "the embedded sample (no MOLDISTILL_DATA)"
        print(f"data: {', '.join(inputs.names)}: {what}; at most {inputs.limit:,} rows of each\n")
        for name in asked.only or BENCHMARKS:
            run(name, inputs, out)
    if not asked.only and not asked.quick:
        _store_for_gpu(out / "store")
    return 0


def run(name: str, inputs: Inputs, out: Path) -> None:
    """One benchmark: its table on stdout, its figures in `out`."""
    from timing import save, table

    start = time.perf_counter()
    figures = getattr(import_module(BENCHMARKS[name]), name)(inputs)
    print(table(figures))
    print(f"({name}: {time.perf_counter() - start:.0f} s)\n", flush=True)
    save(out / f"{name}.json", figures, name=name, sources=inputs.names, limit=inputs.limit, threads=1)


def _store_for_gpu(path: Path) -> None:
    """The store that `make gpu` reads on a machine without RDKit."""
    if not (path / "manifest.json").is_file():
        from inputs import quietly_prepare

        from moldistill.chem.sample import sample_root

        quietly_prepare(sample_root(), path, None)
    print(f"figures: {path.parent}; for a GPU machine: copy {path} there, then `make gpu`")


if __name__ == "__main__":
    sys.exit(main())
