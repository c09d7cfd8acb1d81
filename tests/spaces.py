"""Small search spaces, as raw mappings."""

from __future__ import annotations

from typing import Any

WEIGHT = "distill.graph.weight"
SCHEME = "distill.atom.normalization"
POWER = "distill.atom.power"


def space(**changes: Any) -> dict[str, Any]:
    return {"base": "student-tiny-distilled", "parameters": {WEIGHT: {"log_uniform": [0.05, 5]}}, **changes}


def searched(name: str, domain: Any) -> dict[str, Any]:
    return space(parameters={name: domain})


def weight(domain: Any) -> dict[str, Any]:
    return searched(WEIGHT, domain)


def rare(key: str) -> dict[str, Any]:
    """A space with a key in a branch that one configuration in 4,096 goes through."""
    inner: dict[str, Any] = {key: {"uniform": [0.5, 0.9]}}
    for name in ("model.walks", "model.max_path", "model.depth"):
        inner = {name: {"choice": [*range(1, 16), {16: inner}]}}
    return space(parameters=inner, fixed={"optimizer.kind": "schedule_free"})
