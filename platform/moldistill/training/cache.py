"""The teacher's pass: its outputs on every training molecule, written once for all students."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moldistill.core.artifacts import Manifest, new_folder, write_manifest
from moldistill.core.errors import InputError, RunError
from moldistill.core.progress import Bar, log, progress
from moldistill.core.records import ModelOutput, TargetScale
from moldistill.data.batches import epoch_batches
from moldistill.data.store import Store
from moldistill.data.targets import COLUMNS, STATISTICS
from moldistill.training.evaluate import CPU, forward, readable, wants_hydrogens

HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(slots=True)
class _Moments:
    """Sums for mean and covariance per layer, in double precision."""

    count: int
    total: Tensor
    squares: Tensor

    @classmethod
    def empty(cls, layers: int, width: int) -> _Moments:
        double = torch.float64
        return cls(0, torch.zeros(layers, width, dtype=double), torch.zeros(layers, width, width, dtype=double))

    def add(self, states: Tensor) -> None:
        """Take in states [layers, items, width]."""
        states = states.double()
        self.count += states.shape[1]
        self.total += states.sum(1)
        self.squares += states.mT @ states

    def statistics(self) -> dict[str, NDArray[np.float32]]:
        """Mean, standard deviation and ZCA whitening; directions without variance are not blown up."""
        mean = self.total / self.count
        covariance = self.squares / self.count - mean[:, :, None] * mean[:, None]
        std = covariance.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
        std = std.clamp(min=1e-3 * float(std.max().clamp(min=1e-6)))
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp(min=1e-3 * values.amax(-1, keepdim=True).clamp(min=1e-12))
        whitening = vectors @ (values.rsqrt()[:, :, None] * vectors.mT)
        return {name: part.float().numpy() for name, part in (("mean", mean), ("std", std), ("whitening", whitening))}


def target_bytes(store: Store, rows: NDArray[np.int64], layers: int, width: int) -> int:
    """Bytes that the targets of these rows take on disk."""
    return int((store.size(rows).sum() + len(rows)) * layers * width * 2 + len(rows) * 20)


def cache_targets(
    model: nn.Module,
    store: Store,
    out: Path,
    *,
    scale: TargetScale,
    teacher_identity: str,
    layers: tuple[int, ...] | None = None,
    device: torch.device = CPU,
) -> Manifest:
    """Write the targets folder `out`: the teacher's prediction and states for each training row with positions.

    `layers` (counted from 1) chooses which layers are kept; None keeps all. Rows of valid-3d get no targets: students
    train on none of them. Raises RunError where the disk cannot hold the targets.
    """
    rows = readable(store, store.rows("train"), "teacher")
    if not len(rows):
        raise InputError(f"{store.path} has no training rows with positions", remedy="prepare a root that has an SDF")
    probe = _run(model, store, rows[:1], device)
    depth, width = len(probe.graph_states), probe.graph_states[0].shape[-1]
    kept = tuple(layers) if layers is not None else tuple(range(1, depth + 1))
    if not kept or any(not 1 <= layer <= depth for layer in kept):
        raise InputError("layers to keep", got=list(kept), expected=f"whole numbers from 1 to {depth}")
    _check_disk(out, target_bytes(store, rows, len(kept), width))
    with new_folder(out) as folder, progress("teacher's targets", len(rows)) as bar:
        writer = _Writer(folder, store, rows, kept, width)
        writer.fill(model, scale, device, bar)
        facts = {"layers": kept, "depth": depth, "width": width, "rows": len(rows)}
        files = [f"{name}.npy" for name in COLUMNS] + [STATISTICS]
        inputs = {"teacher": teacher_identity, "store": store.identity}
        return write_manifest(folder, "targets", files=files, inputs=inputs, facts=facts)


def _check_disk(out: Path, needed: int) -> None:
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    log(f"teacher's targets take {needed / 2**20:,.1f} MiB ({free / 2**30:,.1f} GiB are free)")
    if needed > free * 0.95:
        raise RunError(
            f"the targets do not fit on the disk of {out}",
            got=f"{free / 2**30:,.1f} GiB free",
            expected=f"{needed / 2**30:,.1f} GiB",
            remedy="keep fewer layers with --layers, or name another disk with --out",
        )


@torch.no_grad()
def _run(model: nn.Module, store: Store, rows: NDArray[np.int64], device: torch.device) -> ModelOutput:
    batch = next(iter(epoch_batches(store, rows, batch_size=len(rows), hydrogens=wants_hydrogens(model))))
    return forward(model.eval(), "teacher", batch.to(device))


class _Writer:
    """Columns of a targets folder, filled batch by batch in whatever order the batches come."""

    def __init__(self, folder: Path, store: Store, rows: NDArray[np.int64], kept: tuple[int, ...], width: int) -> None:
        self.folder, self.store, self.rows, self.kept = folder, store, rows, kept
        self.offsets = np.concatenate([[0], np.cumsum(store.size(rows))]).astype(np.int64)
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "prediction": ((len(rows),), np.float32),
            "graph_states": ((len(rows), len(kept), width), np.float16),
            "atom_states": ((int(self.offsets[-1]), len(kept), width), np.float16),
        }
        self.columns = {
            name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
            for name, (shape, dtype) in shapes.items()
        }
        np.save(folder / "rows.npy", rows)
        np.save(folder / "atom_offsets.npy", self.offsets)
        self.moments = {kind: _Moments.empty(len(kept), width) for kind in ("graph", "atom")}

    @torch.no_grad()
    def fill(self, model: nn.Module, scale: TargetScale, device: torch.device, bar: Bar) -> None:
        """Run the teacher over all rows and write what it says."""
        model.eval()
        pin, hydrogens = device.type == "cuda", wants_hydrogens(model)
        for batch in epoch_batches(self.store, self.rows, batch_size=256, hydrogens=hydrogens, pin=pin):
            output = forward(model, "teacher", batch.to(device, non_blocking=True))
            places = np.searchsorted(self.rows, batch.molecules.rows.numpy())
            self._take(output, places, batch.molecules.real, scale)
            bar.advance(len(places))
        for column in self.columns.values():
            column.flush()
        statistics = {
            f"{kind}_{name}": value
            for kind, moments in self.moments.items()
            for name, value in moments.statistics().items()
        }
        np.savez(self.folder / STATISTICS, **statistics)  # type: ignore[arg-type]  # names are chosen above

    def _take(self, output: ModelOutput, places: NDArray[np.int64], real: Tensor, scale: TargetScale) -> None:
        graph = torch.stack([output.graph_states[layer - 1] for layer in self.kept]).float().cpu()
        atoms = torch.stack([output.atom_states[layer - 1] for layer in self.kept]).float().cpu()[:, real]
        largest = max(float(graph.abs().max()), float(atoms.abs().max()))
        if not largest < HALF_MAX:
            raise RunError("the teacher's states do not fit 16-bit floats", got=largest, expected=f"below {HALF_MAX:g}")
        self.moments["graph"].add(graph)
        self.moments["atom"].add(atoms)
        self.columns["prediction"][places] = output.prediction.cpu().double() * scale.std + scale.mean
        self.columns["graph_states"][places] = graph.permute(1, 0, 2).half().numpy()
        spans = [np.arange(self.offsets[place], self.offsets[place + 1]) for place in places]
        self.columns["atom_states"][np.concatenate(spans)] = atoms.permute(1, 0, 2).half().numpy()
