"""Search spaces that are refused: each with the file, the place in it and a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moldistill.core.config import dump_yaml
from moldistill.core.errors import InputError
from moldistill.search.checks import check_space
from moldistill.search.parse import load_space
from spaces import POWER, SCHEME, WEIGHT, searched, space, weight

# What is wrong, the mapping, the place that the message names, and a part of its remedy or expectation.
WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("misspelt parameter", searched("distill.graph.wieght", {"uniform": [0, 1]}), "distill.graph.wieght", WEIGHT),
    ("last part only", searched("learning_rate", {"uniform": [0.1, 1]}), "learning_rate", "optimizer.learning_rate"),
    ("a group", searched("distill.graph", {"uniform": [0, 1]}), "parameters", "distill.graph.weight"),
    ("misspelt section", space(budgets={"trials": 3}), "budgets", "budget"),
    ("misspelt key of a section", space(budget={"trails": 3}), "budget.trails", "budget.trials"),
    ("no base", {"parameters": {WEIGHT: {"uniform": [0, 1]}}}, "base", "missing"),
    ("no parameters", {"base": "student-tiny"}, "parameters", "missing"),
    ("empty parameters", space(parameters={}), "parameters", "add a parameter"),
    ("misspelt preset", space(base="student-tny"), "student-tny", "student-tiny"),
    ("text as parameters", space(parameters="all"), "parameters", "mapping"),
    ("below the bounds", weight({"uniform": [-1, 1]}), WEIGHT, "≥ 0"),
    ("above the bounds", weight({"uniform": [1, 5000]}), WEIGHT, "≤ 1000"),
    ("an open bound", searched("optimizer.learning_rate", {"uniform": [0, 0.1]}), "learning_rate", "> 0"),
    ("reversed", weight({"uniform": [5, 1]}), WEIGHT, "[1, 5]"),
    ("one point", weight({"uniform": [1, 1]}), WEIGHT, "fixed"),
    ("three ends", weight({"uniform": [0, 1, 2]}), WEIGHT, "[low, high]"),
    ("text ends", weight({"uniform": ["a", "b"]}), WEIGHT, "two numbers"),
    ("infinite end", weight({"uniform": [0, float("inf")]}), WEIGHT, "≤ 1000"),
    ("NaN end", weight({"uniform": [0, float("nan")]}), WEIGHT, "low < high"),
    ("booleans as ends", weight({"uniform": [False, True]}), WEIGHT, "two numbers"),
    ("log from zero", weight({"log_uniform": [0, 1]}), WEIGHT, "raise the lower end"),
    ("misspelt form", weight({"log_unifrom": [0.1, 1]}), WEIGHT, "log_uniform"),
    ("two forms", weight({"uniform": [0, 1], "choice": [0.1, 0.2]}), WEIGHT, "exactly one"),
    ("bare value", weight(0.3), WEIGHT, "fixed"),
    ("bare list", weight([0.1, 0.2]), WEIGHT, "choice"),
    ("empty mapping", weight({}), WEIGHT, "exactly one"),
    ("log on uniform", weight({"uniform": [0.1, 1], "log": True}), WEIGHT, "remove it"),
    ("step on a log scale", weight({"log_uniform": [0.1, 1], "step": 0.1}), WEIGHT, "remove it"),
    ("step that misses the end", searched("model.depth", {"int": [2, 7], "step": 2}), "model.depth", "[2, 6]"),
    ("negative step", searched("model.depth", {"int": [2, 6], "step": -1}), "model.depth", "positive"),
    ("step with log", searched("model.depth", {"int": [2, 6], "step": 1, "log": True}), "model.depth", "step"),
    ("log that is no boolean", searched("model.depth", {"int": [2, 6], "log": 2}), "model.depth", "true"),
    ("fractions for whole numbers", searched("model.depth", {"uniform": [2, 6]}), "model.depth", "int"),
    ("fractional ends of int", searched("model.depth", {"int": [2.5, 6]}), "model.depth", "whole"),
    ("numbers for names", searched("distill.graph.distance", {"uniform": [0, 1]}), "distance", "choice"),
    ("unknown name", searched("distill.graph.distance", {"choice": ["mse", "cosin"]}), "distance", "cosine"),
    ("choice out of bounds", searched("model.depth", {"choice": [2, 100]}), "model.depth", "≤ 48"),
    ("choice of a wrong type", searched("model.depth", {"choice": [2, "four"]}), "model.depth", "whole number"),
    ("choice of a boolean", searched("model.depth", {"choice": [2, True]}), "model.depth", "whole number"),
    ("empty choice", searched("model.depth", {"choice": []}), "model.depth", "list the values"),
    ("choice of one", searched("model.depth", {"choice": [4]}), "model.depth", "fixed"),
    ("choice that is no list", searched("model.depth", {"choice": 4}), "model.depth", "list"),
    ("value twice", searched("model.depth", {"choice": [4, 6, 4]}), "model.depth[2]", "remove one"),
    ("empty branch", searched(SCHEME, {"choice": ["sum", {"power": {}}]}), f"{SCHEME}[1]", "write `power` alone"),
    ("branch without mapping", searched(SCHEME, {"choice": ["sum", {"power": 2}]}), f"{SCHEME}[1]", "parameters"),
    (
        "two values in a branch",
        searched(SCHEME, {"choice": ["sum", {"power": {POWER: {"uniform": [0, 1]}}, "coordinated": {}}]}),
        f"{SCHEME}[1]",
        "own entry",
    ),
    (
        "misspelt in a branch",
        searched(SCHEME, {"choice": ["sum", {"power": {"distill.atom.powr": {"uniform": [0, 1]}}}]}),
        f"{SCHEME}[1].power",
        POWER,
    ),
    (
        "inside and outside a branch",
        space(
            parameters={
                SCHEME: {"choice": ["sum", {"power": {POWER: {"uniform": [0, 1]}}}]},
                POWER: {"uniform": [0, 2]},
            }
        ),
        POWER,
        "remove one",
    ),
    (
        "in branches of two choices",
        space(
            parameters={
                SCHEME: {"choice": ["sum", {"power": {"model.depth": {"int": [2, 4]}}}]},
                "distill.atom.distance": {"choice": ["mse", {"l1": {"model.depth": {"int": [2, 6]}}}]},
            }
        ),
        "model.depth",
        "remove one",
    ),
    ("fixed and searched", space(fixed={WEIGHT: 0.1}), WEIGHT, "fixed"),
    ("fixed out of bounds", space(fixed={"training.epochs": 0}), "fixed.training.epochs", "≥ 1"),
    ("fixed of a wrong type", space(fixed={"training.epochs": "8"}), "fixed.training.epochs", "whole number"),
    ("fixed misspelt", space(fixed={"training.epoch": 8}), "fixed", "training.epochs"),
    ("fixed role", space(fixed={"role": "teacher"}), "fixed.role", "base"),
    ("several workers", space(fixed={"training.workers": 2}), "fixed.training.workers", "concurrent"),
    ("searching the seed", searched("training.seed", {"int": [0, 9]}), "training.seed", "luck"),
    ("searching the role", searched("role", {"choice": ["teacher", "student"]}), "role", "base"),
    ("searching the workers", searched("training.workers", {"int": [1, 4]}), "training.workers", "one process"),
    ("test metric", space(objective={"metric": "test_mae"}), "objective.metric", "never goes by test"),
    ("misspelt metric", space(objective={"metric": "valid_mea"}), "objective.metric", "valid_mae"),
    ("maximize an error", space(objective={"direction": "maximize"}), "objective.direction", "minimize"),
    ("unknown direction", space(objective={"direction": "down"}), "objective.direction", "minimize"),
    (
        "a teacher on validation rows",
        {"base": "teacher-tiny", "parameters": {"model.depth": {"int": [2, 4]}}, "objective": {"metric": "valid_mae"}},
        "objective.metric",
        "valid_3d_mae",
    ),
    ("unknown sampler", space(sampler={"name": "tp"}), "sampler.name", "tpe"),
    ("negative seed", space(sampler={"seed": -1}), "sampler.seed", "≥ 0"),
    ("unknown scheduler", space(scheduler={"name": "hyperband"}), "scheduler.name", "asha"),
    ("no grace", space(scheduler={"grace": 0}), "scheduler.grace", "≥ 1"),
    ("no reduction", space(scheduler={"reduction": 1}), "scheduler.reduction", "> 1"),
    ("no trials", space(budget={"trials": 0}), "budget.trials", "≥ 1"),
    ("half a trial", space(budget={"trials": 2.5}), "budget.trials", "whole number"),
    ("no CPU", space(resources={"cpus": 0}), "resources.cpus", "> 0"),
    ("negative GPUs", space(resources={"gpus": -1}), "resources.gpus", "≥ 0"),
    ("nobody at once", space(resources={"concurrent": 0}), "resources.concurrent", "≥ 1"),
]

# The same for what only samples show.
DEAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("no such model", space(fixed={"model.name": "hybird"}), "model.name", "hybrid"),
    ("a budget of seconds", space(fixed={"training.budget_seconds": 60.0}), "training.budget_seconds", "epochs"),
    (
        "paths of a model without",
        space(fixed={"model.name": "gine"}, parameters={"model.max_path": {"int": [2, 8]}}),
        "model.max_path",
        "gine",
    ),
    ("angles of a student", searched("model.angles", {"choice": [False, True]}), "model.angles", "only teachers"),
    (
        "a mean of weights beside schedule-free",
        space(fixed={"optimizer.kind": "schedule_free"}, parameters={"training.ema": {"uniform": [0.9, 0.99]}}),
        "training.ema",
        "schedule_free",
    ),
    (
        "a term of weight 0",
        space(base="student-tiny", parameters={"distill.atom.distance": {"choice": ["mse", "l1"]}}),
        "distill.atom.distance",
        "distill.atom.weight is 0",
    ),
    (
        "a weight fixed to 0",
        space(fixed={"distill.atom.weight": 0.0}, parameters={SCHEME: {"choice": ["sum", "coordinated"]}}),
        SCHEME,
        "distill.atom.weight is 0",
    ),
    ("a power that no scheme reads", searched(POWER, {"uniform": [0, 2]}), POWER, "normalization is coordinated"),
    ("a share that no scheme reads", searched("distill.atom.share", {"uniform": [0.1, 2]}), "share", "coordinated"),
    (
        "a power in the wrong branch",
        searched(SCHEME, {"choice": ["power", {"sum": {POWER: {"uniform": [0, 2]}}}]}),
        POWER,
        "normalization is sum",
    ),
    ("an end without a schedule", searched("distill.graph.until", {"uniform": [0.1, 1]}), "until", "constant"),
    ("kernels of a student", searched("model.kernels", {"int": [8, 64]}), "model.kernels", "only teachers"),
    ("noise of a student", searched("training.position_noise", {"uniform": [0, 0.1]}), "noise", "only teachers"),
    (
        "a batch size under a token budget",
        space(fixed={"training.atoms_per_batch": 2048}, parameters={"training.batch_size": {"choice": [32, 64]}}),
        "training.batch_size",
        "atoms_per_batch takes its place",
    ),
    (
        "always contradictory",
        space(fixed={"model.heads": 7}, parameters={"model.width": {"choice": [64, 96]}}),
        "every sampled configuration is refused",
        "multiple of heads",
    ),
    ("grace beyond the end", space(fixed={"training.epochs": 2}, scheduler={"grace": 2}), "scheduler.grace", "grace"),
    (
        "distillation of a teacher",
        {"base": "teacher-tiny", "parameters": {WEIGHT: {"log_uniform": [0.1, 1]}}},
        "every sampled configuration is refused",
        "not distilled",
    ),
]


@pytest.mark.parametrize(("mapping", "place", "remedy"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_wrong_yaml_is_refused(mapping: dict[str, Any], place: str, remedy: str, tmp_path: Path) -> None:
    """With the file, the place in it and a remedy."""
    path = tmp_path / "wrong.yaml"
    path.write_text(dump_yaml(mapping))
    with pytest.raises(InputError) as caught:
        load_space(path)
    text = str(caught.value)
    assert place in text
    assert remedy in text
    assert caught.value.remedy
    assert "wrong.yaml" in text or "student-tny" in text  # the base has a name of its own


@pytest.mark.parametrize(("mapping", "place", "remedy"), [case[1:] for case in DEAD], ids=[case[0] for case in DEAD])
def test_what_cannot_work_is_refused(mapping: dict[str, Any], place: str, remedy: str) -> None:
    loaded = load_space(mapping)
    with pytest.raises(InputError) as caught:
        check_space(loaded)
    assert place in str(caught.value)
    assert remedy in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("base: student-tiny\nparameters: {a: [}\n", "wrong.yaml:2:"),
        ("base: student-tiny\nbase: student-small\n", "wrong.yaml:2"),
        ("- base\n", "wrong.yaml"),
        ("", "wrong.yaml"),
    ],
)
def test_wrong_files_are_refused_with_the_line(text: str, place: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=place):
        load_space(path)


def test_a_misspelt_space_is_named() -> None:
    with pytest.raises(InputError, match="did you mean 'loss_weights'"):
        load_space("loss_weight")
