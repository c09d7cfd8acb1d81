"""Budgets of seconds: steps that fit, decided once and kept; what the machine decides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moldistill.core.config import load_run
from moldistill.core.errors import InputError
from moldistill.core.settings import RunSettings
from moldistill.data.store import Store
from moldistill.training import budget
from moldistill.training.budget import Cost, fast_bf16, settle
from moldistill.training.checkpoint import load_checkpoint
from moldistill.training.loop import Trainer
from moldistill.trial.folder import read_metrics
from moldistill.trial.run import run_trial
from moldistill.trial.spec import TrialSpec

CPU = torch.device("cpu")


def settings(**training: Any) -> RunSettings:
    model = {"width": 16, "depth": 2, "heads": 2}
    return load_run({"role": "student", "model": model, "training": {"batch_size": 16, **training}})


def never(_: RunSettings) -> Any:
    raise AssertionError("nothing had to be timed")


def test_steps_within_a_budget_by_hand() -> None:
    cost = Cost(step=0.1, evaluation=2.0)
    # 10 steps an epoch: 1 s of steps and 2 s of evaluation; 2 s of the 32 are for the last evaluation.
    assert cost.steps_within(32.0, steps_per_epoch=10, evaluate_every=1) == 100
    assert cost.steps_within(32.0, steps_per_epoch=10, evaluate_every=2) == 150
    assert cost.steps_within(0.1, steps_per_epoch=10, evaluate_every=1) == 1


def test_nothing_is_timed_where_nothing_is_open() -> None:
    run = settings(steps=5, budget_seconds=9.0)
    assert settle(run, CPU, never) == run
    chosen = settle(settings(precision="auto"), CPU, never)
    assert chosen.training.precision == ("bf16" if fast_bf16(CPU) else "fp32")


@pytest.mark.parametrize(("step", "compiled"), [(0.01, "never"), (20.0, "always")])
def test_long_runs_alone_are_compiled(
    step: float, compiled: str, tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "measure", lambda trainer: Cost(step, 1.0))
    run = settings(compile="auto", epochs=50)
    found = settle(run, CPU, lambda asked: Trainer(asked, Store.open(tiny_store)))
    assert found.training.compile == compiled


def test_a_budget_is_kept_to_and_its_steps_are_saved(tiny_store: Path, tmp_path: Path) -> None:
    """Within a factor: other processes share this machine."""
    spec = TrialSpec(settings(budget_seconds=6.0), tiny_store, tmp_path / "run")
    result = run_trial(spec)
    saved = load_run(spec.out / "config.yaml")
    assert saved.training.steps is not None
    assert saved.training.budget_seconds == 6.0
    checkpoint = load_checkpoint(spec.out)
    assert checkpoint is not None
    assert checkpoint.step == saved.training.steps
    assert 3.0 < result.metrics["cpu_seconds"] < 12.0
    assert read_metrics(spec.out)[-1]["learning_rate"] == pytest.approx(
        saved.optimizer.final * saved.optimizer.learning_rate, rel=0.1
    )


def test_a_resumed_run_keeps_the_number_of_steps(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TrialSpec(settings(budget_seconds=1.0), tiny_store, tmp_path / "run")

    def stop(report: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(spec, report=stop)
    steps = load_run(spec.out / "config.yaml").training.steps
    monkeypatch.setattr(budget, "measure", never)
    other = replace(spec.settings, training=replace(spec.settings.training, keep_checkpoints=5, budget_seconds=9.0))
    run_trial(replace(spec, settings=other, resume=True))  # neither changes the course
    assert load_run(spec.out / "config.yaml").training.steps == steps


def test_a_budget_too_short_for_a_step_is_refused(tiny_store: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too short"):
        run_trial(TrialSpec(settings(budget_seconds=1e-6), tiny_store, tmp_path / "run"))
