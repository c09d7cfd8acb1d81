"""Whether one trial is better than another: what differs in their settings, and whether the difference is noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moldistill.core.config import to_mapping
from moldistill.core.errors import InputError
from moldistill.delivery.molecule_pairs import OverMolecules, over_molecules
from moldistill.delivery.paired import Gain, mean_interval
from moldistill.delivery.study_view import Study, read, replicates_of
from moldistill.delivery.trial_view import flat
from moldistill.search.study import TrialRow, best_first
from moldistill.trial.folder import read_metrics


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two. name: `trial 3`, with its study where there are two. value: of the search (eV), at `epochs`.

    common: its value at the last epoch that both have. seeds: values over fresh seeds, where it was a finalist.
    """

    name: str
    study: str
    number: int
    state: str
    value: float | None
    epochs: int
    common: float | None
    seeds: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that differs."""

    key: str
    first: Any
    second: Any


@dataclass(frozen=True, slots=True)
class OverSeeds:
    """Both configurations over the `seeds` fresh seeds that they have in common. first, second: means (eV).

    gain: percent by which the first has the smaller error, with Student's paired t-interval.
    """

    seeds: int
    first: float
    second: float
    gain: Gain


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two trials. common_epoch: the last one that both have reported at. notes: what could not be compared, and why.

    verdict: the sentence. covers: what the intervals are about.
    """

    metric: str
    first: Side
    second: Side
    common_epoch: int | None
    settings: tuple[Change, ...]
    over_molecules: OverMolecules | None
    over_seeds: OverSeeds | None
    notes: tuple[str, ...]
    verdict: str
    covers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Named:
    """A trial of a study that was read."""

    study: Study
    row: TrialRow

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return self.study.out / self.row.folder


def named(tokens: Sequence[str]) -> tuple[Named, Named]:
    """The two trials that are meant: `STUDY A B`, `STUDY1 STUDY2` (their best), or `STUDY1 A STUDY2 B`."""
    asked: list[tuple[str, list[str]]] = []
    for token in tokens:
        if token.isdecimal() and asked:
            asked[-1][1].append(token)
        else:
            asked.append((token, []))
    numbers = [len(trials) for _, trials in asked]
    if numbers != [2] and (len(numbers) != 2 or max(numbers) > 1):
        raise InputError(
            "two trials are compared",
            got=" ".join(tokens),
            expected="STUDY A B, or STUDY1 STUDY2 for the best of each, or STUDY1 A STUDY2 B",
            remedy="name a study and the numbers of two of its trials",
        )
    pairs: list[tuple[str, str | None]] = []
    for place, trials in asked:
        pairs += [(place, number) for number in trials] or [(place, None)]
    studies = {place: read(Path(place)) for place, _ in pairs}
    first, second = (_named(studies[place], number) for place, number in pairs)
    if (first.study.out.resolve(), first.row.number) == (second.study.out.resolve(), second.row.number):
        raise InputError("a trial is compared with itself", got=" ".join(tokens), remedy="name two different ones")
    return first, second


def _named(study: Study, number: str | None) -> Named:
    if number is not None:
        return Named(study, study.row(int(number)))
    ranked = best_first(study.ended)
    if not ranked:
        raise InputError(
            f"{study.out} has no best trial yet", remedy=f"wait for one to end, or look at: moldistill list {study.out}"
        )
    return Named(study, ranked[0])


def compare(tokens: Sequence[str]) -> Comparison:
    """Compare two trials, see `named`. InputError where they went by different metrics."""
    first, second = named(tokens)
    metric, other = first.study.ledger.space.metric, second.study.ledger.space.metric
    if metric != other:
        raise InputError(
            "the two studies went by different metrics",
            got=f"{metric} and {other}",
            expected="the same one",
            remedy="compare trials of studies that went by the same metric",
        )
    curves = [_curve(one, metric) for one in (first, second)]
    shared = max(curves[0].keys() & curves[1].keys(), default=None)
    sides = _side(first, second, curves[0], shared), _side(second, first, curves[1], shared)
    runs = [(side.name, one.folder) for side, one in zip(sides, (first, second), strict=True)]
    molecules, notes = over_molecules(runs[0], runs[1], first.study.ledger.space.role, metric)
    seeds = _over_seeds(*sides, same_base=_same_base(first, second))
    return Comparison(
        metric=metric,
        first=sides[0],
        second=sides[1],
        common_epoch=shared,
        settings=_changes(first, second),
        over_molecules=molecules,
        over_seeds=seeds,
        notes=notes,
        verdict=verdict(sides[0].name, sides[1].name, molecules, seeds),
        covers=tuple(_covers(molecules, seeds)),
    )


def _curve(one: Named, metric: str) -> dict[int, float]:
    return {int(record["epoch"]): record[metric] for record in read_metrics(one.folder) if metric in record}


def _side(one: Named, other: Named, curve: Mapping[int, float], shared: int | None) -> Side:
    row, out = one.row, one.study.out
    names = out.name if out.name != other.study.out.name else str(out)
    name = f"trial {row.number}" if out == other.study.out else f"{names} trial {row.number}"
    return Side(
        name=name,
        study=str(out),
        number=row.number,
        state=row.state,
        value=row.value,
        epochs=row.epochs,
        common=None if shared is None else curve[shared],
        seeds={
            int(two["seed"]): float(two["value"])
            for two in replicates_of(one.study)
            if two["trial"] == row.number and two["value"] is not None
        },
    )


def _changes(first: Named, second: Named) -> tuple[Change, ...]:
    left, right = (_settings(one) for one in (first, second))
    keys = dict.fromkeys([*left, *right])
    return tuple(
        Change(key, left.get(key), right.get(key)) for key in keys if repr(left.get(key)) != repr(right.get(key))
    )


def _settings(one: Named) -> dict[str, Any]:
    space, values = one.study.ledger.space, one.row.parameters
    try:
        return flat(to_mapping(space.settings(values)))
    except InputError:  # the space has changed since
        return flat(space.base) | dict(space.fixed) | dict(values)


def _same_base(first: Named, second: Named) -> bool:
    """Whether replicate 1 of both has the same seed: it is made from the base's."""
    keys = [_settings(one).get("training.seed") for one in (first, second)]
    return keys[0] == keys[1]


def _over_seeds(first: Side, second: Side, *, same_base: bool) -> OverSeeds | None:
    """The pair over common seeds; None with fewer than two of them."""
    seeds = [seed for seed in first.seeds if seed in second.seeds] if same_base else []
    found = mean_interval([100 * (1 - first.seeds[seed] / second.seeds[seed]) for seed in seeds])
    if found is None or found.low is None or found.high is None:
        return None
    left, right = (sum(side.seeds[seed] for seed in seeds) / len(seeds) for side in (first, second))
    return OverSeeds(len(seeds), left, right, Gain(found.value, found.low, found.high))


def verdict(first: str, second: str, molecules: OverMolecules | None, seeds: OverSeeds | None) -> str:
    """Which is better, or that the difference is noise; seeds decide where there are several."""
    if seeds is not None:
        return _sentence(first, second, seeds.gain, f"over {seeds.seeds} seeds")
    if molecules is not None:
        return _sentence(first, second, molecules.gain, f"on {molecules.rows:,} molecules")
    return "Nothing says how sure the difference is."


def _sentence(first: str, second: str, gain: Gain, where: str) -> str:
    better, worse, size = by_gain(first, second, gain)
    if gain.low == gain.high == 0:
        return f"There is no difference {where}: {first} and {second} have the same errors."
    if not gain.clear:
        return f"The difference is noise {where}: {better} has a smaller error than {worse} by {size}."
    return f"{better[0].upper()}{better[1:]} is better than {worse} by {size} {where}."


def by_gain(first: str, second: str, gain: Gain) -> tuple[str, str, Gain]:
    """The one with the smaller error, the other one, and the gain of the former."""
    return (first, second, gain) if gain.value >= 0 else (second, first, gain.turned)


def _covers(molecules: OverMolecules | None, seeds: OverSeeds | None) -> Iterator[str]:
    if seeds is not None:
        yield (
            f"The interval over seeds covers the luck of a training: {seeds.seeds} fresh ones of both, seed against "
            "seed, on the same molecules."
        )
    if molecules is not None:
        yield (
            f"The interval over molecules covers which molecules {molecules.split} happens to hold, for this one pair "
            "of trainings; another seed may turn it."
        )
    if seeds is None:
        yield "For the luck of a training, let the search train its best trials again: replicates: {top: 3, seeds: 5}."
