"""SMILES to features, and the whole preparation, against ogb and PyTorch Geometric."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import torch
from inputs import Inputs, pyg_data, quietly_prepare
from ogb.utils.mol import smiles2graph  # type: ignore[import-untyped]
from rdkit import Chem
from timing import Figure, side_by_side
from torch_geometric.data import InMemoryDataset

from moldistill.chem.features import smiles_to_graph


def featurization(inputs: Inputs) -> list[Figure]:
    """Ours (which finds shortest paths, too) against ogb's, and against RDKit's parsing alone, the floor of both."""
    figures = []
    for name in inputs.names:
        smiles = inputs.smiles(name)[: inputs.limit // 4]
        for text in smiles:
            _check_equal(text)
        work = {
            "ogb": lambda smiles=smiles: [smiles2graph(text) for text in smiles],
            "ours": lambda smiles=smiles: [smiles_to_graph(text) for text in smiles],
            "parsing": lambda smiles=smiles: [Chem.MolFromSmiles(text) for text in smiles],
        }
        pairs = (
            ("featurization", "ogb's time / ours (ours finds shortest paths, too)", "ogb", "ours"),
            ("featurization: floor", "our time / RDKit's parsing alone", "ours", "parsing"),
        )
        figures += [
            side_by_side(title, name, reading, work[above], work[below], rounds=inputs.rounds, molecules=len(smiles))
            for title, reading, above, below in pairs
        ]
    return figures


def _check_equal(smiles: str) -> None:
    ours, theirs = smiles_to_graph(smiles), smiles2graph(smiles)
    both = np.stack([ours.bond_index, ours.bond_index[:, ::-1]], 1).reshape(-1, 2).T
    equal = (
        np.array_equal(ours.atom_features, theirs["node_feat"])
        and np.array_equal(both, theirs["edge_index"])
        and np.array_equal(np.repeat(ours.bond_features, 2, axis=0), theirs["edge_feat"])
    )
    if not equal:
        raise SystemExit(f"features of {smiles} differ from ogb's: no use in timing them")


def preparation(inputs: Inputs) -> list[Figure]:
    """A CSV of SMILES to a finished store, against the same CSV to PyG's saved dataset."""
    figures = []
    for name in inputs.names:
        smiles = inputs.smiles(name)[: inputs.limit // 4]
        table, fresh = inputs.scratch / f"{name}.csv", itertools.count()
        with table.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([("smiles", "homolumogap"), *((text, 1.0) for text in smiles)])

        def ours(table: Path = table, fresh: itertools.count[int] = fresh) -> None:
            quietly_prepare(table, table.with_name(f"{table.stem}-prepared-{next(fresh)}"), None)

        def theirs(table: Path = table) -> None:
            with table.open(encoding="utf-8") as stream:
                listed = [pyg_data(row["smiles"], float(row["homolumogap"])) for row in csv.DictReader(stream)]
            torch.save(InMemoryDataset.collate(listed), table.with_suffix(".pt"))

        reading = "PyG's time / ours (ours with shortest paths and checksums)"
        figures.append(
            side_by_side("preparation", name, reading, theirs, ours, rounds=inputs.rounds, molecules=len(smiles))
        )
    return figures
