"""Atom terms of equal mean weight: schemes of size normalization compared by their shape alone, not by their scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from moldistill.core.config import build, merge, to_mapping
from moldistill.core.settings import RunSettings
from moldistill.data.store import Store
from moldistill.distill.normalization import size_weights
from moldistill.training.evaluate import training_rows
from moldistill.trial.run import open_targets


@dataclass(frozen=True, slots=True)
class Weighted:
    """An arm's settings with its weight. mean: mean weight of a molecule; None without an atom term of a fixed one."""

    settings: RunSettings
    mean: float | None


def mean_weight(settings: RunSettings, sizes: NDArray[np.int64]) -> float | None:
    """w · mean over molecules of c(N)·N, for molecules of `sizes` atoms; None where c is not a function of N alone.

    A molecule's atoms count w·c(N) each in the atom term, so c(N)·N times w in all. `batch_mean` has a mean of w
    whatever the batches are: Σ_m N_m·B/ΣN over a batch of B molecules is B.
    """
    atom = settings.distill.atom
    if atom.weight == 0 or atom.normalization == "gradient_matched":
        return None
    size = torch.from_numpy(np.ascontiguousarray(sizes))
    atoms = int(sizes.sum())
    each = size_weights(atom, size, molecules=float(len(sizes)), atoms=float(atoms), mean_atoms=atoms / len(sizes))
    return atom.weight * float((each.double() * size).mean())


def with_equal_weights(
    arms: Mapping[str, RunSettings], reference: str | None, store: Store, where: str
) -> dict[str, Weighted]:
    """The arms, each atom weight w scaled such that its mean weight is the reference's; without one, as they are.

    The mean is over the training molecules that the teacher saw. `gradient_matched` keeps its weight: `share` sets its
    scale. InputError where a scaled weight is out of bounds.
    """
    found = {name: Weighted(settings, _of_store(settings, store)) for name, settings in arms.items()}
    if reference is None:
        return found
    wanted = found[reference].mean
    assert wanted is not None  # the ablation's own checks
    for name, arm in found.items():
        if arm.mean is None or name == reference:
            continue
        weight = arm.settings.distill.atom.weight * wanted / arm.mean
        changed = merge(to_mapping(arm.settings), {"distill": {"atom": {"weight": weight}}})
        settings = build(RunSettings, changed, f"{where}: arms.{name} at the mean weight of {reference}")
        found[name] = replace(arm, settings=settings, mean=wanted)
    return found


def _of_store(settings: RunSettings, store: Store) -> float | None:
    if settings.distill.atom.weight == 0:
        return None
    targets = open_targets(settings, store)
    assert targets is not None  # an atom term reads a teacher
    rows = np.intersect1d(training_rows(settings, store, targets), targets.rows)
    return mean_weight(settings, store.size(rows))
