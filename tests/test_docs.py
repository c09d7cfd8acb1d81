"""What the documents say is so: commands parse, YAML loads, links and named places exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from moldistill.cli import app
from moldistill.core.config import load_pipeline, load_run, preset_names
from moldistill.core.yaml_file import parse_yaml
from moldistill.search.ablation import load_ablation
from moldistill.search.parse import load_space, space_names

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "platform" / "ARCHITECTURE.md", ROOT / "k8s" / "README.md"]
DOCUMENTS += [ROOT / "search_spaces" / "README.md"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
VERBS = typer.main.get_command(app)


def fenced(path: Path) -> list[tuple[str, str]]:
    """What stands behind the opening fence, and the text, of every fenced block."""
    # Every block is matched, so that a closing fence is never taken for an opening one.
    return re.findall(r"^```([^\n]*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    found = []
    for path in DOCUMENTS:
        for kind, block in fenced(path):
            if kind in ("", "bash"):
                found += [line for line in block.splitlines() if line.startswith("moldistill ")]
    return found


def blocks(path: Path, kind: str) -> list[str]:
    """YAML blocks whose fence names what they are: ```yaml space, run, pipeline or ablation."""
    return [block for fence, block in fenced(path) if fence.split()[:2] == ["yaml", kind]]


@pytest.mark.parametrize("command", commands())
def test_every_command_parses(command: str) -> None:
    """By the real command line's parser: the verb exists, every option is known, nothing is missing."""
    _, verb, *arguments = shlex.split(command)
    known = VERBS.commands  # type: ignore[attr-defined]
    assert verb in known
    known[verb].make_context(verb, arguments, resilient_parsing=False)


@pytest.mark.parametrize("command", [line for line in commands() if line.split()[1] in ("train", "explain", "search")])
def test_every_preset_space_and_override_is_known(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`train` and `search` read what the document names; a file that it shows is written first."""
    own = re.search(r"```yaml space (\S+)\n(.*?)```", README, re.DOTALL)
    assert own is not None
    monkeypatch.chdir(tmp_path)
    for name in (own[1], "study.yaml"):  # the latter stands for any file of the reader's
        Path(name).write_text(own[2], encoding="utf-8")
    _, verb, *arguments = shlex.split(command)
    found = VERBS.commands[verb].make_context(verb, arguments).params  # type: ignore[attr-defined]
    if verb == "train":
        load_run(found["run"], found["overrides"] or [])
    else:
        source = ROOT / found["space"] if found["space"].startswith("search_spaces/") else found["space"]
        load_space(source, found["overrides"] or [], targets=found["targets"])


def test_there_are_commands_to_check() -> None:
    written = [line for path in DOCUMENTS for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(commands()) == sum(line.startswith("moldistill ") for line in written) >= 15
    assert {command.split()[1] for command in commands()} >= {"prepare", "train", "search", "ensemble", "submit"}


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", ROOT / "search_spaces" / "README.md"], ids=lambda path: path.parent.name
)
def test_every_space_in_the_documents_loads(path: Path) -> None:
    found = [parse_yaml(text, path.name) for text in blocks(path, "space")]
    assert found
    for mapping in found:
        space = load_space(mapping, targets="targets")
        assert space.budget.trials > 0


def test_the_own_search_is_ten_lines() -> None:
    lines = [line for line in blocks(ROOT / "README.md", "space")[0].splitlines() if not line.startswith("#")]
    assert len(lines) <= 10


def test_every_run_pipeline_and_ablation_in_the_documents_loads(tmp_path: Path) -> None:
    runs, pipelines, ablations = (blocks(ROOT / "README.md", kind) for kind in ("run", "pipeline", "ablation"))
    assert runs
    assert pipelines
    assert ablations
    for text in ablations:
        assert len(load_ablation(parse_yaml(text, "README.md")).arms) > 1
    for text in runs:
        load_run(parse_yaml(text, "README.md"))
    for text in pipelines:
        (tmp_path / "pipeline.yaml").write_text(text, encoding="utf-8")
        load_space(dict(load_pipeline(tmp_path / "pipeline.yaml").search), targets="targets")


def test_the_model_of_the_readme_keeps_the_contract(tmp_path: Path) -> None:
    """In a process of its own: the registry of this one stays as it is."""
    (code,) = [block for fence, block in fenced(ROOT / "README.md") if fence == "python my_models.py"]
    (tmp_path / "my_models.py").write_text(code)
    command = [sys.executable, "-m", "moldistill", "models"]
    environment = os.environ | {"MOLDISTILL_MODELS": "my_models", "PYTHONPATH": str(tmp_path)}
    checked = subprocess.run(
        [*command, "--check", "student/neighbours"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert checked.returncode == 0, checked.stderr
    assert "keeps every promise" in checked.stderr
    (tmp_path / "my_models.py").write_text(code.replace("torch.where(real, atoms, 0.0).sum(1)", "atoms.sum(1)"))
    broken = subprocess.run(
        [*command, "--check", "student/neighbours"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert broken.returncode == 1
    assert "padding" in broken.stderr


def test_the_python_of_the_readme_runs(tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [block for fence, block in fenced(ROOT / "README.md") if fence == "python"]
    monkeypatch.chdir(tmp_path)
    Path("store").symlink_to(tiny_store)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert sum(batch.num_graphs for batch in names["graphs"]) == len(names["rows"]) == 41
    assert sum(len(batch.target) for batch in names["padded"]) == 41
    assert all("pos" in batch for batch in names["graphs"])


def test_presets_and_spaces_are_all_named() -> None:
    for name in preset_names():
        assert f"`{name}`" in README
        load_run(name)
    for name in space_names():
        assert f"`{name}`" in README


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_the_rooms_of_the_house_exist() -> None:
    text = (ROOT / "platform" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    house = text[text.index("| place in") : text.index("Layers, left")].splitlines()[2:]
    rows = [row for row in house if row.startswith("|")]
    places = [place for row in rows for place in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(places) > 10
    for place in places:
        assert (ROOT / "platform" / "moldistill" / place).exists(), place
