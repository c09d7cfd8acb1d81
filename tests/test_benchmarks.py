"""The benchmarks run and leave their figures; the GPU's needs nothing but torch, numpy and numba."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "benchmarks"
BLOCKED = ("ray", "rdkit", "pydantic", "optuna", "rich", "beartype", "jaxtyping", "typer", "yaml", "safetensors")


def test_benchmarks_leave_their_figures(tmp_path: Path) -> None:
    only = [part for name in ("featurization", "opening") for part in ("--only", name)]
    command = [sys.executable, FOLDER / "run.py", "--quick", *only, "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("featurization", "opening"):
        figures = json.loads((tmp_path / f"{name}.json").read_text())["figures"]
        assert figures
        assert all(figure["value"] > 0 for figure in figures)


def test_the_gpu_benchmark_runs_where_little_is_installed(tiny_store: Path, tmp_path: Path) -> None:
    code = f"""
import runpy, sys
for name in {BLOCKED!r}:
    sys.modules[name] = None
sys.argv = ["gpu.py", {str(tiny_store)!r}, "--device", "cpu", "--quick", "--out", {str(tmp_path)!r}]
runpy.run_path({str(FOLDER / "gpu.py")!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / "gpu.json").read_text())["runs"]
    assert set(runs) == {"student fp32", "student bf16", "teacher fp32", "teacher bf16"}
    assert all(run["molecules_per_second"] > 0 and run["parity"] < 1e-3 for run in runs.values())


def test_the_gpu_benchmark_says_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "gpu.py", tmp_path / "none", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    assert "Traceback" not in done.stderr
