"""The canvas of the report's figures: small inline SVGs whose colours are the page's own, in both its themes.

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
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

Floats = npt.NDArray[np.float64]

INK, MUTED, GRID, FIRST, SECOND, THIRD = (f"#0{place}0{place}0{place}" for place in range(1, 7))
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "rule", FIRST: "first", SECOND: "second", THIRD: "third"}

SIZE = (5.0, 3.1)
"""Inches at 72 units each: about the width of a phone, so that text stays readable there."""

STYLE: Any = {
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


def new_axes(x: str, y: str, *, height: float = SIZE[1]) -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(SIZE[0], height))
    axes = canvas.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return canvas, axes


def legend(axes: Axes, loc: Literal["lower left", "lower right"] = "lower left") -> None:
    if len(axes.get_legend_handles_labels()[1]) > 1:
        right = loc == "lower right"
        axes.legend(loc=loc, bbox_to_anchor=(right, 1.0), ncols=3, borderaxespad=0, handlelength=1.6)


def robust_top(axes: Axes, values: Sequence[float]) -> int:
    """Keep a few diverged values from flattening the rest; how many are cut off."""
    finite = np.array([value for value in values if np.isfinite(value)])
    if len(finite) > 3:
        low, middle, high = np.quantile(finite, [0.0, 0.5, 0.9])
        top = high + 2.0 * (middle - low)
        if finite.max() > top > low:
            axes.set_ylim(top=top)
            return int(np.count_nonzero(finite > top))
    return 0


def svg(canvas: Canvas, name: str, title: str, description: str) -> str:
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
