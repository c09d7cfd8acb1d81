"""The frozen teacher's outputs on disk, one entry per molecule that it saw, memory-mapped and shared by all trials."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moldistill.core.artifacts import Manifest, read_manifest
from moldistill.core.errors import InputError
from moldistill.core.records import TeacherTargets
from moldistill.core.shapes import Float
from moldistill.data.kernels import gather_states

COLUMNS = ("rows", "atom_offsets", "prediction", "graph_states", "atom_states")
STATISTICS = "statistics.npz"


@dataclass(frozen=True, slots=True)
class StateStatistics:
    """Statistics of the teacher's states over the molecules it saw, per kept layer.

    whitening: W with (t - mean) W of unit covariance (ZCA: the symmetric choice, nearest to the states themselves).
    """

    mean: Float[Tensor, "layers width"]
    std: Float[Tensor, "layers width"]
    whitening: Float[Tensor, "layers width width"]


@dataclass(frozen=True, slots=True)
class TargetSummary:
    """What a distillation must know of the targets before the first batch.

    layers: kept layers of the teacher, counted from 1. depth: all of its layers. mean_atoms: of the molecules seen.
    """

    layers: tuple[int, ...]
    depth: int
    width: int
    mean_atoms: float
    graph: StateStatistics
    atoms: StateStatistics


class TargetStore:
    """Reads a targets folder that `training.cache` wrote."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.identity = manifest.identity
        self.store_identity: str = manifest.inputs["store"]
        # As plain arrays on the same maps: every look into a numpy.memmap makes another Python object.
        columns = {
            name: np.asarray(np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False)) for name in COLUMNS
        }
        self.rows: NDArray[np.int64] = columns["rows"]
        self.atom_offsets: NDArray[np.int64] = columns["atom_offsets"]
        self.prediction: NDArray[np.float32] = columns["prediction"]
        self.graph_states: NDArray[np.float16] = columns["graph_states"]
        self.atom_states: NDArray[np.float16] = columns["atom_states"]
        self.layers = tuple(int(layer) for layer in manifest.facts["layers"])
        self.width = int(self.graph_states.shape[2])

    def __reduce__(self) -> tuple[Callable[[Path], TargetStore], tuple[Path]]:
        return TargetStore.open, (self.path,)  # by path, as a store is

    @classmethod
    def open(cls, path: Path) -> TargetStore:
        """Open a finished targets folder; InputError where it is missing, damaged or something else."""
        path = Path(path).absolute()
        manifest = read_manifest(path, "targets")
        try:
            return cls(path, manifest)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path} is damaged", got=error, remedy="run `moldistill cache` again") from error

    def summary(self) -> TargetSummary:
        """Shape and statistics of the states."""
        with np.load(self.path / STATISTICS, allow_pickle=False) as saved:
            arrays = {name: torch.from_numpy(saved[name]) for name in saved.files}
        kinds = {
            kind: StateStatistics(*(arrays[f"{kind}_{part}"] for part in ("mean", "std", "whitening")))
            for kind in ("graph", "atom")
        }
        mean_atoms = float(self.atom_offsets[-1]) / max(len(self.rows), 1)
        depth = int(self.manifest.facts["depth"])
        return TargetSummary(self.layers, depth, self.width, mean_atoms, kinds["graph"], kinds["atom"])

    def gather(self, rows: NDArray[np.int64], atoms: int, *, widen: bool = True) -> TeacherTargets:
        """Targets of store rows, padded to `atoms` atoms; zeros and `known` false for rows the teacher never saw.

        States are in 32 bits, or, without `widen`, in the 16 bits of the disk.
        """
        batch, layers, width = len(rows), len(self.layers), self.width
        place = np.searchsorted(self.rows, rows)
        known = place < len(self.rows)
        known[known] = self.rows[place[known]] == rows[known]
        found = place[known]
        prediction = np.zeros(batch, np.float32)
        prediction[known] = self.prediction[found]
        graph_states = np.zeros((batch, layers, width), np.float16)
        graph_states[known] = self.graph_states[found]
        atom_states = np.empty((batch, atoms, layers, width), np.float16)
        # As whole numbers: numba knows no 16-bit floats.
        source, out = (array.reshape(-1).view(np.uint16) for array in (self.atom_states, atom_states))
        gather_states(np.where(known, place, -1), self.atom_offsets, source, layers * width, atoms, out)
        targets = TeacherTargets(
            known=torch.from_numpy(known),
            prediction=torch.from_numpy(prediction),
            graph_states=torch.from_numpy(graph_states).permute(1, 0, 2),
            atom_states=torch.from_numpy(atom_states).permute(2, 0, 1, 3),
        )
        return targets.widened() if widen else targets
