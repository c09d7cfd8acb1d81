"""How a trial's workers ask whether to go on: by an actor of Ray between them and the process that drives them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from moldistill.training.loop import EpochReport

POLL_SECONDS = 0.25


class Channel:
    """The actor. The first worker asks after an epoch, and waits; the driver takes the question, and answers.

    A worker that dies leaves its question, and the answer to it goes nowhere: each question has an answer of its own.
    Once closed, the answer to every question is no.
    """

    def __init__(self) -> None:
        self._asked: asyncio.Queue[tuple[EpochReport, asyncio.Future[bool]]] = asyncio.Queue()
        self._answer: asyncio.Future[bool] | None = None
        self._open = True

    async def ask(self, state: EpochReport) -> bool:
        """A worker's question: whether the trial goes on."""
        if not self._open:
            return False
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        await self._asked.put((state, answer))
        return await answer

    async def next(self, seconds: float) -> EpochReport | None:
        """The driver's: the next question, or None where there is none within so many seconds."""
        try:
            state, self._answer = await asyncio.wait_for(self._asked.get(), seconds)
        except TimeoutError:
            return None
        return state

    async def go_on(self) -> None:
        """The driver's yes to the question that it took last."""
        self._say(self._answer, True)

    async def close(self) -> None:
        """The driver's no, to this question and to all later ones."""
        self._open = False
        self._say(self._answer, False)
        while not self._asked.empty():
            self._say(self._asked.get_nowait()[1], False)

    async def is_open(self) -> bool:
        """Whether the trial is to go on, as far as is known."""
        return self._open

    def _say(self, answer: asyncio.Future[bool] | None, goes_on: bool) -> None:
        if answer is not None and not answer.done():
            answer.set_result(goes_on)


def open_channel() -> Any:
    """A new channel, on any node; it ends with this process, or when nobody refers to it."""
    import ray

    return ray.remote(num_cpus=0)(Channel).options(scheduling_strategy="DEFAULT").remote()


class Workers(threading.Thread):
    """The thread in which the driver waits for its group of workers. error: what they ended with."""

    def __init__(self, run: Callable[[], None]) -> None:
        super().__init__(name="workers", daemon=True)
        self._train = run
        self.error: BaseException | None = None

    def run(self) -> None:
        """The thread's own."""
        try:
            self._train()
        except BaseException as error:
            self.error = error


def answer(channel: Any, report: Callable[[EpochReport], None], workers: Workers) -> None:
    """Call `report` with what the workers ask, until they have ended. What it raises stops them, and is raised then."""
    import ray

    workers.start()
    try:
        while workers.is_alive():
            state = ray.get(channel.next.remote(POLL_SECONDS))
            if state is not None:
                report(state)
                ray.get(channel.go_on.remote())
    except BaseException:  # the scheduler's decision is one, too
        channel.close.remote()
        workers.join()
        raise
    if workers.error is not None:
        raise workers.error
