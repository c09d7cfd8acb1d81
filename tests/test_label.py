"""Labelling: the gap against tblite itself, the layout against ogb, kill and resume, failures, wrong input."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rdkit import Chem

from moldistill.chem import label as label_module
from moldistill.chem.label import LabelSummary, label
from moldistill.chem.label_input import SplitShares, random_splits, read_table
from moldistill.chem.root import format_gap
from moldistill.chem.xtb import LabelSettings, homo_lumo_gap, label_molecule
from moldistill.core.artifacts import read_manifest, verify_hashes
from moldistill.core.cluster import ordered_map
from moldistill.core.errors import InputError, RunError
from moldistill.core.units import HARTREE_IN_EV

WATER = np.array([[0.0, 0.0, 0.1173], [0.0, 0.7572, -0.4692], [0.0, -0.7572, -0.4692]])
SMILES = (
    "OCC",
    "c1ccccc1",
    "CC(=O)N",
    "N[C@@H](C)C(=O)O",
    "C#N",
    "F/C=C/Cl",
    "CS",
    "C1CC1C=O",
    "O=C=O",
    "CCN",
    "C=C",
    "CF",
)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Label without Ray, in chunks of three."""

    def here(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return map(function, items)

    from contextlib import nullcontext

    monkeypatch.setattr(label_module, "ordered_map", here)
    monkeypatch.setattr(label_module, "cluster", lambda cpus: nullcontext())
    monkeypatch.setattr(label_module, "CHUNK", 3)
    yield


def write_csv(path: Path, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Path:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode())))


def source(tmp_path: Path) -> Path:
    splits = ["train", "valid", "train", "test-dev", "train", "test-challenge"] * 2
    return write_csv(tmp_path / "own.csv", ("smiles", "split"), zip(SMILES, splits, strict=True))


def sdf_text(root: Path) -> str:
    with tarfile.open(root / "pcqm4m-v2-train.sdf.tar.gz") as archive:
        (member,) = archive.getmembers()
        stream = archive.extractfile(member)
        assert member.name == "pcqm4m-v2-train.sdf" and stream is not None
        return stream.read().decode()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def split_dict(root: Path) -> dict[str, np.ndarray]:
    return torch.load(root / "split_dict.pt", weights_only=False)  # our own file, as ogb reads it


# The gap


def test_gap_of_water_is_that_of_tblite() -> None:
    from tblite.interface import Calculator

    numbers = np.array([8, 1, 1])
    calculator = Calculator("GFN1-xTB", numbers, WATER * 1.8897261246257702)  # bohr per ångström, typed independently
    calculator.set("verbosity", 0)
    energies = calculator.singlepoint().get("orbital-energies")
    # Water has eight valence electrons: the fourth orbital is the highest occupied one.
    expected = (energies[4] - energies[3]) * 27.211386245988
    assert homo_lumo_gap(numbers, WATER) == pytest.approx(expected, abs=1e-6)
    assert 5 < expected < 25
    assert pytest.approx(27.2114, abs=1e-4) == HARTREE_IN_EV


def test_gap_sees_the_geometry_but_not_the_frame() -> None:
    numbers = np.array([8, 1, 1])
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    gap = homo_lumo_gap(numbers, WATER)
    assert homo_lumo_gap(numbers, WATER @ turn + 3.0) == pytest.approx(gap, abs=1e-4)
    assert abs(homo_lumo_gap(numbers, WATER * 1.1) - gap) > 0.1


def test_gap_of_a_radical_is_above_its_singly_occupied_orbital() -> None:
    from tblite.interface import Calculator

    numbers = np.array([6, 1, 1, 1])
    positions = np.array([[0, 0, 0], [1.08, 0, 0], [-0.54, 0.9353, 0], [-0.54, -0.9353, 0]], dtype=float)
    calculator = Calculator("GFN1-xTB", numbers, positions * 1.8897261246257702, 0.0, 1)
    calculator.set("verbosity", 0)
    energies = calculator.singlepoint().get("orbital-energies")
    assert homo_lumo_gap(numbers, positions, 0, 1) == pytest.approx((energies[4] - energies[3]) * 27.211386, abs=1e-5)


def test_same_seed_gives_the_same_record_and_another_does_not() -> None:
    first = label_molecule("CCCCO", LabelSettings(seed=1))
    assert first == label_molecule("CCCCO", LabelSettings(seed=1))
    assert first.record != label_molecule("CCCCO", LabelSettings(seed=2)).record
    assert first.force_field == "MMFF94" and first.heavy_atoms == 5


def test_uff_steps_in_where_mmff94_has_no_parameters() -> None:
    outcome = label_molecule("C[Ge](C)(C)C", LabelSettings())
    assert (outcome.stage, outcome.force_field) == ("", "UFF")


@pytest.mark.parametrize(
    ("smiles", "stage"),
    [("", "parse"), ("c1cc", "parse"), ("C(C)(C)(C)(C)C", "parse"), ("CC*", "parse"), ("CC.O", "limits")],
)
def test_hopeless_molecules_fail_with_a_reason(smiles: str, stage: str, capfd: pytest.CaptureFixture[str]) -> None:
    outcome = label_molecule(smiles, LabelSettings())
    assert outcome.stage == stage and outcome.reason and np.isnan(outcome.gap)
    assert capfd.readouterr().out == ""


def test_limits_on_size_and_charge() -> None:
    assert label_molecule("CCCCCC", LabelSettings(max_heavy_atoms=5)).stage == "limits"
    assert label_molecule("CC(=O)[O-]", LabelSettings(charges="refuse")).stage == "limits"
    assert label_molecule("CC(=O)[O-]", LabelSettings()).stage == ""


def test_shuffled_records_are_the_same_molecules() -> None:
    plain = [label_molecule(s, LabelSettings()) for s in SMILES]
    shuffled = [label_molecule(s, LabelSettings(shuffle_sdf_atoms=3)) for s in SMILES]
    changed = [a.record != b.record for a, b in zip(plain, shuffled, strict=True)]
    assert 0 < sum(changed) < len(SMILES)
    for smiles, one, other in zip(SMILES, plain, shuffled, strict=True):
        assert one.gap == other.gap
        assert Chem.CanonSmiles(Chem.MolToSmiles(Chem.MolFromMolBlock(other.record))) == Chem.CanonSmiles(smiles)


# The root


@pytest.mark.ray
def test_root_has_the_layout_that_ogb_reads(tmp_path: Path, ray_cluster: object) -> None:
    from ogb.lsc import PCQM4Mv2Dataset

    out = tmp_path / "pcqm4m-v2"
    summary = label(source(tmp_path), out, keep_test_labels=True)
    (out / "RELEASE_v1.txt").touch()
    data = PCQM4Mv2Dataset(root=str(tmp_path), only_smiles=True)
    split = split_dict(out)
    assert data.graphs == list(SMILES)
    assert list(split) == ["train", "valid", "test-dev", "test-challenge"]
    assert all(rows.dtype == np.int64 for rows in split.values())
    assert sorted(np.concatenate(list(split.values()))) == list(range(len(SMILES)))
    labels = np.asarray(data.labels)
    assert np.isfinite(labels[np.r_[split["train"], split["valid"]]]).all()
    assert np.isnan(labels[np.r_[split["test-dev"], split["test-challenge"]]]).all()
    assert [row["idx"] for row in read_csv(out / "raw/data.csv.gz")] == [str(i) for i in range(len(SMILES))]
    check_records(out, split["train"])
    kept = {int(row["idx"]): float(row["homolumogap"]) for row in read_csv(out / "test_labels.csv.gz")}
    assert sorted(kept) == sorted([*split["test-dev"], *split["test-challenge"]])
    assert kept[3] == pytest.approx(label_molecule(SMILES[3], LabelSettings()).gap, abs=1e-5)
    assert (summary.molecules, summary.splits["train"], dict(summary.failed)) == (12, 6, {})
    assert not list(tmp_path.glob(".*"))


def check_records(root: Path, train: np.ndarray) -> None:
    """Record i is the i-th training molecule, with hydrogens, and its positions give its gap."""
    supplier = Chem.SDMolSupplier()
    supplier.SetData(sdf_text(root), removeHs=False)
    table = read_csv(root / "raw/data.csv.gz")
    assert len(supplier) == len(train)
    for row, molecule in zip(train, supplier, strict=True):
        smiles = table[row]["smiles"]
        assert Chem.MolToSmiles(Chem.RemoveHs(molecule)) == Chem.CanonSmiles(smiles)
        numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
        assert (numbers == 1).sum() == Chem.AddHs(Chem.MolFromSmiles(smiles)).GetNumAtoms() - (numbers > 1).sum()
        gap = homo_lumo_gap(numbers, molecule.GetConformer().GetPositions())
        assert gap == pytest.approx(float(table[row]["homolumogap"]), abs=5e-3)  # the SDF has four decimals


def test_killed_run_resumes_to_the_same_bytes(
    tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = tmp_path / "undisturbed"
    label(source(tmp_path), undisturbed)

    def killed(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        for done, item in enumerate(items):
            if done == 2:
                raise KeyboardInterrupt
            yield function(item)

    out = tmp_path / "root"
    with monkeypatch.context() as patch:
        patch.setattr(label_module, "ordered_map", killed)
        with pytest.raises(KeyboardInterrupt):
            label(source(tmp_path), out)
    assert not out.exists()
    (work,) = (tmp_path / ".root.work").iterdir()
    assert len(list(work.iterdir())) == 2
    with monkeypatch.context() as patch:  # other settings do not take up these chunks, and leave them alone
        patch.setattr(label_module, "ordered_map", killed)
        with pytest.raises(KeyboardInterrupt):
            label(source(tmp_path), out, settings=LabelSettings(seed=5))
    computed: list[int] = []

    def counted(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            computed.append(len(item.smiles))
            yield function(item)

    monkeypatch.setattr(label_module, "ordered_map", counted)
    summary = label(source(tmp_path), out)
    assert (summary.reused, computed) == (2, [3, 3])
    assert contents(out) == contents(undisturbed)
    assert work.parent.exists() and not work.exists()


@pytest.mark.ray
def test_ray_tasks_give_the_bytes_of_one_process(
    tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch, ray_cluster: object
) -> None:
    label(source(tmp_path), tmp_path / "one")
    monkeypatch.setattr(label_module, "ordered_map", ordered_map)
    label(source(tmp_path), tmp_path / "ray")
    assert contents(tmp_path / "one") == contents(tmp_path / "ray")


def test_failures_are_kept_and_left_out(tmp_path: Path, in_process: None) -> None:
    rows = [("a7", "CCO"), ("b8", "not a molecule"), ("c9", "C"), ("d0", "[Na+].[Cl-]")]
    write_csv(tmp_path / "own.csv", ("idx", "smiles"), rows)
    shares = SplitShares(valid=0.5, test_dev=0.0, test_challenge=0.0)
    summary = label(tmp_path / "own.csv", tmp_path / "root", shares=shares)
    assert [row["smiles"] for row in read_csv(tmp_path / "root/raw/data.csv.gz")] == ["CCO", "C"]
    failures = list(csv.DictReader((tmp_path / "root/failures.csv").open()))
    assert [(row["row"], row["idx"], row["stage"]) for row in failures] == [("1", "b8", "parse"), ("3", "d0", "limits")]
    assert all(row["reason"] for row in failures)
    assert dict(summary.failed) == {"limits": 1, "parse": 1}
    manifest = read_manifest(tmp_path / "root", "root")
    assert manifest.facts["failed"] == {"limits": 1, "parse": 1} and not verify_hashes(tmp_path / "root")
    assert not (tmp_path / "root/test_labels.csv.gz").exists()


def test_nothing_to_train_on_is_an_error(tmp_path: Path, in_process: None) -> None:
    write_csv(tmp_path / "own.csv", ("smiles", "split"), [("CCO", "valid"), ("C(", "train")])
    with pytest.raises(RunError, match="row 1: parse"):
        label(tmp_path / "own.csv", tmp_path / "root")
    assert not (tmp_path / "root").exists()


# Splits


def test_random_split_keeps_large_molecules_out_of_training() -> None:
    heavy = np.random.default_rng(0).integers(5, 24, size=2000)
    shares = SplitShares(valid=0.2, test_dev=0.1, test_challenge=0.1)
    codes = random_splits(heavy, shares)
    assert heavy[codes == 0].max() == 20
    assert np.bincount(codes).tolist() == [1200, 400, 200, 200]
    large = np.bincount(codes[heavy > 20], minlength=4)
    assert large[0] == 0 and abs(large[1] - 2 * large[2]) <= 2
    assert (codes == random_splits(heavy, shares)).all()
    assert (codes != random_splits(heavy, SplitShares(0.2, 0.1, 0.1, seed=1))).any()


def test_random_split_of_mostly_large_molecules_loses_none() -> None:
    codes = random_splits(np.array([30] * 90 + [5] * 10), SplitShares())
    train, valid, *tests = np.bincount(codes).tolist()
    assert (train, valid, sum(tests)) == (10, 45, 45) and abs(tests[0] - tests[1]) <= 1


# Wrong input


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"smiles\n", "no rows"),
        (b"SMILE,split\nC,train\n", "no column `smiles`"),
        (b"smiles\nC\xe9\n", "not UTF-8"),
        (b"smiles,split\nC,trian\n", "unknown split"),
        (b"smiles,split\nC,train\nCC\n", "row 1: unknown split"),
    ],
)
def test_wrong_sources_are_refused_with_a_remedy(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "own.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        label(path, tmp_path / "root")
    assert not list(tmp_path.glob(".*"))


def test_broken_gzip_full_output_and_senseless_shares_are_refused(tmp_path: Path) -> None:
    (tmp_path / "own.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match="cannot be read"):
        read_table(tmp_path / "own.csv.gz")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thing").touch()
    with pytest.raises(InputError, match="not empty"):
        label(source(tmp_path), tmp_path / "full")
    with pytest.raises(InputError, match="nothing to train on"):
        SplitShares(valid=0.9, test_dev=0.2)


def test_missing_tblite_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tblite", None)
    with pytest.raises(InputError, match=r"moldistill\[label\]"):
        label(source(tmp_path), tmp_path / "root")


def test_gap_text() -> None:
    assert [format_gap(x) for x in (float("nan"), 3.0, 10.0, 2.5000004, 0.123456789)] == [
        "",
        "3",
        "10",
        "2.5",
        "0.123457",
    ]


def test_summary_is_a_record(tmp_path: Path, in_process: None) -> None:
    summary = label(source(tmp_path), tmp_path / "root", origin="ours")
    assert isinstance(summary, LabelSummary)
    gaps = [float(row["homolumogap"]) for row in read_csv(summary.out / "raw/data.csv.gz") if row["homolumogap"]]
    assert summary.gap_mean == pytest.approx(np.mean(np.array(gaps)[[0, 2, 3, 4, 6, 7]]), abs=1e-3)
    assert read_manifest(summary.out).facts["origin"] == "ours"
    digest = hashlib.sha256((tmp_path / "own.csv").read_bytes()).hexdigest()
    assert read_manifest(summary.out).inputs["source"] == digest
