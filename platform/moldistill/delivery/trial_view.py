"""One trial as people look at it: its settings against the base's, its epochs, attempts, files and errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moldistill.core.artifacts import MANIFEST, read_manifest
from moldistill.core.config import to_mapping
from moldistill.core.errors import InputError
from moldistill.delivery.disk_use import DiskUse, usage
from moldistill.delivery.study_view import Study, replicates_of
from moldistill.distill.diagnostics import warnings_by_size
from moldistill.search.space import Space
from moldistill.search.study import TrialRow
from moldistill.trial.folder import read_metrics

MEASURES = ("valid_mae", "valid_3d_mae", "train_loss", "learning_rate", "cpu_seconds")
"""What is shown of an epoch, where it is there."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A key whose value is not the base's. origin: searched, fixed (by the space), or derived (by the search)."""

    key: str
    base: Any
    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class TrialReport:
    """A trial. allowed: the epochs of a full training. curve: one mapping of figures per epoch, None if not finite.

    accumulate: parts that memory made it split batches into. errors_by_size: by split, as `run` manifests have them.
    warnings: (epoch, text) of loss terms that do nothing or drown the label, each when it was first seen. replicates:
    values (eV) over fresh seeds, None where one failed.
    """

    study: str
    objectives: tuple[str, ...]
    trial: TrialRow
    allowed: int
    finished: bool
    stopped_at: int | None
    accumulate: int | None
    parameters: int | None
    settings: tuple[Setting, ...]
    curve: tuple[Mapping[str, Any], ...]
    errors_by_size: Mapping[str, Sequence[Mapping[str, Any]]]
    warnings: tuple[tuple[int, str], ...]
    replicates: Mapping[int, float | None]
    disk: tuple[DiskUse, ...]


def trial_report(study: Study, number: int) -> TrialReport:
    """A trial of the study. InputError where it has none of this number."""
    row, space = study.row(number), study.ledger.space
    folder = study.out / row.folder
    marks = next(trial.user_attrs for trial in study.ledger.trials() if trial.number == number)
    finished = (folder / MANIFEST).is_file()
    facts = read_manifest(folder, "run").facts if finished else {}
    records = read_metrics(folder)
    return TrialReport(
        study=str(study.out),
        objectives=tuple(str(objective.metric) for objective in space.objectives),
        trial=row,
        allowed=int(row.parameters.get("training.epochs", space.epochs)),
        finished=finished,
        stopped_at=marks.get("stopped_at"),
        accumulate=marks.get("accumulate"),
        parameters=facts.get("parameters"),
        settings=differences_to_base(space, row.parameters),
        curve=tuple(_finite(record) for record in records),
        errors_by_size=facts.get("errors_by_size") or {},
        warnings=tuple(_warnings(records)),
        replicates={one["seed"]: one["value"] for one in replicates_of(study) if one["trial"] == number},
        disk=usage(folder) if folder.is_dir() else (),
    )


def differences_to_base(space: Space, values: Mapping[str, Any]) -> tuple[Setting, ...]:
    """What the trial with these values has otherwise than the base; parameters that were searched in any case."""
    base = flat(space.base)
    try:
        whole = flat(to_mapping(space.settings(values)))
    except InputError:  # the space has changed since, and these values no longer go with it
        whole = base | dict(space.fixed) | dict(values)
    found = []
    for key, value in whole.items():
        origin = "searched" if key in values else "fixed" if key in space.fixed else "derived"
        if origin == "searched" or repr(value) != repr(base.get(key)):
            found.append(Setting(key, base.get(key), value, origin))
    places = {"searched": 0, "fixed": 1, "derived": 2}
    return tuple(sorted(found, key=lambda one: places[one.origin]))


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``; sequences are values, as lists."""
    return dict(_flat(mapping, prefix))


def _flat(mapping: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple | list) else value


def _finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record whose figures are numbers or None: JSON knows no NaN."""
    return {key: value if math.isfinite(value) else None for key, value in record.items()}


def _warnings(curve: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, str]]:
    warned = set[str]()
    for record in curve:
        for warning in warnings_by_size(record):
            term = warning.split("'")[1]
            if term not in warned:
                warned.add(term)
                yield int(record["epoch"]), warning
