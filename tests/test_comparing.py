"""When A is better than B: intervals, tests and verdicts, against SciPy and against a truth that is known."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from delivery_folders import make_run, make_store, predicted
from manifests import edit_manifest
from moldistill.core.errors import InputError
from moldistill.data.store import Store
from moldistill.delivery.comparing import by_gain, compare, verdict
from moldistill.delivery.finalists import Finals, judge
from moldistill.delivery.molecule_pairs import OverMolecules
from moldistill.delivery.paired import Gain, bootstrap_gain, holm, mean_interval, seeds_needed, two_sided_p
from study_folders import finish_study, make_trials

LEVELS = st.floats(1e-6, 1, exclude_min=True)


class TestBootstrap:
    def test_as_scipy_has_it(self) -> None:
        random = np.random.default_rng(0)
        hard = random.exponential(0.1, 400)
        ours, theirs = hard * random.uniform(0.7, 1.1, 400), hard * random.uniform(0.8, 1.2, 400)
        gain = bootstrap_gain(ours, theirs)
        peer = stats.bootstrap(
            (ours, theirs),
            lambda a, b, axis: 100 * (1 - a.mean(axis=axis) / b.mean(axis=axis)),
            paired=True,
            vectorized=True,
            method="percentile",
            n_resamples=4000,
            rng=np.random.default_rng(1),
        ).confidence_interval
        width = peer.high - peer.low
        assert gain.value == pytest.approx(100 * (1 - ours.mean() / theirs.mean()))
        assert gain.low == pytest.approx(peer.low, abs=0.05 * width)
        assert gain.high == pytest.approx(peer.high, abs=0.05 * width)

    def test_it_covers_the_truth(self) -> None:
        """Two models whose errors are in truth 10% apart, on molecules drawn anew each time."""
        random, covered, width = np.random.default_rng(2), 0, []
        for _ in range(300):
            hard = random.gamma(2.0, 0.05, 250)
            ours = hard * random.uniform(0.5, 1.3, 250)  # mean 0.9
            theirs = hard * random.uniform(0.6, 1.4, 250)  # mean 1.0
            gain = bootstrap_gain(ours, theirs, resamples=400)
            covered += gain.low <= 10 <= gain.high
            width.append(gain.high - gain.low)
        assert 0.91 <= covered / 300 <= 0.985
        assert np.mean(width) < 12

    def test_what_is_hard_for_both_does_not_widen_it(self) -> None:
        hard = np.random.default_rng(3).exponential(1.0, 500)
        gain = bootstrap_gain(0.95 * hard, hard)
        assert gain.high - gain.low < 1e-9
        assert gain.value == pytest.approx(5)
        assert gain.clear

    @given(st.floats(-300, 90), st.floats(0, 20), st.floats(0, 20))
    def test_seen_from_the_other_side(self, value: float, below: float, above: float) -> None:
        gain = Gain(value, value - below, min(value + above, 95))
        turned = gain.turned
        assert turned.low <= turned.value <= turned.high
        assert (turned.value > 0) == (gain.value < 0) or gain.value == pytest.approx(0, abs=1e-9)
        again = turned.turned
        assert (again.value, again.low, again.high) == pytest.approx((gain.value, gain.low, gain.high), abs=1e-6)


class TestSeeds:
    @given(st.lists(st.floats(-5, 5), min_size=2, max_size=12))
    def test_students_t(self, values: list[float]) -> None:
        p, found = two_sided_p(values), mean_interval(values)
        assert p is not None and found is not None and found.low is not None and found.high is not None
        if np.std(values) < 1e-6:
            return
        peer = stats.ttest_1samp(values, 0)
        assert p == pytest.approx(peer.pvalue, abs=1e-9)
        interval = peer.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))

    def test_equal_values(self) -> None:
        assert two_sided_p([2.0, 2.0]) == 0.0
        assert two_sided_p([0.0, 0.0, 0.0]) == 1.0
        assert two_sided_p([1.0]) is None

    @given(st.lists(st.one_of(LEVELS, st.none()), min_size=1, max_size=8), LEVELS)
    def test_holm_is_his_procedure(self, p_values: list[float | None], level: float) -> None:
        """Step down: the smallest against level / m, the next against level / (m - 1), …, until one is too large."""
        known = [1.0 if p is None else p for p in p_values]
        rejected = set[int]()
        for place, test in enumerate(sorted(range(len(known)), key=lambda one: known[one])):
            if known[test] * (len(known) - place) > level:
                break
            rejected.add(test)
        adjusted = holm(p_values)
        assert {place for place, p in enumerate(adjusted) if p <= level} == rejected or level == 1
        assert all(p >= own for p, own in zip(adjusted, known, strict=True))

    @pytest.mark.parametrize("level", [0.05, 0.05 / 3])
    @pytest.mark.parametrize(("deviation", "difference"), [(1, 2), (3, 2), (10, 2), (20, 1), (0.2, 5)])
    def test_seeds_for_a_difference(self, deviation: float, difference: float, level: float) -> None:
        needed = seeds_needed(deviation, difference, level)

        def power(count: int) -> float:
            critical = stats.t.ppf(1 - level / 2, count - 1)
            return float(stats.nct.sf(critical, count - 1, difference * np.sqrt(count) / deviation))

        assert power(needed) >= 0.8
        assert needed == 2 or power(needed - 1) < 0.8

    def test_the_power_is_real(self) -> None:
        needed = seeds_needed(3.0, 2.0)
        draws = np.random.default_rng(0).normal(2.0, 3.0, (4000, needed))
        found = stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
        assert found.mean() == pytest.approx(0.8, abs=0.03)

    def test_no_deviation_and_too_much(self) -> None:
        assert seeds_needed(0.0, 2.0) == 2
        assert seeds_needed(1e6, 2.0) == 10_000


def replicates(values: Sequence[Sequence[float | None]]) -> list[dict[str, Any]]:
    """Finalists by their values over seeds 1, 2, …; trials are 10, 11, …"""
    return [
        {"trial": trial, "seed": seed, "folder": f"finalists/{trial:04d}-seed{seed}", "value": value}
        for trial, own in enumerate(values, 10)
        for seed, value in enumerate(own, 1)
    ]


def judged(values: Sequence[Sequence[float | None]], searched: dict[int, float | None] | None = None) -> Finals:
    found = judge(replicates(values), searched or {}, "valid_mae")
    assert found is not None
    return found


class TestFinalists:
    def test_figures(self) -> None:
        found = judged([[0.12, 0.13, 0.125], [0.10, 0.11, 0.105]], {10: 0.11, 11: 0.104, 12: 0.09})
        assert found.winner == 11
        first, second = found.finalists
        assert (first.trial, second.trial) == (11, 10)
        assert first.mean is not None and first.mean.value == pytest.approx(0.105)
        peer = stats.t.interval(0.95, 2, 0.105, stats.sem([0.10, 0.11, 0.105]))
        assert (first.mean.low, first.mean.high) == pytest.approx(peer)
        assert first.optimism == pytest.approx(100 * (1 - 0.104 / 0.105))
        assert second.optimism == pytest.approx(100 * (1 - 0.11 / 0.125))
        pair = found.pairs[0]
        ratios = np.array([0.10 / 0.12, 0.11 / 0.13, 0.105 / 0.125]) - 1
        assert pair.difference is not None and pair.difference.value == pytest.approx(100 * ratios.mean())
        assert pair.p == pytest.approx(stats.ttest_1samp(ratios, 0).pvalue)
        assert pair.adjusted == pair.p
        assert pair.clear

    def test_the_searchs_own_value_counts_nowhere(self) -> None:
        values = [[0.12, 0.13], [0.11, 0.12]]
        with_it, without = judged(values, {10: 0.01, 11: 0.5}), judged(values)
        assert [one.mean for one in with_it.finalists] == [one.mean for one in without.finalists]
        assert with_it.pairs == without.pairs
        assert with_it.conclusion == without.conclusion

    def test_better_is_rarely_said_of_equals(self) -> None:
        """Finalists of one true value, whose seeds have luck in common: a false "better" in at most 5% of studies."""
        random, studies = np.random.default_rng(0), 1500
        for count, seeds in ((2, 5), (3, 5), (6, 3)):
            false = 0
            for _ in range(studies):
                luck = random.normal(0, 0.002, seeds)
                values = 0.1 + luck + random.normal(0, 0.002, (count, seeds))
                found = judged(values.tolist())
                false += any(pair.clear for pair in found.pairs)
                assert found.conclusion.startswith("Noise") == (not any(pair.clear for pair in found.pairs))
            # Two standard errors above 5%, which for two finalists is exact.
            assert false / studies <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / studies)
            assert count != 2 or false / studies >= 0.035

    def test_intervals_cover_the_truth(self) -> None:
        random, truth, means, pairs = np.random.default_rng(1), np.array([0.100, 0.104]), 0, 0
        for _ in range(1500):
            values = truth[:, None] * (1 + random.normal(0, 0.01, 4) + random.normal(0, 0.02, (2, 4)))
            found = judged(values.tolist())
            for one in found.finalists:
                assert one.mean is not None and one.mean.low is not None and one.mean.high is not None
                means += one.mean.low <= truth[one.trial - 10] <= one.mean.high
            pair = found.pairs[0].difference
            assert pair is not None and pair.low is not None and pair.high is not None
            true = 100 * (truth[found.pairs[0].better - 10] / truth[found.pairs[0].worse - 10] - 1)
            pairs += pair.low <= true <= pair.high
        assert means / 3000 == pytest.approx(0.95, abs=0.015)
        assert pairs / 1500 == pytest.approx(0.95, abs=0.02)

    def test_what_is_better_is_found(self) -> None:
        random, found, right = np.random.default_rng(2), 0, 0
        for _ in range(300):
            values = np.array([[0.1], [0.105], [0.11]]) * (1 + random.normal(0, 0.012, (3, 5)))
            finals = judged(values.tolist())
            found += any(pair.clear for pair in finals.pairs)
            right += all(pair.better < pair.worse for pair in finals.pairs if pair.clear)
        assert found / 300 > 0.9
        assert right == 300

    def test_the_winners_curse_is_told(self) -> None:
        """The best of fifty equal trials looks better than it is, by what fresh seeds show."""
        random, told = np.random.default_rng(3), []
        for _ in range(200):
            searched = 0.1 * (1 + random.normal(0, 0.03, 50))
            top = np.argsort(searched)[:3]
            values = 0.1 * (1 + random.normal(0, 0.03, (3, 5)))
            found = judged(values.tolist(), {10 + place: float(searched[one]) for place, one in enumerate(top)})
            assert found.optimism is not None
            told.append(found.optimism)
        expected = -300 * np.mean([stats.norm.ppf((rank - 0.375) / 50.25) * 0.01 for rank in (1, 2, 3)])
        assert np.mean(told) == pytest.approx(expected, abs=0.4)

    def test_as_many_seeds_as_it_says(self) -> None:
        """With the seeds that the sentence asks for, a true difference of 2% is mostly found."""
        random, pilot = np.random.default_rng(4), 0
        needed = []
        for _ in range(50):
            one = judged((0.1 * (1 + random.normal(0, 0.015, (3, 5)))).tolist())
            assert one.needed is not None
            needed.append(one.needed)
        count = int(np.median(needed))
        for _ in range(200):
            values = np.array([[0.098], [0.1], [0.1]]) * (1 + random.normal(0, 0.015, (3, count)))
            pilot += {10} == {pair.better for pair in judged(values.tolist()).pairs if pair.clear and pair.worse == 11}
        assert pilot / 200 > 0.7

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ([[0.1, 0.101, 0.102]], ["Trial 10 has 0.1010 eV (95% interval 0.0985 to 0.1035) over 3 fresh seeds."]),
            ([[0.1]], ["Trial 10 has 0.1000 eV over 1 fresh seed."]),
            ([[None, None], [None, None]], ["No finalist came to an end."]),
            ([[0.1, None], [None, 0.2]], ["cannot be compared"]),
            (
                [[0.1, 0.102, 0.101], [0.1005, 0.101, 0.102], [0.101, 0.1, 0.1015]],
                ["Noise: these 3 finalists cannot be told apart with 3 seeds; about ", "tell a difference of 2%."],
            ),
            ([[0.1, 0.104], [0.101, 0.101]], ["Noise: both finalists"]),
            (
                [[0.1, 0.101, 0.102, 0.1], [0.12, 0.122, 0.121, 0.12], [0.13, 0.131, 0.132, 0.129]],
                ["Trial 10 is better than trials 11 and 12, by 16.6% and 22.8%."],
            ),
            (
                [[0.1, 0.101, 0.102, 0.1], [0.1, 0.1015, 0.1012, 0.1009], [0.13, 0.131, 0.132, 0.129]],
                ["Trial 10 is better than trial 12, by 22.8%. Trial 10 cannot be told from trial 11 with 4 seeds"],
            ),
            (
                [[0.09, 0.11, 0.09, 0.113], [0.101, 0.101, 0.1015, 0.101], [0.106, 0.106, 0.1065, 0.106]],
                ["Trial 11 is better than trial 12", "Trial 10 cannot be told from trials 11 and 12"],
            ),
        ],
    )
    def test_sentences(self, values: list[list[float | None]], words: list[str]) -> None:
        conclusion = judged(values).conclusion
        for word in words:
            assert word in conclusion

    def test_seeds_that_failed_are_left_out_of_their_pair(self) -> None:
        found = judged([[0.1, 0.2, 0.3, None], [0.11, 0.22, None, 0.44], [0.12, 0.24, 0.36, 0.48]])
        assert [one.failed for one in found.finalists] == [1, 1, 0]
        counts = {(pair.better, pair.worse): pair.difference and pair.difference.count for pair in found.pairs}
        assert counts == {(10, 11): 2, (10, 12): 3, (11, 12): 3}

    def test_none(self) -> None:
        assert judge([], {}, "valid_mae") is None

    @settings(max_examples=60)
    @given(st.lists(st.lists(st.one_of(st.none(), st.floats(0.01, 9)), min_size=1, max_size=5), min_size=1, max_size=5))
    def test_any_values(self, values: list[list[float | None]]) -> None:
        found = judged(values)
        means = [one.mean.value for one in found.finalists if one.mean]
        assert means == sorted(means)
        assert len(found.pairs) == len(means) * (len(means) - 1) // 2
        assert found.conclusion
        assert all(pair.p is None or pair.adjusted >= pair.p for pair in found.pairs)
        winners = [pair.better for pair in found.pairs]
        assert all(one != found.winner for one in winners[len(means) - 1 :])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("data") / "store")


@pytest.fixture(scope="module")
def made(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of three runs with predictions: 0 is much better than 1, and 2 is 0 with other luck; 3 has none."""
    out = tmp_path_factory.mktemp("studies") / "study"
    ledger = make_trials(out, store, noises=(0.2, 0.3, 0.2), stopped=1)
    finish_study(ledger)
    return out


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "study"))


def test_over_molecules(study: Path, store: Store) -> None:
    found = compare([str(study), "0", "1"])
    over = found.over_molecules
    assert over is not None and over.rows == len(store.rows("valid")) and over.split == "valid"
    assert found.first.value == pytest.approx(over.first) and found.second.value == pytest.approx(over.second)
    assert over.gain.value == pytest.approx(100 * (1 - over.first / over.second))
    assert over.gain.clear
    assert found.verdict == f"Trial 0 is better than trial 1 by {over.gain} on 300 molecules."
    assert found.over_seeds is None
    assert "another seed may turn it" in found.covers[0] and "replicates" in found.covers[1]
    assert [change.key for change in found.settings] == ["distill.graph.weight"]
    other = compare([str(study), "1", "0"])
    assert other.verdict.startswith("Trial 0 is better than trial 1 by ")
    assert by_gain("a", "b", other.over_molecules.gain)[2].value == pytest.approx(over.gain.value)  # type: ignore[union-attr]


def test_noise_is_called_noise(study: Path) -> None:
    found = compare([str(study), "0", "2"])
    assert found.over_molecules is not None and not found.over_molecules.gain.clear
    assert found.verdict.startswith("The difference is noise on 300 molecules: trial ")


def test_seeds_decide_where_there_are_several(study: Path) -> None:
    """The molecules of one pair of trainings are clear, and other seeds turn it."""
    values = {0: (0.20, 0.26, 0.22), 1: (0.24, 0.2, 0.23)}
    rows = [
        {"trial": trial, "seed": seed, "folder": f"finalists/{trial:04d}-seed{seed}", "value": value}
        for trial, own in values.items()
        for seed, value in enumerate(own, 1)
    ]
    edit_manifest(study, lambda manifest: manifest["facts"].update(finalists=rows))
    found = compare([str(study), "0", "1"])
    assert found.over_molecules is not None and found.over_molecules.gain.clear
    assert found.over_seeds is not None and found.over_seeds.seeds == 3
    gains = [100 * (1 - a / b) for a, b in zip(*values.values(), strict=True)]
    interval = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert (found.over_seeds.gain.low, found.over_seeds.gain.high) == pytest.approx(tuple(interval))
    assert found.verdict.startswith("The difference is noise over 3 seeds")
    assert [line.split(" covers")[0] for line in found.covers] == [
        "The interval over seeds",
        "The interval over molecules",
    ]


def test_two_studies_are_compared_by_their_bests(study: Path, store: Store, tmp_path: Path) -> None:
    other = tmp_path / "other"
    finish_study(make_trials(other, store, noises=(0.5, 0.4)))
    found = compare([str(study), str(other)])
    assert (found.first.number, found.second.number) == (2 if _value(study, 2) < _value(study, 0) else 0, 1)
    assert found.verdict.startswith(f"Study trial {found.first.number} is better than other trial 1 by ")
    mixed = compare([str(study), "1", str(other), "0"])
    assert (mixed.first.number, mixed.second.number) == (1, 0)


def _value(study: Path, number: int) -> float:
    from moldistill.delivery.study_view import read

    value = read(study).row(number).value
    assert value is not None
    return value


def test_a_stopped_trial_is_compared_at_its_last_epoch(study: Path) -> None:
    found = compare([str(study), "0", "3"])
    assert found.second.state == "pruned"
    assert found.common_epoch == found.second.epochs < found.first.epochs
    assert found.first.common is not None and found.first.value is not None
    assert found.first.common > found.first.value
    assert found.over_molecules is None
    assert found.notes == ("trial 3 has no predictions: its run folder is not finished.",)
    assert found.verdict == "Nothing says how sure the difference is."


def test_without_the_store_values_are_compared(study: Path, tmp_path: Path) -> None:
    place = str(tmp_path / "gone")
    for number in (0, 1):
        edit_manifest(study / f"trials/{number:04d}", lambda manifest: manifest["facts"].update(store_path=place))
    found = compare([str(study), "0", "1"])
    assert found.over_molecules is None
    assert found.notes == (f"Their store is no longer at {tmp_path / 'gone'}: only values are compared.",)


def test_runs_of_different_stores(study: Path, tmp_path: Path) -> None:
    other = make_store(tmp_path / "store", seed=5)
    shutil.rmtree(study / "trials/0001")
    make_run(study / "trials/0001", other, predicted(other, noise=0.3, seed=1))
    found = compare([str(study), "0", "1"])
    assert found.over_molecules is None
    assert found.notes == ("They were trained on different stores, so that their errors are of different rows.",)


def test_rows_that_one_has_not_predicted_are_left_out(study: Path, store: Store) -> None:
    shutil.rmtree(study / "trials/0001")
    make_run(study / "trials/0001", store, {"test-dev": predicted(store, noise=0.3, seed=1)["test-dev"]})
    found = compare([str(study), "0", "1"])
    assert found.notes == ("trial 1 has no predictions of valid.",)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["0", "0"], "compared with itself"),
        (["0", "9"], "has no trial 9"),
        (["0"], "two trials are compared"),
        (["0", "1", "2"], "two trials are compared"),
        ([], "two trials are compared"),
    ],
)
def test_wrong_words(study: Path, tokens: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        compare([str(study), *tokens])


def test_a_study_without_results_and_one_by_another_metric(study: Path, store: Store, tmp_path: Path) -> None:
    make_trials(tmp_path / "empty", store, noises=())
    with pytest.raises(InputError, match="has no best trial yet"):
        compare([str(study), str(tmp_path / "empty")])
    with pytest.raises(InputError, match="does not exist"):
        compare([str(study), str(tmp_path / "missing")])
    finish_study(make_trials(tmp_path / "by3d", store, noises=(0.3,), objective={"metric": "valid_3d_mae"}))
    with pytest.raises(InputError, match="different metrics"):
        compare([str(study), str(tmp_path / "by3d")])


def test_a_copy_is_no_better(study: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copytree(study, tmp_path / "elsewhere" / "study")
    found = compare([str(study), "0", str(copy), "0"])
    assert found.verdict == (
        f"There is no difference on 300 molecules: {study} trial 0 and {copy} trial 0 have the same errors."
    )
    assert found.settings == ()


def test_verdicts_are_monotone_in_their_interval() -> None:
    """The wider the interval, the less is said."""
    said = [
        verdict("trial 1", "trial 2", OverMolecules("valid", 10, 0.1, 0.1, Gain(1.0, 1.0 - half, 1.0 + half)), None)
        for half in (0.5, 0.9, 1.1, 3.0)
    ]
    assert [text.startswith("The difference is noise") for text in said] == [False, False, True, True]
    assert all(first != second for first, second in pairwise(said))
