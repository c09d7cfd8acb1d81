"""The loop: it overfits, resumes bit for bit, stops at what is not finite, and leaves what can be read back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from moldistill.core.artifacts import read_manifest
from moldistill.core.config import load_run
from moldistill.core.errors import InputError, RunError
from moldistill.core.settings import RunSettings
from moldistill.data.batches import epoch_batches
from moldistill.data.predictions import Predictions
from moldistill.data.store import Store
from moldistill.data.targets import TargetStore
from moldistill.distill.diagnostics import shares_by_size
from moldistill.models.registry import model_names
from moldistill.pipeline import cache_teacher
from moldistill.training.cache import CacheSettings
from moldistill.training.checkpoint import checkpoints, load_checkpoint
from moldistill.training.collective import Collective
from moldistill.training.evaluate import errors_by_size, mean_absolute_error, median_error, predict, target_scale
from moldistill.training.loop import EpochReport, Trainer
from moldistill.training.optim import AveragedWeights, learning_rate
from moldistill.trial.folder import read_metrics
from moldistill.trial.run import finish_run, load_run_folder, run_trial
from moldistill.trial.spec import TrialSpec

TINY = {"model": {"width": 16, "depth": 2, "heads": 2, "kernels": 4}, "training": {"epochs": 4, "batch_size": 16}}


def tiny(role: str, **changes: object) -> RunSettings:
    return load_run({"role": role, **TINY, **changes})


class Killed(BaseException):
    """Stands for a process that ends in the middle of a run."""


def stop_after(epoch: int) -> Callable[[EpochReport], None]:
    def report(state: EpochReport) -> None:
        if state.epoch == epoch:
            raise Killed

    return report


@pytest.fixture(scope="module")
def teacher(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    run_trial(TrialSpec(tiny("teacher"), tiny_store, out))
    return out


@pytest.fixture(scope="module")
def targets(teacher: Path, tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("targets") / "targets"
    cache_teacher(teacher, tiny_store, out)
    return out


def distilled(targets: Path, **changes: object) -> RunSettings:
    terms = {
        "prediction": {"weight": 0.3},
        "graph": {"weight": 0.5},
        "atom": {"weight": 1.0, "normalization": "gradient_matched"},
        "pair": {"weight": 0.1},
    }
    return tiny("student", distill=terms, targets=str(targets), **changes)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_sixteen_molecules_are_learned_by_heart(role: str, tiny_store: Path) -> None:
    settings = tiny(
        role,
        model={"width": 64, "depth": 3, "heads": 4},
        training={"epochs": 150, "batch_size": 16, "evaluate_every": 1000, "ema": 0.0},
        optimizer={"learning_rate": 3e-3, "weight_decay": 0.0, "clip_norm": 5.0},
    )
    trainer = Trainer(settings, Store.open(tiny_store))
    trainer.rows = trainer.rows[:16]
    trainer.steps_per_epoch = 1
    for _ in trainer.fit():
        pass
    store = trainer.store
    predicted = predict(trainer.model, store, trainer.rows, role=settings.role, scale=trainer.scale)
    error = np.abs(predicted - store.target[trainer.rows]).mean()
    assert error < 0.03 * trainer.scale.std


def test_resume_equals_an_uninterrupted_run_bit_for_bit(tiny_store: Path, targets: Path, tmp_path: Path) -> None:
    """Dropout, gradient matching, averaged weights and schedules included."""
    settings = distilled(targets, model={**TINY["model"], "dropout": 0.1})
    whole = run_trial(TrialSpec(settings, tiny_store, tmp_path / "whole"))
    cut = TrialSpec(settings, tiny_store, tmp_path / "cut")
    for epoch in (1, 3):
        with pytest.raises(Killed):
            run_trial(cut, report=stop_after(epoch))
        cut = replace(cut, resume=True)
        (tmp_path / "cut" / "metrics.jsonl").open("a").write('{"epoch": 9, "torn')
    resumed = run_trial(cut)
    one, other = load_file(whole.path / "weights.safetensors"), load_file(resumed.path / "weights.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)
    for record, again in zip(read_metrics(whole.path), read_metrics(resumed.path), strict=True):
        assert {**record, "cpu_seconds": 0} == {**again, "cpu_seconds": 0}
    for split in ("valid", "test-dev"):
        first = Predictions.load(whole.path / "predictions" / f"{split}.npz")
        second = Predictions.load(resumed.path / "predictions" / f"{split}.npz")
        assert np.array_equal(first.y_pred, second.y_pred)


def test_a_finished_run_is_not_run_again(teacher: Path, tiny_store: Path) -> None:
    before = (teacher / "metrics.jsonl").read_bytes()
    result = run_trial(TrialSpec(tiny("teacher"), tiny_store, teacher, resume=True))
    assert result.metrics == read_manifest(teacher, "run").facts["metrics"]
    assert (teacher / "metrics.jsonl").read_bytes() == before
    with pytest.raises(InputError, match="holds a run"):
        run_trial(TrialSpec(tiny("teacher"), tiny_store, teacher))


def test_a_run_that_was_stopped_early_is_finished_where_it_stood(tiny_store: Path, tmp_path: Path) -> None:
    spec = TrialSpec(tiny("student"), tiny_store, tmp_path / "run")
    with pytest.raises(Killed):
        run_trial(spec, report=stop_after(2))
    result = finish_run(spec)
    assert result.metrics["epoch"] == 2
    assert read_manifest(spec.out, "run").facts["epochs"] == 2
    assert len(Predictions.load(spec.out / "predictions" / "test-challenge.npz")) == 7


def test_run_folder_reads_back_as_it_was(teacher: Path, tiny_store: Path) -> None:
    run, store = load_run_folder(teacher), Store.open(tiny_store)
    error = mean_absolute_error(run.model, store, "valid-3d", role="teacher", scale=run.scale)
    assert error == pytest.approx(read_metrics(teacher)[-1]["valid_3d_mae"], rel=1e-6)
    assert run.settings == tiny("teacher")
    assert {path.name for path in (teacher / "predictions").iterdir()} == {"valid-3d.npz"}


def test_every_row_of_a_split_is_predicted(tiny_store: Path, tmp_path: Path) -> None:
    """Refused rows get the training median and keep their flag and place."""
    run = run_trial(TrialSpec(tiny("student"), tiny_store, tmp_path / "run"))
    store = Store.open(tiny_store)
    found = Predictions.load(run.path / "predictions" / "test-dev.npz")
    assert np.array_equal(found.row, store.rows("test-dev"))
    refused = store.flag[found.row] == 2
    assert refused.any()
    assert np.all(found.y_pred[refused] == np.float32(target_scale(store).median))
    assert np.array_equal(found.flag, store.flag[found.row])


def test_scale_and_median_predictor_by_hand(tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    train, valid = store.target[store.split == 0], store.target[store.split == 1]
    scale = target_scale(store)
    assert (scale.mean, scale.std, scale.median) == pytest.approx((train.mean(), train.std(), np.median(train)))
    assert median_error(store, "valid") == pytest.approx(np.abs(valid - np.median(train)).mean())
    assert median_error(store, "test-dev") is None


@pytest.mark.parametrize("largest", [4, 7, 50])
def test_errors_by_size_are_parts_of_the_whole(largest: int, tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    rows = store.rows("valid")
    made_up = Predictions(rows, np.linspace(3, 9, len(rows), dtype=np.float32), np.asarray(store.flag[rows]))
    classes = errors_by_size(store, made_up, largest)
    sizes, errors = store.size(rows), np.abs(made_up.y_pred - store.target[rows])
    assert sum(item.rows for item in classes) == len(rows)
    total = sum(item.rows * item.mae for item in classes)
    assert total == pytest.approx(errors.sum())
    for item in classes:
        inside = (sizes >= item.smallest) & (sizes <= item.largest)
        assert item.mae == pytest.approx(errors[inside].mean())
        assert item.beyond == (item.smallest > largest)
        assert not item.smallest <= largest < item.largest
    assert any(item.beyond for item in classes) == (sizes.max() > largest)
    tests = store.rows("test-dev")
    assert errors_by_size(store, Predictions(tests, np.zeros(len(tests), np.float32), store.flag[tests]), 9) == []


def test_a_finished_run_tells_its_errors_by_size(teacher: Path, tiny_store: Path, tmp_path: Path) -> None:
    from moldistill.verbs.training import _errors

    table = _errors(teacher, "teacher")
    assert "heavy atoms (valid-3d)" in table
    assert "MAE (eV)" in table
    assert len(table.splitlines()) > 3


def test_nothing_trains_on_valid_3d(tiny_store: Path, targets: Path) -> None:
    store, cached = Store.open(tiny_store), TargetStore.open(targets)
    held_out = set(store.rows("valid-3d").tolist())
    assert held_out
    for settings in (tiny("teacher"), tiny("student"), distilled(targets)):
        trainer = Trainer(settings, store, cached if settings.targets else None)
        assert held_out.isdisjoint(trainer.rows.tolist())
    assert held_out.isdisjoint(cached.rows.tolist())


def test_cached_targets_are_the_teachers_outputs(teacher: Path, targets: Path, tiny_store: Path) -> None:
    from moldistill.data.batches import collate
    from moldistill.training.evaluate import forward

    store, run, cached = Store.open(tiny_store), load_run_folder(teacher), TargetStore.open(targets)
    rows = np.concatenate([cached.rows[3:8], store.rows("valid")[:2]])
    batch = collate(store, rows, cached)
    (taught,) = batch.teachers
    assert taught is not None
    assert taught.known.tolist() == [True] * 5 + [False] * 2
    with torch.no_grad():
        output = forward(run.model, "teacher", batch)
    wanted = output.prediction[:5] * run.scale.std + run.scale.mean
    torch.testing.assert_close(taught.prediction[:5], wanted.float(), rtol=1e-4, atol=1e-4)
    real = batch.molecules.real[:5]
    for layer in range(2):
        torch.testing.assert_close(taught.graph_states[layer, :5], output.graph_states[layer][:5], rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(
            taught.atom_states[layer, :5][real], output.atom_states[layer][:5][real], rtol=2e-3, atol=2e-3
        )
    assert not taught.atom_states[:, 5:].any()
    assert not taught.atom_states[:, :5][:, ~real].any()


def test_target_statistics_are_those_of_the_states(targets: Path) -> None:
    cached = TargetStore.open(targets)
    summary = cached.summary()
    states = np.asarray(cached.atom_states, np.float64)
    np.testing.assert_allclose(summary.atoms.mean.numpy(), states.mean(0), atol=2e-3)
    np.testing.assert_allclose(summary.atoms.std.numpy(), states.std(0), rtol=2e-2, atol=2e-3)
    assert summary.mean_atoms == pytest.approx(len(states) / len(cached.rows))


def test_a_chosen_layer_is_cached_alone(teacher: Path, tiny_store: Path, tmp_path: Path) -> None:
    cache_teacher(teacher, tiny_store, tmp_path / "last", CacheSettings(layers=(2,)))
    assert TargetStore.open(tmp_path / "last").layers == (2,)
    with pytest.raises(InputError, match="layers to keep"):
        cache_teacher(teacher, tiny_store, tmp_path / "third", CacheSettings(layers=(3,)))


@pytest.mark.parametrize("student", model_names("student"))
def test_every_student_is_distilled(student: str, tiny_store: Path, targets: Path) -> None:
    """From a transformer's states; it learns, and the terms move it."""
    run = distilled(targets, model={**TINY["model"], "name": student}, training={"epochs": 6, "batch_size": 16})
    trainer = Trainer(run, Store.open(tiny_store), TargetStore.open(targets))
    reports = [report.metrics for report in trainer.fit()]
    assert reports[-1]["train_loss"] < reports[0]["train_loss"]
    shares = shares_by_size(reports[0])
    assert len(shares) > 1
    for found in shares.values():
        assert set(found) == {"label", "prediction", "graph", "atom", "pair"}
        assert min(found.values()) > 1e-4
        assert sum(found.values()) == pytest.approx(1.0)


class _OneOfTwo(Collective):
    """A worker whose partner has nothing to add."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def sum_gradients(self, parameters: list[torch.nn.Parameter], more: torch.Tensor) -> torch.Tensor:
        return more


@pytest.mark.parametrize("student", model_names("student"))
def test_a_worker_without_molecules_takes_the_step(student: str, tiny_store: Path, targets: Path) -> None:
    """With every term, in each precision: nothing fails, and nothing moves it."""
    store, cached = Store.open(tiny_store), TargetStore.open(targets)
    for precision in ("fp32", "bf16"):
        training = {"precision": precision, "batch_size": 16}
        run = distilled(targets, model={**TINY["model"], "name": student}, training=training)
        trainer = Trainer(run, store, cached, collective=_OneOfTwo(0, 2))
        trainer.take_step(
            next(iter(epoch_batches(store, trainer.rows, batch_size=1, rank=1, world_size=2, targets=cached)))
        )
        gradients = [parameter.grad for parameter in trainer.parameters if parameter.grad is not None]
        assert all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", [name for name in model_names("teacher") if name != "transformer"])
def test_every_teacher_teaches(name: str, tiny_store: Path, tmp_path: Path) -> None:
    run = tiny("teacher", model={**TINY["model"], "name": name, "hydrogens": True}, training={"epochs": 1})
    run_trial(TrialSpec(run, tiny_store, tmp_path / "teacher"))
    cache_teacher(tmp_path / "teacher", tiny_store, tmp_path / "targets")
    store, cached = Store.open(tiny_store), TargetStore.open(tmp_path / "targets")
    trainer = Trainer(distilled(tmp_path / "targets"), store, cached)
    report = next(iter(trainer.fit()))
    assert math.isfinite(report.metrics["train_loss"])
    predicted = predict(
        load_run_folder(tmp_path / "teacher").model, store, cached.rows, role="teacher", scale=trainer.scale
    )
    np.testing.assert_allclose(cached.prediction, predicted, rtol=1e-4, atol=1e-4)


def test_divergence_stops_before_the_weights_are_touched(tiny_store: Path) -> None:
    trainer = Trainer(tiny("student"), Store.open(tiny_store))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(RunError, match="diverged at step 0"):
        (next(iter(trainer.model.parameters())).sum() * math.inf).backward()
        trainer._descend(("label",), torch.tensor([math.inf]), 0.1)
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_learning_rate_warms_up_and_falls() -> None:
    settings = load_run("student-tiny", ["optimizer.learning_rate=1.0", "optimizer.warmup=0.1"]).optimizer
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(settings, 100, 100) == pytest.approx(settings.final)


def test_averaged_weights_follow_their_formula() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    averaged = AveragedWeights(model, decay=0.5)
    expected = 0.0
    for step, value in enumerate([1.0, 2.0, 4.0, 8.0]):
        torch.nn.init.constant_(model.weight, value)
        averaged.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert float(averaged.model.weight.detach()) == pytest.approx(expected)


def test_checkpoints_of_other_runs_and_damaged_ones_are_refused(tiny_store: Path, tmp_path: Path) -> None:
    spec = TrialSpec(tiny("student"), tiny_store, tmp_path / "run")
    with pytest.raises(Killed):
        run_trial(spec, report=stop_after(1))
    other = replace(spec, settings=tiny("student", optimizer={"learning_rate": 1e-4}), resume=True)
    with pytest.raises(InputError, match="other settings"):
        run_trial(other)
    (path,) = checkpoints(spec.out)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="damaged"):
        load_checkpoint(spec.out)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distill": {"graph": {"weight": 1.0}}}, "no targets are named"),
        ({"distill": {"graph": {"weight": 1.0}}, "targets": "nowhere"}, "does not exist"),
        ({"training": {"device": "cuda"}}, "no GPU"),
    ],
)
def test_wrong_runs_are_refused(settings: dict[str, object], message: str, tiny_store: Path, tmp_path: Path) -> None:
    if "device" in str(settings) and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match=message):
        run_trial(TrialSpec(load_run({"role": "student", **settings}), tiny_store, tmp_path / "run"))


def test_targets_of_another_store_are_refused(targets: Path, tiny_root: Path, tmp_path: Path) -> None:
    from moldistill.core.settings import PrepareSettings
    from moldistill.data.prepare import prepare

    prepare(tiny_root, tmp_path / "other", PrepareSettings(seed=5))
    with pytest.raises(InputError, match="another store"):
        run_trial(TrialSpec(distilled(targets), tmp_path / "other", tmp_path / "run"))
