"""The teacher's pass: its outputs on every training molecule, written once for all students."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from moldistill.core.artifacts import MANIFEST, Manifest, check_out, new_folder, write_manifest
from moldistill.core.errors import InputError, RunError
from moldistill.core.layers import Layers, check_layers, named_layers
from moldistill.core.locking import exclusive
from moldistill.core.progress import log, progress
from moldistill.core.seeds import generator
from moldistill.core.settings import bounded
from moldistill.data.store import Store
from moldistill.data.targets import COLUMNS, STATISTICS, TARGETS_SCHEMA, read_targets_manifest
from moldistill.training.account import account_of, tell
from moldistill.training.asking import Asking, Teacher
from moldistill.training.coding import fit_codings
from moldistill.training.evaluate import CPU, readable
from moldistill.training.target_pass import TargetPass, sampled_states

SAMPLE = 4096
"""Molecules that channels and scales are fitted on."""


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """What is kept of a teacher's states.

    layers: `all`, `last`, `every K` (each K-th, the last among them), or a list of layers, counted from 1.
    channels: principal components that are kept of each state; None keeps its channels as they are.
    bits: 16 (floats), or 8 (whole numbers with a scale per layer and channel).
    views: how often each molecule is shown to the teacher, each time with other Gaussian noise on its positions, of
    standard deviation `noise` (Å) and by `seed`, which also draws the sample that channels and scales are fitted on.
    """

    layers: Layers = "all"
    channels: int | None = bounded(None, ge=1)
    bits: Literal[8, 16] = 16
    views: int = bounded(1, ge=1, le=64)
    noise: float = bounded(0.0, ge=0, le=1)
    seed: int = bounded(0, ge=0)

    def __post_init__(self) -> None:
        check_layers(self.layers)
        if self.views > 1 and self.noise == 0:
            raise ValueError(f"{self.views} views differ by noise alone: give noise a value, such as 0.05")


@dataclass(frozen=True, slots=True)
class Cached:
    """A targets folder: whether it was made just now, its bytes on disk, and the facts of its manifest."""

    path: Path
    made: bool
    bytes: int
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Plan:
    """All that decides what is written. layers: kept ones. depth, width: of the teacher's states."""

    store: Store
    rows: NDArray[np.int64]
    settings: CacheSettings
    teacher: Teacher
    soft_labels: tuple[Teacher, ...]
    layers: tuple[int, ...]
    depth: int
    width: int

    @property
    def channels(self) -> int:
        """Channels that are kept."""
        return self.settings.channels or self.width

    @property
    def inputs(self) -> dict[str, str]:
        """Identities of what it is made from."""
        others = {f"soft_labels/{fold}": teacher.identity for fold, teacher in enumerate(self.soft_labels)}
        return {"teacher": self.teacher.identity, "store": self.store.identity} | others

    @property
    def options(self) -> dict[str, Any]:
        """Settings by which it is made."""
        names = ("channels", "bits", "views", "noise", "seed")
        return {"layers": list(self.layers)} | {name: getattr(self.settings, name) for name in names}

    @property
    def bytes(self) -> int:
        """Bytes of the columns on disk."""
        views, entries = self.settings.views, len(self.rows) * self.settings.views
        states = (int(self.store.size(self.rows).sum()) + len(self.rows)) * views * len(self.layers) * self.channels
        return states * self.settings.bits // 8 + entries * 12 + len(self.rows) * 8


def cache_targets(
    teacher: Teacher,
    store: Store,
    out: Path,
    *,
    settings: CacheSettings | None = None,
    soft_labels: Sequence[Teacher] = (),
    device: torch.device = CPU,
) -> Cached:
    """Write the targets folder `out`: the teacher's prediction and states for each training row with positions.

    soft_labels: teachers whose k-th did not train on part k (`hashing.fold_of`) of as many parts: each row's prediction
    is that of the one that did not see it. Rows of valid-3d get no targets: students train on none of them. Rows of
    which a teacher says NaN, or what 16 bits do not hold, are left out.
    A folder that already holds just these targets is left as it is. Raises InputError where it holds others, RunError
    where the disk cannot hold them or too many rows would be left out.
    """
    out = out.expanduser().absolute()
    plan = _plan(teacher, store, settings or CacheSettings(), tuple(soft_labels), device)
    if (finished := _finished(out, plan)) is not None:
        return finished
    check_out(out)
    with exclusive(out.parent / f".{out.name}.caching", f"{out} is being written already"):
        if (finished := _finished(out, plan)) is not None:  # by another process, just now
            return finished
        for remains in out.parent.glob(f".{out.name}.????????.partial"):  # of a pass that was killed
            shutil.rmtree(remains, ignore_errors=True)
        _check_disk(out, plan)
        with new_folder(out) as folder:
            manifest = _write(folder, plan, device)
    return Cached(out, True, _size(manifest), manifest.facts)


def _plan(
    teacher: Teacher, store: Store, settings: CacheSettings, soft_labels: tuple[Teacher, ...], device: torch.device
) -> _Plan:
    rows = readable(store, store.rows("train"), "teacher")
    if not len(rows):
        raise InputError(f"{store.path} has no training rows with positions", remedy="prepare a root that has an SDF")
    _, (probe,) = next(Asking(store, device, 0.0, 0).answers(teacher, rows[:1], 1))
    depth, width = len(probe.graph_states), probe.graph_states[0].shape[-1]
    layers = tuple(sorted(named_layers(settings.layers, depth)))
    if any(not 1 <= layer <= depth for layer in layers):
        raise InputError(
            "layers to keep", got=list(layers), expected=f"whole numbers from 1 to {depth}", remedy="change --layers"
        )
    if settings.channels is not None and settings.channels > width:
        raise InputError(
            "channels to keep",
            got=settings.channels,
            expected=f"at most {width}, the teacher's width",
            remedy="change --channels",
        )
    return _Plan(store, rows, settings, teacher, soft_labels, layers, depth, width)


def _finished(out: Path, plan: _Plan) -> Cached | None:
    """The targets that stand in `out`, None where nothing is finished there; InputError where they are others."""
    if not (out / MANIFEST).is_file():
        return None
    manifest = read_targets_manifest(out)
    before, after = (
        {
            "teacher": inputs["teacher"],
            "store": inputs["store"],
            "soft labels": [value for name, value in inputs.items() if name.startswith("soft_labels/")],
        }
        | options
        for inputs, options in ((manifest.inputs, manifest.facts["options"]), (plan.inputs, plan.options))
    )
    other = [name for name in after if before.get(name) != after[name]]
    if other:
        raise InputError(
            f"{out} holds other targets: they differ in {', '.join(other)}",
            got="; ".join(f"{name} {before.get(name)}" for name in other),
            expected="; ".join(f"{name} {after[name]}" for name in other),
            remedy="name another folder with --out, or remove this one",
        )
    log(f"{out} holds these targets already: {manifest.facts['rows']:,} molecules, {_mib(_size(manifest))}")
    return Cached(out, False, _size(manifest), manifest.facts)


def _size(manifest: Manifest) -> int:
    return sum(entry.size for entry in manifest.files.values())


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _check_disk(out: Path, plan: _Plan) -> None:
    free = shutil.disk_usage(out.parent).free
    kept = plan.settings
    log(
        f"teacher's targets take {_mib(plan.bytes)} ({free / 2**30:,.1f} GiB are free): {len(plan.rows):,} molecules; "
        f"views {kept.views}, layers {len(plan.layers)}, channels {plan.channels}, bits {kept.bits}"
    )
    if plan.bytes > free * 0.95:
        raise RunError(
            f"the targets do not fit on the disk of {out}",
            got=f"{free / 2**30:,.1f} GiB free",
            expected=f"{plan.bytes / 2**30:,.1f} GiB",
            remedy="keep fewer layers (--layers), channels (--channels), bits (--bits 8) or views (--views), or name "
            "another disk with --out",
        )


def _write(folder: Path, plan: _Plan, device: torch.device) -> Manifest:
    settings, layers = plan.settings, plan.layers
    asking = Asking(plan.store, device, settings.noise, settings.seed)
    random = generator(settings.seed, "sample of states")
    some = np.sort(random.choice(plan.rows, min(SAMPLE, len(plan.rows)), replace=False))
    samplings = (settings.channels is not None) + (settings.bits == 8)
    passes = 1 + bool(plan.soft_labels)
    with progress("teacher's targets", len(some) * samplings + len(plan.rows) * passes) as bar:
        codings = fit_codings(
            lambda: sampled_states(asking, plan.teacher, some, layers, bar),
            layers=len(layers),
            width=plan.width,
            channels=settings.channels,
            bits=settings.bits,
        )
        shape, views = (plan.width, plan.channels), settings.views
        work = TargetPass(
            folder, asking, plan.teacher, plan.rows, layers=layers, codings=codings, shape=shape, views=views
        )
        if plan.soft_labels:
            work.soft_labels(plan.soft_labels, bar)
        work.states(bar)
    work.finish()
    facts = {
        "targets_schema": TARGETS_SCHEMA,
        "rows": len(work.rows),
        "layers": layers,
        "depth": plan.depth,
        "width": plan.channels,
        "teacher_width": plan.width,
        "views": views,
        "bits": settings.bits,
        "options": plan.options,
    } | account_of(work, plan.store.target[work.rows], len(plan.soft_labels))
    tell(facts)
    files = [f"{name}.npy" for name in COLUMNS] + [STATISTICS]
    return write_manifest(folder, "targets", files=files, inputs=plan.inputs, facts=facts)
