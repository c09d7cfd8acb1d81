"""Machine code that is kept is that of the source at hand, also of kernels in other modules."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from moldistill.core import compiled as module

ROOT = Path(__file__).parents[1]
IMPORT = "from moldistill.core.compiled import compiled\n"
CALLER = IMPORT + "from callee import inner\n\n\n@compiled\ndef outer(x):\n    return inner(x)\n"
CALLEE = IMPORT + "\n\n@compiled\ndef inner(x):\n    return x + {}\n"


def _run(folder: Path, **environment: str) -> str:
    code = "from moldistill.core import compiled; from pathlib import Path\n"
    code += "compiled._PACKAGE, compiled._ROOMS = Path(), ('.',)\n"
    code += "from caller import outer; print(outer(1))"
    paths = os.pathsep.join([str(folder), str(ROOT / "platform")])
    known = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=known | {"PYTHONPATH": paths} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_kernel_follows_the_kernels_that_it_calls(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "caller.py").write_text(CALLER)
    for added in (1, 5):
        (source / "callee.py").write_text(CALLEE.format(added))
        for _ in range(2):  # compiled, then read from the disk
            assert _run(source, NUMBA_CACHE_DIR=str(tmp_path / "kept")) == str(1 + added)
    kept = [folder.name for folder in (tmp_path / "kept").iterdir()]
    assert len(kept) == 2
    assert all(name.startswith("kernels-") for name in kept)


def test_a_kernel_follows_the_constants_that_it_uses(tmp_path: Path) -> None:
    (tmp_path / "caller.py").write_text(
        IMPORT + "from constants import LIMIT\n\n\n@compiled\ndef outer(x):\n    return x + LIMIT\n"
    )
    for limit in (5, 500):
        (tmp_path / "constants.py").write_text(f"LIMIT = {limit}\n")
        assert _run(tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "kept")) == str(1 + limit)


def test_a_place_that_cannot_be_written_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    module._folder.cache_clear()
    try:
        assert module._folder().is_relative_to(tempfile.gettempdir())
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        module._folder.cache_clear()
        assert module._folder().is_relative_to(tmp_path / "cache")
    finally:
        module._folder.cache_clear()


@pytest.mark.parametrize("name", ["XDG_CACHE_HOME", "HOME"])
def test_the_users_cache_is_used_and_one_that_cannot_be_written_does_no_harm(tmp_path: Path, name: str) -> None:
    (tmp_path / "caller.py").write_text(CALLER)
    (tmp_path / "callee.py").write_text(CALLEE.format(1))
    assert _run(tmp_path, **{name: str(tmp_path / "cache")}) == "2"
    assert list((tmp_path / "cache").rglob("kernels-*"))
    (tmp_path / "file").touch()
    assert _run(tmp_path, **{name: str(tmp_path / "file")}) == "2"


def test_every_kernel_of_the_package_is_kept_this_way() -> None:
    package = ROOT / "platform" / "moldistill"
    texts = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    mine = Path(module.__file__)
    assert [path for path, text in texts.items() if "numba.njit" in text and path != mine] == []
    held = [path.relative_to(package).parts[0] for path, text in texts.items() if "@compiled\n" in text]
    assert len(held) >= 5
    assert set(held) <= set(module._ROOMS)
