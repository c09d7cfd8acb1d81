"""Batches: each row once, padded as promised, the same for the same seed; predictions on disk."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from moldistill.core.errors import InputError, RunError
from moldistill.core.records import Batch
from moldistill.core.vocabulary import bond_code
from moldistill.data import batches as module
from moldistill.data.batches import batch_plan, collate, epoch_batches
from moldistill.data.predictions import Predictions
from moldistill.data.store import Store


@pytest.fixture
def store(tiny_store: Path) -> Store:
    return Store.open(tiny_store)


@pytest.fixture
def rows(store: Store) -> np.ndarray:
    return store.usable(np.arange(len(store)))


def _ids(batches: list[Batch]) -> list[list[int]]:
    return [batch.molecules.rows.tolist() for batch in batches]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("count", "batch_size"), [(0, 4), (1, 4), (1000, 7), (1000, 1000), (999, 64)])
def test_a_plan_holds_each_row_once(count: int, batch_size: int, shuffle: bool) -> None:
    sizes = np.random.default_rng(0).integers(1, 30, count)
    plan = batch_plan(sizes, batch_size, seed=0, epoch=1, shuffle=shuffle)
    assert len(plan) == -(-count // batch_size)
    assert sorted(np.concatenate([np.zeros(0, np.int64), *plan]).tolist()) == list(range(count))
    assert sum(len(batch) < batch_size for batch in plan) <= 1


def test_plans_depend_on_seed_and_epoch_alone() -> None:
    sizes = np.random.default_rng(0).integers(1, 30, 500)

    def plan(seed: int, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in batch_plan(sizes, 16, seed=seed, epoch=epoch, shuffle=True)]

    assert plan(0, 1) == plan(0, 1)
    assert plan(0, 1) != plan(0, 2)
    assert plan(0, 1) != plan(1, 1)


@pytest.mark.parametrize("shuffle", [False, True])
def test_little_of_a_batch_is_padding(shuffle: bool) -> None:
    sizes = np.random.default_rng(0).integers(4, 37, 20_000)
    plan = batch_plan(sizes, 64, seed=0, epoch=0, shuffle=shuffle)
    padded = sum(sizes[batch].max() * len(batch) for batch in plan)
    assert padded / sizes.sum() - 1 < 0.02


def test_shuffled_batches_come_in_no_order_of_size() -> None:
    sizes = np.random.default_rng(0).integers(4, 37, 20_000)
    means = [sizes[batch].mean() for batch in batch_plan(sizes, 64, seed=0, epoch=0, shuffle=True)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2


def test_a_batch_is_its_molecules_and_padding(store: Store, rows: np.ndarray) -> None:
    chosen = rows[[5, 3, 70, 0]]
    batch = collate(store, chosen)
    atoms = int(store.size(chosen).max())
    assert batch.molecules.atom_features.shape == (4, atoms, 9)
    for place, row in enumerate(chosen):
        molecule = store.molecule(int(row))
        size = len(molecule.atom_features)
        graph = batch.molecules
        features, paths, codes, positions = (
            tensor[place].numpy()
            for tensor in (graph.atom_features, graph.shortest_paths, graph.bond_codes, batch.positions)
        )
        assert np.array_equal(features[:size], molecule.atom_features)
        assert np.array_equal(paths[:size, :size], molecule.shortest_paths)
        expected = np.zeros((atoms, atoms), np.uint8)
        for (begin, end), (kind, stereo, conjugated) in zip(
            molecule.bond_index.tolist(), molecule.bond_features.tolist(), strict=True
        ):
            expected[begin, end] = expected[end, begin] = bond_code(kind, stereo, conjugated)
        assert np.array_equal(codes, expected)
        assert not features[size:].any()
        assert (paths[size:] == 255).all()
        assert (paths[:, size:] == 255).all()
        assert bool(batch.has_positions[place]) == (molecule.positions is not None)
        known = molecule.positions if molecule.positions is not None else np.zeros((size, 3))
        assert np.array_equal(positions[:size], known)
        assert not positions[size:].any()
        assert batch.molecules.real[place].tolist() == [True] * size + [False] * (atoms - size)
    assert torch.allclose(batch.target, torch.from_numpy(store.target[chosen]).float(), rtol=0, equal_nan=True)
    assert batch.teacher is None


def test_a_batch_of_no_molecules(store: Store) -> None:
    batch = collate(store, np.zeros(0, np.int64))
    assert batch.molecules.atom_features.shape == (0, 1, 9)
    assert batch.target.shape == (0,)


def test_rows_without_a_graph_are_a_mistake_of_the_caller(store: Store) -> None:
    refused = np.flatnonzero(store.flag == 2)
    with pytest.raises(AssertionError, match="without a graph"):
        collate(store, refused)


@pytest.mark.parametrize("world_size", [2, 3, 60])
def test_the_shares_of_the_workers_are_the_whole(store: Store, rows: np.ndarray, world_size: int) -> None:
    def run(**settings: int) -> list[Batch]:
        return list(epoch_batches(store, rows, batch_size=16, seed=3, epoch=2, shuffle=True, **settings))

    whole = _ids(run())
    shares = [_ids(run(rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert {len(share) for share in shares} == {len(whole)}
    for index, batch in enumerate(whole):
        assert sorted(row for share in shares for row in share[index]) == sorted(batch)
    assert sorted(row for batch in whole for row in batch) == rows.tolist()


def test_an_epoch_goes_on_where_it_was_left(store: Store, rows: np.ndarray) -> None:
    whole = _ids(list(epoch_batches(store, rows, batch_size=8, shuffle=True)))
    assert _ids(list(epoch_batches(store, rows, batch_size=8, shuffle=True, start=4))) == whole[4:]
    assert list(epoch_batches(store, rows, batch_size=8, start=99)) == []


def _threads() -> int:
    return sum(thread.name == "batches" for thread in threading.enumerate())


def test_the_thread_ends_with_the_iterator(store: Store, rows: np.ndarray) -> None:
    batches = epoch_batches(store, rows, batch_size=2)
    next(batches)
    assert _threads() == 1
    batches.close()  # type: ignore[attr-defined]
    assert _threads() == 0
    abandoned = epoch_batches(store, rows, batch_size=2)
    next(abandoned)
    del abandoned
    gc.collect()
    assert _threads() == 0
    list(epoch_batches(store, rows, batch_size=2))
    assert _threads() == 0


def test_the_threads_errors_are_raised_here(store: Store, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))

    def failing(*arguments: object) -> Batch:
        if next(calls) == 2:
            raise RunError("the disk is gone")
        return collate(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "collate", failing)
    batches = epoch_batches(store, rows, batch_size=8)
    next(batches)
    next(batches)
    with pytest.raises(RunError, match="the disk is gone"):
        next(batches)
    assert _threads() == 0


def _predictions() -> Predictions:
    return Predictions(np.array([1, 4, 9]), np.array([0.5, 1.5, 2.5], np.float32), np.array([0, 1, 2], np.uint8))


def test_predictions_read_back_and_are_the_same_bytes(tmp_path: Path) -> None:
    _predictions().save(tmp_path / "a.npz")
    _predictions().save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    loaded = Predictions.load(tmp_path / "a.npz")
    assert loaded.row.tolist() == [1, 4, 9]
    assert loaded.y_pred.dtype == np.float32
    assert loaded.flag.tolist() == [0, 1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"y_pred": np.array([0.5, np.nan, 2.5], np.float32)}, "nan at row 4"),
        ({"row": np.array([1, 9, 4])}, "row 4 follows row 9"),
        ({"row": np.array([1, 1, 4])}, "rows must ascend"),
        ({"y_pred": np.array([0.5, 1.5, 2.5])}, "y_pred is float64"),
        ({"flag": np.zeros(2, np.uint8)}, "flag has 2 entries"),
        ({"flag": np.array([{}, {}, {}], object)}, "not a file of predictions"),
    ],
)
def test_wrong_predictions_are_refused(tmp_path: Path, columns: dict[str, np.ndarray], match: str) -> None:
    good = _predictions()
    np.savez(tmp_path / "a.npz", **{"row": good.row, "y_pred": good.y_pred, "flag": good.flag} | columns)
    with pytest.raises(InputError, match=match) as caught:
        Predictions.load(tmp_path / "a.npz")
    assert caught.value.exit_code == 2


def test_files_that_are_no_predictions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        Predictions.load(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"text")
    with pytest.raises(InputError, match="not a file of predictions"):
        Predictions.load(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", row=np.zeros(1, np.int64))
    with pytest.raises(InputError, match="not a file of predictions"):
        Predictions.load(tmp_path / "b.npz")


def test_infinite_predictions_are_not_saved(tmp_path: Path) -> None:
    wrong = Predictions(np.array([7]), np.array([np.inf], np.float32), np.zeros(1, np.uint8))
    with pytest.raises(RunError, match="inf at row 7"):
        wrong.save(tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []
