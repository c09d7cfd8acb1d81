"""What a search decides, and what the ledger keeps of it: without Ray and without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.pruners import SuccessiveHalvingPruner
from optuna.trial import TrialState

from moldistill.core.errors import RunError
from moldistill.search.conductor import Conductor
from moldistill.search.disk import Keeper
from moldistill.search.ledger import DriverLostError, Ledger
from moldistill.search.parse import load_space
from moldistill.search.pruners import RUNG, SeededHyperband, rung_values, rungs
from moldistill.search.space import ObjectiveSettings, SchedulerSettings
from moldistill.search.study import TrialRow, front
from studies import EPOCHS, WEIGHT, curve, open_ledger, raw_space, run_all, train


class TestEnds:
    """How trials end, and what the storage says of it."""

    def test_a_whole_study(self, tmp_path: Path) -> None:
        conductor = run_all(open_ledger(tmp_path / "study"))
        rows = conductor.ledger.rows()
        assert len(rows) == 8
        assert conductor.next() is None
        assert {row.state for row in rows} == {"complete", "pruned"}
        for row, trial in zip(rows, conductor.ledger.trials(), strict=True):
            assert sorted(trial.intermediate_values) == list(range(1, row.epochs + 1))
            assert (row.epochs == EPOCHS) == (row.state == "complete")
            expected = curve(conductor.space.settings(row.parameters), row.epochs)
            assert row.value == pytest.approx(expected)

    def test_trials_stop_at_rungs(self, tmp_path: Path) -> None:
        conductor = run_all(open_ledger(tmp_path / "study", raw_space(budget={"trials": 20})))
        assert rungs(conductor.space) == (2, 4, 8)
        assert {row.epochs for row in conductor.ledger.rows() if row.state == "pruned"} <= {2, 4, 8}

    @pytest.mark.parametrize(("told", "state"), [("penalty", TrialState.COMPLETE), ("failed", TrialState.FAIL)])
    def test_divergence(self, tmp_path: Path, told: str, state: TrialState) -> None:
        """The sampler may hear of a penalty; the ledger says that the trial has failed, either way."""
        ledger = open_ledger(tmp_path / "study", raw_space(failures={"told": told}))
        conductor = Conductor(ledger, penalty=lambda: 0.7)
        proposal = conductor.next()
        assert proposal is not None
        conductor.end(proposal.number, "diverged", {"reason": "train_loss is nan"})
        trial, row = ledger.trials()[0], ledger.rows()[0]
        assert trial.state is state
        assert trial.values == ([0.7] if told == "penalty" else None)
        assert (row.state, row.value, row.reason) == ("failed", None, "train_loss is nan")
        assert ledger.summary(1).best is None

    def test_attempts_and_time_are_kept(self, tmp_path: Path) -> None:
        ledger = open_ledger(tmp_path / "study")
        clock = iter(range(0, 10_000, 10))
        conductor = Conductor(ledger, now=lambda: float(next(clock)))
        proposal = conductor.next()
        assert proposal is not None
        conductor.end(proposal.number, "failed", {"reason": "disk", "attempts": [{"reason": "disk"}]})
        row = ledger.rows()[0]
        assert row.attempts == ({"reason": "disk"},)
        assert row.seconds > 0

    def test_memory_is_remembered(self, tmp_path: Path) -> None:
        """What needs no less memory than a trial that had too little is not tried."""
        raw = raw_space(parameters={"model.width": {"choice": [32, 64, 128]}}, sampler={"name": "random"})
        ledger = open_ledger(tmp_path / "study", raw)
        conductor = Conductor(ledger)
        while (proposal := conductor.next()) is not None:
            if proposal.settings.model.width >= 64:
                conductor.end(proposal.number, "memory", {"reason": "out of memory"})
            else:
                train(conductor, proposal)
        widths = [row.parameters["model.width"] for row in ledger.rows() if row.state == "failed"]
        assert widths in ([64], [128, 64])
        assert len(ledger.rows()) == 8
        refused = [trial for trial in ledger.study.get_trials() if "refused" in trial.user_attrs]
        assert refused
        assert all("memory" in trial.user_attrs["refused"] for trial in refused)
        again = Conductor(open_ledger(tmp_path / "study", raw | {"budget": {"trials": 12}}))  # known after a restart
        again.adopt()
        while (proposal := again.next()) is not None:
            assert proposal.settings.model.width == 32
            train(again, proposal)

    def test_nothing_can_be_trained(self, tmp_path: Path) -> None:
        raw = raw_space(parameters={"model.width": {"choice": [60, 96]}, "model.heads": {"choice": [7, 11]}})
        conductor = Conductor(open_ledger(tmp_path / "study", raw))
        assert conductor.next() is None
        assert isinstance(conductor.failure, RunError)
        assert "100 configurations in a row" in conductor.failure.what
        assert conductor.ledger.trials() == []


class TestBudget:
    def test_hours(self, tmp_path: Path) -> None:
        """When they are over, trials are stopped at their next report and none begins; with more, the study goes on."""
        time = [0.0]
        raw = raw_space(budget={"hours": 1}, scheduler={"name": "none"})
        conductor = Conductor(open_ledger(tmp_path / "study", raw), now=lambda: time[0])
        first = conductor.next()
        assert first is not None
        assert train(conductor, first) == "complete"
        second = conductor.next()
        assert second is not None
        assert train(conductor, second, until=3) == "left"
        time[0] = 3601.0
        assert train(conductor, second) == "stopped"
        assert conductor.next() is None
        row = conductor.ledger.rows()[1]
        assert (row.state, row.epochs, row.reason) == ("pruned", 4, "the budget of 1 hours was over")
        assert conductor.ledger.spent()[0] == pytest.approx(3601)
        again = Conductor(open_ledger(tmp_path / "study", raw), now=lambda: time[0])
        assert again.next() is None  # what an earlier driver spent counts
        more = Conductor(open_ledger(tmp_path / "study", raw | {"budget": {"hours": 2}}), now=lambda: time[0])
        assert more.next() is not None

    def test_gpu_hours(self, tmp_path: Path) -> None:
        time = [0.0]
        raw = raw_space(budget={"gpu_hours": 0.5}, resources={"gpus": 0.5}, scheduler={"name": "none"})
        conductor = Conductor(open_ledger(tmp_path / "study", raw), now=lambda: time[0])
        for _ in range(2):  # two at once, half a GPU each
            assert conductor.next() is not None
        time[0] = 1799.0
        assert conductor.spending.over() is None
        time[0] = 1801.0
        assert conductor.spending.over() == "the budget of 0.5 GPU-hours was over"
        assert conductor.next() is None

    def test_trials(self, tmp_path: Path) -> None:
        conductor = Conductor(open_ledger(tmp_path / "study", raw_space(budget={"trials": 2})))
        assert conductor.left == 2
        assert conductor.next() is not None
        assert conductor.left == 1
        assert conductor.next() is not None
        assert conductor.next() is None


class TestTakingOver:
    def test_the_one_before_may_not_write(self, tmp_path: Path) -> None:
        first = Conductor(open_ledger(tmp_path / "study"))
        proposal = first.next()
        assert proposal is not None
        second = Conductor(open_ledger(tmp_path / "study"))
        assert second.adopt() == (0, 1)
        with pytest.raises(DriverLostError, match="another search has taken over"):
            first.end(proposal.number, "failed", {"reason": "late"})
        with pytest.raises(DriverLostError):
            first.next()
        assert second.ledger.rows() == ()

    def test_orphans_go_on_under_their_numbers(self, tmp_path: Path) -> None:
        """One half done, one done and not told, one whose last epoch is in its folder only, one asked for."""
        raw = raw_space(scheduler={"name": "none"}, budget={"trials": 6})
        dead = Conductor(open_ledger(tmp_path / "study", raw))
        half, whole, ahead = (dead.next() for _ in range(3))
        assert half is not None and whole is not None and ahead is not None
        assert train(dead, half, until=4) == "left"
        dead.ledger.driver = -1
        with pytest.raises(DriverLostError):  # dies as it tells of the end
            train(dead, whole)
        dead.ledger.driver = 1
        assert train(dead, ahead, until=2) == "left"
        with (ahead.folder / "metrics.jsonl").open("a") as stream:
            stream.write(f'{{"epoch": 3, "valid_mae": {curve(ahead.settings, 3)}}}\n')
        dead.ledger.study.ask()
        conductor = Conductor(open_ledger(tmp_path / "study", raw))
        assert conductor.adopt() == (1, 3)
        while (proposal := conductor.next()) is not None:
            assert train(conductor, proposal) == "complete"
        rows = conductor.ledger.rows()
        assert [row.number for row in rows] == [0, 1, 2, 3, 4, 5]  # 3 was asked for, and begins now
        assert {row.state for row in rows} == {"complete"}
        for trial in conductor.ledger.trials():
            assert sorted(trial.intermediate_values) == list(range(1, EPOCHS + 1))
        states = {trial.state for trial in conductor.ledger.study.get_trials()}
        assert states <= {TrialState.COMPLETE, TrialState.FAIL}

    def test_a_decision_outlives_its_driver(self, tmp_path: Path) -> None:
        raw = raw_space(sampler={"name": "random"}, budget={"trials": 12})
        dead = Conductor(open_ledger(tmp_path / "study", raw))
        while (proposal := dead.next()) is not None:
            trial = dead.active[proposal.number].trial
            for epoch in range(1, EPOCHS + 1):
                metrics = {"epoch": epoch, "valid_mae": curve(proposal.settings, epoch)}
                if not dead.report(proposal.number, metrics):
                    break
            else:
                dead.end(proposal.number, "complete", metrics)
                continue
            break
        assert "stopped_at" in trial.user_attrs
        conductor = Conductor(open_ledger(tmp_path / "study", raw))
        assert conductor.adopt() == (0, 1)
        following = conductor.next()
        assert following is not None and following.number != trial.number
        assert conductor.ledger.rows()[-1].state == "pruned"


class TestObjectives:
    def test_two(self, tmp_path: Path) -> None:
        raw = raw_space(objective=[{"metric": "valid_mae"}, {"metric": "cpu_seconds"}], scheduler={"name": "none"})
        conductor = run_all(open_ledger(tmp_path / "study", raw))
        summary = conductor.ledger.summary(1)
        assert all(len(row.values) == 2 and row.epochs == EPOCHS for row in summary.trials)
        assert summary.best is not None and summary.best.number in summary.front

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
    def test_front(self, points: list[tuple[int, int]]) -> None:
        rows = tuple(
            TrialRow(number, "complete", float(a), {}, 1, "", values=(float(a), float(b)))
            for number, (a, b) in enumerate(points)
        )
        objectives = (ObjectiveSettings("valid_mae"), ObjectiveSettings("parameters"))
        study = optuna.create_study(directions=["minimize", "minimize"])
        for a, b in points:
            study.add_trial(optuna.trial.create_trial(values=[a, b]))
        assert set(front(rows, objectives)) == {trial.number for trial in study.best_trials}


class TestPruners:
    @settings(max_examples=30, deadline=None)
    @given(
        st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=30), min_size=1, max_size=6),
        st.integers(1, 4),
        st.integers(2, 4),
    )
    def test_rung_values_are_those_that_optuna_keeps(
        self, curves: list[list[float]], grace: int, reduction: int
    ) -> None:
        raw = raw_space(scheduler={"name": "asha", "grace": grace, "reduction": reduction})
        raw["fixed"] = {"training.epochs": 40}
        space = load_space(raw)
        pruner = SuccessiveHalvingPruner(min_resource=grace, reduction_factor=reduction)
        study = optuna.create_study(pruner=pruner)
        for values in curves:
            trial = study.ask()
            for epoch, value in enumerate(values, 1):
                trial.report(value, epoch)
                if trial.should_prune():
                    break
            stored = study.get_trials()[-1]
            kept = {key: value for key, value in stored.system_attrs.items() if key.startswith(RUNG)}
            assert rung_values(space, trial.number, stored.intermediate_values) == kept

    def test_brackets(self) -> None:
        """Every bracket has its share of the trials, whatever the study is called."""
        pruner = SeededHyperband(SchedulerSettings("hyperband", grace=1, reduction=3), 27, seed=0)
        found = [pruner.bracket(number) for number in range(2000)]
        shares = [found.count(bracket) / 2000 for bracket in range(4)]
        expected = [share / sum(pruner._trial_allocation_budgets) for share in pruner._trial_allocation_budgets]
        assert shares == pytest.approx(expected, abs=0.04)
        other = SeededHyperband(SchedulerSettings("hyperband", grace=1, reduction=3), 27, seed=1)
        assert [other.bracket(number) for number in range(100)] != found[:100]

    @pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
    def test_each_stops_bad_trials(self, tmp_path: Path, name: str) -> None:
        raw = raw_space(scheduler={"name": name, "grace": 1, "reduction": 3}, budget={"trials": 30})
        conductor = run_all(open_ledger(tmp_path / "study", raw))
        rows = conductor.ledger.rows()
        stopped = [row for row in rows if row.state == "pruned"]
        assert len(stopped) > 5
        assert {row.epochs for row in stopped} <= set(rungs(conductor.space))
        best = min(rows, key=lambda row: abs(row.parameters[WEIGHT] - 1))
        assert best.state == "complete"


def test_disk(tmp_path: Path) -> None:
    """Checkpoints of the best trials stay, and of those that run."""
    ledger = open_ledger(tmp_path / "study", raw_space(keep=3, scheduler={"name": "none"}))
    conductor = Conductor(ledger)
    for _ in range(7):
        proposal = conductor.next()
        assert proposal is not None
        (proposal.folder / "checkpoint").mkdir(parents=True)
        (proposal.folder / "checkpoint" / "step-1.pt").write_bytes(b"12345")
        train(conductor, proposal)
    last = conductor.next()
    assert last is not None
    (last.folder / "checkpoint").mkdir(parents=True)
    held = {folder.parent.name for folder in (tmp_path / "study" / "trials").glob("*/checkpoint")}
    best = sorted(ledger.rows(), key=lambda row: row.value or 9.0)[:3]
    assert held == {Path(row.folder).name for row in best} | {last.folder.name}
    assert Keeper(ledger, keep=1).tidy() == 10


def test_the_same_seed(tmp_path: Path) -> None:
    """One at a time: the same trials; and also where the driver is another one for every trial."""
    raw = raw_space(budget={"trials": 10}, sampler={"startup_trials": 3, "seed": 4})
    first, second = (run_all(open_ledger(tmp_path / name / "study", raw)).ledger.rows() for name in "ab")

    def told(rows: tuple[Any, ...]) -> list[Any]:
        return [(row.parameters, row.state, row.epochs, row.value) for row in rows]

    assert told(first) == told(second)


def test_a_study_is_read_while_it_is_written(tmp_path: Path) -> None:
    conductor = Conductor(open_ledger(tmp_path / "study"))
    proposal = conductor.next()
    assert proposal is not None
    reader = Ledger.open(tmp_path / "study")
    assert [row.number for row in reader.running()] == [0]
    train(conductor, proposal)
    assert [row.state for row in reader.rows()] == ["complete"]
