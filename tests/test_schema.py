"""JSON Schemas for editors: they take what we take, and refuse of what we refuse as much as a schema can."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from moldistill.cli import app
from moldistill.core.config import build, leaves, load_run, preset_names, read_yaml, to_mapping
from moldistill.core.errors import InputError
from moldistill.core.settings import RunSettings
from moldistill.search.ablation import ablation_names, load_ablation
from moldistill.search.leafcheck import NOT_SEARCHABLE
from moldistill.search.parse import load_space, space_names
from moldistill.search.schema import KINDS, schema, schema_text
from spaces import POWER, SCHEME, WEIGHT, space
from test_space_errors import WRONG
from test_space_fuzz import WHOLE

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "platform" / "moldistill"
VALIDATORS = {kind: Draft202012Validator(schema(kind)) for kind in KINDS}

BEYOND = {
    "misspelt preset",  # a file may have any name
    "a name that no file has",
    "reversed",  # one value against another
    "one point",
    "NaN end",  # JSON has none
    "step that misses the end",
    "inside and outside a branch",
    "in branches of two choices",
    "fixed and searched",
    "a teacher on validation rows",
    "the same twice",
    "hours without an end",  # JSON has no infinity
    "infinite GPUs",
    "CPUs that are no number",
    "a grid without steps",
    "a grid with branches",
    "a grid without an end",
}
"""Wrong spaces that a schema cannot tell."""


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_a_schema(kind: str) -> None:
    Draft202012Validator.check_schema(schema(kind))
    assert schema(kind)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_the_committed_one_is_what_the_verb_prints() -> None:
    """After a change of the settings: `moldistill schema space --out search_spaces/space.schema.json`."""
    printed = CliRunner().invoke(app, ["schema", "space"])
    assert printed.exit_code == 0
    assert (ROOT / "search_spaces" / "space.schema.json").read_text(encoding="utf-8") == printed.stdout
    assert json.loads(printed.stdout) == schema("space")


@pytest.mark.parametrize("kind", KINDS)
def test_the_verb_prints_or_writes_each(kind: str, tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["schema", kind]).stdout == schema_text(kind)
    written = CliRunner().invoke(app, ["schema", kind, "--out", str(tmp_path / "x.json")])
    assert written.stdout == ""
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == schema_text(kind)


def test_unknown_kinds_are_named() -> None:
    with pytest.raises(InputError, match="did you mean 'space'"):
        schema("spaces")


@pytest.mark.parametrize("name", space_names())
def test_shipped_spaces(name: str) -> None:
    path = ROOT / "search_spaces" / f"{name}.yaml"
    assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=space.schema.json\n")
    VALIDATORS["space"].validate(read_yaml(path))
    VALIDATORS["space"].validate(json.loads(json.dumps(load_space(name).mapping)))


def test_shipped_runs_pipelines_and_ablations() -> None:
    for name in preset_names():
        VALIDATORS["run"].validate(read_yaml(PACKAGE / "presets" / f"{name}.yaml"))
        VALIDATORS["run"].validate(to_mapping(load_run(name)))
    for path in (PACKAGE / "pipelines").glob("*.yaml"):
        VALIDATORS["pipeline"].validate(read_yaml(path))
    for name in ablation_names():
        VALIDATORS["ablation"].validate(read_yaml(PACKAGE / "ablations" / f"{name}.yaml"))
        VALIDATORS["ablation"].validate(json.loads(json.dumps(load_ablation(name).mapping)))


def test_a_space_with_every_key() -> None:
    load_space(WHOLE)
    VALIDATORS["space"].validate(WHOLE)


def caught(mapping: dict[str, Any]) -> bool:
    return not VALIDATORS["space"].is_valid(mapping)


@pytest.mark.parametrize("case", WRONG, ids=[case[0] for case in WRONG])
def test_wrong_spaces_are_marked(case: tuple[str, dict[str, Any], str, str]) -> None:
    """All that can be told from one place; the rest is named above, so that what is missed is known."""
    assert caught(case[1]) != (case[0] in BEYOND)


def test_most_wrong_spaces_are_marked() -> None:
    assert {case[0] for case in WRONG} >= BEYOND
    assert sum(caught(case[1]) for case in WRONG) >= 80


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("run", {"model": {"widht": 64}}),
        ("run", {"model": {"width": 4}}),
        ("run", {"distill": {"atom": {"normalization": "powr"}}}),
        ("run", {"training": {"steps": "many"}}),
        ("pipeline", {"search": {"space": "smoke", "budgets": {}}}),
        ("pipeline", {"search": {"budget": {"trials": 2}}}),
        ("pipeline", {"prepare": {"valid_3d": 0.9}}),
        ("ablation", {"base": "student-tiny", "arms": {"a": {}, "b": {"model.depht": 3}}, "baseline": "a"}),
        ("ablation", {"base": "student-tiny", "arms": {"a": {}, "b.c": None}, "baseline": "a"}),
        ("ablation", {"base": "student-tiny", "arms": {"a": {}, "b": {}}}),
    ],
)
def test_other_wrong_files_are_marked(kind: str, wrong: dict[str, Any]) -> None:
    assert not VALIDATORS[kind].is_valid(wrong)


def test_every_key_of_a_run_is_there() -> None:
    parameters = schema("space")["$defs"]["parameters"]["properties"]
    assert set(parameters) == set(leaves(RunSettings)) - set(NOT_SEARCHABLE)


@pytest.mark.parametrize("key", leaves(RunSettings))
def test_bounds_are_those_of_the_settings(key: str) -> None:
    """At each bound, and just beyond it, the schema says what the strict settings say."""
    leaf = leaves(RunSettings)[key]
    bounded = Draft202012Validator(schema("space")["$defs"][key])
    candidates: list[Any] = ["no such word", True, None, [], [1, 2], {}, -1, 0, 1, 10**9, *leaf.choices]
    for bound in leaf.bounds.values():
        candidates += [bound, bound - 1, bound + 1]
    for value in candidates:
        assert bounded.is_valid(value) == _taken(key, value), (key, value)


def _taken(key: str, value: Any) -> bool:
    """By type and bounds alone: settings that contradict others are another matter."""
    mapping: Any = value
    for part in reversed(key.split(".")):
        mapping = {part: mapping}
    try:
        build(RunSettings, mapping, "test")
    except InputError as error:
        return f"test: {key}:" not in str(error)
    return True


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_what_it_takes_for_a_parameter_is_read(data: st.DataObject) -> None:
    """Both ways, over the forms of some keys: right ones, and ones with a number or a name out of place."""
    key = data.draw(st.sampled_from([WEIGHT, "model.depth", "model.dropout", SCHEME, "distill.graph.layers"]))
    number = st.sampled_from([-1, 0, 1, 2, 48, 49, 1000, 0.5, 0.25, 1500.0, True, "power", "a"])
    ends = st.lists(number, min_size=1, max_size=3)
    branch = st.sampled_from([{"power": {POWER: {"uniform": [0, 1]}}}, {"sum": {"model.heads": {"choice": [4, 8]}}}])
    form = data.draw(
        st.fixed_dictionaries({"uniform": ends})
        | st.fixed_dictionaries({"log_uniform": ends})
        | st.fixed_dictionaries({"int": ends}, optional={"log": st.sampled_from([True, False, 1])})
        | st.fixed_dictionaries({"choice": st.lists(number | branch, max_size=3)})
    )
    mapping = space(parameters={key: form})
    if _ordered(form) and not _same(form):
        assert VALIDATORS["space"].is_valid(mapping) == _read(mapping), mapping


def _ordered(form: dict[str, Any]) -> bool:
    """Whether the ends ascend, which a schema cannot say."""
    ends = next(value for value in form.values() if isinstance(value, list))
    plain = [end for end in ends if isinstance(end, int | float)]
    return "choice" in form or len(ends) != 2 or len(plain) < 2 or plain[0] < plain[1]


def _same(form: dict[str, Any]) -> bool:
    """Whether values are equal to JSON (1 and 1.0), or have the same key as a branch."""
    values = [next(iter(item)) if isinstance(item, dict) else item for item in form.get("choice", [])]
    return any(one == other for place, one in enumerate(values) for other in values[:place])


def _read(mapping: dict[str, Any]) -> bool:
    try:
        load_space(copy.deepcopy(mapping))
    except InputError:
        return False
    return True
