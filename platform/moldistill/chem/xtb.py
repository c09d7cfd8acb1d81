"""One molecule: SMILES → geometry (ETKDGv3, MMFF94) → HOMO-LUMO gap (GFN1-xTB, by tblite).

Sources: ETKDGv3, Wang et al., J. Chem. Inf. Model. 60, 2044 (2020); MMFF94, Halgren, J. Comput. Chem. 17, 490 (1996);
GFN1-xTB, Grimme et al., J. Chem. Theory Comput. 13, 1989 (2017).
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from moldistill.core.errors import InputError
from moldistill.core.seeds import generator, named_seed
from moldistill.core.units import BOHR_IN_ANGSTROM, HARTREE_IN_EV

FORCE_FIELD_STEPS = 2000
SCF_STEPS = 250
HALF = 0.5


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """What decides the geometry and gap of a molecule, and the limits that keep one from holding up the others.

    seed:              of the conformer search; each SMILES string has a stream of its own, whatever its row.
    charges:           `keep` computes ions with their net charge, `refuse` counts them as failures.
    max_heavy_atoms:   larger molecules are refused, the cost of the gap grows with the third power of the size.
    embed_seconds:     limit of the conformer search.
    shuffle_sdf_atoms: seed; half of the molecules get another atom order in the SDF than in the SMILES, as the records
                       of PCQM4Mv2 have. None keeps the order of the SMILES, hydrogens last.
    """

    seed: int = 0
    charges: Literal["keep", "refuse"] = "keep"
    max_heavy_atoms: int = 100
    embed_seconds: int = 60
    shuffle_sdf_atoms: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A molecule with its gap in eV and its SDF record, or the stage that failed and why.

    `stage` is "" for success, else one of parse, limits, embed, optimize, scf.
    """

    gap: float = float("nan")
    heavy_atoms: int = 0
    force_field: str = ""
    converged: bool = False
    record: str = ""
    stage: str = ""
    reason: str = ""


class MoleculeError(Exception):
    """A molecule that cannot be labelled: the stage that failed, and why."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage = stage
        self.reason = reason


def require_tblite() -> None:
    """Raise InputError where tblite is not installed."""
    if importlib.util.find_spec("tblite") is None:
        raise InputError(
            "labelling needs tblite, which is not installed",
            expected="the extra `label`",
            remedy="pip install 'moldistill[label]'",
        )


def label_molecule(smiles: str, settings: LabelSettings) -> Outcome:
    """Geometry and gap of one SMILES string; whatever goes wrong with it is in the outcome, not raised."""
    with rdBase.BlockLogs():
        try:
            molecule = parse(smiles, settings)
            molecule, force_field, converged = embed(molecule, smiles, settings)
            gap = homo_lumo_gap(*_xtb_input(molecule))
            record = _sdf_record(molecule, smiles, settings)
        except MoleculeError as failure:
            return Outcome(stage=failure.stage, reason=failure.reason)
        except (RuntimeError, ValueError) as error:  # RDKit's invariants, and its own subclasses of ValueError
            return Outcome(stage="embed", reason=_one_line(error))
    return Outcome(gap, molecule.GetNumHeavyAtoms(), force_field, converged, record)


def parse(smiles: str, settings: LabelSettings) -> Any:
    """The sanitized RDKit molecule without hydrogens, or MoleculeError at stage `parse` or `limits`."""
    raw = Chem.MolFromSmiles(smiles, sanitize=False) if smiles else None
    if raw is None:
        raise MoleculeError("parse", "not a SMILES string" if smiles else "empty")
    try:
        Chem.SanitizeMol(raw)
        molecule = Chem.MolFromSmiles(smiles)
    except ValueError as error:
        raise MoleculeError("parse", _one_line(error)) from error
    if any(atom.GetAtomicNum() == 0 for atom in molecule.GetAtoms()):
        raise MoleculeError("parse", "holds a wildcard atom")
    heavy = molecule.GetNumHeavyAtoms()
    if molecule.GetNumAtoms() == 0:
        raise MoleculeError("parse", "no atoms")
    if heavy > settings.max_heavy_atoms:
        raise MoleculeError("limits", f"{heavy} heavy atoms, at most {settings.max_heavy_atoms} are allowed")
    if len(Chem.GetMolFrags(molecule)) > 1:
        # Conformer generation leaves the place of one fragment relative to another open.
        raise MoleculeError("limits", "several fragments, whose relative geometry is undefined")
    charge = Chem.GetFormalCharge(molecule)
    if charge and settings.charges == "refuse":
        raise MoleculeError("limits", f"net charge {charge:+d}")
    return molecule


def embed(molecule: Any, smiles: str, settings: LabelSettings) -> tuple[Any, str, bool]:
    """Molecule with hydrogens and one conformer (Å), the force field (MMFF94 or UFF), whether it converged.

    Raises MoleculeError at stage `embed` or `optimize`.
    """
    molecule = Chem.AddHs(molecule)
    parameters: Any = rdDistGeom.ETKDGv3()
    parameters.randomSeed = named_seed(settings.seed, "embed", smiles) % 2**31
    parameters.timeout = settings.embed_seconds
    if rdDistGeom.EmbedMolecule(molecule, parameters) != 0:
        # Random coordinates find crowded ring systems that the distance matrix alone does not.
        parameters.useRandomCoords = True
        if rdDistGeom.EmbedMolecule(molecule, parameters) != 0:
            raise MoleculeError("embed", f"ETKDGv3 found no conformer in {settings.embed_seconds} s a try")
    if rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
        status = rdForceFieldHelpers.MMFFOptimizeMolecule(molecule, "MMFF94", FORCE_FIELD_STEPS)
        force_field = "MMFF94"
    elif rdForceFieldHelpers.UFFHasAllMoleculeParams(molecule):
        status = rdForceFieldHelpers.UFFOptimizeMolecule(molecule, FORCE_FIELD_STEPS)
        force_field = "UFF"
    else:
        raise MoleculeError("optimize", "neither MMFF94 nor UFF has parameters for its atoms")
    if status < 0 or not np.isfinite(molecule.GetConformer().GetPositions()).all():
        raise MoleculeError("optimize", f"{force_field} failed")
    return molecule, force_field, status == 0


def homo_lumo_gap(
    numbers: Int[np.ndarray, " atoms"], positions: Float[np.ndarray, "atoms 3"], charge: int = 0, unpaired: int = 0
) -> float:
    """GFN1-xTB HOMO-LUMO gap in eV at the given positions (Å).

    HOMO is the highest orbital that holds an electron of majority spin at zero temperature, LUMO the next one; their
    place follows from the sum of the occupations (the number of valence electrons) and the number of unpaired ones.
    Raises MoleculeError at stage `scf`.
    """
    # One thread per task, as Ray gives it one CPU. It has to be said before the library is loaded.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from tblite.exceptions import TBLiteRuntimeError, TBLiteValueError
    from tblite.interface import Calculator

    try:
        calculator = Calculator("GFN1-xTB", numbers, positions / BOHR_IN_ANGSTROM, float(charge), unpaired)
        calculator.set("verbosity", 0)
        calculator.set("max-iter", SCF_STEPS)
        result = calculator.singlepoint()
    except (TBLiteRuntimeError, TBLiteValueError) as error:
        raise MoleculeError("scf", _one_line(error)) from error
    energies = np.sort(np.asarray(result.get("orbital-energies"), dtype=np.float64))
    electrons = round(float(np.sum(result.get("orbital-occupations"))))
    occupied = (electrons + unpaired) // 2
    if not 0 < occupied < len(energies):
        raise MoleculeError("scf", f"no gap: {occupied} of {len(energies)} orbitals are occupied")
    gap = float(energies[occupied] - energies[occupied - 1]) * HARTREE_IN_EV
    if not np.isfinite(gap):
        raise MoleculeError("scf", "the orbital energies are not finite")
    return gap


def _xtb_input(molecule: Any) -> tuple[np.ndarray, np.ndarray, int, int]:
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    unpaired = sum(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms())
    return numbers, molecule.GetConformer().GetPositions(), Chem.GetFormalCharge(molecule), unpaired


def _sdf_record(molecule: Any, smiles: str, settings: LabelSettings) -> str:
    if settings.shuffle_sdf_atoms is not None:
        draw = generator(settings.shuffle_sdf_atoms, "sdf-atoms", smiles)
        if draw.random() < HALF:
            order = draw.permutation(molecule.GetNumAtoms())
            molecule = Chem.RenumberAtoms(molecule, [int(atom) for atom in order])
    return str(Chem.MolToMolBlock(molecule)) + "$$$$\n"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
