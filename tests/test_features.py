"""Graphs from SMILES: equal to ogb's, and nothing is lost that RDKit refuses."""

from __future__ import annotations

import csv
import gzip
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem, rdBase

import moldistill
from moldistill.chem.features import EMPTY, FINE, REFUSED, TOO_LARGE, UNSANITIZED, Graph, smiles_to_graph
from moldistill.core import vocabulary

SAMPLE = Path(moldistill.__file__).parent / "sample" / "raw" / "data.csv.gz"

ODD = (
    "C", "[H][H]", "[2H]OC", "[Na+].[Cl-]", "[Fe+2]", "*CC*", "[13CH4]", "[CH3]", "[CH2]", "C[N+](=O)[O-]", "CN(=O)=O",
    "O=Cl(=O)(=O)O", "F/C=C/F", "F/C=C\\F", "FC=CF", "C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O", "[H]/N=C/C", "C#N",
    "c1ccccc1", "c1cc[nH]c1", "c1ccc2c(c1)ccc1ccccc12", "C1CC1C#CC", "O=S(=O)(O)O", "FP(F)(F)(F)F", "FS(F)(F)(F)(F)F",
    "[NH4+].[OH-]", "[C-]#[O+]", "B(O)(O)c1ccccc1", "CC(C)(C)c1ccc(Br)cc1I", "[O-][n+]1ccccc1", "C1=CC=CC=CC=C1",
    "Cl[Pt](Cl)(N)N", "F[P@](Cl)(Br)=O", "C[S@](=O)CC", "N[Co@OH6](N)(N)(N)(N)N", "OC1=CC=CC=C1", "C=[N+]=[N-]",
    "[U]", "[O][O]", "CC=[N]", "C[Si](C)(C)C", "C->[Fe]", "OC(=O)/C=C/C(=O)O", "CC1CCC(C)CC1", "C/C=C/C=C\\C",
)  # fmt: skip
"""Charges, radicals, isotopes, wildcards, metals, stereo, fragments: what RDKit sanitizes of the unusual."""

HYPERVALENT = (
    "F[Si](F)(F)(F)(F)F",
    "O[Si]123O[Si]3(O1)(O2)O",
    "C[N](C)(C)(C)C",
    "O=C1C=CC(=O)c2c1cc[n]2(C)C",
    "c1ccccc1c1cccc1",
)
"""Parse as text, fail sanitization: kept, flagged."""


def _ogb(smiles: str) -> dict[str, np.ndarray]:
    mol = pytest.importorskip("ogb.utils.mol")
    graph: dict[str, np.ndarray] = mol.smiles2graph(smiles)
    return graph


def assert_equal_to_ogb(smiles: str, graph: Graph) -> None:
    """Every column of ogb's graph, whose edges hold each bond once per direction."""
    expected = _ogb(smiles)
    assert np.array_equal(graph.atom_features, expected["node_feat"]), smiles
    both = np.stack([graph.bond_index, graph.bond_index[:, ::-1]], 1).reshape(-1, 2).T
    assert np.array_equal(both, expected["edge_index"]), smiles
    assert np.array_equal(np.repeat(graph.bond_features, 2, axis=0), expected["edge_feat"]), smiles


def walked(atoms: int, bonds: Sequence[Sequence[int]]) -> np.ndarray:
    """Shortest paths by breadth-first search, 255 where there is none."""
    neighbours: list[list[int]] = [[] for _ in range(atoms)]
    for begin, end in bonds:
        neighbours[begin].append(end)
        neighbours[end].append(begin)
    paths = np.full((atoms, atoms), 255)
    for start in range(atoms):
        paths[start, start] = 0
        waiting = deque([start])
        while waiting:
            here = waiting.popleft()
            for there in neighbours[here]:
                if paths[start, there] == 255:
                    paths[start, there] = paths[start, here] + 1
                    waiting.append(there)
    return paths


def _sample() -> list[str]:
    if not SAMPLE.is_file():
        return []
    with gzip.open(SAMPLE, "rt", encoding="utf-8") as stream:
        return [row["smiles"] for row in csv.DictReader(stream)]


def _check(smiles: Sequence[str]) -> int:
    checked = 0
    for text in smiles:
        graph = smiles_to_graph(text)
        if graph.flag != FINE:
            continue
        assert_equal_to_ogb(text, graph)
        assert np.array_equal(graph.shortest_paths, walked(len(graph.atom_features), graph.bond_index.tolist())), text
        checked += 1
    return checked


def test_vocabulary_is_that_of_the_installed_ogb() -> None:
    features = pytest.importorskip("ogb.utils.features")
    lists = features.allowable_features
    assert tuple(features.get_atom_feature_dims()) == vocabulary.ATOM_SIZES
    assert tuple(features.get_bond_feature_dims()) == vocabulary.BOND_SIZES
    for name, ours in (
        ("chirality", vocabulary.CHIRALITY),
        ("hybridization", vocabulary.HYBRIDIZATION),
        ("bond_type", vocabulary.BOND_TYPE),
        ("bond_stereo", vocabulary.BOND_STEREO),
    ):
        assert tuple(lists[f"possible_{name}_list"]) == ours


@pytest.mark.parametrize("smiles", ODD)
def test_odd_molecules_equal_ogb(smiles: str) -> None:
    assert _check([smiles]) == 1


def test_made_molecules_equal_ogb() -> None:
    rings = ("c1ccc({})cc1", "C1CCC({})C1", "c1nc({})sc1", "C1=CC({})OC1", "c1ccc2[nH]c({})cc2c1", "N#CC{}", "C/C=C/{}")
    groups = ("Cl", "C(F)(F)F", "[N+](=O)[O-]", "S(=O)(=O)N", "C(=O)[O-]", "[C@H](C)O", "C#C", "OC", "NC(=O)C", "Br")
    smiles = [ring.format(group) for ring in rings for group in groups]
    smiles += [f"{left}.{right}" for left, right in zip(smiles, reversed(smiles), strict=True)]
    smiles += [rings[0].format(f"c1cc({group})ccn1") for group in groups]
    assert _check(smiles) == len(smiles) == 150


def test_sample_molecules_equal_ogb() -> None:
    smiles = _sample()
    if not smiles:
        pytest.skip("the sample is not there yet")
    assert _check(smiles) == len(smiles)


@pytest.mark.parametrize("name", ["qm9_2k", "xtb_24k"])
def test_real_molecules_equal_ogb(real_data: Path, name: str) -> None:
    with gzip.open(real_data / name / "raw" / "data.csv.gz", "rt", encoding="utf-8") as stream:
        smiles = [row["smiles"] for row in csv.DictReader(stream)][::10]
    assert _check(smiles) == len(smiles)


@pytest.mark.parametrize("smiles", HYPERVALENT)
def test_what_fails_sanitization_is_flagged_and_has_a_graph(smiles: str) -> None:
    with rdBase.BlockLogs():
        assert Chem.MolFromSmiles(smiles) is None, "the test must use molecules that RDKit cannot sanitize"
        bare = Chem.MolFromSmiles(smiles, sanitize=False)
    graph = smiles_to_graph(smiles)
    assert graph.flag == UNSANITIZED
    assert graph.reason
    assert graph.atom_features[:, 0].tolist() == [atom.GetAtomicNum() - 1 for atom in bare.GetAtoms()]
    assert len(graph.bond_index) == bare.GetNumBonds()
    assert (graph.atom_features < vocabulary.ATOM_SIZES).all()
    assert (graph.bond_features < vocabulary.BOND_SIZES).all()
    assert np.array_equal(graph.shortest_paths, walked(len(graph.atom_features), graph.bond_index.tolist()))
    in_ring = [atom.IsInRing() for atom in bare.GetAtoms()] if Chem.FastFindRings(bare) is None else []
    assert graph.atom_features[:, 8].tolist() == in_ring


@pytest.mark.parametrize(
    ("smiles", "flag", "reason"),
    [
        ("C1CC", REFUSED, "unclosed ring"),
        ("CC(C", REFUSED, "parentheses"),
        ("hello", REFUSED, "syntax error"),
        ("", EMPTY, "no atoms"),
        ("C" * 256, TOO_LARGE, "256 atoms"),
        ("C" * 10_000, TOO_LARGE, "10000 atoms"),
    ],
)
def test_what_has_no_graph_says_why(smiles: str, flag: int, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    graph = smiles_to_graph(smiles)
    assert graph.flag == flag
    assert reason in graph.reason
    assert graph.atom_features.shape == (0, 9)
    assert graph.shortest_paths.shape == (0, 0)
    assert capfd.readouterr().err == "", "RDKit's log must not reach the terminal"


def test_255_atoms_are_the_most() -> None:
    graph = smiles_to_graph("C" * 255)
    assert graph.flag == FINE
    assert graph.shortest_paths.max() == 254
    assert graph.bond_index.max() == 254


def test_fragments_are_unreachable() -> None:
    assert smiles_to_graph("[Na+].[Cl-]").shortest_paths.tolist() == [[0, 255], [255, 0]]


def test_stereo_outside_the_vocabulary_goes_to_its_last_entry() -> None:
    # ogb itself fails on atropisomers: their bond stereo is in none of its lists.
    molecule = Chem.MolFromSmiles("Cc1cccc(I)c1-c1c(C)cccc1Br |wU:7.6|")
    if molecule is None or not any("ATROP" in str(bond.GetStereo()) for bond in molecule.GetBonds()):
        pytest.skip("this RDKit reads no atropisomers from SMILES")
    graph = smiles_to_graph("Cc1cccc(I)c1-c1c(C)cccc1Br |wU:7.6|")
    assert graph.bond_features[:, 1].max() == len(vocabulary.BOND_STEREO) - 1
