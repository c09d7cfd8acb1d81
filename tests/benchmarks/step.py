"""The training step: against PyTorch Geometric's GPSConv, teacher against student, distilled against not, and the loop.

Batches are of 64 training molecules of like size, in memory before the clock starts; fp32, one thread.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from typing import Any

import torch
from inputs import Inputs, pyg_data
from timing import Figure, side_by_side
from torch import Tensor, nn
from torch_geometric.data import Batch as GraphBatch
from torch_geometric.nn import GINEConv, GPSConv, global_add_pool

from moldistill.core.config import load_run
from moldistill.core.records import Batch, TeacherTargets
from moldistill.core.settings import RunSettings
from moldistill.core.vocabulary import ATOM_SIZES, BOND_SIZES
from moldistill.data.batches import collate, epoch_batches
from moldistill.data.store import Store
from moldistill.data.targets import TargetStore
from moldistill.data.teachers import TeacherSet
from moldistill.models.registry import build_model
from moldistill.training.asking import Teacher
from moldistill.training.cache import cache_targets
from moldistill.training.evaluate import forward, readable, target_scale
from moldistill.training.loop import Trainer
from moldistill.training.steps import EpochSums

ALL_TERMS = ("distill.pair.weight=0.1",)


class GraphGPS(nn.Module):
    """PyG's graph transformer, width, depth, heads and feed-forward as ours; one table per kind of feature, as ours."""

    def __init__(self, settings: RunSettings) -> None:
        super().__init__()
        model = settings.model
        self.atoms = nn.Embedding(sum(ATOM_SIZES), model.width)
        self.bonds = nn.Embedding(sum(BOND_SIZES), model.width)
        self.layers = nn.ModuleList(_gps_layer(model.width, model.heads) for _ in range(model.depth))
        self.head = nn.Sequential(nn.Linear(model.width, model.width), nn.GELU(), nn.Linear(model.width, 1))
        self.atom_offsets = torch.tensor([0, *ATOM_SIZES[:-1]]).cumsum(0)
        self.bond_offsets = torch.tensor([0, *BOND_SIZES[:-1]]).cumsum(0)

    def forward(self, batch: Any) -> Tensor:
        states = self.atoms(batch.x + self.atom_offsets).sum(1)
        bonds = self.bonds(batch.edge_attr + self.bond_offsets).sum(1)
        for layer in self.layers:
            states = layer(states, batch.edge_index, batch.batch, edge_attr=bonds)
        predicted: Tensor = self.head(global_add_pool(states, batch.batch))[:, 0]
        return predicted


def _gps_layer(width: int, heads: int) -> GPSConv:
    local = GINEConv(nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)))
    return GPSConv(width, local, heads=heads, act="gelu")


def training_step(inputs: Inputs) -> list[Figure]:
    """All comparisons on the first source."""
    name = inputs.names[0]
    store = inputs.store(name)
    some = batches_of_one_size(store, min(8, inputs.limit // 64))
    student, teacher = load_run(f"student-{inputs.preset}"), load_run(f"teacher-{inputs.preset}")
    bodies = [load_run(f"{role}-{inputs.preset}", ["model.name=transformer"]) for role in ("student", "teacher")]
    ours, theirs = (_gradients(body, some) for body in bodies)
    peer = gps_gradients(bodies[0], store, some)
    kept = {"rounds": inputs.rounds, "batches": len(some)}
    figures = [
        side_by_side("step: PyG", name, "GPSConv's forward and backward / our student's", peer, ours, **kept),
        side_by_side("step: teacher", name, "teacher's forward and backward / student's", theirs, ours, **kept),
    ]
    targets = _targets(inputs, store, teacher)
    plain = Trainer(student, store)
    terms = (
        ("all terms", ALL_TERMS),
        ("gradient_matched", (*ALL_TERMS, "distill.atom.normalization=gradient_matched")),
    )
    for title, overrides in terms:
        distilled = _distilled(inputs, store, targets, overrides)
        loaded = [collate(store, batch.molecules.rows.numpy(), targets) for batch in some]
        figures.append(
            side_by_side(
                f"step: distilled, {title}",
                name,
                "distilled step / undistilled step",
                _steps(distilled, loaded),
                _steps(plain, some),
                **kept,
            )
        )
    figures.append(_live_teacher(inputs, store, targets, teacher, some))
    return [*figures, _gathering(name, store, targets, inputs.rounds), _loop(name, store, student, inputs.rounds)]


def _distilled(inputs: Inputs, store: Store, targets: TargetStore, overrides: tuple[str, ...]) -> Trainer:
    run = load_run(f"student-{inputs.preset}-distilled", [*overrides, f"targets={targets.path}"])
    return Trainer(run, store, targets)


def _live_teacher(
    inputs: Inputs, store: Store, targets: TargetStore, teacher: RunSettings, batches: list[Batch]
) -> Figure:
    """What is saved by asking the teacher once, and reading from the disk what it said."""
    cached, live = (_distilled(inputs, store, targets, ALL_TERMS) for _ in range(2))
    model, teachers = build_model("teacher", teacher.model).eval(), TeacherSet((targets,))

    def read() -> None:
        for place, batch in enumerate(batches):
            told = teachers.gather(batch.molecules.rows.numpy(), batch.positions.shape[1], epoch=0, batch=place)
            cached.take_step(replace(batch, teachers=told))

    def ask() -> None:
        for batch in batches:
            with torch.no_grad():
                said = forward(model, "teacher", batch)
            states = torch.stack(said.graph_states), torch.stack(said.atom_states)
            told = TeacherTargets(torch.ones_like(batch.has_positions), said.prediction, *states)
            live.take_step(replace(batch, teachers=(told,)))

    reading = "step with a live teacher / step with cached targets, their reading included"
    name, kept = inputs.names[0], {"rounds": inputs.rounds, "batches": len(batches)}
    return side_by_side("step: live teacher", name, reading, ask, read, **kept)


def batches_of_one_size(store: Store, count: int) -> list[Batch]:
    """Whole batches of 64 training molecules, each of like size."""
    rows = readable(store, store.rows("train"), "teacher")
    rows = rows[store.flag[rows] == 0]
    found = list(epoch_batches(store, rows, batch_size=64, shuffle=True))
    return [batch for batch in found if len(batch.target) == 64][:count]


def descend(loss: Tensor) -> None:
    """The backward pass."""
    loss.backward()  # type: ignore[no-untyped-call]


def _gradients(settings: RunSettings, batches: list[Batch]) -> Callable[[], None]:
    """Forward and backward of a model over the batches."""
    model = build_model(settings.role, settings.model)

    def work() -> None:
        for batch in batches:
            model.zero_grad(set_to_none=True)
            descend((forward(model, settings.role, batch).prediction - batch.target).abs().mean())

    return work


def gps_gradients(settings: RunSettings, store: Store, batches: list[Batch]) -> Callable[[], None]:
    """Forward and backward of PyG's model over the same molecules."""
    model = GraphGPS(settings)
    loaded = [
        GraphBatch.from_data_list(
            [pyg_data(store.smiles(int(row)), float(store.target[row])) for row in batch.molecules.rows]
        )
        for batch in batches
    ]

    def work() -> None:
        for batch in loaded:
            model.zero_grad(set_to_none=True)
            descend((model(batch) - batch.y).abs().mean())

    return work


def _targets(inputs: Inputs, store: Store, teacher: RunSettings) -> TargetStore:
    """Targets of a teacher that has learned nothing: they cost what any teacher's do."""
    out = inputs.scratch / "targets"
    model = build_model("teacher", teacher.model)
    with redirect_stderr(io.StringIO()):
        cache_targets(Teacher(model, target_scale(store), "none"), store, out)
    return TargetStore.open(out)


def _steps(trainer: Trainer, batches: list[Batch]) -> Callable[[], None]:
    """Whole steps of the loop (objective, clipping, optimizer, averaged weights) over loaded batches."""
    trainer.model.train()
    trainer.objective.train()

    def work() -> None:
        for batch in batches:
            trainer.take_step(batch)

    return work


def _gathering(name: str, store: Store, targets: TargetStore, rounds: int) -> Figure:
    """What a teacher's targets add to the making of batches."""

    def work(of: TargetStore | None) -> Callable[[], None]:
        def epoch() -> None:
            for _ in epoch_batches(store, targets.rows, batch_size=64, shuffle=True, targets=of):
                pass

        return epoch

    reading = "batches with the teacher's targets / without"
    return side_by_side("batches: targets", name, reading, work(targets), work(None), rounds=rounds)


def _loop(name: str, store: Store, settings: RunSettings, rounds: int) -> Figure:
    """An epoch of the loop, data included, against forward, backward, clipping and optimizer on loaded batches."""
    trainer, bare = Trainer(settings, store), Trainer(settings, store)
    scale, clip = bare.scale, settings.optimizer.clip_norm
    loaded = list(epoch_batches(store, bare.rows, batch_size=settings.training.batch_size, shuffle=True))

    def work() -> None:
        for batch in loaded:
            bare.optimizer.zero_grad(set_to_none=True)
            predicted = forward(bare.model, settings.role, batch).prediction
            descend((predicted - (batch.target - scale.mean) / scale.std).abs().mean())
            nn.utils.clip_grad_norm_(bare.parameters, clip)
            bare.optimizer.step()

    def whole_epoch() -> None:
        trainer.run_epoch()
        trainer.step, trainer.sums = 0, EpochSums()

    reading = "an epoch of the loop, data included / bare steps on loaded batches"
    return side_by_side("loop", name, reading, whole_epoch, work, rounds=rounds, steps=len(loaded))
