"""Take single files out of a zip that nobody here made: no name in it becomes a path, nothing else is unpacked."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from moldistill.chem.transfer import CHUNK, check_space
from moldistill.core.artifacts import atomic_path
from moldistill.core.errors import InputError, RunError
from moldistill.core.progress import log

LARGEST = 2**30
"""Bytes that a member may have when it is unpacked: several times what PCQM4Mv2's have."""

_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


def unpack(archive: Path, out: Path, names: Sequence[str]) -> None:
    """Write the members whose paths end in `names` to `out / name`; a file that is there with that content stays.

    Raises RunError where the archive is damaged or lacks one of them, InputError where another file has the name.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = {name: _find(opened, archive, name) for name in names}
            missing = {name: member for name, member in members.items() if not _is_there(out / name, member)}
            check_space(out, sum(member.file_size for member in missing.values()), ", ".join(missing))
            for name, member in missing.items():
                log(f"unpacking {name}")
                # The reader gives no more than the size that was checked, and compares the checksum at the end.
                with (
                    opened.open(member) as source,
                    atomic_path(out / name) as temporary,
                    temporary.open("wb") as target,
                ):
                    shutil.copyfileobj(source, target, CHUNK)
    except _BROKEN as error:
        raise RunError(
            f"{archive} cannot be unpacked", got=error, expected="a zip file", remedy="remove it, then run again"
        ) from error


def _find(opened: zipfile.ZipFile, archive: Path, name: str) -> zipfile.ZipInfo:
    ending = PurePosixPath(name).parts
    found = [
        member
        for member in opened.infolist()
        if PurePosixPath(member.filename).parts[-len(ending) :] == ending and not member.is_dir()
    ]
    if len(found) != 1:
        inside = ", ".join(member.filename for member in opened.infolist()[:8])
        raise RunError(
            f"{archive} has {len(found) or 'no'} members {name}",
            got=inside or "an empty archive",
            expected=f"one path that ends in {name}",
            remedy="remove it, then run again; if that does not help, name another server with --mirror",
        )
    if found[0].file_size > LARGEST:
        raise RunError(
            f"{archive}: {name} is too large",
            got=f"{found[0].file_size:,} bytes",
            expected=f"at most {LARGEST:,}",
            remedy="remove the archive: it is not the one of PCQM4Mv2",
        )
    return found[0]


def _is_there(path: Path, member: zipfile.ZipInfo) -> bool:
    if not path.exists():
        return False
    checksum = 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    if (path.stat().st_size, checksum) != (member.file_size, member.CRC):
        raise InputError(
            f"{path} is there, and it is not the file of the archive",
            got=f"{path.stat().st_size:,} bytes",
            expected=f"{member.file_size:,} bytes, CRC {member.CRC:08x}",
            remedy="move it away or remove it, then run again",
        )
    return True
