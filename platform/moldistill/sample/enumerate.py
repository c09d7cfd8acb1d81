"""Enumerate the molecules of the embedded sample.

The sample is made in two steps, and anyone can make it again, byte for byte with the packages of `constraints.txt`::

    python -m moldistill.sample.enumerate --out molecules.csv
    moldistill label molecules.csv --out ROOT --shuffle-sdf-atoms 0

A molecule grows from a ring, a chain or a zwitterion by fragments (`fragments.py`) on atoms that carry a hydrogen, up
to a size drawn beforehand, without bonds between two heteroatoms other than those of a fragment. Stereo centres and
double bonds of 60% get random labels, the others stay open, as in real collections. Half of the SMILES are written in
a random atom order. No two rows are the same molecule, not even as stereoisomers of each other.
Training molecules have 4 to 20 heavy atoms; in each other split 40% have 21 to 30, the rest are like the training set.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem, rdBase

from moldistill.core.artifacts import write_text
from moldistill.core.progress import log
from moldistill.core.seeds import generator
from moldistill.sample.fragments import AROMATIC_RINGS, CHAINS, ENDS, OTHER_RINGS, PLAIN_CHAINS, ZWITTERIONS

SPLIT_SIZES = {"train": 2200, "valid": 400, "test-dev": 150, "test-challenge": 150}
SMALLEST, TRAIN_LARGEST, LARGEST = 4, 20, 30
LARGE_SHARE = 0.4
"""Share of the molecules of valid and tests that have more heavy atoms than any of the training set."""
SIZE_MEAN, SIZE_DEVIATION = 12.0, 3.0
STEREO_SHARE = 0.6
RANDOM_ORDER_SHARE = 0.5
CARBON_CHAINS = tuple(chain for chain in CHAINS if chain.startswith("*C"))
STARTS = ((AROMATIC_RINGS, 0.73), (OTHER_RINGS, 0.16), (CARBON_CHAINS, 0.09), (ZWITTERIONS, 0.02))
PARTS = ((AROMATIC_RINGS, 0.12), (OTHER_RINGS, 0.08), (CHAINS, 0.25), (PLAIN_CHAINS, 0.25), (ENDS, 0.30))
MAX_HALOGENS = 4


@dataclass(frozen=True, slots=True)
class Row:
    """A molecule of the sample: SMILES as it is written, and its split."""

    smiles: str
    split: str


def enumerate_molecules(seed: int = 0, sizes: Mapping[str, int] = SPLIT_SIZES) -> Iterator[Row]:
    """Rows of the sample, split after split, the same for the same seed; fewer training rows are the first of more."""
    seen: set[str] = set()
    for split, count in sizes.items():
        draw = generator(seed, "sample", split)
        for _ in range(count):
            yield Row(_new_molecule(draw, draw_size(draw, split), seen), split)


def draw_size(draw: np.random.Generator, split: str) -> int:
    """Number of heavy atoms of a molecule of this split."""
    if split != "train" and draw.random() < LARGE_SHARE:
        return int(draw.integers(TRAIN_LARGEST + 1, LARGEST + 1))
    return int(np.clip(np.rint(draw.normal(SIZE_MEAN, SIZE_DEVIATION)), SMALLEST, TRAIN_LARGEST))


def _new_molecule(draw: np.random.Generator, size: int, seen: set[str]) -> str:
    while True:
        molecule = grow(draw, size)
        if molecule is None:
            continue
        # One isomer only, or the labels of a training molecule would leak into the validation set.
        flat = Chem.MolToSmiles(molecule, isomericSmiles=False)
        smiles = _write(draw, _with_stereo(draw, molecule))
        if flat not in seen and smiles is not None:
            seen.add(flat)
            return smiles


def grow(draw: np.random.Generator, size: int) -> Any | None:
    """A sanitized RDKit molecule of `size` heavy atoms, or None where this draw led nowhere."""
    molecule = _start(draw, size)
    for _ in range(4 * size):
        left = size - molecule.GetNumHeavyAtoms()
        if left == 0:
            break
        grown = _attach(draw, molecule, _part(draw))
        if grown is not None and grown.GetNumHeavyAtoms() <= size:
            molecule = grown
    halogens = sum(atom.GetAtomicNum() in (9, 17) for atom in molecule.GetAtoms())
    return molecule if molecule.GetNumHeavyAtoms() == size and halogens <= MAX_HALOGENS else None


def _start(draw: np.random.Generator, size: int) -> Any:
    while True:
        fragment = _without_marks(_choose(draw, STARTS))
        if fragment.GetNumHeavyAtoms() <= size:
            return fragment


def _choose(draw: np.random.Generator, groups: tuple[tuple[tuple[str, ...], float], ...]) -> Any:
    fragments = groups[int(draw.choice(len(groups), p=[share for _, share in groups]))][0]
    return Chem.MolFromSmiles(fragments[int(draw.integers(len(fragments)))])


def _without_marks(fragment: Any) -> Any:
    """The fragment with hydrogen at its mark."""
    editable = Chem.RWMol(fragment)
    for atom in editable.GetAtoms():
        if atom.GetAtomicNum() == 0:
            atom.SetAtomicNum(1)
    return Chem.RemoveHs(editable.GetMol())


def _part(draw: np.random.Generator) -> tuple[Any, int]:
    """A fragment without mark, and the atom by which it is attached (rings: any that carries a hydrogen)."""
    fragment = _choose(draw, PARTS)
    marks = [atom.GetIdx() for atom in fragment.GetAtoms() if atom.GetAtomicNum() == 0]
    if not marks:
        return fragment, _open_atom(draw, fragment)
    editable = Chem.RWMol(fragment)
    neighbor = int(editable.GetAtomWithIdx(marks[0]).GetNeighbors()[0].GetIdx())
    editable.RemoveAtom(marks[0])
    return editable.GetMol(), neighbor - (neighbor > marks[0])


def _open_atom(draw: np.random.Generator, molecule: Any) -> int:
    """An atom that carries a hydrogen, or -1 where there is none."""
    atoms = [atom.GetIdx() for atom in molecule.GetAtoms() if atom.GetTotalNumHs() > 0 and atom.GetFormalCharge() == 0]
    return int(atoms[int(draw.integers(len(atoms)))]) if atoms else -1


def _attach(draw: np.random.Generator, molecule: Any, part: tuple[Any, int]) -> Any | None:
    """The molecule with the part bound to one of its open atoms, or None where that makes no stable bond."""
    fragment, there = part
    here = _open_atom(draw, molecule)
    if here < 0 or there < 0:
        return None
    first, second = molecule.GetAtomWithIdx(here), fragment.GetAtomWithIdx(there)
    if first.GetAtomicNum() != 6 and second.GetAtomicNum() != 6:
        return None
    editable = Chem.RWMol(Chem.CombineMols(molecule, fragment))
    there += molecule.GetNumAtoms()
    for index in (here, there):
        atom = editable.GetAtomWithIdx(index)
        if atom.GetNumExplicitHs():  # [nH] and the like: the new bond takes the place of the hydrogen
            atom.SetNumExplicitHs(atom.GetNumExplicitHs() - 1)
    editable.AddBond(here, there, Chem.BondType.SINGLE)
    grown = editable.GetMol()
    return grown if Chem.SanitizeMol(grown, catchErrors=True) == Chem.SANITIZE_NONE else None


def _with_stereo(draw: np.random.Generator, molecule: Any) -> Any:
    """The molecule with random labels on its stereo centres and double bonds, or without any."""
    molecule = Chem.MolFromSmiles(Chem.MolToSmiles(molecule))
    if draw.random() >= STEREO_SHARE:
        return molecule
    rings = molecule.GetRingInfo()
    for place in Chem.FindPotentialStereo(molecule):
        side = bool(draw.integers(2))
        if place.type == Chem.StereoType.Atom_Tetrahedral:
            if rings.NumAtomRings(place.centeredOn) > 1:
                continue  # the labels of bridgeheads depend on each other: most combinations have no geometry
            tag = Chem.ChiralType.CHI_TETRAHEDRAL_CW if side else Chem.ChiralType.CHI_TETRAHEDRAL_CCW
            molecule.GetAtomWithIdx(place.centeredOn).SetChiralTag(tag)
        elif place.type == Chem.StereoType.Bond_Double:
            bond = molecule.GetBondWithIdx(place.centeredOn)
            near = [
                atom.GetIdx() for atom in bond.GetBeginAtom().GetNeighbors() if atom.GetIdx() != bond.GetEndAtomIdx()
            ]
            far = [
                atom.GetIdx() for atom in bond.GetEndAtom().GetNeighbors() if atom.GetIdx() != bond.GetBeginAtomIdx()
            ]
            if near and far:
                bond.SetStereoAtoms(near[0], far[0])
                bond.SetStereo(Chem.BondStereo.STEREOCIS if side else Chem.BondStereo.STEREOTRANS)
    Chem.AssignStereochemistry(molecule, cleanIt=True, force=True)
    return molecule


def _write(draw: np.random.Generator, molecule: Any) -> str | None:
    """SMILES, canonical or in a random atom order; None where it does not read back as the same molecule."""
    canonical = _canonical(Chem.MolToSmiles(molecule))
    if draw.random() >= RANDOM_ORDER_SHARE:
        return canonical
    order = [int(atom) for atom in draw.permutation(molecule.GetNumAtoms())]
    smiles = str(Chem.MolToSmiles(Chem.RenumberAtoms(molecule, order), canonical=False))
    return smiles if _canonical(smiles) == canonical else None


def _canonical(smiles: str) -> str:
    return str(Chem.MolToSmiles(Chem.MolFromSmiles(smiles)))


def main(arguments: list[str] | None = None) -> None:
    """Write the CSV of the sample's molecules, columns `smiles,split`."""
    parser = argparse.ArgumentParser(prog="moldistill.sample.enumerate", description="molecules of the embedded sample")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("smiles", "split"))
    with rdBase.BlockLogs():
        writer.writerows((row.smiles, row.split) for row in enumerate_molecules(options.seed))
    write_text(options.out, text.getvalue())
    log(f"wrote {options.out}; next: moldistill label {options.out} --out ROOT --shuffle-sdf-atoms 0")


if __name__ == "__main__":
    main()
