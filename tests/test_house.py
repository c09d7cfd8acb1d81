"""Rules of the house that no other tool checks."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "platform" / "moldistill").rglob("*.py"))


def test_platform_is_still_the_standard_librarys() -> None:
    """The source root is named platform: run in the root, where it could shadow the module of that name."""
    code = "import platform; print(platform.python_version(), platform.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    version, file = done.stdout.split()
    assert version.startswith("3.")
    assert not Path(file).is_relative_to(ROOT / "platform")
    assert not (ROOT / "platform" / "__init__.py").exists()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "platform")))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 300
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None and node.end_lineno - node.lineno >= 50
    ]
    assert not long


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.name == "__init__.py"], ids=lambda path: path.parent.name
)
def test_packages_import_nothing(path: Path) -> None:
    imports = (ast.Import, ast.ImportFrom)
    assert not [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, imports)]


def test_no_pickle_is_read() -> None:
    forbidden = ("allow_pickle=True", "weights_only=False", "yaml.load(", "pickle.load")
    found = [
        f"{path.name}: {word}" for path in SOURCES for word in forbidden if word in path.read_text(encoding="utf-8")
    ]
    assert not found


def test_the_loop_runs_without_ray_rdkit_and_pydantic() -> None:
    """What a GPU machine with torch, numpy and numba alone must be able to import."""
    code = """
import sys
for name in ("ray", "rdkit", "pydantic", "optuna", "rich", "beartype", "jaxtyping", "typer", "yaml", "safetensors"):
    sys.modules[name] = None
import moldistill.training.loop, moldistill.training.cache, moldistill.training.checkpoint
import moldistill.models.registry, moldistill.distill.objective, moldistill.data.batches, moldistill.data.predictions
from moldistill.models.registry import model_names
assert model_names("student") and model_names("teacher")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_pin_is_exact_and_covers_what_the_package_needs() -> None:
    import tomllib

    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        name, sign, version = line.partition("==")
        assert sign and version, line
        pins[name.lower().replace("_", "-")] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (item for group in groups for item in group):
        name = requirement.split("[")[0].split(">")[0].lower().replace("_", "-")
        assert name in pins, f"{name} has no pin"
