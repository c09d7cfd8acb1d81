"""Steps: parts of a batch, resume at any step, other lengths, other optimizers, and what is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from batches import random_targets, training_batch
from moldistill.core.config import load_run
from moldistill.core.errors import InputError, RunError
from moldistill.core.settings import RunSettings
from moldistill.data.store import Store
from moldistill.training.checkpoint import VERSION, checkpoints, load_checkpoint, save_checkpoint
from moldistill.training.evaluate import mean_absolute_error
from moldistill.training.loop import Trainer
from moldistill.training.steps import CHECK_EVERY, EpochSums, FiniteGuard, parts
from moldistill.trial import run as run_module
from moldistill.trial.folder import read_metrics
from moldistill.trial.run import finish_run, load_run_folder, run_trial
from moldistill.trial.spec import TrialSpec

STEPS_PER_EPOCH = 3


class Killed(BaseException):
    """Stands for a process that ends in the middle of a run."""


def settings(role: str = "student", *, optimizer: dict[str, object] | None = None, **training: object) -> RunSettings:
    return load_run(
        {
            "role": role,
            "model": {"width": 16, "depth": 2, "heads": 2, "kernels": 4, "dropout": 0.1},
            "optimizer": optimizer or {},
            "training": {"epochs": 3, "batch_size": 16, **training},
        }
    )


def weights_after(settings: RunSettings, store: Path) -> dict[str, torch.Tensor]:
    trainer = Trainer(settings, Store.open(store))
    for _ in trainer.fit():
        pass
    return trainer.averaged.model.state_dict()


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def kill_at(step: int) -> Callable[[run_module._Saver], None]:
    """`_Saver.after_step` that writes a checkpoint and dies."""

    def after_step(saver: run_module._Saver) -> None:
        if saver.trainer.step == step:
            saver.save()
            raise Killed

    return after_step


@pytest.mark.parametrize("optimizer", ["adamw", "schedule_free"])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_run_cut_at_any_step_ends_as_if_it_had_not_been(
    role: str, optimizer: str, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout, noise on positions, sums of the epoch under way, and several kills in a row; to the bit."""
    noise = {"position_noise": 0.05} if role == "teacher" else {}
    run = settings(role, optimizer={"kind": optimizer}, **noise)
    whole = run_trial(TrialSpec(run, tiny_store, tmp_path / "whole"))
    spec = TrialSpec(run, tiny_store, tmp_path / "cut", resume=True)
    for step in (1, 2, 3, 5, 8, 9):
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(run_module._Saver, "after_step", kill_at(step))
            run_trial(spec)
        found = load_checkpoint(spec.out)
        assert found is not None
        assert found.step == step
    resumed = run_trial(spec)
    one, other = load_file(whole.path / "weights.safetensors"), load_file(resumed.path / "weights.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)
    for record, again in zip(read_metrics(whole.path), read_metrics(resumed.path), strict=True):
        assert {**record, "cpu_seconds": 0} == {**again, "cpu_seconds": 0}


def test_checkpoints_are_kept_and_a_damaged_one_is_passed_over(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = TrialSpec(settings(checkpoint_seconds=0.0, keep_checkpoints=3), tiny_store, tmp_path / "run", resume=True)
    seen = run_module._Saver.after_step

    def after_step(saver: run_module._Saver) -> None:
        seen(saver)
        if saver.trainer.step == 5:
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(run_module._Saver, "after_step", after_step)
        run_trial(spec)
    newest, *_ = files = checkpoints(spec.out)
    assert [path.name for path in files] == [f"step-{step:010d}.pt" for step in (5, 4, 3)]
    newest.write_bytes(newest.read_bytes()[:500])
    found = load_checkpoint(spec.out)
    assert found is not None
    assert found.step == 4
    assert "is damaged" in capsys.readouterr().err
    result = run_trial(spec)
    whole = run_trial(TrialSpec(spec.settings, tiny_store, tmp_path / "whole"))
    assert result.metrics["valid_mae"] == whole.metrics["valid_mae"]


def test_a_new_checkpoint_is_never_the_one_that_goes(tiny_store: Path, tmp_path: Path) -> None:
    """Nor does what a later attempt left, damaged or not, stand above it."""
    trainer = Trainer(settings(), Store.open(tiny_store))
    for step, keep, left in ((5, 2, [5]), (10, 2, [10, 5]), (7, 2, [7, 5]), (6, 1, [6]), (8, 3, [8, 6])):
        trainer.step = step
        save_checkpoint(tmp_path, trainer.checkpoint(), keep)
        assert checkpoints(tmp_path) == [tmp_path / "checkpoint" / f"step-{number:010d}.pt" for number in left]


def test_checkpoints_of_another_version_name_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    torch.save({"version": VERSION + 1}, tmp_path / "checkpoint" / "step-0000000001.pt")
    with pytest.raises(InputError, match="another version") as error:
        load_checkpoint(tmp_path)
    assert "remove" in str(error.value.remedy)
    (tmp_path / "checkpoint" / "step-0000000001.pt").rename(tmp_path / "checkpoint" / "state.pt")
    with pytest.raises(InputError, match="another version"):  # the first version's only file
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_parts_hold_each_molecule_once(count: int, tiny_store: Path) -> None:
    batch = training_batch(tiny_store)
    batch = replace(batch, teachers=(random_targets(batch, layers=2, width=4),))
    cut = parts(batch, count)
    assert len(cut) == count
    lengths = [len(part.target) for part in cut]
    assert max(lengths) - min(lengths) <= 1
    assert torch.equal(torch.cat([part.molecules.rows for part in cut]), batch.molecules.rows)
    states = [part.teachers[0].atom_states for part in cut]
    assert torch.equal(torch.cat(states, 1), batch.teachers[0].atom_states)


@pytest.mark.parametrize("accumulate", [2, 3, 16])
def test_accumulated_gradients_are_those_of_the_whole_batch(accumulate: int, tiny_store: Path) -> None:
    whole, cut = (
        Trainer(replace(run, model=replace(run.model, dropout=0.0)), Store.open(tiny_store))
        for run in (settings(), settings(accumulate=accumulate))
    )
    for trainer in (whole, cut):
        trainer.optimizer.step = lambda: None  # type: ignore[method-assign]
        next(iter(trainer.fit()))
    assert whole.step == cut.step == STEPS_PER_EPOCH
    for one, other in zip(whole.parameters, cut.parameters, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6)


def test_steps_take_the_place_of_epochs(tiny_store: Path, tmp_path: Path) -> None:
    result = run_trial(TrialSpec(settings(steps=7, epochs=100), tiny_store, tmp_path / "run"))
    records = read_metrics(result.path)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert "valid_mae" in records[-1]
    found = load_checkpoint(result.path)
    assert found is not None
    assert found.step == 7
    assert records[-1]["learning_rate"] < records[0]["learning_rate"]  # the schedule knows the end


def test_a_run_in_bf16_ends_near_one_in_fp32(tiny_store: Path) -> None:
    run = settings(epochs=12)
    run = replace(run, model=replace(run.model, dropout=0.0))
    exact, rough = (
        weights_after(run, tiny_store),
        weights_after(replace(run, training=replace(run.training, precision="bf16")), tiny_store),
    )
    other = weights_after(replace(run, training=replace(run.training, seed=1)), tiny_store)
    assert 0 < largest_difference(exact, rough) < 0.2 * largest_difference(exact, other)


def test_schedule_free_keeps_the_mean_of_its_weights(tiny_store: Path) -> None:
    """What is evaluated is not what moves; and it learns."""
    run = settings(optimizer={"kind": "schedule_free", "learning_rate": 5e-3}, epochs=30, evaluate_every=100)
    trainer = Trainer(run, Store.open(tiny_store))
    losses = [report.metrics["train_loss"] for report in trainer.fit()]
    assert losses[-1] < 0.5 * losses[0]
    kept = {name: value.clone() for name, value in trainer.averaged.model.state_dict().items()}
    trainer._train_mode(True)
    moving = trainer.model.state_dict()
    assert any(not torch.equal(kept[name], moving[name]) for name in kept)


def test_deterministic_mode_gives_the_same_weights_and_is_left_again(tiny_store: Path) -> None:
    once, again = (weights_after(settings(deterministic=True), tiny_store) for _ in range(2))
    assert largest_difference(once, again) == 0
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_guard_holds_the_optimizer_from_the_first_bad_step_on() -> None:
    """As on a GPU, where the host looks only now and then: nothing moves, and the first bad step is named."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    guard = FiniteGuard(torch.device("cpu"), optimizer)
    guard.waits = True
    moved = []
    with pytest.raises(RunError, match="diverged at step 3"):
        for step in range(CHECK_EVERY):
            weight.grad = torch.full((2,), math.nan if step in (3, 5) else 1.0)
            before = weight.detach().clone()
            guard.see(weight.grad.norm(), step, ("label",), torch.tensor([float(step)]))
            optimizer.step()
            moved.append(not torch.equal(before, weight.detach()))
    assert moved == [True] * 3 + [False] * (CHECK_EVERY - 4)
    assert float(guard.terms) == 3.0  # type: ignore[arg-type]


def test_a_position_that_is_not_finite_stops_the_run_and_nothing_is_kept(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import moldistill.training.loop as loop

    real = loop.epoch_batches

    def poisoned(*given: object, **named: object):  # type: ignore[no-untyped-def]
        for number, batch in enumerate(real(*given, **named)):  # type: ignore[arg-type]
            if named["epoch"] == 1 and number == 1:
                batch.positions[0, 0, 0] = math.nan
            yield batch

    monkeypatch.setattr(loop, "epoch_batches", poisoned)
    spec = TrialSpec(settings("teacher", checkpoint_seconds=0.0), tiny_store, tmp_path / "run")
    with pytest.raises(RunError, match="diverged at step 4"):
        run_trial(spec)
    found = load_checkpoint(spec.out)
    assert found is not None
    assert found.step == 4
    assert all(value.isfinite().all() for value in found.states["model"].values())


def test_rows_without_a_label_do_not_move_the_model(tiny_store: Path) -> None:
    batch = training_batch(tiny_store)
    trainer = Trainer(settings(), Store.open(tiny_store))
    trainer.take_step(replace(batch, target=torch.full_like(batch.target, math.nan)))
    assert all(float(parameter.grad.abs().max()) == 0 for parameter in trainer.parameters if parameter.grad is not None)


def test_sums_survive_a_checkpoint_to_the_bit() -> None:
    random = torch.Generator().manual_seed(0)
    values = [torch.rand(2, generator=random) for _ in range(9)]
    whole, cut = EpochSums(), EpochSums()
    for number, value in enumerate(values):
        whole.add(("a", "b"), value, 0.1)
        cut.add(("a", "b"), value, 0.1)
        if number == 4:
            cut = EpochSums.of(cut.state(), torch.device("cpu"))
    assert whole.metrics() == cut.metrics()
    assert whole.metrics()["loss_a"] == pytest.approx(np.mean([float(value[0]) for value in values]))


def test_resume_with_other_workers_is_the_same_run(tiny_store: Path) -> None:
    one, many = (Trainer(settings(**more), Store.open(tiny_store)) for more in ({}, {"workers": 4, "max_failures": 9}))
    assert one.fingerprint == many.fingerprint
    assert one.fingerprint != Trainer(settings(batch_size=8), Store.open(tiny_store)).fingerprint


def test_a_run_finished_within_an_epoch_has_the_errors_of_its_weights(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TrialSpec(settings(), tiny_store, tmp_path / "run")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(run_module._Saver, "after_step", kill_at(5))
        run_trial(spec)
    result = finish_run(spec)
    assert [record["epoch"] for record in read_metrics(spec.out)] == [1, 2]
    run, store = load_run_folder(spec.out), Store.open(tiny_store)
    error = mean_absolute_error(run.model, store, "valid", role="student", scale=run.scale)
    assert error == pytest.approx(result.metrics["valid_mae"], rel=1e-5)


class _NoWaiting(TorchDispatchMode):
    """Refuses what would make a GPU's host wait: numbers of Python, and shapes that depend on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indexed = name == "index" and any(part is not None and part.dtype == torch.bool for part in args[1])
        assert name not in self.WAITS, f"{func} waits for the device"
        assert not indexed, f"{func} waits for the device: a mask as an index"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_no_step_waits_for_the_device(role: str, tiny_store: Path) -> None:
    """Shown on a CPU, with the guard set as for a GPU."""
    noise = {"position_noise": 0.05} if role == "teacher" else {}
    run = settings(role, accumulate=2, **noise)
    if role == "teacher":
        run = replace(run, model=replace(run.model, denoising=0.1, hydrogens=True, angles=True))
    trainer = Trainer(run, Store.open(tiny_store))
    trainer.guard.waits = True
    trainer._train_mode(True)
    batch = training_batch(tiny_store)
    trainer.take_step(batch)
    with _NoWaiting():
        for _ in range(3):
            trainer.take_step(batch)
    assert trainer.step == 4
    for waits in (lambda: float(torch.ones(1)), lambda: batch.target[batch.has_positions]):
        with _NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):
            waits()
