"""Records that cross layers: molecules in a batch, teacher targets, model outputs.

Padding lies at the end of the atom axis; `real` marks the atoms that exist. The student is given `Molecules` alone,
which hold nothing of the third dimension: that inference needs only SMILES is a property of the types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from moldistill.core.shapes import Bool, Float, Int, UInt8


class _Movable:
    """Moves or cuts every tensor of a frozen dataclass, whose first axis is that of the molecules."""

    __slots__ = ()

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        changed: dict[str, object] = {}
        for item in fields(self):  # type: ignore[arg-type]  # mixed into dataclasses only
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changed[item.name] = change(value)
            elif isinstance(value, _Movable):
                changed[item.name] = value._each(change)
            elif isinstance(value, tuple):
                changed[item.name] = tuple(one._each(change) for one in value)
        return replace(self, **changed)  # type: ignore[type-var]  # mixed into dataclasses only

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """The same on `device`; non_blocking lets the copy from pinned memory run beside what follows."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def part(self, start: int, stop: int) -> Self:
        """Molecules start:stop, as views of the same padding."""
        changed: dict[str, object] = {}
        for item in fields(self):  # type: ignore[arg-type]  # mixed into dataclasses only
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changed[item.name] = value[start:stop]
            elif isinstance(value, _Movable):
                changed[item.name] = value.part(start, stop)
            elif isinstance(value, tuple):
                changed[item.name] = tuple(one.part(start, stop) for one in value)
        return replace(self, **changed)  # type: ignore[type-var]  # mixed into dataclasses only

    def pin_memory(self) -> Self:
        """The same in page-locked memory. PyTorch's DataLoader calls it, too, where it is asked to pin."""
        return self._each(lambda tensor: tensor.pin_memory())


@dataclass(frozen=True, slots=True)
class Molecules(_Movable):
    """2D molecular graphs, padded to the largest of the batch.

    rows:           row of each molecule in the store.
    size:           number of heavy atoms, at least 1.
    atom_features:  indices into OGB's vocabulary; 0 where padded.
    shortest_paths: number of bonds between two atoms; 255 where unreachable or padded.
    bond_codes:     0 for no bond, else `vocabulary.bond_code`.
    """

    rows: Int[Tensor, "batch"]
    size: Int[Tensor, "batch"]
    atom_features: UInt8[Tensor, "batch atoms 9"]
    shortest_paths: UInt8[Tensor, "batch atoms atoms"]
    bond_codes: UInt8[Tensor, "batch atoms atoms"]

    @property
    def real(self) -> Bool[Tensor, "batch atoms"]:
        """Which atoms exist."""
        return torch.arange(self.atom_features.shape[1], device=self.size.device) < self.size[:, None]

    @property
    def bonded(self) -> Bool[Tensor, "batch atoms atoms"]:
        """Which pairs of atoms that exist are bonded, whatever stands in padding."""
        real = self.real
        return (self.bond_codes > 0) & real[:, :, None] & real[:, None]


@dataclass(frozen=True, slots=True)
class TeacherTargets(_Movable):
    """What a frozen teacher said of the molecules of a batch; zeros where `known` is false.

    known:        whether the teacher saw the molecule.
    prediction:   its prediction in eV.
    graph_states: graph token after each kept layer, before any feature normalization; 16 bits where pinned for a GPU.
    atom_states:  atoms after each kept layer; 0 where padded.
    teacher:      which of the run's teachers it was, from 0.
    """

    known: Bool[Tensor, "batch"]
    prediction: Float[Tensor, "batch"]
    graph_states: Float[Tensor, "layers batch width"]
    atom_states: Float[Tensor, "layers batch atoms width"]
    teacher: int = 0

    def part(self, start: int, stop: int) -> TeacherTargets:
        """Molecules start:stop; states have them on their second axis."""
        states = (self.graph_states[:, start:stop], self.atom_states[:, start:stop])
        return TeacherTargets(self.known[start:stop], self.prediction[start:stop], *states, self.teacher)

    def widened(self) -> TeacherTargets:
        """The same with states in 32 bits."""
        return replace(self, graph_states=self.graph_states.float(), atom_states=self.atom_states.float())


@dataclass(frozen=True, slots=True)
class Hydrogens(_Movable):
    """Hydrogens that are no atoms of the graph, padded to the most of the batch.

    count:     number of each molecule.
    parent:    index of the heavy atom that each is bonded to; 0 where padded.
    positions: Å; 0 where padded.
    """

    count: Int[Tensor, "batch"]
    parent: UInt8[Tensor, "batch hydrogens"]
    positions: Float[Tensor, "batch hydrogens 3"]

    @property
    def real(self) -> Bool[Tensor, "batch hydrogens"]:
        """Which hydrogens exist."""
        return torch.arange(self.parent.shape[1], device=self.count.device) < self.count[:, None]


@dataclass(frozen=True, slots=True)
class Batch(_Movable):
    """What the training loop reads.

    target:        eV; NaN where unknown.
    positions:     Å, of the heavy atoms; 0 where padded or unknown.
    has_positions: whether the molecule has a geometry.
    teachers:      what each teacher said that this batch is learned from.
    hydrogens:     where asked for; none of a molecule whose hydrogens have no positions in the store.
    """

    molecules: Molecules
    target: Float[Tensor, "batch"]
    positions: Float[Tensor, "batch atoms 3"]
    has_positions: Bool[Tensor, "batch"]
    teachers: tuple[TeacherTargets, ...] = ()
    hydrogens: Hydrogens | None = None

    def widened(self) -> Batch:
        """The same with the teachers' states in 32 bits, as the loss reads them."""
        return replace(self, teachers=tuple(teacher.widened() for teacher in self.teachers))


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """What every model returns.

    prediction:   in units of the training standard deviation, centred on the training mean.
    graph_states: graph token after each layer.
    atom_states:  heavy atoms after each layer; unspecified where padded.
    noise:        of a teacher that denoises: the shift (Å) that it believes to lie on each heavy atom; turns with the
                  molecule.
    """

    prediction: Float[Tensor, "batch"]
    graph_states: tuple[Float[Tensor, "batch width"], ...]
    atom_states: tuple[Float[Tensor, "batch atoms width"], ...]
    noise: Float[Tensor, "batch atoms 3"] | None = None


@dataclass(frozen=True, slots=True)
class TargetScale:
    """Statistics of the finite training targets, in eV: models predict (target - mean) / std."""

    mean: float
    std: float
    median: float
