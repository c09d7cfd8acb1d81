"""Studies that go on under another space, or begin with what others found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from moldistill.core.config import read_yaml
from moldistill.core.errors import InputError
from moldistill.core.locking import exclusive
from moldistill.search.conductor import Conductor
from moldistill.search.continuing import changed_keys, check_folder, warm_start
from moldistill.search.generations import fitted
from moldistill.search.ledger import Ledger
from moldistill.search.parse import load_space
from moldistill.search.pruners import RUNG
from moldistill.search.study import LOCK, SPACE
from studies import INPUTS, WEIGHT, open_ledger, raw_space, run_all, train

DEPTH = "model.depth"


def rung_attributes(ledger: Ledger) -> list[dict[str, float]]:
    return [
        {key: value for key, value in trial.system_attrs.items() if key.startswith(RUNG)} for trial in ledger.trials()
    ]


def checked(out: Path, raw: dict[str, Any], mode: Any) -> Path:
    return check_folder(out, load_space(raw), mode)


class TestFolder:
    @pytest.fixture
    def study(self, tmp_path: Path) -> Path:
        out = tmp_path / "study"
        run_all(open_ledger(out))
        (out / "trials").mkdir(exist_ok=True)
        return out

    def test_the_same_folder_again(self, study: Path) -> None:
        with pytest.raises(InputError, match="--resume"):
            checked(study, raw_space(), "new")

    @pytest.mark.parametrize(
        "change",
        [
            {"budget": {"trials": 99}},
            {"resources": {"concurrent": 7}},
            {"keep": 1},
            {"failures": {"retries": 0}},
            {"replicates": {"top": 2, "seeds": 3}},
        ],
    )
    def test_what_changes_no_trial_may_change(self, study: Path, change: dict[str, Any]) -> None:
        assert checked(study, raw_space(**change), "resume") == study

    @pytest.mark.parametrize(
        "change",
        [
            {"sampler": {"name": "random"}},
            {"parameters": {WEIGHT: {"log_uniform": [0.01, 50]}}},
            {"scheduler": {"name": "none"}},
            {"resources": {"cpus": 2}},
        ],
    )
    def test_a_changed_space_needs_extend(self, study: Path, change: dict[str, Any]) -> None:
        with pytest.raises(InputError, match="--extend"):
            checked(study, raw_space(**change), "resume")
        assert checked(study, raw_space(**change), "extend") == study

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"fixed": {"training.epochs": 5}}, "fixed"),
            ({"base": "student-small"}, "base"),
            ({"objective": {"metric": "valid_3d_mae"}}, "objective"),
        ],
    )
    def test_what_could_not_be_compared_is_refused(self, study: Path, change: dict[str, Any], named: str) -> None:
        with pytest.raises(InputError, match="--warm-start") as caught:
            checked(study, raw_space(**change), "extend")
        assert named in str(caught.value)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no study to extend"):
            checked(tmp_path / "none", raw_space(), "extend")

    def test_a_second_search(self, study: Path) -> None:
        with (
            exclusive(study / LOCK, "another search writes the study"),
            pytest.raises(InputError, match="another search writes the study"),
            exclusive(study / LOCK, "another search writes the study"),
        ):
            pass

    def test_a_space_reads_as_it_was_written(self, study: Path) -> None:
        written = read_yaml(study / SPACE)
        assert changed_keys(written, load_space(study / SPACE).mapping) == []

    def test_a_study_goes_where_its_folder_goes(self, study: Path) -> None:
        before = Ledger.open(study).rows()
        moved = study.rename(study.with_name("moved"))
        assert Ledger.open(moved).rows() == before
        assert open_ledger(moved).rows() == before

    def test_another_store(self, study: Path) -> None:
        with pytest.raises(InputError, match="made with another store"):
            Ledger.create(study, load_space(raw_space()), {"store": "another"})


class TestGenerations:
    """A changed space is a new generation of the study: the same trials, known to the sampler where they fit."""

    def test_wider(self, tmp_path: Path) -> None:
        before = run_all(open_ledger(tmp_path / "study")).ledger
        rows, rungs = before.rows(), rung_attributes(before)
        wider = raw_space(parameters={WEIGHT: {"log_uniform": [0.001, 50]}}, budget={"trials": 12})
        ledger = open_ledger(tmp_path / "study", wider)
        assert ledger.study.study_name == "study@2"
        assert ledger.rows() == rows
        assert rung_attributes(ledger) == rungs
        for trial in ledger.trials(TrialState.COMPLETE, TrialState.PRUNED):
            assert trial.distributions[WEIGHT] == optuna.distributions.FloatDistribution(0.001, 50, log=True)
        run_all(ledger)
        assert len(ledger.rows()) == 12
        assert ledger.rows()[:8] == rows
        assert open_ledger(tmp_path / "study", wider).study.study_name == "study@2"  # the same space: no new one

    def test_another_choice_and_another_parameter(self, tmp_path: Path) -> None:
        """Optuna itself refuses both; a trial from before has the base's value for a key that was not searched."""
        narrow = raw_space(parameters={"model.heads": {"choice": [2, 4]}})
        before = run_all(open_ledger(tmp_path / "study", narrow)).ledger.rows()
        depth = load_space(narrow).base["model"]["depth"]
        wide = raw_space(
            parameters={"model.heads": {"choice": [2, 4, 8]}, DEPTH: {"int": [1, depth + 2]}}, budget={"trials": 14}
        )
        ledger = open_ledger(tmp_path / "study", wide)
        assert all(trial.params[DEPTH] == depth for trial in ledger.trials())
        run_all(ledger)
        assert ledger.rows()[:8] == before

    def test_narrower(self, tmp_path: Path) -> None:
        """Trials outside stay in the ledger; the sampler does not learn from them."""
        before = run_all(open_ledger(tmp_path / "study")).ledger.rows()
        ledger = open_ledger(tmp_path / "study", raw_space(parameters={WEIGHT: {"log_uniform": [0.5, 2]}}))
        assert ledger.rows() == before
        for row, trial in zip(ledger.rows(), ledger.trials(), strict=True):
            assert bool(trial.params) == (0.5 <= row.parameters[WEIGHT] <= 2)

    def test_branches(self) -> None:
        scheme, power = "distill.atom.normalization", "distill.atom.power"
        raw = raw_space(parameters={scheme: {"choice": ["sum", {"power": {power: {"uniform": [0, 2]}}}]}})
        space = load_space(raw)
        inside = fitted(space, {scheme: "power", power: 1.5})
        assert inside is not None and sorted(inside[0]) == sorted([scheme, power])
        outside = [{scheme: "power", power: 3.0}, {scheme: "sum", power: 1.5}, {scheme: "molecule_mean"}]
        assert [fitted(space, values) for values in outside] == [None] * 3

    def test_another_scheduler_knows_the_values_at_its_rungs(self, tmp_path: Path) -> None:
        run_all(open_ledger(tmp_path / "study", raw_space(scheduler={"name": "none"})))
        changed = raw_space(scheduler={"name": "asha", "grace": 3, "reduction": 2})
        ledger = open_ledger(tmp_path / "study", changed)
        for row, held in zip(ledger.trials(), rung_attributes(ledger), strict=True):
            assert held == {f"{RUNG}0": row.intermediate_values[3], f"{RUNG}1": row.intermediate_values[6]}

    def test_trials_under_way_go_on(self, tmp_path: Path) -> None:
        dead = Conductor(open_ledger(tmp_path / "study"))
        proposal = dead.next()
        assert proposal is not None
        train(dead, proposal, until=3)
        ledger = open_ledger(tmp_path / "study", raw_space(parameters={WEIGHT: {"log_uniform": [0.01, 10]}}))
        conductor = Conductor(ledger)
        assert conductor.adopt() == (0, 1)
        again = conductor.next()
        assert again is not None and again.number == proposal.number
        assert train(conductor, again) == "complete"

    def test_starting_points_are_tried_once(self, tmp_path: Path) -> None:
        points = [{WEIGHT: 0.7}, {WEIGHT: 1.3}]
        run_all(open_ledger(tmp_path / "study", raw_space(starting_points=points)))
        wider = raw_space(
            parameters={WEIGHT: {"log_uniform": [0.01, 10]}},
            starting_points=[*points, {WEIGHT: 6.0}],
            budget={"trials": 12},
        )
        rows = run_all(open_ledger(tmp_path / "study", wider)).ledger.rows()
        tried = [row.parameters[WEIGHT] for row in rows]
        assert tried[:2] == [0.7, 1.3]
        assert tried[8] == 6.0
        assert [tried.count(value) for value in (0.7, 1.3, 6.0)] == [1, 1, 1]

    def test_a_driver_that_dies_as_it_takes_trials_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = run_all(open_ledger(tmp_path / "study")).ledger.rows()
        wider = raw_space(parameters={WEIGHT: {"log_uniform": [0.001, 50]}})
        add, left = optuna.Study.add_trial, [5]

        def dying(study: optuna.Study, trial: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            add(study, trial)

        with monkeypatch.context() as patch:
            patch.setattr(optuna.Study, "add_trial", dying)
            with pytest.raises(KeyboardInterrupt):
                open_ledger(tmp_path / "study", wider)
        assert Ledger.open(tmp_path / "study").rows() == before  # the last complete generation
        assert open_ledger(tmp_path / "study", wider).rows() == before


class TestWarmStart:
    def test_the_same_data_and_base(self, tmp_path: Path) -> None:
        """Trials of another study are observations; they are neither counted nor listed, and come in once."""
        earlier = run_all(open_ledger(tmp_path / "first")).ledger
        ledger = open_ledger(tmp_path / "second", raw_space(parameters={WEIGHT: {"log_uniform": [0.01, 50]}}))
        for _ in range(2):
            warm_start(ledger, [earlier.out], INPUTS)
        known = [trial for trial in ledger.study.get_trials() if "imported" in trial.user_attrs]
        assert [trial.params for trial in known] == [
            trial.params for trial in earlier.trials(TrialState.COMPLETE, TrialState.PRUNED)
        ]
        assert ledger.rows() == ()
        run_all(ledger)
        assert len(ledger.rows()) == 8

    def test_other_data(self, tmp_path: Path) -> None:
        """Errors on other data mean something else: the best configurations are tried first, no more."""
        earlier = run_all(open_ledger(tmp_path / "first")).ledger
        ledger = open_ledger(tmp_path / "second")
        warm_start(ledger, [earlier.out], {"store": "another"})
        conductor = Conductor(ledger)
        first = conductor.next()
        best = earlier.summary(1).best
        assert first is not None and best is not None
        assert conductor.active[first.number].values == best.parameters
        waiting = ledger.study.get_trials(states=(TrialState.WAITING,))
        assert len(waiting) == 4
        assert not any("imported" in trial.user_attrs for trial in ledger.study.get_trials())

    def test_another_metric(self, tmp_path: Path) -> None:
        run_all(open_ledger(tmp_path / "first"))
        ledger = open_ledger(tmp_path / "second", raw_space(objective={"metric": "valid_3d_mae"}))
        with pytest.raises(InputError, match="went by valid_mae"):
            warm_start(ledger, [tmp_path / "first"], INPUTS)

    def test_itself(self, tmp_path: Path) -> None:
        ledger = run_all(open_ledger(tmp_path / "first")).ledger
        with pytest.raises(InputError, match="the study itself"):
            warm_start(ledger, [tmp_path / "first"], INPUTS)
