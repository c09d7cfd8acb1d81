"""How members become one prediction: against plain loops, over weights, medians, classes of size and intervals."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moldistill.core.errors import InputError
from moldistill.delivery.combination import Combination, size_class

EDGES = (5, 9)
CALIBRATION = {
    "levels": [0.5, 0.9],
    "edges": [6],
    "a": [[0.1, 0.2], [0.3, 0.4]],
    "b": [[1.0, 2.0], [3.0, -4.0]],
}


def shares(members: int) -> st.SearchStrategy[list[float]]:
    """Weights of sum 1, some of them 0."""
    counts = st.lists(st.integers(0, 5), min_size=members, max_size=members).filter(any)
    return counts.map(lambda found: [count / sum(found) for count in found])


@hypothesis_settings(deadline=None)
@given(st.data(), st.integers(1, 4), st.sampled_from(["weighted", "median"]), st.booleans())
def test_it_is_what_a_loop_says(data: Any, members: int, kind: str, classes: bool) -> None:
    values = data.draw(arrays(np.float64, (members, 7), elements=st.floats(-10, 10)))
    sizes = data.draw(arrays(np.int64, 7, elements=st.integers(1, 12)))
    weights = data.draw(shares(members))
    table = [data.draw(shares(members)) for _ in range(3)] if classes else None
    raw = {"combination": kind, "calibration": CALIBRATION}
    raw |= {"class_edges": list(EDGES), "class_weights": table} if classes else {}
    found = Combination.of(json.loads(json.dumps(raw)), weights).apply(values, sizes)
    assert found.half_width is not None
    for row, size in enumerate(sizes):
        of_row = table[0 if size <= 5 else 1 if size <= 9 else 2] if table else weights
        taken = [(value, share) for value, share in zip(values[:, row], of_row, strict=True) if share > 0]
        if kind == "median":
            expected = float(np.median([value for value, _ in taken]))
            taken = [(value, 1 / len(taken)) for value, _ in taken]
        else:
            expected = sum(value * share for value, share in taken)
        spread = sum(share * (value - expected) ** 2 for value, share in taken) ** 0.5
        assert found.value[row] == pytest.approx(expected, abs=1e-12)
        assert found.spread[row] == pytest.approx(spread, abs=1e-9)
        place = 0 if size <= 6 else 1
        for level in (0, 1):
            half = CALIBRATION["a"][place][level] + CALIBRATION["b"][place][level] * spread
            assert found.half_width[level, row] == pytest.approx(max(half, 0.0), abs=1e-8)


@hypothesis_settings(deadline=None)
@given(shares(3), st.booleans())
def test_it_survives_its_mapping(weights: list[float], median: bool) -> None:
    raw = {"combination": "median" if median else "weighted", "calibration": CALIBRATION}
    raw |= {"class_edges": [4], "class_weights": [weights, weights[::-1]]}
    whole = Combination.of(raw, weights)
    assert Combination.of(json.loads(json.dumps(whole.to_mapping())), weights) == whole


def test_without_keys_it_is_the_weighted_mean_and_no_rows_are_none() -> None:
    plain = Combination.of({}, [0.5, 0.5])
    assert (plain.kind, plain.calibration, plain.class_weights) == ("weighted", None, None)
    for combination in (plain, Combination((0.5, 0.5), "median")):
        found = combination.apply(np.zeros((2, 0)), np.zeros(0, np.int64))
        assert len(found.value) == len(found.spread) == 0


def test_a_size_on_an_edge_belongs_to_the_smaller_class() -> None:
    assert size_class(EDGES, np.array([1, 5, 6, 9, 10, 255])).tolist() == [0, 0, 1, 1, 2, 2]
    assert size_class((), np.array([1, 255])).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("weights", "raw"),
    [
        ([0.5, 0.4], {}),
        ([1.5, -0.5], {}),
        ([], {}),
        ([float("nan"), 1.0], {}),
        ([0.5, 0.5], {"combination": "mean"}),
        ([0.5, 0.5], {"class_edges": [3]}),
        ([0.5, 0.5], {"class_edges": [3, 3], "class_weights": [[0.5, 0.5]] * 3}),
        ([0.5, 0.5], {"class_edges": [3], "class_weights": [[0.5, 0.5]]}),
        ([0.5, 0.5], {"class_edges": [3], "class_weights": [[0.5, 0.5], [1.0]]}),
        ([0.5, 0.5], {"class_edges": [3], "class_weights": [[0.5, 0.5], [0.9, 0.5]]}),
        ([0.5, 0.5], {"calibration": CALIBRATION | {"levels": [0.9, 0.5]}}),
        ([0.5, 0.5], {"calibration": CALIBRATION | {"levels": [0.5, 1.0]}}),
        ([0.5, 0.5], {"calibration": CALIBRATION | {"a": [[0.1, 0.2]]}}),
        ([0.5, 0.5], {"calibration": CALIBRATION | {"b": [[0.1], [0.2]]}}),
        ([0.5, 0.5], {"calibration": CALIBRATION | {"a": [[0.1, float("nan")], [0.1, 0.1]]}}),
        ([0.5, 0.5], {"calibration": {"levels": [0.5]}}),
        ([0.5, 0.5], {"calibration": 3}),
    ],
)
def test_what_is_no_combination_is_refused(weights: list[float], raw: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="combination cannot be read"):
        Combination.of(raw, weights)
