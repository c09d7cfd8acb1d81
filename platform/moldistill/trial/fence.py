"""Fenced attempts: a run folder belongs to one attempt at a time, and who had it before can no longer write there.

A driver or worker that was thought dead may only have been stopped, or cut off from the network. Its successor claims
the folder; from then on each write of the predecessor is refused, however late it wakes up.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from moldistill.core.artifacts import read_json, write_json
from moldistill.core.errors import InputError, RunError

ATTEMPT = "attempt.json"
LOCK = ".fence"

PATIENCE = 60.0
"""Seconds to wait for a write that is under way elsewhere."""

_RETRY = 0.02
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class SupersededError(RunError):
    """Another attempt has claimed the run folder: this one must not write there any more."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Who may write. token: counts the claims; owner: `identity` of the first claim of a job, of which this is a part.

    time: seconds since 1970.
    """

    token: int
    identity: str
    owner: str
    host: str
    pid: int
    time: float

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.time))
        return f"attempt {self.token}, process {self.pid} on {self.host}, since {since}"


def read_attempt(run: Path) -> Attempt | None:
    """The latest claim on a run folder; None where there was none."""
    try:
        return Attempt(**read_json(run / ATTEMPT))
    except FileNotFoundError:
        return None
    except TypeError as error:
        raise InputError(f"{run / ATTEMPT} is no record of an attempt", got=error, remedy="remove it") from error


def has_begun(run: Path) -> bool:
    """Whether a run folder holds anything of a run, and not only claims and questions."""
    return run.is_dir() and any(not path.name.startswith(".") and path.name != ATTEMPT for path in run.iterdir())


class Fence:
    """The right to write into a run folder, until another attempt claims it.

    Each write stands in ``with fence:``, which holds a lock from the check to the end of the write, so that no claim
    can come between. SupersededError where another attempt has claimed the folder, or somebody has removed it.
    Where the file system knows no locks, the check comes right before the write, and a claim can fall between the two.
    For one thread; it does not nest.
    """

    def __init__(self, run: Path, attempt: Attempt) -> None:
        self.run, self.attempt = run, attempt
        self._stream: IO[str] | None = None

    @classmethod
    def claim(cls, run: Path, owner: str | None = None, *, patience: float = PATIENCE) -> Self:
        """Take a run folder, which is made; whoever had it is superseded once its write under way has ended.

        owner: claim it as a part of that job; SupersededError where the folder is no longer the job's. RunError where
        a write under way does not end within `patience` seconds.
        """
        run.mkdir(parents=True, exist_ok=True)
        with _locked(run, patience):
            before = read_attempt(run)
            if owner is not None and (before is None or before.owner != owner):
                raise _superseded(run, before)
            identity = uuid.uuid4().hex
            token = before.token + 1 if before is not None else 1
            attempt = Attempt(token, identity, owner or identity, socket.gethostname(), os.getpid(), time.time())
            write_json(run / ATTEMPT, asdict(attempt))
        return cls(run, attempt)

    @property
    def owner(self) -> str:
        """By this, parts of the same job may claim the folder, too."""
        return self.attempt.owner

    def __enter__(self) -> Self:
        if not self.run.is_dir():
            raise _superseded(self.run, None)
        stream = _locked(self.run, PATIENCE)
        try:
            holder = read_attempt(self.run)
            if holder is None or holder.identity != self.attempt.identity:
                raise _superseded(self.run, holder)
        except BaseException:
            stream.close()
            raise
        self._stream = stream
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stream is not None
        self._stream.close()
        self._stream = None


def _superseded(run: Path, holder: Attempt | None) -> SupersededError:
    if holder is None:
        return SupersededError(f"the run folder {run} was removed", remedy="begin the run anew")
    return SupersededError(
        f"another attempt runs this trial: {run}", got=holder, remedy="leave it to that one, or stop it and resume"
    )


def _locked(run: Path, patience: float) -> IO[str]:
    """The lock file of a run folder, locked until it is closed (unlocked where there are no locks)."""
    try:
        stream = (run / LOCK).open("a", encoding="utf-8")
    except FileNotFoundError:
        raise _superseded(run, None) from None
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return stream
        except BlockingIOError:
            if time.monotonic() < end:
                time.sleep(_RETRY)
                continue
            stream.close()
            raise _held(run, patience) from None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return stream
            stream.close()
            raise


def _held(run: Path, patience: float) -> RunError:
    return RunError(
        f"another process has been writing into {run} for {patience:g} s",
        got=read_attempt(run) or "no record of it",
        expected="a write that ends",
        remedy="if that process hangs or was stopped, end it; then run again",
    )
