"""Fixtures that the whole suite shares: shape checking, one Ray cluster, a tiny root and its store."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import install_import_hook

# Before anything of these modules is imported. `data.kernels` is left out: numba cannot compile what the hook adds.
_CHECKED = [
    "moldistill.models",
    "moldistill.distill",
    "moldistill.training",
    *(
        f"moldistill.data.{name}"
        for name in ("batches", "columns", "plan", "predictions", "prepare", "splits", "store", "targets", "views")
    ),
]
install_import_hook(_CHECKED, "beartype.beartype")

import torch  # noqa: E402
from rdkit import Chem  # noqa: E402
from rdkit.Chem import AllChem  # noqa: E402

from moldistill.core import cluster  # noqa: E402
from moldistill.core.settings import PrepareSettings  # noqa: E402


@dataclass(frozen=True)
class RootRows:
    """What goes into a root. One SMILES, target (None: blank) and split per row; an SDF record per training row."""

    smiles: Sequence[str]
    targets: Sequence[float | None]
    splits: Sequence[str]
    records: Sequence[str]


def mol_block(smiles: str, seed: int = 0, *, hydrogens: bool = True, shuffle: bool = False) -> str:
    """SDF record of an ETKDG conformer, with its atoms in random order if `shuffle`."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(molecule, randomSeed=seed + 1) == 0, smiles
    if not hydrogens:
        molecule = Chem.RemoveHs(molecule)
    if shuffle:
        order = np.random.default_rng(seed).permutation(molecule.GetNumAtoms())
        molecule = Chem.RenumberAtoms(molecule, order.tolist())
    return Chem.MolToMolBlock(molecule) + "$$$$\n"


def write_root(folder: Path, rows: RootRows) -> Path:
    """A root in PCQM4Mv2's layout, with a plain `.sdf`."""
    (folder / "raw").mkdir(parents=True)
    lines = ["idx,smiles,homolumogap"]
    for index, (smiles, target) in enumerate(zip(rows.smiles, rows.targets, strict=True)):
        lines.append(f"{index},{smiles},{'' if target is None else repr(target)}")
    with gzip.open(folder / "raw" / "data.csv.gz", "wt", encoding="utf-8") as stream:
        stream.write("\n".join(lines) + "\n")
    splits = np.array(rows.splits)
    names = ("train", "valid", "test-dev", "test-challenge")
    torch.save({name: np.flatnonzero(splits == name) for name in names}, folder / "split_dict.pt")
    (folder / "pcqm4m-v2-train.sdf").write_text("".join(rows.records))
    return folder


def _tiny_smiles() -> list[str]:
    scaffolds = (
        "C{}",
        "CC{}",
        "c1ccc({})cc1",
        "C1CC1{}",
        "CC(C)C{}",
        "c1ccnc({})c1",
        "C=CC{}",
        "CC(=O)N{}",
        "Cc1cc({})sc1",
    )
    groups = ("O", "N", "C#N", "C(=O)O", "OC", "Cl", "C(F)(F)F", "S(C)(=O)=O", "C=O")
    return [scaffold.format(group) for group in groups for scaffold in scaffolds]


def _tiny_target(smiles: str) -> float:
    molecule = Chem.MolFromSmiles(smiles)
    aromatic = sum(atom.GetIsAromatic() for atom in molecule.GetAtoms())
    hetero = sum(atom.GetAtomicNum() not in (1, 6) for atom in molecule.GetAtoms())
    return 9.0 - 0.4 * aromatic - 0.3 * hetero - 0.1 * molecule.GetNumAtoms()


@pytest.fixture(scope="session")
def make_root() -> Callable[[Path, RootRows], Path]:
    """`write_root`, for tests that need a root of their own."""
    return write_root


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """83 rows in PCQM4Mv2's layout: 57 train, 12 valid, 7 of each test.

    Every third SDF record has its atoms shuffled. One valid row fails sanitization, one test-dev row is no SMILES.
    """
    smiles = _tiny_smiles()
    order = np.random.default_rng(0).permutation(len(smiles))
    smiles = [smiles[index] for index in order]
    splits = ["train"] * 57 + ["valid"] * 11 + ["test-dev"] * 6 + ["test-challenge"] * 7
    known = [
        target if split in ("train", "valid") else None
        for target, split in zip(map(_tiny_target, smiles), splits, strict=True)
    ]
    records = [mol_block(text, index, shuffle=index % 3 == 0) for index, text in enumerate(smiles[:57])]
    smiles += ["F[Si](F)(F)(F)(F)F", "C1CC"]
    splits += ["valid", "test-dev"]
    return write_root(tmp_path_factory.mktemp("roots") / "tiny", RootRows(smiles, [*known, 7.5, None], splits, records))


@pytest.fixture(scope="session")
def tiny_store(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of `tiny_root`: 16 of its training rows are valid-3d."""
    from moldistill.data.prepare import prepare

    path = tmp_path_factory.mktemp("stores") / "tiny"
    prepare(tiny_root, path, PrepareSettings())
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need the cluster come last: once it is there, `prepare` and `label` use it in every test."""
    items.sort(key=lambda item: "ray_cluster" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """The session's Ray cluster, 4 logical CPUs."""
    with cluster.cluster(4):
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets, or skip."""
    folder = os.environ.get("MOLDISTILL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MOLDISTILL_DATA names no folder with real data sets")
    return Path(folder)
