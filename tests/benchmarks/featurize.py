"""SMILES to features, and the whole preparation, against ogb and PyTorch Geometric."""

from __future__ import annotations

import csv
import gzip
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from inputs import Inputs, pyg_data, quietly_prepare, roots
from ogb.utils.mol import smiles2graph  # type: ignore[import-untyped]
from rdkit import Chem
from timing import Figure, side_by_side
from torch_geometric.data import InMemoryDataset

from moldistill.chem.featurize import featurize, offsets
from moldistill.core.vocabulary import BOND_FEATURES_OF_CODE
from moldistill.data.prepare import CHUNK

FEATURES_OF_CODE = np.array(BOND_FEATURES_OF_CODE, np.uint8)


def featurization(inputs: Inputs) -> list[Figure]:
    """Ours (which finds shortest paths, too) against ogb's, and against RDKit's parsing alone, the floor of ogb's."""
    figures = []
    for name in inputs.names:
        smiles = inputs.smiles(name)[: inputs.limit // 2]
        _check_equal(smiles)
        work = {
            "ogb": lambda smiles=smiles: [smiles2graph(text) for text in smiles],
            "ours": lambda smiles=smiles: [featurize(smiles[at : at + CHUNK]) for at in range(0, len(smiles), CHUNK)],
            "parsing": lambda smiles=smiles: [Chem.MolFromSmiles(text) for text in smiles],
        }
        pairs = (
            ("featurization", "ogb's time / ours (ours finds shortest paths, too)", "ogb", "ours"),
            ("featurization: parser", "ogb's time / RDKit's MolFromSmiles alone", "ogb", "parsing"),
        )
        figures += [
            side_by_side(title, name, reading, work[above], work[below], rounds=inputs.rounds, molecules=len(smiles))
            for title, reading, above, below in pairs
        ]
    return figures


def _check_equal(smiles: Sequence[str]) -> None:
    """Every column, bit by bit; else there is no use in timing."""
    graphs = featurize(smiles)
    atoms, bonds = offsets(graphs.atom_count), offsets(graphs.bond_count)
    for row, text in enumerate(smiles):
        theirs, own = smiles2graph(text), graphs.bonds[bonds[row] : bonds[row + 1]]
        both = np.stack([own[:, :2], own[:, 1::-1]], 1).reshape(-1, 2).T
        equal = (
            np.array_equal(graphs.atom_features[atoms[row] : atoms[row + 1]], theirs["node_feat"])
            and np.array_equal(both, theirs["edge_index"])
            and np.array_equal(np.repeat(FEATURES_OF_CODE[own[:, 2]], 2, axis=0), theirs["edge_feat"])
        )
        if not equal:
            raise SystemExit(f"features of {text} differ from ogb's")


def preparation(inputs: Inputs) -> list[Figure]:
    """A CSV of SMILES to a finished store, against the same CSV to PyG's saved dataset."""
    figures = []
    for name in inputs.names:
        table, rows = inputs.scratch / f"{name}.csv", 3 * inputs.limit
        with gzip.open(roots()[name] / "raw" / "data.csv.gz", "rt", encoding="utf-8") as stream:
            smiles = [row["smiles"] for row in itertools.islice(csv.DictReader(stream), rows)]
        with table.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([("smiles", "homolumogap"), *((text, 1.0) for text in smiles)])

        def ours(table: Path = table) -> None:
            out = table.with_suffix(".store")
            shutil.rmtree(out, ignore_errors=True)
            quietly_prepare(table, out, None)

        def theirs(table: Path = table) -> None:
            with table.open(encoding="utf-8") as stream:
                listed = [pyg_data(row["smiles"], float(row["homolumogap"])) for row in csv.DictReader(stream)]
            torch.save(InMemoryDataset.collate(listed), table.with_suffix(".pt"))

        reading = "PyG's time / ours (ours with shortest paths, duplicates and checksums)"
        figures.append(
            side_by_side("preparation", name, reading, theirs, ours, rounds=inputs.rounds, molecules=len(smiles))
        )
    return figures
