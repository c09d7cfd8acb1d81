"""Figures of the report, drawn on its canvas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.ticker import MaxNLocator

from moldistill.core.seeds import generator
from moldistill.delivery.canvas import (
    FIRST,
    MUTED,
    SECOND,
    STYLE,
    THIRD,
    Figure,
    Floats,
    legend,
    new_axes,
    robust_top,
    svg,
)

__all__ = ["Figure"]

POINTS = 1500
"""Most points of a scatter plot; more are sampled."""


@dataclass(frozen=True, slots=True)
class Line:
    """A learning curve: epochs, MAE (eV), and how it is drawn: `best`, `complete`, `pruned`, `failed` or `other`."""

    label: str
    kind: str
    epochs: Floats
    values: Floats


def history(numbers: Sequence[int], values: Sequence[float | None], states: Sequence[str], objective: str) -> Figure:
    """Each trial's last value in order, stopped ones marked, with the best completed so far."""
    with rc_context(STYLE):
        canvas, axes = new_axes("trial", f"{objective} (eV)")
        for state, marker, colour, label in (
            ("pruned", "x", MUTED, "stopped early"),
            ("complete", "o", FIRST, "completed"),
        ):
            shown = [(n, v) for n, v, s in zip(numbers, values, states, strict=True) if s == state and v is not None]
            if shown:
                x, y = np.array(shown).T
                axes.scatter(x, y, marker=marker, s=22, color=colour, label=label, linewidths=1.3)
        done = [(n, v) for n, v, s in zip(numbers, values, states, strict=True) if s == "complete" and v is not None]
        if done:
            steps = [n for n, _ in done] + [max(numbers)]
            best = np.minimum.accumulate([v for _, v in done])
            axes.plot(
                steps, [*best, best[-1]], drawstyle="steps-post", color=SECOND, label="best so far", linewidth=1.6
            )
        hidden = robust_top(axes, [v for v in values if v is not None])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(axes)
        title, count = "Search history", states.count("pruned")
        above = f" {hidden} lie above the scale." if hidden else ""
        caption = f"Last {objective} of each of {len(numbers)} trials; {count} stopped early (crosses).{above}"
        return Figure(title, caption, svg(canvas, "history", title, caption))


def learning_curves(lines: Sequence[Line], quantity: str, *, name: str = "curves") -> Figure:
    """MAE (eV) against epoch: the best in colour, stopped ones faint and dashed."""
    title = "Learning curves" if name == "curves" else f"{quantity} by epoch"
    return _curves(lines, f"{quantity} (eV)", name, title, f"{quantity} after each epoch; lower is better.")


def gradient_shares(lines: Sequence[Line], x: str = "epoch") -> Figure:
    """Share of each loss term in the gradient's norm against epoch, or against another `x`."""
    caption = (
        "Share of each loss term in the norm of the gradient: a term near 0 does nothing, one near 1 drowns the label."
    )
    name, more = ("shares", "") if x == "epoch" else ("shares-by-size", f", by {x}")
    return _curves(lines, "share of the gradient", name, f"What drives the student{more}", caption, x)


def _curves(lines: Sequence[Line], y: str, name: str, title: str, caption: str, x: str = "epoch") -> Figure:
    looks = {
        "best": (FIRST, 2.0, 1.0, "-", "best trial"),
        "complete": (THIRD, 1.0, 0.55, "-", "completed"),
        "pruned": (MUTED, 0.9, 0.45, "--", "stopped early"),
        "failed": (MUTED, 0.9, 0.45, ":", "failed"),
    }
    others = iter([(FIRST, "-"), (SECOND, "-"), (THIRD, "--"), (MUTED, "--")])
    with rc_context(STYLE):
        canvas, axes = new_axes(x, y)
        told: set[str] = set()
        for line in sorted(lines, key=lambda line: line.kind == "best"):
            if line.kind in looks:
                colour, width, alpha, dash, label = looks[line.kind]
            else:
                colour, dash = next(others, (MUTED, ":"))
                width, alpha, label = 1.8, 1.0, line.label
            shown = label if label not in told else "_nolegend_"
            told.add(label)
            marker = "o" if len(line.epochs) == 1 else ""
            axes.plot(
                line.epochs, line.values, dash, color=colour, linewidth=width, alpha=alpha, label=shown,
                marker=marker, markersize=3,
            )  # fmt: skip
        robust_top(axes, [float(value) for line in lines for value in line.values])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(axes)
        return Figure(title, caption, svg(canvas, name, title, caption))


def importance(shares: Sequence[tuple[str, float]], method: str) -> Figure:
    """Bars of each parameter's share, largest on top."""
    shares = sorted(shares, key=lambda item: item[1])[-12:]
    with rc_context(STYLE):
        canvas, axes = new_axes("share of importance", "", height=0.9 + 0.27 * len(shares))
        axes.barh([name for name, _ in shares], [value for _, value in shares], color=FIRST, height=0.62)
        axes.grid(visible=False, axis="y")
        title = "What mattered"
        caption = f"Importance of each searched parameter ({method}). With few trials this is a hint, not a finding."
        return Figure(title, caption, svg(canvas, "importance", title, caption))


def parity(target: Floats, predicted: Floats, what: str) -> Figure:
    """Prediction against label, with the diagonal."""
    shown = np.arange(len(target))
    if len(target) > POINTS:
        shown = np.sort(generator(0, "parity").choice(len(target), POINTS, replace=False))
    low, high = float(min(target.min(), predicted.min())), float(max(target.max(), predicted.max()))
    with rc_context(STYLE):
        canvas, axes = new_axes("label (eV)", "prediction (eV)", height=4.0)
        axes.plot([low, high], [low, high], color=MUTED, linewidth=1, linestyle="--")
        axes.scatter(target[shown], predicted[shown], s=7, color=FIRST, alpha=0.4, linewidths=0)
        axes.set_aspect("equal")
        sampled = f"{len(shown):,} of {len(target):,}" if len(shown) < len(target) else f"{len(target):,}"
        title = "Prediction against label"
        caption = f"{what}: {sampled} rows. The dashed line is a perfect prediction."
        return Figure(title, caption, svg(canvas, "parity", title, caption))


def error_by_size(
    size: npt.NDArray[np.int64], errors: Sequence[tuple[str, Floats]], training_end: int | None
) -> Figure:
    """MAE per class of molecule size, for each series, with the number of rows of each class."""
    groups = [part for part in np.array_split(np.unique(size), min(8, len(np.unique(size)))) if len(part)]
    masks = [np.isin(size, part) for part in groups]
    labels = [f"{part[0]}" if part[0] == part[-1] else f"{part[0]}\N{EN DASH}{part[-1]}" for part in groups]
    width = 0.8 / len(errors)
    with rc_context(STYLE):
        canvas, axes = new_axes("heavy atoms (rows)", "MAE (eV)")
        for place, (name, error) in enumerate(errors):
            offset = (place - (len(errors) - 1) / 2) * width
            heights = [float(error[mask].mean()) for mask in masks]
            colour = (FIRST, MUTED, THIRD)[place % 3]
            axes.bar(np.arange(len(groups)) + offset, heights, width * 0.92, color=colour, label=name)
        axes.set_xticks(range(len(groups)), [f"{t}\n({m.sum():,})" for t, m in zip(labels, masks, strict=True)])
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(visible=False, axis="x")
        beyond = [place for place, part in enumerate(groups) if training_end is not None and part[-1] > training_end]
        if beyond:
            axes.axvline(beyond[0] - 0.5, color=SECOND, linewidth=1.2, linestyle="--", label="training sizes end")
        legend(axes)
        title = "Error by molecule size"
        caption = "Mean absolute error of molecules of each size; the number of rows stands in brackets."
        return Figure(title, caption, svg(canvas, "sizes", title, caption))


@dataclass(frozen=True, slots=True)
class Difference:
    """A line of a forest plot: percent of the baseline, with its interval where it has one."""

    label: str
    series: str
    value: float
    low: float | None
    high: float | None


def forest(differences: Sequence[Difference], baseline: str) -> Figure:
    """Differences to a baseline with their intervals, series of a label close together, the first label on top."""
    labels, series = (list(dict.fromkeys(getattr(one, key) for one in differences)) for key in ("label", "series"))
    with rc_context(STYLE):
        canvas, axes = new_axes(
            f"MAE against {baseline} (%)", "", height=1.1 + (0.16 + 0.16 * len(series)) * len(labels)
        )
        axes.axvline(0, color=MUTED, linewidth=1.2, linestyle="--")
        for place, (name, colour) in enumerate(zip(series, (FIRST, SECOND, THIRD), strict=False)):
            shown = [one for one in differences if one.series == name]
            heights = [labels.index(one.label) + 0.2 * (place - (len(series) - 1) / 2) for one in shown]
            reach = [0.0 if one.high is None else one.high - one.value for one in shown]
            values = [one.value for one in shown]
            axes.errorbar(values, heights, xerr=reach, fmt="o", color=colour, markersize=4, label=name)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        legend(axes, "lower right")
        title, caption = "Differences", "Left of the dashed line is better. Bars are 95% intervals over seeds."
        return Figure(title, caption, svg(canvas, "forest", title, caption))
