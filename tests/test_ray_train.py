"""The same run under Ray Train: equal to the plain loop with one worker, within rounding with two; a lost worker."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from ray import cloudpickle
from safetensors.torch import load_file

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


class _KillsItselfOnce:
    """A board that ends its process after the first epoch, once."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __call__(self, run: Path, record: dict[str, float]) -> None:
        from moldistill.trial.folder import append_metrics

        append_metrics(run, record)
        if record["epoch"] == 2 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_ends_with_the_metrics_of_an_undisturbed_one(
    plain: Path, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker dies between an epoch's metrics and its checkpoint; Ray Train starts another."""
    import moldistill.trial.ray_train as module

    real = module._worker
    marker = tmp_path / "killed"

    def fatal(config: dict[str, object]) -> None:
        import moldistill.trial.run as run_module

        run_module.append_metrics = _KillsItselfOnce(marker)  # type: ignore[assignment]
        real(config)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_worker", fatal)
    here = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(here)  # workers cannot import a test module
    result = train_under_ray(TrialSpec(settings(), tiny_store, tmp_path / "run"))
    assert marker.exists()
    for record, again in zip(read_metrics(plain), read_metrics(result.path), strict=True):
        assert {**record, "cpu_seconds": 0} == {**again, "cpu_seconds": 0}


def test_a_workers_own_error_reaches_the_user(tiny_store: Path, tmp_path: Path) -> None:
    wrong = load_run({"role": "student", "distill": {"graph": {"weight": 1.0}}, "targets": str(tmp_path / "none")})
    with pytest.raises(InputError, match="does not exist"):
        train_under_ray(TrialSpec(wrong, tiny_store, tmp_path / "run"))
