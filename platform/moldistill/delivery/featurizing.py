"""Windows of SMILES → their graphs, in order, made ahead of their use in other processes.

Imports no torch: a process that featurizes begins in a second, and stays small.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass

from moldistill.chem.featurize import Graphs, featurize
from moldistill.core.errors import RunError

AHEAD = 2
"""Windows that are featurized, or being so, beside one per process."""


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive input rows from `first` on."""

    first: int
    smiles: tuple[str, ...]


class Ahead:
    """Featurizes windows ahead of their use, in order."""

    def __init__(self, processes: int) -> None:
        self.limit = max(processes, 1) + AHEAD
        self.executor: Executor = ThreadPoolExecutor(1, "featurizing")
        if processes:
            # Not forked: this process has threads by now.
            self.executor = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin)

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.shutdown(wait=True, cancel_futures=True)

    def featurized(self, parts: Iterator[Window]) -> Iterator[tuple[Window, Graphs]]:
        """Each window and its graphs."""
        pending: deque[tuple[Window, Future[Graphs]]] = deque()
        for window in parts:
            pending.append((window, self._submit(window)))
            if len(pending) > self.limit:
                yield self._result(*pending.popleft())
        while pending:
            yield self._result(*pending.popleft())

    def _submit(self, window: Window) -> Future[Graphs]:
        try:
            return self.executor.submit(featurize, window.smiles)
        except BrokenExecutor as error:
            raise _died(window) from error

    def _result(self, window: Window, future: Future[Graphs]) -> tuple[Window, Graphs]:
        try:
            return window, future.result()
        except BrokenExecutor as error:
            raise _died(window) from error


def _begin() -> None:
    """On Ctrl-C it is the parent that says what ends; a process whose parent was killed ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    """A pool's process waits for work for ever: it holds the other end of its own queue open."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _died(window: Window) -> RunError:
    last = window.first + len(window.smiles) - 1
    return RunError(
        "a process that featurizes has died",
        got=f"at row {window.first:,} to {last:,}, or shortly after",
        expected="memory for it; and, in a script, that predict is called below `if __name__ == '__main__':`",
        remedy="run again to go on from there; with --processes 0 featurization stays in this process",
    )
