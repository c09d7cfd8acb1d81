"""Predictions and errors of a trained model, in eV."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moldistill.core.errors import InputError
from moldistill.core.hashing import fold_of
from moldistill.core.records import Batch, ModelOutput, TargetScale
from moldistill.core.settings import Role, RunSettings
from moldistill.data.batches import epoch_batches
from moldistill.data.predictions import Predictions
from moldistill.data.store import Store
from moldistill.data.teachers import TeacherSet
from moldistill.training.collective import ALONE, Collective

CPU = torch.device("cpu")

MEASURED: dict[Role, dict[str, str]] = {
    "student": {"valid_3d_mae": "valid-3d", "valid_mae": "valid"},
    "teacher": {"valid_3d_mae": "valid-3d"},
}
"""Metrics of a role, and the split that each is the error on."""


def forward(model: nn.Module, role: Role, batch: Batch) -> ModelOutput:
    """Run a model on what its role may see."""
    if role == "student":
        output: ModelOutput = model(batch.molecules)
    elif batch.hydrogens is not None:
        output = model(batch.molecules, batch.positions, batch.hydrogens)
    else:
        output = model(batch.molecules, batch.positions)
    return output


def wants_hydrogens(model: nn.Module) -> bool:
    """Whether the model is a teacher that takes hydrogens for atoms."""
    return bool(getattr(model, "hydrogens", False))


def readable(store: Store, rows: NDArray[np.int64], role: Role) -> NDArray[np.int64]:
    """Those of `rows` that a model of this role can read: with a graph, for a teacher also with positions."""
    rows = store.usable(rows)
    return rows[store.has_positions[rows]] if role == "teacher" else rows


def _labelled(store: Store, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of `rows` that have a target."""
    labelled: NDArray[np.int64] = rows[np.isfinite(store.target[rows])]
    return labelled


def scored(store: Store, split: str, role: Role) -> NDArray[np.int64]:
    """Rows of a split that count in the error of a model of this role: labelled, and readable to it."""
    return _labelled(store, readable(store, store.rows(split), role))


def training_rows(settings: RunSettings, store: Store, targets: TeacherSet | None) -> NDArray[np.int64]:
    """Rows to train on: of the split `train`, readable by the role, with a label or (for students) teacher targets."""
    rows: NDArray[np.int64] = readable(store, store.rows("train"), settings.role)
    if settings.training.folds is not None:
        rows = rows[fold_of(rows, settings.training.folds) != settings.training.fold]
    useful = np.isfinite(store.target[rows])
    if targets is not None:
        useful |= np.isin(rows, targets.rows)
    rows = rows[useful]
    if not len(rows) or not np.isfinite(store.target[rows]).any():
        needs = "labels and positions" if settings.role == "teacher" else "labels"
        raise InputError(
            f"{store.path} has no training rows with {needs}",
            got=f"{len(store.rows('train')):,} rows in the split train",
            expected=f"rows of the split train with {needs}",
            remedy="prepare a source that has them (teachers need the SDF of a root)",
        )
    return rows


def constant_error(store: Store, split: str) -> float:
    """MAE (eV) of the training median on the labelled rows of a split: the error of a model that knows nothing."""
    targets = store.target[_labelled(store, store.usable(store.rows(split)))]
    return float(np.abs(targets - target_scale(store).median).mean())


def target_scale(store: Store) -> TargetScale:
    """Mean, standard deviation and median of the finite targets of the split `train`, over rows with a graph."""
    targets = np.asarray(store.target[_labelled(store, store.usable(store.rows("train")))])
    std = float(targets.std()) if len(targets) > 1 else 0.0
    # Equal targets have no spread to scale by; one molecule (overfitting tests) has none either.
    return TargetScale(float(targets.mean()), std if std > 1e-8 else 1.0, float(np.median(targets)))


@torch.no_grad()
def predict(
    model: nn.Module,
    store: Store,
    rows: NDArray[np.int64],
    *,
    role: Role,
    scale: TargetScale,
    batch_size: int = 256,
    atoms_per_batch: int | None = None,
    device: torch.device = CPU,
) -> NDArray[np.float32]:
    """Predictions in eV, aligned to `rows` (different, and readable by the role).

    atoms_per_batch, where given, takes the place of batch_size.
    """
    model.eval()
    order = np.argsort(rows)
    predicted = np.empty(len(rows), np.float32)
    size = None if atoms_per_batch is not None else batch_size
    for batch in epoch_batches(
        store,
        rows,
        batch_size=size,
        atoms_per_batch=atoms_per_batch,
        hydrogens=wants_hydrogens(model),
        pin=device.type == "cuda",
    ):
        moved = batch.to(device, non_blocking=True)
        values = forward(model, role, moved).prediction.double() * scale.std + scale.mean
        places = order[np.searchsorted(rows, batch.molecules.rows.numpy(), sorter=order)]
        predicted[places] = values.cpu().numpy()
    return predicted


def predict_split(
    model: nn.Module,
    store: Store,
    split: str,
    *,
    role: Role,
    scale: TargetScale,
    device: torch.device = CPU,
) -> Predictions:
    """Predictions for every row of a split; where the role can read no row, the training median.

    `flag` is the store's: it says which rows have no graph.
    """
    rows = store.rows(split)
    predicted = np.full(len(rows), scale.median, np.float32)
    known = np.isin(rows, readable(store, rows, role))
    predicted[known] = predict(model, store, rows[known], role=role, scale=scale, device=device)
    return Predictions(rows, predicted, np.asarray(store.flag[rows]))


def mean_absolute_error(
    model: nn.Module,
    store: Store,
    split: str,
    *,
    role: Role,
    scale: TargetScale,
    device: torch.device = CPU,
    collective: Collective = ALONE,
    atoms_per_batch: int | None = None,
) -> float | None:
    """MAE in eV over the readable, labelled rows of a split, shared out over the workers; None where there are none.

    atoms_per_batch counts the batches of all workers together.
    """
    rows = scored(store, split, role)
    if not len(rows):
        return None
    share = rows[collective.rank :: collective.world_size]
    budget = None if atoms_per_batch is None else atoms_per_batch // collective.world_size
    predicted = predict(model, store, share, role=role, scale=scale, device=device, atoms_per_batch=budget)
    errors = np.abs(predicted - store.target[share])
    total, count = collective.sum(torch.tensor([errors.sum(), len(share)], dtype=torch.float64, device=device)).tolist()
    return float(total / count)


@dataclass(frozen=True, slots=True)
class SizeError:
    """MAE in eV of the `rows` labelled molecules with `smallest` to `largest` heavy atoms.

    beyond: larger than every training molecule.
    """

    smallest: int
    largest: int
    rows: int
    mae: float
    beyond: bool


def errors_by_size(store: Store, predictions: Predictions, largest_trained: int) -> list[SizeError]:
    """Errors of the labelled rows with a graph, in classes of five sizes; one class ends where the training ended."""
    known = np.isin(predictions.row, _labelled(store, store.usable(predictions.row)))
    rows = predictions.row[known]
    if not len(rows):
        return []
    sizes, errors = store.size(rows), np.abs(predictions.y_pred[known] - store.target[rows])
    ends = sorted({largest_trained, *range(5, int(sizes.max()) + 5, 5)})
    found = []
    for before, end in itertools.pairwise([0, *ends]):
        inside = (sizes > before) & (sizes <= end)
        if inside.any():
            mae, beyond = float(errors[inside].mean()), before >= largest_trained
            found.append(SizeError(before + 1, end, int(inside.sum()), mae, beyond))
    return found


def median_error(store: Store, split: str) -> float | None:
    """MAE in eV of predicting the training median for every labelled row of a split with a graph."""
    rows = _labelled(store, store.usable(store.rows(split)))
    return float(np.abs(store.target[rows] - target_scale(store).median).mean()) if len(rows) else None
