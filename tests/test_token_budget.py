"""Batches cut by atoms: within the budget, as many as possible, the same number every epoch; trained and resumed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from moldistill.chem.sample import sample_root
from moldistill.core.config import load_run
from moldistill.core.errors import InputError
from moldistill.core.settings import PrepareSettings, RunSettings
from moldistill.data.batches import epoch_batches
from moldistill.data.plan import batch_count, batch_plan
from moldistill.data.prepare import prepare
from moldistill.data.store import Store
from moldistill.training.evaluate import predict
from moldistill.training.loop import EpochReport, Trainer
from moldistill.trial.folder import read_metrics
from moldistill.trial.run import run_trial
from moldistill.trial.spec import TrialSpec
from weights import check_equal_within_rounding

TINY = {"width": 16, "depth": 2, "heads": 2, "dropout": 0.1}


def settings(**training: object) -> RunSettings:
    return load_run({"role": "student", "model": TINY, "training": {"epochs": 4, **training}})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 rows of the sample: some 90 to train on, so that a budget makes several batches."""
    out = tmp_path_factory.mktemp("stores") / "sample"
    prepare(sample_root(), out, PrepareSettings(limit=160))
    return out


@given(
    sizes=st.lists(st.integers(1, 40), max_size=200),
    budget=st.integers(1, 400),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_a_plan_keeps_to_the_budget(sizes: list[int], budget: int, epoch: int, shuffle: bool) -> None:
    """Each row once; the largest times their number within the budget, or one molecule; as many batches every epoch."""
    atoms = np.array(sizes, np.int64)
    plan = batch_plan(atoms, atoms_per_batch=budget, seed=0, epoch=epoch, shuffle=shuffle)
    assert sorted(np.concatenate([np.zeros(0, np.int64), *plan]).tolist()) == list(range(len(sizes)))
    assert len(plan) == batch_count(atoms, atoms_per_batch=budget)
    for batch in plan:
        assert len(batch) == 1 or atoms[batch].max() * len(batch) <= budget


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=200), budget=st.integers(1, 400))
def test_no_batch_could_take_the_next_molecule(sizes: list[int], budget: int) -> None:
    """In the order of size each batch is as long as it can be, which makes them as few as can be."""
    atoms = np.array(sizes, np.int64)
    plan = list(batch_plan(atoms, atoms_per_batch=budget, seed=0, epoch=0, shuffle=False))
    for batch, following in itertools.pairwise(plan):
        assert (len(batch) + 1) * atoms[following[0]] > budget


def test_the_cuts_of_a_plan_by_hand() -> None:
    sizes = np.array([3, 5, 2, 2, 9, 3, 2])
    plan = batch_plan(sizes, atoms_per_batch=9, seed=0, epoch=0, shuffle=False)
    assert [sizes[batch].tolist() for batch in plan] == [[2, 2, 2], [3, 3], [5], [9]]


def test_epochs_differ_in_order_and_in_who_goes_with_whom() -> None:
    sizes = np.random.default_rng(0).integers(4, 21, 2000)

    def plan(epoch: int, seed: int = 0) -> list[list[int]]:
        return [
            batch.tolist() for batch in batch_plan(sizes, atoms_per_batch=512, seed=seed, epoch=epoch, shuffle=True)
        ]

    first, second = plan(1), plan(2)
    assert first == plan(1)
    assert first != plan(1, seed=1)
    assert [len(batch) for batch in first] != [len(batch) for batch in second]
    again = {frozenset(batch) for batch in first} & {frozenset(batch) for batch in second}
    assert len(again) <= 0.05 * len(first)  # all molecules of a rare size may meet every time
    means = [sizes[batch].mean() for batch in first]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_little_is_padding() -> None:
    sizes = np.random.default_rng(0).integers(4, 37, 20_000)
    plan = batch_plan(sizes, atoms_per_batch=4096, seed=0, epoch=0, shuffle=True)
    assert sum(sizes[batch].max() * len(batch) for batch in plan) / sizes.sum() - 1 < 0.02


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_workers_share_each_batch_evenly(store: Path, world_size: int) -> None:
    opened = Store.open(store)
    rows = opened.rows("train")

    def ids(**more: int) -> list[list[int]]:
        made = epoch_batches(opened, rows, atoms_per_batch=256, epoch=1, shuffle=True, **more)
        return [batch.molecules.rows.tolist() for batch in made]

    whole, shares = ids(), [ids(rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len(whole) > 3
    for index, batch in enumerate(whole):
        parts = [share[index] for share in shares]
        assert sorted(row for part in parts for row in part) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert ids(start=2) == whole[2:]


@pytest.mark.parametrize("cut", [{}, {"batch_size": 64, "atoms_per_batch": 512}])
def test_one_way_of_cutting_must_be_named(store: Path, cut: dict[str, int]) -> None:
    opened = Store.open(store)
    with pytest.raises(InputError, match="how batches are cut"):
        epoch_batches(opened, opened.rows("train"), **cut)


def test_the_budget_takes_the_place_of_batch_size() -> None:
    assert settings(batch_size=32).training.batching == {"batch_size": 32}
    assert settings(batch_size=32, atoms_per_batch=512).training.batching == {"atoms_per_batch": 512}


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"atoms_per_batch": 255}, "atoms_per_batch"),
        ({"atoms_per_batch": "many"}, "atoms_per_batch"),
        ({"atoms_per_batch": 1000, "workers": 4}, "shared by 4 workers, and each needs 256: give 1024 or more"),
    ],
)
def test_wrong_budgets_are_refused(training: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(**training)


def test_the_trainer_counts_the_steps_that_it_takes(store: Path) -> None:
    trainer = Trainer(settings(atoms_per_batch=256), Store.open(store))
    expected = trainer.steps_per_epoch
    assert expected > 3
    assert [trainer.step for _ in trainer.fit()] == [expected * epoch for epoch in range(1, 5)]
    assert trainer.total_steps == trainer.step


class Killed(BaseException):
    """Stands for a process that ends in the middle of a run."""


def _stop_after(epoch: int) -> Callable[[EpochReport], None]:
    def report(state: EpochReport) -> None:
        if state.epoch == epoch:
            raise Killed

    return report


@pytest.fixture(scope="module")
def whole(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_trial(TrialSpec(settings(atoms_per_batch=512), store, tmp_path_factory.mktemp("runs") / "whole")).path


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(whole: Path, store: Path, tmp_path: Path) -> None:
    cut = TrialSpec(settings(atoms_per_batch=512), store, tmp_path / "cut")
    for epoch in (1, 3):
        with pytest.raises(Killed):
            run_trial(cut, report=_stop_after(epoch))
        cut = replace(cut, resume=True)
    resumed = run_trial(cut).path
    one, other = load_file(whole / "weights.safetensors"), load_file(resumed / "weights.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)
    for record, again in zip(read_metrics(whole), read_metrics(resumed), strict=True):
        assert {**record, "cpu_seconds": 0} == {**again, "cpu_seconds": 0}


def test_another_budget_is_another_run(store: Path, tmp_path: Path) -> None:
    spec = TrialSpec(settings(atoms_per_batch=512), store, tmp_path / "run")
    with pytest.raises(Killed):
        run_trial(spec, report=_stop_after(1))
    with pytest.raises(InputError, match="other settings"):
        run_trial(replace(spec, settings=settings(atoms_per_batch=1024), resume=True))


def test_predictions_do_not_depend_on_the_cut(store: Path) -> None:
    trainer = Trainer(settings(), Store.open(store))
    rows = trainer.store.rows("valid")[::-1]
    found = [
        predict(trainer.model, trainer.store, rows, role="student", scale=trainer.scale, **cut)
        for cut in ({"batch_size": 5}, {"atoms_per_batch": 300}, {"atoms_per_batch": 1})
    ]
    for other in found[1:]:
        np.testing.assert_allclose(found[0], other, rtol=1e-4, atol=1e-5)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_equal_one_within_rounding(store: Path, tmp_path: Path) -> None:
    from moldistill.trial.ray_train import train_under_ray

    one = settings(atoms_per_batch=512, epochs=2)
    one = replace(one, model=replace(one.model, dropout=0.0))
    alone = run_trial(TrialSpec(one, store, tmp_path / "one")).path
    two = replace(one, training=replace(one.training, workers=2))
    shared = train_under_ray(TrialSpec(two, store, tmp_path / "two")).path
    check_equal_within_rounding(alone, shared)
    for record, again in zip(read_metrics(alone), read_metrics(shared), strict=True):
        assert again["train_loss"] == pytest.approx(record["train_loss"], rel=1e-4)
        assert again["valid_mae"] == pytest.approx(record["valid_mae"], rel=1e-3)
