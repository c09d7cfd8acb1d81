"""The store: molecules as memory-mapped columns, one row per source row. Opening reads headers only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldistill.core.artifacts import Manifest, read_manifest
from moldistill.core.errors import InputError
from moldistill.core.shapes import Bool, Float, Int, UInt8
from moldistill.core.vocabulary import BOND_FEATURES_OF_CODE, FLAGS, FLAGS_WITH_GRAPH, SPLITS, vocabulary_hash
from moldistill.data.columns import COLUMNS, open_column
from moldistill.data.splits import split_code

STORE_SCHEMA = 2
"""Version of the columns and facts of a store; a store of another version is refused."""

_HAS_GRAPH = np.isin(np.arange(256), FLAGS_WITH_GRAPH)
_FEATURES_OF_CODE = np.array(BOND_FEATURES_OF_CODE, np.uint8)


@dataclass(frozen=True, slots=True)
class Molecule:
    """One row of a store, for inspection and drawing. Positions (Å) are None where there is no geometry."""

    row: int
    source_row: int
    smiles: str
    split: str | None
    flag: str
    target: float
    atom_features: UInt8[np.ndarray, "atoms 9"]
    bond_index: UInt8[np.ndarray, "bonds 2"]
    bond_features: UInt8[np.ndarray, "bonds 3"]
    shortest_paths: UInt8[np.ndarray, "atoms atoms"]
    positions: Float[np.ndarray, "atoms 3"] | None
    hydrogen_positions: Float[np.ndarray, "hydrogens 3"]
    hydrogen_parent: UInt8[np.ndarray, " hydrogens"]


@dataclass(frozen=True)
class Store:
    """Columns of a finished store, memory-mapped and read-only.

    row: source row. split: index into SPLITS, -1 none. target: eV, NaN unknown. flag: index into FLAGS.
    Row i has atoms atom_offsets[i]:atom_offsets[i + 1], and so on. bonds: begin, end, `vocabulary.bond_code`.
    shortest_paths: bonds between atoms i < j of a molecule, in the order of (i, j); 255 where unreachable.
    positions: Å, NaN where has_positions is false.
    """

    path: Path
    manifest: Manifest
    row: Int[np.ndarray, " rows"]
    split: Int[np.ndarray, " rows"]
    target: Float[np.ndarray, " rows"]
    flag: UInt8[np.ndarray, " rows"]
    has_positions: Bool[np.ndarray, " rows"]
    atom_offsets: Int[np.ndarray, " rows_and_one"]
    bond_offsets: Int[np.ndarray, " rows_and_one"]
    pair_offsets: Int[np.ndarray, " rows_and_one"]
    hydrogen_offsets: Int[np.ndarray, " rows_and_one"]
    smiles_offsets: Int[np.ndarray, " rows_and_one"]
    atom_features: UInt8[np.ndarray, "atoms 9"]
    bonds: UInt8[np.ndarray, "bonds 3"]
    shortest_paths: UInt8[np.ndarray, " pairs"]
    positions: Float[np.ndarray, "atoms 3"]
    hydrogen_positions: Float[np.ndarray, "hydrogens 3"]
    hydrogen_parent: UInt8[np.ndarray, " hydrogens"]
    smiles_bytes: UInt8[np.ndarray, " bytes"]

    @classmethod
    def open(cls, path: Path | str) -> Store:
        """Map the columns of a finished store.

        Raises InputError for a folder that is no store, unfinished, cut short, or made with another schema or
        vocabulary. Cheap whatever the size: sizes, headers and the last offsets are checked, not the content.
        """
        path = Path(path).expanduser().absolute()
        manifest = read_manifest(path, "store")
        _check_versions(path, manifest)
        columns = {spec.name: open_column(path, spec) for spec in COLUMNS}
        _check_lengths(path, columns)
        return cls(path, manifest, **columns)

    def __len__(self) -> int:
        return len(self.row)

    def __reduce__(self) -> tuple[Callable[..., Store], tuple[Path, str]]:
        # By path: the columns of a whole store would travel to every worker otherwise.
        return _reopened, (self.path, self.identity)

    @property
    def identity(self) -> str:
        """Hash of the content: equal for equal content, wherever it was made."""
        return self.manifest.identity

    @property
    def split_hash(self) -> str:
        """Hash of source rows and splits, `splits.split_hash`."""
        return str(self.manifest.facts["split_hash"])

    def rows(self, split: str) -> Int[np.ndarray, " selected"]:
        """Rows of a split, ascending, flagged or not. Raises InputError for a name that is no split."""
        return np.flatnonzero(self.split == split_code(split))

    def usable(self, rows: Int[np.ndarray, " selected"]) -> Int[np.ndarray, " usable"]:
        """Those of `rows` that have a graph: the array itself where all have one."""
        usable = _HAS_GRAPH[self.flag[rows]]
        return rows if usable.all() else rows[usable]

    def size(self, rows: Int[np.ndarray, " selected"]) -> Int[np.ndarray, " selected"]:
        """Number of atoms (heavy ones, and hydrogens that the SMILES keeps) of each row; 0 without a graph."""
        size: Int[np.ndarray, " selected"] = self.atom_offsets[rows + 1] - self.atom_offsets[rows]
        return size

    def smiles(self, row: int) -> str:
        """SMILES of a row, as in the source."""
        begin, end = self.smiles_offsets[row : row + 2]
        return self.smiles_bytes[begin:end].tobytes().decode()

    def molecule(self, row: int) -> Molecule:
        """Everything about one row."""
        atoms, bonds, pairs, hydrogens = (
            slice(offsets[row], offsets[row + 1])
            for offsets in (self.atom_offsets, self.bond_offsets, self.pair_offsets, self.hydrogen_offsets)
        )
        size = int(atoms.stop - atoms.start)
        split = int(self.split[row])
        return Molecule(
            row=row,
            source_row=int(self.row[row]),
            smiles=self.smiles(row),
            split=SPLITS[split] if split >= 0 else None,
            flag=FLAGS[self.flag[row]],
            target=float(self.target[row]),
            atom_features=self.atom_features[atoms],
            bond_index=self.bonds[bonds, :2],
            bond_features=_FEATURES_OF_CODE[self.bonds[bonds, 2]],
            shortest_paths=_square(self.shortest_paths[pairs], size),
            positions=self.positions[atoms] if self.has_positions[row] else None,
            hydrogen_positions=self.hydrogen_positions[hydrogens],
            hydrogen_parent=self.hydrogen_parent[hydrogens],
        )

    def to_pyg(self, rows: Int[np.ndarray, " selected"], **options: Any) -> Any:
        """A `torch_geometric.data.Dataset` over rows that have a graph; for its options see `views.to_pyg`."""
        from moldistill.data.views import to_pyg

        return to_pyg(self, rows, **options)

    def to_torch(self, rows: Int[np.ndarray, " selected"], **options: Any) -> Any:
        """A `torch.utils.data.Dataset` over rows that have a graph, with padded batches; see `views.TorchView`."""
        from moldistill.data.views import to_torch

        return to_torch(self, rows, **options)


def _reopened(path: Path, identity: str) -> Store:
    """The store that was pickled, or InputError where another one has taken its place."""
    store = Store.open(path)
    if store.identity != identity:
        raise InputError(
            f"{path} has changed since it was opened",
            got=store.identity,
            expected=identity,
            remedy="open the store again",
        )
    return store


def _square(pairs: UInt8[np.ndarray, " pairs"], size: int) -> UInt8[np.ndarray, "atoms atoms"]:
    """The symmetric matrix, with a diagonal of zeros, whose upper triangle is given."""
    square = np.zeros((size, size), np.uint8)
    square[np.triu_indices(size, 1)] = pairs
    return np.asarray(square + square.T)


def _check_versions(path: Path, manifest: Manifest) -> None:
    facts = manifest.facts
    for what, key, expected in (
        ("schema of the store", "store_schema", STORE_SCHEMA),
        ("vocabulary of atom and bond features", "vocabulary", vocabulary_hash()),
    ):
        if facts.get(key) != expected:
            raise InputError(
                f"{path} was made by another version: another {what}",
                got=facts.get(key),
                expected=expected,
                remedy="prepare it again with this version",
            )
    missing = [spec.file for spec in COLUMNS if spec.file not in manifest.files]
    if missing:
        raise InputError(f"{path} lacks columns", got=", ".join(missing), remedy="prepare it again")


def _check_lengths(path: Path, columns: dict[str, NDArray[Any]]) -> None:
    rows = len(columns["row"])
    expected = {"row": rows, "row + 1": rows + 1}
    for per in ("atom", "bond", "pair", "hydrogen"):
        expected[per] = _last(columns[f"{per}_offsets"])
    expected["byte"] = _last(columns["smiles_offsets"])
    for spec in COLUMNS:
        if len(columns[spec.name]) != expected[spec.per]:
            raise InputError(
                f"{path / spec.file} does not fit the other columns",
                got=f"{len(columns[spec.name]):,} entries",
                expected=f"{expected[spec.per]:,}",
                remedy="prepare the store again",
            )


def _last(offsets: NDArray[Any]) -> int:
    return int(offsets[-1]) if len(offsets) else -1
