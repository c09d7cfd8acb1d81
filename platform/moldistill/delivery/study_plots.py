"""Figures of a study: the front of several objectives, and finalists over fresh seeds."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from moldistill.delivery.canvas import FIRST, MUTED, SECOND, STYLE, Figure, legend, new_axes, robust_top, svg
from moldistill.delivery.finalists import Finals

NAMED = 12
"""Most points of a front that carry their trial's number."""


def trade_off(
    points: Sequence[tuple[int, float, float]], front: Collection[int], labels: tuple[str, str], name: str
) -> Figure:
    """Trials by two objectives, (number, x, y) each, those on the front in colour. labels: of the axes."""
    best = sorted((x, y, number) for number, x, y in points if number in front)
    with rc_context(STYLE):
        canvas, axes = new_axes(*labels)
        others = [(x, y) for number, x, y in points if number not in front]
        if others:
            across, up = zip(*others, strict=True)
            axes.scatter(across, up, s=18, color=MUTED, alpha=0.6, linewidths=0, label="completed")
        axes.plot(
            [x for x, _, _ in best], [y for _, y, _ in best],
            marker="o", markersize=5, linewidth=1.2, color=FIRST, label="front",
        )  # fmt: skip
        if len(best) <= NAMED:
            for x, y, number in best:
                axes.annotate(str(number), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
        hidden = robust_top(axes, [value for _, _, value in points])
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        legend(axes)
        title = f"{labels[1].removesuffix(' (eV)')} against {labels[0]}"
        above = f" {hidden} lie above the scale." if hidden else ""
        caption = f"{len(points)} trials that trained to their end; the front is joined, with trials' numbers.{above}"
        return Figure(title, caption, svg(canvas, name, title, caption))


def finalists(finals: Finals, what: str) -> Figure | None:
    """Each finalist's fresh seeds, their mean with its interval, and the search's own value; None without a result."""
    shown = [one for one in finals.finalists if one.mean is not None]
    if not shown:
        return None
    places = np.arange(len(shown))
    with rc_context(STYLE):
        canvas, axes = new_axes(f"{what} (eV)", "", height=1.1 + 0.42 * len(shown))
        seeds = [value for one in shown for value in one.values.values()]
        heights = [place + 0.18 for place, one in zip(places, shown, strict=True) for _ in one.values]
        axes.scatter(seeds, heights, s=12, color=MUTED, alpha=0.8, linewidths=0, label="fresh seeds")
        means = [one.mean.value for one in shown if one.mean]
        reach = [one.mean.half or 0.0 for one in shown if one.mean]
        axes.errorbar(means, places, xerr=reach, fmt="o", color=FIRST, markersize=5, label="mean, 95% interval")
        searched = [np.nan if one.searched is None else one.searched for one in shown]
        axes.scatter(searched, places, marker="x", s=28, color=SECOND, linewidths=1.4, label="in the search")
        axes.set_yticks(places, [f"trial {one.trial}" for one in shown])
        axes.set_ylim(len(shown) - 0.5, -0.6)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        legend(axes)
        title = "Finalists over fresh seeds"
        caption = "A cross left of its interval was luck: the search chose trials by that value."
        return Figure(title, caption, svg(canvas, "finalists", title, caption))
