"""The benchmarks run and leave their figures; the GPU's needs nothing but torch, numpy and numba."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "benchmarks"
BLOCKED = ("ray", "rdkit", "pydantic", "optuna", "rich", "beartype", "jaxtyping", "typer", "yaml", "safetensors")
_WITHOUT_DATA = {name: value for name, value in os.environ.items() if name != "MOLDISTILL_DATA"}


def test_benchmarks_leave_their_figures(tmp_path: Path) -> None:
    names = ("featurization", "opening", "loading_memory")
    only = [part for name in names for part in ("--only", name)]
    command: list[str | Path] = [sys.executable, FOLDER / "run.py", "--quick", *only, "--out", tmp_path]
    done = subprocess.run(command, env=_WITHOUT_DATA, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in names:
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
    command: list[str | Path] = [sys.executable, FOLDER / "gpu.py", tmp_path / "none", "--device", "cpu"]
    done = subprocess.run(command, env=_WITHOUT_DATA, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_ratio_lies_within_its_spread(tmp_path: Path) -> None:
    names = ("preparation", "batches", "padding", "store_bytes", "training_step", "models")
    only = [part for name in names for part in ("--only", name)]
    command: list[str | Path] = [sys.executable, FOLDER / "run.py", "--quick", *only, "--out", tmp_path]
    done = subprocess.run(command, env=_WITHOUT_DATA, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the embedded sample" in done.stdout
    for name in names:
        content = json.loads((tmp_path / f"{name}.json").read_text())
        assert content["machine"]["cores"] >= 1
        assert "torch" in content["versions"]
        for figure in content["figures"]:
            assert figure["name"] in done.stdout
            assert 0 < figure["low"] <= figure["value"] <= figure["high"], figure["name"]
            assert len(figure["detail"].get("ratios", [0, 0])) == 2  # rounds of --quick
    padding = json.loads((tmp_path / "padding.json").read_text())["figures"][0]
    assert padding["value"] < padding["detail"]["tokens_unsorted"]


def test_paired_ratios_find_what_is_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of our own: 3 s against 2 s is 1.5, whoever goes first; the calls that warm up do not count."""
    monkeypatch.syspath_prepend(str(FOLDER))
    from timing import side_by_side

    clock, order = [0.0], []

    def work(name: str, seconds: float) -> None:
        order.append(name)
        clock[0] += seconds if len(order) > 2 else 100.0

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    found = side_by_side("x", "data", "a / b", lambda: work("a", 3.0), lambda: work("b", 2.0), rounds=4)
    assert (found.value, found.low, found.high) == (1.5, 1.5, 1.5)
    assert "".join(order) == "ab" + "abba" * 2
    assert (found.detail["seconds_above"], found.detail["seconds_below"]) == (3.0, 2.0)


def test_accuracy_goes_on_where_it_was(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A teacher and both arms of the main table, two steps each; a second call trains nothing and adds no line."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import accuracy

    main = accuracy.Job("table", "tiny", "main", ("seeds=1", "fractions=[1]", "training.steps=2"))
    monkeypatch.setattr(accuracy, "JOBS", (accuracy.Job("teacher", "tiny"), main))
    monkeypatch.setattr(accuracy, "TEACHER", "teacher-tiny")
    monkeypatch.setattr(accuracy, "TEACHER_SECONDS", 2)
    monkeypatch.setattr(accuracy, "RESULTS", tmp_path / "accuracy.jsonl")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tiny").symlink_to(tiny_root)
    ended = accuracy.Bench(tmp_path / "data", tmp_path / "work", until=0.0)
    with pytest.raises(accuracy.Finished):
        accuracy.run(ended, ())
    assert accuracy.results() == []
    bench = accuracy.Bench(tmp_path / "data", tmp_path / "work", until=float("inf"))
    for _ in range(2):
        accuracy.run(bench, ())
        assert [line["arm"] for line in accuracy.results()] == ["teacher", "undistilled", "distilled"]
    assert all(line["errors"]["valid_3d"] > 0 for line in accuracy.results())
    assert {line["steps"] for line in accuracy.results()[1:]} == {2}
    told = "\n".join(accuracy.summary())
    assert "main, tiny" in told
    assert "distilled" in told
