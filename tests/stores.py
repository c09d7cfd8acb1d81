"""Small stores made of rows written in a test."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from rdkit import Chem, rdBase

from moldistill.chem.parse import parse_as_written
from moldistill.core.settings import PrepareSettings
from moldistill.data.prepare import prepare
from moldistill.data.store import Store

Row = tuple[str, float | None, str]
"""SMILES, target (None: blank) and split ("" none)."""


def store_of(folder: Path, rows: Iterable[Row]) -> Store:
    """The store of a CSV with these rows, below `folder`."""
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["smiles", "homolumogap", "split"])
        table.writerows([smiles, "" if target is None else repr(target), split] for smiles, target, split in rows)
    prepare(folder / "rows.csv", folder / "store", PrepareSettings())
    return Store.open(folder / "store")


def smiles_of_root(root: Path) -> list[str]:
    """The SMILES of a root in PCQM4Mv2's layout."""
    with gzip.open(root / "raw" / "data.csv.gz", "rt", encoding="utf-8") as stream:
        return [row["smiles"] for row in csv.DictReader(stream)]


def rewritten(smiles: str, seed: int) -> str:
    """The same molecule, its atoms in another order; the text itself where RDKit reads none."""
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None:
            molecule, _ = parse_as_written(smiles)
        if molecule is None or molecule.GetNumAtoms() == 0:
            return smiles
        if seed % 2:
            order = np.random.default_rng(seed).permutation(molecule.GetNumAtoms())
            return str(Chem.MolToSmiles(Chem.RenumberAtoms(molecule, order.tolist()), canonical=False))
        return str(Chem.MolToRandomSmilesVect(molecule, 1, randomSeed=seed)[0])


def augmented(smiles: Sequence[str], seed: int = 0) -> list[Row]:
    """Every molecule once and about half of them again, up to three times, rewritten; at random splits, with labels
    of which a third are missing and a tenth contradict.
    """
    random = np.random.default_rng(seed)
    splits = ("train", "train", "valid", "test-dev", "test-challenge")
    rows: list[Row] = []
    for place, text in enumerate(smiles):
        label = round(float(random.normal(5.0, 1.0)), 6)
        for copy in range(1 + int(random.choice(4, p=[0.5, 0.3, 0.1, 0.1]))):
            written = rewritten(text, place + copy) if copy else text
            known = None if random.random() < 0.33 else label + (float(random.random()) if random.random() < 0.1 else 0)
            rows.append((written, known, splits[random.integers(len(splits))]))
    return [rows[place] for place in random.permutation(len(rows))]
