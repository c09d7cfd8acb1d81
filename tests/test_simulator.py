"""The simulator, and what is proved in it: nothing is lost when drivers die, the same seed gives the same trials, and
early stopping pays.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import FrozenTrial, TrialState

import curves
from moldistill.core.artifacts import MANIFEST, read_manifest
from moldistill.search.parse import load_space
from moldistill.search.pruners import RUNG, rung_values, rungs
from moldistill.search.simulator import DIED, Simulated, Simulator
from moldistill.search.study import open_storage
from moldistill.search.watched_storage import Killed
from moldistill.trial.folder import read_metrics
from searches import epochs_to_best
from studies import EPOCHS, WEIGHT, curve, raw_space

ASHA = {"name": "asha", "grace": 1, "reduction": 2}


def simulator(out: Path, raw: dict[str, Any] | None = None, **keywords: Any) -> Simulator:
    folder = out / "study"
    folder.mkdir(exist_ok=True)
    return Simulator(load_space(raw or raw_space()), curve, out=folder, **keywords)


def kept(study: Simulator) -> list[FrozenTrial]:
    """The study's own trials, as the storage has them."""
    return study.conductor.ledger.trials()


def said(study: Simulator) -> list[tuple[Any, ...]]:
    """All that a study came to, trial by trial."""
    return [
        (trial.number, trial.state, trial.params, trial.intermediate_values, trial.values, rung_attributes(trial))
        for trial in kept(study)
    ]


def rung_attributes(trial: FrozenTrial) -> dict[str, float]:
    return {key: value for key, value in trial.system_attrs.items() if key.startswith(RUNG)}


class TestClock:
    def test_one_at_a_time(self, tmp_path: Path) -> None:
        study = simulator(tmp_path, seconds=lambda settings: 7.0, concurrent=1)
        found = study.run()
        assert found.seconds == 7.0 * found.epochs
        rows = study.conductor.ledger.rows()
        assert [row.epochs for row in rows] == [ending.epoch for ending in found.endings]
        assert [row.value for row in rows] == [ending.value for ending in found.endings]
        assert sum(row.epochs for row in rows) == found.epochs
        assert sum(row.seconds for row in rows) == pytest.approx(found.seconds)
        assert found.best[-1].value == min(row.value for row in rows if row.state == "complete" and row.value)

    @pytest.mark.parametrize("concurrent", [1, 3, 4, 20])
    def test_side_by_side(self, tmp_path: Path, concurrent: int) -> None:
        """Equal trials that nobody stops take turns: as long as the fullest place has trials."""
        raw = raw_space(scheduler={"name": "none"}, budget={"trials": 10})
        found = simulator(tmp_path, raw, concurrent=concurrent).run()
        assert found.states == {"complete": 10}
        assert found.seconds == math.ceil(10 / concurrent) * EPOCHS

    def test_hours(self, tmp_path: Path) -> None:
        """Twenty trials of nine minutes each fit in an hour and a half, two at a time."""
        raw = raw_space(scheduler={"name": "none"}, budget={"hours": 1.5})
        found = simulator(tmp_path, raw, seconds=lambda settings: 60.0, concurrent=2).run()
        assert found.states == {"complete": 20}
        assert found.seconds == 5400

    def test_thousands_of_times_faster(self, tmp_path: Path) -> None:
        since = time.perf_counter()
        found = simulator(tmp_path, raw_space(budget={"trials": 64}), seconds=lambda settings: 60.0).run()
        assert found.seconds / (time.perf_counter() - since) > 1000

    def test_until(self, tmp_path: Path) -> None:
        found = simulator(tmp_path, until=lambda ending: ending.number == 2, concurrent=1).run()
        assert [ending.number for ending in found.endings] == [0, 1, 2]


class TestFaults:
    def test_a_trial_that_dies_goes_on_from_its_checkpoint(self, tmp_path: Path) -> None:
        def faults(number: int, epoch: int, attempt: int) -> Any:
            return "died" if (number, epoch, attempt) == (0, 6, 1) else None

        whole = simulator(tmp_path, concurrent=1)
        undisturbed = whole.run()
        (tmp_path / "other").mkdir()
        study = simulator(tmp_path / "other", concurrent=1, faults=faults, checkpoint_every=2)
        found = study.run()
        assert found.endings[0].outcome == "complete"
        assert found.epochs == undisturbed.epochs + 2  # the epoch under way, and the one after the checkpoint
        assert [each[:4] for each in said(study)] == [each[:4] for each in said(whole)]
        assert study.conductor.ledger.rows()[0].attempts == ({"reason": DIED},)

    def test_retries_are_bounded(self, tmp_path: Path) -> None:
        raw = raw_space(failures={"retries": 2}, budget={"trials": 3})
        attempts: list[int] = []

        def faults(number: int, epoch: int, attempt: int) -> Any:
            if number != 1 or epoch != 1:
                return None
            attempts.append(attempt)
            return "died"

        study = simulator(tmp_path, raw, faults=faults, concurrent=1)
        assert study.run().endings[1].outcome == "failed"
        assert attempts == [1, 2, 3]
        row = study.conductor.ledger.rows()[1]
        assert (row.state, row.reason, len(row.attempts)) == ("failed", DIED, 2)

    def test_divergence_and_memory(self, tmp_path: Path) -> None:
        def faults(number: int, epoch: int, attempt: int) -> Any:
            return {(0, 2): "diverged", (2, 1): "memory"}.get((number, epoch))

        raw = raw_space(
            parameters={"model.depth": {"int": [1, 8]}},
            starting_points=[{"model.depth": depth} for depth in (2, 3, 5)],
            budget={"trials": 12},
            scheduler={"name": "none"},
        )
        raw["base"] = {"role": "student"}
        study = Simulator(
            load_space(raw), lambda settings, epoch: 0.3 / epoch, faults=faults, penalty=lambda: 0.9, concurrent=1
        )
        found = study.run()
        assert found.states == {"diverged": 1, "memory": 1, "complete": 10}
        assert [trial.values for trial in kept(study)][:3:2] == [[0.9], [0.9]]
        assert all(ending.settings.model.depth < 5 for ending in found.endings[3:])

    def test_a_search_that_gives_up_says_why(self, tmp_path: Path) -> None:
        raw = raw_space(parameters={"model.width": {"choice": [60, 96]}, "model.heads": {"choice": [7, 11]}})
        found = simulator(tmp_path, raw).run()
        assert found.endings == ()
        assert "100 configurations in a row" in str(found.failure)


SCHEDULERS = {
    "asha": ASHA,
    "hyperband": {"name": "hyperband", "grace": 1, "reduction": 2},
    "median": {"name": "median", "grace": 1, "startup_trials": 1},
}


def check_nothing_is_lost(study: Simulator, found: Simulated) -> None:
    """What must hold of a study, however often its drivers and trials died."""
    space, trials = study.space, kept(study)
    assert found.failure is None
    assert len(trials) == space.most_trials
    assert {trial.state for trial in study.conductor.ledger.study.get_trials()} <= {
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
    }
    assert len({trial.params[WEIGHT] for trial in trials}) == len(trials)  # none began twice under two numbers
    for trial in trials:
        folder = study.conductor.ledger.folder(trial)
        epochs = max(trial.intermediate_values, default=0)
        settings = space.settings(trial.user_attrs["parameters"])
        undisturbed = {epoch: curve(settings, epoch) for epoch in range(1, epochs + 1)}
        assert trial.intermediate_values == undisturbed
        recorded = {record["epoch"]: record["valid_mae"] for record in read_metrics(folder)}
        assert recorded == {epoch: undisturbed[epoch] for epoch in recorded}
        # What lay beyond a checkpoint is trained again, unless the trial is stopped before.
        assert len(recorded) == epochs or (trial.state is TrialState.PRUNED and len(recorded) == epochs - 1)
        assert study.written[trial.number, MANIFEST] == (trial.state is TrialState.COMPLETE)
        if trial.state is TrialState.COMPLETE:
            assert epochs == EPOCHS and trial.value == undisturbed[EPOCHS]
            assert read_manifest(folder, "run").facts["metrics"]["epoch"] == EPOCHS
        elif trial.state is TrialState.PRUNED:
            assert epochs in rungs(space)
        kept_there = rung_attributes(trial)
        assert kept_there == {key: rung_values(space, trial.number, undisturbed)[key] for key in kept_there}


class TestKills:
    @pytest.mark.parametrize("scheduler", SCHEDULERS)
    def test_at_every_write(self, tmp_path: Path, scheduler: str) -> None:
        """One at a time, a study whose driver dies at any write comes to what an undisturbed one does, in all."""
        raw = raw_space(
            scheduler=SCHEDULERS[scheduler], budget={"trials": 4}, starting_points=[{WEIGHT: 1.2}, {WEIGHT: 2.5}]
        )
        raw["fixed"] = {"training.epochs": 5}
        whole = simulator(tmp_path, raw, concurrent=1, kills=[])
        whole.run()
        assert {trial.state for trial in kept(whole)} == {TrialState.COMPLETE, TrialState.PRUNED}
        assert [trial.params[WEIGHT] for trial in kept(whole)][:2] == [1.2, 2.5]
        for write in itertools.count():
            (tmp_path / str(write)).mkdir()
            study = simulator(tmp_path / str(write), raw, concurrent=1, kills=[write])
            if study.run().drivers == 1:
                break
            assert said(study) == said(whole), write
        assert write > 60

    @pytest.mark.slow
    def test_a_thousand(self, tmp_path: Path) -> None:
        """Drivers die at 1,000 random writes, several trials under way, which die, too: nothing is lost or twice."""
        random, killed = np.random.default_rng(0), 0

        def fates() -> Iterator[int]:
            while True:
                yield int(random.integers(1, 40))

        for turn in itertools.count():
            (tmp_path / str(turn)).mkdir()
            raw = raw_space(
                scheduler=SCHEDULERS[["asha", "hyperband"][turn % 2]],
                budget={"trials": 30},
                sampler={"name": "tpe", "seed": turn},
                failures={"retries": 10},
            )
            died = np.random.default_rng(turn).random((200, EPOCHS + 1)) < 0.05
            study = simulator(
                tmp_path / str(turn),
                raw,
                concurrent=3,
                latency=0.2,
                checkpoint_every=2,
                kills=fates(),
                faults=lambda number, epoch, attempt, died=died: (
                    "died" if attempt == 1 and died[number, epoch] else None
                ),
            )
            found = study.run()
            check_nothing_is_lost(study, found)
            killed += found.drivers - 1
            if killed >= 1000:
                break

    def test_on_the_journal(self, tmp_path: Path) -> None:
        """With the storage that searches have, which each driver reads anew."""
        raw = raw_space(scheduler=ASHA, budget={"trials": 5})
        for write in range(3, 60, 8):
            (tmp_path / str(write) / "study").mkdir(parents=True)
            storage = open_storage(tmp_path / str(write) / "study", "journal")
            study = simulator(tmp_path / str(write), raw, concurrent=2, kills=[write] * 4, storage=storage)
            found = study.run()
            assert found.drivers > 1
            check_nothing_is_lost(study, found)

    def test_a_kill_is_no_exception(self) -> None:
        assert not issubclass(Killed, Exception)


class TestTheSameSeed:
    @pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "nsgaii"])
    def test_the_same_trials(self, tmp_path: Path, sampler: str) -> None:
        """One at a time, the same trials: at once, or in two searches of which the second goes on."""

        def raw(trials: int, seed: int = 3) -> dict[str, Any]:
            parameters = {WEIGHT: {"log_uniform": [0.05, 5]}, "distill.atom.weight": {"log_uniform": [0.05, 5]}}
            return raw_space(
                parameters=parameters,
                budget={"trials": trials},
                sampler={"name": sampler, "seed": seed},
                scheduler=ASHA,
            )

        studies = {}
        for name, seed in (("once", 3), ("again", 3), ("other", 4)):
            (tmp_path / name).mkdir()
            studies[name] = simulator(tmp_path / name, raw(14, seed), concurrent=1)
            studies[name].run()
        assert said(studies["once"]) == said(studies["again"])
        assert said(studies["once"]) != said(studies["other"])
        first = simulator(tmp_path, raw(6), concurrent=1)
        first.run()
        second = simulator(tmp_path, raw(14), concurrent=1, storage=first.storage)
        second.run()
        assert said(second) == said(studies["once"])


class TestFrozenCurves:
    def test_the_file_is_what_its_script_makes(self) -> None:
        with np.load(curves.FILE) as stored:
            for name, made in curves.make().items():
                np.testing.assert_array_equal(stored[name], made)
        assert curves.FILE.stat().st_size < 200_000

    def test_one_in_a_hundred_is_best(self) -> None:
        frozen = curves.Frozen()
        assert (frozen.errors[:, -1] <= frozen.best).mean() == 0.01
        others = [curves.curve(row, int(scheme), seed=1)[-1] for row, scheme in zip(frozen.units, frozen.schemes)]  # noqa: B905
        assert np.mean(np.array(others) <= frozen.best) == pytest.approx(0.01, abs=0.005)

    def test_curves_cross_and_fall(self) -> None:
        errors = curves.Frozen().errors
        order = [np.argsort(np.argsort(errors[:, epoch - 1])) for epoch in (1, 3, 9, 27)]
        related = [float(np.corrcoef(each, order[-1])[0, 1]) for each in order]
        assert related == sorted(related) and related[0] < 0.5  # an early epoch tells little, a late one much
        assert (errors[:, -1] < errors[:, 0]).all()

    def test_settings_find_their_curve(self) -> None:
        frozen, space = curves.Frozen(), load_space(curves.raw_space())
        names = [*curves.RANGES]
        for row in (0, 7, 1999):
            values = {}
            for name, part in zip(names, frozen.units[row] / 65535, strict=True):
                low, high, log = curves.RANGES[name]
                values[name] = low * (high / low) ** part if log else low + (high - low) * part
            scheme = curves.SCHEMES[int(frozen.schemes[row])]
            values["model.depth"] = round(values["model.depth"])
            if scheme != "power":
                del values["distill.atom.power"]
            settings = space.settings(values | {"distill.atom.normalization": scheme})
            assert frozen.curve(settings).tolist() == frozen.errors[row].tolist()


@pytest.mark.slow
def test_early_stopping_and_a_model_pay() -> None:
    """A part of `tests/benchmarks/search_simulated.py`: there the bar is 1/5 over 50 seeds."""
    frozen = curves.Frozen()
    modelled = [epochs_to_best(frozen, "tpe", "asha", seed, trials=150) for seed in range(5)]
    random = [epochs_to_best(frozen, "random", "none", seed) for seed in range(15)]
    assert statistics.median(modelled) < statistics.median(random) / 2
