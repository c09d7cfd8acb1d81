"""What the verbs share: options, and how each of them ends."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from moldistill.core.progress import log

Out = Annotated[Path, typer.Option("--out", help="Folder to write; new or empty.")]
StoreAt = Annotated[Path, typer.Option("--store", help="Folder that `prepare` wrote.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to replace.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]


def print_json(value: Any) -> None:
    """One JSON value on stdout; records become mappings."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    sys.stdout.write(json.dumps(value, default=str, indent=2) + "\n")


def done(result: Any, as_json: bool, wrote: Path, following: str) -> None:
    """The end of every verb: data on stdout if asked for, then what was written and the next command."""
    if as_json:
        print_json(result)
    log(f"wrote {wrote}")
    if following:
        log(f"next:  {following}")
