from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import numpy as np
import pytest

from delivery_folders import SIZES, make_run, make_store, predicted
from moldistill.core.artifacts import hash_file, read_manifest
from moldistill.core.errors import InputError
from moldistill.core.vocabulary import TEST_SPLITS
from moldistill.data.store import Store
from moldistill.delivery.checks import FILE_NAMES, OFFICIAL_SIZES
from moldistill.delivery.ensemble import ensemble
from moldistill.delivery.submission import check_submission, submission


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store")


def make_ensemble(
    folder: Path, store: Store, *, members: int = 2, change: dict[str, dict[int, float]] | None = None
) -> Path:
    runs = []
    for place in range(members):
        values = predicted(store, noise=0.3, seed=place)
        for split, numbers in (change or {}).items():
            for row, number in numbers.items():
                values[split][row] = number
        runs.append(make_run(folder / f"run{place}", store, values, facts={"seed": place}))
    ensemble(runs, folder / "ensemble")
    return folder / "ensemble"


@pytest.mark.slow
def test_official_sizes_equal_ogbs_own_writer(tmp_path: Path) -> None:
    from ogb.lsc import PCQM4Mv2Evaluator

    store = make_store(tmp_path / "store", {"train": 500, "valid": 2_000, **OFFICIAL_SIZES})
    made = make_ensemble(tmp_path, store)
    begin = time.perf_counter()
    summary = submission(made, store.path, tmp_path / "out")
    assert time.perf_counter() - begin < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 * 1024**2  # kB, of the whole test process
    assert summary.report.official
    assert summary.rows == OFFICIAL_SIZES
    for split in TEST_SPLITS:
        with np.load(made / "predictions" / f"{split}.npz") as content:
            y_pred = content["y_pred"]
        PCQM4Mv2Evaluator().save_test_submission({"y_pred": y_pred}, str(tmp_path / "ogb"), split)
        name = f"y_pred_pcqm4m-v2_{split}.npz"
        with np.load(tmp_path / "ogb" / name) as theirs, np.load(tmp_path / "out" / name) as ours:
            assert theirs.files == ours.files == ["y_pred"]
            assert theirs["y_pred"].dtype == ours["y_pred"].dtype == np.float32
            np.testing.assert_array_equal(theirs["y_pred"], ours["y_pred"])
    assert check_submission(tmp_path / "ogb", store.path).official


def test_certificate_says_what_was_done(tmp_path: Path, store: Store) -> None:
    made = make_ensemble(tmp_path, store)
    summary = submission(made, store.path, tmp_path / "out")
    certificate = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert certificate["rows"] == {"test-dev": SIZES["test-dev"], "test-challenge": SIZES["test-challenge"]}
    assert certificate["official_counts"] is False
    assert certificate["files"] == {name: hash_file(tmp_path / "out" / name) for name in FILE_NAMES.values()}
    assert certificate["store"]["identity"] == store.identity
    assert certificate["parameters"] == 12_345 * len(certificate["members"])
    assert {check["result"] for check in certificate["checks"]} == {"passed"}
    names = {check["name"] for check in certificate["checks"]}
    assert names == {"order", "dtype", "count", "finite", "plausible", "range", "read back"}
    text = (tmp_path / "out" / "certificate.md").read_text()
    assert f"{certificate['validation_mae']['value']:.4f} eV" in text
    assert "the board will refuse" in text
    assert read_manifest(tmp_path / "out", "submission").inputs["ensemble"] == certificate["ensemble"]
    assert not summary.report.warnings
    assert check_submission(tmp_path / "out", store.path).checks


def test_rows_outside_the_training_range_are_listed(tmp_path: Path, store: Store) -> None:
    high = float(np.nanmax(store.target[store.rows("train")])) + 0.5
    made = make_ensemble(tmp_path, store, change={"test-dev": {3: high}})
    (warning,) = submission(made, store.path, tmp_path / "out").report.warnings
    assert f"row 3 (source row {store.rows('test-dev')[3]})" in warning.detail


def test_implausible_numbers_are_refused_and_nothing_is_written(tmp_path: Path, store: Store) -> None:
    made = make_ensemble(tmp_path, store, change={"test-challenge": {5: 500.0}})
    with pytest.raises(InputError, match="'plausible' of test-challenge") as caught:
        submission(made, store.path, tmp_path / "out")
    assert f"row 5 (source row {store.rows('test-challenge')[5]})" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_another_store_a_store_without_tests_and_a_used_folder_are_refused(tmp_path: Path, store: Store) -> None:
    made = make_ensemble(tmp_path, store)
    with pytest.raises(InputError, match="was not made from"):
        submission(made, make_store(tmp_path / "other", seed=1).path, tmp_path / "out")
    bare = make_store(tmp_path / "bare", {"train": 100, "valid": 100})
    with pytest.raises(InputError, match="cannot be submitted from"):
        submission(make_ensemble(tmp_path / "b", bare), bare.path, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        submission(made, store.path, tmp_path / "full")


def _wrong(fault: str, count: int) -> dict[str, np.ndarray]:
    good = np.full(count, 5.0, np.float32)
    bad = good.copy()
    bad[11] = {"nan": np.nan, "infinite": np.inf, "hartree scale": 137.0}.get(fault, 5.0)
    return {
        "key": {"pred": good},
        "two keys": {"y_pred": good, "row": good},
        "dtype": {"y_pred": good.astype(np.float64)},
        "short": {"y_pred": good[:-1]},
        "column": {"y_pred": good[:, None]},
        "text": {"y_pred": good.astype(str)},
    }.get(fault, {"y_pred": bad})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("key", "wrong keys"),
        ("two keys", "wrong keys"),
        ("dtype", "float64, expected float32"),
        ("text", "expected float32"),
        ("short", "shape (59,), expected shape (60,)"),
        ("column", "shape (60, 1), expected shape (60,)"),
        ("nan", "row 11 (source row 711): nan"),
        ("infinite", "row 11 (source row 711): inf"),
        ("hartree scale", "row 11 (source row 711): 137"),
    ],
)
def test_check_refuses_a_wrong_file(tmp_path: Path, store: Store, fault: str, message: str) -> None:
    file = tmp_path / FILE_NAMES["test-dev"]
    np.savez_compressed(file, **_wrong(fault, SIZES["test-dev"]))
    with pytest.raises(InputError) as caught:
        check_submission(file, store.path)
    assert message in str(caught.value)


def test_check_refuses_what_is_no_submission(tmp_path: Path, store: Store) -> None:
    file = tmp_path / FILE_NAMES["test-dev"]
    with pytest.raises(InputError, match="does not exist"):
        check_submission(file, store.path)
    for content in (b"", b"not a zip", b"PK\x03\x04 cut short"):
        file.write_bytes(content)
        with pytest.raises(InputError, match="is not an npz file"):
            check_submission(file, store.path)
    with file.open("wb") as stream:
        np.save(stream, np.zeros(60, np.float32))
    with pytest.raises(InputError, match="not an npz"):
        check_submission(file, store.path)
    with file.open("wb") as stream:
        np.savez(stream, y_pred=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="cannot be read"):
        check_submission(file, store.path)
    file.unlink()
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", store.path / "row.npy"):
        with pytest.raises(InputError, match="is no submission"):
            check_submission(path, store.path)
