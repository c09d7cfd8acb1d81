"""Constraints: they mean what Python means, what is wrong in them is told, and what violates them is not trained."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moldistill.core.config import load_run
from moldistill.core.errors import InputError
from moldistill.search.checks import check_space
from moldistill.search.compile import sample
from moldistill.search.constraints import parse_constraint, value_at
from moldistill.search.expressions import evaluate, parse_expression
from moldistill.search.parse import load_space
from spaces import SCHEME, WEIGHT, space

SETTINGS = load_run("student-tiny-distilled")
NUMBERS = ("model.width", "model.depth", "optimizer.learning_rate", "distill.graph.weight", "model.dropout")


def holds(text: str) -> bool:
    return parse_constraint(text, "s: constraints[0]").holds(SETTINGS)


def numbers() -> st.SearchStrategy[str]:
    """Expressions of numbers, as text."""
    plain = st.sampled_from(NUMBERS) | st.integers(0, 99).map(str) | st.floats(0, 9).map(lambda value: f"{value:.3f}")
    return st.recursive(
        plain,
        lambda inner: (
            st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner).map(
                lambda part: f"({' '.join(part)})"
            )
            | inner.map(lambda text: f"-{text}")
            | st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(
                lambda part: f"{part[0]}({part[1]}, {part[2]})"
            )
            | inner.map(lambda text: f"abs({text})")
            | inner.map(lambda text: f"log({text})")
        ),
        max_leaves=8,
    )


def conditions() -> st.SearchStrategy[str]:
    signs = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
    compared = st.tuples(numbers(), signs, numbers(), signs, numbers())
    return st.recursive(
        compared.map(lambda part: " ".join(part[:3])) | compared.map(" ".join),
        lambda inner: (
            st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda part: f"({' '.join(part)})")
            | inner.map(lambda text: f"not ({text})")
        ),
        max_leaves=4,
    )


@given(conditions())
def test_they_mean_what_python_means(text: str) -> None:
    """Python's own evaluation of the same text, over objects with these attributes."""
    names = {
        group: SimpleNamespace(
            **{name.split(".", 1)[1]: value_at(SETTINGS, name) for name in NUMBERS if name.startswith(group)}
        )
        for group in ("model", "optimizer")
    }
    names["distill"] = SETTINGS.distill  # type: ignore[assignment]
    try:
        expected = bool(eval(text, {"log": math.log, "min": min, "max": max, "abs": abs, "__builtins__": {}}, names))
    except (ArithmeticError, ValueError):
        expected = False
    try:
        tree = parse_expression(text, "s")
    except InputError as error:
        assert "nested too deeply" in str(error) or "too long" in str(error)
        return
    assert holds(text) == expected
    assert ast.unparse(tree) == ast.unparse(ast.parse(text, mode="eval").body)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.width % model.heads == 0", True),
        ("2 <= model.depth < 48", True),
        ("48 < model.depth <= 48", False),
        ("training.batch_size in [64, 128] or model.depth < 100", True),
        ("model.name in ['transformer', 'hybrid']", True),
        ("model.name not in ['gine']", True),
        ("not model.depth > 100 > log(0)", True),
        ("distill.graph.layers == 'all'", True),
        ("distill.graph.layers == [1, 2]", False),
        ("training.steps == null", True),
        ("training.steps == None", True),
        ("training.steps < 100", False),
        ("not training.steps > 100", False),
        ("model.angles == false", True),
        ("not model.angles", True),
        ("log(model.width, 2) >= 5", True),
        ("log(0) < 1 or model.depth > 0", False),
        ("1 / (model.depth - model.depth) > 0", False),
        ("model.width ** 2 <= 1e6", True),
        ("9.0 ** 9 ** 9 ** 9 > model.depth", False),
        ("min(model.width, 8) == 8", True),
        ("distill.graph.weight\n  + distill.atom.weight <= 1000", True),
    ],
)
def test_examples(text: str, expected: bool) -> None:
    """Without a value (the size of a null, a division by 0) a constraint is violated, also under `not`."""
    assert holds(text) is expected


def test_null_is_violated_and_not_an_error() -> None:
    assert not holds("training.atoms_per_batch >= 256")
    assert holds("training.atoms_per_batch == null or training.atoms_per_batch >= 256")


# The constraint, and parts of what is said about it.
WRONG = [
    ("model.width %% 2", "not an expression"),
    ("model.width = 64", "== compares"),
    ("(model.width > 2", "not an expression"),
    ("", "not an expression"),
    ("model.width > 2 && model.depth > 2", "not an expression"),
    ("model.width > 2 & model.depth > 2", "and"),
    ("model.depth is 4", "instead of `is`"),
    ("model.widht > 2", "model.width"),
    ("width > 2", "model.width"),
    ("model > 2", "group of keys"),
    ("model.width", "compare it"),
    ("model.width + 2", "compare it"),
    ("model.width and model.depth > 2", "a truth is needed"),
    ("model.name + 1 == 2", "a number is needed"),
    ("model.name < 3", "a number is needed"),
    ("model.width == 'wide'", "never be equal"),
    ("model.name == 3", "never be equal"),
    ("model.width in ['a', 'b']", "never be equal"),
    ("model.width in []", "never be equal"),
    ("model.width == null", "never be equal"),
    ("model.name in 'transformer'", "a list"),
    ("model.width in 64", "a list"),
    (f"{SCHEME} == 'powr'", "did you mean 'power'"),
    (f"{SCHEME} in ['power', 'some']", "is never 'some'"),
    (f"'powr' != {SCHEME}", "did you mean 'power'"),
    ("abs(model.width, 2) > 1", "abs with one"),
    ("max(model.width) > 1", "min or max with two"),
    ("sqrt(model.width) > 1", "sqrt"),
    ("abs('a') > 1 or model.width > 1", "a number is needed"),
    ("__import__('os').system('true') == 0", "no such expression"),
    ("model.__class__ == 1", "model.__class__"),
    ("(lambda: model.width)() > 1", "no such expression"),
    ("[x for x in [1]] == model.width", "no such expression"),
    ("model.width[0] == 1", "no such expression"),
    ("(model.width if true else 2) > 1", "no such expression"),
    ("f'{model.width}' == 'a'", "no such expression"),
    ("b'a' == model.name", "no such expression"),
    ("1j == model.width", "no such expression"),
    ("~model.width > 1", "no such expression"),
    ("(y := model.width) > 1", "no such expression"),
    ("max(*[1, 2]) > model.width", "no such expression"),
    ("model.width > 1" + " + 0" * 400, "too long"),
    ("not " * 200 + "model.width > 1", "nested too deeply"),
    ("(" * 300 + "model.width" + ")" * 300 + " > 1", "not an expression"),
    ("model.width > 1\x00", "not an expression"),
]


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[case[0][:40] for case in WRONG])
def test_wrong_ones_are_refused(text: str, said: str) -> None:
    """With the place, and before anything is drawn."""
    wide = {"model.width": {"choice": [64, 96]}, SCHEME: {"choice": ["sum", "power"]}}
    with pytest.raises(InputError) as caught:
        load_space(space(parameters=wide, constraints=["model.width > 1", text]))
    assert "constraints[1]" in str(caught.value)
    assert said in str(caught.value)
    assert caught.value.remedy


@given(
    st.text(max_size=40)
    | st.lists(
        st.sampled_from(
            ["model.width", "(", ")", "[", "]", "'", "and", "not", "in", "==", "<", "1", "2.5", ",", ".", "*", "log"]
        )
    ).map(" ".join)
)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        constraint = parse_constraint(text, "s: constraints[0]")
    except InputError as error:
        assert error.remedy
        assert "constraints[0]" in str(error)
    else:
        assert constraint.holds(SETTINGS) in (True, False)


WIDTHS: dict[str, Any] = {"model.width": {"int": [60, 90]}, "model.depth": {"int": [2, 6]}}


class TestInASpace:
    def test_what_violates_them_has_no_settings(self) -> None:
        """The settings of the whole trial count: heads are not searched, and come from the base."""
        loaded = load_space(
            space(parameters={"model.depth": {"int": [2, 6]}}, constraints=["model.depth <= model.heads"])
        )
        heads = int(loaded.base["model"]["heads"])
        for depth in range(2, 7):
            if depth <= heads:
                assert loaded.settings({"model.depth": depth}).model.depth == depth
                continue
            with pytest.raises(InputError, match=r"constraints\[0\] is violated") as caught:
                loaded.settings({"model.depth": depth})
            assert f"model.depth={depth}, model.heads={heads}" in str(caught.value)

    def test_fixed_values_count(self) -> None:
        loaded = load_space(space(fixed={"model.depth": 3}, constraints=[f"{WEIGHT} * model.depth <= 3"]))
        assert loaded.settings({WEIGHT: 1.0})
        with pytest.raises(InputError, match="violated"):
            loaded.settings({WEIGHT: 1.01})

    def test_share_of_samples(self) -> None:
        loaded = load_space(space(constraints=[f"log({WEIGHT}) <= (log(0.05) + log(5)) / 2"]))
        checked = check_space(loaded)
        assert checked.refused == pytest.approx(0.5, abs=0.1)
        assert any("violate constraints[0]" in note for note in checked.notes)
        assert all(loaded.settings(values) for values in checked.configurations)

    def test_violated_by_every_sample(self) -> None:
        loaded = load_space(space(constraints=[f"{WEIGHT} < 5", f"{WEIGHT} > 6"]))
        with pytest.raises(InputError, match=r"constraints\[1\]: every sampled configuration violates it") as caught:
            check_space(loaded)
        assert f"{WEIGHT} > 6" in str(caught.value)

    def test_violated_together(self) -> None:
        loaded = load_space(space(constraints=[f"{WEIGHT} < 0.5", f"{WEIGHT} > 0.5"]))
        with pytest.raises(InputError, match="one constraint or another"):
            check_space(loaded)

    def test_one_that_holds_always_is_noted(self) -> None:
        notes = check_space(load_space(space(constraints=[f"{WEIGHT} < 6"]))).notes
        assert any("constraints[0] is kept by every" in note for note in notes)

    def test_without_a_searched_key(self) -> None:
        with pytest.raises(InputError, match="no parameter that is searched"):
            load_space(space(constraints=["model.width % model.heads == 0"]))

    def test_in_branches_that_were_not_chosen_the_base_counts(self) -> None:
        branch = {"power": {"distill.atom.power": {"uniform": [0, 2]}}}
        loaded = load_space(
            space(parameters={SCHEME: {"choice": ["sum", branch]}}, constraints=["distill.atom.power >= 1"])
        )
        for values in sample(loaded.parameters, 50):
            power = values.get("distill.atom.power", loaded.base["distill"]["atom"]["power"])
            assert parse_constraint("distill.atom.power >= 1", "s").holds(loaded.unconstrained(values)) == (power >= 1)


def test_nothing_is_executed() -> None:
    """Evaluation asks for keys by name, and for nothing else."""
    asked: list[str] = []

    def value_of(key: str) -> Iterator[int] | int:
        asked.append(key)
        return 1

    assert evaluate(parse_expression("model.width + model.depth > 1 and model.heads == 1", "s"), value_of)
    assert asked == ["model.width", "model.depth", "model.heads"]
