"""The pass over the training molecules that writes a targets folder: predictions, states, and their statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from moldistill.core.errors import RunError
from moldistill.core.hashing import fold_of
from moldistill.core.progress import Bar
from moldistill.core.records import Batch, ModelOutput
from moldistill.core.shapes import Float
from moldistill.data.targets import STATISTICS
from moldistill.training.asking import Asking, States, Teacher, in_ev
from moldistill.training.coding import HALF_MAX, KINDS, Coding
from moldistill.training.columns import StateColumns
from moldistill.training.moments import Loss, Moments

NAMED = 10
"""Rows without an answer that are named one by one."""

UNANSWERED = 0.01
"""Share of the rows that may be left out because the teacher says nothing that can be kept."""


class Unanswered:
    """Rows for which a teacher says NaN, or what 16 bits do not hold; too many of them end the pass."""

    def __init__(self, rows: NDArray[np.int64]) -> None:
        self.rows = rows
        self.kept = np.ones(len(rows), np.bool_)
        self.reasons: dict[int, str] = {}

    @property
    def count(self) -> int:
        """How many there are so far."""
        return len(self.reasons)

    def check(self, places: NDArray[np.int64], largest: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        """Which of the rows at `places` can be kept, by the largest number that was said of each; the others are noted.

        Raises RunError where more than UNANSWERED of all rows (and more than one) cannot, or none of them can.
        """
        good = largest < HALF_MAX
        for place, value in zip(places[~good].tolist(), largest[~good].tolist(), strict=True):
            self.kept[place] = False
            reason = f"{value:.3g}, beyond {HALF_MAX:g}" if np.isfinite(value) else f"{value}"
            self.reasons.setdefault(int(self.rows[place]), reason)
        if self.count > max(1, UNANSWERED * len(self.rows)) or not self.kept.any():
            raise RunError(
                "the teacher says nothing usable of too many training molecules",
                got=f"{self.count:,} so far, such as {self.first()}",
                expected=f"finite predictions and states below {HALF_MAX:g}, for all but {UNANSWERED:.0%} of "
                f"{len(self.rows):,}",
                remedy="train the teacher again, with a lower optimizer.learning_rate or in fp32",
            )
        return np.asarray(self.kept[places])

    def first(self) -> str:
        """The first rows, by number, and what was said of each."""
        return ", ".join(f"row {row} ({reason})" for row, reason in sorted(self.reasons.items())[:NAMED])


class TargetPass:
    """What one pass writes into a folder, and the sums over it.

    prediction: eV, [rows, views]; also `taught`, the teacher's own where the soft labels are of others.
    """

    def __init__(
        self,
        folder: Path,
        asking: Asking,
        teacher: Teacher,
        rows: NDArray[np.int64],
        *,
        layers: tuple[int, ...],
        codings: Mapping[str, Coding],
        shape: tuple[int, int],
        views: int,
    ) -> None:
        self.folder, self.asking, self.teacher, self.rows = folder, asking, teacher, rows
        self.layers, self.codings, self.views = layers, codings, views
        width, channels = shape
        bits = 16 if codings["atom"].scale is None else 8
        sizes = asking.store.size(rows)
        self.columns = StateColumns(folder, sizes, views=views, shape=(len(layers), channels), bits=bits)
        self.moments = {kind: Moments.empty(len(layers), channels) for kind in KINDS}
        self.losses = {kind: Loss.empty(len(layers), width) for kind in KINDS}
        self.unanswered = Unanswered(rows)
        self.taught = np.full((len(rows), views), np.nan)
        self.prediction = self.taught

    def soft_labels(self, teachers: Sequence[Teacher], bar: Bar) -> None:
        """Take each row's prediction from the teacher, by number, that did not train on the row's part."""
        self.prediction = np.full_like(self.taught, np.nan)
        part = fold_of(self.rows, len(teachers))
        for fold, teacher in enumerate(teachers):
            for batch, outputs in self.asking.answers(teacher, self.rows[part == fold], self.views):
                places = self._places(batch)
                self.prediction[places] = np.stack([in_ev(output, teacher.scale) for output in outputs], -1)
                self.unanswered.check(places, np.abs(self.prediction[places]).max(1))
                bar.advance(len(places))

    def states(self, bar: Bar) -> None:
        """Ask the teacher about all rows, and write what it says."""
        for batch, outputs in self.asking.answers(self.teacher, self.rows, self.views):
            places = self._places(batch)
            self.taught[places] = np.stack([in_ev(output, self.teacher.scale) for output in outputs], -1)
            self._take(places, batch, outputs)
            bar.advance(len(places))

    def finish(self) -> None:
        """Write the columns that are held in memory, without the rows that have no answer, and the statistics."""
        kept = self.unanswered.kept
        self.columns.finish(kept)
        self.rows, self.taught, self.prediction = self.rows[kept], self.taught[kept], self.prediction[kept]
        np.save(self.folder / "rows.npy", self.rows)
        np.save(self.folder / "prediction.npy", self.prediction.astype(np.float32).reshape(-1))
        arrays: dict[str, NDArray[np.float32]] = {}
        for kind in KINDS:
            arrays |= {f"{kind}_{name}": value for name, value in self.moments[kind].statistics().items()}
            arrays |= self.codings[kind].arrays(kind)
        np.savez(self.folder / STATISTICS, **arrays)  # type: ignore[arg-type]  # names are chosen above

    def _places(self, batch: Batch) -> NDArray[np.int64]:
        return np.searchsorted(self.rows, batch.molecules.rows.numpy())

    def _take(self, places: NDArray[np.int64], batch: Batch, outputs: list[ModelOutput]) -> None:
        """Write one batch: a molecule whose answer cannot be kept in one view is left out in all."""
        said = [States.of(output, self.layers, batch.molecules) for output in outputs]
        coded = [self._coded(states) for states in said]
        largest = np.abs(self.taught[places]).max(1)
        for states in {id(states): states for states in (*said, *coded)}.values():
            largest = np.maximum(largest, states.largest())
        good = self.unanswered.check(places, largest)
        for view, (states, projected) in enumerate(zip(said, coded, strict=True)):
            ours = projected.chosen(good).items()
            written = {kind: self._add(kind, whole, ours[kind]) for kind, whole in states.chosen(good).items().items()}
            self.columns.write(places[good], view, written["graph"], written["atom"])

    def _coded(self, states: States) -> States:
        """The kept channels of states; these themselves where all are kept."""
        if self.codings["atom"].basis is None:
            return states
        projected = {kind: self.codings[kind].project(whole) for kind, whole in states.items().items()}
        return States(projected["graph"], projected["atom"], states.sizes)

    def _add(
        self, kind: str, states: Float[Tensor, "layers items width"], projected: Float[Tensor, "layers items channels"]
    ) -> NDArray[Any]:
        """Count states of one kind in, and return what is to be written of them."""
        coding, loss = self.codings[kind], self.losses[kind]
        written, clipped = coding.round(projected)
        read = coding.read(written)
        self.moments[kind].add(read)
        if coding.basis is None:
            loss.add(states, None, read)
        else:
            loss.add(states, coding.restore(projected), coding.restore(read))
        loss.clipped, loss.numbers = loss.clipped + clipped, loss.numbers + written.numel()
        return written.numpy()


def sampled_states(
    asking: Asking, teacher: Teacher, rows: NDArray[np.int64], layers: tuple[int, ...], bar: Bar
) -> Iterator[Mapping[str, Tensor]]:
    """States of the rows in their first view, batch by batch, without the molecules whose answer cannot be kept."""
    for batch, (output,) in asking.answers(teacher, rows, 1):
        states = States.of(output, layers, batch.molecules)
        yield states.chosen(states.largest() < HALF_MAX).items()
        bar.advance(len(batch.target))
