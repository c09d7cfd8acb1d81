"""Which rows of a store hold the same molecule: by a compiled hash, and by RDKit only where hashes are equal.

Two rows hold the same molecule where RDKit writes the same canonical SMILES, with stereo and isotopes. What RDKit
cannot sanitize is compared with its like, as it is written; what has no graph, by its text. Rows without atoms are
equal to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase

from moldistill.chem.parse import parse, parse_as_written
from moldistill.core.cluster import ordered_map
from moldistill.core.progress import progress
from moldistill.core.shapes import Int
from moldistill.core.vocabulary import FLAGS
from moldistill.data.identity import NO_MOLECULE, mark_new_texts, row_hashes, text_hashes
from moldistill.data.passes import blocks, check_content, release, smiles_of
from moldistill.data.store import Store

CHUNK = 2000
"""Molecules per task."""

_FINE, _UNSANITIZED = FLAGS.index("fine"), FLAGS.index("unsanitized")
Task = tuple[tuple[str, ...], bytes]
"""SMILES, and the flag of each."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Rows of the molecules that occur more than once.

    Molecule g has rows[starts[g]:starts[g + 1]], at least two, ascending. Molecules are in the order of their first
    rows. compared: rows that were looked at.
    """

    compared: int
    rows: Int[np.ndarray, " members"]
    starts: Int[np.ndarray, " molecules_and_one"]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def members(self, group: int) -> Int[np.ndarray, " occurrences"]:
        """Rows of one molecule."""
        return self.rows[self.starts[group] : self.starts[group + 1]]


def find_groups(store: Store) -> Groups:
    """Group the rows of a store by molecule. Canonical SMILES are computed by Ray tasks where Ray is up, else here.

    Takes about 40 bytes a row where few repeat, less than twice as many where all do. Raises InputError for a store
    whose content is damaged.
    """
    check_content(store)
    compared = store.flag != NO_MOLECULE
    rows, key = _candidates(row_hashes(store))
    key, rows = key[compared[rows]], rows[compared[rows]]
    text = text_hashes(store, rows)
    order = np.lexsort((text, key))  # stable: equal texts stay in the order of rows
    new_key = _changes(key, order)
    new_text = new_key | _changes(text, order)
    del key, text
    mark_new_texts(rows, order, store.smiles_offsets, store.smiles_bytes, new_text)
    release(store.smiles_offsets, store.smiles_bytes)
    return _grouped(int(compared.sum()), rows, _molecules(store, rows, order, new_key, new_text))


def _candidates(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Rows, ascending, whose hash occurs more than once, and their hashes."""
    order = np.argsort(hashes)
    new = _changes(hashes, order)
    repeated = np.append(~new[1:], False)[: len(new)] | ~new
    rows = order[repeated]
    del order
    rows.sort()
    return rows, hashes[rows]


def _changes(values: NDArray[Any], order: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where a value, in this order, is another than the one before; true of the first."""
    new = np.ones(len(order), np.bool_)
    for block in blocks(len(order) - 1):
        part = values[order[block.start : block.stop + 1]]
        new[block.start + 1 : block.stop + 1] = part[1:] != part[:-1]
    return new


def _molecules(
    store: Store,
    rows: NDArray[np.int64],
    order: NDArray[np.int64],
    new_key: NDArray[np.bool_],
    new_text: NDArray[np.bool_],
) -> NDArray[np.int32]:
    """A number for each of `rows`, equal for equal molecules; order sorts them by hash and text.

    One row of each different text is looked at, and only where its hash has several texts.
    """
    firsts = np.flatnonzero(new_text)
    texts_of_key = np.diff(np.append(np.flatnonzero(new_key[firsts]), len(firsts)))
    unclear = np.repeat(texts_of_key > 1, texts_of_key)
    number = np.arange(len(firsts), dtype=np.int32)
    number[unclear] = len(firsts) + _numbered(_digests(store, rows[order[firsts[unclear]]]))
    molecule = np.empty(len(rows), np.int32)
    molecule[order] = number[np.cumsum(new_text, dtype=np.int32) - 1]
    return molecule


def _numbered(digests: NDArray[np.uint64]) -> NDArray[np.int32]:
    """A number from 1 on for each digest, [digests, 2], equal for equal ones."""
    order = np.lexsort((digests[:, 0], digests[:, 1]))
    numbers = np.empty(len(order), np.int32)
    numbers[order] = np.cumsum(_changes(digests[:, 0], order) | _changes(digests[:, 1], order), dtype=np.int32)
    return numbers


def _grouped(compared: int, rows: NDArray[np.int64], molecule: NDArray[np.int32]) -> Groups:
    """Groups of at least two, by their first rows; molecule: a number for each of `rows`, which ascend."""
    places = np.arange(len(rows), dtype=np.int32)
    first = np.zeros(int(molecule.max(initial=-1)) + 1, np.int32)
    first[molecule[::-1]] = places[::-1]  # of several values for a place, the last one stays
    first = first[molecule]
    order = np.argsort(first, kind="stable")
    sizes = np.diff(np.append(np.flatnonzero(_changes(first, order)), len(first)))
    kept = sizes > 1
    starts = np.zeros(int(kept.sum()) + 1, np.int64)
    np.cumsum(sizes[kept], out=starts[1:])
    return Groups(compared, rows[order[np.repeat(kept, sizes)]], starts)


def _digests(store: Store, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """128 bits of the canonical SMILES of each of `rows`, [rows, 2]."""
    digests = np.zeros((len(rows), 2), np.uint64)
    if not len(rows):
        return digests
    done = 0
    with progress("canonical SMILES", total=len(rows)) as bar:
        for part in ordered_map(digest_chunk, _tasks(store, rows)):
            digests[done : done + len(part)] = part
            done += len(part)
            bar.advance(len(part))
    release(store.smiles_offsets, store.smiles_bytes)
    return digests


def _tasks(store: Store, rows: NDArray[np.int64]) -> Iterator[Task]:
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        yield tuple(smiles_of(store, row) for row in chunk.tolist()), store.flag[chunk].tobytes()


def digest_chunk(task: Task) -> NDArray[np.uint64]:
    """Digests of a chunk of SMILES, [molecules, 2]: what one task does, in any process of the cluster."""
    with rdBase.BlockLogs():
        named = (canonical_smiles(smiles, flag) for smiles, flag in zip(*task, strict=True))
        data = b"".join(blake2b(f"{kind} {name}".encode(), digest_size=16).digest() for kind, name in named)
    return np.frombuffer(data, np.uint64).reshape(-1, 2)


def canonical_smiles(smiles: str, flag: int) -> tuple[str, str]:
    """How the molecule of a row was read (a name of FLAGS, or "text"), and RDKit's canonical SMILES of it.

    The text as it is, where the row has no graph or RDKit no SMILES.
    """
    molecule = None
    if flag == _FINE:
        molecule = parse(smiles)
    elif flag == _UNSANITIZED:
        molecule, _ = parse_as_written(smiles)
    if molecule is not None:
        try:
            return FLAGS[flag], Chem.MolToSmiles(molecule)
        except (RuntimeError, ValueError):
            pass
    return "text", smiles
