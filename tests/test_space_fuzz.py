"""Broken spaces, by the hundred: each is read, or refused with its place and a remedy; none ends in a traceback."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moldistill.core.config import dump_yaml, leaves
from moldistill.core.errors import InputError
from moldistill.core.settings import RunSettings
from moldistill.search import checks
from moldistill.search.parse import load_space, space_names
from spaces import POWER, SCHEME, WEIGHT

WHOLE: dict[str, Any] = {
    "base": "student-tiny-distilled",
    "fixed": {"training.epochs": 12, "model": {"heads": 4}},
    "parameters": {
        WEIGHT: {"log_uniform": [0.05, 5]},
        SCHEME: {
            "choice": [
                "sum",
                {"power": {POWER: {"uniform": [0, 2], "step": 0.5}}},
                {"dataset_mean": {"distill.atom.head": {"choice": ["linear", {"mlp": {POWER: {"uniform": [0, 1]}}}]}}},
            ]
        },
        "model.width": {"choice": [64, 96]},
        "model.depth": {"int": [2, 6], "log": True},
        "distill.graph.layers": {"choice": ["all", [1, 2]]},
    },
    "constraints": [f"{WEIGHT} <= 4 or model.depth < 6", "model.width % model.heads == 0"],
    "starting_points": [{WEIGHT: 1.0, SCHEME: "power", POWER: 0.5}],
    "objective": [{"metric": "valid_mae", "direction": "minimize"}, {"metric": "parameters"}],
    "sampler": {"name": "tpe", "startup_trials": 4, "seed": 0},
    "scheduler": {"name": "none"},
    "budget": {"trials": 8, "hours": 2.0},
    "backend": "auto",
    "resources": {"cpus": 1, "gpus": 0.5, "concurrent": 2, "gpu_memory": 0.4},
    "failures": {"retries": 1, "told": "penalty"},
    "replicates": {"top": 3, "seeds": 2},
    "keep": 5,
    "tracking": {"wandb": "project"},
    "storage": "journal",
}
JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 2.5, 1e308, 10**400, -(10**30), math.nan, math.inf, -math.inf,
    "", "x", "power", "grid", "cmaes", "asha", "model.depth", "not " * 99, "\x00", "\u2028", "é" * 300,
    [], {}, [[]], [None], [1, 2], [[1], [2]], {"a": 1}, {"choice": [1, 2]}, {"uniform": [0, 1]}, {1: 2}, {None: 3},
    {True: {"uniform": [0, 1]}}, {"power": {POWER: {"uniform": [0, 1]}}}, [{"metric": "test_mae"}],
]  # fmt: skip
KEYS: list[Any] = [*leaves(RunSettings), "model", "choice", "uniform", "log", "step", "name", "powr", 1, None, "", 2.5]


def nodes(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to every value inside a mapping."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in inner for found in [(*way, key), *nodes(item, (*way, key))]]


def corrupt(value: dict[str, Any], draw: random.Random) -> None:
    """Change one thing, somewhere."""
    *way, last = draw.choice(nodes(value))
    place: Any = value
    for key in way:
        place = place[key]
    match draw.randrange(6):
        case 0:
            del place[last]
        case 1 | 2:
            place[last] = copy.deepcopy(draw.choice(JUNK))
        case 3:
            place[last] = [place[last]] if draw.random() < 0.5 else {"a": place[last]}
        case 4 if isinstance(place, dict):
            place[draw.choice(KEYS)] = place.pop(last)
        case _:
            other: Any = value  # something that is right elsewhere
            for key in draw.choice(nodes(value)):
                other = other[key]
            place[last] = copy.deepcopy(other)


def read(path: Path) -> bool:
    """Whether the space is read and may be searched; any other error than InputError fails the test."""
    try:
        with patch.object(checks, "SAMPLES", 6):
            checks.check_space(load_space(path))
    except InputError as error:
        assert error.remedy
        assert path.name in str(error) or "model.name" in str(error), str(error)
        assert "Traceback" not in str(error)
        return False
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spaces")


def test_the_whole_is_right(folder: Path) -> None:
    path = folder / "right.yaml"
    path.write_text(dump_yaml(WHOLE), encoding="utf-8")
    assert read(path)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**64), st.integers(1, 3))
def test_wrong_values(folder: Path, seed: int, count: int) -> None:
    draw, broken = random.Random(seed), copy.deepcopy(WHOLE)
    for _ in range(count):
        if broken:
            corrupt(broken, draw)
    path = folder / "broken.yaml"
    path.write_text(dump_yaml(broken), encoding="utf-8")
    read(path)


SHIPPED = Path(__file__).parents[1] / "search_spaces"
ODD = "[]{}:,#&*!|>'\"%@`-?\t\n\r a0.~<=\\\u00e9\u2028\x00"


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["whole", *space_names()]), st.integers(0, 2**64), st.integers(1, 4))
def test_wrong_characters(folder: Path, name: str, seed: int, count: int) -> None:
    draw = random.Random(seed)
    text = dump_yaml(WHOLE) if name == "whole" else (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")
    for _ in range(count):
        place = draw.randrange(len(text))
        text = text[:place] + draw.choice([*ODD, ""]) + text[place + draw.randrange(3) :]
    path = folder / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    read(path)


@pytest.mark.parametrize(
    "text",
    [
        "base: student-tiny\n? [a, b]\n: 1\n",
        "base: student-tiny\nparameters: {? {a: 1} : 2}\n",
        "base: student-tiny\nparameters: " + "[" * 3000,
        "base: &a {model: *a}\nparameters: {}\n",
        "base: student-tiny\nparameters: &p {model.depth: {choice: [2, {3: *p}]}}\n",
        "base: student-tiny\nparameters: !!python/object:os.system {}\n",
        "base: student-tiny\nparameters: {<<: {model.depth: 3}}\n",
        "base: student-tiny\nparameters: {<<: 3}\n",
        "\x00",
        "base: \x07",
    ],
    ids=range(10),
)
def test_traps_of_yaml(text: str, folder: Path) -> None:
    path = folder / "trap.yaml"
    path.write_text(text, encoding="utf-8")
    assert not read(path)


def test_bytes_that_are_no_text(folder: Path) -> None:
    path = folder / "bytes.yaml"
    path.write_bytes(b"base: \xff\xfe")
    assert not read(path)


@pytest.mark.parametrize(
    "override",
    [
        "budget.trials=many",
        "budget=",
        "=3",
        "budget",
        "parameters.model.depth=[",
        "a.b.c=1",
        "fixed.x=1",
        "parameters.model.depth={? [1] : 2}",
    ],
)
def test_wrong_overrides(override: str) -> None:
    with pytest.raises(InputError) as caught:
        load_space("smoke", [override])
    assert caught.value.remedy
