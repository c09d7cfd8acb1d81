"""The page that reports are written on: tiles, sections, figures and tables as one self-contained HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from moldistill.delivery.canvas import Figure
from moldistill.delivery.tables import Table


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure in the head of the page."""

    label: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: a sentence, facts, figures, tables, and texts that start closed."""

    name: str
    title: str
    lead: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()


def page(
    title: str,
    sentence: str,
    tiles: Sequence[Tile],
    sections: Sequence[Section],
    intervals: str = "bootstrap 95% intervals over molecules",
) -> str:
    """The HTML of a page; `sentence` is HTML of numbers and fixed words, `intervals` what those on the page are."""
    return _template().render(
        title=title, sentence=Markup(sentence), tiles=tiles, sections=sections, intervals=intervals, markup=Markup
    )


@cache
def _template() -> Template:
    loader = PackageLoader("moldistill", "delivery")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.jinja")
