"""The benchmarks run and leave their figures; the GPU's needs nothing but torch, numpy and numba."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "benchmarks"
BLOCKED = ("ray", "rdkit", "pydantic", "optuna", "rich", "beartype", "jaxtyping", "typer", "yaml", "safetensors")


@pytest.mark.parametrize("name", ["featurize", "opening"])
def test_benchmarks_leave_their_figures(name: str, tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "run.py", "--quick", "--only", name, "--out", tmp_path / "figures"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "figures" / f"{name}.json").read_text())
    assert saved["machine"]["cores"] >= 1
    assert all(0 < figure["low"] <= figure["median"] <= figure["high"] for figure in saved["figures"])
    assert bool(saved["figures"]) == (name == "featurize")


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
    runs = json.loads((tmp_path / "gpu.json").read_text())["figures"]["runs"]
    assert set(runs) == {"student fp32", "student bf16", "teacher fp32", "teacher bf16"}
    assert all(run["molecules_per_second"] > 0 and run["parity"] < 1e-3 for run in runs.values())


def test_the_gpu_benchmark_says_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "gpu.py", tmp_path / "none", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    assert "Traceback" not in done.stderr
