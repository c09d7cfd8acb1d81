"""Strict YAML: what is wrong is refused with the place, the nearest right key and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moldistill.core.config import (
    apply_overrides,
    dump_yaml,
    leaves,
    load_pipeline,
    load_run,
    preset_names,
    read_yaml,
    to_mapping,
)
from moldistill.core.errors import InputError
from moldistill.core.settings import RunSettings
from moldistill.core.yaml_file import parse_yaml


@pytest.mark.parametrize("name", preset_names())
def test_presets_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    settings = load_run(name)
    (tmp_path / "saved.yaml").write_text(dump_yaml(to_mapping(settings)))
    assert load_run(tmp_path / "saved.yaml") == settings


def test_base_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("base: student-tiny\nmodel: {depth: 2}\noptimizer: {learning_rate: 1e-4}\n")
    settings = load_run(tmp_path / "own.yaml", ["model.depth=3", "distill.graph.layers=[1, 3]"])
    assert settings.model.depth == 3
    assert settings.model.width == load_run("student-tiny").model.width
    assert settings.optimizer.learning_rate == 1e-4
    assert settings.distill.graph.layers == (1, 3)


def test_scalars_are_those_of_yaml_1_2() -> None:
    text = "a: 1e-3\nb: no\nc: true\nd: 0o10\ne: 12\nf: -.5\ng: 1_000\nh: 2024-01-01\n"
    value = parse_yaml(text, "x")
    assert value == {"a": 1e-3, "b": "no", "c": True, "d": "0o10", "e": 12, "f": -0.5, "g": "1_000", "h": "2024-01-01"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("distill.graph.wieght=1", ["unknown key 'distill.graph.wieght'", "did you mean 'distill.graph.weight'?"]),
        ("trianing.epochs=3", ["unknown key 'trianing'", "did you mean 'training'?"]),
        ("weight=1", ["did you mean 'distill.prediction.weight'?"]),
        ("training.epochs=0", ["training.epochs", "got:      0", "≥ 1"]),
        ("training.epochs=three", ["training.epochs", "'three'", "a whole number"]),
        ("training.epochs=2.5", ["training.epochs", "2.5", "a whole number"]),
        ("training.epochs=true", ["training.epochs", "True (bool)"]),
        ("optimizer.learning_rate=-1", ["optimizer.learning_rate", "> 0"]),
        ("model.width=97", ["model: width 97 is not a multiple of heads 8"]),
        ("model=3", ["model", "got:      3"]),
        ("role=pupil", ["role", "one of teacher, student"]),
        ("distill.atom.normalization=coord", ["coordinated", "gradient_matched"]),
        ("distill.graph.layers=first", ["distill.graph: layers is 'first'"]),
        ("distill.graph.layers=[2,2]", ["different whole numbers"]),
        ("distill.graph.layers=[]", ["different whole numbers"]),
        ("training.epochs", ["expected: key=value"]),
        ("=3", ["expected: key=value"]),
        ("training.epochs=[1", ["not valid YAML"]),
    ],
)
def test_wrong_overrides_are_refused(override: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_run("student-tiny", [override])
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"role: student\nrole: teacher\n", ["wrong.yaml:2", "the key 'role' stands twice"]),
        (b"model: {width: 64\n", ["wrong.yaml:2", "not valid YAML"]),
        (b"model:\n\twidth: 64\n", ["wrong.yaml:2", "not valid YAML"]),
        (b"", ["does not hold a mapping", "nothing"]),
        (b"- role\n", ["does not hold a mapping", "list"]),
        (b"role: \xff\n", ["not UTF-8"]),
        (b"a: !!python/object/apply:os.system ['true']\n", ["not valid YAML"]),
        (b"base: student-tny\n", ["did you mean 'student-tiny'?"]),
        (b"base: wrong.yaml\n", ["is its own base"]),
        (b"base: 3\n", ["`base` must name"]),
        (b"role: teacher\ndistill: {graph: {weight: 1}}\n", ["a teacher is not distilled"]),
        (b"distill: {atom: {weight: 1, normalization: gradient_matched}}\n", ["give graph.weight a value"]),
    ],
)
def test_wrong_files_are_refused(content: bytes, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_run(path)
    for word in words:
        assert word in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="is a folder"):
        read_yaml(tmp_path)
    with pytest.raises(InputError, match="neither a preset nor a file"):
        load_run("nothing")


def test_pipeline_checks_the_roles_of_its_runs() -> None:
    assert load_pipeline("demo").source == "sample"
    with pytest.raises(InputError, match="the run's role is 'student'"):
        load_pipeline("demo", ["teacher.base=student-tiny"])
    with pytest.raises(InputError, match=r"did you mean 'prepare\.valid_3d'"):
        load_pipeline("demo", ["prepare.valid3d=0.1"])


@given(
    st.dictionaries(
        st.sampled_from(sorted(leaves(RunSettings))), st.integers() | st.text("ab1.-", max_size=5) | st.none()
    )
)
def test_whatever_is_set_is_taken_or_refused_in_our_words(changes: dict[str, object]) -> None:
    mapping = to_mapping(load_run("student-tiny"))
    for key, value in changes.items():
        nested: object = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        from moldistill.core.config import merge

        mapping = merge(mapping, nested)  # type: ignore[arg-type]
    try:
        settings = load_run(mapping)
    except InputError as error:
        assert "Traceback" not in str(error)
    else:
        assert load_run(to_mapping(settings)) == settings


def test_overrides_do_not_touch_what_they_are_given() -> None:
    before = {"a": {"b": 1}}
    assert apply_overrides(before, ["a.c=2"]) == {"a": {"b": 1, "c": 2}}
    assert before == {"a": {"b": 1}}
