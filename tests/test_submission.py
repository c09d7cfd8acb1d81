from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from delivery_folders import SIZES, make_run, make_store, predicted
from moldistill.core.artifacts import hash_file, read_manifest, write_manifest
from moldistill.core.errors import InputError
from moldistill.core.settings import PrepareSettings
from moldistill.core.vocabulary import TEST_SPLITS
from moldistill.data.prepare import prepare
from moldistill.data.store import Store
from moldistill.delivery.board import external_data
from moldistill.delivery.certificate import code_hash
from moldistill.delivery.checks import FILE_NAMES, OFFICIAL_SIZES
from moldistill.delivery.ensemble import ensemble, load_ensemble
from moldistill.delivery.split_proof import prove_split
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
def test_official_sizes_equal_ogbs_own_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ogb.lsc import PCQM4Mv2Evaluator

    monkeypatch.syspath_prepend(str(Path(__file__).with_name("benchmarks")))
    from memory import watched

    store = make_store(tmp_path / "store", {"train": 500, "valid": 2_000, **OFFICIAL_SIZES})
    made = make_ensemble(tmp_path, store)
    begin = time.perf_counter()
    with watched() as memory:
        summary = submission(made, store.path, tmp_path / "out")
    assert time.perf_counter() - begin < 20
    assert memory.peak - memory.before < 1024  # MB
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
    always = {"order", "split hash", "dtype", "count", "finite", "plausible", "range", "distribution", "read back"}
    assert names == always
    text = (tmp_path / "out" / "certificate.md").read_text()
    assert f"{certificate['validation_mae']['value']:.4f} eV" in text
    assert "yours to say" in text
    assert "the board will refuse" in text
    assert read_manifest(tmp_path / "out", "submission").inputs["ensemble"] == certificate["ensemble"]
    assert not summary.report.warnings
    assert check_submission(tmp_path / "out", store.path).checks


def test_the_certificate_compares_the_tests_with_validation(tmp_path: Path, store: Store) -> None:
    """The distance of Kolmogorov and Smirnov by its definition, quantiles by numpy's; a shifted test is remarked on."""
    made = make_ensemble(tmp_path, store)
    submission(made, store.path, tmp_path / "out")
    table = json.loads((tmp_path / "out" / "certificate.json").read_text())["distribution"]
    found = {split: _written(made, split) for split in ("valid", *TEST_SPLITS)}
    at = np.sort(np.concatenate([found["valid"], found["test-dev"]]))
    shares = [
        np.searchsorted(np.sort(found[split]), at, side="right") / len(found[split]) for split in ("valid", "test-dev")
    ]
    assert table["test-dev"]["KS distance"] == pytest.approx(np.abs(shares[0] - shares[1]).max(), abs=1e-4)
    assert table["test-challenge"]["75%"] == pytest.approx(np.quantile(found["test-challenge"], 0.75), abs=1e-4)
    shifted = {row: float(found["test-dev"][row] * 0 + 6.5) for row in range(SIZES["test-dev"])}
    moved = make_ensemble(tmp_path / "moved", store, change={"test-dev": shifted})
    (warning,) = submission(moved, store.path, tmp_path / "other").report.warnings
    assert (warning.split, warning.name) == ("test-dev", "distribution")


def _written(folder: Path, split: str) -> np.ndarray:
    return np.load(folder / "predictions" / f"{split}.npz")["y_pred"].astype(float)


def test_the_form_of_the_board_is_filled_in_as_far_as_known(tmp_path: Path, store: Store) -> None:
    made = make_ensemble(tmp_path, store)
    submission(made, store.path, tmp_path / "out")
    certificate = json.loads((tmp_path / "out" / "certificate.json").read_text())
    answers = {item["question"]: item["answer"] for item in certificate["form"]}
    assert answers["Parameters"] == f"{certificate['parameters']:,}"
    assert answers["Validation MAE"] == f"{certificate['validation_mae']['value']:.4f} eV"
    assert "cores" in answers["Hardware"]
    unknown = {question for question, answer in answers.items() if answer is None}
    # The runs have no weights to be timed, and whose the store's source is nobody says.
    asked = {"Method", "Team and contact", "Paper", "Code", "Inference time of both tests", "External data"}
    assert unknown == asked
    assert certificate["inference"]["seconds"] is None
    assert "cannot be timed" in certificate["inference"]["how"]


def test_inference_is_predicted_and_held_against_the_limit(tmp_path: Path, store: Store) -> None:
    for name, seconds, result in (("fast", 0.01, "passed"), ("slow", 100.0, "warning")):
        runs = [
            make_run(
                tmp_path / name / f"run{place}",
                store,
                predicted(store, noise=0.3, seed=place),
                facts={"seed": place, "seconds_per_molecule": seconds},
            )
            for place in range(2)
        ]
        made = tmp_path / name / "ensemble"
        members = len(ensemble(runs, made, combiner="mean").members)
        report = submission(made, store.path, tmp_path / name / "out").report
        (check,) = [item for item in report.checks if item.name == "inference time"]
        assert check.result == result
        told = json.loads((tmp_path / name / "out" / "certificate.json").read_text())["inference"]
        rows = SIZES["test-dev"] + SIZES["test-challenge"]
        again = submission(made, store.path, tmp_path / name / "again")
        assert read_manifest(Path(again.path)).identity == read_manifest(tmp_path / name / "out").identity
        assert told["seconds"] - told["featurizing_seconds"] == pytest.approx(members * seconds * rows)


def test_the_code_is_hashed_file_by_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "moldistill"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "part.yaml").write_text("a: 1")
    monkeypatch.setattr("moldistill.__file__", str(package / "__init__.py"))
    first = code_hash()
    (package / "__pycache__" / "part.pyc").write_bytes(b"x")
    assert code_hash() == first
    (package / "part.yaml").write_text("a: 2")
    assert code_hash() != first


def test_an_ensemble_that_was_tampered_with_is_refused(tmp_path: Path, store: Store) -> None:
    made = make_ensemble(tmp_path, store)
    file = made / "predictions" / "test-dev.npz"
    content = bytearray(file.read_bytes())
    with np.load(file) as arrays:
        place = content.index(arrays["y_pred"].tobytes())
    content[place] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"test-dev\.npz has changed since the ensemble was made"):
        submission(made, store.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_member_that_is_another_run_now_is_refused(tmp_path: Path, store: Store) -> None:
    made = make_ensemble(tmp_path, store)
    member = Path(load_ensemble(made).members[0].path)
    shutil.rmtree(member)
    make_run(member, store, predicted(store, noise=0.3, seed=77))
    with pytest.raises(InputError, match="has changed since it became a member"):
        submission(made, store.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    shutil.rmtree(member)  # gone altogether: the ensemble's own predictions are enough
    certificate_at = Path(submission(made, store.path, tmp_path / "out").path) / "certificate.json"
    assert None in [item["weights_sha256"] for item in json.loads(certificate_at.read_text())["members"]]


class TestSplitProof:
    def test_a_real_root_proves_the_order(self, tiny_store: Path) -> None:
        store = Store.open(tiny_store)
        checks = prove_split(store, store.split_hash)
        assert {check.result for check in checks} == {"passed"}
        told = {check.split: check.detail for check in checks if check.name == "split file"}
        assert told == {
            "test-dev": "all 7 rows of split_dict.pt, in its order",
            "test-challenge": "all 7 rows of split_dict.pt, in its order",
        }

    def test_a_sample_proves_it_too(self, tiny_root: Path, tmp_path: Path) -> None:
        prepare(tiny_root, tmp_path / "store", PrepareSettings(limit=70))
        store = Store.open(tmp_path / "store")
        told = {check.detail for check in prove_split(store, store.split_hash) if check.name == "split file"}
        assert told == {"a sample of the 7 rows of split_dict.pt, in its order"}

    def test_rows_that_were_exchanged_are_named(self, tiny_store: Path, tmp_path: Path) -> None:
        shutil.copytree(tiny_store, tmp_path / "store")
        before = Store.open(tmp_path / "store")
        rows, place = np.load(before.path / "row.npy"), before.rows("test-dev")[2]
        first, second = int(rows[place]), int(rows[place + 1])
        rows[[place, place + 1]] = rows[[place + 1, place]]
        np.save(before.path / "row.npy", rows)
        store = Store.open(tmp_path / "store")
        failed = {
            check.name: check.detail for check in prove_split(store, store.split_hash) if check.result == "failed"
        }
        assert failed.keys() == {"order", "split hash", "split file"}
        assert failed["order"] == f"source row {first} follows source row {second}"
        assert failed["split file"] == f"source row {second} at place 2, expected source row {first} (split_dict.pt)"

    def test_another_split_file_is_no_proof(self, tiny_root: Path, tmp_path: Path) -> None:
        root = tmp_path / "root"
        shutil.copytree(tiny_root, root)
        prepare(root, tmp_path / "store", PrepareSettings())
        (root / "split_dict.pt").write_bytes(b"another")
        store = Store.open(tmp_path / "store")
        (warning,) = [check for check in prove_split(store, store.split_hash) if check.result == "warning"]
        assert "is no longer at" in warning.detail


class TestExternalData:
    def made(self, folder: Path, origin: str) -> Store:
        root = folder / "root"
        shutil.copytree(self.root, root)
        files = ["raw/data.csv.gz", "split_dict.pt", "pcqm4m-v2-train.sdf"]
        write_manifest(root, "root", files=files, facts={"origin": origin})
        prepare(root, folder / "store", PrepareSettings())
        return Store.open(folder / "store")

    @pytest.fixture(autouse=True)
    def _root(self, tiny_root: Path) -> None:
        self.root = tiny_root

    def test_none_where_the_download_made_the_root(self, tmp_path: Path) -> None:
        store = self.made(tmp_path, "PCQM4Mv2 of OGB-LSC")
        answer, note = external_data(store, True)
        assert answer == "none"
        assert "pcqm4m-v2-train.sdf (SHA-256" in note
        (tmp_path / "root" / "split_dict.pt").write_bytes(b"other")
        write_manifest(
            tmp_path / "root",
            "root",
            files=["raw/data.csv.gz", "split_dict.pt"],
            facts={"origin": "PCQM4Mv2 of OGB-LSC"},
        )
        assert external_data(store, True)[0] is None

    def test_a_question_where_it_is_somebody_elses(self, tmp_path: Path, store: Store) -> None:
        labelled = self.made(tmp_path / "other", "QM9, labelled with xTB")
        answer, note = external_data(labelled, False)
        assert answer is None
        assert "QM9, labelled with xTB" in note
        answer, note = external_data(store, True)
        assert answer is None
        assert "whose files these are is not recorded" in note


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
