"""`explain`: words for every kind of space, costs from timed steps, concurrency node by node, and the preflight."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from typer.testing import CliRunner

from moldistill.cli import app
from moldistill.core.errors import InputError, RunError
from moldistill.search import preflight as preflight_module
from moldistill.search.capacity import Capacity, concurrency
from moldistill.search.cost import MadeUp, Share, Timed, foreseen_share, study_cost, time_configurations
from moldistill.search.explain import explain, explain_space
from moldistill.search.parse import load_space, space_names
from moldistill.search.preflight import EmptyRun, check_ends, check_reports, figures, preflight
from moldistill.search.simulator import Simulator
from moldistill.search.space import ResourceSettings
from moldistill.trial.spec import TrialSpec
from studies import WEIGHT, curve, open_ledger, raw_space, run_all

# Ray's workers cannot import the tests: their functions travel by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

DEPTH = "model.depth"


class TestWords:
    @pytest.mark.parametrize(
        ("sampler", "words"),
        [
            ({"name": "tpe", "startup_trials": 7}, "TPE after 7 random trials, each parameter modelled alone"),
            ({"name": "tpe", "multivariate": True}, "parameters modelled together"),
            ({"name": "random", "seed": 5}, "random; seed 5"),
            ({"name": "cmaes", "population": 8}, "CMA-ES after 4 random trials, generations of 8"),
            ({"name": "gp"}, "a Gaussian process after 4 random trials"),
            ({"name": "nsgaii"}, "NSGA-II, generations of 50"),
        ],
    )
    def test_samplers(self, sampler: dict[str, Any], words: str) -> None:
        parameters = {WEIGHT: {"log_uniform": [0.05, 5]}, "distill.atom.weight": {"log_uniform": [0.05, 5]}}
        raw = raw_space(sampler=sampler, scheduler={"name": "none"}, parameters=parameters)
        assert words in explain(raw | {"budget": {"trials": 60}}).text()

    def test_grid(self) -> None:
        raw = raw_space(sampler={"name": "grid"}, parameters={DEPTH: {"choice": [1, 2, 3]}})
        explanation = explain(raw)
        assert explanation.trials == 3
        assert "a grid of 3 points" in explanation.text()

    @pytest.mark.parametrize(
        ("scheduler", "words"),
        [
            ({"name": "asha", "grace": 2, "reduction": 2}, "ASHA, at epochs 2, 4, 8: 1 in 2 goes on"),
            ({"name": "hyperband", "grace": 1, "reduction": 3}, "HyperBand, at epochs 1, 3"),
            (
                {"name": "median", "grace": 3, "startup_trials": 5},
                "from epoch 3 on, what is worse than the median of at",
            ),
            ({"name": "none"}, "nobody stops trials early"),
        ],
    )
    def test_schedulers(self, scheduler: dict[str, Any], words: str) -> None:
        assert words in explain(raw_space(scheduler=scheduler)).text()

    def test_constraints_starting_points_and_objectives(self) -> None:
        raw = raw_space(
            constraints=["distill.graph.weight < 4"],
            starting_points=[{WEIGHT: 1.25}],
            objective=[{"metric": "valid_mae"}, {"metric": "parameters"}],
            scheduler={"name": "none"},
        )
        text = explain(raw).text()
        assert "constraints:\n  distill.graph.weight < 4" in text
        assert "tried first:\n  1. distill.graph.weight=1.25" in text
        assert "minimize valid_mae (eV) and minimize parameters" in text

    @pytest.mark.parametrize(
        ("budget", "words"),
        [
            ({"trials": 5}, "budget:   5 trials"),
            ({"hours": 2.5}, "budget:   2.5 hours"),
            ({"trials": 5, "hours": 8}, "budget:   5 trials or 8 hours, whichever ends first"),
        ],
    )
    def test_budgets(self, budget: dict[str, Any], words: str) -> None:
        explanation = explain(raw_space(budget=budget))
        assert words in explanation.text()
        assert (explanation.total_epochs is None) == ("trials" not in budget)

    @pytest.mark.parametrize("name", space_names())
    def test_shipped_spaces_say_what_early_stopping_saves(self, name: str) -> None:
        explanation = explain(name)
        assert 0 < explanation.share.low <= explanation.share.mean <= explanation.share.high <= 1
        assert explanation.share.mean < 0.95
        assert "with early stopping about" in explanation.text()


class TestConcurrency:
    def test_node_by_node(self) -> None:
        """Two nodes of three CPUs hold two workers of two CPUs, not three."""
        two = Capacity(6, 0, ((3, 0), (3, 0)))
        assert concurrency(ResourceSettings(cpus=2, concurrent=9), two, "s") == 2
        assert concurrency(ResourceSettings(cpus=2, workers=2, concurrent=9), two, "s") == 1
        with pytest.raises(InputError, match="more than the cluster"):
            concurrency(ResourceSettings(cpus=4), two, "s")

    def test_shares_of_gpus_lie_on_one_gpu(self) -> None:
        """Two GPUs hold four trials of 0.4 GPUs, not five."""
        pair = Capacity(16, 2, ((16, 2),))
        assert concurrency(ResourceSettings(1, 0.4, concurrent=9), pair, "s") == 4
        assert concurrency(ResourceSettings(1, 1, concurrent=9), pair, "s") == 2
        assert concurrency(ResourceSettings(1, 1, workers=2, concurrent=9), pair, "s") == 1

    def test_workers_that_do_not_fit(self) -> None:
        with pytest.raises(InputError, match="more than the cluster") as caught:
            concurrency(ResourceSettings(cpus=1, workers=3), Capacity(2, 0), "s")
        assert "3 workers" in str(caught.value.got)

    def test_less_than_asked_for_is_noted(self) -> None:
        explanation = explain(raw_space(resources={"concurrent": 1000}))
        assert any(note.startswith("1000 trials at once were asked for") for note in explanation.notes)


class TestShare:
    def test_nobody_stops(self) -> None:
        assert foreseen_share(load_space(raw_space(scheduler={"name": "none"})), 20, 2) == Share(1.0, 1.0, 1.0)

    def test_a_harder_scheduler_leaves_less(self) -> None:
        def share(**scheduler: Any) -> float:
            raw = raw_space(scheduler={"name": "asha", **scheduler}, fixed={"training.epochs": 27})
            return foreseen_share(load_space(raw), 60, 2).mean

        soft, hard = share(grace=9, reduction=2), share(grace=1, reduction=3)
        assert hard < 0.5 < soft < 1

    def test_made_up_curves(self) -> None:
        """The same every time, for each surface; better where their space is; falling."""
        space = load_space(raw_space())
        settings = space.settings({WEIGHT: 1.0})
        one, same, other = MadeUp(space, 0), MadeUp(space, 0), MadeUp(space, 1)
        values = [one(settings, epoch) for epoch in range(1, 10)]
        assert values == [same(settings, epoch) for epoch in range(1, 10)]
        assert values != [other(settings, epoch) for epoch in range(1, 10)]
        assert values[-1] < values[0]


def timed(step: float, epochs: int = 9, evaluation: float = 0.0) -> Timed:
    return Timed({}, step, evaluation, steps=100, epochs=epochs, evaluate_every=1)


class TestCost:
    def test_a_trial(self) -> None:
        assert timed(0.5, epochs=4, evaluation=3.0).seconds == 4 * 100 * 0.5 + 4 * 3
        assert Timed({}, 0.5, 3.0, 100, 5, 2).seconds == 5 * 50 + 3 * 3.0

    def test_a_study(self) -> None:
        """Eight trials of 2, 4 and 6 CPU-hours, two at once, a quarter of the epochs."""
        space = load_space(raw_space(scheduler={"name": "none"}))
        found = {index: timed(hours * 3600 / 900) for index, hours in enumerate((6, 2, 4))}
        cost = study_cost(space, found, 2, lambda trials: 0.25)
        assert cost.unit == "CPU"
        assert cost.per_trial == pytest.approx((2, 4, 6))
        assert cost.at_most == pytest.approx(8 * 4)
        assert cost.expected == pytest.approx(8 * 4 * 0.25)
        assert cost.wall == pytest.approx(8 * 4 * 0.25 / 2)
        assert (cost.trials, cost.by_time) == (8, False)

    def test_gpu_hours_are_so_many_trials(self) -> None:
        """A trial takes 2 h of half a GPU, of which early stopping leaves 60%: 8 GPU-hours are 13 trials."""
        raw = raw_space(budget={"gpu_hours": 8}, resources={"gpus": 0.5, "concurrent": 2})
        cost = study_cost(load_space(raw), {0: timed(2 * 3600 / 900)}, 2, lambda trials: 0.6)
        assert cost.unit == "GPU"
        assert cost.per_trial[1] == pytest.approx(1)
        assert (cost.trials, cost.by_time) == (13, True)

    def test_hours_and_trials_whichever_ends_first(self) -> None:
        raw = raw_space(budget={"trials": 50, "hours": 3})
        cost = study_cost(load_space(raw), {0: timed(3600 / 900)}, 2, lambda trials: 0.5)
        assert (cost.trials, cost.by_time) == (12, True)
        short = study_cost(
            load_space(raw_space(budget={"trials": 5, "hours": 3})), cost_of(3600), 2, lambda trials: 0.5
        )
        assert (short.trials, short.by_time) == (5, False)

    def test_fewer_trials_are_stopped_less(self) -> None:
        """Share and number of trials fit each other."""
        asked: list[int] = []

        def share(trials: int) -> float:
            asked.append(trials)
            return 0.2 if trials > 100 else 0.5

        raw = raw_space(budget={"hours": 10})
        cost = study_cost(load_space(raw), cost_of(3600), 1, share)
        assert cost.trials == 20
        assert asked[-1] == 20

    def test_what_does_not_train(self) -> None:
        broken = RunError("training diverged")
        cost = study_cost(load_space(raw_space()), {0: broken, 1: timed(1.0)}, 2, lambda trials: 1.0)
        assert cost.failed == ("training diverged",)
        with pytest.raises(RunError, match="no sampled configuration trains"):
            study_cost(load_space(raw_space()), {0: broken}, 2, lambda trials: 1.0)

    def test_real_steps(self, tiny_store: Path) -> None:
        """A student four times as wide takes longer, and an epoch has the steps of the store."""
        raw = raw_space(parameters={"model.width": {"choice": [16, 256]}}, base={"role": "student"})
        raw["fixed"] = {"training.epochs": 3, "training.batch_size": 16, DEPTH: 2}
        found = time_configurations(load_space(raw), tiny_store, [{"model.width": 16}, {"model.width": 256}])
        narrow, wide = found[0], found[1]
        assert isinstance(narrow, Timed) and isinstance(wide, Timed)
        assert 0 < narrow.step < wide.step
        assert (narrow.steps, narrow.epochs) == (3, 3)  # 41 molecules

    def test_without_targets(self, tiny_store: Path) -> None:
        with pytest.raises(InputError, match="no targets are named"):
            explain("smoke", store=tiny_store)

    def test_with_a_store(self, tiny_store: Path) -> None:
        raw = raw_space(parameters={"optimizer.learning_rate": {"log_uniform": [1e-4, 1e-2]}}, budget={"hours": 1})
        explanation = explain_space(load_space(raw), tiny_store)
        assert explanation.cost is not None
        assert len(explanation.cost.timed) == 5
        assert 0 < explanation.cost.expected < explanation.cost.at_most
        text = explanation.text()
        assert "an estimate" in text
        assert f"at this speed 1 hours are about {explanation.cost.trials} trials" in text


def cost_of(seconds: float) -> dict[int, Timed | RunError]:
    return {0: timed(seconds / 900)}


class TestPreflight:
    @pytest.mark.ray
    @pytest.mark.parametrize("scheduler", ["asha", "hyperband"])
    def test_reports_arrive(self, ray_cluster: None, scheduler: str) -> None:
        shown = preflight(load_space(raw_space(scheduler={"name": scheduler, "grace": 2})))
        states = [state for state, _ in shown.ends]
        assert states[0] == "complete"
        assert "pruned" in states
        assert shown.reports == sum(epoch for _, epoch in shown.ends)
        if scheduler == "asha":
            assert shown.ends == (("complete", 9), ("pruned", 2), ("pruned", 2))
            assert "2 of them were stopped, at epoch 2, as foreseen" in shown.text()

    @pytest.mark.ray
    def test_several_objectives(self, ray_cluster: None) -> None:
        raw = raw_space(objective=[{"metric": "valid_mae"}, {"metric": "cpu_seconds"}], scheduler={"name": "none"})
        assert preflight(load_space(raw)).ends == (("complete", 9),) * 3

    @pytest.mark.ray
    def test_lost_reports_are_found(self, ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
        """A runner that leaves epochs out stands for a Tune that drops them."""
        monkeypatch.setattr(preflight_module, "EmptyRun", LosesReports)
        with pytest.raises(RunError, match="other figures"):
            preflight(load_space(raw_space()))

    def test_other_ends_are_found(self, tmp_path: Path) -> None:
        ledger = run_all(open_ledger(tmp_path / "study")).ledger
        foreseen = Simulator(ledger.space, curve, concurrent=1).run()
        rows = ledger.rows()
        assert len(check_ends(rows, foreseen)) == 8
        with pytest.raises(RunError, match="did not end as the scheduler says"):
            check_ends((*rows[:-1], replace(rows[-1], epochs=rows[-1].epochs + 1)), foreseen)
        with pytest.raises(RunError, match="other figures"):
            check_reports(ledger, rows)  # of trials that followed other curves

    def test_the_runner_reports_every_epoch(self, tmp_path: Path) -> None:
        told: list[Any] = []
        settings = load_space(raw_space()).settings({WEIGHT: 1.0})
        EmptyRun(("valid_mae",))(TrialSpec(settings, tmp_path, tmp_path / "0002"), report=told.append)
        assert [state.epoch for state in told] == list(range(1, 10))
        assert told[3].metrics["valid_mae"] == figures(2, 4, ("valid_mae",))["valid_mae"]


class LosesReports(EmptyRun):
    """Reports every other epoch, and the last."""

    def __call__(self, spec: TrialSpec, *, report: Any) -> None:
        super().__call__(spec, report=lambda state: report(state) if state.epoch % 2 or state.epoch == 9 else None)


class TestCommand:
    def test_json(self, tmp_path: Path) -> None:
        done = CliRunner().invoke(app, ["explain", "loss_weights", "--json"])
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        assert told["rungs"] == [3, 9, 27]
        assert told["total_epochs"] == told["trials"] * told["epochs"]
        assert 0 < told["share"]["mean"] < 1
        assert told["cost"] is None and told["preflight"] is None

    @pytest.mark.ray
    def test_preflight(self, ray_cluster: None) -> None:
        done = CliRunner().invoke(app, ["explain", "smoke", "--preflight"])
        assert done.exit_code == 0, done.output
        assert done.stdout.splitlines()[-1].startswith("preflight: 3 empty trials went through Ray Tune")
