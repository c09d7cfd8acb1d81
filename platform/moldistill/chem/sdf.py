"""SDF records as a stream, from `.sdf`, `.sdf.gz` or `.sdf.tar.gz`; nothing is ever extracted to disk."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, cast

from moldistill.chem.reader import BROKEN, broken
from moldistill.core.errors import InputError

_CHUNK = 2**20
_END = b"\n$$$$"


def read_sdf(path: Path) -> Iterator[bytes]:
    """Records in order, without their `$$$$` lines. Raises InputError where the file is missing, cut or no SDF."""
    if not path.is_file():
        raise InputError(f"{path} does not exist", expected="an SDF", remedy="check the path")
    try:
        with ExitStack() as stack:
            yield from _records(path, _open(path, stack))
    except BROKEN as error:
        raise broken(path, error) from error


def _open(path: Path, stack: ExitStack) -> IO[bytes]:
    raw: IO[bytes] = stack.enter_context(path.open("rb"))
    gzipped = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    stream = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=raw))) if gzipped else raw
    if not path.name.endswith((".tar", ".tar.gz", ".tgz")):
        return stream
    archive = stack.enter_context(tarfile.TarFile.open(fileobj=stream, mode="r|"))
    for member in archive:
        # Only the records of a regular file are read; names, links and whatever else is there are ignored.
        if member.isreg() and member.name.endswith(".sdf") and (content := archive.extractfile(member)) is not None:
            return stack.enter_context(content)
    raise InputError(f"{path} holds no .sdf file", remedy="fetch the archive again")


def _records(path: Path, stream: IO[bytes]) -> Iterator[bytes]:
    # A leading newline lets the first line be found as any other; it is cut off again below.
    buffer, start = b"\n", 0
    while chunk := stream.read(_CHUNK):
        buffer = buffer[start:] + chunk
        start = 0
        while (end := buffer.find(_END, start)) >= 0 and (line_end := buffer.find(b"\n", end + 1)) >= 0:
            yield buffer[start + 1 : end + 1]
            start = line_end
    rest = buffer[start:]
    if (end := rest.find(_END)) >= 0:  # the last line lacks its newline
        yield rest[1 : end + 1]
        rest = rest[end + len(_END) :]
    if rest.strip():
        raise InputError(
            f"{path} ends in the middle of a record",
            got=f"{len(rest):,} bytes after the last $$$$",
            expected="a $$$$ line at the end",
            remedy="it may be cut short: fetch it again",
        )
