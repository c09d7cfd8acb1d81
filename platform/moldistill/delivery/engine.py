"""Students at work: molecules become padded batches of like size, which all members of an ensemble read."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from moldistill.chem.featurize import Graphs, offsets, pairs
from moldistill.core.errors import InputError
from moldistill.core.records import Molecules
from moldistill.core.vocabulary import FLAGS_WITH_GRAPH
from moldistill.data.elements import atomic_number, element_codes
from moldistill.data.kernels import gather
from moldistill.delivery.featurizing import Window
from moldistill.delivery.predictor import Predictor

Precision = Literal["fp32", "bf16"]
Floats = npt.NDArray[np.float64]

GPU_PAIRS = 2**21
CACHE = 2**22
"""Pairs of tokens, padding included, that a batch holds at most, as the largest tensors of a model grow with them: on a
GPU; and on a CPU times the width of the widest model, for then a layer's tensors stay in the processor's caches.
"""

SAMPLE = 2048
"""Molecules on which 16 bits are compared with 32."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """Distance (eV) of the predictions from those in 32 bits, over some molecules: mean and largest."""

    molecules: int
    mean: float
    largest: float


@dataclass(frozen=True, slots=True)
class Predicted:
    """Output rows of a window. Energies in eV; spread and half_width are NaN where no student could predict.

    half_width: [rows] of the asked level, None without a calibration. flag: index into vocabulary.FLAGS. refused:
    rows that hold the training median. outside: rows beyond the training molecules' sizes or elements.
    """

    window: Window
    value: Floats
    spread: Floats
    half_width: Floats | None
    flag: npt.NDArray[np.uint8]
    reason: list[str]
    refused: int
    outside: int
    deviation: Deviation | None = None


class Engine:
    """A predictor on a device, in a precision."""

    def __init__(self, predictor: Predictor, device: str = "auto", precision: Precision = "fp32") -> None:
        self.predictor, self.precision = predictor, precision
        self.device = choose_device(device)
        for member in predictor.members:
            member.model.eval().to(self.device)
        widest = max(member.settings.model.width for member in predictor.members)
        self.pairs = GPU_PAIRS if self.device.type == "cuda" else min(max(CACHE // widest, 2**13), 2**15)
        self.level = 0
        calibration = predictor.combination.calibration
        if calibration is not None:
            self.level = len(calibration.levels) - 1

    def at_level(self, level: float | None) -> Engine:
        """The same with intervals of this level; by default the widest. InputError where it is not calibrated."""
        if level is None:
            return self
        calibration = self.predictor.combination.calibration
        known = () if calibration is None else calibration.levels
        if level not in known:
            raise InputError(
                f"there are no intervals of level {level:g}",
                got=level,
                expected=", ".join(f"{item:g}" for item in known) or "an ensemble with a calibration",
                remedy="name one of those levels" if known else "leave --level out",
            )
        self.level = known.index(level)
        return self

    def predictor_on_cpu(self) -> Predictor:
        """What it predicts with, to be sent elsewhere; this engine works no more until it is placed again."""
        for member in self.predictor.members:
            member.model.to("cpu")
        return self.predictor

    def predict(self, window: Window, graphs: Graphs, *, measure: bool = False) -> Predicted:
        """The output rows of a window. measure: also compare some of them with 32 bits, where there are fewer."""
        known = np.flatnonzero(np.isin(graphs.flag, FLAGS_WITH_GRAPH) & (graphs.atom_count > 0))
        sizes = graphs.atom_count[known]
        found = self.predictor.combination.apply(self.values(graphs, known), sizes)
        finite = np.isfinite(found.value)
        rows, usable = len(window.smiles), known[finite]
        value = np.full(rows, self.predictor.median)
        spread, half = np.full((2, rows), np.nan)
        value[usable], spread[usable] = found.value[finite], found.spread[finite]
        if found.half_width is not None:
            half[usable] = found.half_width[self.level][finite]
        reason = [graphs.reasons.get(row, "") for row in range(rows)]
        for row in known[~finite]:
            reason[row] = _joined(reason[row], "the model gives no finite value")
        outside = self._note_outside(graphs, known, reason)
        return Predicted(
            window,
            value,
            spread if len(self.predictor.members) > 1 else np.full(rows, np.nan),
            half if found.half_width is not None else None,
            graphs.flag,
            reason,
            rows - len(usable),
            outside,
            self._deviation(graphs, known) if measure and self.precision != "fp32" else None,
        )

    def values(
        self, graphs: Graphs, places: npt.NDArray[np.int64], precision: Precision | None = None
    ) -> npt.NDArray[np.float64]:
        """Predictions (eV) of the members for the rows at `places`, which have a graph; shape (members, places)."""
        mixed = (precision or self.precision) == "bf16"
        stream, lock, parts = batches(graphs, places, self.pairs), threading.Lock(), []

        def work() -> None:
            # One context for all batches: it keeps the weights that it has made 16 bits of.
            context: Any = torch.autocast(self.device.type, torch.bfloat16) if mixed else nullcontext()
            with torch.inference_mode(), context:
                while True:
                    with lock:
                        item = next(stream, None)
                    if item is None:
                        return
                    parts.append((item[0], self._together(item[1])))

        self._on_all_cores(work)
        found = np.empty((len(self.predictor.members), len(places)))
        for chosen, values in parts:
            found[:, chosen] = values.cpu().numpy()
        return found

    def _together(self, molecules: Molecules) -> torch.Tensor:
        """Predictions (eV) of all members for a batch, [members, batch]."""
        moved = molecules.to(self.device, non_blocking=True)
        members = self.predictor.members
        return torch.stack(
            [item.model(moved).prediction.double() * item.scale.std + item.scale.mean for item in members]
        )

    def _on_all_cores(self, work: Callable[[], None]) -> None:
        """Run `work` in as many threads as PyTorch would use for one product, each of which then uses one.

        Batches are independent, and products are small: threads that wait for each other at every product lose more
        than they win, above all beside other work. And what a batch gives does not depend on the number of cores.
        """
        threads = torch.get_num_threads()
        if self.device.type == "cuda" or threads == 1:
            work()
            return
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(threads, "predicting") as pool:
                for done in [pool.submit(work) for _ in range(threads)]:
                    done.result()
        finally:
            torch.set_num_threads(threads)

    def _deviation(self, graphs: Graphs, known: npt.NDArray[np.int64]) -> Deviation | None:
        some = known[:SAMPLE]
        if not len(some):
            return None
        combine, sizes = self.predictor.combination.apply, graphs.atom_count[some]
        exact = combine(self.values(graphs, some, "fp32"), sizes).value
        apart = np.abs(combine(self.values(graphs, some), sizes).value - exact)
        return Deviation(len(some), float(apart.mean()), float(apart.max()))

    def _note_outside(self, graphs: Graphs, known: npt.NDArray[np.int64], reason: list[str]) -> int:
        """Say for each row how it lies outside the training molecules; the number of such rows."""
        outside = set()
        low, high = self.predictor.sizes
        trained = f"{low} to {high}" if low else f"at most {high}"
        for row in known[(graphs.atom_count[known] < low) | (graphs.atom_count[known] > high)].tolist():
            reason[row] = _joined(reason[row], f"{graphs.atom_count[row]} atoms, training molecules have {trained}")
            outside.add(row)
        if self.predictor.elements is not None:
            for row, names in _foreign(graphs, self.predictor.elements).items():
                reason[row] = _joined(reason[row], f"no training molecule has {names}")
                outside.add(row)
        return len(outside)


def choose_device(name: str) -> torch.device:
    """The device of that name; auto: a GPU where there is one. InputError for a GPU that is not there."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError("there is no such device", got=name, expected="auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("the device is cuda", got="no GPU that PyTorch can use", remedy="name cpu, or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _joined(reason: str, note: str) -> str:
    return f"{reason}; {note}" if reason else note


def _foreign(graphs: Graphs, elements: tuple[int, ...]) -> dict[int, str]:
    """Names of the elements that are not among these atomic numbers, by row that has such."""
    codes = graphs.atom_features[:, 0]
    strange = ~element_codes(elements)[codes]
    if not strange.any():
        return {}
    rows = np.repeat(np.arange(len(graphs.flag)), graphs.atom_count)[strange]
    found: dict[int, list[str]] = {}
    for row, code in sorted(set(zip(rows.tolist(), codes[strange].tolist(), strict=True))):
        found.setdefault(row, []).append(symbol(atomic_number(code)))
    return {row: " or ".join(names) for row, names in found.items()}


def symbol(number: int) -> str:
    """Of an element by its atomic number; 0 is what the vocabulary does not name."""
    from rdkit import Chem

    return str(Chem.GetPeriodicTable().GetElementSymbol(number)) if number else "an element without a name"


def batches(
    graphs: Graphs, places: npt.NDArray[np.int64], budget: int
) -> Iterator[tuple[npt.NDArray[np.int64], Molecules]]:
    """Batches of the rows at `places`, which have a graph, by size, and where in `places` their rows stand.

    A batch holds as many molecules as keep their number times the square of the largest's tokens within the budget,
    and at least one. Its tensors are filled anew for each batch.
    """
    sizes = graphs.atom_count[places]
    order = np.argsort(sizes, kind="stable")
    ordered = sizes[order].tolist()
    ends = offsets(graphs.atom_count), offsets(graphs.bond_count), offsets(pairs(graphs.atom_count))
    positions = np.zeros(int(ends[0][-1]) * 3, np.float32)  # never read: no row has any
    start = 0
    while start < len(order):
        stop = _cut(ordered, start, budget)
        chosen = order[start:stop]
        yield chosen, _molecules(graphs, places[chosen], ordered[stop - 1], ends, positions)
        start = stop


def _cut(ordered: Sequence[int], start: int, budget: int) -> int:
    """Where the batch ends that begins at `start` of the ascending sizes."""

    def pairs_until(stop: int) -> int:
        return (stop - start) * (ordered[stop - 1] + 1) ** 2

    return start + max(bisect_right(range(start + 1, len(ordered) + 1), budget, key=pairs_until), 1)


def _molecules(
    graphs: Graphs,
    rows: npt.NDArray[np.int64],
    width: int,
    ends: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]],
    positions: npt.NDArray[np.float32],
) -> Molecules:
    count = len(rows)
    features = np.empty(count * width * 9, np.uint8)
    paths, codes = np.empty((2, count * width**2), np.uint8)
    gather(
        rows,
        np.array([0, count]),
        np.array([width]),
        np.zeros(count, np.bool_),
        *ends,
        graphs.atom_features.reshape(-1),
        positions,
        graphs.bonds.reshape(-1),
        graphs.shortest_paths,
        features,
        np.empty(count * width * 3, np.float32),
        paths,
        codes,
    )
    return Molecules(
        torch.from_numpy(rows),
        torch.from_numpy(graphs.atom_count[rows]),
        torch.from_numpy(features.reshape(count, width, 9)),
        torch.from_numpy(paths.reshape(count, width, width)),
        torch.from_numpy(codes.reshape(count, width, width)),
    )
