"""Rules that make a combination of members out of their predictions and the targets.

All of them give weights ≥ 0 of sum 1, so that a row that no member can read keeps the training median, and so that the
spread of the members is a standard deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from moldistill.core.errors import InputError, nearest
from moldistill.delivery.combination import Combination, size_class
from moldistill.delivery.huber import huber_weights
from moldistill.delivery.lad import lad_weights
from moldistill.delivery.selection import Floats, greedy_weights

Integers = npt.NDArray[np.int64]

FEW = (4, 8, 16)
"""Numbers of members that the simple rules, and the exact ones, are also tried with."""

BENDS = (0.5, 1.5, 4.0)
"""Huber's delta, in units of the median absolute error of the members' mean."""

SHRINKAGE = (500, 2_000, 8_000)
"""Rows of a class at which its own weights count as much as those of all classes."""

CLASS_WIDTH = 5
"""Heavy atoms that a class of sizes spans, at least."""

CLASS_ROWS = 200
"""Fewest rows of a class that has weights of its own."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a rule learns from. predictions: eV, (members, rows); target: eV, (rows,); sizes: heavy atoms, (rows,)."""

    predictions: Floats
    target: Floats
    sizes: Integers

    def rows(self, places: Integers) -> Sample:
        """Some of the rows."""
        return Sample(self.predictions[:, places], self.target[places], self.sizes[places])

    def members(self, places: Integers) -> Sample:
        """Some of the members."""
        return replace(self, predictions=self.predictions[places])

    @property
    def mae(self) -> Floats:
        """Of each member (eV)."""
        return np.array([float(np.abs(line - self.target).mean()) for line in self.predictions])


class Combiner(Protocol):
    """A rule with its settings. kind: its name on the command line; name: kind and settings, for people."""

    @property
    def kind(self) -> str: ...

    @property
    def name(self) -> str: ...

    def fit(self, sample: Sample) -> Combination:
        """The combination of the sample's members."""


@dataclass(frozen=True, slots=True)
class Equal:
    """The mean, or the median, of the `best` members by MAE (None: of all)."""

    kind: Literal["mean", "median"]
    best: int | None = None

    @property
    def name(self) -> str:
        if self.best == 1:
            return "the best alone"
        return f"{self.kind} of {'all' if self.best is None else f'the best {self.best}'}"

    def fit(self, sample: Sample) -> Combination:
        taken = np.argsort(sample.mae, kind="stable")[: self.best]
        return _weighted(_shares(len(sample.predictions), taken, np.ones(len(taken))), self.kind == "median")


@dataclass(frozen=True, slots=True)
class Ranked:
    """A mean in which the best member of k counts k times, the next k - 1 times, and so on."""

    best: int | None = None
    kind: str = field(default="rank", init=False)

    @property
    def name(self) -> str:
        return f"by rank, {'all' if self.best is None else f'the best {self.best}'}"

    def fit(self, sample: Sample) -> Combination:
        taken = np.argsort(sample.mae, kind="stable")[: self.best]
        return _weighted(_shares(len(sample.predictions), taken, np.arange(len(taken), 0, -1.0)))


@dataclass(frozen=True, slots=True)
class Greedy:
    """Forward selection with replacement (`selection.greedy_weights`)."""

    most: int
    kind: str = field(default="greedy", init=False)

    @property
    def name(self) -> str:
        return f"greedy, at most {self.most}"

    def fit(self, sample: Sample) -> Combination:
        return _weighted(greedy_weights(sample.predictions, sample.target, max_members=self.most))


@dataclass(frozen=True, slots=True)
class Lad:
    """Least absolute deviation, exactly (`lad.lad_weights`); of the `most` heaviest members, weighed again."""

    most: int
    kind: str = field(default="lad", init=False)

    @property
    def name(self) -> str:
        return f"least absolute deviation, at most {self.most}"

    def fit(self, sample: Sample) -> Combination:
        return _weighted(self.weights(sample))

    def weights(self, sample: Sample) -> Floats:
        """Weights (members,) of sum 1."""
        weights = lad_weights(sample.predictions, sample.target)
        heaviest = np.argsort(-weights, kind="stable")[: self.most]
        if np.count_nonzero(weights) <= self.most:
            return weights
        kept = np.sort(heaviest)
        return _shares(len(weights), kept, lad_weights(sample.predictions[kept], sample.target))


@dataclass(frozen=True, slots=True)
class Huber:
    """Huber stacking (`huber.huber_weights`); bend: delta over the median absolute error of the members' mean."""

    most: int
    bend: float
    kind: str = field(default="huber", init=False)

    @property
    def name(self) -> str:
        return f"Huber stack, bend {self.bend:g}, at most {self.most}"

    def fit(self, sample: Sample) -> Combination:
        weights = self._weights(sample)
        if np.count_nonzero(weights) > self.most:
            kept = np.sort(np.argsort(-weights, kind="stable")[: self.most])
            weights = _shares(len(weights), kept, self._weights(sample.members(kept)))
        return _weighted(weights)

    def _weights(self, sample: Sample) -> Floats:
        typical = float(np.median(np.abs(sample.predictions.mean(axis=0) - sample.target)))
        weights = huber_weights(sample.predictions, sample.target, max(self.bend * typical, 1e-9)).weights
        weights[weights < 1e-9] = 0.0
        total: Floats = weights / weights.sum()
        return total


@dataclass(frozen=True, slots=True)
class BySize:
    """Least absolute deviation for each class of sizes, drawn to the weights of all: n / (n + shrinkage) of its own."""

    most: int
    shrinkage: int
    kind: str = field(default="by_size", init=False)

    @property
    def name(self) -> str:
        return f"by size, shrinkage {self.shrinkage:,}, at most {self.most}"

    def fit(self, sample: Sample) -> Combination:
        overall = Lad(self.most).weights(sample)
        edges = size_edges(sample.sizes, CLASS_ROWS)
        if not edges:
            return _weighted(overall)
        # The members of all sizes, so that no class brings more of them than allowed.
        kept = np.flatnonzero(overall)
        places = size_class(edges, sample.sizes)
        table, share = [], np.zeros(len(overall))
        for number in range(len(edges) + 1):
            inside = np.flatnonzero(places == number)
            part = sample.members(kept).rows(inside)
            own = _shares(len(overall), kept, lad_weights(part.predictions, part.target))
            trust = len(inside) / (len(inside) + self.shrinkage)
            table.append(trust * own + (1 - trust) * overall)
            share += table[-1] * len(inside)
        return Combination(
            weights=tuple(map(float, share / share.sum())),
            class_edges=edges,
            class_weights=tuple(tuple(map(float, row)) for row in table),
        )


def size_edges(sizes: Integers, least: int) -> tuple[int, ...]:
    """Edges (`combination.size_class`) of classes of CLASS_WIDTH sizes, joined until each has `least` rows."""
    if len(sizes) < 2 * least:
        return ()
    edges: list[int] = []
    before = 0
    for edge in range(CLASS_WIDTH, int(sizes.max()), CLASS_WIDTH):
        upto = int(np.count_nonzero(sizes <= edge))
        if upto - before >= least and len(sizes) - upto >= least:
            edges.append(edge)
            before = upto
    return tuple(edges)


def library(members: int, most: int) -> list[Combiner]:
    """The rules that are compared, the steadiest first, as `nested.choose` prefers them.

    Huber's loss is smooth over most rows, and so its weights vary least from sample to sample; rules that know ranks
    alone come next, then those that fit every row or pick members, and last those of classes of sizes.
    """
    some: list[int | None] = [number for number in FEW if number < min(members, most)]
    numbers = [*some, most if most < members else None]
    found: list[Combiner] = [Huber(most, bend) for bend in sorted(BENDS, reverse=True)]
    found += [Ranked(number) for number in numbers]
    found += [Equal("mean", number) for number in numbers]
    found += [Equal("median", number) for number in numbers]
    found += [Greedy(most)]
    found += [Lad(limit) for limit in (*(number for number in some if number), most)]
    found += [BySize(most, shrinkage) for shrinkage in SHRINKAGE]
    found += [Equal("mean", 1)] if members > 1 and most > 1 else []
    return found


def of_kind(combiners: Sequence[Combiner], kind: str) -> list[Combiner]:
    """Those of one kind; InputError where there is no such kind."""
    kinds = list(dict.fromkeys(item.kind for item in combiners))
    if kind not in kinds:
        likely = nearest(kind, kinds)
        raise InputError(
            "there is no such combiner",
            got=kind,
            expected=", ".join(["auto", *kinds]),
            remedy=f"did you mean {likely}?" if likely else None,
        )
    return [item for item in combiners if item.kind == kind]


def scattered(found: Combination, places: Integers, members: int) -> Combination:
    """A combination of the members at `places` as one of all `members`."""
    table = found.class_weights
    return replace(
        found,
        weights=_spread_out(found.weights, places, members),
        class_weights=None if table is None else tuple(_spread_out(row, places, members) for row in table),
    )


def _spread_out(weights: Sequence[float], places: Integers, members: int) -> tuple[float, ...]:
    total = np.zeros(members)
    total[places] = weights
    return tuple(map(float, total))


def _shares(members: int, places: Integers, values: Floats) -> Floats:
    """Weights of all members: those at `places` in proportion to `values`, 0 for the others."""
    weights = np.zeros(members)
    weights[places] = values / values.sum()
    return weights


def _weighted(weights: Floats, median: bool = False) -> Combination:
    return Combination(tuple(map(float, weights)), "median" if median else "weighted")
