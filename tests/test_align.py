"""Positions from an SDF record land on the right atoms of the SMILES, whatever the order of either."""

from __future__ import annotations

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

from moldistill.chem.align import CASES, DIFFERENT, MATCHED, NO_GEOMETRY, SAME_ORDER, Alignment, align
from moldistill.chem.features import smiles_to_graph
from moldistill.chem.isomorphism import find_mapping

SMILES = (
    "CCO", "CC(=O)Nc1ccc(O)cc1", "C[N+](=O)[O-]", "O=C([O-])c1ccccc1", "FC(F)(F)c1ccc(Cl)cc1", "C1CC2CCC1C2", "CC#N",
    "C[C@H](O)[C@@H](C)O", "C[C@H]1CC[C@@H](C)CC1", "F/C=C\\C=C/F", "OC[C@H]1O[C@H](O)[C@H](O)[C@@H](O)[C@@H]1O",
    "CS(=O)(=O)c1ccsc1", "c1ccc2ccccc2c1", "C1CC1", "N#CC(C#N)=C(C#N)C#N", "[H]/N=C/C", "[2H]C([2H])O", "[H][H]", "C",
    "CC(C)(C)C", "O=c1[nH]cnc2[nH]cnc12", "CC.OC", "Cn1cnc2c1c(=O)n(C)c(=O)n2C", "C12C3C4C1C5C2C3C45",
)  # fmt: skip


def _embedded(smiles: str, *, hydrogens: bool = True) -> Chem.Mol:
    """A conformer whose atoms remember, as isotope-free property `atom`, which atom of the SMILES they are."""
    molecule = Chem.MolFromSmiles(smiles)
    for atom in molecule.GetAtoms():
        atom.SetIntProp("atom", atom.GetIdx())
    molecule = Chem.AddHs(molecule)
    if AllChem.EmbedMolecule(molecule, randomSeed=7) != 0:
        AllChem.EmbedMolecule(molecule, randomSeed=7, useRandomCoords=True)
    assert molecule.GetNumConformers() == 1, smiles
    return molecule if hydrogens else Chem.RemoveHs(molecule)


def _shuffled(molecule: Chem.Mol, seed: int) -> Chem.Mol:
    order = np.random.default_rng(seed).permutation(molecule.GetNumAtoms())
    return Chem.RenumberAtoms(molecule, order.tolist())


def _signature(atom: Chem.Atom) -> tuple[int, int, int]:
    neighbours = [other.GetAtomicNum() for other in atom.GetNeighbors()]
    return atom.GetAtomicNum(), sum(number != 1 for number in neighbours), atom.GetFormalCharge()


def _assert_right(smiles: str, molecule: Chem.Mol, alignment: Alignment) -> None:
    """Each atom of the SMILES sits where an atom of its element sits, and its bonds are bonds of the record."""
    assert alignment.positions is not None, (smiles, alignment.reason)
    places = molecule.GetConformer().GetPositions()
    distance = np.abs(places[None] - alignment.positions[:, None]).max(-1)
    found = distance.argmin(1)
    assert (distance.min(1) < 1e-3).all()
    assert len(set(found)) == len(found)
    reference = Chem.MolFromSmiles(smiles)
    for atom, index in zip(reference.GetAtoms(), found, strict=True):
        assert _signature(atom) == _signature(molecule.GetAtomWithIdx(int(index))), smiles
    for bond in reference.GetBonds():
        begin, end = int(found[bond.GetBeginAtomIdx()]), int(found[bond.GetEndAtomIdx()])
        other = molecule.GetBondBetweenAtoms(begin, end)
        assert other is not None, smiles
        assert bond.GetBondType() == other.GetBondType()
    # Distances between all pairs of atoms, up to an automorphism of the labelled graph.
    labels = list(Chem.CanonicalRankAtoms(reference, breakTies=False, includeChirality=False))
    own = {atom.GetIntProp("atom"): atom.GetIdx() for atom in molecule.GetAtoms() if atom.HasProp("atom")}
    original = places[[own[index] for index in range(len(labels))]]
    assert _profile(alignment.positions, labels) == pytest.approx(_profile(original, labels), abs=1e-2)


def _profile(positions: np.ndarray, labels: list[int]) -> list[float]:
    """Sum of distances per pair of symmetry classes: the same for all automorphisms of a graph."""
    gaps = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    classes = np.array(labels)
    return [
        float(gaps[np.ix_(classes == left, classes == right)].sum())
        for left in sorted(set(labels))
        for right in sorted(set(labels))
    ]


@pytest.mark.parametrize("smiles", SMILES)
@pytest.mark.parametrize("seed", range(3))
def test_shuffled_records_are_matched(smiles: str, seed: int) -> None:
    molecule = _shuffled(_embedded(smiles), seed)
    alignment = align(smiles, smiles_to_graph(smiles), Chem.MolToMolBlock(molecule))
    assert alignment.case in (SAME_ORDER, MATCHED)
    _assert_right(smiles, molecule, alignment)


@pytest.mark.parametrize("smiles", SMILES)
def test_records_in_the_same_order_are_taken_as_they_are(smiles: str) -> None:
    molecule = _embedded(smiles)
    alignment = align(smiles, smiles_to_graph(smiles), Chem.MolToMolBlock(molecule))
    assert CASES[alignment.case] == "same order"
    _assert_right(smiles, molecule, alignment)


@pytest.mark.parametrize("smiles", [text for text in SMILES if "[H]" not in text and "[2H]" not in text])
def test_records_without_hydrogens_do_as_well(smiles: str) -> None:
    molecule = _shuffled(_embedded(smiles, hydrogens=False), 0)
    alignment = align(smiles, smiles_to_graph(smiles), Chem.MolToMolBlock(molecule))
    _assert_right(smiles, molecule, alignment)
    assert len(alignment.hydrogen_parent) == 0


def test_hydrogens_follow_with_their_parents() -> None:
    smiles = "CC(=O)NC"
    molecule = _shuffled(_embedded(smiles), 1)
    alignment = align(smiles, smiles_to_graph(smiles), Chem.MolToMolBlock(molecule))
    assert alignment.positions is not None
    assert alignment.hydrogen_parent.tolist() == [0, 0, 0, 3, 4, 4, 4]
    bonds = np.linalg.norm(alignment.hydrogen_positions - alignment.positions[alignment.hydrogen_parent], axis=1)
    assert ((bonds > 0.9) & (bonds < 1.2)).all()


def test_a_hydrogen_that_the_smiles_keeps_gets_a_position_of_its_own() -> None:
    smiles = "[H]/N=C/C"
    graph = smiles_to_graph(smiles)
    assert 0 in graph.atom_features[:, 0], "the graph has a hydrogen atom"
    molecule = _shuffled(_embedded(smiles), 2)
    alignment = align(smiles, graph, Chem.MolToMolBlock(molecule))
    assert alignment.positions is not None
    assert alignment.positions.shape == (4, 3)
    assert len(alignment.hydrogen_parent) == 4
    bare = align(smiles, graph, Chem.MolToMolBlock(Chem.RemoveAllHs(molecule)))
    assert CASES[bare.case] == "no geometry"
    assert "hydrogen" in bare.reason


@pytest.mark.parametrize("smiles", ["C[C@H]1CC[C@@H](C)CC1", "F/C=C\\C=C/F", "F/C=C\\C=C\\F", "C[C@H](O)[C@@H](C)O"])
@pytest.mark.parametrize("seed", range(4))
def test_the_mapping_respects_stereo_where_atoms_could_be_exchanged(smiles: str, seed: int) -> None:
    molecule = _shuffled(_embedded(smiles), seed)
    alignment = align(smiles, smiles_to_graph(smiles), Chem.MolToMolBlock(molecule))
    assert alignment.positions is not None
    rebuilt = Chem.MolFromSmiles(smiles)
    conformer = Chem.Conformer(rebuilt.GetNumAtoms())
    for index, place in enumerate(alignment.positions.astype(float)):
        conformer.SetAtomPosition(index, place.tolist())
    rebuilt.AddConformer(conformer)
    rebuilt.RemoveConformer(1)
    before = Chem.MolToSmiles(rebuilt)
    tags = [atom.GetChiralTag() for atom in rebuilt.GetAtoms()]
    Chem.AssignStereochemistryFrom3D(rebuilt)
    assert [atom.GetChiralTag() for atom in rebuilt.GetAtoms()] == tags
    assert Chem.MolToSmiles(rebuilt) == before


@pytest.mark.parametrize(
    ("smiles", "other", "reason"),
    [
        ("CCO", "CCCO", "heavy atoms"),
        ("CCO", "CCN", "elements"),
        ("CC(=O)C", "CC(O)=C", "hydrogen counts"),
        ("CCC(C)CCCC", "CCCC(C)CCC", "bonds"),
        ("C1=CC=C1", "C#C.C#C", "4 bonds in the SMILES, 2"),
    ],
)
def test_another_graph_loses_its_positions_and_says_why(smiles: str, other: str, reason: str) -> None:
    alignment = align(smiles, smiles_to_graph(smiles), Chem.MolToMolBlock(_embedded(other)))
    assert alignment.case == DIFFERENT
    assert alignment.positions is None
    assert reason in alignment.reason


def test_a_record_without_charges_is_the_same_graph() -> None:
    smiles = "C[N+](=O)[O-]"
    record = Chem.MolToMolBlock(_shuffled(_embedded(smiles), 3))
    uncharged = "".join(line for line in record.splitlines(keepends=True) if not line.startswith("M  CHG"))
    assert uncharged != record
    assert align(smiles, smiles_to_graph(smiles), uncharged).positions is not None


@pytest.mark.parametrize("record", ["", "\n\n\n", "nonsense", "\n  RDKit\n\n  9  9  0  0\n", "\x00\xff" * 40])
def test_a_record_that_is_none_leaves_no_geometry(record: str) -> None:
    alignment = align("CCO", smiles_to_graph("CCO"), record)
    assert alignment.case == NO_GEOMETRY
    assert alignment.reason


def test_coordinates_that_say_nothing_are_no_geometry() -> None:
    molecule = Chem.MolFromSmiles("CCO")
    molecule.AddConformer(Chem.Conformer(3))
    alignment = align("CCO", smiles_to_graph("CCO"), Chem.MolToMolBlock(molecule))
    assert alignment.case == NO_GEOMETRY


def _arrays(size: int, bonds: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    pairs = np.array([(begin, end, 1) for begin, end in bonds], np.int64).reshape(-1, 3)
    return np.full(size, 6), np.zeros(size, np.int64), np.zeros(size, np.int64), pairs


def test_regular_graphs_that_colours_cannot_tell_apart() -> None:
    ring = [(index, (index + 1) % 6) for index in range(6)]
    triangles = [(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3)]
    mapping, tied = find_mapping(*_arrays(6, ring), *_arrays(6, triangles), True)
    assert len(mapping) == 0
    assert tied.all()
    prism = [*triangles, (0, 3), (1, 4), (2, 5)]
    bipartite = [(left, right) for left in range(3) for right in range(3, 6)]
    assert len(find_mapping(*_arrays(6, prism), *_arrays(6, bipartite), True)[0]) == 0


def test_random_graphs_are_mapped_onto_their_renumbered_selves() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        size = int(random.integers(2, 40))
        bonds = [(int(random.integers(0, end)), end) for end in range(1, size)]
        extra = [
            tuple(sorted(random.choice(size, 2, replace=False).tolist())) for _ in range(int(random.integers(0, 4)))
        ]
        pairs = sorted({*bonds, *extra})
        order = random.permutation(size)
        renamed = [(int(order[begin]), int(order[end])) for begin, end in pairs]
        mapping, _ = find_mapping(*_arrays(size, pairs), *_arrays(size, renamed), True)
        wanted = {frozenset(pair) for pair in renamed}
        assert {frozenset((int(mapping[begin]), int(mapping[end]))) for begin, end in pairs} == wanted
