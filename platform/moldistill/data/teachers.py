"""The teachers that a student learns from: one targets folder or several, all of them at each step or one by turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moldistill.core.artifacts import Manifest, hash_object
from moldistill.core.errors import InputError
from moldistill.core.records import TeacherTargets
from moldistill.core.seeds import named_seed
from moldistill.data.targets import TargetStore, TargetSummary


def check_store(folder: str | Path, targets: Manifest, store: str) -> None:
    """InputError where targets are not of the store with the identity `store`."""
    if targets.inputs.get("store") != store:
        raise InputError(
            f"{folder} holds targets of another store",
            got=targets.inputs.get("store"),
            expected=store,
            remedy="run `moldistill cache` on this store, or name the other one",
        )


def joint_identity(identities: Sequence[str]) -> str:
    """Identity of one targets folder, or, of several, a hash of theirs in order."""
    return identities[0] if len(identities) == 1 else hash_object(list(identities))


@dataclass(frozen=True, slots=True)
class TeacherSet:
    """Targets of the run's teachers. With `sampled`, each batch learns from one of them, drawn by seed and place."""

    stores: tuple[TargetStore, ...]
    sampled: bool = False
    seed: int = 0

    @classmethod
    def open(cls, folders: Sequence[str | Path], store: str, *, sampled: bool = False, seed: int = 0) -> TeacherSet:
        """The targets in these folders; InputError where one is not of the store with the identity `store`."""
        found = tuple(TargetStore.open(Path(folder)) for folder in folders)
        for targets in found:
            check_store(targets.path, targets.manifest, store)
        return cls(found, sampled, seed)

    @classmethod
    def of(cls, targets: TargetStore | TeacherSet | None) -> TeacherSet | None:
        """A single folder as a set; a set, or none, as it is."""
        return cls((targets,)) if isinstance(targets, TargetStore) else targets

    @property
    def identity(self) -> str:
        """That of the targets; of several, a hash of theirs in order."""
        return joint_identity([store.identity for store in self.stores])

    @property
    def rows(self) -> NDArray[np.int64]:
        """Store rows, ascending, that any teacher saw."""
        rows: NDArray[np.int64] = np.unique(np.concatenate([store.rows for store in self.stores]))
        return rows

    def summaries(self) -> Sequence[TargetSummary]:
        """Shape and statistics of each teacher's states."""
        return [store.summary() for store in self.stores]

    def gather(
        self, rows: NDArray[np.int64], atoms: int, *, epoch: int, batch: int, widen: bool = True
    ) -> tuple[TeacherTargets, ...]:
        """What batch `batch` of an epoch learns from, its molecules padded to `atoms` atoms.

        Each molecule's view is drawn anew in each epoch, whatever batch and worker it is in.
        """
        chosen = range(len(self.stores))
        if self.sampled:
            one = named_seed(self.seed, "teacher", epoch, batch) % len(self.stores)
            chosen = range(one, one + 1)
        draw = named_seed(self.seed, "view", epoch)
        return tuple(
            replace(self.stores[which].gather(rows, atoms, widen=widen, draw=draw), teacher=which) for which in chosen
        )
