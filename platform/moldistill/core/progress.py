"""Progress for people and for logs: rich bars on a terminal, plain lines in a job's log. All of it on stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

PLAIN_INTERVAL = 10.0
"""Seconds between plain lines."""


@runtime_checkable
class Bar(Protocol):
    """Something that work is reported to."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """Tell that `count` more units are done; `note` replaces the text behind the bar."""


def is_interactive() -> bool:
    """Whether stderr is a terminal that can redraw lines."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def log(message: str) -> None:
    """One line on stderr, with the time of day when it is a log that nobody watches."""
    prefix = "" if is_interactive() else time.strftime("%H:%M:%S ")
    sys.stderr.write(prefix + message + "\n")
    sys.stderr.flush()


class _PlainBar:
    """Writes a line every PLAIN_INTERVAL seconds, and one at the end."""

    def __init__(self, title: str, total: int | None, done: int) -> None:
        self.title, self.total = title, total
        self.done = self.before = done
        self.note = ""
        self.start = self.last = time.monotonic()
        self.written = -1

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        self.note = note or self.note
        if time.monotonic() - self.last >= PLAIN_INTERVAL:
            self.last = time.monotonic()
            self.write()

    def write(self) -> None:
        self.written = self.done
        elapsed = max(time.monotonic() - self.start, 1e-9)
        rate = (self.done - self.before) / elapsed
        share = f"{self.done:,}/{self.total:,}" if self.total else f"{self.done:,}"
        left = (
            f", {(self.total - self.done) / rate:.0f} s left"
            if self.total and rate > 0 and self.done < self.total
            else ""
        )
        log(f"{self.title}: {share} in {elapsed:.0f} s ({rate:,.1f}/s{left}){'  ' + self.note if self.note else ''}")


@contextmanager
def progress(title: str, total: int | None = None, *, done: int = 0) -> Iterator[Bar]:
    """A bar for `total` units of work (None: unknown), `done` of them before the block; ended when the block ends."""
    if not is_interactive():
        plain = _PlainBar(title, total, done)
        yield plain
        if plain.written != plain.done:
            plain.write()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class _Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as display:
        task = display.add_task(title, total=total, completed=done, note="")

        class RichBar:
            def advance(self, count: int = 1, note: str = "") -> None:
                if note:
                    display.update(task, advance=count, note=note)
                else:
                    display.update(task, advance=count)

        yield RichBar()
