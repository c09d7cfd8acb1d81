"""The verb for editors: schema."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from moldistill.core.progress import log


def schema(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="space, run, pipeline or ablation.")],
    out: Annotated[Path | None, typer.Option("--out", help="File to write instead of stdout.")] = None,
) -> None:
    """Print the JSON Schema of a kind of YAML file, with which editors complete keys and mark mistakes.

    Example: moldistill schema space --out space.schema.json
    """
    from moldistill.core.artifacts import write_text
    from moldistill.search.schema import schema_text

    text = schema_text(kind)
    if out is None:
        sys.stdout.write(text)
        return
    write_text(out, text)
    log(f"wrote {out}")
    log(f"next:  begin your YAML with the line  # yaml-language-server: $schema={out}")
