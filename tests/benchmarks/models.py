"""The models: student and hybrid against PyTorch Geometric's GPSConv, and what batches of one size save a teacher.

Forward and backward over batches of 64 molecules in memory, one thread, all models of the same width, depth and heads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from inputs import Inputs, quietly_prepare
from step import batches_of_one_size, descend, gps_gradients
from timing import Figure, side_by_side
from torch import nn

from moldistill.chem.sample import sample_root
from moldistill.core.records import Batch
from moldistill.core.settings import ModelSettings, Role, RunSettings
from moldistill.data.batches import collate, epoch_batches
from moldistill.data.store import Store
from moldistill.models.registry import build_model
from moldistill.training.evaluate import forward, readable

WHOLE = ModelSettings(width=256, depth=6, heads=8, feedforward=2.0)
QUICK = ModelSettings(width=32, depth=2, heads=4, feedforward=2.0)


def models(inputs: Inputs) -> list[Figure]:
    """All comparisons on the first source."""
    name = inputs.names[0]
    store = inputs.store(name)
    shape = QUICK if inputs.quick else WHOLE
    count = 2 if inputs.quick else 6
    some = batches_of_one_size(store, count)
    peer = gps_gradients(RunSettings(role="student", model=shape), store, some)
    kept = {"rounds": inputs.rounds, "width": shape.width, "batches": len(some), "amx": _has_amx()}
    print("bf16 by AMX" if _has_amx() else "skipped: bf16 by AMX (no AMX on this processor); bf16 without it instead")
    figures = []
    for model in ("transformer", "hybrid"):
        for precision in ("fp32", "bf16"):
            settings = ModelSettings(model, shape.width, shape.depth, shape.heads, shape.feedforward)
            ours = gradients("student", settings, some, mixed=precision == "bf16")
            reading = f"GPSConv's forward and backward in fp32 / {model}'s in {precision}"
            figures.append(side_by_side(f"{model}: {precision}", name, reading, peer, ours, **kept))
    padded = [_padding(name, store, shape, inputs.rounds, count)]
    if name != "sample":
        quietly_prepare(sample_root(), inputs.scratch / "sample", None)
        padded.append(_padding("sample", Store.open(inputs.scratch / "sample"), shape, inputs.rounds, count))
    return [*figures, *padded]


def gradients(role: Role, settings: ModelSettings, batches: list[Batch], *, mixed: bool = False) -> Callable[[], None]:
    """Forward and backward of a model over the batches; mixed: under autocast to bf16."""
    model: nn.Module = build_model(role, settings)

    def work() -> None:
        for batch in batches:
            model.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                predicted = forward(model, role, batch).prediction
            descend((predicted - batch.target).abs().mean())

    return work


def _padding(name: str, store: Store, shape: ModelSettings, rounds: int, count: int) -> Figure:
    """The teacher on the same molecules, at random and sorted by size as `epoch_batches` does."""
    rows = readable(store, store.rows("train"), "teacher")
    rows = np.random.default_rng(0).permutation(rows)[: 64 * 2 * count]
    ordered = list(epoch_batches(store, np.sort(rows), batch_size=64, shuffle=True))
    mixed = [collate(store, rows[first : first + 64]) for first in range(0, len(rows), 64)]
    work = [gradients("teacher", shape, batches) for batches in (mixed, ordered)]
    padded = [sum(_tokens(batch) for batch in batches) for batches in (mixed, ordered)]
    share = padded[0] / padded[1]
    reading = f"teacher's forward and backward, batches at random / sorted by size ({share:.2f} times the tokens)"
    return side_by_side("teacher: padding", name, reading, *work, rounds=rounds, molecules=len(rows), tokens=padded)


def _tokens(batch: Batch) -> int:
    """Those of padding and the graph token included."""
    count, atoms = batch.positions.shape[:2]
    return count * (atoms + 1)


def _has_amx() -> bool:
    info = Path("/proc/cpuinfo")
    return info.is_file() and "amx_bf16" in info.read_text(encoding="utf-8")
