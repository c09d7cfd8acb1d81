"""The frozen teacher's outputs on disk, for each molecule that it saw, memory-mapped and shared by all trials.

An entry is one view of one molecule: entry place · views + view, where `place` is the molecule's in `rows`. The columns
hold entries: atom_offsets [entries + 1], prediction [entries], graph_states [entries, layers, channels], and
atom_states [atoms of all entries, layers, channels]. States are 16-bit floats, or whole numbers of 8 bits with a scale
per layer and channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moldistill.core.artifacts import Manifest, read_manifest
from moldistill.core.errors import InputError
from moldistill.core.hashing import fold_of
from moldistill.core.records import TeacherTargets
from moldistill.core.seeds import named_seed
from moldistill.core.shapes import Float
from moldistill.data.kernels import gather_states
from moldistill.data.state_kernels import gather_scaled

TARGETS_SCHEMA = 2
"""Version of the columns and facts of a targets folder; a folder of another version is refused."""

COLUMNS = ("rows", "atom_offsets", "prediction", "graph_states", "atom_states")
STATISTICS = "statistics.npz"
STATE_TYPES = {16: np.float16, 8: np.int8}
"""What states are kept as, by bits."""


@dataclass(frozen=True, slots=True)
class StateStatistics:
    """Statistics of the kept states over all views of the molecules that the teacher saw, per kept layer.

    whitening: W with (t - mean) W of unit covariance (ZCA: the symmetric choice, nearest to the states themselves).
    """

    mean: Float[Tensor, "layers width"]
    std: Float[Tensor, "layers width"]
    whitening: Float[Tensor, "layers width width"]


@dataclass(frozen=True, slots=True)
class TargetSummary:
    """What a distillation must know of the targets before the first batch.

    layers: kept layers of the teacher, counted from 1. depth: all of its layers. width: channels that are kept of each
    state. mean_atoms: of the molecules seen.
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
        self.graph_states: NDArray[Any] = columns["graph_states"]
        self.atom_states: NDArray[Any] = columns["atom_states"]
        self.layers = tuple(int(layer) for layer in manifest.facts["layers"])
        self.views = int(manifest.facts["views"])
        self.bits = int(manifest.facts["bits"])
        self.width = int(manifest.facts["width"])
        self._check_columns()
        self.scales = self._arrays(("graph_scale", "atom_scale")) if self.bits == 8 else {}

    def __reduce__(self) -> tuple[Callable[[Path], TargetStore], tuple[Path]]:
        return TargetStore.open, (self.path,)  # by path, as a store is

    @classmethod
    def open(cls, path: Path) -> TargetStore:
        """Open a finished targets folder; InputError where it is missing, damaged, of another version or other kind."""
        path = Path(path).absolute()
        manifest = read_targets_manifest(path)
        try:
            return cls(path, manifest)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path} is damaged", got=error, remedy="run `moldistill cache` again") from error

    def _check_columns(self) -> None:
        """Compiled code follows the offsets: they must fit the columns. ValueError where anything does not."""
        entries, states = len(self.rows) * self.views, (len(self.layers), self.width)
        expected = {
            "atom_offsets": (entries + 1,),
            "prediction": (entries,),
            "graph_states": (entries, *states),
            "atom_states": (int(self.atom_offsets[-1]), *states),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} is {getattr(self, name).shape}, and {shape} is expected")
        kinds = {self.graph_states.dtype, self.atom_states.dtype}
        if kinds != {np.dtype(STATE_TYPES[self.bits])}:
            raise ValueError(f"states are {kinds}, and {self.bits} bits are expected")

    def _arrays(self, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        with np.load(self.path / STATISTICS, allow_pickle=False) as saved:
            return {name: saved[name] for name in names}

    def summary(self) -> TargetSummary:
        """Shape and statistics of the states."""
        parts = ("mean", "std", "whitening")
        arrays = self._arrays(tuple(f"{kind}_{part}" for kind in ("graph", "atom") for part in parts))
        kinds = {
            kind: StateStatistics(*(torch.from_numpy(arrays[f"{kind}_{part}"]) for part in parts))
            for kind in ("graph", "atom")
        }
        mean_atoms = float(self.atom_offsets[-1]) / max(len(self.rows) * self.views, 1)
        depth = int(self.manifest.facts["depth"])
        return TargetSummary(self.layers, depth, self.width, mean_atoms, kinds["graph"], kinds["atom"])

    def entries(self, rows: NDArray[np.int64], draw: int = 0) -> NDArray[np.int64]:
        """The entry of each store row, -1 for rows the teacher never saw.

        Which view of a molecule is a hash of `draw` and its row: neither batch nor worker changes it.
        """
        place = np.searchsorted(self.rows, rows)
        known = place < len(self.rows)
        known[known] = self.rows[place[known]] == rows[known]
        if self.views == 1:
            return np.where(known, place, -1)
        start = np.uint64(named_seed(draw, "view"))
        views = fold_of((rows.astype(np.uint64) + start).view(np.int64), self.views)
        return np.where(known, place * self.views + views, -1)

    def gather(self, rows: NDArray[np.int64], atoms: int, *, widen: bool = True, draw: int = 0) -> TeacherTargets:
        """Targets of store rows, padded to `atoms` atoms; zeros and `known` false for rows the teacher never saw.

        Of several views of a molecule, it is the one that the seed `draw` draws. States are in 32 bits, or, without
        `widen`, in 16.
        """
        entries = self.entries(rows, draw)
        known = entries >= 0
        found = entries[known]
        prediction = np.zeros(len(rows), np.float32)
        prediction[known] = self.prediction[found]
        graph = self.graph_states[found]
        graph_states = np.zeros((len(rows), *graph.shape[1:]), np.float16 if self.bits == 16 else np.float32)
        graph_states[known] = graph if self.bits == 16 else graph * self.scales["graph_scale"]
        targets = TeacherTargets(
            known=torch.from_numpy(known),
            prediction=torch.from_numpy(prediction),
            graph_states=torch.from_numpy(graph_states).permute(1, 0, 2),
            atom_states=torch.from_numpy(self._atoms(entries, atoms)).permute(2, 0, 1, 3),
        )
        return targets.widened() if widen else _narrowed(targets)

    def _atoms(self, entries: NDArray[np.int64], atoms: int) -> NDArray[Any]:
        """Atom states [molecules, atoms, layers, channels] of entries, as wide as it is cheap."""
        shape = (len(entries), atoms, len(self.layers), self.width)
        source = self.atom_states.reshape(-1)
        if self.bits == 8:
            scaled = np.empty(shape, np.float32)
            scale = self.scales["atom_scale"].reshape(-1)
            gather_scaled(entries, self.atom_offsets, source, scale, atoms, scaled.reshape(-1))
            return scaled
        copied = np.empty(shape, np.float16)
        # As whole numbers: numba knows no 16-bit floats.
        width, out = shape[2] * shape[3], copied.reshape(-1).view(np.uint16)
        gather_states(entries, self.atom_offsets, source.view(np.uint16), width, atoms, out)
        return copied


def _narrowed(targets: TeacherTargets) -> TeacherTargets:
    """The same with states in 16 bits."""
    return replace(targets, graph_states=targets.graph_states.half(), atom_states=targets.atom_states.half())


def read_targets_manifest(path: Path) -> Manifest:
    """The manifest of a finished targets folder; InputError where it is none, damaged, or of another version."""
    manifest = read_manifest(path, "targets")
    if manifest.facts.get("targets_schema") != TARGETS_SCHEMA:
        raise InputError(
            f"{path} was made by another version: another schema of the targets",
            got=manifest.facts.get("targets_schema"),
            expected=TARGETS_SCHEMA,
            remedy="remove it, and run `moldistill cache` again with this version",
        )
    return manifest
