"""The same run under Ray Train: equal to the plain loop with one worker, within rounding with two; a lost worker."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ray import cloudpickle
from safetensors.torch import load_file

from moldistill.core.artifacts import read_manifest
from moldistill.core.config import load_run
from moldistill.core.errors import InputError
from moldistill.trial.folder import read_metrics
from moldistill.trial.ray_train import train_under_ray
from moldistill.trial.run import run_trial
from moldistill.trial.spec import TrialSpec
from weights import check_equal_within_rounding

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def settings(**training: object):  # type: ignore[no-untyped-def]
    return load_run(
        {
            "role": "student",
            "model": {"width": 16, "depth": 2, "heads": 2},
            "training": {"epochs": 3, "batch_size": 16, **training},
        }
    )


@pytest.fixture(scope="module")
def plain(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_trial(TrialSpec(settings(), tiny_store, tmp_path_factory.mktemp("plain") / "run")).path


def test_one_worker_equals_the_plain_loop(plain: Path, tiny_store: Path, tmp_path: Path) -> None:
    result = train_under_ray(TrialSpec(settings(), tiny_store, tmp_path / "run"))
    one, other = load_file(plain / "weights.safetensors"), load_file(result.path / "weights.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_workers_equal_one_within_rounding(plain: Path, tiny_store: Path, tmp_path: Path) -> None:
    result = train_under_ray(TrialSpec(settings(workers=2), tiny_store, tmp_path / "run"))
    check_equal_within_rounding(plain, result.path)
    for record, again in zip(read_metrics(plain), read_metrics(result.path), strict=True):
        assert again["train_loss"] == pytest.approx(record["train_loss"], rel=1e-4)
        assert again["valid_mae"] == pytest.approx(record["valid_mae"], rel=1e-3)


def patched_workers(monkeypatch: pytest.MonkeyPatch, patch: Callable[[], None]) -> None:
    """Let each worker call `patch` before it trains."""
    import moldistill.trial.ray_train as module

    real = module._worker

    def worker(config: dict[str, object]) -> None:
        patch()
        real(config)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_worker", worker)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module


def same_records(one: Path, other: Path) -> bool:
    """Whether the metrics of two runs are equal but for the time."""
    pairs = zip(read_metrics(one), read_metrics(other), strict=True)
    return all({**record, "cpu_seconds": 0} == {**again, "cpu_seconds": 0} for record, again in pairs)


def test_a_worker_killed_behind_an_epochs_metrics_costs_nothing(
    plain: Path, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker dies between an epoch's metrics and its checkpoint; Ray Train starts another."""
    marker = tmp_path / "killed"

    def patch() -> None:
        import moldistill.trial.run as run_module
        from moldistill.trial.folder import append_metrics

        def fatal(run: Path, record: dict[str, float]) -> None:
            append_metrics(run, record)
            if record["epoch"] == 2 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        run_module.append_metrics = fatal

    patched_workers(monkeypatch, patch)
    result = train_under_ray(TrialSpec(settings(), tiny_store, tmp_path / "run"))
    assert marker.exists()
    assert same_records(plain, result.path)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_killed_in_the_middle_of_an_epoch_costs_nothing(
    workers: int, plain: Path, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At step 5 of 9, behind the checkpoint of step 4: the same final metrics as an undisturbed run."""
    marker = tmp_path / "killed"

    def patch() -> None:
        import moldistill.trial.run as run_module

        real = run_module._Saver.after_step

        def fatal(saver: run_module._Saver) -> None:
            if saver.trainer.step == 5 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            real(saver)

        run_module._Saver.after_step = fatal  # type: ignore[method-assign]

    patched_workers(monkeypatch, patch)
    spec = TrialSpec(settings(workers=workers, checkpoint_seconds=0.0), tiny_store, tmp_path / "run")
    result = train_under_ray(spec)
    assert marker.exists()
    if workers == 1:
        assert same_records(plain, result.path)
    else:
        check_equal_within_rounding(plain, result.path)


def test_a_run_goes_on_with_another_number_of_workers(
    plain: Path, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker to step 4, in the middle of the second epoch; two to the end."""
    import moldistill.trial.run as run_module

    def stop(saver: run_module._Saver) -> None:
        if saver.trainer.step == 4:
            saver.save()
            raise KeyboardInterrupt

    spec = TrialSpec(settings(), tiny_store, tmp_path / "run", resume=True)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run_module._Saver, "after_step", stop)
        run_trial(spec)
    result = train_under_ray(TrialSpec(settings(workers=2), tiny_store, spec.out, resume=True))
    check_equal_within_rounding(plain, result.path)


def test_workers_without_molecules_of_a_batch_take_the_step_too(plain: Path, tiny_store: Path, tmp_path: Path) -> None:
    """Each has eight, or fewer, and cuts them into 24 parts."""
    result = train_under_ray(TrialSpec(settings(workers=2, accumulate=24), tiny_store, tmp_path / "run"))
    check_equal_within_rounding(plain, result.path)


def test_fewer_workers_than_wanted_go_on_where_that_is_allowed(plain: Path, tiny_store: Path, tmp_path: Path) -> None:
    """The cluster has 4 processors: 64 workers will never come."""
    result = train_under_ray(TrialSpec(settings(workers=64, min_workers=1), tiny_store, tmp_path / "run"))
    check_equal_within_rounding(plain, result.path)


def test_two_workers_settle_a_budget_together(tiny_store: Path, tmp_path: Path) -> None:
    spec = TrialSpec(settings(workers=2, budget_seconds=1.0), tiny_store, tmp_path / "run")
    result = train_under_ray(spec)
    steps = load_run(result.path / "config.yaml").training.steps
    assert steps is not None
    assert read_manifest(result.path, "run").facts["steps"] == steps


def test_a_workers_own_error_reaches_the_user(tiny_store: Path, tmp_path: Path) -> None:
    wrong = load_run({"role": "student", "distill": {"graph": {"weight": 1.0}}, "targets": str(tmp_path / "none")})
    with pytest.raises(InputError, match="does not exist"):
        train_under_ray(TrialSpec(wrong, tiny_store, tmp_path / "run"))
