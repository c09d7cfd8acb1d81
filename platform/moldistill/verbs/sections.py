"""Tables that a verb writes to stdout: by rich on a terminal, as plain aligned text in a log or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moldistill.core.progress import is_interactive
from moldistill.core.tables import text_table

BAR = 24
"""Characters of the longest bar."""

LONGEST = 60
"""Characters of a text of the source that are shown."""

_FULL, _PLAIN = "█", "#"


@dataclass(frozen=True, slots=True)
class Section:
    """A titled table (without a header: names and values), and sentences below it.

    bars: the last column holds bars. alarm: this deserves a look.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    bars: bool = False
    alarm: bool = False


def show(found: Sequence[Section]) -> None:
    """Write sections to stdout."""
    if is_interactive() and sys.stdout.isatty():
        _show_rich(found)
        return
    text, encoding = plain(found), sys.stdout.encoding or "utf-8"
    if not encoding.lower().startswith("utf"):
        text = text.replace(_FULL, _PLAIN).encode(encoding, "replace").decode(encoding)
    sys.stdout.write(text)


def plain(found: Sequence[Section]) -> str:
    """Sections as aligned text."""
    parts = []
    for section in found:
        lines = [section.title]
        if section.header and section.rows:
            lines.append(text_table(section.header, section.rows))
        elif section.rows:
            width = max(len(name) for name, _ in section.rows)
            lines += [f"{name.ljust(width)}  {value}" for name, value in section.rows]
        parts.append("\n".join([*lines, *section.notes]) + "\n")
    return "\n".join(parts)


def _show_rich(found: Sequence[Section]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    for section in found:
        colour = "yellow" if section.alarm else "cyan"
        console.print(Text(section.title, f"bold {colour}"))
        if section.rows:
            console.print(_rich_table(section, colour))
        for note in section.notes:
            console.print(Text(note, colour if section.alarm else "dim"))
        console.print()


def _rich_table(section: Section, colour: str) -> Any:
    from rich import box
    from rich.bar import Bar
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD,
        show_header=bool(section.header),
        header_style="bold",
        pad_edge=False,
        show_edge=False,
    )
    last = len(section.rows[0]) - 1
    for place in range(last + 1):
        is_bar = section.bars and place == last
        table.add_column(
            section.header[place] if section.header and not is_bar else "",
            justify="left" if place == 0 or is_bar or not section.header else "right",
            overflow="fold",
            max_width=BAR if is_bar else None,
        )
    for row in section.rows:
        cells: list[Any] = [Text(cell) for cell in row]
        if section.bars:
            cells[-1] = Bar(BAR, 0, row[-1].count(_FULL), color=colour)  # as wide as there is room
        table.add_row(*cells)
    return table


def bar(value: float, most: float) -> str:
    """A bar of BAR characters for `most`, at least one for what is above 0, filled up with blanks."""
    length = round(BAR * value / most) if most else 0
    return (_FULL * max(length, 1 if value else 0)).ljust(BAR)


def percent(count: float, total: float) -> str:
    """Share in percent; nothing above 0 is shown as 0."""
    if not total:
        return "-"
    share = count / total
    return f"{100 * share:.1f}%" if share == 0 or share >= 0.0005 else "<0.1%"


def count_of(count: int, total: int) -> str:
    """A count, with its share in percent where there is any."""
    return f"{count:,} ({percent(count, total)})" if total and count else f"{count:,}"


def energy(value: float | None) -> str:
    """An energy in eV."""
    return "-" if value is None else f"{value:.4f}"


def printable(text: str) -> str:
    """Text of a source, which may hold anything, as one short line."""
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"
