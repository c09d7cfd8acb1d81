"""Errors that a user reads: what happened, what was got, what was expected, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


class MoldistillError(Exception):
    """Base of every error that the command line prints without a traceback."""

    exit_code = 1

    def __init__(self, what: str, *, got: object = None, expected: object = None, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.got = got
        self.expected = expected
        self.remedy = remedy

    def __str__(self) -> str:
        lines = [self.what]
        for label, value in (("got", self.got), ("expected", self.expected), ("remedy", self.remedy)):
            if value is not None:
                lines.append(f"  {label + ':':<10}{value}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Callable[..., MoldistillError], tuple[object, ...]]:
        # Exceptions with keyword arguments do not survive pickling by default, and Ray pickles what its tasks raise.
        # The values are rendered as text: what they were need not be picklable.
        def text(value: object) -> str | None:
            return None if value is None else str(value)

        return _rebuild, (type(self), self.what, text(self.got), text(self.expected), self.remedy)


def _rebuild(
    kind: type[MoldistillError], what: str, got: str | None, expected: str | None, remedy: str | None
) -> MoldistillError:
    return kind(what, got=got, expected=expected, remedy=remedy)


class InputError(MoldistillError):
    """The user's input is wrong: a file, a key, a value. Exit code 2."""

    exit_code = 2


class RunError(MoldistillError):
    """The work itself failed: training diverged, a disk is full. Exit code 1."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None where nothing is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None
