"""What a store holds, split by split: sizes, elements, targets, and what lies outside the training molecules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from moldistill.core.vocabulary import FLAGS, FLAGS_WITH_GRAPH, MAX_ATOMS
from moldistill.data.census import ELEMENTS, TRAIN, Census, mean_power
from moldistill.data.columns import COLUMNS
from moldistill.data.duplicates import EXAMPLES, TOLERANCE, Duplicates, summarize
from moldistill.data.groups import Groups
from moldistill.data.passes import SPLIT_NAMES
from moldistill.data.store import Store

SIZE_CLASSES = (5, 10, 15, 20, 25, 30, 40, 50, MAX_ATOMS)
"""Largest number of atoms of each class of the histogram."""

OTHER = "other"
"""Name of what is no element of the periodic table: wildcards."""

_GROUPS = {
    "graph": ("atom_features", "bonds", "shortest_paths"),
    "geometry": ("has_positions", "positions", "hydrogen_positions", "hydrogen_parent"),
    "text": ("smiles_bytes",),
    "rows": ("row", "split", "target", "flag"),
}
_OFFSETS = "offsets"


@dataclass(frozen=True, slots=True)
class SizeStats:
    """Atoms per molecule (heavy ones, and hydrogens that the SMILES keeps). histogram: molecules by class, "6-10"."""

    mean: float
    median: int
    smallest: int
    largest: int
    histogram: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class TargetStats:
    """Known targets, eV. median_error: mean absolute error of the training median, over rows with a graph."""

    known: int
    mean: float
    std: float
    median: float
    min: float
    max: float
    median_error: float | None


@dataclass(frozen=True, slots=True)
class Outside:
    """Molecules that differ from all training molecules: by size, by element, by either. elements: molecules by each
    element that training lacks.
    """

    larger: int
    foreign: int
    either: int
    elements: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class SplitStats:
    """One split. flags: rows by flag. sizes: None without a graph; target: None where none is known; outside: None for
    the training rows, and where there is no training molecule.
    """

    rows: int
    with_graph: int
    with_positions: int
    flags: Mapping[str, int]
    sizes: SizeStats | None
    target: TargetStats | None
    outside: Outside | None


@dataclass(frozen=True, slots=True)
class ElementStats:
    """An element: its atoms, the molecules that have it, and their share of those with a graph."""

    atoms: int
    molecules: int
    share: float


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Everything that `stats` says of a store.

    splits: those that have rows; whole: all rows. elements: most frequent first. largest_training_molecule: atoms of
    the largest row that a student can be trained on, None where there is none. bytes_per_row: by kind of column.
    source, alignment (SDF records by case) and rdkit are the manifest's. duplicates: None where not looked for.
    """

    path: str
    identity: str
    rows: int
    source: Mapping[str, Any]
    rdkit: str
    splits: Mapping[str, SplitStats]
    whole: SplitStats
    elements: Mapping[str, ElementStats]
    largest_training_molecule: int | None
    alignment: Mapping[str, int]
    bytes_per_row: Mapping[str, float]
    duplicates: Duplicates | None


def store_stats(
    store: Store, groups: Groups | None = None, *, tolerance: float = TOLERANCE, examples: int = EXAMPLES
) -> StoreStats:
    """Statistics of a store, in one pass over its atoms and one more to look for foreign elements.

    groups: of `groups.find_groups`, for what is said about duplicates. Raises InputError for damaged content.
    """
    census = Census(store)
    everything = list(range(len(SPLIT_NAMES)))
    filled = [code for code in everything if census.flags[code].any()]
    facts = store.manifest.facts
    return StoreStats(
        path=str(store.path),
        identity=store.identity,
        rows=len(store),
        source=dict(facts.get("source", {})),
        rdkit=str(facts.get("rdkit", "unknown")),
        splits={SPLIT_NAMES[code]: _split_stats(census, [code]) for code in filled},
        whole=_split_stats(census, everything),
        elements=_elements(census),
        largest_training_molecule=census.largest,
        alignment=dict(facts.get("alignment", {})),
        bytes_per_row=_bytes_per_row(store),
        duplicates=None if groups is None else summarize(store, groups, tolerance=tolerance, examples=examples),
    )


def _split_stats(census: Census, codes: list[int]) -> SplitStats:
    """Statistics of some splits together."""
    flags = census.flags[codes].sum(0)
    return SplitStats(
        rows=int(flags.sum()),
        with_graph=int(flags[list(FLAGS_WITH_GRAPH)].sum()),
        with_positions=int(census.positions[codes].sum()),
        flags=dict(zip(FLAGS, flags.tolist(), strict=True)),
        sizes=_size_stats(census.sizes[codes].sum(0)),
        target=_target_stats(census, codes),
        outside=None if census.largest is None or codes == [TRAIN] else _outside(census, codes),
    )


def _outside(census: Census, codes: list[int]) -> Outside:
    lacking = np.where(census.known, 0, census.molecules[codes].sum(0))
    order = np.argsort(-lacking, kind="stable").tolist()
    return Outside(
        larger=int(census.larger[codes].sum()),
        foreign=int(census.foreign[codes].sum()),
        either=int(census.either[codes].sum()),
        elements={_symbol(index): int(lacking[index]) for index in order if lacking[index]},
    )


def _target_stats(census: Census, codes: list[int]) -> TargetStats | None:
    chosen = census.labelled & np.isin(census.code, codes)
    values = census.targets(chosen)
    if not len(values):
        return None
    mean, error = float(values.mean()), None
    if census.median is not None and (with_graph := census.readable[chosen]).any():
        error = mean_power(values, census.median, 1, with_graph)
    return TargetStats(
        known=len(values),
        mean=mean,
        std=mean_power(values, mean, 2) ** 0.5,
        min=float(values.min()),
        max=float(values.max()),
        median_error=error,
        median=float(np.median(values, overwrite_input=True)),
    )


def size_classes() -> list[tuple[str, int, int]]:
    """Name, smallest and largest size of each class of the histogram."""
    lows = [0, *(high + 1 for high in SIZE_CLASSES[:-1])]
    last = len(SIZE_CLASSES) - 1
    return [
        (f"{low}+" if place == last else f"{max(low, 1)}-{high}", low, high)
        for place, (low, high) in enumerate(zip(lows, SIZE_CLASSES, strict=True))
    ]


def _size_stats(counts: NDArray[np.int64]) -> SizeStats | None:
    """From the number of molecules of each size."""
    total = int(counts.sum())
    if not total:
        return None
    sizes = np.flatnonzero(counts)
    return SizeStats(
        mean=float(counts @ np.arange(len(counts)) / total),
        median=int(np.searchsorted(np.cumsum(counts), (total + 1) // 2)),
        smallest=int(sizes[0]),
        largest=int(sizes[-1]),
        histogram={name: int(counts[low : high + 1].sum()) for name, low, high in size_classes()},
    )


def _elements(census: Census) -> dict[str, ElementStats]:
    atoms, molecules = census.atoms.sum(0), census.molecules.sum(0)
    total = max(int(census.readable.sum()), 1)
    return {
        _symbol(index): ElementStats(int(atoms[index]), int(molecules[index]), int(molecules[index]) / total)
        for index in np.argsort(-molecules, kind="stable").tolist()
        if molecules[index]
    }


def _symbol(index: int) -> str:
    """Symbol of an index into the vocabulary's atomic numbers."""
    return OTHER if index >= ELEMENTS - 1 else str(Chem.GetPeriodicTable().GetElementSymbol(int(index) + 1))


def _bytes_per_row(store: Store) -> dict[str, float]:
    kind = {name: group for group, names in _GROUPS.items() for name in names}
    size = dict.fromkeys((*_GROUPS, _OFFSETS), 0)
    for spec in COLUMNS:
        size[kind.get(spec.name, _OFFSETS)] += store.manifest.files[spec.file].size
    return {group: size[group] / max(len(store), 1) for group in size}
