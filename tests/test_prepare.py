"""From a source to a store: exact, in order, nothing lost; wrong sources are refused with a reason."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from moldistill.chem.features import smiles_to_graph
from moldistill.core.errors import InputError
from moldistill.core.settings import PrepareSettings
from moldistill.data import prepare as module
from moldistill.data.columns import COLUMNS
from moldistill.data.prepare import prepare
from moldistill.data.splits import mark_valid_3d, random_splits, sample_rows
from moldistill.data.store import Store

Change = Callable[[Path], None]
SDF = "pcqm4m-v2-train.sdf"


@pytest.fixture
def root(tiny_root: Path, tmp_path: Path) -> Path:
    """A root to spoil."""
    return Path(shutil.copytree(tiny_root, tmp_path / "root"))


def _table(root: Path) -> list[dict[str, str]]:
    with gzip.open(root / "raw" / "data.csv.gz", "rt", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _write_table(root: Path, text: str | bytes) -> None:
    data = text.encode() if isinstance(text, str) else text
    (root / "raw" / "data.csv.gz").write_bytes(gzip.compress(data))


def _text(root: Path) -> str:
    return gzip.decompress((root / "raw" / "data.csv.gz").read_bytes()).decode()


def test_every_row_of_a_root_is_in_the_store(tiny_root: Path, tiny_store: Path) -> None:
    store, table = Store.open(tiny_store), _table(tiny_root)
    assert len(store) == len(table)
    for row, source in enumerate(table):
        molecule, graph = store.molecule(row), smiles_to_graph(source["smiles"])
        assert molecule.smiles == source["smiles"]
        assert repr(molecule.target) == (source["homolumogap"] or "nan")
        for name in ("atom_features", "bond_index", "bond_features", "shortest_paths"):
            assert np.array_equal(getattr(molecule, name), getattr(graph, name)), (row, name)


def test_geometries_are_those_of_the_training_rows(tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    training = np.sort(np.concatenate([store.rows("train"), store.rows("valid-3d")]))
    assert np.array_equal(np.flatnonzero(store.has_positions), training)
    for row in training:
        molecule = store.molecule(int(row))
        assert molecule.positions is not None
        bonds = molecule.positions[molecule.bond_index.astype(int)]
        lengths = np.linalg.norm(bonds[:, 0] - bonds[:, 1], axis=1)
        assert ((lengths > 1.0) & (lengths < 2.0)).all(), "bonded atoms lie a bond's length apart"
        assert len(molecule.hydrogen_parent) == molecule.atom_features[:, 4].sum()
    atoms = np.repeat(store.has_positions, np.diff(store.atom_offsets))
    assert np.array_equal(np.isfinite(store.positions).all(1), atoms)
    assert np.isnan(store.positions[~atoms]).all()


def test_facts_and_the_table_of_flagged_rows(tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    facts = store.manifest.facts
    assert facts["splits"] == {
        "train": 41, "valid": 12, "test-dev": 7, "test-challenge": 7, "valid-3d": 16, "none": 0
    }  # fmt: skip
    assert facts["flags"] == {"fine": 81, "unsanitized": 1, "refused": 1, "too large": 0, "empty": 0}
    assert sum(facts["alignment"].values()) == 57
    assert facts["alignment"]["matched"] >= 15
    known = store.target[store.rows("train")]
    assert facts["target"]["mean"] == pytest.approx(known.mean())
    assert facts["target"]["median"] == pytest.approx(np.median(known))
    assert facts["target"]["known"] == 41
    with (tiny_store / "flagged.csv").open(encoding="utf-8") as stream:
        flagged = list(csv.DictReader(stream))
    assert [(row["smiles"], row["flag"]) for row in flagged] == [
        ("F[Si](F)(F)(F)(F)F", "unsanitized"),
        ("C1CC", "refused"),
    ]
    assert "unclosed ring" in flagged[1]["reason"]


def test_the_same_source_gives_the_same_bytes(
    tiny_root: Path, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 7)  # chunks do not show in the result
    prepare(tiny_root, tmp_path / "again", PrepareSettings())
    for spec in COLUMNS:
        assert (tmp_path / "again" / spec.file).read_bytes() == (tiny_store / spec.file).read_bytes(), spec.name
    assert Store.open(tmp_path / "again").identity == Store.open(tiny_store).identity
    other = prepare(tiny_root, tmp_path / "other", PrepareSettings(seed=1))
    assert other.identity != Store.open(tiny_store).identity


@pytest.mark.ray
def test_ray_tasks_give_the_same_bytes(
    tiny_root: Path, tiny_store: Path, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 20)
    assert prepare(tiny_root, tmp_path / "store", PrepareSettings()).identity == Store.open(tiny_store).identity


@pytest.mark.parametrize("name", [f"{SDF}.gz", f"{SDF}.tar.gz"])
def test_compressed_geometries_are_read_as_streams(root: Path, tiny_store: Path, tmp_path: Path, name: str) -> None:
    plain = (root / SDF).read_bytes()
    (root / SDF).unlink()
    if name.endswith(".tar.gz"):
        with tarfile.open(root / name, "w:gz") as archive:
            for member, data in (("../evil.sh", b"harm"), (f"./{SDF}", plain.replace(b"\n", b"\r\n"))):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    else:
        (root / name).write_bytes(gzip.compress(plain))
    store = prepare(root, tmp_path / "store", PrepareSettings())
    assert store.identity == Store.open(tiny_store).identity
    assert not (tmp_path / "evil.sh").exists()


def test_a_root_without_geometries_has_no_valid_3d(root: Path, tmp_path: Path) -> None:
    (root / SDF).unlink()
    facts = prepare(root, tmp_path / "store", PrepareSettings()).facts
    assert facts["splits"]["valid-3d"] == 0
    assert not any(facts["alignment"].values())


def test_a_row_whose_record_is_another_molecule_keeps_its_place(root: Path, tmp_path: Path) -> None:
    records = (root / SDF).read_text().split("$$$$\n")
    records[0], records[1] = records[1], "\n\n\n"
    (root / SDF).write_text("$$$$\n".join(records))
    prepare(root, tmp_path / "store", PrepareSettings())
    store = Store.open(tmp_path / "store")
    assert not store.has_positions[:2].any()
    assert store.has_positions[2:57].all()
    assert (store.split[:2] == 0).all()
    assert sum(store.manifest.facts["alignment"][case] for case in ("different graph", "no geometry")) == 2
    assert "no positions: " in (tmp_path / "store" / "flagged.csv").read_text()


def test_a_limit_is_a_sample_of_the_same_rows(tiny_root: Path, tiny_store: Path, tmp_path: Path) -> None:
    prepare(tiny_root, tmp_path / "store", PrepareSettings(limit=60, valid_3d=0.0))
    store, whole = Store.open(tmp_path / "store"), Store.open(tiny_store)
    assert len(store) == 60
    assert (np.diff(store.row) > 0).all()
    for row in range(len(store)):
        ours, theirs = store.molecule(row), whole.molecule(int(store.row[row]))
        assert ours.smiles == theirs.smiles
        if ours.split == "train":
            assert theirs.positions is not None
            assert np.array_equal(ours.positions, theirs.positions)


def _csv(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_csv_without_targets_belongs_to_no_split(tmp_path: Path) -> None:
    source = _csv(tmp_path / "a.csv", "name,smiles\nx,CCO\ny,C1CC\nz,\nw,c1ccccc1\n")
    prepare(source, tmp_path / "store", PrepareSettings())
    store = Store.open(tmp_path / "store")
    assert store.split.tolist() == [-1] * 4
    assert store.flag.tolist() == [0, 2, 4, 0]
    assert np.isnan(store.target).all()


def test_a_csv_with_targets_is_split_at_random(tmp_path: Path) -> None:
    lines = "".join(f"{'C' * (1 + index % 20)},{index / 10}\n" for index in range(100))
    prepare(_csv(tmp_path / "a.csv", "smiles,homolumogap\n" + lines), tmp_path / "store", PrepareSettings())
    store = Store.open(tmp_path / "store")
    assert [len(store.rows(name)) for name in ("train", "valid", "test-dev", "test-challenge")] == [80, 10, 5, 5]
    assert store.target[37] == 3.7


@pytest.mark.parametrize("odd", ["", " ", "1_0"])
def test_blank_lines_are_no_rows_and_are_counted(tmp_path: Path, odd: str) -> None:
    lines = ["smiles,homolumogap", "CCO,1", "", "CC,2", "", "", f"C,{odd}", ""]
    source = _csv(tmp_path / "a.csv", "\n".join(lines))
    if odd == "1_0":
        with pytest.raises(InputError, match=r"a\.csv:7"):
            prepare(source, tmp_path / "store", PrepareSettings())
        return
    facts = prepare(source, tmp_path / "store", PrepareSettings()).facts
    assert (facts["rows"], facts["source"]["blank_lines"]) == (3, 3)


def test_a_csv_may_name_its_splits_target_and_unit(tmp_path: Path) -> None:
    text = '\ufeffsplit,smiles,gap\r\ntrain,CCO,1\r\nvalid,"CC",\r\n\r\ntest-dev,CN,NaN\r\n,C,2\r\n'
    settings = PrepareSettings(target="gap", unit="hartree")
    prepare(_csv(tmp_path / "a.csv", text), tmp_path / "store", settings)
    store = Store.open(tmp_path / "store")
    assert store.split.tolist() == [0, 1, 2, -1]
    assert store.target[[0, 3]].tolist() == [27.211386245988, 2 * 27.211386245988]
    assert np.isnan(store.target[1:3]).all()
    assert store.smiles(1) == "CC"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "is empty"),
        ("smiles,homolumogap\n", "no rows"),
        ("SMILE,homolumogap\nCC,1\n", "did you mean smile"),
        ("smiles,smiles\nCC,CC\n", "2 times"),
        (b"smiles\nCC\nC\xff\xfe\n", r"a.csv:3: not UTF-8"),
        ("smiles,homolumogap\nCC,1\nCC,much\n", r"a.csv:3: column homolumogap is not a finite number"),
        ("smiles,homolumogap\nCC,inf\n", r"a.csv:2: column homolumogap is not a finite number"),
        ("smiles,homolumogap\nCC,1,2\n", r"a.csv:2: a row of another length"),
        ("smiles,split\nCC,training\n", "unknown split"),
        (gzip.compress(b"smiles\n" + b"CC\n" * 9999)[:-30], "cannot be read to its end"),
    ],
)
def test_wrong_csvs_are_refused(tmp_path: Path, text: str | bytes, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        prepare(_csv(tmp_path / "a.csv", text), tmp_path / "store", PrepareSettings())
    assert caught.value.exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv"]


@pytest.mark.parametrize(
    ("target", "match"), [("homo,lumo", "several targets"), ("homolumogip", "did you mean homolumogap")]
)
def test_a_wrong_target_is_refused(tmp_path: Path, target: str, match: str) -> None:
    source = _csv(tmp_path / "a.csv", "smiles,homolumogap\nCC,1\n")
    with pytest.raises(InputError, match=match):
        prepare(source, tmp_path / "store", PrepareSettings(target=target))


def _short_sdf(root: Path) -> None:
    (root / SDF).write_text("$$$$\n".join((root / SDF).read_text().split("$$$$\n")[2:]))


def _long_sdf(root: Path) -> None:
    text = (root / SDF).read_text()
    (root / SDF).write_text(text + text.split("$$$$\n")[0] + "$$$$\n")


def _cut_sdf(root: Path) -> None:
    (root / SDF).write_text((root / SDF).read_text()[:-200])


def _cut_archive(root: Path) -> None:
    (root / f"{SDF}.gz").write_bytes(gzip.compress((root / SDF).read_bytes())[:-2000])
    (root / SDF).unlink()


def _no_table(root: Path) -> None:
    (root / "raw" / "data.csv.gz").unlink()


def _short_table(root: Path) -> None:
    _write_table(root, "".join(_text(root).splitlines(keepends=True)[:-3]))


def _row_lost(root: Path) -> None:
    lines = _text(root).splitlines(keepends=True)
    _write_table(root, "".join(lines[:9] + lines[10:]))


def _no_target(root: Path) -> None:
    _write_table(root, _text(root).replace("homolumogap", "homolumo"))


def _no_splits(root: Path) -> None:
    (root / "split_dict.pt").unlink()


def _splits(change: Callable[[dict[str, np.ndarray]], object]) -> Change:
    def apply(root: Path) -> None:
        splits = torch.load(root / "split_dict.pt", weights_only=False)
        torch.save(change(splits), root / "split_dict.pt")

    return apply


class _Harm:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("harm"),)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_short_sdf, r"too short[\s\S]*55 records[\s\S]*57"),
        (_long_sdf, r"too long[\s\S]*58 records[\s\S]*57"),
        (_cut_sdf, "middle of a record"),
        (_cut_archive, "cannot be read to its end"),
        (_no_table, "no root in PCQM4Mv2's layout"),
        (_short_table, r"points past the end[\s\S]*rows 0 to 79"),
        (_row_lost, "does not count the rows"),
        (_no_target, "did you mean homolumo"),
        (_no_splits, "does not exist"),
        (_splits(lambda splits: {**splits, "valid": splits["train"][:5]}), "already in a split"),
        (_splits(lambda splits: {**splits, "valid": np.array([57, 57])}), "already in a split"),
        (_splits(lambda splits: {**splits, "valid": np.array([-1])}), "points past the end"),
        (_splits(lambda splits: {**splits, "valid": np.zeros((2, 2), int)}), "no list of row numbers"),
        (_splits(lambda splits: {**splits, "train": splits["train"][::-1].copy()}), "train do not ascend"),
        (_splits(lambda splits: {**splits, "test-dev": splits["test-dev"][::-1].copy()}), "test-dev do not ascend"),
        (_splits(lambda splits: {**splits, "test": splits["valid"]}), "other splits"),
        (_splits(lambda splits: [1, 2]), "other splits"),
        (_splits(lambda splits: {**splits, "valid": _Harm()}), "not a file of splits"),
        (lambda root: (root / "split_dict.pt").write_bytes(b"text"), "not a file of splits"),
    ],
)
def test_wrong_roots_are_refused_and_leave_nothing(root: Path, tmp_path: Path, change: Change, match: str) -> None:
    change(root)
    with pytest.raises(InputError, match=match) as caught:
        prepare(root, tmp_path / "store", PrepareSettings())
    assert caught.value.exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root"]


def test_the_folder_above_a_root_is_named_in_the_remedy(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"name .*/root"):
        prepare(tmp_path, tmp_path / "store", PrepareSettings())


def test_wrong_places_are_refused(tiny_root: Path, tiny_store: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        prepare(tmp_path / "nothing", tmp_path / "store", PrepareSettings())
    with pytest.raises(InputError, match="is not empty"):
        prepare(tiny_root, tiny_store, PrepareSettings(seed=1))
    with pytest.raises(InputError, match="inside"):
        prepare(tiny_root, tiny_store / "store", PrepareSettings())


def test_integer_arrays_of_any_numpy_type_are_splits(root: Path, tiny_store: Path, tmp_path: Path) -> None:
    _splits(lambda splits: {name: rows.astype(np.int32) for name, rows in splits.items()})(root)
    assert prepare(root, tmp_path / "store", PrepareSettings()).identity == Store.open(tiny_store).identity


def test_samples_keep_the_proportions() -> None:
    split = np.repeat(np.array([0, 1, 2, 3], np.int8), [8000, 1000, 500, 20])
    rows = sample_rows(split, 1000, 0)
    assert len(rows) == 1000
    assert np.bincount(split[rows]).tolist() == pytest.approx([827, 105, 52, 16], abs=2)
    assert (np.diff(rows) > 0).all()
    assert not np.array_equal(rows, sample_rows(split, 1000, 1))
    assert np.bincount(split[sample_rows(split, 1, 0)]).tolist() == [16] * 4
    assert len(sample_rows(split, None, 0)) == len(sample_rows(split, 99999, 0)) == len(split)


def test_valid_3d_is_taken_from_eligible_training_rows() -> None:
    split = np.repeat(np.array([0, 1], np.int8), [2000, 100])
    eligible = np.arange(2100) % 2 == 0
    marked = mark_valid_3d(split, eligible, 0.05, 0)
    assert (marked == 4).sum() == 50
    assert (eligible & (split == 0))[marked == 4].all()
    assert np.array_equal(np.where(marked == 4, 0, marked), split)
    assert (mark_valid_3d(split, eligible, 0.0, 0) == split).all()
    assert (mark_valid_3d(split, np.arange(2100) < 10, 0.05, 0) == 4).sum() == 10


def test_random_splits_have_their_shares() -> None:
    assert np.bincount(random_splits(1000, 0)).tolist() == [800, 100, 50, 50]
    assert len(random_splits(1, 0)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qm9_2k", "xtb_24k"])
def test_real_sets(real_data: Path, tmp_path: Path, name: str) -> None:
    prepare(real_data / name, tmp_path / "store", PrepareSettings(limit=2500))
    facts = json.loads((tmp_path / "store" / "manifest.json").read_text())["facts"]
    assert facts["flags"]["fine"] == facts["rows"] == 2500
    assert facts["alignment"]["matched"] > 500
    assert facts["alignment"]["no geometry"] == facts["alignment"]["different graph"] == 0
    store = Store.open(tmp_path / "store")
    first_atom = np.repeat(store.atom_offsets[:-1], np.diff(store.bond_offsets))
    ends = store.positions[store.bond_index + first_atom[:, None]]
    lengths = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
    lengths = lengths[np.isfinite(lengths)]
    low, high = np.quantile(lengths, [0.001, 0.999])
    assert 1.1 < low < 1.3 < np.median(lengths) < 1.6 < high < 2.1, "bonded atoms lie a bond's length apart"
