"""The sample that is packaged with moldistill."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from moldistill.core.artifacts import MANIFEST
from moldistill.core.errors import InputError


def sample_root() -> Path:
    """Folder of the packaged sample: about 2,900 molecules in the layout of PCQM4Mv2.

    Raises InputError where the installation lacks it.
    """
    root = Path(str(files("moldistill.sample")))
    if not (root / MANIFEST).is_file():
        raise InputError("the packaged sample is missing", got=root, remedy="install moldistill again, from a wheel")
    return root


def resolve_source(source: str) -> Path:
    """The folder or file that a source names, absolute; the word `sample` names the embedded sample."""
    return sample_root() if source == "sample" else Path(source).expanduser().absolute()
