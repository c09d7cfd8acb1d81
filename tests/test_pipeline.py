"""The whole way on a cut sample: every stage real, skipped when nothing changed, continued after a kill."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from moldistill.core.artifacts import read_manifest
from moldistill.core.config import load_pipeline
from moldistill.core.errors import InputError
from moldistill.data.predictions import Predictions
from moldistill.data.store import Store
from moldistill.delivery.report import report
from moldistill.delivery.sources import as_inputs
from moldistill.pipeline import PipelineResult, run_pipeline

TINY = [
    "prepare.limit=240",
    *(f"{role}.model={{width: 16, depth: 2, heads: 2}}" for role in ("teacher", "student")),
    *(f"{role}.training.epochs=3" for role in ("teacher", "student")),
    "search.fixed={model.width: 16, model.depth: 2, model.heads: 2, training.epochs: 4}",
    "search.scheduler={name: asha, grace: 1, reduction: 2}",
    "search.budget.trials=6",
]
STAGES = ["store", "teacher", "targets", "student", "study", "ensemble", "submission", "report.html"]


@pytest.fixture(scope="module")
def finished(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> PipelineResult:
    return run_pipeline(load_pipeline("demo", TINY), tmp_path_factory.mktemp("pipeline") / "out")


@pytest.mark.ray
def test_every_stage_runs_once(finished: PipelineResult) -> None:
    assert list(finished.ran) == STAGES
    assert finished.skipped == ()
    names = [figure.name for figure in finished.figures]
    assert names[:2] == ["median predictor", "teacher (3D)"]
    assert all(figure.valid or figure.valid_3d for figure in finished.figures)


@pytest.mark.ray
def test_the_search_stopped_bad_trials_early(finished: PipelineResult) -> None:
    trials = read_manifest(finished.out / "study", "study").facts["trials"]
    pruned = [trial for trial in trials if trial["state"] == "pruned"]
    assert len(trials) == 6
    assert pruned
    assert all(trial["epochs"] < 4 for trial in pruned)
    assert finished.trials["pruned"] == len(pruned)


@pytest.mark.ray
def test_every_trial_is_a_finished_run_with_predictions(finished: PipelineResult) -> None:
    store = Store.open(finished.out / "store")
    for trial in read_manifest(finished.out / "study", "study").facts["trials"]:
        run = finished.out / "study" / trial["folder"]
        assert read_manifest(run, "run").facts["role"] == "student"
        for split in ("valid", "test-dev", "test-challenge"):
            found = Predictions.load(run / "predictions" / f"{split}.npz")
            assert np.array_equal(found.row, store.rows(split))


@pytest.mark.ray
def test_the_submission_is_what_ogb_expects(finished: PipelineResult) -> None:
    store = Store.open(finished.out / "store")
    for split in ("test-dev", "test-challenge"):
        with np.load(finished.submission / f"y_pred_pcqm4m-v2_{split}.npz") as saved:
            assert saved.files == ["y_pred"]
            assert saved["y_pred"].dtype == np.float32
            assert saved["y_pred"].shape == (len(store.rows(split)),)
            assert np.isfinite(saved["y_pred"]).all()


@pytest.mark.ray
def test_the_report_stands_alone(finished: PipelineResult) -> None:
    page = finished.report.read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?https?:", page)
    for word in ("stopped early", "ensemble", "<svg", "Learning curves"):
        assert word.lower() in page.lower()


@pytest.mark.ray
def test_a_pipelines_folder_can_be_reported_on_again(finished: PipelineResult, tmp_path: Path) -> None:
    again = report(as_inputs(finished.out), tmp_path / "again.html")
    for heading in ("Ensemble", "Search", "Submission"):
        assert f">{heading}<" in again.read_text(encoding="utf-8")


@pytest.mark.ray
def test_unchanged_stages_are_skipped_and_changed_ones_run_again(finished: PipelineResult, tmp_path: Path) -> None:
    start = time.monotonic()
    again = run_pipeline(load_pipeline("demo", TINY), finished.out)
    assert list(again.skipped) == STAGES
    assert again.ran == {}
    assert time.monotonic() - start < 15
    assert again.figures == finished.figures
    (finished.out / "submission" / "y_pred_pcqm4m-v2_test-dev.npz").unlink()
    mended = run_pipeline(load_pipeline("demo", TINY), finished.out)
    assert list(mended.ran) == ["submission"], "a damaged result is made again, and nothing else"


def test_the_source_is_checked_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        run_pipeline(load_pipeline("demo", [f"source={tmp_path / 'none'}"]), tmp_path / "out")
    (tmp_path / "molecules.csv").write_text("smiles,homolumogap\nCCO,7\n")
    with pytest.raises(InputError, match="no geometry for a teacher"):
        run_pipeline(load_pipeline("demo", [f"source={tmp_path / 'molecules.csv'}"]), tmp_path / "out")
    with pytest.raises(InputError, match="smoke"):
        run_pipeline(load_pipeline("demo", ["search.space=smok"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_killed_pipeline_goes_on_where_it_was(tmp_path: Path) -> None:
    """SIGKILL while the teacher trains: the next run keeps the store and the epochs that are done."""
    out = tmp_path / "out"
    changes = [change for change in TINY if "teacher.training" not in change] + ["teacher.training.epochs=200"]
    command = [sys.executable, "-m", "moldistill", "pipeline", "demo", *changes, "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    metrics = out / "teacher" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.is_file() and metrics.read_text().count("\n") >= 3):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = metrics.read_text().splitlines()
    assert 3 <= len(done) < 200
    ledger = json.loads((out / "pipeline.json").read_text())
    assert "identity" in ledger["store"]
    assert "identity" not in ledger["teacher"]
    shutil.copytree(out / "teacher", tmp_path / "copy")
    from moldistill.core.config import load_run
    from moldistill.training.checkpoint import load_checkpoint
    from moldistill.training.loop import Trainer

    checkpoint = load_checkpoint(tmp_path / "copy")
    assert checkpoint is not None
    trainer = Trainer(load_run(out / "teacher" / "config.yaml"), Store.open(out / "store"))
    trainer.restore(checkpoint)
    next_report = next(iter(trainer.fit()))
    assert next_report.epoch == checkpoint.epoch + 1 > 1
