"""Features decoded from RDKit's bytes equal those looked up atom by atom, and ogb's, over all molecules at hand."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from ogb.utils.mol import smiles2graph  # type: ignore[import-untyped]
from rdkit import Chem, rdBase

from moldistill.chem import featurize as module
from moldistill.chem.features import FINE, UNSANITIZED, Graph, molecule_to_graph, smiles_to_graph
from moldistill.chem.featurize import Graphs, decoding_works, featurize, offsets, pairs
from moldistill.chem.parse import parse
from moldistill.chem.sample import sample_root
from odd_molecules import HYPERVALENT, ODD, REFUSED

NO_PROPERTIES = Chem.PropertyPickleOptions.NoProps


def rows_of(graphs: Graphs) -> Iterator[Graph]:
    """The single graphs of joined columns."""
    atoms, bonds = offsets(graphs.atom_count), offsets(graphs.bond_count)
    paths = offsets(pairs(graphs.atom_count))
    for row, size in enumerate(graphs.atom_count.tolist()):
        square = np.zeros((size, size), np.uint8)
        square[np.triu_indices(size, 1)] = graphs.shortest_paths[paths[row] : paths[row + 1]]
        yield Graph(
            int(graphs.flag[row]),
            graphs.reasons.get(row, ""),
            graphs.atom_features[atoms[row] : atoms[row + 1]],
            graphs.bonds[bonds[row] : bonds[row + 1]],
            square + square.T,
        )


def same(left: Graph, right: Graph) -> bool:
    """Whether two graphs agree in everything."""
    return (left.flag, left.reason) == (right.flag, right.reason) and all(
        np.array_equal(getattr(left, name), getattr(right, name))
        for name in ("atom_features", "bonds", "shortest_paths")
    )


def equals_ogb(smiles: str, graph: Graph) -> bool:
    """Whether a graph has the features of ogb, which lists both directions of a bond."""
    theirs = smiles2graph(smiles)
    both = np.stack([graph.bond_index, graph.bond_index[:, ::-1]], 1).reshape(-1, 2).T
    return (
        np.array_equal(graph.atom_features, theirs["node_feat"])
        and np.array_equal(both, theirs["edge_index"])
        and np.array_equal(np.repeat(graph.bond_features, 2, axis=0), theirs["edge_feat"])
    )


def table(path: Path) -> list[str]:
    with gzip.open(path / "raw" / "data.csv.gz", "rt", encoding="utf-8") as stream:
        return [row["smiles"] for row in csv.DictReader(stream)]


def check(smiles: Sequence[str]) -> None:
    for start in range(0, len(smiles), 1000):
        part = smiles[start : start + 1000]
        for text, graph in zip(part, rows_of(featurize(part)), strict=True):
            assert same(graph, smiles_to_graph(text)), text
            assert graph.flag != FINE or equals_ogb(text, graph), text


def test_this_rdkit_is_decoded() -> None:
    assert decoding_works(), "the pinned RDKit must be decoded, or preparation is three times slower"


def test_molecules_of_the_sample() -> None:
    check(table(sample_root()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qm9_24k", "xtb_24k"])
def test_all_real_molecules(real_data: Path, name: str) -> None:
    check(table(real_data / name))


def test_odd_refused_and_hypervalent_molecules_together() -> None:
    smiles = [text for group in zip(ODD, (HYPERVALENT + REFUSED) * 9, strict=False) for text in group]
    for text, graph in zip(smiles, rows_of(featurize(smiles)), strict=True):
        assert same(graph, smiles_to_graph(text)), text
    assert all(graph.flag == UNSANITIZED for graph in rows_of(featurize(HYPERVALENT)))


@pytest.mark.parametrize("smiles", ODD)
def test_odd_molecules_equal_ogb(smiles: str) -> None:
    (graph,) = rows_of(featurize([smiles]))
    assert graph.flag == FINE
    assert equals_ogb(smiles, graph)


def test_parsing_gives_rdkits_molecule_byte_for_byte() -> None:
    smiles = [*ODD, *HYPERVALENT, *REFUSED, *table(sample_root())]
    with rdBase.BlockLogs():
        for text in smiles:
            ours, theirs = parse(text), Chem.MolFromSmiles(text)
            assert (ours is None) == (theirs is None), text
            if ours is None:
                continue
            assert ours.ToBinary(NO_PROPERTIES) == theirs.ToBinary(NO_PROPERTIES), text
            for other in (Chem.MolToSmiles(theirs, doRandom=True), Chem.MolToSmiles(theirs, allHsExplicit=True)):
                again, expected = parse(other), Chem.MolFromSmiles(other)
                assert (again is None) == (expected is None), other
                assert again is None or again.ToBinary(NO_PROPERTIES) == expected.ToBinary(NO_PROPERTIES), other


def test_without_decoding_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    smiles = [*ODD[:40], *HYPERVALENT, *REFUSED]
    decoded = featurize(smiles)
    monkeypatch.setattr(module, "decoding_works", lambda: False)
    looked_up = featurize(smiles)
    for left, right in zip(rows_of(decoded), rows_of(looked_up), strict=True):
        assert same(left, right)


def test_another_layout_is_noticed_and_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = module._binaries
    changes = {
        "another version": lambda blob: blob[:12] + b"\x05" + blob[13:],
        "hydrogens elsewhere": lambda blob: blob[:30] + bytes([blob[30] ^ 1]) + blob[31:],
        "nothing": lambda blob: b"",
    }
    for change in changes.values():
        monkeypatch.setattr(module, "_binaries", lambda smiles, change=change: [change(blob) for blob in real(smiles)])
        decoding_works.cache_clear()
        assert not decoding_works()
        assert not decoding_works()
        assert capsys.readouterr().err.count("is not known here") == 1
        (graph,) = rows_of(featurize(["c1ccccc1O"]))
        assert equals_ogb("c1ccccc1O", graph)
    monkeypatch.undo()
    decoding_works.cache_clear()
    assert decoding_works()


def test_damaged_bytes_are_given_back_and_harm_nothing() -> None:
    """Every truncation and 20 flips at each byte of a molecule with every field: read as something, or not read."""
    blob = Chem.MolFromSmiles("[13CH3][N+]([O-])=C/C=C\\[C@H](F)c1cc[nH]c1.[CH2]").ToBinary(NO_PROPERTIES)
    random = np.random.default_rng(0)
    damaged = [blob[:length] for length in range(len(blob))]
    for place in range(len(blob)):
        if place in range(20, 28):  # the counts: they only size the columns, and RDKit itself wrote them
            continue
        values = random.integers(0, 256, 20).tolist()
        damaged += [blob[:place] + bytes([value]) + blob[place + 1 :] for value in values]
    read = module._read(damaged)
    assert len(read.readable) == len(damaged) > 2000
    assert not read.readable[: len(blob) - 40].any()
    assert read.readable.any()
    assert (read.bonds[:, :2].max(axis=1) < 255).all()


def test_columns_of_no_rows() -> None:
    graphs = featurize([])
    assert (len(graphs.flag), graphs.atom_features.shape, graphs.bonds.shape) == (0, (0, 9), (0, 3))


def test_a_molecule_is_the_same_graph_whatever_stands_beside_it() -> None:
    alone = [next(rows_of(featurize([text]))) for text in ODD]
    assert all(same(*both) for both in zip(alone, rows_of(featurize(ODD)), strict=True))
    assert same(alone[0], molecule_to_graph(Chem.MolFromSmiles(ODD[0])))
