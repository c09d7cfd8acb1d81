"""Ending one trial of a search that runs elsewhere."""

from __future__ import annotations

from pathlib import Path

from moldistill.core.errors import InputError
from moldistill.delivery.study_view import Study, read
from moldistill.search.study import TrialRow
from moldistill.trial.cancel import ask_to_cancel, is_cancelled, withdraw_cancel

CANCELLED = "was cancelled"
"""How the reason of a trial ends that saw its mark (`trial.cancel.CancelledError`)."""


def cancel(path: Path, number: int) -> str:
    """Mark a running trial to be ended; what there is to say of it. InputError where it does not run."""
    study = read(path)
    row = study.row(number)
    _check_running(study, row)
    folder = study.out / row.folder
    if is_cancelled(folder):
        return f"trial {number} has been cancelled already; it ends at its next look for the mark"
    folder.mkdir(parents=True, exist_ok=True)  # a trial that has only been proposed ends as it begins
    ask_to_cancel(folder)
    now = read(path).row(number)
    if (now.reason or "").endswith(CANCELLED):
        return f"trial {number} has ended, as asked"
    if now.state not in ("running", "interrupted"):  # too late: nobody looks, and a mark would stop who resumes it
        withdraw_cancel(folder)
        _check_running(study, now)
    return f"trial {number} is asked to end: it does so within a second or a training step, and the search goes on"


def _check_running(study: Study, row: TrialRow) -> None:
    if row.state == "running":
        return
    if row.state == "interrupted":
        raise InputError(
            f"trial {row.number} does not run: no search runs the study {study.out}",
            got="a trial that was interrupted",
            expected="a running one",
            remedy="leave it: `search --resume` would go on with it, and then it can be cancelled",
        )
    raise InputError(
        f"trial {row.number} has ended",
        got=f"{row.state} after {row.epochs} epochs" + (f": {row.reason}" if row.reason else ""),
        expected="a running trial",
        remedy=f"see which ones run: moldistill list {study.out} --state running",
    )
