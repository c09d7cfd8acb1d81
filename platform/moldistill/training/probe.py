"""What moves the student: the gradient of each term on a probe, a few molecules of every size, always the same ones.

Batches hold molecules of like size, so that one of them would tell of one size only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moldistill.core.records import Batch
from moldistill.core.seeds import generator
from moldistill.data.batches import collate
from moldistill.data.store import Store
from moldistill.data.teachers import TeacherSet
from moldistill.distill.diagnostics import gradients, shares_of
from moldistill.distill.objective import Counts

EVERY = 200
"""Steps that lie at least between two probes, so that they cost a few per cent of a run at most."""

WIDTH_OF_CLASS = 5
PER_CLASS = 12

Terms = Callable[[Batch, Counts], dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class SizeClass:
    """Molecules of `smallest` to `largest` atoms: their `share` of the training rows, and `rows` drawn from them."""

    smallest: int
    largest: int
    share: float
    rows: NDArray[np.int64]

    @property
    def name(self) -> str:
        """As metrics spell it."""
        return f"{self.smallest}to{self.largest}"


def is_due(epoch: int, steps_per_epoch: int) -> bool:
    """Whether the epoch (from 0) begins with a probe."""
    return epoch == 0 or epoch * steps_per_epoch // EVERY != (epoch - 1) * steps_per_epoch // EVERY


class Probe:
    """A seeded sample of each size class of the training rows; of those that the teachers know, where there are any."""

    def __init__(self, store: Store, rows: NDArray[np.int64], teachers: TeacherSet | None, seed: int) -> None:
        self.store, self.teachers = store, teachers
        known = rows if teachers is None else rows[np.isin(rows, teachers.rows)]
        rows = known if len(known) else rows
        sizes = store.size(rows)
        self.mean_atoms = float(sizes.mean())
        self.classes = [
            SizeClass(first, first + WIDTH_OF_CLASS - 1, len(inside) / len(rows), _sample(inside, seed, first))
            for first in range(1, int(sizes.max()) + 1, WIDTH_OF_CLASS)
            if len(inside := rows[(sizes >= first) & (sizes < first + WIDTH_OF_CLASS)])
        ]

    def shares(
        self, terms: Terms, parameters: Sequence[Tensor], *, hydrogens: bool, device: torch.device
    ) -> dict[str, float]:
        """Shares of the gradient norm by term, and by `term_smallest to largest` within each size class.

        Those of all molecules are of the mean gradient: the classes' own, weighted as they occur. With `sampled`
        teachers they are those of one.
        """
        whole: dict[str, Tensor] = {}
        found: dict[str, float] = {}
        for members in self.classes:
            batch = collate(self.store, members.rows, self.teachers, hydrogens).to(device)
            parts = gradients(terms(batch, self._counts(batch)), parameters)
            found |= {f"{name}_{members.name}": share for name, share in shares_of(parts).items()}
            for name, gradient in parts.items():
                weighted = members.share * gradient
                whole[name] = whole[name] + weighted if name in whole else weighted
        return shares_of(whole) | found

    def _counts(self, batch: Batch) -> Counts:
        """Those of the class, but with the atoms of average molecules: `batch_mean` knows no classes."""
        counts = Counts.from_tensor(Counts.of(batch))
        return Counts(counts.labels, counts.molecules, counts.molecules * self.mean_atoms, counts.positions)


def _sample(rows: NDArray[np.int64], seed: int, first: int) -> NDArray[np.int64]:
    chosen: NDArray[np.int64] = generator(seed, "probe", first).permutation(rows)[:PER_CLASS]
    return np.sort(chosen)
