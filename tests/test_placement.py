"""Records of many rows, read and placed in compiled code, equal those that RDKit reads and `align` places singly."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem, rdBase

from moldistill.chem import placement as module
from moldistill.chem.align import CASES, MATCHED, NO_GEOMETRY, SAME_ORDER, Alignment, align
from moldistill.chem.features import Graph
from moldistill.chem.featurize import Graphs, featurize, offsets
from moldistill.chem.placement import NO_RECORD, Alignments, Records, align_records
from moldistill.chem.sample import sample_root
from moldistill.core.settings import PrepareSettings
from moldistill.data.source import open_source, read_tasks

Change = Callable[[bytes], bytes]


def rows_of(graphs: Graphs, placed: Alignments) -> Iterator[tuple[Graph, Alignment]]:
    """The single rows of joined columns; positions None where they are NaN."""
    atoms, bonds, hydrogens = map(offsets, (graphs.atom_count, graphs.bond_count, placed.hydrogen_count))
    for row, case in enumerate(placed.case.tolist()):
        own, held = slice(atoms[row], atoms[row + 1]), slice(hydrogens[row], hydrogens[row + 1])
        positions = placed.positions[own]
        yield (
            Graph(int(graphs.flag[row]), "", graphs.atom_features[own], graphs.bonds[bonds[row] : bonds[row + 1]]),
            Alignment(
                case,
                placed.reasons.get(row, ""),
                None if np.isnan(positions).any() or not len(positions) else positions,
                placed.hydrogen_positions[held],
                placed.hydrogen_parent[held],
            ),
        )


def same(left: Alignment, right: Alignment) -> bool:
    """Whether two alignments agree to the bit."""
    if (left.case, left.reason, left.positions is None) != (right.case, right.reason, right.positions is None):
        return False
    names = ["hydrogen_positions", "hydrogen_parent"] + ["positions"] * (left.positions is not None)
    return all(getattr(left, name).tobytes() == getattr(right, name).tobytes() for name in names)


def check(smiles: Sequence[str], records: Sequence[bytes | None]) -> np.ndarray:
    """Hold every row to `align`; how many there were of each case."""
    graphs = featurize(smiles)
    placed = align_records(smiles, graphs, Records.of(records))
    for text, record, (graph, ours) in zip(smiles, records, rows_of(graphs, placed), strict=True):
        if record is None:
            assert ours.case == NO_RECORD
            assert ours.positions is None
        else:
            expected = align(text, graph, record.decode("utf-8", "replace"))
            assert same(ours, expected), (text, ours, expected)
    return np.bincount(placed.case[placed.case >= 0], minlength=len(CASES))


def training_rows(root: Path, limit: int | None = None) -> tuple[list[str], list[bytes | None]]:
    source = open_source(root, PrepareSettings())
    smiles: list[str] = []
    records: list[bytes | None] = []
    for task in read_tasks(source, PrepareSettings(), np.ones(len(source.split), np.bool_), 1000):
        ends = task.records.ends
        for row, text in enumerate(task.smiles):
            held = task.records.data[ends[row] : ends[row + 1]].tobytes()
            smiles.append(text)
            records.append(held if task.records.present[row] else None)
    return smiles[:limit], records[:limit]


def without_hydrogens(record: bytes) -> bytes:
    parameters = Chem.RemoveHsParameters()
    parameters.removeDefiningBondStereo = True
    molecule = Chem.MolFromMolBlock(record.decode(), removeHs=False)
    return Chem.MolToMolBlock(Chem.RemoveHs(molecule, parameters)).encode()


def test_records_of_the_sample() -> None:
    counts = check(*training_rows(sample_root()))
    assert counts[SAME_ORDER] > 500
    assert counts[MATCHED] > 500


def test_records_without_hydrogens() -> None:
    smiles, records = training_rows(sample_root(), 600)
    with rdBase.BlockLogs():
        bare = [None if record is None else without_hydrogens(record) for record in records]
    counts = check(smiles, bare)
    assert counts[SAME_ORDER] + counts[MATCHED] == sum(record is not None for record in records)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qm9_24k", "xtb_24k"])
def test_all_real_records(real_data: Path, name: str) -> None:
    smiles, records = training_rows(real_data / name)
    counts = check(smiles, records)
    assert counts[SAME_ORDER] > 5000
    assert counts[MATCHED] > 5000


@pytest.mark.parametrize("hydrogens", [True, False])
def test_rdkit_is_rarely_asked(monkeypatch: pytest.MonkeyPatch, hydrogens: bool) -> None:
    smiles, records = training_rows(sample_root(), 600)
    if not hydrogens:
        records = [None if record is None else without_hydrogens(record) for record in records]
    asked = []
    monkeypatch.setattr(module, "align", lambda *row: asked.append(row) or Alignment(NO_GEOMETRY, "asked"))
    align_records(smiles, featurize(smiles), Records.of(records))
    assert len(asked) < 0.1 * len(smiles)


@pytest.mark.parametrize(
    "smiles", ["[S-](C)C", "[S-](=O)=O", "C[S-]", "C[SH](C)C", "CS(C)(=O)=O", "C[NH3+]", "[O-]C", "C[PH4]"]
)
def test_hydrogens_that_valences_leave_are_those_of_rdkit(smiles: str) -> None:
    parameters = Chem.SmilesParserParams()
    parameters.sanitize = parameters.removeHs = False
    bare = Chem.RWMol(Chem.MolFromSmiles(smiles, parameters))
    for atom in bare.GetAtoms():  # as in a record without hydrogens, which says nothing of them
        atom.SetNumExplicitHs(0)
        atom.SetNoImplicit(False)
    conformer = Chem.Conformer(bare.GetNumAtoms())
    conformer.SetPositions(np.random.default_rng(0).normal(size=(bare.GetNumAtoms(), 3)).round(4))
    bare.AddConformer(conformer)
    check([smiles, "CC"], [Chem.MolToMolBlock(bare, kekulize=False).encode()] * 2)


SMILES = "C[N+](=O)[O-]"
BLOCK = (
    b"\n  made by hand\n\n  7  6  0  0  0  0  0  0  0  0999 V2000\n"
    b"    0.0000    0.0000    0.0000 C   0  0  0  0  0  0  0  0  0  0  0  0\n"
    b"    1.4900    0.0000    0.0000 N   0  3  0  0  0  0  0  0  0  0  0  0\n"
    b"    2.1000    1.0600    0.0000 O   0  0  0  0  0  0  0  0  0  0  0  0\n"
    b"    2.1000   -1.0600   -0.0000 O   0  5  0  0  0  0  0  0  0  0  0  0\n"
    b"   -0.3600    1.0200    0.0000 H   0  0  0  0  0  0  0  0  0  0  0  0\n"
    b"   -0.3600   -0.5100    0.8900 H   0  0  0  0  0  0  0  0  0  0  0  0\n"
    b"   -0.3600   -0.5100   -0.8900 H   0  0  0  0  0  0  0  0  0  0  0  0\n"
    b"  1  2  1  0\n  2  3  2  0\n  2  4  1  0\n  1  5  1  0\n  1  6  1  0\n  1  7  1  0\nM  END\n"
)


def _swap(old: str, new: str) -> Change:
    assert old.encode() in BLOCK, old
    return lambda block: block.replace(old.encode(), new.encode(), 1)


CHANGES: dict[str, Change] = {
    "as it is": lambda block: block,
    "Windows line ends": lambda block: block.replace(b"\n", b"\r\n"),
    "data after the end": lambda block: block + b"> <gap>\n3.2\n\n",
    "charges in lines of their own": _swap("M  END", "M  CHG  2   2   1   4  -1\nM  END"),
    "charges that replace those of the atoms": _swap("M  END", "M  CHG  1   1   1\nM  END"),
    "a charge of an atom that is not there": _swap("M  END", "M  CHG  1  99   1\nM  END"),
    "an isotope without an atom": _swap("M  END", "M  ISO  1\nM  END"),
    "a charge without a value": _swap("M  END", "M  CHG  1   2\nM  END"),
    "a charge cut short": _swap("M  END", "M  CHG  1 11\nM  END"),
    "isotopes": _swap("M  END", "M  ISO  1   1  13\nM  END"),
    "a radical": _swap("M  END", "M  RAD  1   1   2\nM  END"),
    "a radical in the atom's line": _swap("N   0  3", "N   0  4"),
    "no end": _swap("M  END\n", ""),
    "another property": _swap("M  END", "M  STY  1   1 DAT\nM  END"),
    "a mass difference": _swap("C   0  0", "C   1  0"),
    "a valence": _swap(
        "    0.0000    0.0000    0.0000 C   0  0  0  0  0  0  0",
        "    0.0000    0.0000    0.0000 C   0  0  0  0  0  4  0",
    ),
    "a query": _swap("0.0000 O ", "0.0000 A "),
    "an unknown element": _swap("0.0000 O ", "0.0000 Xy"),
    "deuterium": _swap("0.8900 H ", "0.8900 D "),
    "another element": _swap("0.0000 O ", "0.0000 S "),
    "short lines of atoms": lambda block: re.sub(rb" ([CNOH])   0.*", rb" \1", block),
    "short lines without a trailing space": lambda block: re.sub(rb" ([CNOH])   (\d  \d).*", rb" \1   \2", block),
    "a coordinate that is no number": _swap("1.4900", "1.4x00"),
    "a coordinate that is not a number": _swap("    1.4900", "       nan"),
    "an infinite coordinate": _swap("    1.4900", "       inf"),
    "an exponent": _swap("    1.4900", "   1.49E00"),
    "no decimals": _swap("    1.4900", "         1"),
    "two points": _swap("    1.4900", "    1.4.00"),
    "an empty coordinate": _swap("    1.4900", "          "),
    "all in one place": lambda block: re.sub(rb"-?\d\.\d{4}", b"0.0000", block),
    "a query bond": _swap("  1  2  1  0", "  1  2  8  0"),
    "an aromatic bond": _swap("  1  2  1  0", "  1  2  4  0"),
    "a dative bond": _swap("  1  2  1  0", "  1  2  9  0"),
    "a bond to itself": _swap("  1  2  1  0", "  1  1  1  0"),
    "a bond to nowhere": _swap("  1  2  1  0", "  1  9  1  0"),
    "a bond twice": _swap("  1  6  1  0", "  1  5  1  0"),
    "another bond order": _swap("  2  3  2  0", "  2  3  1  0"),
    "a bond fewer": lambda block: block.replace(b"  1  7  1  0\n", b"").replace(b"  7  6  0", b"  7  5  0"),
    "more bonds than lines": _swap("  7  6  0", "  7 66  0"),
    "more atoms than lines": _swap("  7  6  0", " 77  6  0"),
    "no atoms": _swap("  7  6  0", "  0  0  0"),
    "negative counts": _swap("  7  6  0", " -7  6  0"),
    "version 3": _swap("V2000", "V3000"),
    "no version": _swap(" V2000", ""),
    "an atom list": _swap("  7  6  0  0", "  7  6  1  0"),
    "nothing": lambda block: b"",
    "blank": lambda block: b"\n\n\n",
    "no text": lambda block: bytes(range(256)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_unusual_records_are_read_as_rdkit_reads_them(change: Change) -> None:
    record = change(BLOCK)
    shuffled = "[O-][N+](C)=O"
    counts = check([SMILES, shuffled, "CCO", SMILES], [record, record, record, None])
    assert counts.sum() == 3


@pytest.mark.parametrize(
    ("smiles", "drawn"),
    [
        ("[H]/N=C/C", "[H]/N=C/C"),
        ("[2H]C([2H])O", "[2H]C([2H])O"),
        ("[H][H]", "[H][H]"),
        ("[H+]", "[H+]"),
        ("[Na+].[Cl-]", "[Cl-].[Na+]"),
        ("O", "O"),
        ("C[N+](=O)[O-]", "CN(=O)=O"),
        ("C/C=C\\C(F)Cl", "ClC(F)/C=C\\C"),
        ("C[C@H](N)C(=O)O", "OC(=O)[C@@H](N)C"),
        ("C[S@](=O)CC", "CC[S@@](=O)C"),
        ("B1[H]B[H]1", "B1[H]B[H]1"),
        ("c1ccccc1[C@@H](F)[C@H](F)c1ccccc1", "c1ccccc1[C@@H](F)[C@H](F)c1ccccc1"),
    ],
)
def test_hydrogens_charges_and_stereo(smiles: str, drawn: str) -> None:
    parameters = Chem.SmilesParserParams()
    parameters.sanitize = parameters.removeHs = False
    molecule = Chem.MolFromSmiles(drawn, parameters)
    molecule.UpdatePropertyCache(strict=False)
    molecule = Chem.AddHs(molecule)
    conformer = Chem.Conformer(molecule.GetNumAtoms())
    conformer.SetPositions(np.random.default_rng(0).normal(size=(molecule.GetNumAtoms(), 3)).round(4))
    molecule.AddConformer(conformer)
    records = []
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(molecule.GetNumAtoms()).tolist()
        records.append(Chem.MolToMolBlock(Chem.RenumberAtoms(molecule, order), kekulize=False).encode())
    check([smiles] * 6, records)


def test_no_rows() -> None:
    placed = align_records([], featurize([]), Records.of([]))
    assert len(placed.case) == len(placed.positions) == len(placed.hydrogen_parent) == 0
