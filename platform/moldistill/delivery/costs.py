"""How long members take to predict: a timed pass on this machine, or what their runs recorded."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from moldistill.chem.featurize import featurize
from moldistill.core.artifacts import Manifest
from moldistill.core.config import load_run
from moldistill.core.errors import InputError
from moldistill.core.progress import progress
from moldistill.core.seeds import generator
from moldistill.core.settings import ModelSettings
from moldistill.core.vocabulary import TEST_SPLITS
from moldistill.data.store import Store
from moldistill.delivery.affordable import Budget
from moldistill.delivery.ensemble_summary import Spending
from moldistill.delivery.members import Candidate, Rows
from moldistill.delivery.selection import Floats
from moldistill.training import evaluate
from moldistill.training.checkpoint import WEIGHTS
from moldistill.trial.folder import CONFIG, load_run_folder

TIMED_ROWS = 1_024
"""Most molecules of a timed pass."""

PASSES = 3
"""Timed passes, of which the fastest counts: what slows the others is somebody else's work."""

RECORDED = "seconds_per_molecule"
"""Fact of a run: what it took to predict its splits, per molecule, on the machine that trained it."""

UNITS = {"": 1.0, "s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "hours": 3600.0}


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds per molecule: of reading its SMILES (once for all members), and of each member.

    how: where the members' figures are from. device: what predicts.
    """

    featurizing: float
    members: tuple[float, ...]
    how: str
    device: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A budget: `seconds` for `rows` molecules, and what the candidates cost."""

    seconds: float
    rows: int
    costs: Costs

    @property
    def each(self) -> Floats:
        """Seconds of each candidate for all rows."""
        return np.array(self.costs.members) * self.rows

    @property
    def featurizing(self) -> float:
        """Seconds for reading the SMILES of all rows, once for all members."""
        return self.costs.featurizing * self.rows

    def budget(self, most: int) -> Budget:
        """What is left for at most so many members."""
        return Budget(self.each, self.seconds - self.featurizing, most)

    def reason(self, place: int) -> str:
        """Why a candidate could not be taken, or nothing."""
        return "takes longer than the budget" if self.each[place] > self.seconds - self.featurizing else ""

    def spending(self, taken: npt.NDArray[np.bool_]) -> Spending:
        """What the candidates that were taken cost."""
        predicted = self.featurizing + float(self.each[taken].sum())
        return Spending(self.seconds, self.rows, predicted, self.featurizing, self.costs.how, self.costs.device)


def parse_seconds(text: str) -> float:
    """Seconds of `4 h`, `90 min`, `30 s` or `30`. Raises InputError for anything else, and for what is not above 0."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in UNITS or float(match[1]) <= 0:
        raise InputError(
            "the budget is no time", got=text, expected="a number above 0 with s, min or h", remedy='as in "4 h"'
        )
    return float(match[1]) * UNITS[match[2]]


def asked(seconds: float, rows: int | None, candidates: Sequence[Candidate], store: Store) -> Asked:
    """A budget of `seconds` for `rows` molecules; by default the store's test rows, or valid where it has none."""
    if seconds <= 0 or (rows is not None and rows < 1):
        raise InputError(
            "the budget pays for nothing", got=f"{seconds:g} s for {rows} molecules", expected="more than 0"
        )
    if rows is None:
        rows = sum(len(store.rows(split)) for split in TEST_SPLITS) or len(store.rows("valid"))
    return Asked(seconds, rows, costs(candidates, store))


def costs(candidates: Sequence[Candidate], store: Store) -> Costs:
    """Seconds per molecule of the test rows (of valid, where there are none).

    A run with its weights is timed here, on up to TIMED_ROWS molecules, one for all of equal models; of another the
    recorded time is taken. Raises InputError where there is neither.
    """
    rows = _sample(store)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    members, timed = [], 0
    known: dict[ModelSettings, float] = {}
    with progress("timing members", len(candidates)) as bar:
        for candidate in candidates:
            if WEIGHTS in candidate.manifest.files:
                model = load_run(candidate.path / CONFIG).model
                if model not in known:
                    known[model] = _timed(candidate, store, rows, device)
                members.append(known[model])
                timed += 1
            else:
                members.append(_recorded(candidate.manifest, str(candidate.path)))
            bar.advance(1)
    how = f"timed on {len(rows):,} molecules" if timed else "as recorded in the runs"
    if 0 < timed < len(members):
        how += f"; {len(members) - timed} as recorded in their runs"
    return Costs(_featurizing(store, rows), tuple(members), how, _name(device))


def _sample(store: Store) -> Rows:
    """Seeded rows of the tests that have a graph, or of valid."""
    rows = np.concatenate([store.usable(store.rows(split)) for split in TEST_SPLITS])
    if not len(rows):
        rows = store.usable(store.rows("valid"))
    return np.sort(generator(len(rows), "costs").permutation(rows)[:TIMED_ROWS])


def _timed(candidate: Candidate, store: Store, rows: Rows, device: torch.device) -> float:
    run = load_run_folder(candidate.path)
    model = run.model.to(device)
    # The first batches compile kernels and allocate; and one alone says little.
    evaluate.predict(model, store, rows[:256], role="student", scale=run.scale, device=device)
    seconds = []
    for _ in range(PASSES):
        begin = time.perf_counter()
        evaluate.predict(model, store, rows, role="student", scale=run.scale, device=device)
        seconds.append(time.perf_counter() - begin)
    return min(seconds) / len(rows)


def _recorded(manifest: Manifest, path: str) -> float:
    seconds = manifest.facts.get(RECORDED)
    if not isinstance(seconds, int | float) or not seconds > 0:
        raise InputError(
            f"{path} cannot be timed",
            got="no weights, and no recorded time",
            expected=f"{WEIGHTS} in the run folder",
            remedy="leave it out, or do without --budget",
        )
    return float(seconds)


def _featurizing(store: Store, rows: Rows) -> float:
    """Seconds per molecule from SMILES to a graph, in one process."""
    smiles = [store.smiles(int(row)) for row in rows]
    featurize(smiles[:16])
    begin = time.perf_counter()
    featurize(smiles)
    return (time.perf_counter() - begin) / len(smiles)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
