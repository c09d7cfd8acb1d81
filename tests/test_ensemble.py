from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest

from delivery_folders import SIZES, make_run, make_store, make_study, predicted
from manifests import edit_manifest
from moldistill.core.artifacts import read_manifest
from moldistill.core.errors import InputError
from moldistill.data.predictions import Predictions
from moldistill.data.store import Store
from moldistill.delivery.ensemble import Validation, ensemble, load_ensemble
from moldistill.delivery.selection import bootstrap_means, greedy_weights, halves


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store")


def runs(folder: Path, store: Store, noises: list[float]) -> list[Path]:
    return [
        make_run(folder / f"run{place}", store, predicted(store, noise=noise, seed=place), facts={"seed": place})
        for place, noise in enumerate(noises)
    ]


def test_greedy_reaches_the_best_of_all_small_bags() -> None:
    random = np.random.default_rng(3)
    target = random.normal(size=400)
    predictions = target + random.normal(size=(4, 400)) * np.array([[0.5], [0.6], [0.7], [2.0]])
    bags = itertools.chain.from_iterable(
        itertools.combinations_with_replacement(range(4), picks) for picks in range(1, 9)
    )
    brute = min(float(np.abs(predictions[list(bag)].mean(axis=0) - target).mean()) for bag in bags)
    weights = greedy_weights(predictions, target, max_members=4)
    found = float(np.abs(weights @ predictions - target).mean())
    assert weights.sum() == pytest.approx(1.0)
    assert found <= brute * 1.002
    assert found < np.abs(predictions - target).mean(axis=1).min()


def test_greedy_follows_its_definition_pick_by_pick() -> None:
    random = np.random.default_rng(5)
    target = random.normal(size=50)
    predictions = target + random.normal(size=(6, 50))
    bag: list[int] = []
    best: tuple[float, list[int]] = (np.inf, [])
    for _ in range(12):
        scores = [np.abs(predictions[[*bag, pick]].mean(axis=0) - target).mean() for pick in range(6)]
        bag.append(int(np.argmin(scores)))
        best = min(best, (min(scores), list(bag)), key=lambda item: item[0])
    expected = np.bincount(best[1], minlength=6) / len(best[1])
    found = greedy_weights(predictions, target, max_members=6, rounds=12, patience=12)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_greedy_first_pick_is_the_best_single_and_max_members_holds() -> None:
    random = np.random.default_rng(4)
    target = random.normal(size=300)
    predictions = target + random.normal(size=(6, 300))
    best = np.abs(predictions - target).mean(axis=1).argmin()
    alone = greedy_weights(predictions, target, max_members=1)
    assert alone[best] == 1.0
    assert np.count_nonzero(greedy_weights(predictions, target, max_members=3)) == 3


def test_greedy_is_near_the_oracle_on_unseen_rows() -> None:
    random = np.random.default_rng(0)
    target = random.normal(5, 1, 20_000)
    shared = 0.05 * random.normal(size=20_000)
    noise = np.array([0.2] * 13 + [1.5] * 5)
    predictions = target + shared + noise[:, None] * random.normal(size=(18, 20_000))
    predictions = np.concatenate([predictions, predictions[:2]])
    chosen, scored = halves(20_000, 0)
    weights = greedy_weights(predictions[:, chosen], target[chosen], max_members=20)
    oracle = np.zeros(20)
    oracle[:13] = 1 / 13  # equal errors: the mean of the good ones is optimal
    found, best = (np.abs(w @ predictions[:, scored] - target[scored]).mean() for w in (weights, oracle))
    assert found < best * 1.01


def test_hundred_members_of_the_full_validation_split_take_seconds() -> None:
    random = np.random.default_rng(0)
    target = random.normal(5, 1, 36_000)
    predictions = target + 0.2 * random.normal(size=(100, 36_000))
    begin = time.perf_counter()
    greedy_weights(predictions, target, max_members=32)
    assert time.perf_counter() - begin < 15


def test_scores_are_what_numpy_says(tmp_path: Path, store: Store) -> None:
    folders = runs(tmp_path, store, [0.3, 0.35, 0.4, 0.9])
    summary = ensemble(folders, tmp_path / "out", seed=7)
    rows = store.rows("valid")
    target = store.target[rows]
    loaded = {str(folder): Predictions.load(folder / "predictions" / "valid.npz").y_pred for folder in folders}
    combined = sum(member.weight * loaded[member.path].astype(float) for member in summary.members)
    chosen, scored = halves(len(rows), 7)
    assert summary.score.value == pytest.approx(np.abs(combined - target)[scored].mean(), abs=1e-12)
    single = {path: np.abs(values - target)[chosen].mean() for path, values in loaded.items()}
    best = min(single, key=single.__getitem__)
    assert summary.best_single == best
    assert summary.best_single_score.value == pytest.approx(np.abs(loaded[best] - target)[scored].mean())
    assert summary.difference.value == pytest.approx(summary.score.value - summary.best_single_score.value)
    assert summary.difference.high < 0
    assert summary.score.low < summary.score.value < summary.score.high
    assert summary.rows_chosen_on + summary.rows_scored_on == len(rows)
    median = np.median(store.target[store.rows("train")])
    assert summary.median_predictor == pytest.approx(np.abs(median - target[scored]).mean())
    assert load_ensemble(tmp_path / "out") == summary
    for split in ("valid", "test-dev", "test-challenge", "valid-3d"):
        written = Predictions.load(tmp_path / "out" / "predictions" / f"{split}.npz")
        parts = [
            m.weight * Predictions.load(Path(m.path) / "predictions" / f"{split}.npz").y_pred.astype(float)
            for m in summary.members
        ]
        np.testing.assert_array_equal(written.y_pred, np.sum(parts, axis=0).astype(np.float32))
    validation = Validation.load(tmp_path / "out")
    np.testing.assert_allclose(validation.ensemble, combined)
    assert set(np.flatnonzero(validation.scored_on)) == set(scored)


def test_bootstrap_interval_is_that_of_the_normal_law() -> None:
    values = np.abs(np.random.default_rng(0).normal(size=(1, 4000)))
    (score,) = bootstrap_means(values, 0)
    half = 1.96 * values.std() / np.sqrt(4000)
    assert score.high - score.value == pytest.approx(half, rel=0.1)
    assert score.value - score.low == pytest.approx(half, rel=0.1)


def test_labels_of_the_scoring_half_and_of_tests_choose_nothing(tmp_path: Path) -> None:
    summaries = []
    for name, change in (("a", False), ("b", True)):
        store = make_store(tmp_path / name / "store")
        if change:
            _, scored = halves(SIZES["valid"], 0)
            target = np.load(store.path / "target.npy")
            rows = store.rows("valid")[scored]
            target[rows] = target[rows][::-1]
            target[store.rows("test-dev")] = 1.0
            values = [predicted(store, noise=noise, seed=place) for place, noise in enumerate([0.3, 0.3, 0.4])]
            np.save(store.path / "target.npy", target)
            size = (store.path / "target.npy").stat().st_size
            assert size == read_manifest(store.path).files["target.npy"].size
            store = Store.open(store.path)
        else:
            values = [predicted(store, noise=noise, seed=place) for place, noise in enumerate([0.3, 0.3, 0.4])]
        folders = [
            make_run(tmp_path / name / f"{place}", store, one, facts={"seed": place})
            for place, one in enumerate(values)
        ]
        summaries.append(ensemble(folders, tmp_path / name / "out"))
    weights = [{Path(m.path).name: m.weight for m in summary.members} for summary in summaries]
    assert weights[0] == weights[1]
    assert Path(summaries[0].best_single).name == Path(summaries[1].best_single).name
    assert summaries[0].score.value != summaries[1].score.value


def test_a_study_gives_its_trials_that_did_not_fail(tmp_path: Path, store: Store) -> None:
    states = ["complete", "pruned", "complete", "failed", "complete"]
    study = make_study(tmp_path / "study", store, [{"state": state} for state in states])
    extra = make_run(tmp_path / "run", store, predicted(store, noise=0.3, seed=50))
    summary = ensemble([study, extra, study / "trials" / "0002"], tmp_path / "out")
    paths = {member.path for member in (*summary.members, *summary.passed_over)}
    assert paths == {str(study / "trials" / name) for name in ("0000", "0001", "0002", "0004")} | {str(extra)}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"store": "other"}, "another store"),
        ({"split_hash": "other"}, "another split"),
        ({"vocabulary": "other"}, "another feature vocabulary"),
        ({"role": "teacher"}, "cannot be a member"),
    ],
)
def test_members_of_other_data_are_refused(tmp_path: Path, store: Store, facts: dict[str, str], message: str) -> None:
    good, bad = predicted(store, noise=0.3, seed=0), predicted(store, noise=0.3, seed=1)
    folders = [make_run(tmp_path / "good", store, good), make_run(tmp_path / "bad", store, bad, facts=facts)]
    with pytest.raises(InputError, match=message) as caught:
        ensemble(folders, tmp_path / "out")
    assert "bad" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", ["missing", "short", "long", "reordered", "nan"])
@pytest.mark.parametrize("split", ["valid", "test-challenge"])
def test_broken_predictions_are_refused_with_the_row(tmp_path: Path, store: Store, fault: str, split: str) -> None:
    values = predicted(store, noise=0.3, seed=1)
    if fault == "missing":
        del values[split]
    rows = store.rows(split)
    bad = make_run(tmp_path / "bad", store, values)
    file = bad / "predictions" / f"{split}.npz"
    if fault != "missing":
        y_pred, flag = values[split].copy(), np.zeros(len(rows), np.uint8)
        if fault == "nan":
            y_pred[7] = np.nan
        row = {"short": rows[:-1], "long": np.append(rows, rows[-1] + 1), "reordered": rows[::-1]}.get(fault, rows)
        count = len(row)
        np.savez(file, row=row, y_pred=np.resize(y_pred, count), flag=np.resize(flag, count))
        _resize(bad, file)
    good = make_run(tmp_path / "good", store, predicted(store, noise=0.3, seed=0))
    with pytest.raises(InputError) as caught:
        ensemble([good, bad], tmp_path / "out")
    named = {"short": rows[-1], "long": rows[-1] + 1, "reordered": rows[-1], "nan": rows[7]}
    assert str(file) in str(caught.value)
    if fault in named:
        assert f"row {named[fault]}" in str(caught.value)
    assert not (tmp_path / "out").exists()


def _resize(folder: Path, file: Path) -> None:
    """Let the manifest agree with the size of a file that was changed, so that its content is what is refused."""
    name, size = str(file.relative_to(folder)), file.stat().st_size
    edit_manifest(folder, lambda manifest: manifest["files"][name].update(size=size))


def test_too_few_labels_no_members_and_wrong_folders_are_refused(tmp_path: Path, store: Store) -> None:
    small = make_store(tmp_path / "small", SIZES | {"valid": 10})
    run = make_run(tmp_path / "run", small, predicted(small, noise=0.3, seed=0))
    with pytest.raises(InputError, match="too few labelled validation rows"):
        ensemble([run], tmp_path / "out")
    failed = make_study(tmp_path / "failed", store, [{"state": "failed"}])
    with pytest.raises(InputError, match="no member can be taken"):
        ensemble([failed], tmp_path / "out")
    with pytest.raises(InputError, match="cannot give members"):
        ensemble([store.path], tmp_path / "out")
    lost = make_run(tmp_path / "lost", store, predicted(store, noise=0.3, seed=0), facts={"store_path": "/nowhere"})
    with pytest.raises(InputError, match="--store"):
        ensemble([lost], tmp_path / "out")
    assert ensemble([lost], tmp_path / "out", store=store.path).members[0].weight == 1.0
