"""Delivery: the weights of an ensemble, and a submission of official size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import linprog  # type: ignore[import-untyped]
from timing import Figure, side_by_side, single

if TYPE_CHECKING:
    from inputs import Inputs

HERE = Path(__file__).resolve().parent
OFFICIAL = {"test-dev": 147_037, "test-challenge": 147_432}


def submitting(inputs: Inputs) -> list[Figure]:
    """Seconds and memory of `submit` in a fresh process, and whether the files equal those of ogb's own writer."""
    sizes = dict.fromkeys(OFFICIAL, 2_000) if inputs.quick else OFFICIAL
    folder = inputs.scratch / "submitting"
    _script(folder, "make", *map(str, sizes.values()))
    told = json.loads(_script(folder, "submit").splitlines()[-1])
    rows = sum(sizes.values())
    data = f"{rows:,} rows"
    figures = [
        single("submit", data, "s beyond reading", told["seconds"] - told["reading"], told=told),
        single("submit, memory", data, "MB at the peak of the whole process", told["peak_mb"], told=told),
    ]
    if not inputs.quick:  # ogb writes official sizes alone
        reading = "1 and the numbers that differ from its files"
        figures.append(single("submit, ogb's writer", data, reading, 1 + _unequal(folder)))
    return figures


def _unequal(folder: Path) -> int:
    """Numbers in our files that are not those that ogb writes from the same predictions."""
    from ogb.lsc import PCQM4Mv2Evaluator

    count = 0
    for split in OFFICIAL:
        with np.load(folder / "ensemble" / "predictions" / f"{split}.npz") as content:
            y_pred = content["y_pred"]
        PCQM4Mv2Evaluator().save_test_submission({"y_pred": y_pred}, str(folder / "ogb"), split)
        name = f"y_pred_pcqm4m-v2_{split}.npz"
        with np.load(folder / "ogb" / name) as theirs, np.load(folder / "submission" / name) as ours:
            assert theirs.files == ours.files
            count += int(np.count_nonzero(theirs["y_pred"] != ours["y_pred"]))
    return count


def weighing(inputs: Inputs) -> list[Figure]:
    """Exact least absolute deviation: seconds at full size, and against the textbook's programme."""
    from moldistill.delivery.lad import lad_weights

    members, rows = (20, 8_000) if inputs.quick else (100, 73_545)
    predictions, target = _members(members, rows)
    begin = time.perf_counter()
    lad_weights(predictions, target)
    seconds = time.perf_counter() - begin
    few, wanted = _members(10, 1_000 if inputs.quick else 3_000)
    return [
        single("LAD weights", f"{members} members, {rows:,} rows", "s", seconds),
        side_by_side(
            "LAD weights",
            f"10 members, {len(wanted):,} rows",
            "HiGHS on residual = u - v / ours",
            lambda: _textbook(few, wanted),
            lambda: lad_weights(few, wanted),
            rounds=inputs.rounds,
            difference=abs(_mae(_textbook(few, wanted), few, wanted) - _mae(lad_weights(few, wanted), few, wanted)),
        ),
    ]


def _members(members: int, rows: int) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    target = random.normal(5, 1, rows)
    common = 0.05 * random.normal(size=rows) + 0.03 * random.normal(size=(members, 5)) @ random.normal(size=(5, rows))
    return target + common + random.uniform(0.05, 0.3, (members, 1)) * random.normal(size=(members, rows)), target


def _mae(weights: Any, predictions: Any, target: Any) -> float:
    return float(np.abs(weights @ predictions - target).mean())


def _textbook(predictions: Any, target: Any) -> Any:
    """Σ (u + v) at its least, with Σ w p + u - v = y, Σ w = 1, and nothing below 0; sparse, as HiGHS likes it."""
    from scipy.sparse import csr_matrix, hstack, identity, vstack  # type: ignore[import-untyped]

    members, rows = predictions.shape
    equal = hstack([csr_matrix(predictions.T), identity(rows), -identity(rows)])
    line = csr_matrix(np.concatenate([np.ones(members), np.zeros(2 * rows)])[None])
    cost = np.concatenate([np.zeros(members), np.ones(2 * rows)])
    found = linprog(cost, A_eq=vstack([equal, line]), b_eq=np.append(target, 1.0), bounds=(0, None), method="highs-ds")
    return found.x[:members]


def _script(folder: Path, *arguments: str) -> str:
    """What `submit_official.py` says, in a process of its own."""
    command = [sys.executable, str(HERE / "submit_official.py"), str(folder), *arguments]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
