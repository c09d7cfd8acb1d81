"""Starting points: what they name is tried first, as it was written; what cannot be tried is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moldistill.core.errors import InputError
from moldistill.search.checks import check_space
from moldistill.search.compile import DefineByRun, make_sampler, quiet_optuna, sample
from moldistill.search.parse import load_space
from moldistill.search.space import Space
from moldistill.search.starting import enqueue
from spaces import POWER, SCHEME, WEIGHT, space

PARAMETERS: dict[str, Any] = {
    WEIGHT: {"log_uniform": [0.05, 5]},
    SCHEME: {
        "choice": [
            "sum",
            {"power": {POWER: {"uniform": [0, 2]}}},
            {"dataset_mean": {POWER: {"uniform": [0.5, 3]}, "distill.atom.head": {"choice": ["linear", "mlp"]}}},
        ]
    },
    "model.depth": {"int": [2, 6], "step": 2},
    "model.dropout": {"uniform": [0, 0.3], "step": 0.1},
    "distill.graph.layers": {"choice": ["all", [1, 2]]},
    "distill.pair.weight": {"choice": [0.0, 1.0]},
}


def started(*points: dict[str, Any], **changes: Any) -> Space:
    return load_space(space(**{"parameters": PARAMETERS, "starting_points": list(points), **changes}))


def tried(loaded: Space, count: int, storage: Any = None) -> list[dict[str, Any]]:
    define = DefineByRun(loaded.parameters)
    with quiet_optuna():
        study = optuna.create_study(storage=storage, sampler=make_sampler(loaded))
        enqueue(study, loaded)
        found = []
        for _ in range(count):
            trial = study.ask()
            found.append(define(trial))
            study.tell(trial, found[-1][WEIGHT])
    return found


WHOLE = {
    WEIGHT: 1.0,
    SCHEME: "dataset_mean",
    POWER: 2.5,
    "distill.atom.head": "mlp",
    "model.depth": 4,
    "model.dropout": 0.2,
    "distill.graph.layers": [1, 2],
    "distill.pair.weight": 1.0,
}


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "nsgaii"])
def test_tried_first_and_in_order(sampler: str, tmp_path: Path) -> None:
    """Through a real storage: whole points as they are, partial ones completed by the sampler."""
    part = {SCHEME: "power", POWER: 0.5}
    loaded = started(WHOLE, part, sampler={"name": sampler})
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal"))
    first, second, third = tried(loaded, 3, optuna.storages.JournalStorage(backend))
    assert first == WHOLE
    assert {key: second[key] for key in part} == part
    assert set(second) == set(WHOLE) - {"distill.atom.head"}
    assert third != first


def test_cmaes_starts_there_too() -> None:
    parameters = {WEIGHT: {"log_uniform": [0.05, 5]}, "model.depth": {"int": [2, 6]}}
    loaded = started({WEIGHT: 2.0}, parameters=parameters, sampler={"name": "cmaes"})
    assert tried(loaded, 6)[0][WEIGHT] == 2.0


def test_enqueued_once_with_its_number() -> None:
    with quiet_optuna():
        study = optuna.create_study()
        enqueue(study, started(WHOLE, {WEIGHT: 2.0}))
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.WAITING] * 2
    assert [trial.user_attrs["starting_point"] for trial in study.trials] == [0, 1]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.data())
def test_every_sample_is_a_starting_point(seed: int, data: st.DataObject) -> None:
    """Whatever the space can draw may be named, and any part of it that keeps the choices which lead to it."""
    (values,) = sample(load_space(space(parameters=PARAMETERS)).parameters, 1, seed=seed)
    kept = {key: value for key, value in values.items() if key in (SCHEME,) or data.draw(st.booleans())}
    (first,) = tried(started(kept), 1)
    for key, value in kept.items():
        assert first[key] == (pytest.approx(value) if isinstance(value, float) else value)


WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("empty", {}, "starting_points[0]", "remove it"),
    ("misspelt", {"distill.graph.wieght": 1.0}, "distill.graph.wieght", WEIGHT),
    ("not searched", {"optimizer.beta1": 0.9}, "not searched", "remove it"),
    ("below", {WEIGHT: 0.01}, WEIGHT, "from 0.05 to 5"),
    ("above", {WEIGHT: 50.0}, WEIGHT, "from 0.05 to 5"),
    ("text for a number", {WEIGHT: "1"}, WEIGHT, "a number"),
    ("a boolean for a number", {WEIGHT: True}, WEIGHT, "a number"),
    ("null for a number", {WEIGHT: None}, WEIGHT, "a number"),
    ("NaN", {WEIGHT: float("nan")}, WEIGHT, "a number"),
    ("a list for a number", {WEIGHT: [1.0]}, WEIGHT, "a number"),
    ("a domain for a number", {WEIGHT: {"uniform": [1, 2]}}, WEIGHT, "a number"),
    ("between steps", {"model.depth": 3}, "model.depth", "steps of 2"),
    ("between fractional steps", {"model.dropout": 0.25}, "model.dropout", "steps of 0.1"),
    ("a fraction for a whole number", {"model.depth": 4.0}, "model.depth", "whole number"),
    ("no choice", {SCHEME: "coordinated"}, SCHEME, "sum, power, dataset_mean"),
    ("a misspelt choice", {SCHEME: "powr"}, SCHEME, "did you mean 'power'"),
    ("a list that is no choice", {"distill.graph.layers": [1, 3]}, "distill.graph.layers", "all, (1, 2)"),
    ("a boolean for a choice of numbers", {"distill.pair.weight": True}, "distill.pair.weight", "0.0, 1.0"),
    ("another branch", {SCHEME: "sum", POWER: 1.0}, POWER, f"`{SCHEME}: power`"),
    ("no branch", {POWER: 1.0}, "no choice of a branch", f"`{SCHEME}: power`"),
    ("beyond the range of its branch", {SCHEME: "power", POWER: 2.5}, POWER, "from 0 to 2"),
    ("a key of another branch", {SCHEME: "power", "distill.atom.head": "mlp"}, "distill.atom.head", "dataset_mean"),
]


@pytest.mark.parametrize(("point", "place", "said"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_wrong_ones_are_refused(point: dict[str, Any], place: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        started(point)
    assert "starting_points[0]" in str(caught.value)
    assert place in str(caught.value)
    assert said in str(caught.value)
    assert caught.value.remedy


def test_whole_numbers_for_fractions_and_choices_of_them() -> None:
    first = tried(started({WEIGHT: 1, "distill.pair.weight": 1}), 1)[0]
    assert (first[WEIGHT], first["distill.pair.weight"]) == (1.0, 1.0)


def test_fixed_keys_are_named_as_such() -> None:
    with pytest.raises(InputError, match="the key is fixed"):
        started({"training.epochs": 9}, fixed={"training.epochs": 12})


def test_the_same_point_twice() -> None:
    with pytest.raises(InputError, match="stands twice"):
        started({WEIGHT: 1.0}, {WEIGHT: 1})


def test_a_whole_point_must_keep_the_constraints() -> None:
    below = [f"{WEIGHT} * model.depth <= 3"]
    with pytest.raises(InputError, match=r"starting_points\[0\]: it cannot be trained: constraints\[0\]") as caught:
        started(WHOLE, constraints=below)
    assert below[0] in str(caught.value)
    assert started({WEIGHT: 4.0}, constraints=below).starting_points  # what it leaves open may still go with it


def test_a_whole_point_must_not_contradict_itself() -> None:
    mixed = {"model.width": {"choice": [60, 96]}, "model.heads": {"choice": [5, 8]}}
    with pytest.raises(InputError, match="multiple of heads"):
        started({"model.width": 60, "model.heads": 8}, parameters=mixed)


def test_a_grid_takes_none() -> None:
    loaded = load_space(
        space(
            parameters={"model.depth": {"int": [2, 6]}},
            starting_points=[{"model.depth": 4}],
            sampler={"name": "grid"},
        )
    )
    with pytest.raises(InputError, match="a grid tries every point anyway"):
        check_space(loaded)
