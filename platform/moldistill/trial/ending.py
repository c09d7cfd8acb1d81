"""The end of a run: its last metrics, weights, predictions and, last of all, the manifest that makes it finished."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

import torch

from moldistill.core.vocabulary import vocabulary_hash
from moldistill.training.checkpoint import WEIGHTS, save_weights
from moldistill.training.evaluate import MEASURED, errors_by_size, predict_split
from moldistill.training.loop import Trainer
from moldistill.trial.fence import Fence
from moldistill.trial.folder import PREDICTIONS, append_metrics, finish, keep_metrics, read_metrics
from moldistill.trial.spec import TrialSpec

SPLITS_OF_ROLE = {"student": ("valid", "valid-3d", "test-dev", "test-challenge"), "teacher": ("valid-3d",)}


def close(trainer: Trainer, spec: TrialSpec, fence: Fence) -> None:
    """The metrics of a run that ends where it stands: up to its checkpoint, the last of them with validation errors."""
    run, epoch, last = spec.out, trainer.epoch, None
    kept = [record for record in read_metrics(run) if record["epoch"] <= epoch]
    if trainer.sums.steps:
        last = trainer.close_epoch(evaluate=True).metrics
    elif kept and not kept[-1].keys() & MEASURED[spec.settings.role]:
        epoch, last = epoch - 1, kept[-1] | trainer.evaluate()
    with fence:
        keep_metrics(run, epoch)
        if last is not None:
            append_metrics(run, last)


def complete(trainer: Trainer, spec: TrialSpec, fence: Fence) -> None:
    """Weights, predictions and, last, the manifest."""
    model, store, role = trainer.averaged.model, trainer.store, spec.settings.role
    largest = int(store.size(trainer.rows).max())
    errors: dict[str, list[dict[str, Any]]] = {}
    with fence:
        save_weights(model, spec.out / WEIGHTS)
    for split in SPLITS_OF_ROLE[role]:
        if len(store.rows(split)):
            predictions = predict_split(model, store, split, role=role, scale=trainer.scale, device=trainer.device)
            with fence:
                predictions.save(spec.out / PREDICTIONS / f"{split}.npz")
            if by_size := errors_by_size(store, predictions, largest):
                errors[split] = [asdict(item) for item in by_size]
    inputs = {"store": store.identity}
    if trainer.targets is not None:
        inputs["targets"] = trainer.targets.identity
    facts = _facts(trainer, spec) | {"errors_by_size": errors}
    with fence:
        finish(spec.out, inputs=inputs, facts=facts)


def _facts(trainer: Trainer, spec: TrialSpec) -> dict[str, Any]:
    metrics = read_metrics(spec.out)[-1]
    return {
        "role": spec.settings.role,
        "metrics": metrics,
        "epochs": trainer.epoch,
        "steps": trainer.step,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "scale": asdict(trainer.scale),
        "store": trainer.store.identity,
        "store_path": str(trainer.store.path),
        "split_hash": trainer.store.split_hash,
        "vocabulary": vocabulary_hash(),
        "training_rows": len(trainer.rows),
        "largest_training_molecule": int(trainer.store.size(trainer.rows).max()),
        "seconds": trainer.seconds,
        "seed": spec.settings.training.seed,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
