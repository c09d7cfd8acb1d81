"""Search spaces that are refused: each with the file, the place in it and a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moldistill.core.config import dump_yaml
from moldistill.core.errors import InputError
from moldistill.search.checks import check_space
from moldistill.search.parse import load_space
from spaces import POWER, SCHEME, WEIGHT, rare, searched, space, weight

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
    ("workers under fixed", space(fixed={"training.workers": 2}), "fixed.training.workers", "{workers: 2}"),
    ("searching the seed", searched("training.seed", {"int": [0, 9]}), "training.seed", "luck"),
    ("searching the role", searched("role", {"choice": ["teacher", "student"]}), "role", "base"),
    ("searching the workers", searched("training.workers", {"int": [1, 4]}), "training.workers", "resources"),
    ("searching the steps", searched("training.steps", {"int": [9, 99]}), "training.steps", "training.epochs"),
    ("searching the seconds", searched("training.budget_seconds", {"uniform": [9, 99]}), "seconds", "training.epochs"),
    ("searching the rows", searched("training.fold", {"int": [0, 4]}), "training.fold", "other rows"),
    ("searching memory", searched("training.accumulate", {"int": [1, 4]}), "training.accumulate", "no result"),
    ("searching speed", searched("training.compile", {"choice": ["never", "always"]}), "compile", "no result"),
    ("searching the teachers", searched("targets", {"choice": ["a", "b"]}), "targets", "--targets"),
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
    ("unknown scheduler", space(scheduler={"name": "hyperbnad"}), "scheduler.name", "hyperband"),
    ("population-based training", space(scheduler={"name": "pbt"}), "no configuration of its own", "search schedules"),
    ("BOHB", space(scheduler={"name": "BOHB"}), "chosen apart", "hyperband"),
    ("no grace", space(scheduler={"grace": 0}), "scheduler.grace", "≥ 1"),
    ("no reduction", space(scheduler={"reduction": 1}), "scheduler.reduction", "≥ 2"),
    ("half a reduction", space(scheduler={"reduction": 2.5}), "scheduler.reduction", "whole number"),
    ("no earlier trials", space(scheduler={"startup_trials": 0}), "scheduler.startup_trials", "≥ 1"),
    ("a population of one", space(sampler={"name": "nsgaii", "population": 1}), "sampler.population", "≥ 2"),
    ("a word for a flag", space(sampler={"group": "maybe"}), "sampler.group", "true or false"),
    ("no trials", space(budget={"trials": 0}), "budget.trials", "≥ 1"),
    ("half a trial", space(budget={"trials": 2.5}), "budget.trials", "whole number"),
    ("no CPU", space(resources={"cpus": 0}), "resources.cpus", "> 0"),
    ("negative GPUs", space(resources={"gpus": -1}), "resources.gpus", "≥ 0"),
    ("no hours", space(budget={"hours": 0}), "budget.hours", "> 0"),
    ("negative GPU-hours", space(budget={"gpu_hours": -1}), "budget.gpu_hours", "> 0"),
    ("hours without an end", space(budget={"hours": float("inf")}), "budget.hours", "leave the key out"),
    ("CPUs that are no number", space(resources={"cpus": float("nan")}), "resources.cpus", "> 0"),
    ("infinite GPUs", space(resources={"gpus": float("inf")}), "resources.gpus", "leave the key out"),
    ("no workers", space(resources={"workers": 0}), "resources.workers", "≥ 1"),
    ("more than the GPU's memory", space(resources={"gpu_memory": 1.5}), "resources.gpu_memory", "≤ 1"),
    ("unknown backend", space(backend="slurm"), "backend", "ray_train"),
    ("too many retries", space(failures={"retries": 11}), "failures.retries", "≤ 10"),
    ("told something else", space(failures={"told": "nan"}), "failures.told", "penalty"),
    ("one seed", space(replicates={"top": 3, "seeds": 1}), "replicates.seeds", "≥ 2"),
    ("keeping none", space(keep=0), "keep", "≥ 1"),
    ("tracking something else", space(tracking={"comet": "x"}), "tracking.comet", "mlflow, wandb"),
    ("a number for a project", space(tracking={"wandb": 3}), "tracking.wandb", "text"),
    ("a constraint as a mapping", space(constraints=[{"model.depth": 3}]), "constraints", "text"),
    ("constraints without a list", space(constraints="model.depth > 2"), "constraints", "list"),
    ("a starting point as a list", space(starting_points=[[1]]), "starting_points", "list"),
    ("one starting point", space(starting_points={WEIGHT: 1.0}), "starting_points", "list"),
    ("no objectives", space(objective=[]), "objective", "name one"),
    ("objectives by name", space(objective=["valid_mae"]), "objective", "mapping"),
    ("a cost first", space(objective={"metric": "parameters"}), "ranked by it", "valid_mae` first"),
    (
        "a cost first of two",
        space(objective=[{"metric": "cpu_seconds"}, {}]),
        "objective[0].metric",
        "valid_mae` first",
    ),
    ("the same twice", space(objective=[{}, {"metric": "valid_mae"}]), "objective[1]", "remove one"),
    ("a test metric second", space(objective=[{}, {"metric": "test_mae"}]), "objective[1].metric", "never goes by"),
    ("a misspelt cost", space(objective=[{}, {"metric": "parametres"}]), "objective[1].metric", "`metric: parameters`"),
    (
        "a cost that grows",
        space(objective=[{}, {"metric": "parameters", "direction": "maximize"}]),
        "objective[1].direction",
        "minimize",
    ),
    ("a grid without steps", space(sampler={"name": "grid"}), f"parameters.{WEIGHT}", "step"),
    (
        "a grid with branches",
        space(
            sampler={"name": "grid"},
            parameters={SCHEME: {"choice": ["sum", {"power": {POWER: {"choice": [1.0, 2.0]}}}]}},
        ),
        f"parameters.{SCHEME}",
        "tpe",
    ),
    (
        "a grid without an end",
        space(sampler={"name": "grid"}, parameters={"model.width": {"int": [8, 2048]}, "model.depth": {"int": [2, 9]}}),
        "too many points",
        "random",
    ),
    ("a name that no file has", space(base="x" * 300), "base", "check the name"),
    ("a number beyond floats", searched("training.epochs", {"int": [1, 10**400]}), "training.epochs", "bounds"),
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
        "grace of hyperband",
        space(fixed={"training.epochs": 3}, scheduler={"name": "hyperband", "grace": 3}),
        "grace",
        "train longer",
    ),
    (
        "grace of the median",
        space(fixed={"training.epochs": 3}, scheduler={"name": "median", "grace": 4}),
        "grace",
        "train longer",
    ),
    (
        "two objectives with ASHA",
        space(objective=[{}, {"metric": "parameters"}]),
        "scheduler.name: nobody can stop",
        "scheduler: {name: none}",
    ),
    (
        "two objectives with hyperband",
        space(objective=[{}, {"metric": "parameters"}], scheduler={"name": "hyperband"}),
        "scheduler.name: nobody can stop",
        "keep one objective",
    ),
    (
        "two objectives with CMA-ES",
        space(objective=[{}, {"metric": "cpu_seconds"}], scheduler={"name": "none"}, sampler={"name": "cmaes"}),
        "sampler.name: cmaes follows one objective",
        "nsgaii",
    ),
    (
        "CMA-ES with branches",
        space(
            sampler={"name": "cmaes"},
            parameters={
                SCHEME: {"choice": ["sum", {"power": {POWER: {"uniform": [0, 2]}}}]},
                WEIGHT: {"uniform": [0, 1]},
            },
        ),
        f"branches below {SCHEME}",
        "tpe",
    ),
    (
        "CMA-ES without numbers",
        space(sampler={"name": "cmaes"}, parameters={SCHEME: {"choice": ["sum", "coordinated"]}}),
        "all parameters are choices",
        "tpe",
    ),
    ("a population that nothing reads", space(sampler={"population": 9}), "sampler.population", "nsgaii or cmaes"),
    (
        "GPUs for a processor",
        space(fixed={"training.device": "cpu"}, resources={"gpus": 1}),
        "fixed.training.device",
        "gpus: 0",
    ),
    ("no GPU for CUDA", space(fixed={"training.device": "cuda"}), "fixed.training.device", "gpus: 1"),
    ("several workers inline", space(backend="inline", resources={"workers": 2}), "backend", "auto"),
    ("one and a half GPUs", space(resources={"gpus": 1.5}), "resources.gpus", "write 1 or 2"),
    ("a crumb of a GPU", space(resources={"gpus": 1e-320}), "resources.gpus", "larger share"),
    ("workers on one GPU", space(resources={"gpus": 0.5, "workers": 2}), "resources.gpus", "gpus: 1"),
    ("GPU memory without GPU", space(resources={"gpu_memory": 0.5}), "resources.gpu_memory", "gpus"),
    (
        "more memory than the GPU has",
        space(resources={"gpus": 0.25, "gpu_memory": 0.5}),
        "resources.gpu_memory",
        "0.25",
    ),
    ("GPU-hours without GPU", space(budget={"gpu_hours": 2}), "budget.gpu_hours", "budget.hours"),
    (
        "more finalists than trials",
        space(budget={"trials": 4}, replicates={"top": 5}),
        "replicates.top",
        "raise budget",
    ),
    ("a file as storage", space(storage="study.db"), "storage", "journal"),
    (
        "an end of a schedule without one",
        space(
            parameters={
                "distill.graph.schedule": {
                    "choice": ["constant", {"cosine": {"distill.graph.until": {"uniform": [0.1, 1]}}}]
                }
            }
        ),
        "distill.graph.until",
        "only warmup and decay",
    ),
    (
        "epochs under a number of steps",
        space(fixed={"training.steps": 100}, parameters={"training.epochs": {"int": [4, 9]}}),
        "training.steps",
        "epochs",
    ),
    (
        "a key that one of its branches reads, in another one",
        space(
            parameters={
                SCHEME: {"choice": [{"power": {POWER: {"uniform": [0, 2]}}}, {"sum": {POWER: {"uniform": [0, 1]}}}]}
            }
        ),
        f"{POWER} (where {SCHEME} is sum)",
        "normalization is sum",
    ),
    (
        "a branch that its constraint closes",
        space(
            parameters={SCHEME: {"choice": ["sum", {"power": {POWER: {"uniform": [0, 2]}}}]}},
            constraints=[f"{SCHEME} != 'power'"],
        ),
        f"{POWER} (where {SCHEME} is power)",
        "no trial can hold it",
    ),
    ("a dead key in a branch that is rarely drawn", rare("training.ema"), "training.ema (where", "schedule_free"),
    (
        "one teacher, drawn or averaged",
        searched("distill.teachers", {"choice": ["averaged", "sampled"]}),
        "distill.teachers",
        "one teacher",
    ),
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
