"""Parameters that nothing would read, and configurations that contradict themselves: found before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from moldistill.core.errors import InputError
from moldistill.core.settings import AtomTermSettings, RunSettings
from moldistill.models.registry import check_name
from moldistill.search.combinations import check_combinations
from moldistill.search.compile import sample
from moldistill.search.constraints import parse_constraint
from moldistill.search.parameters import Way, follows, walk, with_ways
from moldistill.search.space import Space

SAMPLES = 256
"""Random configurations that are looked at, and `BRANCH_SAMPLES` of each branch that none of them went through."""

BRANCH_SAMPLES = 64

TEACHER_ONLY = ("model.kernels", "model.hydrogens", "model.angles", "model.denoising", "training.position_noise")
UNREAD_BY_MODEL = {
    "model.max_path": ("gine", "gps", "schnet", "visnet"),
    "model.angles": ("schnet", "visnet"),
}
SCHEDULED_ONLY = ("optimizer.final", "training.ema")
POWER_SCHEMES = ("power", "dataset_mean")
UNTIL_SHAPES = ("warmup", "decay")


Trainable = tuple[dict[str, Any], RunSettings]
"""A configuration, by dotted key, and the settings of its trial."""


@dataclass(frozen=True, slots=True)
class SpaceCheck:
    """What the samples of a space showed.

    configurations: sampled values of the first trials that can be trained. refused: share of samples whose settings
    contradict themselves or violate a constraint (they are sampled again). notes: what works and could be better.
    needs_targets: whether a trial reads a teacher's outputs.
    """

    configurations: tuple[dict[str, Any], ...]
    refused: float
    notes: tuple[str, ...]
    needs_targets: bool


def unread(name: str, settings: RunSettings) -> str | None:
    """Why no part of the run reads the key `name` under these settings, or None where something does."""
    if name in TEACHER_ONLY and settings.role == "student":
        return "only teachers read it"
    if settings.model.name in UNREAD_BY_MODEL.get(name, ()):
        return f"model.name is {settings.model.name}"
    if name in SCHEDULED_ONLY and settings.optimizer.kind == "schedule_free":
        return "optimizer.kind is schedule_free"
    if name.startswith("training."):
        return _unread_training(name, settings)
    return _unread_term(name, settings) if name.startswith("distill.") else None


def _unread_training(name: str, settings: RunSettings) -> str | None:
    training = settings.training
    if name == "training.batch_size" and training.atoms_per_batch is not None:
        return "training.atoms_per_batch takes its place"
    if name in ("training.epochs", "training.budget_seconds") and training.steps is not None:
        return "training.steps takes its place"
    if name == "training.epochs" and training.budget_seconds is not None:
        return "training.budget_seconds takes its place"
    return "training.folds is null" if name == "training.fold" and training.folds is None else None


def _unread_term(name: str, settings: RunSettings) -> str | None:
    if name == "distill.teachers":
        if not settings.distill.needs_teacher:
            return "no term has a weight that reads a teacher"
        return None if len(settings.target_folders) > 1 else "there is one teacher"
    _, term_name, key = name.split(".")
    term = getattr(settings.distill, term_name)
    if key == "weight":
        return None
    if term.weight == 0:
        return f"distill.{term_name}.weight is 0"
    if key == "until" and term.schedule not in UNTIL_SHAPES:
        return f"distill.{term_name}.schedule is {term.schedule}, and only {' and '.join(UNTIL_SHAPES)} read it"
    if isinstance(term, AtomTermSettings):
        if key == "power" and term.normalization not in POWER_SCHEMES:
            return f"distill.atom.normalization is {term.normalization}, and only {' and '.join(POWER_SCHEMES)} read it"
        if key == "share" and term.normalization != "gradient_matched":
            return f"distill.atom.normalization is {term.normalization}, and only gradient_matched reads it"
    return None


def check_space(space: Space) -> SpaceCheck:
    """Sample the space and refuse what cannot work: dead parameters, contradictions, combinations without a sense."""
    notes = list(check_combinations(space))
    settled: list[Trainable] = []
    refusals: list[InputError] = []
    for values in sample(space.parameters, SAMPLES):
        try:
            settled.append((values, space.unconstrained(values)))
        except InputError as error:
            refusals.append(error)
    if not settled:
        _refuse_all(space, refusals[0].what)
    good, violated = _constrained(space, settled)
    _check_length(space, good)
    for role, name in {(settings.role, settings.model.name) for _, settings in good}:
        check_name(role, name)
    notes += _read_notes(space, good)
    _refuse_dead_branches(space, good)
    if refusals:
        share = len(refusals) / SAMPLES
        notes.append(f"{share:.0%} of samples contradict themselves and are drawn again: {refusals[0].what}")
    return SpaceCheck(
        configurations=tuple(values for values, _ in good[:5]),
        refused=1 - len(good) / SAMPLES,
        notes=(*notes, *violated),
        needs_targets=any(settings.distill.needs_teacher and settings.targets is None for _, settings in good),
    )


def _refuse_all(space: Space, what: str) -> NoReturn:
    raise InputError(
        f"{space.where}: every sampled configuration is refused",
        got=what,
        expected="values that can go together",
        remedy="change `fixed`, the ranges or the constraints",
    )


def _constrained(space: Space, settled: list[Trainable]) -> tuple[list[Trainable], list[str]]:
    """The configurations that keep every constraint, and notes on these; InputError for one that none keeps."""
    good, notes = settled, []
    for index, text in enumerate(space.constraints):
        place = f"constraints[{index}]"
        constraint = parse_constraint(text, f"{space.where}: {place}")
        kept = [constraint.holds(settings) for _, settings in settled]
        if not any(kept):
            raise InputError(
                f"{space.where}: {place}: every sampled configuration violates it",
                got=f"{text}: none of {len(settled)}, for one {constraint.values(settled[0][1])}",
                expected="a condition that a good part of the configurations keep",
                remedy="loosen it, or change the ranges",
            )
        if all(kept):
            notes.append(f"{place} is kept by every sampled configuration: {text}")
        else:
            notes.append(f"{1 - sum(kept) / len(kept):.0%} of samples violate {place} and are drawn again: {text}")
        good = [item for item in good if constraint.holds(item[1])]
    if not good:
        _refuse_all(space, "each violates one constraint or another")
    return good, notes


def _read_notes(space: Space, good: list[Trainable]) -> list[str]:
    """Notes on parameters that only some configurations read."""
    notes = []
    for name in dict.fromkeys(parameter.name for parameter in walk(space.parameters)):
        reasons = [unread(name, settings) for values, settings in good if name in values]
        dead = [reason for reason in reasons if reason is not None]
        if dead and len(dead) < len(reasons):
            share = len(dead) / len(reasons)
            notes.append(f"{name} is not read in {share:.0%} of trials ({dead[0]}): better put it in that branch")
    return notes


def _refuse_dead_branches(space: Space, good: list[Trainable]) -> None:
    """InputError for a parameter that nothing reads wherever it is searched, or that no trial can hold.

    Each branch is looked at for itself; one that no sample went through is sampled on purpose.
    """
    for parameter, way in with_ways(space.parameters):
        below = "".join(f" (where {choice.name} is {option.label})" for choice, option in way)
        place = f"{space.where}: parameters.{parameter.name}{below}"
        held = [settings for values, settings in good if follows(values, way)] or _through(space, way, place)
        dead = [reason for settings in held if (reason := unread(parameter.name, settings))]
        if len(dead) == len(held):
            raise InputError(
                f"{place}: nothing reads it",
                got=dead[0],
                expected="parameters that change what is trained",
                remedy="remove it, or search or fix what makes it count",
            )


def _through(space: Space, way: Way, place: str) -> list[RunSettings]:
    """Settings of configurations that make these choices. InputError where none of them can be trained."""
    labels = {choice.label: option.label for choice, option in way}
    found: list[RunSettings] = []
    refusals: list[InputError] = []
    for values in sample(space.parameters, BRANCH_SAMPLES, fixed=labels):
        try:
            found.append(space.settings(values))
        except InputError as error:
            refusals.append(error)
    if not found:
        raise InputError(
            f"{place}: no trial can hold it: every configuration of its branch is refused",
            got=refusals[0].what,
            expected="a branch that some trials go through",
            remedy="remove the branch, or change what contradicts it",
        )
    return found


def _check_length(space: Space, good: list[Trainable]) -> None:
    """Trials are compared at their epochs: a length in steps or seconds would not say how many there are."""
    for _, settings in good:
        for name in ("steps", "budget_seconds"):
            if (value := getattr(settings.training, name)) is not None:
                raise InputError(
                    f"{space.where}: training.{name}: trials of a search end after epochs",
                    got=f"{value:g}",
                    expected="training.epochs",
                    remedy=f"remove training.{name} (or set it to null), and set training.epochs",
                )
