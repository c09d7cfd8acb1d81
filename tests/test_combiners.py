"""Rules that combine members, against linear programmes, brute force and what they are defined as."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize, nnls

from moldistill.core.errors import InputError
from moldistill.delivery.affordable import EXACT, Budget, affordable
from moldistill.delivery.combination import Combination
from moldistill.delivery.combiners import (
    BySize,
    Equal,
    Greedy,
    Huber,
    Lad,
    Ranked,
    Sample,
    library,
    of_kind,
    scattered,
    size_edges,
)
from moldistill.delivery.costs import parse_seconds
from moldistill.delivery.huber import huber_weights
from moldistill.delivery.lad import lad_weights
from moldistill.delivery.nested import choose, fit_within
from moldistill.delivery.selection import halves


def made_up(members: int, rows: int, seed: int = 0, *, low: float = 0.1, high: float = 0.5) -> Sample:
    """Members with a common error and errors of their own."""
    random = np.random.default_rng(seed)
    target = random.normal(5, 1, rows)
    noise = random.uniform(low, high, (members, 1)) * random.normal(size=(members, rows))
    common = 0.1 * random.normal(size=rows)
    return Sample(target + common + noise, target, random.integers(4, 24, rows))


def mae(weights: np.ndarray, sample: Sample) -> float:
    return float(np.abs(weights @ sample.predictions - sample.target).mean())


def reference(sample: Sample, sum_to_one: bool) -> float:
    """The smallest MAE by the textbook's programme: residual = u - v with u, v ≥ 0."""
    members, rows = sample.predictions.shape
    unit = np.eye(rows)
    equal = np.concatenate([sample.predictions.T, -unit, unit], axis=1)
    right = sample.target
    if sum_to_one:
        line = np.concatenate([np.ones(members), np.zeros(2 * rows)])
        equal, right = np.concatenate([equal, line[None]]), np.append(right, 1.0)
    cost = np.concatenate([np.zeros(members), np.full(2 * rows, 1 / rows)])
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    found = linprog(cost, A_eq=equal, b_eq=right, bounds=(0, None), method="highs-ds", options=options)
    assert found.status == 0
    return float(found.fun)


class TestLeastAbsoluteDeviation:
    @settings(max_examples=40, deadline=None)
    @given(
        st.integers(1, 8), st.integers(2, 80), st.integers(0, 10_000), st.booleans(), st.sampled_from([0.01, 1.0, 50.0])
    )
    def test_equals_the_textbooks_programme(
        self, members: int, rows: int, seed: int, sum_to_one: bool, scale: float
    ) -> None:
        sample = made_up(members, rows, seed, low=0.1 * scale, high=0.5 * scale)
        weights = lad_weights(sample.predictions, sample.target, sum_to_one=sum_to_one)
        assert weights.min() >= 0
        assert not sum_to_one or abs(weights.sum() - 1) < 1e-12
        assert mae(weights, sample) == pytest.approx(reference(sample, sum_to_one), abs=1e-8)

    def test_two_members_equal_brute_force(self) -> None:
        """The loss is piecewise linear in the share of the first one: its minimum lies at a kink or an end."""
        sample = made_up(2, 501, 3)
        first, second = sample.predictions - sample.target
        kinks = second / (second - first)
        shares = np.append(kinks[(kinks > 0) & (kinks < 1)], [0.0, 1.0])
        losses = np.abs(shares[:, None] * first + (1 - shares[:, None]) * second).mean(axis=1)
        found = lad_weights(sample.predictions, sample.target)
        assert found[0] == pytest.approx(shares[losses.argmin()], abs=1e-8)
        assert mae(found, sample) == pytest.approx(losses.min(), abs=1e-10)

    @pytest.mark.parametrize("sum_to_one", [True, False])
    @pytest.mark.parametrize("tail", [1.0, 40.0])
    def test_leaving_rows_out_changes_nothing(
        self, monkeypatch: pytest.MonkeyPatch, sum_to_one: bool, tail: float
    ) -> None:
        sample = made_up(6, 9_000, 1)
        sample.predictions[:, ::50] *= tail
        part = lad_weights(sample.predictions, sample.target, sum_to_one=sum_to_one)
        monkeypatch.setattr("moldistill.delivery.lad.DIRECT", 10_000)
        whole = lad_weights(sample.predictions, sample.target, sum_to_one=sum_to_one)
        np.testing.assert_allclose(part, whole, rtol=0, atol=1e-8)

    def test_signs_that_were_guessed_wrong_are_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From the worst guess there is, the answer is the same."""
        sample = made_up(5, 6_000, 2)
        right = lad_weights(sample.predictions, sample.target)
        worst = np.eye(5)[sample.mae.argmax()]
        monkeypatch.setattr("moldistill.delivery.lad._first_guess", lambda *_: worst)
        np.testing.assert_allclose(lad_weights(sample.predictions, sample.target), right, rtol=0, atol=1e-8)

    def test_odd_members(self) -> None:
        sample = made_up(3, 400, 4)
        assert lad_weights(sample.predictions[:1], sample.target).tolist() == [1.0]
        exact = np.concatenate([sample.predictions, sample.target[None]])
        np.testing.assert_allclose(lad_weights(exact, sample.target), [0, 0, 0, 1], atol=1e-9)
        twice = np.concatenate([sample.predictions, sample.predictions[:1]])
        assert mae(lad_weights(twice, sample.target), Sample(twice, sample.target, sample.sizes)) == pytest.approx(
            mae(lad_weights(sample.predictions, sample.target), sample), abs=1e-9
        )
        constant = np.full((2, 400), 5.0)
        assert lad_weights(constant, sample.target).sum() == pytest.approx(1.0)

    @pytest.mark.slow
    def test_a_hundred_members_of_both_validation_splits_take_seconds(self) -> None:
        sample = made_up(100, 73_545, 5)
        begin = time.perf_counter()
        weights = lad_weights(sample.predictions, sample.target)
        assert time.perf_counter() - begin < 90
        residual = weights @ sample.predictions - sample.target
        # Optimal: no member lowers the loss where weight is moved to it from the others.
        slope = (sample.predictions - sample.target) @ np.sign(residual) / len(residual)
        level = np.abs(residual).mean()
        touched = np.abs(residual) < 1e-9
        loose = np.abs(sample.predictions[:, touched] - sample.target[touched]).sum(axis=1) / len(residual)
        assert (slope > level - loose - 1e-9).all()


class TestHuber:
    @settings(max_examples=25, deadline=None)
    @given(st.integers(1, 6), st.integers(20, 120), st.integers(0, 10_000), st.booleans(), st.booleans())
    def test_equals_scipys_general_solver(
        self, members: int, rows: int, seed: int, sum_to_one: bool, intercept: bool
    ) -> None:
        sample, delta = made_up(members, rows, seed), 0.15
        found = huber_weights(sample.predictions, sample.target, delta, sum_to_one=sum_to_one, intercept=intercept)

        def loss(x: np.ndarray) -> float:
            residual = x[:members] @ sample.predictions + x[members] - sample.target
            held = np.clip(residual, -delta, delta)
            return float((held * (residual - held / 2)).mean() * 1e3)

        bounds = [(0, None)] * members + [(None, None) if intercept else (0, 0)]
        constraints = [{"type": "eq", "fun": lambda x: x[:members].sum() - 1}] if sum_to_one else []
        start = np.append(np.full(members, 1 / members), 0.0)
        peer = minimize(loss, start, bounds=bounds, constraints=constraints, method="SLSQP", options={"ftol": 1e-13})
        ours = np.append(found.weights, found.intercept)
        assert found.weights.min() >= 0
        assert not sum_to_one or abs(found.weights.sum() - 1) < 1e-9
        assert intercept or found.intercept == 0
        assert loss(ours) <= peer.fun + 1e-6 * abs(peer.fun)

    def test_a_wide_bend_is_least_squares_and_a_narrow_one_least_absolute_deviation(self) -> None:
        sample = made_up(4, 3_000, 7)
        wide = huber_weights(sample.predictions, sample.target, 1e3, sum_to_one=False).weights
        np.testing.assert_allclose(wide, nnls(sample.predictions.T, sample.target)[0], atol=1e-7)
        narrow = huber_weights(sample.predictions, sample.target, 1e-4).weights
        assert mae(narrow, sample) == pytest.approx(
            mae(lad_weights(sample.predictions, sample.target), sample), rel=1e-5
        )

    def test_an_intercept_finds_a_common_shift(self) -> None:
        sample = made_up(3, 4_000, 8)
        found = huber_weights(sample.predictions + 0.3, sample.target, 0.1, intercept=True)
        plain = huber_weights(sample.predictions, sample.target, 0.1, intercept=True)
        assert found.intercept == pytest.approx(plain.intercept - 0.3, abs=1e-6)
        np.testing.assert_allclose(found.weights, plain.weights, atol=1e-6)

    def test_outliers_do_not_rule(self) -> None:
        sample = made_up(2, 2_000, 9, low=0.2, high=0.21)
        sample.predictions[0, :5] += 8
        squares = nnls(
            np.concatenate([(sample.predictions - sample.target).T, np.full((1, 2), 1e4)]),
            np.append(np.zeros(2_000), 1e4),
        )[0]
        found = huber_weights(sample.predictions, sample.target, 0.2).weights
        assert squares[0] < 0.25
        assert found[0] > 0.35


class TestRules:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 1000))
    def test_all_give_shares_of_so_many_members(self, members: int, most: int, seed: int) -> None:
        sample = made_up(members, 120, seed)
        for rule in library(members, most):
            found = rule.fit(sample)
            assert sum(found.weights) == pytest.approx(1.0, abs=1e-9), rule.name
            assert min(found.weights) >= 0, rule.name
            assert np.count_nonzero(found.weights) <= most, rule.name
            for row in found.class_weights or ():
                assert set(np.flatnonzero(row)) <= set(np.flatnonzero(found.weights)), rule.name

    def test_the_library_holds_every_kind_once_and_by_name(self) -> None:
        rules = library(20, 32)
        assert len({rule.name for rule in rules}) == len(rules)
        assert {rule.kind for rule in rules} == {"mean", "median", "rank", "greedy", "lad", "huber", "by_size"}
        assert {rule.kind for rule in of_kind(rules, "lad")} == {"lad"}
        with pytest.raises(InputError, match="no such combiner") as caught:
            of_kind(rules, "hubert")
        assert "did you mean huber" in str(caught.value)

    def test_mean_median_and_rank_are_what_numpy_says(self) -> None:
        sample = made_up(7, 300, 1)
        best = np.argsort(sample.mae)[:4]
        mean, median = (Equal(kind, 4).fit(sample) for kind in ("mean", "median"))
        applied = median.apply(sample.predictions, sample.sizes).value
        np.testing.assert_allclose(applied, np.median(sample.predictions[best], axis=0))
        np.testing.assert_allclose(
            mean.apply(sample.predictions, sample.sizes).value, sample.predictions[best].mean(axis=0)
        )
        np.testing.assert_allclose(np.array(Ranked(4).fit(sample).weights)[best], [0.4, 0.3, 0.2, 0.1])
        assert np.count_nonzero(Ranked(None).fit(sample).weights) == 7

    def test_fewer_members_are_weighed_again(self) -> None:
        sample = made_up(8, 500, 2)
        found = np.array(Lad(3).fit(sample).weights)
        kept = np.flatnonzero(found)
        np.testing.assert_allclose(found[kept], lad_weights(sample.predictions[kept], sample.target), atol=1e-12)
        assert mae(found, sample) >= mae(np.array(Lad(8).fit(sample).weights), sample)

    def test_by_size_lies_between_the_classes_own_weights_and_those_of_all(self) -> None:
        sample = made_up(4, 3_000, 3)
        edges = size_edges(sample.sizes, 200)
        assert edges == (5, 10, 15, 20) or edges == (10, 15, 20)
        overall = np.array(Lad(4).fit(sample).weights)
        own, far = BySize(4, 0).fit(sample), BySize(4, 10**12).fit(sample)
        np.testing.assert_allclose(far.class_weights, np.tile(overall, (len(edges) + 1, 1)), atol=1e-8)
        inside = (sample.sizes > edges[0]) & (sample.sizes <= edges[1])
        part = sample.rows(np.flatnonzero(inside))
        np.testing.assert_allclose(own.class_weights[1], lad_weights(part.predictions, part.target), atol=1e-12)
        half = BySize(4, len(part.target)).fit(sample)
        np.testing.assert_allclose(half.class_weights[1], (np.array(own.class_weights[1]) + overall) / 2, atol=1e-8)

    def test_by_size_helps_where_the_best_member_depends_on_size(self) -> None:
        sample = made_up(2, 8_000, 4, low=0.3, high=0.31)
        small = sample.sizes <= 12
        sample.predictions[0, small] = sample.target[small] + 0.05
        sample.predictions[1, ~small] = sample.target[~small] - 0.05
        chosen, scored = halves(8_000, 0)
        seen, unseen = sample.rows(chosen), sample.rows(scored)
        errors = [
            float(np.abs(rule.fit(seen).apply(unseen.predictions, unseen.sizes).value - unseen.target).mean())
            for rule in (Lad(2), BySize(2, 500))
        ]
        assert errors[1] < 0.75 * errors[0]

    def test_scattering_keeps_the_value(self) -> None:
        sample = made_up(6, 2_000, 5)
        places = np.array([1, 4, 5])
        for rule in (Lad(3), BySize(3, 100), Equal("median")):
            part = rule.fit(sample.members(places))
            whole = scattered(part, places, 6).apply(sample.predictions, sample.sizes)
            expected = part.apply(sample.predictions[places], sample.sizes)
            np.testing.assert_allclose(whole.value, expected.value, atol=1e-12)
            np.testing.assert_allclose(whole.spread, expected.spread, atol=1e-12)

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.integers(1, 40), min_size=1, max_size=500), st.integers(1, 60))
    def test_classes_have_the_rows_that_they_need(self, sizes: list[int], least: int) -> None:
        edges = size_edges(np.array(sizes), least)
        counts = np.histogram(sizes, [0, *(edge + 0.5 for edge in edges), np.inf])[0]
        assert len(counts) == 1 or counts.min() >= least
        assert all(edge % 5 == 0 for edge in edges)


class TestChoice:
    @pytest.mark.slow
    def test_the_oracle_is_met_on_unseen_rows(self) -> None:
        """20 members, 20,000 rows: shared and independent errors, 5 poor ones, 2 copies. Oracle: the best weights for
        the unseen rows themselves."""
        random = np.random.default_rng(0)
        target = random.normal(5, 1, 20_000)
        shared = 0.05 * random.normal(size=20_000)
        groups = 0.08 * random.normal(size=(3, 20_000))[np.arange(13) % 3]
        good = target + shared + groups + random.uniform(0.1, 0.25, (13, 1)) * random.normal(size=(13, 20_000))
        poor = target + shared + 1.5 * random.normal(size=(5, 20_000)) + 0.3
        sample = Sample(np.concatenate([good, poor, good[:2]]), target, random.integers(4, 20, 20_000))
        chosen, scored = halves(20_000, 0)
        seen, unseen = sample.rows(chosen), sample.rows(scored)
        choice = choose(seen, library(20, 32), 0)
        found = fit_within(choice.combiner, seen, None)
        ours = np.abs(found.apply(unseen.predictions, unseen.sizes).value - unseen.target).mean()
        oracle = mae(lad_weights(unseen.predictions, unseen.target), unseen)
        assert oracle <= ours < 1.01 * oracle
        least = min(item.mae for item in choice.tried)
        (taken,) = [item for item in choice.tried if item.chosen]
        assert taken.mae - least <= taken.error < 0.002

    def test_the_cross_validated_error_is_that_of_rows_left_out(self) -> None:
        """By its definition, with the folds made again; and with pure noise no rule seems better than it is."""
        sample = made_up(5, 103, 6)
        choice = choose(sample, [Lad(5)], 4)
        assert len(choice.error) == 103
        assert choice.tried[0].mae == pytest.approx(np.abs(choice.error).mean())
        assert choice.tried[0].mae > mae(np.array(Lad(5).fit(sample).weights), sample)
        assert sorted(choice.sizes) == sorted(sample.sizes)

    def test_within_a_standard_error_the_first_rule_is_taken_else_the_best(self) -> None:
        """By hand, from the folds' errors of each rule alone; and with more rows the difference counts."""
        rules = [Equal("mean"), Lad(6)]
        taken = []
        for rows in (40, 8_000):
            sample = made_up(6, rows, 8, low=0.2, high=0.4)
            errors = np.array([np.abs(choose(sample, [rule], 3).error) for rule in rules])
            choice = choose(sample, rules, 3)
            means = errors.mean(axis=1)
            difference = errors - errors[means.argmin()]
            np.testing.assert_allclose([item.mae for item in choice.tried], means)
            np.testing.assert_allclose(
                [item.error for item in choice.tried], difference.std(axis=1) / np.sqrt(rows), atol=1e-15
            )
            within = means - means.min() <= difference.std(axis=1) / np.sqrt(rows)
            assert choice.combiner == rules[int(np.flatnonzero(within)[0])]
            taken.append(choice.combiner.kind)
        assert taken == ["mean", "lad"]

    def test_few_rows_are_enough(self) -> None:
        for rows in (2, 3, 7):
            choice = choose(made_up(3, rows, 7), library(3, 3), 0)
            assert np.isfinite(choice.error).all()


class TestBudget:
    @settings(max_examples=15, deadline=None)
    @given(st.integers(2, 7), st.integers(0, 1000), st.floats(0.15, 0.9), st.integers(1, 7))
    def test_equals_brute_force(self, members: int, seed: int, share: float, most: int) -> None:
        random = np.random.default_rng(seed)
        sample = made_up(members, 150, seed)
        costs = random.uniform(1, 10, members)
        budget = Budget(costs, max(share * costs.sum(), costs.min()), most)
        losses = [
            mae(lad_weights(sample.predictions[list(some)], sample.target), sample.members(np.array(some)))
            for size in range(1, min(members, most) + 1)
            for some in itertools.combinations(range(members), size)
            if costs[list(some)].sum() <= budget.left
        ]
        found = affordable(sample, budget)
        assert costs[found].sum() <= budget.left + 1e-9
        assert len(found) <= most
        ours = mae(lad_weights(sample.predictions[found], sample.target), sample.members(found))
        assert ours == pytest.approx(min(losses), abs=1e-9)

    def test_many_members_fit_and_are_better_than_the_best_alone(self) -> None:
        members = EXACT + 18
        sample = made_up(members, 3_000, 1)
        costs = np.random.default_rng(1).uniform(1, 10, members)
        budget = Budget(costs, 30.0, 32)
        found = affordable(sample, budget)
        assert costs[found].sum() <= 30
        ours = mae(lad_weights(sample.predictions[found], sample.target), sample.members(found))
        everyone = mae(lad_weights(sample.predictions, sample.target), sample)
        assert everyone < ours < 0.8 * sample.mae.min()

    def test_a_dear_member_is_left_out_for_cheap_ones_that_do_as_well(self) -> None:
        sample = made_up(5, 2_000, 2, low=0.3, high=0.301)
        found = affordable(sample, Budget(np.array([100.0, 1, 1, 1, 1]), 100.0, 5))
        assert found.tolist() == [1, 2, 3, 4]

    def test_every_rule_keeps_to_it(self) -> None:
        sample = made_up(9, 600, 3)
        costs = np.arange(1.0, 10.0)
        for rule in (Lad(9), Greedy(9), Huber(9, 1.0), Equal("median"), BySize(9, 100)):
            found: Combination = fit_within(rule, sample, Budget(costs, 12.0, 9))
            assert costs[np.array(found.weights) > 0].sum() <= 12

    def test_nothing_fits(self) -> None:
        with pytest.raises(InputError, match="no member fits the budget"):
            affordable(made_up(2, 100), Budget(np.array([5.0, 6.0]), 4.0, 2))

    @pytest.mark.parametrize(
        ("text", "seconds"), [("4 h", 14_400), ("30min", 1800), ("90 s", 90), ("12", 12), (".5 H", 1800)]
    )
    def test_times(self, text: str, seconds: float) -> None:
        assert parse_seconds(text) == seconds

    @pytest.mark.parametrize("text", ["", "h", "4 days", "-3 s", "0", "1e3", "4 h 3"])
    def test_what_is_no_time(self, text: str) -> None:
        with pytest.raises(InputError, match="no time"):
            parse_seconds(text)
