"""Private memory of this process over time, watched by a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Memory:
    """MB that no file backs: when the watch began, and at the peak since."""

    before: float
    peak: float


@contextmanager
def watched() -> Iterator[Memory]:
    """Follow the private memory while the block runs."""
    now = anonymous()
    memory, done = Memory(now, now), threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            memory.peak = max(memory.peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield memory
    finally:
        done.set()
        watcher.join()


def anonymous() -> float:
    """MB that no file backs, now."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("this system does not say how much memory is private")
