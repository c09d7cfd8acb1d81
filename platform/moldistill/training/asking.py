"""Asking a frozen teacher: what it says of molecules of a store, with or without noise on their positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moldistill.core.records import Batch, ModelOutput, Molecules, TargetScale
from moldistill.core.shapes import Float, Int
from moldistill.data.batches import epoch_batches
from moldistill.data.store import Store
from moldistill.training.evaluate import forward, wants_hydrogens
from moldistill.training.noise import noised

BATCH = 256


@dataclass(frozen=True, slots=True)
class Teacher:
    """A trained teacher, the scale of its predictions, and the identity of its run."""

    model: nn.Module
    scale: TargetScale
    identity: str


@dataclass(frozen=True, slots=True)
class Asking:
    """How teachers are asked: about which store, on which device, with what noise (Å) on the positions."""

    store: Store
    device: torch.device
    noise: float
    seed: int

    def answers(
        self, teacher: Teacher, rows: NDArray[np.int64], views: int
    ) -> Iterator[tuple[Batch, list[ModelOutput]]]:
        """Batches of the rows, sorted by size, with what the teacher says of each of their views."""
        model = teacher.model.eval()
        pin, hydrogens = self.device.type == "cuda", wants_hydrogens(model)
        for batch in epoch_batches(self.store, rows, batch_size=BATCH, hydrogens=hydrogens, pin=pin):
            moved = batch.to(self.device, non_blocking=True)
            yield batch, [self._answer(model, moved, view) for view in range(views)]

    @torch.no_grad()
    def _answer(self, model: nn.Module, batch: Batch, view: int) -> ModelOutput:
        if self.noise > 0:
            batch, _ = noised(batch, std=self.noise, seed=self.seed, epoch=view)
        return forward(model, "teacher", batch)


def in_ev(output: ModelOutput, scale: TargetScale) -> NDArray[np.float64]:
    """The predictions in eV."""
    values: NDArray[np.float64] = output.prediction.cpu().double().numpy() * scale.std + scale.mean
    return values


@dataclass(frozen=True, slots=True)
class States:
    """States of the molecules of a batch after some layers, on the CPU: of graph tokens, and of all atoms one behind
    another; sizes: how many of these are each molecule's."""

    graph: Float[Tensor, "layers batch width"]
    atom: Float[Tensor, "layers atoms width"]
    sizes: Int[Tensor, "batch"]

    @classmethod
    def of(cls, output: ModelOutput, layers: tuple[int, ...], molecules: Molecules) -> States:
        """What the teacher said of the molecules, after the given layers (counted from 1)."""
        width = output.atom_states[0].shape[-1]
        real = molecules.real.flatten().nonzero()[:, 0].to(output.prediction.device, non_blocking=True)
        graph = torch.stack([output.graph_states[layer - 1] for layer in layers])
        atoms = [output.atom_states[layer - 1].reshape(-1, width).index_select(0, real) for layer in layers]
        return cls(graph.float().cpu(), torch.stack(atoms).float().cpu(), molecules.size)

    def items(self) -> dict[str, Float[Tensor, "layers items width"]]:
        """The states by kind."""
        return {"graph": self.graph, "atom": self.atom}

    def largest(self) -> NDArray[np.float32]:
        """The largest size of any number in each molecule's states; NaN where one is NaN."""
        of_graph, of_atoms = (states.abs().amax((0, 2)).numpy() for states in (self.graph, self.atom))
        starts = (self.sizes.cumsum(0) - self.sizes).numpy()
        return np.asarray(np.maximum(of_graph, np.maximum.reduceat(of_atoms, starts)))

    def chosen(self, good: NDArray[np.bool_]) -> States:
        """Those of the molecules that are `good`."""
        if good.all():
            return self
        molecules = torch.from_numpy(good)
        atoms = molecules.repeat_interleave(self.sizes)
        return States(self.graph[:, molecules], self.atom[:, atoms], self.sizes[molecules])
