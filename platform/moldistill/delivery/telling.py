"""What an ensemble came to, for people who read a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from moldistill.core.progress import log
from moldistill.core.tables import text_table
from moldistill.core.units import duration
from moldistill.delivery.ensemble_summary import EnsembleSummary
from moldistill.delivery.selection import Score

SHOWN = 8
"""Most combiners that are listed."""


def tell(summary: EnsembleSummary) -> None:
    """Log the combiner, the score, coverage and errors by size, and the budget."""
    for line in lines(summary):
        log(line)


def lines(summary: EnsembleSummary) -> Iterator[str]:
    """The summary as lines of text, tables among them."""
    candidates = len(summary.members) + len(summary.passed_over)
    weights = "weights from all labelled validation rows" if summary.refitted else "weights from the choosing half"
    yield f"ensemble of {len(summary.members)} of {candidates} runs: {summary.combiner}; {weights}"
    yield (
        f"MAE {_interval(summary.score)} eV on {summary.rows_scored_on:,} rows that chose nothing; the best single run "
        f"{_interval(summary.best_single_score)}, difference {_interval(summary.difference)}"
    )
    if copies := [item for item in summary.passed_over if "bit for bit" in item.reason]:
        yield f"{len(copies)} runs predict exactly what another one does, and were passed over"
    if len(summary.tried) > 1:
        first = sorted(summary.tried, key=lambda item: item.mae)
        tried = [item for place, item in enumerate(first) if place < SHOWN or item.chosen]
        rows = [
            (
                item.name + " (taken)" * item.chosen,
                f"{item.mae:.5f}",
                f"{item.mae - first[0].mae:.5f} ± {item.error:.5f}",
            )
            for item in tried
        ]
        yield "\n" + text_table(("combiner", "cross-validated MAE", "above the smallest"), rows)
    yield from _uncertainty(summary)
    yield from _budget(summary)


def _interval(score: Score) -> str:
    return f"{score.value:.4f} ({score.low:.4f} to {score.high:.4f})"


def _uncertainty(summary: EnsembleSummary) -> Iterator[str]:
    if not summary.coverage:
        return
    levels = [f"{one.level:.0%}" for one in summary.coverage]
    measured = ", ".join(f"{one.covered:.1%} ({one.low:.1%} to {one.high:.1%})" for one in summary.coverage)
    rows = summary.coverage[0].rows
    yield f"intervals of {', '.join(levels)} hold {measured} of {rows:,} rows that calibrated nothing"
    table = [
        (
            f"{one.smallest} to {one.largest}",
            f"{one.rows:,}",
            f"{one.mae:.4f} ({one.low:.4f} to {one.high:.4f})",
            *(f"{held.covered:.0%}" for held in one.coverage or ()),
            *([""] * (len(levels) - len(one.coverage))),
        )
        for one in summary.by_size
    ]
    yield "\n" + text_table(("heavy atoms", "rows", "MAE", *(f"in {level}" for level in levels)), table)


def _budget(summary: EnsembleSummary) -> Iterator[str]:
    spent = summary.budget
    if spent is None:
        return
    yield (
        f"predicted time for {spent.rows:,} molecules: {duration(spent.predicted)} of {duration(spent.asked)}, "
        f"{duration(spent.featurizing)} of it for reading SMILES ({spent.how}, {spent.device})"
    )
    left = sorted((item for item in summary.passed_over if item.seconds is not None), key=lambda item: item.chosen_on)
    if left:
        named = ", ".join(f"{item.path} ({duration(item.seconds or 0.0)})" for item in left[:SHOWN])
        yield f"left out: {named}" + (f" and {len(left) - SHOWN} more" if len(left) > SHOWN else "")
