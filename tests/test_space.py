"""Search spaces: samples keep what the YAML says, through branches, storages and pickles."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray

from moldistill.core.config import dump_yaml, leaves, read_yaml
from moldistill.core.errors import InputError
from moldistill.core.settings import RunSettings
from moldistill.search.checks import check_space, unread
from moldistill.search.compile import DefineByRun, make_sampler, quiet_optuna, sample
from moldistill.search.explain import Capacity, concurrency, explain, rungs
from moldistill.search.parse import load_space, space_names
from moldistill.search.space import Choice, Range, ResourceSettings, SamplerSettings, walk
from spaces import POWER, SCHEME, WEIGHT, searched, space, weight


@pytest.mark.parametrize("name", ["smoke", "loss_weights", "normalization", "teacher"])
class TestShipped:
    def test_samples_lie_within_the_domains(self, name: str) -> None:
        loaded = load_space(name)
        domains: dict[str, list[Range | Choice]] = {}
        for parameter in walk(loaded.parameters):
            domains.setdefault(parameter.name, []).append(parameter.domain)
        bounds = leaves(RunSettings)
        for values in sample(loaded.parameters, 300, seed=1):
            settings = loaded.settings(values)
            for key, value in values.items():
                assert any(_holds(domain, value) for domain in domains[key]), (key, value)
                assert key in bounds
                assert unread(key, settings) is None, (key, values)

    def test_every_option_and_parameter_is_drawn(self, name: str) -> None:
        loaded = load_space(name)
        drawn = sample(loaded.parameters, 1000, seed=2)
        for parameter in walk(loaded.parameters):
            seen = {str(values[parameter.name]) for values in drawn if parameter.name in values}
            assert seen
            if isinstance(parameter.domain, Choice):
                assert {str(option.value) for option in parameter.domain.options} <= seen

    def test_explained(self, name: str) -> None:
        explanation = explain(name)
        text = explanation.text()
        assert len(explanation.samples) == 5
        assert explanation.total_epochs == explanation.trials * explanation.epochs
        for parameter in walk(load_space(name).parameters):
            assert parameter.name in text

    def test_round_trip(self, name: str, tmp_path: Path) -> None:
        loaded = load_space(name, targets="targets")
        path = tmp_path / "space.yaml"
        path.write_text(dump_yaml(dict(loaded.mapping)))
        again = load_space(path)
        assert again.parameters == loaded.parameters
        assert again.mapping == loaded.mapping == read_yaml(path)


def _holds(domain: Range | Choice, value: Any) -> bool:
    if isinstance(domain, Choice):
        return value in [option.value for option in domain.options]
    return domain.low <= value <= domain.high and (not domain.whole or isinstance(value, int))


def test_all_shipped_spaces_are_tested() -> None:
    assert space_names() == ["loss_weights", "normalization", "smoke", "teacher"]


CONDITIONAL = {
    SCHEME: {
        "choice": [
            "sum",
            {"power": {POWER: {"uniform": [0, 2]}}},
            {"dataset_mean": {POWER: {"uniform": [0.5, 1]}}},
            {
                "gradient_matched": {
                    "distill.atom.distance": {"choice": ["mse", {"l1": {"model.depth": {"int": [2, 4]}}}]}
                }
            },
        ]
    },
    "distill.graph.layers": {"choice": ["all", [1, 3], [2]]},
    "optimizer.learning_rate": {"log_uniform": [1e-4, 1e-2]},
    "model.dropout": {"uniform": [0, 0.5], "step": 0.1},
}


class TestCompiled:
    def test_branches_exist_only_where_chosen(self) -> None:
        loaded = load_space(space(parameters=CONDITIONAL))
        for values in sample(loaded.parameters, 400):
            scheme = values[SCHEME]
            assert (POWER in values) == (scheme in ("power", "dataset_mean"))
            assert ("distill.atom.distance" in values) == (scheme == "gradient_matched")
            assert ("model.depth" in values) == (values.get("distill.atom.distance") == "l1")
            if scheme == "dataset_mean":
                assert 0.5 <= values[POWER] <= 1
            layers = values["distill.graph.layers"]
            assert loaded.settings(values).distill.graph.layers == (layers if layers == "all" else tuple(layers))
            assert values["model.dropout"] == pytest.approx(round(values["model.dropout"], 1))

    def test_branches_with_other_ranges_have_other_names_in_the_storage(self) -> None:
        labels = {parameter.label for parameter in walk(load_space(space(parameters=CONDITIONAL)).parameters)}
        assert {f"{POWER}@{SCHEME}=power", f"{POWER}@{SCHEME}=dataset_mean"} <= labels
        same = {
            SCHEME: {
                "choice": [{"power": {POWER: {"uniform": [0, 1]}}}, {"dataset_mean": {POWER: {"uniform": [0, 1]}}}]
            }
        }
        assert POWER in {parameter.label for parameter in walk(load_space(space(parameters=same)).parameters)}

    def test_survives_tpe_and_a_journal(self, tmp_path: Path) -> None:
        """Branches, lists and differing ranges through a real storage and the grouped sampler."""
        define = DefineByRun(load_space(space(parameters=CONDITIONAL)).parameters)
        backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal"))
        with quiet_optuna():
            sampler = make_sampler(SamplerSettings(startup_trials=5))
            study = optuna.create_study(storage=optuna.storages.JournalStorage(backend), sampler=sampler)
            for _ in range(25):
                trial = study.ask()
                study.tell(trial, define(trial)["optimizer.learning_rate"])
        assert len(study.trials) == 25

    def test_picklable(self) -> None:
        loaded = load_space(space(parameters=CONDITIONAL))
        define = DefineByRun(loaded.parameters)
        for dumps in (pickle.dumps, ray.cloudpickle.dumps):
            again = pickle.loads(dumps(define))
            assert again.parameters == define.parameters
            assert sample(again.parameters, 20) == sample(define.parameters, 20)

    def test_same_seed_same_samples(self) -> None:
        parameters = load_space("normalization").parameters
        assert sample(parameters, 20, seed=3) == sample(copy.deepcopy(parameters), 20, seed=3)
        assert sample(parameters, 20, seed=3) != sample(parameters, 20, seed=4)

    @pytest.mark.parametrize("name", ["tpe", "random"])
    def test_same_seed_same_proposals(self, name: str) -> None:
        def proposals(seed: int) -> list[dict[str, Any]]:
            loaded = load_space("smoke")
            define = DefineByRun(loaded.parameters)
            with quiet_optuna():
                study = optuna.create_study(sampler=make_sampler(SamplerSettings(name, 3, seed)))  # type: ignore[arg-type]
                found = []
                for _ in range(8):
                    trial = study.ask()
                    found.append(define(trial))
                    study.tell(trial, found[-1][WEIGHT])
            return found

        assert proposals(0) == proposals(0)
        assert proposals(0) != proposals(1)

    def test_log_scale_is_uniform_in_the_logarithm(self) -> None:
        drawn = [values[WEIGHT] for values in sample(load_space(weight({"log_uniform": [0.01, 100]})).parameters, 2000)]
        below = sum(value < 1 for value in drawn) / len(drawn)
        assert below == pytest.approx(0.5, abs=0.05)


class TestOverrides:
    def test_sections_fixed_and_parameters(self) -> None:
        narrowed = [
            "budget.trials=3",
            "fixed.training.epochs=5",
            "model.depth=2",
            f"parameters.{WEIGHT}={{uniform: [0, 1]}}",
        ]
        loaded = load_space("smoke", narrowed)
        assert loaded.budget.trials == 3
        assert loaded.epochs == 5
        assert loaded.settings({}).model.depth == 2
        assert next(item.domain for item in loaded.parameters if item.name == WEIGHT) == Range(0, 1)

    def test_misspelt(self) -> None:
        with pytest.raises(InputError, match=r"did you mean 'training\.epochs'"):
            load_space("smoke", ["training.epoch=3"])

    def test_a_mapping_on_top_of_a_shipped_space(self) -> None:
        loaded = load_space({"space": "smoke", "budget": {"trials": 2}, "fixed": {"training.epochs": 4}})
        assert (loaded.budget.trials, loaded.epochs) == (2, 4)
        assert loaded.parameters == load_space("smoke").parameters

    def test_base_beside_the_space(self, tmp_path: Path) -> None:
        (tmp_path / "mine.yaml").write_text("base: student-tiny\nmodel: {depth: 3}\n")
        (tmp_path / "space.yaml").write_text(dump_yaml(space(base="mine.yaml")))
        assert load_space(tmp_path / "space.yaml").settings({}).model.depth == 3


class TestExplain:
    def test_partly_read_parameters_are_noted(self) -> None:
        loose = {SCHEME: {"choice": ["sum", "power"]}, POWER: {"uniform": [0, 2]}}
        notes = explain(space(parameters=loose)).notes
        assert any(POWER in note and "branch" in note for note in notes)

    def test_contradictions_are_counted(self) -> None:
        mixed = {"model.width": {"choice": [60, 96]}, "model.heads": {"choice": [5, 8]}}
        checked = check_space(load_space(space(parameters=mixed)))
        assert checked.refused == pytest.approx(0.5, abs=0.1)  # 60 with 8 and 96 with 5

    def test_rungs(self) -> None:
        def found(**scheduler: Any) -> tuple[int, ...]:
            return rungs(load_space(space(fixed={"training.epochs": 27}, scheduler=scheduler)))

        assert found(grace=1, reduction=3) == (1, 3, 9)
        assert found(grace=2, reduction=2) == (2, 4, 8, 16)
        assert found(name="none") == ()

    def test_epochs_are_the_most_that_a_trial_can_have(self) -> None:
        assert load_space(searched("training.epochs", {"int": [4, 12]})).epochs == 12
        assert load_space(searched("training.epochs", {"choice": [4, 16, 8]})).epochs == 16

    def test_concurrency(self) -> None:
        four = Capacity(cpus=4, gpus=1)
        assert concurrency(ResourceSettings(1, 0, 2), four, "s") == 2
        assert concurrency(ResourceSettings(1, 0, 16), four, "s") == 4
        assert concurrency(ResourceSettings(1, 0.3, 16), four, "s") == 3
        assert concurrency(ResourceSettings(3, 0, 16), four, "s") == 1
        with pytest.raises(InputError, match="more than the cluster"):
            concurrency(ResourceSettings(1, 2, 1), four, "s")
