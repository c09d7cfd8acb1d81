"""The search as it goes: a live table on a terminal, plain lines in a log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moldistill.core.progress import is_interactive, progress
from moldistill.core.units import duration
from moldistill.search.conductor import Conductor
from moldistill.search.study import STATES, best_first

if TYPE_CHECKING:
    from rich.console import RenderableType

LOOK_EVERY = 0.3
BEST = 3
RUNNING = 8
KEYS = 4


@dataclass(frozen=True, slots=True)
class Line:
    """A trial in the table. value: its last or final one, NaN before the first report."""

    number: int
    state: str
    epoch: int
    epochs: int
    value: float
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How a search stands. left: what the budget still allows, in words."""

    counts: Mapping[str, int]
    best: tuple[Line, ...]
    running: tuple[Line, ...]
    left: tuple[str, ...]
    ended: int
    most: int | None


def snapshot(conductor: Conductor) -> Snapshot:
    """How the search stands."""
    rows = conductor.ledger.rows()
    longest = conductor.space.epochs
    best = tuple(
        Line(row.number, row.state, row.epochs, longest, row.value, row.parameters)
        for row in best_first(rows)[:BEST]
        if row.value is not None
    )
    running = tuple(
        Line(number, "running", active.epoch, active.settings.training.epochs, active.value, active.values)
        for number, active in sorted(conductor.active.items())
    )
    counts = {state: sum(row.state == state for row in rows) for state in STATES.values()}
    most = conductor.space.most_trials
    return Snapshot(counts, best, running, _left(conductor), len(rows), most if most < 1_000_000 else None)


def _left(conductor: Conductor) -> tuple[str, ...]:
    budget, (seconds, gpu_seconds) = conductor.space.budget, conductor.spending.spent()
    found = []
    if budget.hours is not None:
        found.append(f"{duration(max(0.0, budget.hours * 3600 - seconds))} of {budget.hours:g} h left")
    if budget.gpu_hours is not None:
        found.append(f"{max(0.0, budget.gpu_hours - gpu_seconds / 3600):.2f} of {budget.gpu_hours:g} GPU-hours left")
    return tuple(found)


def note(shot: Snapshot) -> str:
    """The snapshot as one line."""
    words = [f"best {shot.best[0].value:.4f} eV"] if shot.best else []
    states = ", ".join(f"{count} {state}" for state, count in shot.counts.items())
    return ", ".join([*words, f"{len(shot.running)} running", states, *shot.left])


@contextmanager
def watched(conductor: Conductor, title: str) -> Iterator[Callable[[], None]]:
    """A block in which the search is shown; call what is yielded after every change."""
    shot = snapshot(conductor)
    if is_interactive():
        with _Table(conductor, title, shot) as table:
            yield seldom(table.update)
            table.update()
        return
    with progress(title, shot.most, done=shot.ended) as bar:
        before = shot.ended

        def tell() -> None:
            nonlocal before
            now = snapshot(conductor)
            bar.advance(now.ended - before, note(now))
            before = now.ended

        yield seldom(tell)
        tell()


def seldom(call: Callable[[], None]) -> Callable[[], None]:
    """The call, but for those that follow another within LOOK_EVERY seconds: a look costs a pass over all trials."""
    last = -math.inf

    def maybe() -> None:
        nonlocal last
        if time.monotonic() - last >= LOOK_EVERY:
            last = time.monotonic()
            call()

    return maybe


class _Table:
    """The table, drawn twice a second from the last snapshot."""

    def __init__(self, conductor: Conductor, title: str, shot: Snapshot) -> None:
        from rich.console import Console
        from rich.live import Live

        self.conductor, self.title, self.shot = conductor, title, shot
        self.began, self.first = time.monotonic(), shot.ended
        self.live = Live(get_renderable=self.draw, console=Console(stderr=True), refresh_per_second=2, transient=False)

    def __enter__(self) -> _Table:
        self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.live.__exit__(*error)

    def update(self) -> None:
        self.shot = snapshot(self.conductor)

    def draw(self) -> RenderableType:
        from rich.console import Group

        return Group(self._head(), drawn(self.shot))

    def _head(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        shot, elapsed = self.shot, time.monotonic() - self.began
        words = [duration(elapsed)]
        done = shot.ended - self.first
        if shot.most and done and shot.ended < shot.most:
            words.append(f"about {duration(elapsed / done * (shot.most - shot.ended))} left")
        head = Table.grid(padding=(0, 2))
        share = f"{shot.ended}/{shot.most}" if shot.most else f"{shot.ended} trials"
        states = ", ".join(f"{count} {state}" for state, count in shot.counts.items())
        bar = ProgressBar(total=shot.most or max(1, shot.ended), completed=shot.ended, width=30)
        head.add_row(f"[bold]{self.title}[/]", bar, share, states, *words, *shot.left)
        return head


def drawn(shot: Snapshot) -> RenderableType:
    """The best trials and those that run, as a table."""
    from rich import box
    from rich.table import Table

    lines = [*shot.best, *shot.running[:RUNNING]]
    keys = differing(lines)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("trial", justify="right")
    table.add_column("")
    table.add_column("epoch", justify="right")
    table.add_column("eV", justify="right")
    for key in keys:
        table.add_column(".".join(key.split(".")[-2:]), overflow="fold")
    for place, line in enumerate(lines):
        if place == len(shot.best) and place:
            table.add_section()
        value = "" if math.isnan(line.value) else f"{line.value:.4f}"
        style = "bold green" if place == 0 and shot.best else "dim" if line.state == "pruned" else ""
        cells = [_short(line.parameters.get(key)) for key in keys]
        table.add_row(str(line.number), line.state, f"{line.epoch}/{line.epochs}", value, *cells, style=style)
    if len(shot.running) > RUNNING:
        table.caption = f"and {len(shot.running) - RUNNING} more that run"
    return table


def differing(lines: list[Line]) -> list[str]:
    """The first keys in which trials differ."""
    keys = dict.fromkeys(key for line in lines for key in line.parameters)
    return [key for key in keys if len({str(line.parameters.get(key)) for line in lines}) > 1][:KEYS]


def _short(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
