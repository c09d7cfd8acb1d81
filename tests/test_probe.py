"""What each term moves, by molecule size, and teachers in several: against gradients taken by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from moldistill.core.config import load_run
from moldistill.core.errors import InputError
from moldistill.core.hashing import fold_of
from moldistill.core.settings import RunSettings
from moldistill.data.batches import collate, epoch_batches
from moldistill.data.store import Store
from moldistill.data.targets import TargetStore
from moldistill.data.teachers import TeacherSet
from moldistill.distill.diagnostics import shares_by_size
from moldistill.distill.objective import Counts
from moldistill.models.registry import build_model
from moldistill.training.asking import Teacher
from moldistill.training.cache import cache_targets
from moldistill.training.evaluate import target_scale, training_rows
from moldistill.training.loop import Trainer
from moldistill.training.probe import EVERY, Probe, is_due

MODEL = {"width": 16, "depth": 2, "heads": 2, "kernels": 4}


@pytest.fixture(scope="module")
def folders(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Targets of two teachers that have learned nothing, of different width and depth."""
    store, made = Store.open(tiny_store), []
    for number, changes in enumerate(({}, {"width": 24, "depth": 3})):
        torch.manual_seed(number)
        settings = load_run({"role": "teacher", "model": MODEL | changes}).model
        out = tmp_path_factory.mktemp("targets") / str(number)
        scale = target_scale(store)
        cache_targets(Teacher(build_model("teacher", settings), scale, str(number)), store, out)
        made.append(out)
    return made


def settings(folders: list[Path], **distill: object) -> RunSettings:
    weights = {name: {"weight": 0.5} for name in ("prediction", "graph", "atom")}
    training = {"epochs": 8, "batch_size": 16}
    return load_run(
        {"model": MODEL, "training": training, "distill": weights | distill, "targets": [str(path) for path in folders]}
    )


def trainer(store: Path, folders: list[Path], **distill: object) -> Trainer:
    opened, run = Store.open(store), settings(folders, **distill)
    return Trainer(run, opened, TeacherSet.open(folders, opened.identity, sampled=run.distill.teachers == "sampled"))


def by_size(ours: Trainer) -> dict[tuple[int, int] | None, dict[str, float]]:
    return shares_by_size({f"share_{name}": share for name, share in ours.shares().items()})


def test_shares_are_those_of_gradients_taken_by_hand(tiny_store: Path, folders: list[Path]) -> None:
    """Of a class: norms of its own mean gradient. Of all: of the classes' gradients, weighted as they occur."""
    ours = trainer(tiny_store, folders)
    found = by_size(ours)
    assert ours.probe is not None
    classes = ours.probe.classes
    assert len(classes) > 1
    assert sum(members.share for members in classes) == pytest.approx(1.0)
    whole: dict[str, torch.Tensor] = {}
    for members in classes:
        sizes = ours.store.size(members.rows)
        assert members.smallest <= sizes.min() <= sizes.max() <= members.largest
        batch = collate(ours.store, members.rows, ours.targets)
        counts = replace(Counts.from_tensor(Counts.of(batch)))
        norms = {}
        for name in found[None]:
            ours.model.zero_grad()
            ours.model.eval()
            terms = ours.objective.eval()(ours.model(batch.molecules), batch, counts, 0.0)
            terms[name].backward()
            parts = [p.grad.flatten() for p in ours.model.parameters() if p.grad is not None]
            gradient = torch.cat(parts)
            norms[name] = float(gradient.norm())
            if all(p.grad is not None for p in ours.model.parameters()):
                whole[name] = whole.get(name, 0.0) + members.share * gradient
        by_hand = {name: norm / sum(norms.values()) for name, norm in norms.items()}
        assert found[(members.smallest, members.largest)] == pytest.approx(by_hand, rel=1e-3)
    assert found[None]["label"] / found[None]["prediction"] == pytest.approx(
        float(whole["label"].norm() / whole["prediction"].norm()), rel=1e-3
    )


def test_probing_changes_nothing_and_repeats(tiny_store: Path, folders: list[Path]) -> None:
    """The run with probes and the run without end with the same weights, with dropout, too."""
    ends = []
    for probing in (True, False):
        ours = trainer(tiny_store, folders)
        if not probing:
            ours.shares = dict  # type: ignore[method-assign, assignment]
        reports = list(ours.fit())
        assert ("share_graph" in reports[0].metrics) is probing
        ends.append([parameter.detach().clone() for parameter in ours.model.parameters()])
        if probing:
            assert ours.shares() == ours.shares()
    assert all(map(torch.equal, *ends))


def test_a_term_that_its_schedule_holds_low_is_left_out(tiny_store: Path, folders: list[Path]) -> None:
    ours = trainer(tiny_store, folders, graph={"weight": 1.0, "schedule": "linear"})
    assert "graph" not in by_size(ours)[None]
    ours.step = ours.total_steps // 2
    assert by_size(ours)[None]["graph"] > 0


def test_nothing_is_probed_where_the_label_is_alone(tiny_store: Path) -> None:
    ours = Trainer(load_run({"model": MODEL}), Store.open(tiny_store))
    assert ours.shares() == {}
    assert ours.probe is None


def test_batch_mean_knows_no_classes(tiny_store: Path, folders: list[Path]) -> None:
    """Its weight is that of a batch of average molecules in every class, as it is in training."""
    ours = trainer(tiny_store, folders, atom={"weight": 1.0, "normalization": "batch_mean"})
    probe = Probe(ours.store, ours.rows, ours.targets, 0)
    for members in probe.classes:
        counts = probe._counts(collate(ours.store, members.rows, ours.targets))
        assert float(counts.atoms / counts.molecules) == pytest.approx(probe.mean_atoms)


@pytest.mark.parametrize("steps_per_epoch", [1, 30, 199, 200, 201, 5000])
def test_probes_lie_apart(steps_per_epoch: int) -> None:
    due = [epoch for epoch in range(2000) if is_due(epoch, steps_per_epoch)]
    assert due[0] == 0
    assert max(np.diff(due)) == pytest.approx(max(1, EVERY / steps_per_epoch), abs=1)
    assert len(due) <= 2 + 2000 * steps_per_epoch / EVERY


def test_a_sampled_teacher_is_drawn_by_place_alone(tiny_store: Path, folders: list[Path]) -> None:
    store = Store.open(tiny_store)
    teachers = TeacherSet.open(folders, store.identity, sampled=True, seed=3)
    rows = store.usable(store.rows("train"))
    runs = [
        [
            [told.teacher for told in batch.teachers]
            for batch in epoch_batches(store, rows, batch_size=4, targets=teachers, shuffle=True, epoch=epoch, **cut)  # type: ignore[arg-type]
        ]
        for epoch in (0, 1)
        for cut in ({}, {"rank": 1, "world_size": 2}, {"start": 3})
    ]
    assert runs[0] == runs[1]
    assert runs[0][3:] == runs[2]
    assert runs[0] != runs[3]
    assert {number for batch in runs[0] for number in batch} == {0, 1}
    assert all(len(batch) == 1 for batch in runs[0])


def test_all_teachers_are_there_where_they_are_averaged(tiny_store: Path, folders: list[Path]) -> None:
    store = Store.open(tiny_store)
    teachers = TeacherSet.open(folders, store.identity)
    known = np.intersect1d(*(TargetStore.open(folder).rows for folder in folders))
    assert np.array_equal(teachers.rows, known)
    batch = collate(store, known[:5], teachers)
    assert [told.teacher for told in batch.teachers] == [0, 1]
    assert [told.graph_states.shape[2] for told in batch.teachers] == [16, 24]
    assert teachers.identity != TeacherSet.open(folders[::-1], store.identity).identity
    assert TeacherSet.open(folders[:1], store.identity).identity == TargetStore.open(folders[0]).identity
    with pytest.raises(InputError, match="holds targets of another store"):
        TeacherSet.open(folders, "another")


@pytest.mark.parametrize("mode", ["averaged", "sampled"])
def test_a_student_learns_from_two_teachers(mode: str, tiny_store: Path, folders: list[Path]) -> None:
    ours = trainer(tiny_store, folders, teachers=mode)
    assert ours.targets is not None
    both = TeacherSet(ours.targets.stores)
    batch = collate(ours.store, ours.rows[:16], both)

    def losses() -> list[float]:
        """Of the atom term, by teacher."""
        counts = Counts.from_tensor(Counts.of(batch))
        with torch.no_grad():
            output = ours.model(batch.molecules)
            parts = [replace(batch, teachers=(one,)) for one in batch.teachers]
            return [float(ours.objective(output, part, counts, 0.5)["atom"]) for part in parts]

    before = losses()
    for _ in ours.fit():
        pass
    assert all(np.array(losses()) < before)
    projections = [len(list(taught.parameters())) for taught in ours.objective.teachers]
    assert projections == [2 * 2 * 2, 2 * 3 * 2]  # weight and bias, graph and atom, per layer


def test_folds_leave_out_their_part_and_cover_all(tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    whole = training_rows(load_run({"role": "teacher"}), store, None)
    left_out = []
    for fold in range(4):
        run = load_run({"role": "teacher", "training": {"folds": 4, "fold": fold}})
        rows = training_rows(run, store, None)
        left_out.append(np.setdiff1d(whole, rows))
        assert set(fold_of(left_out[-1], 4)) <= {fold}
    assert np.array_equal(np.sort(np.concatenate(left_out)), whole)
    counts = np.bincount(fold_of(np.arange(100_000), 5))
    assert counts.min() > 19_500  # 20,000 each, standard deviation 126
    with pytest.raises(InputError, match="not below folds"):
        load_run({"training": {"folds": 4, "fold": 4}})


def test_gradient_of_the_local_term_against_size_on_real_molecules(folders: list[Path], tiny_store: Path) -> None:
    """Per molecule: that of a sum grows with N, that of a mean stays near flat, the coordinated scheme's falls.

    c(N) multiplies a molecule's gradient, so that the exponents of the schemes differ by exactly 1; where they lie is
    the student's doing: 1 if the gradients of a molecule's atoms pull together, 1/2 if they are independent.
    """
    store = Store.open(tiny_store)
    targets = TeacherSet.open(folders[:1], store.identity)
    sizes, slopes = store.size(targets.rows), {}
    rows = targets.rows[np.unique(sizes, return_index=True)[1]]
    for scheme in ("sum", "molecule_mean", "coordinated"):
        atom = {"weight": 1.0, "normalization": scheme}
        ours = trainer(tiny_store, folders[:1], atom=atom, graph={"weight": 0.0}, prediction={"weight": 0.0})
        norms = []
        for row in rows:
            batch = collate(store, np.array([row]), targets)
            term = ours.objective(ours.model(batch.molecules), batch, Counts(1.0, 1.0, 1.0, 1.0), 0.5)["atom"]
            parts = torch.autograd.grad(term, list(ours.model.parameters()), allow_unused=True)
            norms.append(torch.cat([part.flatten() for part in parts if part is not None]).norm().item())
        slopes[scheme] = np.polyfit(np.log(store.size(rows)), np.log(norms), 1)[0]
    assert 0.4 < slopes["sum"] < 1.1
    assert slopes["molecule_mean"] == pytest.approx(slopes["sum"] - 1, abs=1e-4)
    assert slopes["coordinated"] == pytest.approx(slopes["sum"] - 2, abs=1e-4)
