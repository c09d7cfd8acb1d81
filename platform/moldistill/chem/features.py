"""SMILES → molecular graph in OGB's vocabulary, equal to `ogb.utils.smiles2graph` wherever that succeeds.

Each bond stands once (ogb lists both directions). What RDKit refuses is never lost: it gets a flag and a reason.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from rdkit import Chem, rdBase

from moldistill.core.shapes import UInt8
from moldistill.core.vocabulary import (
    ATOM_SIZES,
    BOND_STEREO,
    BOND_TYPE,
    CHIRALITY,
    FLAGS,
    HYBRIDIZATION,
    MAX_ATOMS,
    UNREACHABLE,
)

FINE, UNSANITIZED, REFUSED, TOO_LARGE, EMPTY = range(len(FLAGS))


def _table(names: dict[str, int], vocabulary: tuple[str, ...]) -> list[int]:
    """Index in `vocabulary` by value of an RDKit enumeration; what is not named goes to the last entry."""
    table = [len(vocabulary) - 1] * (max(int(value) for value in names.values()) + 1)
    for name, value in names.items():
        if name in vocabulary:
            table[int(value)] = vocabulary.index(name)
    return table


_CHIRALITY = _table(Chem.ChiralType.names, CHIRALITY)
_HYBRIDIZATION = _table(Chem.HybridizationType.names, HYBRIDIZATION)
_BOND_TYPE = _table(Chem.BondType.names, BOND_TYPE)
_BOND_STEREO = _table(Chem.BondStereo.names, BOND_STEREO)
_NUMBER, _, _DEGREE, _CHARGE, _HYDROGENS, _RADICALS = (size - 1 for size in ATOM_SIZES[:6])  # `misc` of each
_ATOMIC_NUMBER = [_NUMBER, *range(_NUMBER), *[_NUMBER] * 10]


@dataclass(frozen=True, slots=True)
class Graph:
    """A molecule as models read it. Without atoms unless `flag` is fine or unsanitized; `reason` says why it is not.

    Indices into OGB's vocabulary; each bond once; shortest paths count bonds, 255 where unreachable.
    """

    flag: int
    reason: str = ""
    atom_features: UInt8[np.ndarray, "atoms 9"] = field(default_factory=lambda: np.zeros((0, 9), np.uint8))
    bond_index: UInt8[np.ndarray, "bonds 2"] = field(default_factory=lambda: np.zeros((0, 2), np.uint8))
    bond_features: UInt8[np.ndarray, "bonds 3"] = field(default_factory=lambda: np.zeros((0, 3), np.uint8))
    shortest_paths: UInt8[np.ndarray, "atoms atoms"] = field(default_factory=lambda: np.zeros((0, 0), np.uint8))


def smiles_to_graph(smiles: str) -> Graph:
    """The graph of a SMILES; never raises for any text.

    Molecules that RDKit cannot sanitize (hypervalent silicon and the like) are read as written and flagged
    `unsanitized`; text that is no SMILES is `refused`.
    """
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    flag, reason = FINE, ""
    if molecule is None:
        molecule, reason = _as_written(smiles)
        flag = UNSANITIZED
    if molecule is None:
        return Graph(REFUSED, reason)
    atoms = molecule.GetNumAtoms()
    if atoms == 0:
        return Graph(EMPTY, "the SMILES has no atoms")
    if atoms > MAX_ATOMS:
        return Graph(TOO_LARGE, f"{atoms} atoms are more than {MAX_ATOMS}")
    return _graph(molecule, flag, reason)


def _as_written(smiles: str) -> tuple[Chem.Mol | None, str]:
    """The molecule without RDKit's sanitization (None if the text is no SMILES), and what was wrong with it."""
    with captured_log() as lines:
        molecule = Chem.MolFromSmiles(smiles, sanitize=False)
    if molecule is None:
        return None, lines[0] if lines else "RDKit refuses the SMILES"
    with rdBase.BlockLogs():
        problems = Chem.DetectChemistryProblems(molecule)
        reason = problems[0].Message() if problems else "RDKit cannot sanitize the molecule"
        try:
            molecule.UpdatePropertyCache(strict=False)
            molecule = Chem.RemoveHs(molecule, sanitize=False)  # as a sanitized molecule would lose them
            molecule.UpdatePropertyCache(strict=False)
            Chem.FastFindRings(molecule)
            Chem.SetConjugation(molecule)
            Chem.SetHybridization(molecule)
            Chem.AssignStereochemistry(molecule, cleanIt=True)
        except (RuntimeError, ValueError) as error:
            return None, f"{reason}; then: {error}"
    return molecule, reason


def _graph(molecule: Chem.Mol, flag: int, reason: str) -> Graph:
    in_ring = bytearray(molecule.GetNumAtoms())
    for ring in molecule.GetRingInfo().AtomRings():
        for index in ring:
            in_ring[index] = 1
    atoms = bytearray()
    for index, atom in enumerate(molecule.GetAtoms()):
        charge = atom.GetFormalCharge() + 5
        atoms += bytes(
            (
                _ATOMIC_NUMBER[atom.GetAtomicNum()],
                _CHIRALITY[atom.GetChiralTag()],
                min(atom.GetTotalDegree(), _DEGREE),
                charge if 0 <= charge < _CHARGE else _CHARGE,
                min(atom.GetTotalNumHs(), _HYDROGENS),
                min(atom.GetNumRadicalElectrons(), _RADICALS),
                _HYBRIDIZATION[atom.GetHybridization()],
                atom.GetIsAromatic(),
                in_ring[index],
            )
        )
    bonds = bytearray()
    for bond in molecule.GetBonds():
        bonds += bytes(
            (
                bond.GetBeginAtomIdx(),
                bond.GetEndAtomIdx(),
                _BOND_TYPE[bond.GetBondType()],
                _BOND_STEREO[bond.GetStereo()],
                bond.GetIsConjugated(),
            )
        )
    bond_table = np.frombuffer(bonds, np.uint8).reshape(-1, 5)
    paths = np.minimum(Chem.GetDistanceMatrix(molecule), UNREACHABLE).astype(np.uint8)
    return Graph(
        flag, reason, np.frombuffer(atoms, np.uint8).reshape(-1, 9), bond_table[:, :2], bond_table[:, 2:], paths
    )


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # "[23:48:29] SMILES Parse Error: …": the time of day would make a store differ from its twin.
        self.lines.append(record.getMessage().split("] ", 1)[-1].strip())


@contextmanager
def captured_log() -> Iterator[list[str]]:
    """Lines that RDKit logs in the block, instead of on stderr."""
    logger, handler = logging.getLogger("rdkit"), _Lines()
    before, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    rdBase.LogToPythonLogger()
    try:
        yield handler.lines
    finally:
        rdBase.LogToCppStreams()
        logger.handlers, logger.propagate = before, propagate
