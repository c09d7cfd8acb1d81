"""`moldistill download`: the official files of PCQM4Mv2 → a root that `moldistill prepare` reads.

The archive is fetched and unpacked first, then the geometries; the manifest is written last. Each step finds what an
earlier call finished, so that the same command goes on after any stop.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from moldistill.chem.fetch import Fetched, fetch
from moldistill.chem.root import SDF_ARCHIVE, SPLIT, TABLE
from moldistill.chem.transfer import PARTIAL, SIDECAR, Patience, RemoteFile, check_space
from moldistill.chem.unpack import unpack
from moldistill.core.artifacts import MANIFEST, check_out, hash_file, read_json, read_manifest, write_manifest
from moldistill.core.errors import InputError
from moldistill.core.locking import exclusive

LOCK = ".download.lock"


@dataclass(frozen=True, slots=True)
class Release:
    """The files of a data set. archive: a zip with table and split. geometries: the SDF of the training rows."""

    archive: RemoteFile
    geometries: RemoteFile


OFFICIAL = Release(
    RemoteFile(
        "pcqm4m-v2.zip",
        (
            "https://dgl-data.s3-accelerate.amazonaws.com/dataset/OGB-LSC/pcqm4m-v2.zip",
            "http://ogb-data.stanford.edu/data/lsc/pcqm4m-v2.zip",
        ),
        "65b742bafca5670be4497499db7d361b",
    ),
    RemoteFile(
        SDF_ARCHIVE,
        ("http://ogb-data.stanford.edu/data/lsc/pcqm4m-v2-train.sdf.tar.gz",),
        "fd72bce606e7ddf36c2a832badeec6ab",
        1_559_712_928,
    ),
)
"""PCQM4Mv2 of OGB-LSC. The MD5 of the archive is the one that ogb's source gives for the second address."""


@dataclass(frozen=True, slots=True)
class DownloadSummary:
    """What a download made. files: bytes of each file of the root. received: bytes that came over the network.

    changed: False where everything was there and right.
    """

    out: Path
    files: Mapping[str, int]
    received: int
    changed: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class _Record:
    """What the manifest of a finished root says. files: SHA-256 by path. downloaded: origin by name of remote file."""

    files: Mapping[str, str]
    downloaded: Mapping[str, Any]


def download(
    out: Path,
    *,
    geometry: bool = True,
    release: Release = OFFICIAL,
    mirror: str | None = None,
    keep_archive: bool = False,
    patience: Patience | None = None,
) -> DownloadSummary:
    """Fetch `release` into the root `out`: new, empty, or begun by an earlier call; a finished root is verified.

    geometry: also fetch the geometries, which only teachers need.
    mirror: address of a folder that has the same files; it is tried first.
    keep_archive: keep the zip that table and split come from.

    Raises InputError where `out` holds something else, is in use by another download, or holds a damaged file;
    RunError where no address gives a right file, or the disk is full.
    """
    start = time.monotonic()
    release = _mirrored(release, mirror)
    out = _check_place(out, release)
    with _locked(out, release):
        record = _record(out)
        geometry = geometry or (out / SDF_ARCHIVE).exists()  # `prepare` will read it, so it must be right
        unpacked = _are_right(out, (TABLE, SPLIT), record)
        wanted = [*([] if unpacked else [release.archive]), *([release.geometries] if geometry else [])]
        _check_room(out, wanted)
        fetched: dict[str, Fetched] = {}
        for remote in wanted:
            fetched[remote.name] = fetch(remote, out, patience)
            if remote is release.archive:
                unpack(fetched[remote.name].path, out, (TABLE, SPLIT))
        names = [TABLE, SPLIT, *([SDF_ARCHIVE] if geometry else [])]
        received = sum(file.received for file in fetched.values())
        changed = received > 0 or not unpacked or set(names) != set(record.files) or not _is_finished(out)
        if changed:
            write_manifest(out, "root", files=names, facts=_facts(release, geometry, record, fetched))
        if not unpacked and not keep_archive:
            (out / release.archive.name).unlink()
    sizes = {name: (out / name).stat().st_size for name in names}
    return DownloadSummary(out, sizes, received, changed, time.monotonic() - start)


def _mirrored(release: Release, mirror: str | None) -> Release:
    """The same files with the mirror's addresses before the others."""
    if mirror is None:
        return release
    try:
        parts = urlsplit(mirror)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(
            "--mirror is not the address of a folder",
            got=mirror,
            expected=f"http://… or https://…, in which {release.archive.name} lies",
            remedy="correct the address, or leave --mirror out",
        )

    def add(remote: RemoteFile) -> RemoteFile:
        return replace(remote, addresses=(f"{mirror.rstrip('/')}/{remote.name}", *remote.addresses))

    return Release(add(release.archive), add(release.geometries))


def _check_place(out: Path, release: Release) -> Path:
    """Absolute form of a folder that is new, empty, or holds nothing but a root and what its download leaves."""
    out = out.expanduser().absolute()
    if not out.is_dir() or not any(out.iterdir()):
        return check_out(out)
    own = {TABLE.split("/")[0], LOCK, *_names(release)}
    foreign = sorted(path.name for path in out.iterdir() if path.name not in own and not _is_left(path, release))
    if foreign:
        raise InputError(
            f"{out} is not empty",
            got=", ".join(foreign[:8]),
            expected="a new or empty folder, or one that download began",
            remedy="name another folder with --out",
        )
    return out


def _names(release: Release) -> set[str]:
    """Names of all files that a download writes."""
    remote = [file.name + end for file in (release.archive, release.geometries) for end in ("", PARTIAL, SIDECAR)]
    return {Path(TABLE).name, SPLIT, MANIFEST, *remote}


def _is_left(path: Path, release: Release) -> bool:
    """Whether a file is what a killed process left of an atomic write."""
    return path.name.endswith(PARTIAL) and any(path.name.startswith(f".{name}.") for name in _names(release))


@contextmanager
def _locked(out: Path, release: Release) -> Iterator[None]:
    """Hold the folder against other downloads; the system lets go of it if this process is killed."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / LOCK).touch()
    except OSError as error:
        raise InputError(
            f"{out} cannot be written", got=error.strerror, remedy="name another folder with --out"
        ) from error
    with exclusive(out / LOCK, f"another download into {out} is running"):
        for path in (*out.glob(".*"), *(out / TABLE).parent.glob(".*")):
            if _is_left(path, release):
                path.unlink()
        yield


def _record(out: Path) -> _Record:
    """What an earlier download finished; empty where none did. Files may have gone since."""
    if not (out / MANIFEST).is_file():
        return _Record({}, {})
    raw = read_json(out / MANIFEST)
    try:
        return _Record({name: entry["sha256"] for name, entry in raw["files"].items()}, raw["facts"]["downloaded"])
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{out} was not made by download",
            got=raw.get("kind") if isinstance(raw, dict) else type(raw).__name__,
            expected="a root that download wrote, or a new or empty folder",
            remedy="name another folder with --out",
        ) from error


def _is_finished(out: Path) -> bool:
    """Whether the manifest is sound and of this version; if not, it is written anew from files that were verified."""
    try:
        read_manifest(out, "root")
    except InputError:
        return False
    return True


def _are_right(out: Path, names: Sequence[str], record: _Record) -> bool:
    """Whether all the files are there as the manifest says. Raises InputError where one has another content."""
    there = [name for name in names if (out / name).exists() and name in record.files]
    for name in there:
        if (got := hash_file(out / name)) != record.files[name]:
            raise InputError(
                f"{out / name} is damaged",
                got=f"SHA-256 {got}",
                expected=f"SHA-256 {record.files[name]}",
                remedy="remove it, then run again: it will be fetched again",
            )
    return len(there) == len(names)


def _check_room(out: Path, wanted: Sequence[RemoteFile]) -> None:
    """Refuse at the start what would only be found out after the first file."""
    missing = [remote for remote in wanted if not (out / remote.name).exists()]
    partial = [out / (remote.name + PARTIAL) for remote in missing]
    here = sum(path.stat().st_size for path in partial if path.exists())
    check_space(out, sum(remote.size or 0 for remote in missing) - here, ", ".join(remote.name for remote in missing))


def _facts(release: Release, geometry: bool, record: _Record, fetched: Mapping[str, Fetched]) -> dict[str, Any]:
    downloaded = {}
    for remote in (release.archive, *([release.geometries] if geometry else [])):
        earlier = record.downloaded.get(remote.name, {}).get("address")
        now = fetched[remote.name].address if remote.name in fetched else None
        downloaded[remote.name] = {"address": now or earlier, "md5": remote.md5}
    return {"origin": "PCQM4Mv2 of OGB-LSC", "downloaded": downloaded}
