"""A lock file that one process holds; the system frees it when the process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from moldistill.core.errors import InputError


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path`, which is removed at the end; its folder is made.

    Raises InputError (`what` is going on) where another process holds it.
    """
    stream = _acquire(path, what)
    with stream:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock file `path`; False where there is none, or where the disk knows no locks."""
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


_ATTEMPTS = 100

_PATIENCE = 10
"""Attempts at a lock that is held, 20 ms apart: who only looks whether it is held has it for a moment."""


def _acquire(path: Path, what: str) -> IO[str]:
    held = 0
    for _ in range(_ATTEMPTS):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("a", encoding="utf-8")
        except FileNotFoundError:  # the folder went, with whoever held the lock
            continue
        except OSError as error:
            raise InputError(
                f"{path.parent} cannot be written", got=error, remedy="check the path and its permissions"
            ) from error
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held it may have removed the file meanwhile: a lock on a file without a name keeps nobody out.
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
        except FileNotFoundError:
            pass
        except BlockingIOError as error:
            stream.close()
            held += 1
            if held < _PATIENCE:
                time.sleep(0.02)
                continue
            raise InputError(what, got=f"another process holds {path}", remedy="wait for it, or stop it") from error
        except OSError as error:
            stream.close()
            raise InputError(
                f"{path} cannot be locked", got=error, remedy="write to a disk that has locks, and copy the result"
            ) from error
        stream.close()
    raise InputError(f"{path} cannot be made", expected="a folder that can be written", remedy="check the path")
