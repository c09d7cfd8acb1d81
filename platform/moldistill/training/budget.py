"""What a run will cost, from a short trial: how a budget of seconds becomes a number of steps.

The trial is made once, by a trainer of its own that is thrown away, and what it decides is saved with the run's
settings: schedules then know their end, and a resumed run is the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from moldistill.core.errors import InputError
from moldistill.core.settings import RunSettings, TrainingSettings
from moldistill.training.evaluate import MEASURED, predict, scored
from moldistill.training.loop import Trainer
from moldistill.training.probe import EVERY

WARM_STEPS = 3
TIMED_STEPS = 40
TIMED_ROWS = 1024
LONG = 1800.0
"""Seconds from which on a run is long enough for compilation to pay."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a step and of an evaluation: process CPU time; on a GPU elapsed time."""

    step: float
    evaluation: float

    def steps_within(self, seconds: float, steps_per_epoch: int, evaluate_every: int) -> int:
        """The most steps that fit, with an evaluation every `evaluate_every` epochs and at the end; at least 1."""
        each = self.step + self.evaluation / (steps_per_epoch * evaluate_every)
        return max(1, int((seconds - self.evaluation) / each + 1e-6))


def fast_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16 matrices faster than fp32 ones by units of its own."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def is_open(training: TrainingSettings) -> bool:
    """Whether something is left to be decided by the machine that trains."""
    return training.awaits_budget or "auto" in (training.precision, training.compile)


def settle(settings: RunSettings, device: torch.device, make: Callable[[RunSettings], Trainer]) -> RunSettings:
    """The settings with precision, compilation and number of steps decided; `make` builds a trainer for the trial.

    With several workers all of them must call it; the first one's clock counts. InputError for a budget that is too
    short for a step.
    """
    training = settings.training
    if training.precision == "auto":
        training = replace(training, precision="bf16" if fast_bf16(device) else "fp32")
    if is_open(training):
        # The trial trains plainly: compilation would be timed, too.
        plain = replace(training, compile="never", budget_seconds=None, steps=WARM_STEPS + TIMED_STEPS)
        training = _timed(training, make(replace(settings, training=plain)))
    return replace(settings, training=training)


def _timed(training: TrainingSettings, trainer: Trainer) -> TrainingSettings:
    cost = measure(trainer)
    if training.budget_seconds is not None and training.steps is None:  # `awaits_budget`, in a checker's words
        if training.budget_seconds < cost.evaluation + cost.step:
            raise InputError(
                "training.budget_seconds is too short",
                got=f"{training.budget_seconds:g} s",
                expected=f"more than {cost.evaluation + cost.step:.2g} s: one step and one evaluation",
                remedy="give more seconds, or a smaller model",
            )
        steps = cost.steps_within(training.budget_seconds, trainer.steps_per_epoch, training.evaluate_every)
        training = replace(training, steps=steps)
    if training.compile == "auto":
        steps = training.total_steps(trainer.steps_per_epoch)
        training = replace(training, compile="always" if steps * cost.step > LONG else "never")
    return training


def measure(trainer: Trainer) -> Cost:
    """Cost of steps and evaluations, of the first worker. Its WARM_STEPS + TIMED_STEPS steps are then spent."""
    now = trainer.now
    start = now()

    def after_step() -> None:
        nonlocal start
        if trainer.step == WARM_STEPS:
            wait(trainer.device)
            start = now()

    while trainer.step < trainer.total_steps:
        trainer.run_epoch(after_step)
        trainer.epoch += 1
    wait(trainer.device)
    step = (now() - start) / TIMED_STEPS + probe_cost(trainer)
    costs = torch.tensor([step, evaluation_cost(trainer)], dtype=torch.float64, device=trainer.device)
    step, evaluation = trainer.collective.sum(costs if trainer.collective.leads else costs * 0).tolist()
    return Cost(step, evaluation)


def probe_cost(trainer: Trainer) -> float:
    """Seconds per step that telling the terms' shares of the gradient takes."""
    trainer.shares()  # draws the probe's molecules
    start = trainer.now()
    trainer.shares()
    wait(trainer.device)
    return (trainer.now() - start) / max(trainer.steps_per_epoch, EVERY)


def evaluation_cost(trainer: Trainer) -> float:
    """Seconds that evaluating takes, from a sample of its rows."""
    role, store = trainer.settings.role, trainer.store
    rows = np.concatenate([scored(store, split, role) for split in MEASURED[role].values()])
    if not len(rows):
        return 0.0
    # Every k-th of the rows by size: small ones alone would be cheap.
    order = rows[np.argsort(store.size(rows), kind="stable")]
    sample = order[:: -(-len(order) // TIMED_ROWS)]
    now = trainer.now
    model, scale = trainer.averaged.model, trainer.scale
    predict(model, store, sample[:1], role=role, scale=scale, device=trainer.device)
    start = now()
    predict(model, store, sample, role=role, scale=scale, device=trainer.device)
    return (now() - start) * len(rows) / len(sample) / trainer.collective.world_size


def wait(device: torch.device) -> None:
    """Until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
