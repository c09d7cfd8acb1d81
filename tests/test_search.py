"""Searches in real Ray with a runner that trains nothing: what the storage says, faults, resuming."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import ray
from optuna.trial import TrialState

from moldistill.core.artifacts import read_manifest, write_manifest
from moldistill.core.config import read_yaml
from moldistill.core.errors import InputError, RunError
from moldistill.core.locking import exclusive
from moldistill.search.bridge import DIED
from moldistill.search.compile import sample
from moldistill.search.conductor import Conductor
from moldistill.search.ledger import DriverLostError, Ledger
from moldistill.search.parse import load_space
from moldistill.search.study import FINALISTS, LOCK, StudySummary
from moldistill.search.trainable import Job, run_job
from moldistill.search.tuner import search
from moldistill.training.loop import EpochReport
from moldistill.trial.spec import TrialSpec

# Ray's workers cannot import the tests: their functions travel by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

EPOCHS = 9


def curve(settings: Any, epoch: int) -> float:
    """A learning curve whose level is the graph weight's distance from 1."""
    level = abs(settings.distill.graph.weight - 1)
    return 0.1 + 0.1 * level + 0.3 / epoch


def fake_run(spec: TrialSpec, *, report: Any) -> None:
    """What `run_trial` does, without training: continues behind the last recorded epoch, writes a run folder."""
    spec.out.mkdir(parents=True, exist_ok=True)
    record = spec.out / "metrics.jsonl"
    lines = record.read_text().splitlines() if spec.resume and record.exists() else []
    for epoch in range(len(lines) + 1, spec.settings.training.epochs + 1):
        metrics = {"train_loss": 1.0, "valid_mae": curve(spec.settings, epoch), "valid_3d_mae": 0.5}
        lines.append(json.dumps({"epoch": epoch, **metrics}))
        record.write_text("\n".join(lines) + "\n")
        report(EpochReport(epoch, metrics, True))
    fake_finish(spec)


def fake_finish(spec: TrialSpec) -> None:
    last = json.loads((spec.out / "metrics.jsonl").read_text().splitlines()[-1])
    write_manifest(spec.out, "run", files=["metrics.jsonl"], facts={"metrics": last})


def space(**changes: Any) -> dict[str, Any]:
    return {
        "base": "student-tiny",
        "fixed": {"training.epochs": EPOCHS},
        "parameters": {"distill.graph.weight": {"log_uniform": [0.05, 5]}},
        "scheduler": {"name": "asha", "grace": 2, "reduction": 2},
        "budget": {"trials": 8},
        "resources": {"cpus": 1, "concurrent": 2},
        **changes,
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs") / "store"
    folder.mkdir()
    write_manifest(folder, "store", files=[])
    return folder


@pytest.fixture(scope="module")
def targets(store: Path) -> str:
    folder = store.parent / "targets"
    folder.mkdir()
    identity = read_manifest(store).identity
    write_manifest(folder, "targets", files=[], inputs={"store": identity})
    return str(folder)


@pytest.fixture(scope="module")
def study(ray_cluster: None, store: Path, targets: str, tmp_path_factory: pytest.TempPathFactory) -> StudySummary:
    out = tmp_path_factory.mktemp("studies") / "study"
    return search(space(), store, out, targets=targets, runner=fake_run, finisher=fake_finish)


def stored(summary: StudySummary) -> list[optuna.trial.FrozenTrial]:
    return Ledger.open(summary.out).study.get_trials()


@pytest.mark.ray
class TestStorage:
    """The Optuna storage of a finished search tells what happened."""

    def test_states(self, study: StudySummary) -> None:
        states = [trial.state for trial in stored(study)]
        assert len(states) == 8
        assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
        assert study.counts["pruned"] == states.count(TrialState.PRUNED) > 0

    def test_intermediate_values_stand_at_epochs(self, study: StudySummary) -> None:
        for trial, row in zip(stored(study), study.trials, strict=True):
            steps = sorted(trial.intermediate_values)
            assert steps == list(range(1, row.epochs + 1))
            assert (row.epochs == EPOCHS) == (row.state == "complete")
            assert trial.value == trial.intermediate_values[steps[-1]] == row.value

    def test_trials_are_stopped_at_rungs_only(self, study: StudySummary) -> None:
        assert {row.epochs for row in study.trials if row.state == "pruned"} <= {2, 4, 8}

    def test_best(self, study: StudySummary) -> None:
        complete = [row for row in study.trials if row.state == "complete"]
        assert study.best is not None
        assert study.best.value == min(row.value for row in complete if row.value is not None)

    def test_every_trial_is_a_finished_run_folder(self, study: StudySummary) -> None:
        for row in study.trials:
            manifest = read_manifest(study.out / row.folder, "run")
            assert manifest.facts["metrics"]["epoch"] == row.epochs

    def test_manifest(self, study: StudySummary) -> None:
        facts = read_manifest(study.out, "study").facts
        assert facts["counts"] == study.counts
        assert [trial["number"] for trial in facts["trials"]] == list(range(8))
        assert facts["best"]["parameters"]["distill.graph.weight"] > 0
        assert not (study.out / ".tune").exists()

    def test_resolved_space_reads_as_itself(self, study: StudySummary) -> None:
        path = study.out / "space.yaml"
        assert load_space(path).mapping == load_space(read_yaml(path)).mapping == read_yaml(path)


@pytest.mark.ray
class TestFolders:
    def test_same_folder_again_is_refused(self, study: StudySummary, store: Path, targets: str) -> None:
        with pytest.raises(InputError, match="--resume"):
            search(space(), store, study.out, targets=targets, runner=fake_run)

    def test_resuming_a_finished_study_runs_nothing(self, study: StudySummary, store: Path, targets: str) -> None:
        again = search(space(), store, study.out, targets=targets, mode="resume", runner=explode, finisher=explode)
        assert again.trials == study.trials

    def test_resuming_with_another_space_is_refused(self, study: StudySummary, store: Path, targets: str) -> None:
        changed = space(sampler={"seed": 5})
        with pytest.raises(InputError, match="sampler"):
            search(changed, store, study.out, targets=targets, mode="resume", runner=fake_run)

    def test_resuming_nothing(self, store: Path, targets: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no study to resume"):
            search(space(), store, tmp_path / "none", targets=targets, mode="resume", runner=fake_run)

    def test_a_second_search_is_refused(self, study: StudySummary, store: Path, targets: str) -> None:
        with (
            exclusive(study.out / LOCK, "held by the test"),
            pytest.raises(InputError, match="another search writes the study"),
        ):
            search(space(), store, study.out, targets=targets, mode="resume", runner=explode)

    def test_dry_run_writes_nothing(self, ray_cluster: None, store: Path, targets: str, tmp_path: Path) -> None:
        summary = search(space(), store, tmp_path / "dry", targets=targets, dry_run=True, runner=explode)
        assert summary.trials == ()
        assert summary.concurrent == 2
        assert list(tmp_path.iterdir()) == []

    def test_missing_targets(self, store: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="teacher's outputs"):
            search(space(), store, tmp_path / "out", dry_run=True)

    def test_targets_of_another_store(self, targets: str, tmp_path: Path) -> None:
        other = tmp_path / "store"
        other.mkdir()
        (other / "row.npy").write_bytes(b"1")
        write_manifest(other, "store", files=["row.npy"])
        with pytest.raises(InputError, match="another store"):
            search(space(), other, tmp_path / "out", targets=targets, dry_run=True)

    def test_too_few_resources(self, ray_cluster: None, store: Path, targets: str, tmp_path: Path) -> None:
        greedy = space(resources={"cpus": 999})
        with pytest.raises(InputError, match="more than the cluster"):
            search(greedy, store, tmp_path / "out", targets=targets, dry_run=True)


def explode(*args: Any, **keywords: Any) -> None:
    raise AssertionError("nothing should run")


def faulty_run(spec: TrialSpec, *, report: Any) -> None:
    """By graph weight: an error once, an error each time, a NaN, a dead process once, a dead process each time."""
    fault = int(spec.settings.distill.graph.weight)
    spec.out.mkdir(parents=True, exist_ok=True)
    mark = spec.out / "died"
    first = not mark.exists()
    mark.touch()
    if fault == 1 and first:
        raise OSError("disk hiccup")
    if fault == 2:
        raise OSError("disk gone")
    if fault == 3:
        report(EpochReport(1, {"train_loss": float("nan"), "valid_mae": 0.4}, True))
    if fault == 5 or (fault == 4 and first):
        os.kill(os.getpid(), signal.SIGKILL)
    fake_run(spec, report=report)


@pytest.mark.ray
def test_faults(ray_cluster: None, store: Path, targets: str, tmp_path: Path) -> None:
    """Faults end or delay their own trial only, and the reason is kept."""
    choices = {"distill.graph.weight": {"choice": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}}
    faulty = space(
        parameters=choices,
        sampler={"name": "grid"},  # each once
        scheduler={"name": "none"},
        budget={"trials": 6},
        failures={"told": "failed"},
    )
    summary = search(faulty, store, tmp_path / "s", targets=targets, runner=faulty_run, finisher=fake_finish)
    seen: dict[int, set[tuple[str, str | None]]] = {}
    for row in summary.trials:
        seen.setdefault(int(row.parameters["distill.graph.weight"]), set()).add((row.state, row.reason))
    expected = {
        1: {("complete", None)},
        2: {("failed", "OSError: disk gone")},
        3: {("failed", "diverged: train_loss is nan at epoch 1")},
        4: {("complete", None)},
        5: {("failed", DIED)},
        6: {("complete", None)},
    }
    assert len(summary.trials) == 6
    attempts = {int(row.parameters["distill.graph.weight"]): len(row.attempts) for row in summary.trials}
    assert attempts == {1: 1, 2: 2, 3: 0, 4: 1, 5: 1, 6: 0}
    assert {fault: seen[fault] for fault in sorted(seen)} == expected


def broken_run(spec: TrialSpec, *, report: Any) -> None:
    raise InputError("the store is cut short")


@pytest.mark.ray
def test_all_trials_failed(ray_cluster: None, store: Path, targets: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="all 3 trials failed; the first: the store is cut short"):
        search(space(budget={"trials": 3}), store, tmp_path / "s", targets=targets, runner=broken_run)


@pytest.mark.ray
def test_another_search_takes_over(ray_cluster: None, store: Path, targets: str, tmp_path: Path) -> None:
    """A driver that was thought dead ends at its next word, and what its successor wrote stays."""
    out = tmp_path / "study"

    def taking_over() -> None:
        Ledger.open(out).take()

    searcher = Conductor.report

    def report(conductor: Conductor, number: int, metrics: Any) -> bool:
        if conductor.reports == 5:
            taking_over()
            conductor.spending.told = -math.inf
        return searcher(conductor, number, metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Conductor, "report", report)
        with pytest.raises(DriverLostError, match="another search has taken over"):
            search(space(), store, out, targets=targets, runner=fake_run, finisher=fake_finish)
    summary = search(space(), store, out, targets=targets, mode="resume", runner=fake_run, finisher=fake_finish)
    assert len(summary.trials) == 8
    assert not [trial for trial in stored(summary) if trial.state is TrialState.RUNNING]


@pytest.mark.ray
def test_a_study_is_extended(ray_cluster: None, store: Path, targets: str, tmp_path: Path) -> None:
    out = tmp_path / "study"
    first = search(space(), store, out, targets=targets, runner=fake_run, finisher=fake_finish)
    wider = space(parameters={"distill.graph.weight": {"log_uniform": [0.01, 50]}}, budget={"trials": 11})
    more = search(wider, store, out, targets=targets, mode="extend", runner=fake_run, finisher=fake_finish)
    assert more.trials[:8] == first.trials
    assert len(more.trials) == 11


def noisy_run(spec: TrialSpec, *, report: Any) -> None:
    """As `fake_run`, with errors that depend on the seed; a replicate has nobody to report to."""
    spec.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(spec.settings.training.seed)
    value = abs(spec.settings.distill.graph.weight - 1) + 0.01 * float(rng.normal()) + 0.2
    metrics = {"train_loss": 1.0, "valid_mae": value}
    (spec.out / "metrics.jsonl").write_text(json.dumps({"epoch": 1, **metrics}) + "\n")
    if report is not None:
        report(EpochReport(1, metrics, True))
    fake_finish(spec)


@pytest.mark.ray
def test_finalists(ray_cluster: None, store: Path, targets: str, tmp_path: Path) -> None:
    """The best trials are trained again with the same other seeds, and what is there is not trained twice."""
    raw = space(scheduler={"name": "none"}, replicates={"top": 2, "seeds": 3})
    out = tmp_path / "study"
    summary = search(raw, store, out, targets=targets, runner=noisy_run, finisher=fake_finish)
    finalists = read_manifest(out, "study").facts["finalists"]
    best = sorted((row for row in summary.trials if row.state == "complete"), key=lambda row: row.value or 9.0)[:2]
    assert [(one["trial"], one["seed"]) for one in finalists] == [
        (row.number, seed) for row in best for seed in (1, 2, 3)
    ]
    assert len({one["value"] for one in finalists}) == 6
    read = [read_manifest(out / FINALISTS / f"{best[0].number:04d}-seed{seed}", "run") for seed in (1, 2, 3)]
    assert [manifest.facts["metrics"]["valid_mae"] for manifest in read] == [one["value"] for one in finalists[:3]]
    again = search(raw, store, out, targets=targets, mode="resume", runner=explode, finisher=explode)
    assert again.trials == summary.trials
    assert read_manifest(out, "study").facts["finalists"] == finalists


@pytest.mark.ray
def test_same_seed_one_at_a_time_gives_the_same_trials(
    ray_cluster: None, store: Path, targets: str, tmp_path: Path
) -> None:
    one = space(resources={"concurrent": 1}, budget={"trials": 6}, sampler={"startup_trials": 2, "seed": 3})
    first, second = (
        search(one, store, tmp_path / name, targets=targets, runner=fake_run, finisher=fake_finish) for name in "ab"
    )
    assert [row.parameters for row in first.trials] == [row.parameters for row in second.trials]
    assert [(row.state, row.epochs) for row in first.trials] == [(row.state, row.epochs) for row in second.trials]


def silent_run(spec: TrialSpec, *, report: Any) -> None:
    report(EpochReport(1, {"train_loss": 1.0}, False))


def test_a_trial_that_reports_no_objective_has_failed(tmp_path: Path) -> None:
    loaded = load_space(space())
    settings = loaded.settings(sample(loaded.parameters, 1)[0])
    job = Job(0, TrialSpec(settings, tmp_path, tmp_path / "run"), silent_run, "valid_mae")
    seen: list[dict[str, Any]] = []
    outcome = run_job(job, seen.append)
    assert outcome["outcome"] == "failed"
    assert "never reported valid_mae" in outcome["reason"]
    assert seen == []


@pytest.mark.ray
def test_contradictory_configurations_are_drawn_again(ray_cluster: None, store: Path, tmp_path: Path) -> None:
    """width must be a multiple of heads: what is not is never trained and does not count."""
    raw = space(
        parameters={"model.width": {"choice": [60, 96]}, "model.heads": {"choice": [5, 8]}},
        sampler={"name": "random"},
        scheduler={"name": "none"},
        budget={"trials": 6},
    )
    summary = search(raw, store, tmp_path / "s", runner=fake_run, finisher=fake_finish)
    assert [row.state for row in summary.trials] == ["complete"] * 6
    assert all(row.parameters["model.width"] % row.parameters["model.heads"] == 0 for row in summary.trials)
    assert len(stored(summary)) > 6


@pytest.mark.ray
def test_a_driver_that_is_killed(tmp_path: Path) -> None:
    """With -9, in the midst of a real search, and resumed in a new process: nothing lost, twice, or orphaned."""
    script = Path(__file__).with_name("killed_search.py")
    done = subprocess.run([sys.executable, script, tmp_path, "1", "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (len(found["moments"]), found["status"], found["trials"]) == (1, 0, 12)
    assert (found["lost"], found["twice"], found["orphans"], found["gaps"]) == ([], [], 0, [])
