"""The command line: one verb per stage. It parses, delegates, and says what was written and what comes next.

stdout carries data (with --json, one JSON value), stderr everything else. Exit codes: 0 done, 1 failed, 2 wrong input.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from moldistill import __version__
from moldistill.core.errors import MoldistillError
from moldistill.core.progress import log
from moldistill.verbs import (
    ablating,
    data,
    delivering,
    models,
    predicting,
    schemas,
    searching,
    studies,
    training,
    whole,
)

app = typer.Typer(
    name="moldistill",
    help="Distil a 3D teacher into a 2D student, search how, and submit the best to OGB-LSC.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

VERBS = (
    whole.demo,
    whole.doctor,
    data.label,
    data.download,
    data.prepare,
    data.stats,
    models.models,
    training.train,
    training.cache,
    schemas.schema,
    searching.explain,
    searching.search,
    studies.list_,
    studies.show,
    studies.compare,
    studies.clean,
    studies.cancel,
    ablating.ablate,
    delivering.ensemble,
    predicting.predict,
    predicting.export,
    delivering.submit,
    delivering.report,
    whole.pipeline,
)
for verb in VERBS:
    app.command(verb.__name__.removesuffix("_"))(verb)


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Options before the verb."""
    if version:
        sys.stdout.write(f"moldistill {__version__}\n")
        raise typer.Exit


def main() -> None:
    """Entry point: errors that a user can mend are printed without a traceback."""
    try:
        app()
    except MoldistillError as error:
        log(f"error: {error}")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        log("stopped; run the same command again (train, search and ablate: with --resume) to go on")
        raise SystemExit(130) from None
