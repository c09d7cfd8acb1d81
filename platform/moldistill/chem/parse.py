"""SMILES → RDKit molecule, as `Chem.MolFromSmiles` gives it, in less time; what it refuses is read as written."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from rdkit import Chem, rdBase

_HYDROGEN = re.compile(r"\[\d*(?:H|#1)").search
"""A hydrogen that is written as an atom."""

LONG = 512
"""Characters from which on atoms are counted before anything costly is done."""

_AS_WRITTEN = Chem.SmilesParserParams()
_AS_WRITTEN.sanitize = False  # type: ignore[assignment]  # RDKit's stub is wrong
_AS_WRITTEN.removeHs = False  # type: ignore[assignment]

_EVERYTHING = int(Chem.SanitizeFlags.SANITIZE_ALL)  # RDKit's own type takes longer to hand over
# Without brackets there are no metals, no radicals and no chiral centres; without extensions no atropisomers.
_PLAIN = (
    _EVERYTHING
    ^ Chem.SanitizeFlags.SANITIZE_CLEANUP_ORGANOMETALLICS
    ^ Chem.SanitizeFlags.SANITIZE_CLEANUPATROPISOMERS
    ^ Chem.SanitizeFlags.SANITIZE_CLEANUPCHIRALITY
    ^ Chem.SanitizeFlags.SANITIZE_FINDRADICALS
)


def parse(smiles: str) -> Chem.Mol | None:
    """The molecule that `Chem.MolFromSmiles` would give, or None. To be called with RDKit's log blocked.

    Steps that have nothing to do, by what the text does not contain, are left out: mostly removing hydrogens and
    assigning stereo, a quarter of the time. A test holds the result to RDKit's, byte for byte.
    """
    bracket = "[" in smiles
    # Names, extensions and hydrogens written as atoms: RDKit's own order of steps.
    if "|" in smiles or len(smiles.split()) != 1 or (bracket and _HYDROGEN(smiles) is not None):
        return Chem.MolFromSmiles(smiles)
    molecule = Chem.MolFromSmiles(smiles, _AS_WRITTEN)
    if molecule is None:
        return None
    try:
        Chem.SanitizeMol(molecule, _EVERYTHING if bracket else _PLAIN)
    except (ValueError, RuntimeError):
        return None
    if "@" in smiles or "/" in smiles or "\\" in smiles:
        Chem.AssignStereochemistry(molecule, cleanIt=True)
    return molecule


def is_too_long(smiles: str, limit: int) -> int | None:
    """Number of atoms where it is above `limit`, found before the costly steps; None otherwise, or where unreadable."""
    if len(smiles) < LONG:
        return None
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles, _AS_WRITTEN)
    heavy = 0 if molecule is None else molecule.GetNumHeavyAtoms()
    return heavy if heavy > limit else None


def parse_as_written(smiles: str) -> tuple[Chem.Mol | None, str]:
    """The molecule without RDKit's sanitization (None if the text is no SMILES), and what was wrong with it."""
    if smiles.isascii():
        with captured_log() as lines:
            molecule = Chem.MolFromSmiles(smiles, sanitize=False)
    else:  # RDKit's log may cut a character in two, which Python's cannot take
        lines = ["SMILES Parse Error: characters beyond ASCII"]
        with rdBase.BlockLogs():
            molecule = Chem.MolFromSmiles(smiles, sanitize=False)
    if molecule is None:
        return None, lines[0] if lines else "RDKit refuses the SMILES"
    reason = "RDKit cannot read the molecule"
    with rdBase.BlockLogs():
        try:
            problems = Chem.DetectChemistryProblems(molecule)
            reason = problems[0].Message() if problems else "RDKit cannot sanitize the molecule"
            molecule.UpdatePropertyCache(strict=False)
            molecule = Chem.RemoveHs(molecule, sanitize=False)  # as a sanitized molecule would lose them
            molecule.UpdatePropertyCache(strict=False)
            Chem.FastFindRings(molecule)
            Chem.SetConjugation(molecule)
            Chem.SetHybridization(molecule)
            Chem.AssignStereochemistry(molecule, cleanIt=True)
        except (RuntimeError, ValueError) as error:
            return None, f"{reason}: {_first_line(error)}"
    return molecule, reason


def _first_line(error: Exception) -> str:
    """What went wrong; further lines of RDKit's errors name places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else "".join(lines)


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
