"""Ablations: what is refused, equal weights and equal cost, intervals, and folders that survive being killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from scipy import stats
from typer.testing import CliRunner

from moldistill.cli import app
from moldistill.core.artifacts import read_json, read_manifest, verify_hashes
from moldistill.core.config import dump_yaml, load_run
from moldistill.core.errors import InputError, RunError
from moldistill.core.records import Batch
from moldistill.core.settings import RunSettings
from moldistill.core.yaml_file import parse_yaml
from moldistill.data.store import Store
from moldistill.delivery.ablation import run_ablation
from moldistill.delivery.ablation_figures import AblationSummary, read_teachers
from moldistill.delivery.paired import Estimate, closed_percent, mean_interval, paired_percent, verdict
from moldistill.pipeline import cache_teacher
from moldistill.search import ablate, ablation_plan
from moldistill.search.ablate import prepare_ablation
from moldistill.search.ablation import ablation_names, load_ablation
from moldistill.search.equal_weight import mean_weight, with_equal_weights
from moldistill.training.budget import Cost, probe_cost
from moldistill.training.loop import Trainer
from moldistill.training.turns import Turn, fair_costs, measure_in_turns, step_seconds
from moldistill.trial.run import open_targets, run_trial
from moldistill.trial.spec import TrialSpec

# Ray's workers cannot import the tests: their functions travel by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

TINY = {"model": {"width": 16, "depth": 2, "heads": 2, "kernels": 4}, "training": {"epochs": 2, "batch_size": 16}}
ARMS: dict[str, Any] = {
    "plain": None,
    "global": {"distill.graph.weight": 0.5},
    "local": {"distill": {"atom": {"weight": 2.0, "normalization": "molecule_mean"}}},
}


def ablation(**changes: Any) -> dict[str, Any]:
    return {"base": {"role": "student", **TINY}, "arms": ARMS, "baseline": "plain", "seeds": 2, **changes}


@pytest.fixture(scope="module")
def teacher(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    run_trial(TrialSpec(load_run({"role": "teacher", **TINY}), tiny_store, out))
    return out


@pytest.fixture(scope="module")
def targets(teacher: Path, tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("targets") / "targets"
    cache_teacher(teacher, tiny_store, out)
    return str(out)


def _known_costs(make: Mapping[str, Callable[[], Trainer]], *_: Any) -> dict[str, Cost]:
    for one in make.values():
        one()
    return dict.fromkeys(make, Cost(0.01, 0.02))


@pytest.fixture(scope="module", autouse=True)
def _known_cost() -> Iterator[None]:
    """Arms are timed in two tests alone: it takes longer than these trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation_plan, "measure_in_turns", _known_costs)
        yield


Ablate = Callable[..., AblationSummary]


@pytest.fixture(scope="module")
def run(tiny_store: Path, targets: str) -> Ablate:
    """Prepare and run an ablation into a folder."""

    def made(out: Path, source: Mapping[str, Any], *, runner: Any = run_trial, **options: Any) -> AblationSummary:
        prepared = prepare_ablation(source, tiny_store, out, targets=[targets], **options)
        return run_ablation(prepared, runner=runner)

    return made


WHOLE = ablation(fractions=[0.5, 1])


@pytest.fixture(scope="module")
def whole(run: Ablate, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AblationSummary]:
    """An ablation that nothing disturbed, at half and whole length."""
    out = tmp_path_factory.mktemp("ablations") / "whole"
    return out, run(out, WHOLE)


def results(out: Path) -> Any:
    """The table without the times, which are another each time."""
    told = read_json(out / "ablation.json")
    for one in [*told["arms"], *told["runs"]]:
        del one["cpu_seconds"]
    return told


# What is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"baselin": "plain"}, ["unknown key 'baselin'", "did you mean 'baseline'?"]),
        ({"baseline": "plane"}, ["baseline is no arm", "did you mean 'plain'?"]),
        ({"seeds": 0}, ["seeds 0"]),
        ({"seeds": [1, 1]}, ["different whole numbers"]),
        ({"fractions": [0.5]}, ["1, the whole length, must be among them"]),
        ({"fractions": [1, 2]}, ["above 0, up to 1"]),
        ({"metric": "test_mae"}, ["metric", "valid_3d_mae"]),
        ({"budget_seconds": -1}, ["budget_seconds", "> 0"]),
        ({"equal_mean_weight": "global"}, ["without a fixed weight per atom"]),
        ({"arms": {"plain": None}}, ["two or more"]),
        ({"arms": ["plain"]}, ["arms"]),
        ({"arms": ARMS | {"again": {"distill.graph.weight": 0.5}}}, ["same settings as arms.global"]),
        ({"arms": ARMS | {"a.b": {"distill.graph.weight": 0.3}}}, ["name of a folder"]),
        ({"arms": ARMS | {"other": "sum"}}, ["not a mapping"]),
        ({"arms": ARMS | {"other": {"distill.graph.wait": 1.0}}}, ["arms.other", "unknown key", "graph.weight"]),
        ({"arms": ARMS | {"other": {"model.width": 15}}}, ["arms.other", "not a multiple of heads"]),
        ({"arms": ARMS | {"other": {"distill.atom.power": 1.5}}}, ["nothing reads it", "distill.atom.weight is 0"]),
        ({"arms": ARMS | {"other": {"training.seed": 3}}}, ["nothing reads it", "`seeds` of the ablation"]),
        ({"arms": ARMS | {"other": {"training.workers": 2}}}, ["workers is 2"]),
        ({"arms": ARMS | {"other": {"training.epochs": 9}}, "budget_seconds": 5.0}, ["`budget_seconds`"]),
        ({"base": {"role": "student", "training": {"steps": 9}}, "budget_seconds": 5.0}, ["training.steps", "null"]),
        ({"arms": ARMS | {"other": {"model.name": "gins"}}}, ["gine"]),
        ({"base": {"role": "teacher"}, "arms": {"plain": None, "deep": {"model.depth": 3}}}, ["valid_3d_mae"]),
    ],
)
def test_wrong_ablations_are_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        load_ablation(ablation(**changes))
    for word in words:
        assert word in str(refused.value)


def test_overrides_reach_the_ablation_and_every_arm() -> None:
    found = load_ablation(ablation(), ["seeds=5", "model.width=32", "arms.local.distill.atom.weight=3"])
    assert found.settings.known_seeds == (0, 1, 2, 3, 4)
    assert {arm.settings.model.width for arm in found.arms} == {32}
    assert [arm.settings.distill.atom.weight for arm in found.arms] == [0, 0, 3]
    with pytest.raises(InputError, match="neither the ablation nor the run"):
        load_ablation(ablation(), ["sedes=5"])
    with pytest.raises(InputError, match="neither an ablation of the package nor a file"):
        load_ablation("papre")


@pytest.mark.parametrize("name", ablation_names())
def test_shipped_ablations_load_and_read_again(name: str) -> None:
    found = load_ablation(name, ["seeds=2"])
    again = load_ablation(parse_yaml(dump_yaml(dict(found.mapping)), name))
    assert again.mapping == found.mapping
    assert [arm.settings for arm in again.arms] == [arm.settings for arm in found.arms]


def test_what_does_not_fit_the_data_is_refused_before_anything_is_written(
    tiny_store: Path, targets: str, teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"arms.global: .*no targets are named"):
        prepare_ablation(ablation(), tiny_store, out)
    deep = ablation(arms=ARMS | {"deep": {"distill.graph.weight": 0.5, "distill.graph.layers": [7]}})
    with pytest.raises(InputError, match=r"arms.deep: .*layer"):
        prepare_ablation(deep, tiny_store, out, targets=[targets])
    with pytest.raises(InputError, match="budget_seconds is too short for arms"):
        prepare_ablation(ablation(budget_seconds=1e-4), tiny_store, out, targets=[targets])
    student = tmp_path / "student"
    run_trial(TrialSpec(load_run({"role": "student", **TINY}), tiny_store, student))
    with pytest.raises(InputError, match="not a teacher's run"):
        read_teachers([student], [targets])
    assert read_teachers([teacher], [targets])[0].seconds > 0
    assert not out.exists()


# Equal mean weight


def sized(scheme: str, **changes: Any) -> RunSettings:
    atom = {"weight": 1.0, "normalization": scheme, **changes}
    return load_run({"distill": {"graph": {"weight": 0.1}, "atom": atom}})


@pytest.mark.parametrize(
    ("scheme", "mean"),
    [
        ("sum", 3.0),  # (2 + 4) / 2
        ("molecule_mean", 1.0),
        ("coordinated", 0.375),  # (1/2 + 1/4) / 2
        ("batch_mean", 1.0),  # 2 / 6 for each of 6 atoms, in 2 molecules
        ("dataset_mean", 1.0),  # each atom 1/3
        ("gradient_matched", None),
    ],
)
def test_mean_weight_by_hand(scheme: str, mean: float | None) -> None:
    found = mean_weight(sized(scheme, weight=2.0), np.array([2, 4]))
    assert found == (None if mean is None else pytest.approx(2 * mean, rel=1e-6))


def test_schemes_get_the_mean_weight_of_the_reference(tiny_store: Path, targets: str) -> None:
    names = ("coordinated", "sum", "molecule_mean", "power", "gradient_matched")
    arms = {name: replace(sized(name), targets=targets) for name in names}
    store = Store.open(tiny_store)
    found = with_equal_weights(arms, "coordinated", store, "test")
    rows = store.rows("train")
    sizes = store.size(store.usable(rows)).astype(float)
    assert found["coordinated"].settings == arms["coordinated"]
    assert found["sum"].settings.distill.atom.weight == pytest.approx((1 / sizes).mean() / sizes.mean(), rel=1e-5)
    assert found["molecule_mean"].settings.distill.atom.weight == pytest.approx((1 / sizes).mean(), rel=1e-5)
    assert found["gradient_matched"].settings.distill.atom.weight == 1.0
    assert found["gradient_matched"].mean is None
    assert with_equal_weights(arms, None, store, "test")["sum"].settings == arms["sum"]


# Intervals


def test_the_paired_interval_by_hand_and_by_scipy() -> None:
    """Ratios 0.9, 0.8 and 0.85: -15% on average, s = 5, and t = 4.3027 for 2 degrees of freedom."""
    baseline = {0: 1.0, 1: 2.0, 2: 4.0, 7: 9.0}
    arm = {2: 3.4, 1: 1.6, 0: 0.9, 5: 9.0}
    found = paired_percent(arm, baseline)
    assert found is not None
    half = 4.30265 * 5 / 3**0.5
    assert (found.value, found.low, found.high) == pytest.approx((-15, -15 - half, -15 + half), rel=1e-5)
    assert found.count == 3
    low, high = stats.t.interval(0.95, 2, loc=-15, scale=stats.sem([-10, -20, -15]))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert stats.ttest_1samp([-10, -20, -15], 0).pvalue < 0.05
    assert verdict(found) == "lower"


def test_verdicts_only_where_the_interval_is_clear_of_zero() -> None:
    assert verdict(Estimate(-3.0, -5.9, -0.1, 3)) == "lower"
    assert verdict(Estimate(3.0, 0.1, 5.9, 3)) == "higher"
    assert verdict(Estimate(-3.0, -6.1, 0.1, 3)) == "not told apart"
    assert verdict(Estimate(-3.0, None, None, 1)) == "one seed"
    assert verdict(None) == "not compared"
    assert mean_interval([]) is None
    assert mean_interval([2.0]) == Estimate(2.0, None, None, 1)
    assert paired_percent({0: 1.0}, {1: 1.0}) is None


def test_the_share_of_the_gap_by_hand() -> None:
    found = closed_percent({0: 0.35, 1: 0.30}, {0: 0.40, 1: 0.40}, 0.20)
    assert found is not None
    assert found.value == pytest.approx((25 + 50) / 2)
    assert closed_percent({0: 0.35}, {0: 0.20}, 0.20) is None


# Running


def test_every_arm_seed_and_fraction_is_trained_and_told(whole: tuple[Path, AblationSummary]) -> None:
    out, summary = whole
    assert len(summary.runs) == 3 * 2 * 2
    assert {run.steps for run in summary.runs if run.fraction == 1} == {6}  # 41 molecules by 16, twice
    assert {run.steps for run in summary.runs if run.fraction == 0.5} == {3}
    assert summary.complete
    found = summary.arm("global").differences["overall"]
    ours, theirs = (
        {run.seed: run.errors["overall"] for run in summary.runs if (run.arm, run.fraction) == (arm, 1)}
        for arm in ("global", "plain")
    )
    assert found == paired_percent(ours, theirs)
    assert not summary.arm("plain").differences
    shares = summary.arm("global").shares
    assert shares["label"] + shares["graph"] == pytest.approx(1)
    manifest = read_manifest(out, "ablation")
    assert set(manifest.inputs) == {"store", "targets"}
    assert manifest.facts["runs"] == 12
    assert verify_hashes(out) == []
    assert len(list(out.glob("runs/*/seed-*/manifest.json"))) == 6
    assert not list(out.rglob("checkpoint"))


def test_errors_by_size_pool_to_the_whole(whole: tuple[Path, AblationSummary], tiny_store: Path) -> None:
    """The tiny store's largest molecules are of training: another boundary splits its validation rows."""
    out, summary = whole
    assert "above" not in summary.arm("plain").errors
    prepared = prepare_ablation(WHOLE | {"boundary": 6}, tiny_store, out, targets=[_targets(out)], resume=True)
    split = run_ablation(prepared)
    store = Store.open(tiny_store)
    rows = store.usable(store.rows("valid"))
    rows = rows[np.isfinite(store.target[rows])]
    above = store.size(rows) > 6
    for one in split.runs:
        pooled = one.errors["up_to"] * (~above).mean() + one.errors["above"] * above.mean()
        assert pooled == pytest.approx(one.errors["overall"], rel=1e-5)
    assert "up to 6 heavy atoms" in (out / "ablation.md").read_text()
    restored = run_ablation(prepare_ablation(WHOLE, tiny_store, out, targets=[_targets(out)], resume=True))
    assert restored == summary


def _targets(out: Path) -> str:
    return str(load_run(out / "runs" / "global" / "seed-0" / "config.yaml").targets)


def test_markdown_and_html_name_every_arm(whole: tuple[Path, AblationSummary]) -> None:
    out, summary = whole
    for name in ("ablation.md", "ablation.html"):
        text = (out / name).read_text(encoding="utf-8")
        for arm in ARMS:
            assert arm in text
        assert "distill.graph.weight" in text
        assert "0.5 of the length" in text
    page = (out / "ablation.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "http" not in page
    assert "t-intervals over seeds" in page
    assert f"{summary.arm('plain').errors['overall'].value:.4f}" in page


def test_one_seed_has_no_interval_and_says_so(run: Ablate, tmp_path: Path) -> None:
    summary = run(tmp_path / "one", ablation(seeds=[4]))
    found = summary.arm("global").differences["overall"]
    assert (found.low, found.high, found.count) == (None, None, 1)
    text = (tmp_path / "one" / "ablation.md").read_text()
    assert "One seed: there are no intervals" in text
    assert "| one seed |" in text


def test_costs_are_told_apart_in_noise() -> None:
    """Measurements are 0, 0, 10, 25 and 50% above their arm's smallest: 10% on all."""
    rounds = {"quick": [Cost(1.0, 4.0), Cost(1.25, 3.0)], "slow": [Cost(3.0, 1.0), Cost(2.0, 1.5), Cost(2.2, 1.0)]}
    found = fair_costs(rounds)
    assert (found["quick"].step, found["slow"].step) == pytest.approx((1.1, 2.2))
    assert (found["quick"].evaluation, found["slow"].evaluation) == pytest.approx((3.3, 1.1))


def test_a_probe_is_shared_out_over_the_steps_between_two() -> None:
    """Steps of 1 s (median of turns of 1, 1 and 5), whatever begins the epoch, and a probe of 4 s every 200 or more."""
    turns = [Turn([4.0], [1.0, 1.0, 1.0]), Turn([], [1.0] * 4), Turn([], [5.0] * 4)]
    assert step_seconds(turns) == pytest.approx(1)
    assert step_seconds([Turn([2.0] * 4)]) == pytest.approx(2.0)
    for steps_per_epoch, every in ((6, 200), (400, 400)):
        assert probe_cost(_Probed(steps_per_epoch)) == pytest.approx(4 / every)


class _Probed(Trainer):
    """A trainer whose probes take 4 s on its own clock."""

    def __init__(self, steps_per_epoch: int) -> None:
        self.device, self.steps_per_epoch, self.spent = torch.device("cpu"), steps_per_epoch, 0.0
        self.now = lambda: self.spent

    def shares(self) -> dict[str, float]:
        self.spent += 4.0
        return {}


def test_trainers_in_turns_stop_where_they_are_told(tiny_store: Path, targets: str) -> None:
    settings = load_run({"role": "student", **TINY, "distill": {"graph": {"weight": 0.5}}, "targets": targets})
    store, made = Store.open(tiny_store), list[Trainer]()

    def make() -> Trainer:
        made.append(Trainer(settings, store, open_targets(settings, store)))
        return made[-1]

    before = threading.active_count()
    found = measure_in_turns({"one": make, "other": make}, 2)
    assert threading.active_count() == before
    assert all(isinstance(cost, Cost) and cost.step > 0 and cost.evaluation > 0 for cost in found.values())
    assert [trainer.step for trainer in made] == [3 + 20] * 4  # from the second epoch on


def test_steps_at_equal_cost_by_hand(tiny_store: Path, targets: str, tmp_path: Path) -> None:
    """A second holds two evaluations of 0.02 s and 96 steps of 0.01 s, half of it 46."""
    source = ablation(budget_seconds=1, fractions=[0.5, 1], evaluations=2)
    prepared = prepare_ablation(source, tiny_store, tmp_path / "out", targets=[targets], dry_run=True)
    for arm in prepared.plan.arms:
        assert arm.steps == {1.0: 96, 0.5: 46}
        assert arm.run(1.0, 7, 2).training.evaluate_every == 16  # 32 epochs of 3 steps
        assert arm.run(1.0, 7, 2).training.seed == 7
    assert prepared.seconds == pytest.approx(2 * 3 * 1.5)
    assert [(run.arm, run.seed) for run in prepared.runs[:4]] == [
        ("plain", 0),
        ("global", 0),
        ("local", 0),
        ("plain", 0),
    ]
    assert {run.seed for run in prepared.runs[:6]} == {0}
    assert not (tmp_path / "out").exists()


def test_steps_of_a_budget_are_found_once(
    run: Ablate, tiny_store: Path, targets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation_plan, "measure_in_turns", measure_in_turns)
    arms = {name: ARMS[name] for name in ("plain", "local")}
    out, source = tmp_path / "budget", ablation(arms=arms, budget_seconds=0.4, fractions=[0.5, 1], seeds=1)
    first = run(out, source)
    plan = (out / "plan.json").read_bytes()
    steps = {arm["name"]: arm["steps"] for arm in json.loads(plan)["arms"]}
    for one in first.runs:
        assert one.steps == steps[one.arm][str(one.fraction)]
    assert all(2.2 > told["1.0"] / told["0.5"] > 1.8 for told in steps.values())
    monkeypatch.setattr(ablate, "make_plan", None)
    more = run(out, source | {"seeds": 2, "concurrent": 1}, resume=True)
    assert (out / "plan.json").read_bytes() == plan
    assert {one.steps for one in more.runs if one.arm == "local"} == set(steps["local"].values())
    assert [one for one in more.runs if one.seed == 0] == list(first.runs)
    with pytest.raises(InputError, match="other values of budget_seconds"):
        prepare_ablation(source | {"budget_seconds": 0.7}, tiny_store, out, targets=[targets], resume=True)
    with pytest.raises(InputError, match="holds an ablation"):
        prepare_ablation(source, tiny_store, out, targets=[targets])
    with pytest.raises(InputError, match="no ablation to resume"):
        prepare_ablation(source, tiny_store, tmp_path / "none", targets=[targets], resume=True)


class Killed(BaseException):
    """Stands for a process that ends in the middle of a run."""


def test_an_interrupted_ablation_ends_as_if_nothing_had_been(
    run: Ablate, whole: tuple[Path, AblationSummary], tmp_path: Path
) -> None:
    """Stopped within its second run, behind the first epoch."""
    begun: list[Path] = []

    def runner(spec: TrialSpec) -> None:
        begun.append(spec.out)

        def report(_: Any) -> None:
            raise Killed

        run_trial(spec, report=report if len(begun) == 2 else None)

    out = tmp_path / "cut"
    with pytest.raises(Killed):
        run(out, WHOLE, runner=runner)
    assert not (out / "manifest.json").exists()
    run(out, WHOLE, resume=True)
    assert results(out) == results(whole[0])


def test_a_killed_ablation_ends_as_if_nothing_had_been(
    run: Ablate, whole: tuple[Path, AblationSummary], tiny_store: Path, targets: str, tmp_path: Path
) -> None:
    """By SIGKILL, at the command line, once a run has a checkpoint."""
    (tmp_path / "mine.yaml").write_text(dump_yaml(WHOLE))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "moldistill", "ablate", "mine.yaml", "--store", str(tiny_store)]
    command += ["--targets", targets, "--out", "out"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as child:
        end = time.monotonic() + 100
        while not list(out.glob("runs/*/seed-*/checkpoint/step-*")) and time.monotonic() < end:
            assert child.poll() is None, child.stderr
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
    assert not (out / "manifest.json").exists()
    run(out, parse_yaml((tmp_path / "mine.yaml").read_text(), "mine"), resume=True)
    assert results(out) == results(whole[0])


def _fails_for_global(spec: TrialSpec) -> None:
    if "global" in spec.out.parts:
        raise RunError("training diverged", got="a gradient that is not finite")
    run_trial(spec)


def test_a_failing_arm_does_not_stop_the_others(run: Ablate, tmp_path: Path) -> None:
    out = tmp_path / "failing"
    summary = run(out, ablation(), runner=_fails_for_global)
    assert summary.arm("global").seeds == 0
    assert summary.arm("local").seeds == summary.arm("plain").seeds == 2
    assert "local" in read_manifest(out, "ablation").facts["differences"]
    for name in ("ablation.md", "ablation.html"):
        assert "training diverged: a gradient that is not finite" in (out / name).read_text()
    mended = run(out, ablation(), resume=True)
    assert mended.arm("global").seeds == 2
    with pytest.raises(RunError, match="every run of the baseline 'global' failed"):
        run(tmp_path / "without", ablation(baseline="global"), runner=_fails_for_global)


def test_an_arm_that_diverges_while_it_is_timed_fails_alone(
    run: Ablate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_step(self: Trainer, batch: Batch) -> None:
        if self.objective.settings.atom.weight > 0:
            raise RunError("training diverged at step 3")
        train(self, batch)

    train = Trainer.take_step
    monkeypatch.setattr(ablation_plan, "measure_in_turns", measure_in_turns)
    monkeypatch.setattr(Trainer, "take_step", take_step)
    summary = run(tmp_path / "out", ablation(seeds=1))
    assert [one.reason for one in summary.runs] == [None, None, "training diverged at step 3"]
    assert summary.arm("global").differences["overall"].count == 1
    again = run(tmp_path / "out", ablation(seeds=1), resume=True)  # the plan stands, with what it says of the arm
    assert again.runs == summary.runs


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_several_trainings_at_a_time_give_the_same(
    run: Ablate, whole: tuple[Path, AblationSummary], tmp_path: Path
) -> None:
    out = tmp_path / "ray"
    run(out, WHOLE | {"concurrent": 3}, runner=_fails_for_global)
    run(out, WHOLE | {"concurrent": 2}, resume=True)
    assert results(out) == results(whole[0])


def test_the_command_line_shows_the_plan_and_the_table(
    tiny_store: Path, targets: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(dump_yaml(ablation(seeds=1)))
    words = ["ablate", "mine.yaml", "--store", str(tiny_store), "--targets", targets, "--out", "out"]
    words += ["--teacher", str(teacher)]
    dry = CliRunner().invoke(app, [*words, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert "distill.graph.weight" in dry.stdout
    assert "ms per step" in dry.stdout
    assert not Path("out").exists()
    made = CliRunner().invoke(app, [*words, "--json"])
    told = json.loads(made.stdout)
    assert told["teachers"][0]["valid_3d"] > 0
    assert [run["arm"] for run in told["runs"]] == list(ARMS)
    assert "wrote out" in made.stderr
    again = CliRunner().invoke(app, [*words, "--resume", "seeds=2"])
    assert "Gap closed" in again.stdout
    assert len(read_json(Path("out/ablation.json"))["runs"]) == 6
