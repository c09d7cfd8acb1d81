"""Positions of an SDF record, mapped onto the atoms of the graph that the SMILES gives.

The two number their atoms differently and no correspondence comes with the data: it is an isomorphism of the graphs of
heavy atoms (elements, bonds, hydrogen counts), found here and checked atom by atom and bond by bond.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rdkit import Chem, rdBase

from moldistill.chem.features import Graph
from moldistill.chem.isomorphism import find_mapping, is_mapping
from moldistill.core.shapes import Float, Int, UInt8

CASES = ("same order", "matched", "different graph", "no geometry")
"""How a record was aligned, by `Alignment.case`; the last two leave no positions."""

SAME_ORDER, MATCHED, DIFFERENT, NO_GEOMETRY = range(len(CASES))

_BOND_CODES = {Chem.BondType.SINGLE: 1, Chem.BondType.DOUBLE: 2, Chem.BondType.TRIPLE: 3, Chem.BondType.AROMATIC: 4}
_OTHER_BOND = 5
_WILDCARD = 119  # atomic number of `misc` in OGB's vocabulary, counted from 1


@dataclass(frozen=True, slots=True)
class Alignment:
    """Positions (Å) in the order of the graph's atoms, None unless `case` is same order or matched.

    The hydrogens that are no atoms of the graph follow with the graph atom each is bound to.
    """

    case: int
    reason: str = ""
    positions: Float[np.ndarray, "atoms 3"] | None = None
    hydrogen_positions: Float[np.ndarray, "hydrogens 3"] = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    hydrogen_parent: UInt8[np.ndarray, " hydrogens"] = field(default_factory=lambda: np.zeros(0, np.uint8))


@dataclass(frozen=True, slots=True)
class _Atoms:
    """A molecule as the matcher reads it: one entry per atom, bonds as (begin, end, code)."""

    number: Int[np.ndarray, " atoms"]
    charge: Int[np.ndarray, " atoms"]
    bonds: Int[np.ndarray, "bonds 3"]
    hydrogens: Int[np.ndarray, " atoms"]

    def heavy(self) -> Int[np.ndarray, " heavy"]:
        """Atoms other than hydrogen; all of them where there is nothing else."""
        heavy = np.flatnonzero(self.number > 1)
        return heavy if len(heavy) else np.arange(len(self.number))


def align(smiles: str, graph: Graph, record: str) -> Alignment:
    """Align an SDF record with the graph of its SMILES. Never raises for any text."""
    if not len(graph.atom_features):
        return Alignment(NO_GEOMETRY, "the SMILES has no graph")
    with rdBase.BlockLogs():
        molecule = Chem.MolFromMolBlock(record, sanitize=False, removeHs=False, strictParsing=False)
    if molecule is None or not molecule.GetNumAtoms() or not molecule.GetNumConformers():
        return Alignment(NO_GEOMETRY, "RDKit cannot read the SDF record")
    positions = molecule.GetConformer().GetPositions().astype(np.float32)
    if not np.isfinite(positions).all() or (len(positions) > 1 and not np.ptp(positions, axis=0).any()):
        return Alignment(NO_GEOMETRY, "the SDF record has no usable coordinates")
    ours, theirs = _of_graph(graph), _of_record(molecule)
    heavy, other = ours.heavy(), theirs.heavy()
    if len(heavy) != len(other):
        return Alignment(DIFFERENT, f"{len(heavy)} heavy atoms in the SMILES, {len(other)} in the SDF record")
    case, mapping = _map_heavy(smiles, graph, record, ours, theirs)
    if mapping is None:
        return Alignment(DIFFERENT, _difference(ours, theirs))
    atoms = np.full(len(ours.number), -1)
    atoms[heavy] = other[mapping]
    return _place(case, atoms, ours, theirs, positions)


def _of_graph(graph: Graph) -> _Atoms:
    number = graph.atom_features[:, 0].astype(np.int64) + 1
    bonds = np.empty((len(graph.bond_index), 3), np.int64)
    bonds[:, :2] = graph.bond_index
    bonds[:, 2] = graph.bond_features[:, 0] + 1
    hydrogens = graph.atom_features[:, 4] + _bound_hydrogens(number, bonds)
    return _Atoms(number, graph.atom_features[:, 3].astype(np.int64) - 5, bonds, hydrogens)


def _of_record(molecule: Chem.Mol) -> _Atoms:
    atoms = list(molecule.GetAtoms())
    number = np.array([atom.GetAtomicNum() or _WILDCARD for atom in atoms], np.int64)
    charge = np.array([atom.GetFormalCharge() for atom in atoms], np.int64)
    bonds = np.array(
        [
            (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), _BOND_CODES.get(bond.GetBondType(), _OTHER_BOND))
            for bond in molecule.GetBonds()
        ],
        np.int64,
    ).reshape(-1, 3)
    if (number == 1).any():
        hydrogens = _bound_hydrogens(number, bonds)
    else:  # a record without hydrogens: what valences leave
        molecule.UpdatePropertyCache(strict=False)
        hydrogens = np.array([atom.GetTotalNumHs() for atom in atoms], np.int64)
    return _Atoms(number, charge, bonds, hydrogens)


def _bound_hydrogens(number: Int[np.ndarray, " atoms"], bonds: Int[np.ndarray, "bonds 3"]) -> Int[np.ndarray, " atoms"]:
    """Number of hydrogens among the neighbours of each atom."""
    begin, end = bonds[:, 0], bonds[:, 1]
    of_begin = np.bincount(begin[number[end] == 1], minlength=len(number))
    of_end = np.bincount(end[number[begin] == 1], minlength=len(number))
    return of_begin + of_end


def _map_heavy(
    smiles: str, graph: Graph, record: str, ours: _Atoms, theirs: _Atoms
) -> tuple[int, Int[np.ndarray, " heavy"] | None]:
    """Case, and the record's heavy atom for each of the graph's, both counted among heavy atoms.

    Charges and bond orders must agree if they can; where they cannot (nitro groups drawn otherwise), elements, bonds
    and hydrogen counts still do.
    """
    left, right = _heavy_part(ours), _heavy_part(theirs)
    for strict in (True, False):
        mapping, tied = find_mapping(*left, *right, strict)
        if not len(mapping):
            continue
        if (mapping == np.arange(len(mapping))).all():
            return SAME_ORDER, mapping
        if _stereo_is_tied(graph, ours.heavy(), tied):
            guided = _stereo_mapping(smiles, record, theirs)
            if guided is not None and len(guided) == len(mapping) and is_mapping(*left, *right, guided, strict):
                mapping = guided
        return MATCHED, mapping
    return DIFFERENT, None


def _heavy_part(atoms: _Atoms) -> tuple[Any, Any, Any, Any]:
    """number, charge, hydrogens and bonds of the heavy atoms, numbered among themselves."""
    heavy = atoms.heavy()
    place = np.full(len(atoms.number), -1)
    place[heavy] = np.arange(len(heavy))
    bonds = atoms.bonds.copy()
    bonds[:, :2] = place[bonds[:, :2]]
    bonds = bonds[(bonds[:, :2] >= 0).all(1)]
    return atoms.number[heavy], atoms.charge[heavy], atoms.hydrogens[heavy], bonds


def _stereo_is_tied(graph: Graph, heavy: Int[np.ndarray, " heavy"], tied: Any) -> bool:
    """Whether atoms that carry stereo could be exchanged, so that the choice of mapping matters for it."""
    stereo = graph.atom_features[:, 1] > 0
    stereo[graph.bond_index[graph.bond_features[:, 1] > 0].ravel()] = True
    return bool((stereo[heavy] & tied).any())


def _stereo_mapping(smiles: str, record: str, theirs: _Atoms) -> Int[np.ndarray, " heavy"] | None:
    """The mapping of heavy atoms that also respects the stereo of the SMILES, or None where RDKit finds none."""
    place = np.full(len(theirs.number), -1)
    place[theirs.heavy()] = np.arange(len(theirs.heavy()))
    parameters = Chem.RemoveHsParameters()
    parameters.removeDefiningBondStereo = True  # type: ignore[assignment]  # RDKit's stub is wrong
    with rdBase.BlockLogs():
        query = Chem.MolFromSmiles(smiles)
        molecule = Chem.MolFromMolBlock(record, sanitize=True, removeHs=False)
        if query is None or molecule is None:
            return None
        for atom in molecule.GetAtoms():
            atom.SetIntProp("place", int(place[atom.GetIdx()]))
        Chem.AssignStereochemistryFrom3D(molecule)
        molecule = Chem.RemoveHs(molecule, parameters)
        match = molecule.GetSubstructMatch(query, useChirality=True)
    if len(match) != molecule.GetNumAtoms() or not match:
        return None
    found = np.array([molecule.GetAtomWithIdx(index).GetIntProp("place") for index in match])
    return found if (found >= 0).all() else None


def _place(
    case: int, atoms: Int[np.ndarray, " atoms"], ours: _Atoms, theirs: _Atoms, positions: Float[np.ndarray, "all 3"]
) -> Alignment:
    """Positions of the graph's atoms, given the record's atom for each heavy one, and of the hydrogens left over."""
    owner = np.full(len(theirs.number), -1)  # graph atom by atom of the record
    owner[atoms[atoms >= 0]] = np.flatnonzero(atoms >= 0)
    free: dict[int, list[int]] = {}  # hydrogens of the record by the graph atom that they are bound to
    for begin, end, _ in theirs.bonds.tolist():
        for hydrogen, parent in ((begin, end), (end, begin)):
            if theirs.number[hydrogen] == 1 and owner[hydrogen] < 0 and owner[parent] >= 0:
                free.setdefault(int(owner[parent]), []).append(hydrogen)
    # Hydrogens that the SMILES keeps as atoms (isotopes, C=N[H] with stereo) take one of their parent's.
    for begin, end, _ in ours.bonds.tolist():
        for hydrogen, parent in ((begin, end), (end, begin)):
            if atoms[hydrogen] < 0 and atoms[parent] >= 0 and free.get(parent):
                atoms[hydrogen] = free[parent].pop(0)
    if (atoms < 0).any():
        return Alignment(NO_GEOMETRY, "the SDF record lacks a hydrogen that the SMILES has as an atom")
    parents = [parent for parent in sorted(free) for _ in free[parent]]
    hydrogens = [hydrogen for parent in sorted(free) for hydrogen in free[parent]]
    return Alignment(case, "", positions[atoms], positions[np.array(hydrogens, np.int64)], np.array(parents, np.uint8))


def _difference(ours: _Atoms, theirs: _Atoms) -> str:
    """What differs between two molecules with as many heavy atoms."""
    left, right = _heavy_part(ours), _heavy_part(theirs)
    for what, index in (("elements", 0), ("hydrogen counts", 2)):
        if not np.array_equal(np.sort(left[index]), np.sort(right[index])):
            return f"the {what} of SMILES and SDF record differ"
    if len(left[3]) != len(right[3]):
        return f"{len(left[3])} bonds in the SMILES, {len(right[3])} in the SDF record"
    return "the bonds of SMILES and SDF record differ"
