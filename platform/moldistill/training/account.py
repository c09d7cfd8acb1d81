"""What a teacher's pass says of itself: what was left out or lost, and what soft labels know of the labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldistill.core.progress import log
from moldistill.core.tables import text_table
from moldistill.training.coding import KINDS
from moldistill.training.target_pass import TargetPass


def account_of(work: TargetPass, labels: NDArray[np.float64], folds: int) -> dict[str, Any]:
    """Facts of a pass; labels (eV) of its rows, NaN unknown; folds: number of teachers of the soft labels, 0: itself.

    left_out: rows without a usable answer. states: what was lost of them, see `Loss.facts`. soft_labels: mean absolute
    errors (eV) against the labels, over all views, of the soft labels and of the teacher itself.
    """
    labelled = np.isfinite(labels)
    soft, own = (
        float(np.abs(values[labelled] - labels[labelled, None]).mean()) if labelled.any() else None
        for values in (work.prediction, work.taught)
    )
    return {
        "left_out": {"rows": work.unanswered.count, "first": work.unanswered.first()},
        "states": {kind: work.losses[kind].facts() for kind in KINDS},
        "soft_labels": {"folds": folds or None, "labelled": int(labelled.sum()), "mae": soft, "teacher_mae": own},
    }


def tell(facts: Mapping[str, Any]) -> None:
    """The log's account of what was left out, what was lost, and how much the soft labels know of the labels."""
    left_out = facts["left_out"]
    if left_out["rows"]:
        log(f"left out, for what the teacher says of them: {left_out['rows']} rows: {left_out['first']}")
    soft = facts["soft_labels"]
    if soft["labelled"]:
        own = f"the teacher's MAE on the {soft['labelled']:,} labels is {soft['teacher_mae']:.4f} eV"
        crossed = f"; that of the soft labels, by {soft['folds']} teachers that had not seen them, {soft['mae']:.4f} eV"
        log(own + (crossed if soft["folds"] else ", and it may have seen them: soft labels partly repeat the labels"))
    if facts["options"]["channels"] is None and facts["bits"] == 16:
        return
    rows = [
        [
            f"{name}, layer {layer}",
            *(_percent(facts["states"][kind][figure][place]) for figure in ("kept", "explained", "error")),
        ]
        for kind, name in (("graph", "graph token"), ("atom", "atoms"))
        for place, layer in enumerate(facts["layers"])
    ]
    log(text_table(["states", "variance kept", "read back", "relative error"], rows))
    if facts["bits"] == 8:
        clipped = ", ".join(f"{facts['states'][kind]['clipped']:.2e} of {kind}" for kind in KINDS)
        log(f"numbers beyond the scales of 8 bits: {clipped}")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.3%}"
