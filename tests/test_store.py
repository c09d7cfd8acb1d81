"""The store on disk: opening, checking, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from manifests import edit_manifest
from moldistill.core.artifacts import hash_object, verify_hashes
from moldistill.core.errors import InputError
from moldistill.core.vocabulary import SPLITS
from moldistill.data.columns import COLUMNS, ColumnSpec, ColumnWriter, open_column
from moldistill.data.store import Store


def test_rows_of_the_splits_are_a_partition_in_order(tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    rows = [store.rows(split) for split in SPLITS]
    assert all((np.diff(part) > 0).all() for part in rows)
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(len(store)))
    assert [len(part) for part in rows] == [41, 12, 7, 7, 16]
    assert (store.row == np.arange(len(store))).all()


def test_usable_rows_and_sizes(tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    everything = np.arange(len(store))
    unusable = np.setdiff1d(everything, store.usable(everything))
    assert [store.molecule(int(row)).flag for row in unusable] == ["refused"]
    assert store.size(unusable).tolist() == [0]
    assert store.size(everything).sum() == len(store.atom_features)


def test_a_molecule_is_what_the_columns_say(tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    silicon = next(row for row in range(len(store)) if store.smiles(row).startswith("F[Si]"))
    molecule = store.molecule(silicon)
    assert (molecule.flag, molecule.split, molecule.target, molecule.positions) == ("unsanitized", "valid", 7.5, None)
    assert molecule.atom_features[:, 0].tolist() == [8, 13, 8, 8, 8, 8, 8]
    assert molecule.shortest_paths[0].tolist() == [0, 1, 2, 2, 2, 2, 2]
    assert store.molecule(int(store.rows("train")[0])).positions is not None


def test_an_unknown_split_is_refused_with_the_nearest(tiny_store: Path) -> None:
    with pytest.raises(InputError, match="did you mean valid-3d"):
        Store.open(tiny_store).rows("valid_3d")


def test_content_matches_the_checksums(tiny_store: Path) -> None:
    assert verify_hashes(tiny_store) == []


@pytest.fixture
def copied(tiny_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_store, tmp_path / "store"))


@pytest.mark.parametrize("spec", COLUMNS, ids=lambda spec: spec.name)
def test_a_store_cut_short_is_refused(copied: Path, spec: ColumnSpec) -> None:
    path = copied / spec.file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=rf"{spec.file} is damaged") as caught:
        Store.open(copied)
    assert caught.value.exit_code == 2


def test_an_unfinished_store_is_refused(copied: Path) -> None:
    (copied / "manifest.json").unlink()
    with pytest.raises(InputError, match="unfinished"):
        Store.open(copied)


def test_another_schema_or_vocabulary_is_refused(copied: Path) -> None:
    edit_manifest(copied, lambda manifest: manifest["facts"].update(vocabulary="old"))
    with pytest.raises(InputError, match="vocabulary"):
        Store.open(copied)
    edit_manifest(copied, lambda manifest: manifest["facts"].update(store_schema=0))
    with pytest.raises(InputError, match="schema"):
        Store.open(copied)


def test_columns_that_do_not_fit_each_other_are_refused(copied: Path) -> None:
    flags = np.load(copied / "flag.npy")
    np.save(copied / "flag.npy", flags[:-1])
    size = (copied / "flag.npy").stat().st_size
    edit_manifest(copied, lambda manifest: manifest["files"]["flag.npy"].update(size=size))
    with pytest.raises(InputError, match="does not fit the other columns"):
        Store.open(copied)


def test_a_column_of_another_type_or_with_objects_is_refused(tmp_path: Path) -> None:
    spec = ColumnSpec("flag", "|u1", "row")
    np.save(tmp_path / "flag.npy", np.zeros(3, np.int32))
    with pytest.raises(InputError, match="another type"):
        open_column(tmp_path, spec)
    np.save(tmp_path / "flag.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match="another type"):
        open_column(tmp_path, spec)
    (tmp_path / "flag.npy").unlink()
    with pytest.raises(InputError, match="is not a column"):
        open_column(tmp_path, spec)


@pytest.mark.parametrize("spec", COLUMNS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("pieces", [(), (0,), (3, 0, 5)])
def test_columns_read_back_as_numpy_would(tmp_path: Path, spec: ColumnSpec, pieces: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    parts = [random.integers(0, 2, (length, *spec.shape)).astype(spec.dtype) for length in pieces]
    with ColumnWriter(tmp_path, spec) as writer:
        for part in parts:
            writer.append(part)
    expected = np.concatenate([np.zeros((0, *spec.shape), spec.dtype), *parts])
    assert np.array_equal(np.load(tmp_path / spec.file), expected)
    assert np.array_equal(open_column(tmp_path, spec), expected)


def test_columns_cannot_be_written_to(tiny_store: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        Store.open(tiny_store).target[0] = 1.0


def test_identity_depends_on_content_alone(tiny_store: Path, copied: Path) -> None:
    assert Store.open(copied).identity == Store.open(tiny_store).identity
    manifest = Store.open(copied).manifest
    files = {name: entry.sha256 for name, entry in manifest.files.items()}
    assert manifest.identity == hash_object(["store", manifest.schema, files])
