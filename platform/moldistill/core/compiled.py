"""`compiled`: numba's machine code for our kernels, kept on disk and never out of date.

numba keeps what it compiled beside the source and looks at the date of that one file only: a kernel that uses a kernel
or a constant of another module would go on with the old one after an update. So ours are kept in a folder that is named
after the content of `core`, `chem` and `data`: in `$NUMBA_CACHE_DIR`, or `moldistill` in the user's cache.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

from moldistill.core.progress import log

F = TypeVar("F", bound=Callable[..., Any])

_PACKAGE = Path(__file__).parents[1]
_ROOMS = ("core", "chem", "data")
"""Where kernels live, and all that they may be given."""


def compiled(function: F) -> F:
    """A function in machine code that holds no GIL; it must use numbers and arrays only."""
    config: Any = numba.config
    before, config.CACHE_DIR = config.CACHE_DIR, str(_folder())
    try:
        kernel: Any = numba.njit(cache=True, nogil=True)(function)
    finally:
        config.CACHE_DIR = before
    return cast(F, kernel)


def announce() -> None:
    """Say so where kernels are about to be compiled for the first time since an installation or update."""
    if not _folder().is_dir():
        log("compiling kernels, once after an installation or update: about 20 s")


@cache
def _folder() -> Path:
    name = f"kernels-{_stamp(_PACKAGE)}"
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(chosen) / name
    own = Path(tempfile.gettempdir()) / f"moldistill-{os.getuid()}"
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moldistill"
    except RuntimeError:  # a user without a home, as in some containers
        base = own
    return (base if _writable(base) else own) / name


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _stamp(package: Path) -> str:
    """Hash of every module whose constants a kernel may hold."""
    digest = hashlib.sha256(numba.__version__.encode())
    for room in _ROOMS:
        for path in sorted((package / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
