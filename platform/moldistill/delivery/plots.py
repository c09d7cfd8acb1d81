"""Figures of the report: small inline SVGs whose colours are the page's own, so that one figure suits both themes.

matplotlib draws with stand-in colours; each is replaced by a CSS variable. Text stays text, in the page's font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from moldistill.core.seeds import generator

Floats = npt.NDArray[np.float64]

INK, MUTED, GRID, FIRST, SECOND, THIRD = (f"#0{place}0{place}0{place}" for place in range(1, 7))
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "rule", FIRST: "first", SECOND: "second", THIRD: "third"}

SIZE = (5.0, 3.1)
"""Inches at 72 units each: about the width of a phone, so that text stays readable there."""

POINTS = 1500
"""Most points of a scatter plot; more are sampled."""

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "moldistill",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.03,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot of the report: inline SVG with a title for those who hear the page, and a caption below it."""

    title: str
    caption: str
    svg: str


@dataclass(frozen=True, slots=True)
class Line:
    """A learning curve: epochs, MAE (eV), and how it is drawn: `best`, `complete`, `pruned`, `failed` or `other`."""

    label: str
    kind: str
    epochs: Floats
    values: Floats


def history(numbers: Sequence[int], values: Sequence[float | None], states: Sequence[str], objective: str) -> Figure:
    """Each trial's last value in order, stopped ones marked, with the best completed so far."""
    with rc_context(_STYLE):
        canvas, axes = _axes("trial", f"{objective} (eV)")
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
        hidden = _robust_top(axes, [v for v in values if v is not None])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axes)
        title, count = "Search history", states.count("pruned")
        above = f" {hidden} lie above the scale." if hidden else ""
        caption = f"Last {objective} of each of {len(numbers)} trials; {count} stopped early (crosses).{above}"
        return Figure(title, caption, _svg(canvas, "history", title, caption))


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
    with rc_context(_STYLE):
        canvas, axes = _axes(x, y)
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
        _robust_top(axes, [float(value) for line in lines for value in line.values])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axes)
        return Figure(title, caption, _svg(canvas, name, title, caption))


def importance(shares: Sequence[tuple[str, float]], method: str) -> Figure:
    """Bars of each parameter's share, largest on top."""
    shares = sorted(shares, key=lambda item: item[1])[-12:]
    with rc_context(_STYLE):
        canvas, axes = _axes("share of importance", "", height=0.9 + 0.27 * len(shares))
        axes.barh([name for name, _ in shares], [value for _, value in shares], color=FIRST, height=0.62)
        axes.grid(visible=False, axis="y")
        title = "What mattered"
        caption = f"Importance of each searched parameter ({method}). With few trials this is a hint, not a finding."
        return Figure(title, caption, _svg(canvas, "importance", title, caption))


def parity(target: Floats, predicted: Floats, what: str) -> Figure:
    """Prediction against label, with the diagonal."""
    shown = np.arange(len(target))
    if len(target) > POINTS:
        shown = np.sort(generator(0, "parity").choice(len(target), POINTS, replace=False))
    low, high = float(min(target.min(), predicted.min())), float(max(target.max(), predicted.max()))
    with rc_context(_STYLE):
        canvas, axes = _axes("label (eV)", "prediction (eV)", height=4.0)
        axes.plot([low, high], [low, high], color=MUTED, linewidth=1, linestyle="--")
        axes.scatter(target[shown], predicted[shown], s=7, color=FIRST, alpha=0.4, linewidths=0)
        axes.set_aspect("equal")
        sampled = f"{len(shown):,} of {len(target):,}" if len(shown) < len(target) else f"{len(target):,}"
        title = "Prediction against label"
        caption = f"{what}: {sampled} rows. The dashed line is a perfect prediction."
        return Figure(title, caption, _svg(canvas, "parity", title, caption))


def error_by_size(
    size: npt.NDArray[np.int64], errors: Sequence[tuple[str, Floats]], training_end: int | None
) -> Figure:
    """MAE per class of molecule size, for each series, with the number of rows of each class."""
    groups = [part for part in np.array_split(np.unique(size), min(8, len(np.unique(size)))) if len(part)]
    masks = [np.isin(size, part) for part in groups]
    labels = [f"{part[0]}" if part[0] == part[-1] else f"{part[0]}\N{EN DASH}{part[-1]}" for part in groups]
    width = 0.8 / len(errors)
    with rc_context(_STYLE):
        canvas, axes = _axes("heavy atoms (rows)", "MAE (eV)")
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
        _legend(axes)
        title = "Error by molecule size"
        caption = "Mean absolute error of molecules of each size; the number of rows stands in brackets."
        return Figure(title, caption, _svg(canvas, "sizes", title, caption))


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
    with rc_context(_STYLE):
        canvas, axes = _axes(f"MAE against {baseline} (%)", "", height=1.1 + (0.16 + 0.16 * len(series)) * len(labels))
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
        _legend(axes, "lower right")
        title, caption = "Differences", "Left of the dashed line is better. Bars are 95% intervals over seeds."
        return Figure(title, caption, _svg(canvas, "forest", title, caption))


def _axes(x: str, y: str, *, height: float = SIZE[1]) -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(SIZE[0], height))
    axes = canvas.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return canvas, axes


def _legend(axes: Axes, loc: Literal["lower left", "lower right"] = "lower left") -> None:
    if len(axes.get_legend_handles_labels()[1]) > 1:
        right = loc == "lower right"
        axes.legend(loc=loc, bbox_to_anchor=(right, 1.0), ncols=3, borderaxespad=0, handlelength=1.6)


def _robust_top(axes: Axes, values: Sequence[float]) -> int:
    """Keep a few diverged values from flattening the rest; how many are cut off."""
    finite = np.array([value for value in values if np.isfinite(value)])
    if len(finite) > 3:
        low, middle, high = np.quantile(finite, [0.0, 0.5, 0.9])
        top = high + 2.0 * (middle - low)
        if finite.max() > top > low:
            axes.set_ylim(top=top)
            return int(np.count_nonzero(finite > top))
    return 0


def _svg(canvas: Canvas, name: str, title: str, description: str) -> str:
    """The figure as an SVG element for a page: no prolog, no metadata, unique ids, colours and font of the page."""
    stream = io.StringIO()
    canvas.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", text)
    text = _unique_ids(text, name).replace("xlink:href", "href")
    view = re.search(r'viewBox="([^"]+)"', text)
    assert view is not None
    head = (
        f'<svg viewBox="{view[1]}" role="img" aria-labelledby="{name}-title {name}-description">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-description">{escape(description)}</desc>'
    )
    return head + re.sub(r"\n\s*", "\n", text[text.index(">") + 1 :]).strip()


def _unique_ids(text: str, prefix: str) -> str:
    """Prefix the ids that are referred to, and drop the others: several figures share a page."""
    used = set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", text))
    names = {name for pair in used for name in pair if name}

    def rewrite(match: re.Match[str]) -> str:
        return f' id="{prefix}-{match[1]}"' if match[1] in names else ""

    text = re.sub(r' id="([^"]+)"', rewrite, text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", text)
    return re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', text)
