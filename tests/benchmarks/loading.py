"""Batches, padding, and what a store weighs, costs to open, and takes of memory to load from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from inputs import Inputs, fine_rows, pyg_data
from numpy.typing import NDArray
from tiled import tile_store
from timing import Figure, side_by_side, single
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from moldistill.data.batches import epoch_batches
from moldistill.data.columns import COLUMNS
from moldistill.data.plan import batch_plan
from moldistill.data.store import Store

BATCH = 256
ATOMS = 14  # of an average molecule of PCQM4Mv2
ROWS = 3_750_000  # about as many as PCQM4Mv2 has
GEOMETRY = ("positions", "hydrogen_offsets", "hydrogen_positions", "hydrogen_parent")
PATHS = ("shortest_paths", "pair_offsets")


@contextmanager
def one_core() -> Iterator[None]:
    """This process on one core, so that the thread that prepares batches has none of its own."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def batches(inputs: Inputs) -> list[Figure]:
    """An epoch of shuffled dense batches of 256 with shortest paths against PyG's loader over the same molecules.

    All training rows that ogb can read, on one core.
    """
    figures = []
    for name in inputs.names:
        store = inputs.whole(name)
        rows = np.intersect1d(store.rows("train"), fine_rows(store))
        listed = [pyg_data(store.smiles(int(row)), float(store.target[row])) for row in rows]
        loader = DataLoader(listed, batch_size=BATCH, shuffle=True)

        def ours(store: Store = store, rows: NDArray[np.int64] = rows) -> None:
            for _ in epoch_batches(store, rows, batch_size=BATCH, shuffle=True):
                pass

        def theirs(loader: DataLoader = loader) -> None:
            for _ in loader:
                pass

        reading = "PyG's time / ours (ours dense, with shortest paths and positions), one core"
        with one_core():
            figure = side_by_side("batches", name, reading, theirs, ours, rounds=inputs.rounds, molecules=len(rows))
        figures.append(figure)
    return figures


def padding(inputs: Inputs) -> list[Figure]:
    """Share of atom tokens and of atom pairs that are padding, over an epoch of shuffled batches."""
    figures = []
    for name in inputs.names:
        whole, some = inputs.whole(name), inputs.store(name)
        train = whole.size(whole.usable(whole.rows("train")))
        both = np.concatenate([train, whole.size(whole.usable(whole.rows("valid")))])
        part = some.size(some.usable(some.rows("train")))
        for what, sizes in (("train", train), ("train and valid", both), ("few rows", part)):
            figures += [_padding(f"{name}: {what}", sizes, {"batch_size": batch}) for batch in (64, BATCH)]
        figures.append(_padding(f"{name}: train and valid", both, {"atoms_per_batch": 4096}))
    return figures


def _padding(data: str, sizes: NDArray[np.int64], cut: dict[str, int]) -> Figure:
    plan = list(batch_plan(sizes, **cut, seed=0, epoch=0, shuffle=True))
    ((kind, value),) = cut.items()
    batch = max(len(sizes) // len(plan), 1)
    shuffled = np.random.default_rng(0).permutation(len(sizes))
    plain = [shuffled[start : start + batch] for start in range(0, len(sizes), batch)]
    detail = {"pairs": _padded(sizes, plan, 2), "tokens_unsorted": _padded(sizes, plain, 1), "rows": len(sizes)}
    reading = f"of the atom tokens are padding; of the pairs {detail['pairs']:.1%}"
    reading += f"; of the tokens of unsorted batches {detail['tokens_unsorted']:.1%} ({len(sizes):,} rows)"
    if kind == "batch_size":
        detail["least"] = _least(sizes, value)
        reading += f"; no full batches pad less than {detail['least']:.1%}"
    title = f"padding, batches of {value}" if kind == "batch_size" else f"padding, {value} atoms per batch"
    return single(title, data, reading, _padded(sizes, plan, 1), **detail)


def _padded(size: NDArray[np.int64], plan: Iterable[NDArray[np.integer]], power: int) -> float:
    real, kept = 0, 0
    for batch in plan:
        real += int((size[batch].astype(np.int64) ** power).sum())
        kept += len(batch) * int(size[batch].max()) ** power
    return 1.0 - real / kept


def _least(size: NDArray[np.int64], batch: int) -> float:
    """Padding of the tokens in the order of size, the one short batch where it is cheapest."""
    ordered = np.sort(size)
    count = -(-len(ordered) // batch)
    short = len(ordered) - (count - 1) * batch
    kept = []
    for place in range(count):
        lengths = np.full(count, batch)
        lengths[place] = short
        kept.append(int((lengths * ordered[np.cumsum(lengths) - 1]).sum()))
    return 1.0 - int(ordered.sum()) / min(kept)


def store_bytes(inputs: Inputs) -> list[Figure]:
    """Bytes per molecule of 14 heavy atoms: what there is per row, atom, bond … times how many of them it has."""
    figures = []
    for name in inputs.names:
        store = inputs.whole(name)
        rows = fine_rows(store)
        counts = _counts_per_molecule(store, rows)
        parts = {
            spec.name: np.dtype(spec.dtype).itemsize * float(np.prod(spec.shape, initial=1)) * counts[spec.per]
            for spec in COLUMNS
        }
        geometry, paths = (sum(parts[column] for column in columns) for columns in (GEOMETRY, PATHS))
        graphs = sum(parts.values()) - geometry
        peer = _pyg_bytes(pyg_data(store.smiles(int(rows[0]))), counts["bond"])
        beside = f"(PyG: {peer:.0f}); geometry takes {geometry:.0f} more"
        title = f"bytes per molecule of {ATOMS} atoms"
        figures += [
            single(f"{title}, with paths", name, f"bytes with shortest paths {beside}", graphs, **parts),
            single(f"{title}, no paths", name, f"bytes without shortest paths {beside}", graphs - paths),
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
        "pair": ATOMS * (ATOMS - 1) / 2,
        "hydrogen": per_molecule(store.hydrogen_offsets),
        "byte": per_molecule(store.smiles_offsets),
    }


def _pyg_bytes(data: Data, bonds: float) -> float:
    """Bytes of the tensors of such a molecule in PyG's collated storage, without its three slices and geometry."""
    atom = data.x[0].numel() * data.x.element_size()
    bond = 2 * (2 * data.edge_index.element_size() + data.edge_attr[0].numel() * data.edge_attr.element_size())
    return float(atom * ATOMS + bond * bonds + data.y.element_size())


def _large(inputs: Inputs) -> Store:
    """A store of the size of PCQM4Mv2, of the rows of the first source; it goes with the scratch folder."""
    rows = 3 * inputs.limit if inputs.quick else ROWS
    path = inputs.scratch / f"tiled-{rows}"
    return Store.open(path) if path.exists() else tile_store(inputs.whole(inputs.names[0]), rows, path)


def opening(inputs: Inputs) -> list[Figure]:
    """Milliseconds to open a store, headers checked; it does not grow with the store."""
    figures = []
    for name, store in ((inputs.names[0], inputs.store(inputs.names[0])), ("the same, tiled", _large(inputs))):
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


def loading_memory(inputs: Inputs) -> list[Figure]:
    """Private memory of a fresh process at its peak, while it loads shuffled batches of 256 from a large store."""
    script = Path(__file__).with_name("loading_memory.py")
    command = [sys.executable, str(script), str(_large(inputs).path), "20" if inputs.quick else "4000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout)
    beyond, before = measured["peak"] - measured["before"], measured["before"]
    reading = f"MB of private memory at the peak, beyond the {before:.0f} after the imports"
    reading += f" ({measured['batches']:,} batches of a store of {measured['rows']:,} rows)"
    return [single("memory of loading", inputs.names[0], reading, beyond, **measured)]
