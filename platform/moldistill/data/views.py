"""Store rows as datasets of other libraries: PyTorch Geometric's, and plain PyTorch's.

Both read the memory maps when an item is asked for, and are pickled as the store's path and the rows, so that the
workers of a DataLoader open the store anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from moldistill.core.errors import InputError
from moldistill.core.records import Batch
from moldistill.core.shapes import Int
from moldistill.data.batches import collate
from moldistill.data.plan import batch_count, batch_plan
from moldistill.data.store import Molecule, Store
from moldistill.data.targets import TargetStore


def to_pyg(
    store: Store,
    rows: Int[np.ndarray, " rows"],
    *,
    geometry: bool | None = None,
    transform: Callable[[Any], Any] | None = None,
) -> Any:
    """A `torch_geometric.data.Dataset` with one `Data` per row, in the order of `rows`.

    x int64 [atoms, 9] and edge_attr int64 [2 · bonds, 3] are OGB's indices; edge_index int64 [2, 2 · bonds] holds both
    directions of a bond after each other, as ogb does. y float32 [1] is the target in eV, NaN where unknown; pos
    float32 [atoms, 3] in Å; num_nodes, row and smiles.

    PyG's collate takes the attributes of the first molecule, so pos must be there for all rows or for none. By default
    it is there if every row has a geometry, and mixed rows are refused; True demands it, False leaves it out.
    Raises InputError for rows without a graph or, where it is wanted, without geometry.
    """
    chosen = _checked(store, rows)
    known = store.has_positions[chosen]
    if geometry is None:
        geometry = bool(known.any())
    if geometry and not known.all():
        raise InputError(
            "rows for PyTorch Geometric: some have no geometry, and its batches need it of all or none",
            got=f"{int((~known).sum()):,} of {len(known):,} rows without positions, such as row {chosen[~known][0]}",
            expected="rows that all have positions",
            remedy="filter them with `rows[store.has_positions[rows]]`, or say geometry=False",
        )
    return _pyg_class()(store, chosen, geometry, transform)


def to_torch(store: Store, rows: Int[np.ndarray, " rows"], *, targets: TargetStore | None = None) -> TorchView:
    """A `torch.utils.data.Dataset` of molecules for loops of one's own, see `TorchView`."""
    return TorchView(store, rows, targets)


class TorchView(Dataset[Molecule]):
    """Item i is the molecule of rows[i]; several at once, as a DataLoader asks for them, are a padded `Batch`.

    `DataLoader(view, batch_sampler=BatchPlanSampler(store.size(rows), batch_size=64), collate_fn=view.collate)`.
    Raises InputError for rows without a graph.
    """

    def __init__(self, store: Store, rows: Int[np.ndarray, " rows"], targets: TargetStore | None = None) -> None:
        self.store, self.rows, self.targets = store, _checked(store, rows), targets

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Molecule:
        return self.store.molecule(int(self.rows[place]))

    def __getitems__(self, places: Sequence[int]) -> Batch:
        return collate(self.store, self.rows[np.asarray(places, np.int64)], self.targets)

    def collate(self, items: Batch | Sequence[Molecule]) -> Batch:
        """The padded batch of what a DataLoader fetched; also of single molecules of this store."""
        if isinstance(items, Batch):
            return items
        return collate(self.store, np.array([item.row for item in items], np.int64), self.targets)


class BatchPlanSampler(Sampler[list[int]]):
    """Batches of molecules of like size (`plan.batch_plan`) as lists of places, for DataLoader's `batch_sampler`.

    sizes: atoms of each item, `store.size(rows)`. The order depends on seed and epoch alone: call `set_epoch` before
    every epoch; `start` skips batches that were seen. Of several workers, `rank` gets its share of each batch.
    """

    def __init__(
        self,
        sizes: Int[np.ndarray, " rows"],
        batch_size: int | None = None,
        *,
        atoms_per_batch: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise InputError("there is no such worker", got=rank, expected=f"0 to {world_size - 1}")
        self.sizes, self.batch_size, self.atoms_per_batch = np.asarray(sizes), batch_size, atoms_per_batch
        self.seed, self.shuffle, self.rank, self.world_size = seed, shuffle, rank, world_size
        self.epoch = self.start = 0
        self.batches = batch_count(self.sizes, batch_size, atoms_per_batch=atoms_per_batch)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Make the next pass that of `epoch`, from batch `start` on."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return max(self.batches - self.start, 0)

    def __iter__(self) -> Iterator[list[int]]:
        plan = batch_plan(
            self.sizes,
            self.batch_size,
            atoms_per_batch=self.atoms_per_batch,
            seed=self.seed,
            epoch=self.epoch,
            shuffle=self.shuffle,
        )
        for batch in range(self.start, len(plan)):
            yield plan[batch][self.rank :: self.world_size].tolist()


def _checked(store: Store, rows: Int[np.ndarray, " rows"]) -> NDArray[np.int64]:
    """The rows as int64, or InputError where one is outside the store or has no graph."""
    if np.asarray(rows).dtype.kind not in "iu" and len(rows):
        raise InputError(
            "rows are numbers of rows",
            got=f"an array of {np.asarray(rows).dtype}",
            expected="integers",
            remedy="np.flatnonzero gives those of a mask",
        )
    rows = np.array(rows, np.int64)
    outside = (rows < 0) | (rows >= len(store))
    if outside.any():
        raise InputError(
            f"row {rows[outside][0]} is not in {store.path}",
            expected=f"rows from 0 to {len(store) - 1}",
            remedy="take rows from `store.rows(split)`",
        )
    bare = rows[store.size(rows) == 0]
    if len(bare):
        raise InputError(
            f"{len(bare):,} of {len(rows):,} rows have no graph",
            got=f"row {bare[0]}: {store.molecule(int(bare[0])).flag}",
            expected="rows that have a graph",
            remedy="filter them with `store.usable(rows)`",
        )
    return rows


def _new_pyg() -> Any:
    """An instance to be filled by unpickling."""
    cls = _pyg_class()
    return cls.__new__(cls)


@cache
def _pyg_class() -> Any:
    """The dataset's class, made when PyTorch Geometric is first asked for."""
    from torch_geometric.data import Data
    from torch_geometric.data import Dataset as PygDataset

    class PygView(PygDataset):  # type: ignore[misc]  # PyTorch Geometric has no types
        """See `to_pyg`."""

        def __init__(
            self, store: Store, rows: NDArray[np.int64], geometry: bool, transform: Callable[[Any], Any] | None
        ) -> None:
            super().__init__(None, transform)
            self.store, self.rows, self.geometry = store, rows, geometry

        def len(self) -> int:
            return len(self.rows)

        def get(self, idx: int) -> Data:
            molecule = self.store.molecule(int(self.rows[idx]))
            index = torch.from_numpy(molecule.bond_index.astype(np.int64))
            features = torch.from_numpy(molecule.bond_features.astype(np.int64))
            positions = {"pos": torch.tensor(molecule.positions)} if self.geometry else {}
            return Data(
                x=torch.from_numpy(molecule.atom_features.astype(np.int64)),
                edge_index=torch.stack([index, index.flip(1)], 1).view(-1, 2).t().contiguous(),
                edge_attr=features.repeat_interleave(2, 0),
                y=torch.tensor([molecule.target], dtype=torch.float32),
                num_nodes=len(molecule.atom_features),
                row=molecule.row,
                smiles=molecule.smiles,
                **positions,
            )

        def __reduce__(self) -> tuple[Callable[[], Any], tuple[()], dict[str, Any]]:
            return _new_pyg, (), self.__dict__

    return PygView
