"""Parameters that nothing would read, and configurations that contradict themselves: found before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moldistill.core.errors import InputError
from moldistill.core.settings import AtomTermSettings, RunSettings
from moldistill.models.registry import check_name
from moldistill.search.compile import sample
from moldistill.search.space import Space, walk

SAMPLES = 256
"""Random configurations that are looked at: a branch of probability 5% is missed once in 500,000 times."""

TEACHER_ONLY = ("model.kernels", "model.hydrogens", "model.angles", "model.denoising", "training.position_noise")
UNREAD_BY_MODEL = {
    "model.max_path": ("gine", "gps", "schnet", "visnet"),
    "model.angles": ("schnet", "visnet"),
}
SCHEDULED_ONLY = ("optimizer.final", "training.ema")
POWER_SCHEMES = ("power", "dataset_mean")


@dataclass(frozen=True, slots=True)
class SpaceCheck:
    """What the samples of a space showed.

    configurations: sampled values of the first trials that can be trained. refused: share of samples whose settings
    contradict themselves (they are sampled again). notes: what works and could be better. needs_targets: whether a
    trial reads a teacher's outputs.
    """

    configurations: tuple[dict[str, Any], ...]
    refused: float
    notes: tuple[str, ...]
    needs_targets: bool


def unread(name: str, settings: RunSettings) -> str | None:
    """Why no part of the run reads the key `name` under these settings, or None where something does."""
    if name in TEACHER_ONLY and settings.role == "student":
        return "only teachers read it"
    if name == "training.batch_size" and settings.training.atoms_per_batch is not None:
        return "training.atoms_per_batch takes its place"
    if settings.model.name in UNREAD_BY_MODEL.get(name, ()):
        return f"model.name is {settings.model.name}"
    if name in SCHEDULED_ONLY and settings.optimizer.kind == "schedule_free":
        return "optimizer.kind is schedule_free"
    if not name.startswith("distill."):
        return None
    return _unread_term(name, settings)


def _unread_term(name: str, settings: RunSettings) -> str | None:
    if name == "distill.teachers":
        return None if len(settings.target_folders) > 1 else "there is one teacher"
    _, term_name, key = name.split(".")
    term = getattr(settings.distill, term_name)
    if key == "weight":
        return None
    if term.weight == 0:
        return f"distill.{term_name}.weight is 0"
    if key == "until" and term.schedule == "constant":
        return f"distill.{term_name}.schedule is constant"
    if isinstance(term, AtomTermSettings):
        if key == "power" and term.normalization not in POWER_SCHEMES:
            return f"distill.atom.normalization is {term.normalization}, and only {' and '.join(POWER_SCHEMES)} read it"
        if key == "share" and term.normalization != "gradient_matched":
            return f"distill.atom.normalization is {term.normalization}, and only gradient_matched reads it"
    return None


def check_space(space: Space) -> SpaceCheck:
    """Sample the space and refuse what cannot work: dead parameters, contradictions, a scheduler that never stops."""
    _check_scheduler(space)
    good: list[tuple[dict[str, Any], RunSettings]] = []
    refusals: list[InputError] = []
    for values in sample(space.parameters, SAMPLES):
        try:
            good.append((values, space.settings(values)))
        except InputError as error:
            refusals.append(error)
    if not good:
        raise InputError(
            f"{space.where}: every sampled configuration is refused",
            got=refusals[0].what,
            expected="values that can go together",
            remedy="change `fixed` or the ranges",
        )
    _check_length(space, good)
    for role, name in {(settings.role, settings.model.name) for _, settings in good}:
        check_name(role, name)
    notes = [*_read_notes(space, good)]
    if refusals:
        share = len(refusals) / SAMPLES
        notes.append(f"{share:.0%} of samples contradict themselves and are drawn again: {refusals[0].what}")
    return SpaceCheck(
        configurations=tuple(values for values, _ in good[:5]),
        refused=len(refusals) / SAMPLES,
        notes=tuple(notes),
        needs_targets=any(settings.distill.needs_teacher and settings.targets is None for _, settings in good),
    )


def _read_notes(space: Space, good: list[tuple[dict[str, Any], RunSettings]]) -> list[str]:
    """Notes on parameters that only some configurations read; InputError for one that none reads."""
    notes = []
    for name in dict.fromkeys(parameter.name for parameter in walk(space.parameters)):
        reasons = [unread(name, settings) for values, settings in good if name in values]
        dead = [reason for reason in reasons if reason is not None]
        if not reasons:
            continue
        if len(dead) == len(reasons):
            raise InputError(
                f"{space.where}: parameters.{name}: nothing reads it",
                got=dead[0],
                expected="parameters that change what is trained",
                remedy="remove it, or search or fix what makes it count",
            )
        if dead:
            share = len(dead) / len(reasons)
            notes.append(f"{name} is not read in {share:.0%} of trials ({dead[0]}): better put it in that branch")
    return notes


def _check_length(space: Space, good: list[tuple[dict[str, Any], RunSettings]]) -> None:
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


def _check_scheduler(space: Space) -> None:
    if space.scheduler.name == "asha" and space.scheduler.grace >= space.epochs:
        raise InputError(
            f"{space.where}: scheduler.grace: no trial could be stopped early",
            got=f"grace {space.scheduler.grace} with {space.epochs} epochs",
            expected="grace below the number of epochs",
            remedy="lower grace, train longer, or write `scheduler: {name: none}`",
        )
