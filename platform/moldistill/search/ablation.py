"""YAML to `Ablation`: the arms of a comparison, as strict as a run's settings, and refused where they cannot tell."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from moldistill.core.config import apply_overrides, build, leaves, merge, read_yaml, to_mapping
from moldistill.core.errors import InputError, nearest
from moldistill.core.settings import RunSettings, bounded
from moldistill.models.registry import check_name
from moldistill.search.checks import unread
from moldistill.search.parse import Source, run_base, shipped_file, shipped_names
from moldistill.search.space import nested

FOLDER = "ablations"
ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")
"""Names of arms are names of folders, and parts of keys: no dots, no blanks."""

OWN_KEYS = {
    "training.seed": "`seeds` of the ablation takes its place",
    "training.budget_seconds": "`budget_seconds` of the ablation takes its place",
    "training.evaluate_every": "`evaluations` of the ablation takes its place",
}


@dataclass(frozen=True, slots=True)
class AblationSettings:
    """The YAML of an ablation, key by key.

    base: the run that all arms start from. arms: by name, what each changes (`base` there: a start of its own).
    baseline: the arm that all others are compared with. seeds: how many (from 0), or which.
    budget_seconds: of each training (process CPU time, on a GPU elapsed time); without it arms are as long as their
    epochs or steps say. fractions: parts of that length which every arm is also trained with, from scratch.
    metric: what is compared, in eV. boundary: heavy atoms that the errors are told up to and above; without it, those
    of the largest training molecule. equal_mean_weight: an arm; the atom terms of all others get its mean weight.
    evaluations: how often each training is evaluated, its end included. concurrent: trainings at a time.
    """

    base: str | Mapping[str, Any]
    arms: Mapping[str, Any]
    baseline: str
    seeds: int | tuple[int, ...] = 3
    budget_seconds: float | None = bounded(None, gt=0)
    fractions: tuple[float, ...] = (1.0,)
    metric: Literal["valid_mae", "valid_3d_mae"] = "valid_mae"
    boundary: int | None = bounded(None, ge=1)
    equal_mean_weight: str | None = None
    evaluations: int = bounded(1, ge=1)
    concurrent: int = bounded(1, ge=1)

    def __post_init__(self) -> None:
        known = self.known_seeds
        if not known or min(known) < 0 or len(set(known)) < len(known):
            raise ValueError(f"seeds {self.seeds}: expected how many (1 or more), or different whole numbers from 0")
        if len(set(self.fractions)) < len(self.fractions) or not all(0 < part <= 1 for part in self.fractions):
            raise ValueError(f"fractions {list(self.fractions)}: expected different numbers above 0, up to 1")
        if 1 not in self.fractions:
            raise ValueError(f"fractions {list(self.fractions)}: 1, the whole length, must be among them")

    @property
    def known_seeds(self) -> tuple[int, ...]:
        """The seeds, in order."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds


FREE = ("seeds", "metric", "boundary", "concurrent")
"""What may differ when an ablation is resumed: it changes no training that is there."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm: settings of its runs, before length, seed, targets and equal weights. changes: the keys it sets."""

    name: str
    settings: RunSettings
    changes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ablation:
    """A comparison that has been read and checked. where: its name in messages. mapping: as YAML, to be read again."""

    where: str
    settings: AblationSettings
    arms: tuple[Arm, ...]
    mapping: Mapping[str, Any] = field(repr=False)

    @property
    def fractions(self) -> tuple[float, ...]:
        """Parts of the length, the whole first."""
        return tuple(sorted(self.settings.fractions, reverse=True))


def ablation_names() -> list[str]:
    """Names of the ablations that come with the package."""
    return shipped_names(FOLDER)


def load_ablation(source: Source, overrides: Sequence[str] = ()) -> Ablation:
    """An ablation from the name of a shipped one, a YAML file or a mapping.

    overrides: `key=value` with a key of the ablation (`seeds=5`, `arms.NAME.distill.atom.weight=2`) or of the run
    (`training.epochs=8`), which replaces that of the base, in every arm that does not set it itself.

    Raises InputError for whatever is wrong, contradicts itself, would change nothing, or could not be compared.
    """
    if isinstance(source, Mapping):
        raw, where, folder = dict(source), "ablation", Path()
    else:
        path = shipped_file(source, FOLDER, "an ablation")
        raw, where, folder = read_yaml(path), str(path), path.parent
    raw, of_runs = _overridden(_unfolded(raw), overrides)
    settings = build(AblationSettings, raw, where)
    base = merge(run_base(settings.base, folder), apply_overrides({}, of_runs))
    arms, mappings = [], {}
    for name, changes in settings.arms.items():
        place = f"{where}: arms.{name}"
        own = dict(_named_changes(name, changes, place))
        start, mappings[name] = base, own
        if "base" in own:
            start = merge(run_base(own["base"], folder), apply_overrides({}, of_runs))
            mappings[name] = own | {"base": start}
        own.pop("base", None)
        keys = tuple(flat(own))
        arms.append(Arm(name, _settings(merge(start, own), keys, settings, place), keys))
    found = Ablation(where, settings, tuple(arms), to_mapping(settings) | {"base": base, "arms": mappings})
    _check_together(found)
    return found


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _unfolded(raw: dict[str, Any]) -> dict[str, Any]:
    """The same with dotted keys of arms as mappings, and an arm that changes nothing as an empty one."""
    arms = raw.get("arms")
    if not isinstance(arms, Mapping):
        return raw
    told = {name: {} if changes is None else changes for name, changes in arms.items()}
    return raw | {
        "arms": {name: nested(changes) if isinstance(changes, Mapping) else changes for name, changes in told.items()}
    }


def _overridden(raw: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The raw ablation with its own overrides, and those of the runs."""
    sections = {item.name for item in fields(AblationSettings)}
    known, of_runs = leaves(RunSettings), []
    for override in overrides:
        key, sign, _ = override.partition("=")
        if sign and key.strip() in known:
            of_runs.append(override)
        elif sign and key.strip().split(".")[0] not in sections:
            near = nearest(key, [*known, *sections])
            raise InputError(
                f"override '{override}': neither the ablation nor the run has the key '{key}'",
                expected="a key of the ablation, such as seeds, or of the run, such as training.epochs",
                remedy=f"did you mean '{near}'?" if near else "check the key",
            )
        else:
            raw = apply_overrides(raw, [override])
    return raw, of_runs


def _named_changes(name: str, changes: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(name, str) or not ARM_NAME.fullmatch(name):
        raise InputError(
            f"{place}: the name of an arm is the name of a folder",
            got=repr(name),
            expected="letters, digits, _, + and -",
            remedy="rename it",
        )
    if not isinstance(changes, Mapping):
        raise InputError(
            f"{place}: not a mapping",
            got=f"{changes!r} ({type(changes).__name__})",
            expected="keys of the run, such as {distill.graph.weight: 0.5}, or nothing",
            remedy="write key: value",
        )
    return changes


def _settings(mapping: Mapping[str, Any], keys: Sequence[str], ablation: AblationSettings, place: str) -> RunSettings:
    """Settings of an arm's runs. InputError for what contradicts itself, the ablation, or changes nothing."""
    settings = build(RunSettings, mapping, place)
    check_name(settings.role, settings.model.name)
    training = settings.training
    length = ("training.epochs", "training.steps") if ablation.budget_seconds is not None else ()
    dead = OWN_KEYS | dict.fromkeys(length, "`budget_seconds` of the ablation takes its place")
    for key in keys:
        if reason := dead.get(key) or unread(key, settings):
            raise InputError(
                f"{place}.{key}: nothing reads it",
                got=reason,
                expected="keys that change what is trained",
                remedy="remove it, or set what makes it count",
            )
    if training.budget_seconds is not None or (training.steps is not None and ablation.budget_seconds is not None):
        key = "budget_seconds" if training.budget_seconds is not None else "steps"
        raise InputError(
            f"{place}: training.{key} of its base says how long it is, too",
            got=f"{getattr(training, key):g}",
            expected="one length: budget_seconds of the ablation, or epochs or steps of the runs",
            remedy=f"set training.{key} to null",
        )
    if training.workers != 1:
        raise InputError(
            f"{place}: training.workers is {training.workers}",
            expected="1: each training of an ablation is one process",
            remedy="remove it, and raise `concurrent` instead",
        )
    if settings.role == "teacher" and ablation.metric != "valid_3d_mae":
        raise InputError(
            f"{place}: validation rows have no geometry for a teacher to see",
            got=f"metric: {ablation.metric}",
            expected="valid_3d_mae",
            remedy="write `metric: valid_3d_mae`",
        )
    return settings


def _check_together(ablation: Ablation) -> None:
    """InputError for arms that could not be told apart, and names of arms that are none."""
    names = [arm.name for arm in ablation.arms]
    if len(names) < 2:
        raise InputError(f"{ablation.where}: arms", got=", ".join(names), expected="two or more", remedy="add an arm")
    for key in ("baseline", "equal_mean_weight"):
        value = getattr(ablation.settings, key)
        if value is not None and value not in names:
            near = nearest(value, names)
            raise InputError(
                f"{ablation.where}: {key} is no arm",
                got=value,
                expected=", ".join(names),
                remedy=f"did you mean '{near}'?" if near else "name one of the arms",
            )
    for one, other in _pairs(ablation.arms):
        if to_mapping(one.settings) == to_mapping(other.settings):
            raise InputError(
                f"{ablation.where}: arms.{other.name} has the same settings as arms.{one.name}",
                expected="arms that differ: the same runs twice look like more evidence than they are",
                remedy="remove one, or change it",
            )
    _check_reference(ablation)


def _check_reference(ablation: Ablation) -> None:
    reference = next((arm for arm in ablation.arms if arm.name == ablation.settings.equal_mean_weight), None)
    if reference is None:
        return
    atom = reference.settings.distill.atom
    if atom.weight == 0 or atom.normalization == "gradient_matched":
        raise InputError(
            f"{ablation.where}: equal_mean_weight names an arm without a fixed weight per atom",
            got=f"{reference.name}: distill.atom.weight {atom.weight:g}, normalization {atom.normalization}",
            expected="an arm with an atom term whose scheme is not gradient_matched",
            remedy="name another arm",
        )


def _pairs(arms: Sequence[Arm]) -> Iterator[tuple[Arm, Arm]]:
    return ((one, other) for place, one in enumerate(arms) for other in arms[place + 1 :])
