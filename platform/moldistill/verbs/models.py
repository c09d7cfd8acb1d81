"""The verb that shows models: models."""

from __future__ import annotations

from typing import Annotated, get_args

import typer

from moldistill.core.errors import InputError, RunError
from moldistill.core.progress import log
from moldistill.core.settings import ModelSettings, Role
from moldistill.verbs.common import Json, print_json

ROLES: tuple[Role, ...] = get_args(Role)


def models(
    check: Annotated[
        str | None,
        typer.Option(metavar="ROLE/NAME", help="Hold a model to the contract that all models keep."),
    ] = None,
    width: Annotated[int, typer.Option(help="Width that parameters are counted at.")] = 128,
    depth: Annotated[int, typer.Option(help="Depth that parameters are counted at.")] = 6,
    as_json: Json = False,
) -> None:
    """List the teachers and students that can be trained, your own among them; or check one.

    Your own model joins by `@register("student", "my-model")`: see the README.

    Example: moldistill models --check student/my-model
    """
    from moldistill.core.tables import text_table

    if check is not None:
        _check(check)
        return
    found = _listed(width, depth)
    if as_json:
        print_json(found)
        return
    rows = [[str(item["role"]), str(item["name"]), f"{item['parameters']:,}"] for item in found]
    typer.echo(text_table(["role", "model.name", f"parameters (width {width}, depth {depth})"], rows))


def _listed(width: int, depth: int) -> list[dict[str, str | int]]:
    from moldistill.models.registry import build_model, model_names

    found: list[dict[str, str | int]] = []
    for role in ROLES:
        for name in model_names(role):
            model = build_model(role, _settings(name, width, depth))
            count = sum(parameter.numel() for parameter in model.parameters())
            found.append({"role": role, "name": name, "parameters": count})
    return found


def _settings(name: str, width: int, depth: int) -> ModelSettings:
    from moldistill.core.config import build

    return build(ModelSettings, {"name": name, "width": width, "depth": depth}, "models")


def _check(what: str) -> None:
    from moldistill.models.contract import check_model

    role, _, name = what.partition("/")
    if role not in ROLES or not name:
        raise InputError("--check", got=what, expected="student/NAME or teacher/NAME", remedy="name role and model")
    broken = check_model(role, _settings(name, 32, 3))
    if broken:
        raise RunError(
            f"{what} breaks {len(broken)} of the promises that every model makes",
            got="; ".join(broken),
            expected="a model that keeps the contract of `moldistill.models`",
            remedy="mend the model: training and distillation rely on each of them",
        )
    log(f"{what} keeps every promise")
