"""Folders that stages hand each other: atomic writes, manifests and content hashes.

A folder is finished when it holds a `manifest.json`; it is written last. Files are written under a temporary name,
synced and renamed, so that a reader sees the old file or the new one and never a part.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moldistill import __version__
from moldistill.core.errors import InputError, RunError

MANIFEST = "manifest.json"
SCHEMA = 2

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of the system that mean: no room left."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size in bytes and SHA-256 of one file of an artifact."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a finished folder says of itself.

    kind:   store, run, targets, study, ensemble, submission, root …
    inputs: identity of each artifact it was made from, by name.
    files:  every file that readers rely on, by relative path.
    facts:  what the stage wants to be known (counts, figures); JSON values.
    """

    kind: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA
    version: str = __version__

    @property
    def identity(self) -> str:
        """Hash of kind and file contents: equal for equal content, whenever and wherever it was made."""
        return hash_object([self.kind, self.schema, {name: entry.sha256 for name, entry in self.files.items()}])


def hash_object(value: Any) -> str:
    """SHA-256 (32 hex digits) of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, synced and renamed onto it if the block succeeds, removed if it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno in FULL:
            raise RunError(f"no space left while writing {path}", remedy="free disk space, then run again") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value atomically, indented, keys in their order."""
    write_text(path, _json_text(value))


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=2, default=str) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file; a broken one is an `InputError`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON", got=error, remedy="make the folder again") from error


def write_manifest(
    folder: Path,
    kind: str,
    *,
    files: Sequence[str],
    inputs: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Manifest:
    """Hash the named files of `folder` and write its manifest, which makes it finished."""
    entries = {name: FileEntry((folder / name).stat().st_size, hash_file(folder / name)) for name in sorted(files)}
    manifest = Manifest(kind, dict(inputs or {}), entries, dict(facts or {}))
    write_text(folder / MANIFEST, _manifest_text(manifest))
    return manifest


def _manifest_text(manifest: Manifest) -> str:
    """The one text that a manifest is written as; its checksum covers the facts, which the identity does not."""
    content = asdict(manifest) | {"identity": manifest.identity}
    return _json_text(content | {"checksum": hash_object(content)})


def read_manifest(folder: Path, kind: str | None = None) -> Manifest:
    """The manifest of a finished folder, after checking kind, schema, and each file's presence and size.

    Raises InputError where the folder is missing, unfinished, of another kind, or cut short.
    """
    path = folder / MANIFEST
    if not path.is_file():
        what = "does not exist" if not folder.exists() else "has no manifest.json"
        wanted = f"a finished {kind} folder" if kind else "a folder written by moldistill"
        raise InputError(
            f"{folder} {what}", expected=wanted, remedy="check the path, or make it again: it may be unfinished"
        )
    raw = read_json(path)
    try:
        files = {name: FileEntry(**entry) for name, entry in raw["files"].items()}
        manifest = Manifest(raw["kind"], raw["inputs"], files, raw["facts"], raw["schema"], raw["version"])
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a manifest", got=repr(error), remedy="make the folder again") from error
    if kind is not None and manifest.kind != kind:
        raise InputError(f"{folder} is not a {kind}", got=manifest.kind, expected=kind, remedy=f"name a {kind} folder")
    if manifest.schema != SCHEMA:
        raise InputError(
            f"{folder} has another schema version",
            got=manifest.schema,
            expected=SCHEMA,
            remedy="make it again with this version",
        )
    if hash_object({name: value for name, value in raw.items() if name != "checksum"}) != raw.get("checksum"):
        raise InputError(f"{path} is damaged", got="another checksum than it states", remedy="make the folder again")
    for name, entry in manifest.files.items():
        file = folder / name
        size = file.stat().st_size if file.is_file() else None
        if size != entry.size:
            got = "missing" if size is None else f"{size:,} bytes"
            raise InputError(
                f"{file} is damaged", got=got, expected=f"{entry.size:,} bytes", remedy="make the folder again"
            )
    return manifest


def verify_hashes(folder: Path) -> list[str]:
    """Names of the files whose content differs from the manifest, itself included (reads everything)."""
    manifest = read_manifest(folder)
    # A byte between the values changes nothing that is read; that, too, is damage.
    itself = [] if (folder / MANIFEST).read_bytes() == _manifest_text(manifest).encode() else [MANIFEST]
    return itself + [name for name, entry in manifest.files.items() if hash_file(folder / name) != entry.sha256]


def check_out(out: Path) -> Path:
    """Absolute form of a folder to be written, or InputError where writing there could harm something.

    Refused: a file, a folder that holds anything, and a place inside a folder that moldistill wrote.
    """
    out = out.expanduser().resolve()
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file", expected="a new or empty folder", remedy="name another folder with --out")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(
            f"{out} is not empty",
            expected="a new or empty folder",
            remedy="name another folder with --out, or remove this one",
        )
    for parent in out.parents:
        if (parent / MANIFEST).is_file():
            kind = read_json(parent / MANIFEST).get("kind", "artifact")
            raise InputError(
                f"{out} lies inside {parent}, a {kind} of moldistill",
                expected="a folder outside other runs, stores and studies",
                remedy="name another folder with --out",
            )
    return out


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary sibling of `out` that takes its name when the block succeeds, and vanishes when it does not."""
    out = check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        publish(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(folder: Path, out: Path) -> None:
    """Give a finished folder its name, on the same disk; `out` must be new or empty."""
    if out.exists():
        out.rmdir()
    folder.rename(out)
    _sync_folder(out.parent)
