"""Samplers: each proposes what the space allows, again with the same seed, and a grid tries every point once."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from moldistill.core.errors import InputError
from moldistill.search.checks import check_space
from moldistill.search.compile import DefineByRun, make_sampler, quiet_optuna
from moldistill.search.grid import points
from moldistill.search.parse import load_space
from moldistill.search.space import Space
from spaces import SCHEME, WEIGHT, space

PLAIN: dict[str, Any] = {
    WEIGHT: {"log_uniform": [0.05, 5]},
    "model.dropout": {"uniform": [0, 0.5], "step": 0.1},
    "model.depth": {"int": [2, 6]},
    "distill.atom.distance": {"choice": ["mse", "l1"]},
}
BRANCHES: dict[str, Any] = {
    WEIGHT: {"log_uniform": [0.05, 5]},
    SCHEME: {"choice": ["sum", {"power": {"distill.atom.power": {"uniform": [0, 2]}}}]},
}
GRID: dict[str, Any] = {
    "model.dropout": {"uniform": [0, 0.3], "step": 0.1},
    "model.depth": {"int": [2, 6], "step": 2},
    "distill.graph.layers": {"choice": ["all", [1, 2]]},
}


def searched_by(name: str, parameters: dict[str, Any], **changes: Any) -> Space:
    sampler = {"name": name, "startup_trials": 3, **changes.pop("sampler", {})}
    return load_space(space(parameters=parameters, sampler=sampler, budget={"trials": 100}, **changes))


def run(
    loaded: Space,
    count: int,
    storage: optuna.storages.BaseStorage | None = None,
    *,
    cut: int = 0,
    value: Callable[[dict[str, Any]], float] = lambda values: sum(
        value for value in values.values() if isinstance(value, int | float)
    ),
) -> tuple[optuna.Study, list[dict[str, Any]]]:
    """Ask and tell `count` trials one at a time; every `cut` trials the sampler is made anew, as continuations do."""
    define, found = DefineByRun(loaded.parameters), []
    with quiet_optuna():
        study = optuna.create_study(
            storage=storage, directions=[objective.direction for objective in loaded.objectives]
        )
        for place in range(count):
            if place == 0 or (cut and place % cut == 0):
                study.sampler = make_sampler(loaded, earlier=place)
            trial = study.ask()
            found.append(define(trial))
            told = value(found[-1])
            study.tell(trial, [told, -told][: len(loaded.objectives)])
    return study, found


class TestAll:
    @pytest.mark.parametrize("name", ["tpe", "random", "cmaes", "gp", "nsgaii"])
    def test_same_seed_same_proposals(self, name: str) -> None:
        sampler: dict[str, Any] = {"population": 4} if name in ("nsgaii", "cmaes") else {}
        count = 6 if name == "gp" else 20

        def proposals(seed: int) -> list[dict[str, Any]]:
            return run(searched_by(name, PLAIN, sampler={**sampler, "seed": seed}), count)[1]

        assert proposals(0) == proposals(0)
        assert proposals(0) != proposals(1)

    def test_same_seed_same_grid(self) -> None:
        orders = [run(searched_by("grid", GRID, sampler={"seed": seed}), 24)[1] for seed in (0, 0, 1)]
        assert orders[0] == orders[1] != orders[2]

    @pytest.mark.parametrize("name", ["tpe", "random", "gp", "nsgaii"])
    @pytest.mark.parametrize("objectives", [1, 2])
    def test_branches_and_objectives(self, name: str, objectives: int) -> None:
        """What these samplers are not refused for, they do: branches, choices, and two objectives at once."""
        metrics = [{"metric": "valid_mae"}, {"metric": "parameters"}][:objectives]
        population = {"population": 3} if name == "nsgaii" else {}
        loaded = searched_by(name, BRANCHES, objective=metrics, scheduler={"name": "none"}, sampler=population)
        check_space(loaded)
        study, found = run(loaded, 7 if name == "gp" else 16)
        assert len(study.get_trials(states=[TrialState.COMPLETE])) == len(found)
        assert all(("distill.atom.power" in values) == (values[SCHEME] == "power") for values in found)

    @pytest.mark.parametrize("flags", [{"multivariate": True}, {"multivariate": True, "group": False}])
    def test_tpe_together(self, flags: dict[str, bool]) -> None:
        assert len(run(searched_by("tpe", BRANCHES, sampler=flags), 12)[1]) == 12

    def test_those_that_learn_find_what_random_does_not(self) -> None:
        """A bowl over two logarithms: after 60 trials the median of nine seeds lies several times nearer the ground."""
        parameters = {WEIGHT: {"log_uniform": [1e-3, 1000]}, "distill.atom.weight": {"log_uniform": [1e-3, 1000]}}

        def bowl(values: dict[str, Any]) -> float:
            return sum((math.log10(value) - 1) ** 2 for value in values.values())

        def best(name: str, seed: int) -> float:
            loaded = searched_by(name, parameters, sampler={"seed": seed, "startup_trials": 10})
            return min(map(bowl, run(loaded, 60, value=bowl)[1]))

        medians = {name: sorted(best(name, seed) for seed in range(9))[4] for name in ("tpe", "cmaes", "random")}
        assert medians["tpe"] < medians["random"] / 2
        assert medians["cmaes"] < medians["random"] / 2


class TestCmaes:
    def test_goes_on_where_it_was(self, tmp_path: Path) -> None:
        """Its generation is in the storage: a new sampler takes it from there instead of starting over."""
        loaded = searched_by("cmaes", PLAIN, sampler={"population": 4})
        backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal"))
        study, _ = run(loaded, 24, optuna.storages.JournalStorage(backend), cut=7)
        generations = [trial.system_attrs.get("cma:generation", 0) for trial in study.trials]
        assert generations == sorted(generations)
        assert generations[-1] >= 4

    def test_one_range_is_enough(self) -> None:
        loaded = searched_by("cmaes", {WEIGHT: {"log_uniform": [0.05, 5]}}, sampler={"population": 4})
        check_space(loaded)
        study, _ = run(loaded, 20)
        assert study.trials[-1].system_attrs["cma:generation"] >= 3

    def test_choices_are_noted(self) -> None:
        assert any("choices are drawn at random" in note for note in check_space(searched_by("cmaes", PLAIN)).notes)


class TestGrid:
    def test_every_point_once(self, tmp_path: Path) -> None:
        """In the order of its seed, whoever asks and however often it was continued."""
        loaded = searched_by("grid", GRID)
        assert loaded.grid_size == loaded.most_trials == 4 * 3 * 2
        backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal"))
        _, found = run(loaded, 24, optuna.storages.JournalStorage(backend), cut=5)
        tried = Counter(
            (values["model.dropout"], values["model.depth"], str(values["distill.graph.layers"])) for values in found
        )
        wanted = itertools.product([0.0, 0.1, 0.2, 0.3], [2, 4, 6], ["all", "[1, 2]"])
        assert tried == Counter(wanted)
        assert found == run(loaded, 24)[1]

    def test_points_that_cannot_be_trained_are_no_points(self) -> None:
        parameters = {
            "model.width": {"choice": [60, 96]},
            "model.heads": {"choice": [5, 8]},
            "model.depth": {"int": [2, 4]},
        }
        loaded = searched_by("grid", parameters, constraints=["model.depth < 4 or model.heads == 5"])
        good = {(60, 5, 2), (60, 5, 3), (60, 5, 4), (96, 8, 2), (96, 8, 3)}
        assert loaded.grid_size == 5
        assert set(points(loaded)) == good
        assert {tuple(values.values()) for values in run(loaded, 5)[1]} == good

    def test_equal_numbers_of_other_types_are_other_points(self) -> None:
        parameters = {"distill.graph.student_layers": {"choice": [None, [1], [2]]}, "model.depth": {"choice": [2, 3]}}
        loaded = searched_by("grid", parameters)
        found = run(loaded, 6)[1]
        assert len({str(values) for values in found}) == loaded.grid_size == 6

    def test_points_that_are_left(self) -> None:
        loaded = searched_by("grid", GRID)
        for tried in (0, 7, 24, 26):
            assert make_sampler(loaded).open_points(run(loaded, tried)[0]) == max(0, 24 - tried)

    def test_told_again_after_the_end(self) -> None:
        """Optuna's own grid raises here: it wants to stop an `optimize` that nobody called."""
        assert len(run(searched_by("grid", {"model.depth": {"choice": [2, 3]}}), 3)[1]) == 3

    def test_a_budget_beyond_the_grid_is_noted(self) -> None:
        checked = check_space(searched_by("grid", GRID))
        assert any("24 points, fewer than the 100 trials" in note for note in checked.notes)

    def test_a_budget_below_the_grid(self) -> None:
        loaded = load_space(space(parameters=GRID, sampler={"name": "grid"}, budget={"trials": 6}))
        assert (loaded.most_trials, loaded.grid_size) == (6, 24)
        assert any("6 of the grid's 24 points" in note for note in check_space(loaded).notes)

    def test_no_point_can_be_trained(self) -> None:
        parameters = {"model.width": {"choice": [60, 100]}, "model.depth": {"int": [2, 3]}}
        loaded = load_space(space(parameters=parameters, sampler={"name": "grid"}, fixed={"model.heads": 7}))
        with pytest.raises(InputError, match="every sampled configuration is refused"):
            check_space(loaded)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"sampler": {"name": "tpe", "startup_trials": 8}}, "all 8 trials are random"),
        ({"sampler": {"name": "nsgaii"}}, "first population of 50"),
        ({"sampler": {"name": "gp"}}, "ran to their end only"),
        ({"sampler": {"name": "gp"}, "parameters": BRANCHES}, "branches at random"),
        (
            {"starting_points": [{WEIGHT: 1.0}, {WEIGHT: 2.0}], "budget": {"trials": 1}},
            "2 starting points, and 1 trials",
        ),
    ],
)
def test_what_works_and_could_be_better_is_noted(changes: dict[str, Any], note: str) -> None:
    assert any(note in found for found in check_space(load_space(space(**changes))).notes)
