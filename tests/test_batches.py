"""Batches: each row once, padded as promised, the same for the same seed; predictions on disk."""

from __future__ import annotations

import gc
import threading
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from moldistill.core.config import load_run
from moldistill.core.errors import InputError, RunError
from moldistill.core.records import Batch, TeacherTargets
from moldistill.core.settings import PrepareSettings
from moldistill.core.vocabulary import bond_code
from moldistill.data import batches as module
from moldistill.data import plan as plan_module
from moldistill.data.batches import collate, epoch_batches
from moldistill.data.plan import batch_count, batch_plan
from moldistill.data.predictions import Predictions
from moldistill.data.prepare import prepare
from moldistill.data.store import Store
from moldistill.data.targets import TargetStore
from moldistill.pipeline import cache_teacher
from moldistill.training.loop import Trainer
from moldistill.trial.run import run_trial
from moldistill.trial.spec import TrialSpec


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
    assert len(plan) == batch_count(sizes, batch_size) == -(-count // batch_size)
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


def test_pools_are_of_like_size_and_leave_no_batch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one batch more than a pool holds, the pool takes it in: unsorted by itself, it would be padded most."""
    monkeypatch.setattr(plan_module, "POOL", 10)
    sizes = np.random.default_rng(0).integers(4, 37, 11 * 64)
    spans = [int(np.ptp(sizes[batch])) for batch in batch_plan(sizes, 64, seed=0, epoch=0, shuffle=True)]
    assert max(spans) < 8


def test_a_plan_is_small() -> None:
    sizes = np.random.default_rng(0).integers(4, 21, 300_000)
    plan = batch_plan(sizes, 256, seed=0, epoch=0, shuffle=True)
    assert plan.order.nbytes + plan.starts.nbytes + plan.stops.nbytes < 5 * len(sizes)


def test_shuffled_batches_come_in_no_order_of_size() -> None:
    sizes = np.random.default_rng(0).integers(4, 37, 20_000)
    means = [sizes[batch].mean() for batch in batch_plan(sizes, 64, seed=0, epoch=0, shuffle=True)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2


def test_a_batch_is_its_molecules_and_padding(store: Store, rows: np.ndarray) -> None:
    chosen = rows[[5, 3, 70, 0]]
    batch = collate(store, chosen)
    assert batch.molecules.rows.tolist() == chosen.tolist()
    assert batch.molecules.atom_features.shape == (4, int(store.size(chosen).max()), 9)
    check_batch(store, batch)


def check_batch(store: Store, batch: Batch) -> None:
    """The batch is what `store.molecule` says of its rows, and padding."""
    graph, rows = batch.molecules, batch.molecules.rows.numpy()
    atoms = max(int(store.size(rows).max(initial=1)), 1)
    assert graph.atom_features.shape == (len(rows), atoms, 9)
    for place, row in enumerate(rows):
        molecule = store.molecule(int(row))
        size = len(molecule.atom_features)
        features, paths, codes, positions = (
            tensor[place].numpy()
            for tensor in (graph.atom_features, graph.shortest_paths, graph.bond_codes, batch.positions)
        )
        assert graph.size[place] == size
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
        assert graph.real[place].tolist() == [True] * size + [False] * (atoms - size)
    assert torch.allclose(batch.target, torch.from_numpy(store.target[rows]).float(), rtol=0, equal_nan=True)
    assert batch.teachers == ()


@pytest.fixture(scope="module")
def odd_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One atom, fragments, a ring, and the largest molecule that has a graph, among others."""
    folder = tmp_path_factory.mktemp("odd")
    smiles = ["C", "[Na+].[Cl-]", "C" * 255, "c1ccccc1", "O", "CC(C)(C)C", "C" * 90, "[He]", "C=C", "N#N", "C.C.C"] * 3
    (folder / "odd.csv").write_text("smiles\n" + "\n".join(smiles) + "\n")
    prepare(folder / "odd.csv", folder / "store", PrepareSettings())
    return Store.open(folder / "store")


@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_every_batch_of_an_epoch_is_its_molecules(
    store: Store, odd_store: Store, batch_size: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All batches are held until the end: none is overwritten by a later one."""
    monkeypatch.setattr(module, "GROUP", group)
    for each in (store, odd_store):
        rows = each.usable(np.arange(len(each)))
        held = list(epoch_batches(each, rows, batch_size=batch_size, shuffle=True))
        assert sorted(row for ids in _ids(held) for row in ids) == rows.tolist()
        for batch in held:
            check_batch(each, batch)


def test_large_batches_come_one_by_one(odd_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_PAIRS", 256**2)
    rows = odd_store.usable(np.arange(len(odd_store)))
    plan = batch_plan(odd_store.size(rows), 2, seed=0, epoch=0, shuffle=False)
    groups = list(module._groups(plan, odd_store.size(rows).astype(np.uint8), 1, 1))
    assert [batch for group in groups for batch in group] == list(range(1, len(plan)))
    assert max(len(group) for group in groups) > 1
    assert [len(group) for group in groups if group[-1] == len(plan) - 1] == [1]


def test_memory_is_used_again_once_nothing_holds_it(store: Store, rows: np.ndarray) -> None:
    module._spare.clear()
    batch = collate(store, rows[:9])
    place, kept = batch.molecules.atom_features.data_ptr(), batch.molecules.shortest_paths[3, 1:].numpy()[:2]
    before = kept.copy()
    del batch
    other = collate(store, rows[9:18])
    assert other.molecules.atom_features.data_ptr() != place  # a view of a view still holds it
    assert np.array_equal(kept, before)
    del kept
    size = len(module._spare)
    assert size == 1
    again = collate(store, rows[:9])
    assert again.molecules.atom_features.data_ptr() == place
    check_batch(store, again)
    check_batch(store, other)


def test_a_batch_of_no_molecules(store: Store) -> None:
    batch = collate(store, np.zeros(0, np.int64))
    assert batch.molecules.atom_features.shape == (0, 1, 9)
    assert batch.target.shape == (0,)


def test_rows_without_a_graph_are_a_mistake_of_the_caller(store: Store) -> None:
    refused = np.flatnonzero(store.flag == 2)
    with pytest.raises(AssertionError, match="without a graph"):
        collate(store, refused)


def test_rows_outside_the_store_are_a_mistake_of_the_caller(store: Store) -> None:
    for row in (-1, len(store), 10**9):
        with pytest.raises(AssertionError, match="outside the store"):
            collate(store, np.array([row]))


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


class _Failing(TargetStore):
    """Targets whose third batch cannot be read."""

    def __init__(self) -> None:
        self.calls = 0

    def gather(self, rows: np.ndarray, atoms: int, *, widen: bool = True, draw: int = 0) -> TeacherTargets:
        self.calls += 1
        if self.calls == 3:
            raise RunError("the disk is gone")
        empty = torch.zeros(1, len(rows), atoms, 1)
        return TeacherTargets(torch.zeros(len(rows), dtype=torch.bool), empty[0, :, 0, 0], empty[:, :, 0], empty)


def test_the_threads_errors_are_raised_here(store: Store, rows: np.ndarray) -> None:
    """In the place of the batch that failed: what came before it in its group is given out."""
    batches = epoch_batches(store, rows, batch_size=8, targets=_Failing())
    next(batches)
    next(batches)
    with pytest.raises(RunError, match="the disk is gone"):
        next(batches)
    assert _threads() == 0


def _tensors(record: object) -> list[torch.Tensor]:
    found = []
    for item in fields(record):  # type: ignore[arg-type]
        value = getattr(record, item.name)
        for part in value if isinstance(value, tuple) else (value,):
            found += [part] if isinstance(part, torch.Tensor) else _tensors(part) if is_dataclass(part) else []
    return found


def test_every_tensor_is_pinned_in_the_thread_and_only_when_asked(
    store: Store, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[tuple[str, torch.dtype]] = []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append((threading.current_thread().name, tensor.dtype))
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    targets = _Failing()
    whole = list(epoch_batches(store, rows, batch_size=50, targets=targets))
    assert pinned == []
    targets.calls = 0
    again = list(epoch_batches(store, rows, batch_size=50, targets=targets, pin=True))
    assert len(pinned) == len(whole) * len(_tensors(whole[0])) == 2 * 12
    assert {name for name, _ in pinned} == {"batches"}
    assert sum(kind == torch.uint8 for _, kind in pinned) == 2 * 3  # features, paths and codes stay bytes
    for one, other in zip(whole, again, strict=True):
        assert all(map(torch.equal, map(torch.nan_to_num, _tensors(one)), map(torch.nan_to_num, _tensors(other))))


def _check_states_travel_in_16_bits(store: Store, targets: TargetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned batches hold what the disk holds; widened, they are the batches of a CPU."""
    rows = np.concatenate([targets.rows, store.rows("valid")[:3]])
    plain = list(epoch_batches(store, rows, batch_size=16, targets=targets))
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
        pinned = list(epoch_batches(store, rows, batch_size=16, targets=targets, pin=True))
    for one, other in zip(plain, pinned, strict=True):
        (told,), (wide,) = other.teachers, other.widened().teachers
        assert told.atom_states.dtype == told.graph_states.dtype == torch.float16
        assert all(map(torch.equal, _tensors(one.teachers[0]), _tensors(wide)))


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_run_on_a_cpu_pins_nothing_and_one_on_a_gpu_asks_for_it(
    role: str, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training, evaluation and the teacher's pass."""

    class AskedError(Exception):
        pass

    def refuse(*given: object, pin: bool, **named: object) -> None:
        assert pin
        raise AskedError

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        raise AskedError

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    settings = load_run({"role": role, "model": {"width": 16, "depth": 1, "heads": 2}, "training": {"epochs": 1}})
    run_trial(TrialSpec(settings, tiny_store, tmp_path / "run"))
    trainer = Trainer(settings, Store.open(tiny_store))
    if role == "teacher":
        cache_teacher(tmp_path / "run", tiny_store, tmp_path / "targets")
        _check_states_travel_in_16_bits(trainer.store, TargetStore.open(tmp_path / "targets"), monkeypatch)
    for user in ("loop", "evaluate"):
        monkeypatch.setattr(f"moldistill.training.{user}.epoch_batches", refuse)
    trainer.device = torch.device("cuda")
    with pytest.raises(AskedError):
        trainer.run_epoch()
    with pytest.raises(AskedError):
        trainer.evaluate()


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
