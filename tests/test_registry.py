"""The registry: others' models join, by name, and what is wrong with them is said clearly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from moldistill.core.errors import InputError
from moldistill.core.settings import ModelSettings
from moldistill.models import registry
from moldistill.models.registry import VARIABLE, build_model, model_names, register
from moldistill.models.student import TransformerStudent
from moldistill.training.checkpoint import load_weights, save_weights

SMALL = ModelSettings(width=16, depth=1, heads=2)


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Names that a test registers are gone behind it."""
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    registry._load_plugins.cache_clear()
    yield
    registry._load_plugins.cache_clear()


def test_a_module_that_the_variable_names_joins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strangers_models.py").write_text(
        "from moldistill.models.registry import register\n"
        "from moldistill.models.student import TransformerStudent\n"
        "@register('student', 'strange')\n"
        "class Strange(TransformerStudent): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(VARIABLE, " strangers_models ,")
    assert "strange" in model_names("student")
    assert "strange" not in model_names("teacher")
    assert type(build_model("student", replace(SMALL, name="strange"))).__name__ == "Strange"


@pytest.mark.parametrize("content", ["import no_such_package_at_all", "raise OSError('no disk')", "this is no python"])
def test_a_module_that_cannot_be_imported_is_named(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_models.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(VARIABLE, "broken_models")
    with pytest.raises(InputError, match="broken_models") as error:
        model_names("student")
    assert VARIABLE in str(error.value.remedy)


@pytest.mark.parametrize("name", ["transformer", "hybrid", "twice"])
def test_a_name_is_taken_once(name: str) -> None:
    register("student", "twice")(TransformerStudent)

    class Other(nn.Module):
        pass

    with pytest.raises(InputError, match="already"):
        register("student", name)(Other)
    register("student", "twice")(TransformerStudent)  # a module that is imported again is no stranger


def test_a_teachers_name_may_be_a_students() -> None:
    register("teacher", "hybrid")(TransformerStudent)
    assert "hybrid" in model_names("teacher")


def test_weights_that_a_model_uses_twice_are_saved_and_read(tmp_path: Path) -> None:
    def tied() -> nn.Sequential:
        first = nn.Linear(3, 3)
        return nn.Sequential(first, nn.ReLU(), first)

    one, other = tied(), tied()
    save_weights(one, tmp_path / "weights.safetensors")
    load_weights(other, tmp_path / "weights.safetensors")
    assert (one[0].weight == other[2].weight).all()
    assert other[0] is other[2]
    with pytest.raises(InputError, match="does not hold this model's weights"):
        load_weights(nn.Linear(2, 2), tmp_path / "weights.safetensors")
