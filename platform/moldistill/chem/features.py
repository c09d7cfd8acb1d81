"""SMILES → molecular graph in OGB's vocabulary, equal to `ogb.utils.smiles2graph` wherever that succeeds.

One molecule at a time, by look-ups in tables: what `featurize` falls back to, and is tested against. Each bond stands
once (ogb lists both directions). What RDKit refuses is never lost: it gets a flag and a reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from rdkit import Chem, rdBase

from moldistill.chem.parse import is_too_long, parse, parse_as_written
from moldistill.core.shapes import UInt8
from moldistill.core.vocabulary import (
    ATOM_SIZES,
    BOND_FEATURES_OF_CODE,
    BOND_STEREO,
    BOND_TYPE,
    CHIRALITY,
    FLAGS,
    HYBRIDIZATION,
    MAX_ATOMS,
    UNREACHABLE,
    bond_code,
)

REASON = 300
"""Characters that a reason may have."""

FINE, UNSANITIZED, REFUSED, TOO_LARGE, EMPTY = range(len(FLAGS))


def _table(names: dict[str, int], vocabulary: tuple[str, ...]) -> list[int]:
    """Index in `vocabulary` by value of an RDKit enumeration; what is not named goes to the last entry."""
    table = [len(vocabulary) - 1] * (max(int(value) for value in names.values()) + 1)
    for name, value in names.items():
        if name in vocabulary:
            table[int(value)] = vocabulary.index(name)
    return table


CHIRALITY_INDEX = _table(Chem.ChiralType.names, CHIRALITY)
HYBRIDIZATION_INDEX = _table(Chem.HybridizationType.names, HYBRIDIZATION)
BOND_TYPE_INDEX = _table(Chem.BondType.names, BOND_TYPE)
BOND_STEREO_INDEX = _table(Chem.BondStereo.names, BOND_STEREO)
_NUMBER, _, _DEGREE, _CHARGE, _HYDROGENS, _RADICALS = (size - 1 for size in ATOM_SIZES[:6])  # `misc` of each
ATOMIC_NUMBER_INDEX = [_NUMBER, *range(_NUMBER), *[_NUMBER] * 10]
_FEATURES_OF_CODE = np.array(BOND_FEATURES_OF_CODE, np.uint8)


@dataclass(frozen=True, slots=True)
class Graph:
    """A molecule as models read it. Without atoms unless `flag` is fine or unsanitized; `reason` says why it is not.

    Indices into OGB's vocabulary; each bond once, as (begin, end, `vocabulary.bond_code`); shortest paths count bonds,
    255 where unreachable.
    """

    flag: int
    reason: str = ""
    atom_features: UInt8[np.ndarray, "atoms 9"] = field(default_factory=lambda: np.zeros((0, 9), np.uint8))
    bonds: UInt8[np.ndarray, "bonds 3"] = field(default_factory=lambda: np.zeros((0, 3), np.uint8))
    shortest_paths: UInt8[np.ndarray, "atoms atoms"] = field(default_factory=lambda: np.zeros((0, 0), np.uint8))

    @property
    def bond_index(self) -> UInt8[np.ndarray, "bonds 2"]:
        """Begin and end of each bond."""
        return self.bonds[:, :2]

    @property
    def bond_features(self) -> UInt8[np.ndarray, "bonds 3"]:
        """Type, stereo and conjugation of each bond."""
        features: UInt8[np.ndarray, "bonds 3"] = _FEATURES_OF_CODE[self.bonds[:, 2]]
        return features


def smiles_to_graph(smiles: str) -> Graph:
    """The graph of a SMILES; never raises for any text.

    Molecules that RDKit cannot sanitize (hypervalent silicon and the like) are read as written and flagged
    `unsanitized`; text that is no SMILES is `refused`.
    """
    if (atoms := is_too_long(smiles, MAX_ATOMS)) is not None:
        return _too_large(atoms)
    with rdBase.BlockLogs():
        molecule = parse(smiles)
    flag, reason = FINE, ""
    if molecule is None:
        molecule, reason = parse_as_written(smiles)
        reason = reason if len(reason) <= REASON else reason[: REASON - 1] + "…"  # RDKit repeats the SMILES in it
        flag = UNSANITIZED
    if molecule is None:
        return Graph(REFUSED, reason)
    atoms = molecule.GetNumAtoms()
    if atoms == 0:
        return Graph(EMPTY, "the SMILES has no atoms")
    if atoms > MAX_ATOMS:
        return _too_large(atoms)
    return molecule_to_graph(molecule, flag, reason)


def _too_large(atoms: int) -> Graph:
    return Graph(TOO_LARGE, f"{atoms} atoms are more than {MAX_ATOMS}")


def molecule_to_graph(molecule: Chem.Mol, flag: int = FINE, reason: str = "") -> Graph:
    """The graph of a molecule of 1 to 255 atoms with rings, hybridization and conjugation perceived."""
    in_ring = bytearray(molecule.GetNumAtoms())
    for ring in molecule.GetRingInfo().AtomRings():
        for index in ring:
            in_ring[index] = 1
    atoms = bytearray()
    for index, atom in enumerate(molecule.GetAtoms()):
        charge = atom.GetFormalCharge() + 5
        atoms += bytes(
            (
                ATOMIC_NUMBER_INDEX[atom.GetAtomicNum()],
                CHIRALITY_INDEX[atom.GetChiralTag()],
                min(atom.GetTotalDegree(), _DEGREE),
                charge if 0 <= charge < _CHARGE else _CHARGE,
                min(atom.GetTotalNumHs(), _HYDROGENS),
                min(atom.GetNumRadicalElectrons(), _RADICALS),
                HYBRIDIZATION_INDEX[atom.GetHybridization()],
                atom.GetIsAromatic(),
                in_ring[index],
            )
        )
    bonds = bytearray()
    for bond in molecule.GetBonds():
        code = bond_code(
            BOND_TYPE_INDEX[bond.GetBondType()], BOND_STEREO_INDEX[bond.GetStereo()], int(bond.GetIsConjugated())
        )
        bonds += bytes((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), code))
    paths = np.minimum(Chem.GetDistanceMatrix(molecule), UNREACHABLE).astype(np.uint8)
    return Graph(
        flag,
        reason,
        np.frombuffer(atoms, np.uint8).reshape(-1, 9),
        np.frombuffer(bonds, np.uint8).reshape(-1, 3),
        paths,
    )
