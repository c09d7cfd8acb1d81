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
