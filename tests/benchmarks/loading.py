"""Batches, padding, and what a store weighs and costs to open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from inputs import Inputs, fine_rows, pyg_data
from numpy.typing import NDArray
from timing import Figure, side_by_side, single
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from moldistill.data.batches import batch_plan, epoch_batches
from moldistill.data.columns import COLUMNS
from moldistill.data.store import Store

BATCH = 256
ATOMS = 14  # of an average molecule of PCQM4Mv2


def batches(inputs: Inputs) -> list[Figure]:
    """An epoch of shuffled dense batches of 256 with shortest paths against PyG's loader over the same molecules."""
    figures = []
    for name in inputs.names:
        store = inputs.store(name)
        rows = fine_rows(store)
        listed = [pyg_data(store.smiles(int(row)), float(store.target[row])) for row in rows]
        loader = DataLoader(listed, batch_size=BATCH, shuffle=True)

        def ours(store: Store = store, rows: NDArray[np.int64] = rows) -> None:
            for _ in epoch_batches(store, rows, batch_size=BATCH, shuffle=True):
                pass

        def theirs(loader: DataLoader = loader) -> None:
            for _ in loader:
                pass

        reading = "PyG's time / ours (ours dense, with shortest paths and positions)"
        figures.append(side_by_side("batches", name, reading, theirs, ours, rounds=inputs.rounds, molecules=len(rows)))
    return figures


def padding(inputs: Inputs) -> list[Figure]:
    """Share of atom tokens and of atom pairs that are padding, over an epoch of shuffled batches."""
    figures = []
    for name in inputs.names:
        store = inputs.store(name)
        size = store.size(store.usable(store.rows("train")))
        for batch in (64, BATCH):
            plan = batch_plan(size, batch, seed=0, epoch=0, shuffle=True)
            shuffled = np.random.default_rng(0).permutation(len(size))
            plain = [shuffled[start : start + batch] for start in range(0, len(size), batch)]
            detail = {"pairs": _padded(size, plan, 2), "tokens_unsorted": _padded(size, plain, 1)}
            reading = f"of the atom tokens are padding; of the pairs {detail['pairs']:.1%}"
            reading += f"; of the tokens of unsorted batches {detail['tokens_unsorted']:.1%}"
            figures.append(single(f"padding, batches of {batch}", name, reading, _padded(size, plan, 1), **detail))
    return figures


def _padded(size: NDArray[np.int64], plan: Sequence[NDArray[np.int64]], power: int) -> float:
    real = sum(int((size[batch] ** power).sum()) for batch in plan)
    kept: int = sum(len(batch) * int(size[batch].max()) ** power for batch in plan)
    return 1.0 - real / kept


def store_bytes(inputs: Inputs) -> list[Figure]:
    """Bytes per molecule of 14 heavy atoms: what there is per row, atom, bond … times how many of them it has."""
    figures = []
    for name in inputs.names:
        store = inputs.store(name)
        rows = fine_rows(store)
        counts = _counts_per_molecule(store, rows)
        parts = {
            spec.name: np.dtype(spec.dtype).itemsize * float(np.prod(spec.shape, initial=1)) * counts[spec.per]
            for spec in COLUMNS
        }
        whole = sum(parts.values())
        data = pyg_data(store.smiles(int(rows[0])))
        peer = _pyg_bytes(data, counts["bond"])
        title = f"bytes per molecule of {ATOMS} atoms"
        without = whole - parts["shortest_paths"]
        figures += [
            single(
                f"{title}, whole", name, f"bytes with shortest paths and geometry (PyG: {peer:.0f})", whole, **parts
            ),
            single(f"{title}, no paths", name, f"bytes without shortest paths (PyG: {peer:.0f})", without),
        ]
    return figures


def _counts_per_molecule(store: Store, rows: NDArray[np.int64]) -> dict[str, float]:
    atoms = store.size(rows).sum()

    def per_molecule(offsets: NDArray[np.int64]) -> float:
        return float((offsets[rows + 1] - offsets[rows]).sum() / atoms * ATOMS)

    return {
        "row": 1.0,
        "row + 1": 1.0,
        "atom": float(ATOMS),
        "bond": per_molecule(store.bond_offsets),
        "path": float(ATOMS**2),
        "hydrogen": per_molecule(store.hydrogen_offsets),
        "byte": per_molecule(store.smiles_offsets),
    }


def _pyg_bytes(data: Data, bonds: float) -> float:
    """Bytes of the tensors of such a molecule in PyG's collated storage, without its three slices and geometry."""
    atom = data.x[0].numel() * data.x.element_size()
    bond = 2 * (2 * data.edge_index.element_size() + data.edge_attr[0].numel() * data.edge_attr.element_size())
    return float(atom * ATOMS + bond * bonds + data.y.element_size())


def opening(inputs: Inputs) -> list[Figure]:
    """Milliseconds to open a store, headers checked; it does not grow with the store."""
    figures = []
    for name in inputs.names:
        store = inputs.store(name)
        paths = [store.path / spec.file for spec in COLUMNS]

        def opened(path: Path = store.path) -> None:
            for _ in range(20):
                Store.open(path)

        def mapped(paths: list[Path] = paths) -> None:
            for path in paths * 20:
                np.load(path, mmap_mode="r", allow_pickle=False)

        measured = side_by_side("opening", name, "", opened, mapped, rounds=inputs.rounds)
        took = measured.detail["seconds_above"] / 20 * 1000
        reading = (
            f"ms to open a store of {len(store):,} rows ({measured.value:.2f} times a bare np.load of its columns)"
        )
        figures.append(single("opening", name, reading, took, over_bare=measured.value))
    return figures
