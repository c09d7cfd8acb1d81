"""Search spaces: samples keep what the YAML says, through branches, storages and pickles."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray

from moldistill.core.config import build, dump_yaml, leaves, load_run, merge, read_yaml, to_mapping
from moldistill.core.errors import InputError
from moldistill.core.settings import RunSettings
from moldistill.core.yaml_file import parse_yaml
from moldistill.search.checks import check_space, unread
from moldistill.search.compile import DefineByRun, make_sampler, quiet_optuna, sample
from moldistill.search.leafcheck import NOT_SEARCHABLE
from moldistill.search.parse import load_space, space_names
from moldistill.search.space import Choice, Range, SpaceSettings, nested, walk
from spaces import POWER, SCHEME, WEIGHT, rare, searched, space, weight


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
        loaded = load_space(space(parameters=CONDITIONAL, sampler={"startup_trials": 5}))
        define = DefineByRun(loaded.parameters)
        backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal"))
        with quiet_optuna():
            storage = optuna.storages.JournalStorage(backend)
            study = optuna.create_study(storage=storage, sampler=make_sampler(loaded))
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


class TestChecked:
    def test_partly_read_parameters_are_noted(self) -> None:
        loose = {SCHEME: {"choice": ["sum", "power"]}, POWER: {"uniform": [0, 2]}}
        notes = check_space(load_space(space(parameters=loose))).notes
        assert any(POWER in note and "branch" in note for note in notes)

    def test_contradictions_are_counted(self) -> None:
        mixed = {"model.width": {"choice": [60, 96]}, "model.heads": {"choice": [5, 8]}}
        checked = check_space(load_space(space(parameters=mixed)))
        assert checked.refused == pytest.approx(0.5, abs=0.1)  # 60 with 8 and 96 with 5

    def test_epochs_are_the_most_that_a_trial_can_have(self) -> None:
        assert load_space(searched("training.epochs", {"int": [4, 12]})).epochs == 12
        assert load_space(searched("training.epochs", {"choice": [4, 16, 8]})).epochs == 16

    def test_trials_hold_what_the_resources_say(self) -> None:
        training = load_space(space(resources={"workers": 2, "cpus": 3})).settings({}).training
        assert (training.workers, training.cpus_per_worker) == (2, 3)

    def test_rare_branches_are_looked_at(self) -> None:
        """One configuration in 4,096: 256 samples miss it, and what it holds is checked all the same."""
        loaded = load_space(rare("model.dropout"))
        assert not any("model.dropout" in values for values in sample(loaded.parameters, 256))
        check_space(loaded)


class TestLanguage:
    """What users of other searches ask for in vain."""

    def test_branches_within_branches(self) -> None:
        """Four choices deep: a parameter exists where all of them were chosen, and nowhere else."""
        innermost = {"l1": {"model.depth": {"int": [2, 4]}}}
        third = {"unit": {"distill.atom.distance": {"choice": ["mse", innermost]}}}
        second = {"mlp": {"distill.atom.features": {"choice": ["none", third]}}}
        nest = {SCHEME: {"choice": ["sum", {"power": {"distill.atom.head": {"choice": ["linear", second]}}}]}}
        loaded = load_space(space(parameters=nest))
        way = {
            SCHEME: "power",
            "distill.atom.head": "mlp",
            "distill.atom.features": "unit",
            "distill.atom.distance": "l1",
        }
        found = sample(loaded.parameters, 400)
        names = list(way)
        for values in found:
            reached = 1
            while reached < 4 and values[names[reached - 1]] == way[names[reached - 1]]:
                reached += 1
            inside = reached == 4 and values[names[3]] == "l1"
            assert list(values) == names[:reached] + (["model.depth"] if inside else [])
        assert any("model.depth" in values for values in found)

    def test_lists_are_values(self) -> None:
        layers = {"distill.graph.layers": {"choice": [[1, 2], [2, 4], "last"]}}
        loaded = load_space(space(parameters=layers))
        drawn = {loaded.settings(values).distill.graph.layers for values in sample(loaded.parameters, 60)}
        assert drawn == {(1, 2), (2, 4), "last"}

    def test_branches_that_exclude_each_other_share_a_key(self) -> None:
        shared = {
            SCHEME: {
                "choice": [
                    {"power": {POWER: {"uniform": [0, 1]}}},
                    {"dataset_mean": {POWER: {"uniform": [2, 3]}}},
                ]
            }
        }
        for values in sample(load_space(space(parameters=shared)).parameters, 100):
            assert values[POWER] <= 1 if values[SCHEME] == "power" else values[POWER] >= 2


def documented() -> list[str]:
    text = (Path(__file__).parents[1] / "search_spaces" / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```yaml space\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("text", documented(), ids=range(len(documented())))
def test_what_the_readme_shows_can_be_searched(text: str) -> None:
    loaded = load_space(parse_yaml(text, "README.md"), targets="targets")
    checked = check_space(loaded)
    assert checked.configurations
    assert checked.refused < 0.9
    assert not any("is not read in" in note for note in checked.notes)


def test_the_readme_names_every_key() -> None:
    """Each key of a space, each sampler, scheduler and form."""
    text = (Path(__file__).parents[1] / "search_spaces" / "README.md").read_text(encoding="utf-8")
    for key in leaves(SpaceSettings):
        assert key in text or f"`{key.split('.')[-1]}`" in text or f"{key.split('.')[-1]}: " in text, key
    for leaf in leaves(SpaceSettings).values():
        for choice in leaf.choices:
            assert f"`{choice}`" in text
    assert len(documented()) >= 4


def settings_of(**changes: Any) -> RunSettings:
    return build(RunSettings, merge(to_mapping(load_run("student-tiny-distilled")), nested(changes)), "test")


@pytest.mark.parametrize(
    ("key", "changes", "reason"),
    [
        ("distill.graph.until", {"distill.graph.schedule": "linear"}, "only warmup and decay"),
        ("distill.graph.until", {"distill.graph.schedule": "cosine"}, "only warmup and decay"),
        ("distill.graph.until", {"distill.graph.schedule": "decay"}, None),
        ("distill.graph.student_layers", {"distill.graph.weight": 0.0, SCHEME: "sum"}, "weight is 0"),
        ("distill.atom.head", {"distill.atom.weight": 0.0}, "weight is 0"),
        ("distill.teachers", {"targets": ["a", "b"]}, None),
        ("distill.teachers", {"targets": ["a"]}, "one teacher"),
        (
            "distill.teachers",
            {
                "targets": ["a", "b"],
                "distill.graph.weight": 0.0,
                "distill.atom.weight": 0.0,
                "distill.prediction.weight": 0.0,
            },
            "no term",
        ),
        ("training.epochs", {"training.steps": 10}, "training.steps"),
        ("training.epochs", {"training.budget_seconds": 10.0}, "budget_seconds"),
        ("training.budget_seconds", {"training.steps": 10, "training.budget_seconds": 10.0}, "training.steps"),
        ("training.fold", {}, "folds is null"),
        ("training.fold", {"training.folds": 3}, None),
        ("model.depth", {}, None),
    ],
)
def test_what_nothing_reads(key: str, changes: dict[str, Any], reason: str | None) -> None:
    said = unread(key, settings_of(**changes))
    assert said is None if reason is None else said is not None and reason in said


def test_every_key_is_searchable_or_says_why_not() -> None:
    """A key that is added to the settings must be thought about here."""
    known = leaves(RunSettings)
    assert set(NOT_SEARCHABLE) <= set(known)
    searchable = set(known) - set(NOT_SEARCHABLE)
    assert {key for key in searchable if key.startswith("training.")} == {
        "training.epochs",
        "training.batch_size",
        "training.atoms_per_batch",
        "training.ema",
        "training.position_noise",
        "training.precision",
    }
    for key in searchable:  # none of them stops `unread`, whatever the settings
        unread(key, settings_of())
