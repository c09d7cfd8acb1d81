"""Changing a manifest as its writer would have written it, so that the change itself is what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moldistill.core.artifacts import MANIFEST, hash_object


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the manifest of a folder, and restate its checksum."""
    content = json.loads((folder / MANIFEST).read_text())
    del content["checksum"]
    change(content)
    content["checksum"] = hash_object(content)
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")
