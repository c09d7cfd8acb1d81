"""The packaged sample: what it holds, and that it can be made again."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rdkit import Chem

from moldistill.chem.sample import sample_root
from moldistill.chem.xtb import LabelSettings, label_molecule
from moldistill.core.artifacts import hash_file, read_manifest, verify_hashes
from moldistill.sample.enumerate import SPLIT_SIZES, enumerate_molecules, grow, main


@pytest.fixture(scope="module")
def table() -> list[dict[str, str]]:
    content = gzip.decompress((sample_root() / "raw/data.csv.gz").read_bytes()).decode()
    return list(csv.DictReader(io.StringIO(content)))


@pytest.fixture(scope="module")
def split() -> dict[str, np.ndarray]:
    return torch.load(sample_root() / "split_dict.pt", weights_only=False)


@pytest.fixture(scope="module")
def molecules(table: list[dict[str, str]]) -> list[Chem.Mol]:
    return [Chem.MolFromSmiles(row["smiles"]) for row in table]


def test_sample_is_small_and_whole() -> None:
    root = sample_root()
    manifest = read_manifest(root, "root")
    assert not verify_hashes(root)
    assert sum(path.stat().st_size for path in root.rglob("*") if "__pycache__" not in path.parts) < 1_000_000
    assert manifest.facts["splits"] == SPLIT_SIZES and manifest.facts["failed"] == {}
    assert 0.8 < manifest.facts["gap_ev"]["std"] < 1.25


def test_sizes_and_elements(molecules: list[Chem.Mol], split: dict[str, np.ndarray]) -> None:
    heavy = np.array([molecule.GetNumHeavyAtoms() for molecule in molecules])
    assert {name: len(rows) for name, rows in split.items()} == SPLIT_SIZES
    assert heavy.min() >= 4 and heavy.max() <= 30
    assert heavy[split["train"]].max() <= 20
    for name in ("valid", "test-dev", "test-challenge"):
        assert 0.3 < (heavy[split[name]] > 20).mean() < 0.5
    elements = {atom.GetSymbol() for molecule in molecules for atom in molecule.GetAtoms()}
    assert elements == {"C", "N", "O", "F", "S", "Cl"}


def test_molecules_are_distinct_and_labelled(
    table: list[dict[str, str]], molecules: list[Chem.Mol], split: dict[str, np.ndarray]
) -> None:
    flat = {Chem.MolToSmiles(molecule, isomericSmiles=False) for molecule in molecules}
    assert len(flat) == len(table)
    gap = np.array([float(row["homolumogap"] or "nan") for row in table])
    hidden = np.isin(np.arange(len(table)), np.r_[split["test-dev"], split["test-challenge"]])
    assert (np.isnan(gap) == hidden).all()
    assert (gap[~hidden] > 0).all()
    canonical = [Chem.MolToSmiles(molecule) for molecule in molecules]
    other_order = np.mean([row["smiles"] != smiles for row, smiles in zip(table, canonical, strict=True)])
    assert 0.3 < other_order < 0.6
    assert np.mean([any(mark in smiles for mark in "@/\\") for smiles in canonical]) > 0.1


def test_the_script_makes_the_same_molecules_again(tmp_path: Path, table: list[dict[str, str]]) -> None:
    main(["--out", str(tmp_path / "molecules.csv")])
    assert hash_file(tmp_path / "molecules.csv") == read_manifest(sample_root()).inputs["source"]
    rows = list(csv.DictReader((tmp_path / "molecules.csv").open()))
    assert [row["smiles"] for row in rows] == [row["smiles"] for row in table]


def test_relabelling_gives_the_stored_gap(table: list[dict[str, str]], split: dict[str, np.ndarray]) -> None:
    settings = LabelSettings(**read_manifest(sample_root()).facts["settings"])
    for row in (0, 1234, int(split["valid"][7])):
        outcome = label_molecule(table[row]["smiles"], settings)
        assert outcome.gap == pytest.approx(float(table[row]["homolumogap"]), abs=1e-3)


def test_enumeration_is_seeded() -> None:
    sizes = {"train": 20}
    first = list(enumerate_molecules(1, sizes))
    assert first == list(enumerate_molecules(1, sizes))
    assert first[:10] == list(enumerate_molecules(1, {"train": 10}))
    assert first != list(enumerate_molecules(2, sizes))


@pytest.mark.parametrize("size", [4, 12, 30])
def test_growth_hits_the_size(size: int) -> None:
    grown = [grow(np.random.default_rng(seed), size) for seed in range(20)]
    made = [molecule for molecule in grown if molecule is not None]
    assert len(made) > 5
    assert {molecule.GetNumHeavyAtoms() for molecule in made} == {size}
