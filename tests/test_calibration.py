"""Intervals hold as often as they say, and so does the estimate that an ensemble prints for itself."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delivery_folders import SIZES, make_run, make_store
from moldistill.core.vocabulary import SPLITS
from moldistill.delivery.calibration import LEVELS, Judged, by_size, calibrate, coverage
from moldistill.delivery.combination import size_class
from moldistill.delivery.combiners import Equal, Greedy, Lad, Sample
from moldistill.delivery.ensemble import ensemble
from moldistill.delivery.nested import choose, fit_within
from moldistill.delivery.selection import bootstrap_means, halves


def judged(rows: int, seed: int, *, growth: float = 1.0) -> Judged:
    """Errors whose deviation grows with the spread, and by a factor for large molecules."""
    random = np.random.default_rng(seed)
    spread = random.gamma(2.0, 0.05, rows)
    sizes = random.integers(3, 25, rows)
    scale = (0.03 + 0.8 * spread) * np.where(sizes > 15, growth, 1.0)
    return Judged(scale * random.standard_t(4, rows), spread, sizes)


def test_coverage_is_as_asked_over_all_and_in_every_class() -> None:
    calibration = calibrate(judged(20_000, 0, growth=2), judged(20_000, 1, growth=2))
    fresh = judged(60_000, 2, growth=2)
    for found in coverage(calibration, fresh):
        assert found.covered == pytest.approx(found.level, abs=0.012)
        assert found.low < found.covered < found.high
    classes = size_class(calibration.edges, fresh.sizes)
    for number in range(len(calibration.edges) + 1):
        for found in coverage(calibration, fresh.rows(classes == number)):
            assert found.covered == pytest.approx(found.level, abs=0.035)


def test_intervals_are_wide_where_the_spread_is() -> None:
    """Of equal coverage, 95% intervals that follow the spread are shorter than those that do not."""
    calibration = calibrate(judged(20_000, 0), judged(20_000, 1))
    fresh = judged(20_000, 2)
    widths = calibration.half_width(fresh.spread, fresh.sizes)
    assert widths[2].mean() < 0.93 * np.quantile(np.abs(fresh.error), 0.95)
    assert np.corrcoef(widths[1], fresh.spread)[0, 1] > 0.95
    # Within the widest tenth the interval still holds.
    wide = fresh.spread > np.quantile(fresh.spread, 0.9)
    for found in coverage(calibration, fresh.rows(wide)):
        assert found.covered == pytest.approx(found.level, abs=0.04)


def test_the_promise_of_split_conformal_prediction_holds_on_average() -> None:
    """With 30 rows a single calibration is uncertain; over many, a new row is covered as often as promised."""
    hits = np.zeros(len(LEVELS))
    draws = 1500
    for draw in range(draws):
        calibration = calibrate(judged(40, 3 * draw), judged(30, 3 * draw + 1))
        one = judged(20, 3 * draw + 2)
        hits += [found.covered for found in coverage(calibration, one)]
    exact = [math.ceil(31 * level) / 31 for level in LEVELS]
    np.testing.assert_allclose(hits / draws, exact, atol=0.015)
    assert (hits / draws > np.array(LEVELS) - 0.015).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 1000))
def test_half_widths_are_a_line_stretched_to_a_rank(shape: int, stretch: int, seed: int) -> None:
    """On the rows that stretched it, exactly the ⌈(n + 1) level⌉ smallest ratios lie within, all if there are fewer."""
    rows = judged(stretch, seed + 1)
    calibration = calibrate(judged(shape, seed), rows)
    assert min(map(min, calibration.a)) > 0
    assert min(map(min, calibration.b)) >= 0
    held = np.abs(rows.error) <= calibration.half_width(rows.spread, rows.sizes) * (1 + 1e-12)
    for level, line in zip(LEVELS, held, strict=True):
        assert np.count_nonzero(line) == min(math.ceil((stretch + 1) * level), stretch)


def test_one_member_has_no_spread_and_a_constant_width() -> None:
    random = np.random.default_rng(0)
    parts = [Judged(random.normal(size=900), np.zeros(900), np.full(900, 9)) for _ in range(3)]
    calibration = calibrate(parts[0], parts[1])
    assert coverage(calibration, parts[2])[2].covered == pytest.approx(0.95, abs=0.03)
    assert np.ptp(calibration.half_width(np.zeros(5), np.full(5, 9)), axis=1).max() == 0


def test_exact_members_are_no_division_by_zero() -> None:
    rows = Judged(np.zeros(40), np.zeros(40), np.full(40, 9))
    calibration = calibrate(rows, rows)
    assert all(found.covered == 1 for found in coverage(calibration, rows))


def test_wilsons_interval() -> None:
    """Against figures of Newcombe (Statistics in Medicine 17, 1998), table I: 81 of 263, and 15 of 148."""
    ones = Judged(np.array([0.0] * 81 + [9.0] * 182), np.ones(263), np.full(263, 9))
    calibration = calibrate(
        Judged(np.ones(50), np.ones(50), np.full(50, 9)), Judged(np.ones(50), np.ones(50), np.full(50, 9))
    )
    found = coverage(calibration, ones)[0]
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    fewer = Judged(np.array([0.0] * 15 + [9.0] * 133), np.ones(148), np.full(148, 9))
    found = coverage(calibration, fewer)[0]
    assert (round(found.low, 4), round(found.high, 4)) == (0.0624, 0.1605)


def test_errors_and_coverage_by_size() -> None:
    calibration = calibrate(judged(2_000, 0), judged(2_000, 1))
    rows = judged(3_000, 2)
    measured = np.arange(0, 3_000, 2)
    found = by_size(calibration, rows, measured, 0)
    assert sum(item.rows for item in found) == 3_000
    assert sum(item.coverage[0].rows for item in found) == len(measured)
    assert [item.smallest for item in found[1:]] == [item.largest + 1 for item in found[:-1]]
    for item in found:
        inside = (rows.sizes >= item.smallest) & (rows.sizes <= item.largest)
        assert item.mae == pytest.approx(np.abs(rows.error[inside]).mean())
        assert item.low < item.mae < item.high
        unused = inside & (np.arange(3_000) % 2 == 0)
        half = calibration.half_width(rows.spread[unused], rows.sizes[unused])
        np.testing.assert_allclose(
            [held.covered for held in item.coverage], (np.abs(rows.error[unused]) <= half).mean(axis=1)
        )


def test_intervals_hold_for_the_weights_that_are_made_again(tmp_path: Path) -> None:
    """Calibrated with the choosing half's weights, applied with those of all rows, measured on rows never seen."""
    store = make_store(tmp_path / "store", SIZES | {"valid": 4_000, "test-dev": 20_000})
    truth = np.random.default_rng(7).normal(5, 1, 20_000)
    folders, noises = [], [0.2, 0.3, 0.4, 0.6]
    uncertain = {split: 0.3 + np.random.default_rng(3).gamma(2, 0.4, len(store.rows(split))) for split in SPLITS[1:]}
    for place, noise in enumerate(noises):
        random = np.random.default_rng(place)
        values = {}
        for split in SPLITS[1:]:
            target = truth if split == "test-dev" else np.nan_to_num(store.target[store.rows(split)], nan=5.0)
            values[split] = (target + noise * uncertain[split] * random.normal(size=len(target))).astype(np.float32)
        folders.append(make_run(tmp_path / f"run{place}", store, values, facts={"seed": place}))
    summary = ensemble(folders, tmp_path / "ensemble")
    assert summary.refitted
    table = np.array([np.load(Path(m.path) / "predictions" / "test-dev.npz")["y_pred"] for m in summary.members], float)
    made = summary.rule.apply(table, store.size(store.rows("test-dev")))
    held = (np.abs(made.value - truth) <= made.half_width).mean(axis=1)
    np.testing.assert_allclose(held, LEVELS, atol=0.035)
    for found, share in zip(summary.coverage, held, strict=True):
        assert found.low - 0.02 <= share <= found.high + 0.02
    score = float(np.abs(made.value - truth).mean())
    assert summary.score.low <= score <= summary.score.high


@pytest.mark.slow
def test_the_printed_interval_covers_the_error_on_fresh_rows() -> None:
    """Over 200 halvings of 400 rows: the interval of the scoring half against the error on 20,000 rows never seen.

    The interval is a 95% one, and the rules that are chosen among would overfit 400 rows; an estimate on the choosing
    rows is printed beside it, to show what honesty is worth.
    """
    random = np.random.default_rng(0)
    members, rows, fresh = 12, 400, 20_000
    scale = random.uniform(0.15, 0.4, (members, 1))
    honest = dishonest = 0
    for draw in range(200):
        total = rows + (fresh if draw % 20 == 0 else 0)
        target = random.normal(5, 1, total)
        size_effect = random.integers(4, 20, total)
        errors = 0.1 * random.normal(size=total) + scale * random.standard_t(5, size=(members, total))
        if draw % 20 == 0:
            population = Sample((errors + target)[:, rows:], target[rows:], size_effect[rows:])
        sample = Sample((errors + target)[:, :rows], target[:rows], size_effect[:rows])
        chosen, scored = halves(rows, draw)
        seen, unseen = sample.rows(chosen), sample.rows(scored)
        choice = choose(seen, [Equal("mean"), Equal("mean", 4), Greedy(12), Lad(12)], draw)
        found = fit_within(choice.combiner, seen, None)
        score, own = (
            bootstrap_means(
                np.abs(found.apply(part.predictions, part.sizes).value - part.target)[None], draw, resamples=400
            )[0]
            for part in (unseen, seen)
        )
        truth = float(np.abs(found.apply(population.predictions, population.sizes).value - population.target).mean())
        honest += score.low <= truth <= score.high
        dishonest += own.low <= truth <= own.high
    assert 0.91 <= honest / 200 <= 0.985
    assert dishonest < honest
