from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from delivery_folders import SIZES, make_run, make_store, make_study, predicted
from manifests import edit_manifest
from moldistill.cli import main
from moldistill.core.artifacts import read_manifest
from moldistill.core.config import load_run
from moldistill.core.errors import InputError
from moldistill.data.predictions import Predictions
from moldistill.data.store import Store
from moldistill.delivery.combination import Combination
from moldistill.delivery.ensemble import Validation, ensemble, load_ensemble
from moldistill.delivery.lad import lad_weights
from moldistill.delivery.selection import bootstrap_means, greedy_weights, halves
from moldistill.delivery.submission import submission
from moldistill.trial.run import run_trial
from moldistill.trial.spec import TrialSpec


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


@pytest.mark.parametrize("refit", [False, True])
def test_scores_are_what_numpy_says(tmp_path: Path, store: Store, refit: bool) -> None:
    folders = runs(tmp_path, store, [0.3, 0.35, 0.4, 0.9])
    summary = ensemble(folders, tmp_path / "out", seed=7, combiner="lad", refit=refit)
    rows = store.rows("valid")
    target = store.target[rows]
    loaded = {str(folder): Predictions.load(folder / "predictions" / "valid.npz").y_pred for folder in folders}
    every = [*summary.members, *summary.passed_over]
    combined = sum(member.scored_weight * loaded[member.path].astype(float) for member in every)
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
    table = np.array([loaded[str(folder)].astype(float) for folder in folders])
    known = np.arange(len(rows)) if refit else chosen
    expected = dict(zip(map(str, folders), lad_weights(table[:, known], target[known]), strict=True))
    for member in every:
        assert member.weight == pytest.approx(expected[member.path], abs=1e-9)
        assert refit or member.weight == member.scored_weight
    for split in ("valid", "test-dev", "test-challenge", "valid-3d"):
        written = Predictions.load(tmp_path / "out" / "predictions" / f"{split}.npz")
        parts = [
            m.weight * Predictions.load(Path(m.path) / "predictions" / f"{split}.npz").y_pred.astype(float)
            for m in summary.members
        ]
        np.testing.assert_allclose(written.y_pred, np.sum(parts, axis=0), rtol=1e-6)
    validation = Validation.load(tmp_path / "out")
    np.testing.assert_allclose(validation.ensemble, combined)
    assert set(np.flatnonzero(validation.scored_on)) == set(scored)
    assert set(np.flatnonzero(validation.measured_on)) < set(scored)
    assert np.count_nonzero(validation.measured_on) == summary.coverage[0].rows
    half = summary.calibration.half_width(validation.spread, validation.size)[:, validation.measured_on]
    held = (np.abs(validation.ensemble - validation.target)[validation.measured_on] <= half).mean(axis=1)
    np.testing.assert_allclose(held, [item.covered for item in summary.coverage])


@pytest.mark.parametrize("combiner", ["auto", "mean", "median", "rank", "greedy", "lad", "huber", "by_size"])
def test_what_is_written_is_read_back(tmp_path: Path, combiner: str) -> None:
    """Every rule: the summary, and the combined predictions from the members and what the folder says."""
    store = make_store(tmp_path / "store", SIZES | {"valid": 1_200})
    folders = runs(tmp_path, store, [0.3, 0.35, 0.4, 0.9, 0.5])
    summary = ensemble(folders, tmp_path / "out", combiner=combiner, max_members=4)
    assert load_ensemble(tmp_path / "out") == summary
    assert 1 <= len(summary.members) <= 4
    raw = json.loads((tmp_path / "out" / "ensemble.json").read_text())
    rule = Combination.of(raw, [member["weight"] for member in raw["members"]])
    assert rule == summary.rule
    assert (rule.class_weights is not None) == (combiner == "by_size" or summary.combiner.startswith("by size"))
    assert (rule.kind == "median") == summary.combiner.startswith("median")
    rows = store.rows("test-dev")
    table = np.array(
        [Predictions.load(Path(m.path) / "predictions" / "test-dev.npz").y_pred for m in summary.members], float
    )
    written = Predictions.load(tmp_path / "out" / "predictions" / "test-dev.npz")
    np.testing.assert_array_equal(written.y_pred, rule.apply(table, store.size(rows)).value.astype(np.float32))
    assert sum(item.rows for item in summary.by_size) == summary.rows_scored_on
    chosen = [item for item in summary.tried if item.chosen]
    assert [item.name for item in chosen] == [summary.combiner]
    least = min(item.mae for item in summary.tried)
    assert chosen[0] == next(item for item in summary.tried if item.mae - least <= item.error)


def test_an_ensemble_made_before_these_keys_is_still_read(tmp_path: Path, store: Store) -> None:
    ensemble(runs(tmp_path, store, [0.3, 0.4]), tmp_path / "out", combiner="greedy")
    file = tmp_path / "out" / "ensemble.json"
    raw = json.loads(file.read_text())
    for name in ("combiner", "tried", "combination", "class_edges", "class_weights", "calibration", "refitted"):
        del raw[name]
    for name in ("rows_calibrated_on", "coverage", "by_size", "budget"):
        del raw[name]
    for member in (*raw["members"], *raw["passed_over"]):
        for name in ("scored_weight", "seconds", "reason"):
            del member[name]
    file.write_text(json.dumps(raw))
    _resize(tmp_path / "out", file)
    old = load_ensemble(tmp_path / "out")
    assert old.rule.calibration is None
    assert (old.rule.kind, sum(old.rule.weights)) == ("weighted", pytest.approx(1.0))
    file.write_text(json.dumps(raw | {"members": "none"}))
    _resize(tmp_path / "out", file)
    with pytest.raises(InputError, match="does not hold an ensemble"):
        load_ensemble(tmp_path / "out")


def test_copies_are_taken_once_and_named(tmp_path: Path, store: Store) -> None:
    values = predicted(store, noise=0.3, seed=0)
    other = {split: array.copy() for split, array in values.items()}
    other["test-dev"][4] += 0.01  # equal on valid alone: no copy
    folders = [
        make_run(tmp_path / name, store, what, facts={"seed": place})
        for place, (name, what) in enumerate([("a", values), ("b", values), ("c", other), ("d", values)])
    ]
    folders.append(make_run(tmp_path / "e", store, predicted(store, noise=0.3, seed=9)))
    summary = ensemble(folders, tmp_path / "out")
    copies = {Path(item.path).name: item for item in summary.passed_over if item.reason}
    assert copies.keys() == {"b", "d"}
    assert copies["b"].reason == "predicts what a does, bit for bit"
    assert copies["b"].weight == copies["b"].scored_weight == 0
    assert len(summary.members) + len(summary.passed_over) == 5


def test_members_beside_the_ensemble_move_with_it(tmp_path: Path) -> None:
    work = tmp_path / "work"
    store = make_store(work / "store")
    near = runs(work / "runs", store, [0.3, 0.35])
    far = make_run(tmp_path / "elsewhere", store, predicted(store, noise=0.3, seed=7))
    ensemble([*near, far], work / "ensemble", combiner="mean")
    raw = json.loads((work / "ensemble" / "ensemble.json").read_text())
    paths = {member["path"] for member in raw["members"]}
    assert paths == {"../runs/run0", "../runs/run1", str(far)}
    assert raw["store_path"] == "../store"
    work.rename(tmp_path / "moved")
    summary = load_ensemble(tmp_path / "moved" / "ensemble")
    assert {member.path for member in summary.members} == {
        *(str(tmp_path / "moved" / "runs" / name) for name in ("run0", "run1")),
        str(far),
    }
    assert Store.open(summary.store_path).identity == summary.store
    assert all(Path(member.path).is_dir() for member in summary.members)


class TestBudget:
    def members(self, folder: Path, store: Store, seconds: list[float]) -> list[Path]:
        return [
            make_run(
                folder / f"run{place}",
                store,
                predicted(store, noise=0.3, seed=place),
                facts={"seed": place, "seconds_per_molecule": value},
            )
            for place, value in enumerate(seconds)
        ]

    def test_what_is_taken_fits_and_the_rest_is_named(
        self, tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folders = self.members(tmp_path, store, [0.1, 0.2, 0.2, 5.0, 0.3])
        summary = ensemble(folders, tmp_path / "out", budget=60.0, budget_rows=100)
        spent = summary.budget
        assert spent is not None
        assert (spent.asked, spent.rows) == (60.0, 100)
        assert spent.predicted == pytest.approx(spent.featurizing + sum(m.seconds for m in summary.members))
        assert spent.predicted <= 60
        assert 0 < spent.featurizing < 5
        assert {Path(m.path).name for m in summary.members} == {"run0", "run1", "run2"}
        reasons = {Path(m.path).name: m.reason for m in summary.passed_over}
        assert reasons == {"run3": "takes longer than the budget", "run4": ""}
        told = capsys.readouterr().err
        assert "predicted time for 100 molecules" in told
        assert "run3 (8 min)" in told
        assert load_ensemble(tmp_path / "out") == summary

    def test_by_default_the_tests_are_what_must_be_predicted(self, tmp_path: Path, store: Store) -> None:
        folders = self.members(tmp_path, store, [0.1, 0.1])
        summary = ensemble(folders, tmp_path / "out", budget=1e6)
        assert summary.budget is not None
        assert summary.budget.rows == SIZES["test-dev"] + SIZES["test-challenge"]
        assert summary.budget.how == "as recorded in the runs"

    def test_what_cannot_be_timed_or_paid_is_refused(self, tmp_path: Path, store: Store) -> None:
        folders = self.members(tmp_path, store, [0.1, 0.2])
        with pytest.raises(InputError, match="no member fits the budget"):
            ensemble(folders, tmp_path / "out", budget=1.0, budget_rows=1_000)
        with pytest.raises(InputError, match="pays for nothing"):
            ensemble(folders, tmp_path / "out", budget=1.0, budget_rows=0)
        untimed = make_run(tmp_path / "untimed", store, predicted(store, noise=0.3, seed=9))
        with pytest.raises(InputError, match="untimed cannot be timed"):
            ensemble([*folders, untimed], tmp_path / "out", budget=1e6)
        assert not (tmp_path / "out").exists()

    def test_real_runs_are_timed(self, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two students of different size: the time of the larger one is longer, and both are within reason."""
        monkeypatch.setattr("moldistill.delivery.ensemble.MIN_ROWS", 4)
        folders = []
        for name, width, depth in (("small", 8, 1), ("large", 256, 8)):
            changes = [f"model.width={width}", f"model.depth={depth}", "training.steps=1"]
            spec = TrialSpec(settings=load_run("student-tiny", changes), store=tiny_store, out=tmp_path / name)
            run_trial(spec)
            folders.append(spec.out)
        summary = ensemble(folders, tmp_path / "out", budget=1e6, budget_rows=1_000, combiner="mean")
        seconds = {Path(m.path).name: m.seconds for m in (*summary.members, *summary.passed_over)}
        assert 0 < seconds["small"] < seconds["large"] < 1_000
        assert summary.budget is not None
        assert summary.budget.how.startswith("timed on 13 molecules")


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
    weights = [
        {Path(m.path).name: m.scored_weight for m in (*summary.members, *summary.passed_over)} for summary in summaries
    ]
    assert weights[0] == weights[1]
    assert summaries[0].tried == summaries[1].tried
    assert Path(summaries[0].best_single).name == Path(summaries[1].best_single).name
    assert summaries[0].score.value != summaries[1].score.value


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000))
def test_labels_of_the_tests_change_no_byte(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Whatever stands as the target of test rows: the ensemble and the submission are the same, byte for byte."""
    folder = tmp_path_factory.mktemp("leak")
    store = make_store(folder / "store")
    folders = runs(folder, store, [0.3, 0.4, 0.5])
    random = np.random.default_rng(seed)
    tests = np.concatenate([store.rows("test-dev"), store.rows("test-challenge")])
    made = []
    for name in ("first", "second"):
        target = np.load(store.path / "target.npy")
        target[tests] = random.permutation(random.normal(5, 1, len(tests)))
        np.save(store.path / "target.npy", target)
        ensemble(folders, folder / "ensemble", store=store.path)
        submission(folder / "ensemble", store.path, folder / "submission")
        kept = folder / name
        kept.mkdir()
        for part in ("ensemble", "submission"):
            (folder / part).rename(kept / part)
        made.append({str(path.relative_to(kept)): path.read_bytes() for path in kept.rglob("*") if path.is_file()})
    assert made[0].keys() == made[1].keys()
    assert len(made[0]) >= 10
    for name, content in made[0].items():
        assert made[1][name] == content, name


def test_a_study_gives_its_trials_that_did_not_fail(tmp_path: Path, store: Store) -> None:
    states = ["complete", "pruned", "complete", "failed", "complete"]
    study = make_study(tmp_path / "study", store, [{"state": state} for state in states])
    extra = make_run(tmp_path / "run", store, predicted(store, noise=0.3, seed=50))
    summary = ensemble([study, extra, study / "trials" / "0002"], tmp_path / "out")
    paths = {member.path for member in (*summary.members, *summary.passed_over)}
    assert paths == {str(study / "trials" / name) for name in ("0000", "0001", "0002", "0004")} | {str(extra)}


def test_stopped_trials_without_predictions_are_passed_by(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path / "study", store, [{"state": state} for state in ("complete", "pruned", "complete")])
    (study / "trials" / "0001" / "manifest.json").unlink()
    summary = ensemble([study], tmp_path / "out")
    names = {Path(member.path).name for member in (*summary.members, *summary.passed_over)}
    assert names == {"0000", "0002"}
    assert "1 stopped or unfinished trials have no predictions" in capsys.readouterr().err


def test_finalists_are_candidates_and_failed_ones_are_not(tmp_path: Path, store: Store) -> None:
    study = make_study(tmp_path / "study", store, [{"state": "complete"}, {"state": "complete"}])
    finalists = []
    for seed, value in ((1, 0.2), (2, None), (3, 0.3)):
        name = f"finalists/0000-seed{seed}"
        if value is not None:
            make_run(study / name, store, predicted(store, noise=0.2, seed=seed), facts={"seed": seed})
        finalists.append({"trial": 0, "seed": seed, "folder": name, "value": value})
    edit_manifest(study, lambda manifest: manifest["facts"].update(finalists=finalists))
    summary = ensemble([study], tmp_path / "out")
    names = {Path(member.path).name for member in (*summary.members, *summary.passed_over)}
    assert names == {"0000", "0001", "0000-seed1", "0000-seed3"}


def test_a_folder_of_runs_and_studies(tmp_path: Path, store: Store) -> None:
    folder = tmp_path / "all"
    make_study(folder / "study", store, [{"state": "complete"}])
    runs(folder, store, [0.3, 0.4])
    make_run(folder / "teacher", store, predicted(store, noise=0.1, seed=5), role="teacher")
    (folder / "unfinished").mkdir()
    (folder / "notes.txt").write_text("mine")
    summary = ensemble([folder, folder / "run1"], tmp_path / "out")
    names = [Path(member.path).name for member in (*summary.members, *summary.passed_over)]
    assert sorted(names) == ["0000", "run0", "run1"]
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        ensemble([tmp_path / "bare"], tmp_path / "other")


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


class TestCommand:
    @pytest.fixture
    def call(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., tuple[int, str, str]]:
        def call(*words: str | Path) -> tuple[int, str, str]:
            monkeypatch.setattr("sys.argv", ["moldistill", "ensemble", *map(str, words)])
            with pytest.raises(SystemExit) as ended:
                main()
            told = capsys.readouterr()
            return int(ended.value.code or 0), told.out, told.err

        return call

    def test_options_reach_the_ensemble(
        self, tmp_path: Path, store: Store, call: Callable[..., tuple[int, str, str]]
    ) -> None:
        folders = TestBudget().members(tmp_path, store, [0.1, 0.2, 0.3])
        options = ["--combiner", "median", "--budget", "1 h", "--budget-rows", "7000", "--keep-half", "--json"]
        code, out, err = call(*folders, "--out", tmp_path / "out", *options)
        assert code == 0
        made = json.loads(out)
        assert made["combiner"].startswith("median")
        assert (made["budget"]["asked"], made["budget"]["rows"], made["refitted"]) == (3600, 7000, False)
        assert made["budget"]["predicted"] <= 3600
        assert "weights from the choosing half" in err
        assert load_ensemble(tmp_path / "out").combination == "median"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--budget", "4 days"], "the budget is no time"),
            (["--budget-rows", "5"], "--budget-rows says how many"),
            (["--combiner", "stack"], "there is no such combiner"),
            (["--max-members", "0"], "max_members is too small"),
        ],
    )
    def test_mistakes_have_no_traceback(
        self, tmp_path: Path, store: Store, call: Callable[..., tuple[int, str, str]], options: list[str], message: str
    ) -> None:
        (run,) = runs(tmp_path, store, [0.3])
        code, _, err = call(run, "--out", tmp_path / "out", *options)
        assert code == 2
        assert message in err
        assert "Traceback" not in err
        assert not (tmp_path / "out").exists()
