"""The partial file of a download, and the connections that fill it.

Data go to `NAME.partial`. `NAME.partial.json` says where they came from and which version of the file they belong to,
so that a later connection, of this process or of another, goes on where they end.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from io import FileIO
from pathlib import Path

import requests
import urllib3

from moldistill import __version__
from moldistill.core.artifacts import FULL, read_json, write_json
from moldistill.core.errors import InputError, RunError
from moldistill.core.progress import log, progress

PARTIAL = ".partial"
SIDECAR = ".partial.json"
CHUNK = 2**18
WORTHWHILE = 2**20
"""Bytes that a connection must bring for the failures before it to be forgotten."""

_PASSING = (408, 425, 429)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that can be fetched. addresses: tried in order. md5: hex. size: bytes, only a hint."""

    name: str
    addresses: tuple[str, ...]
    md5: str
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to try. attempts: failed connections in a row, of each address. Times in seconds.

    pause: before the second attempt; it doubles up to `longest_pause`. timeout: without an answer or a further byte.
    """

    attempts: int = 6
    pause: float = 1.0
    longest_pause: float = 30.0
    timeout: float = 60.0


class BrokenOffError(Exception):
    """A connection failed in a way that may pass."""


class RefusedError(Exception):
    """An address will not give the file, however often it is asked."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What a partial file is part of. mark: ETag or date of the server's version. total: bytes. None: not told."""

    md5: str
    address: str
    mark: str | None
    total: int | None


def check_space(folder: Path, needed: int, what: str) -> None:
    """Refuse (RunError) what the disk cannot take. needed: bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"not enough space in {folder} for {what}",
            got=f"{free:,} bytes free",
            expected=f"{needed:,} bytes",
            remedy=f"free {needed - free:,} bytes or name a folder on another disk, then run again",
        )


class Transfer:
    """The partial file of one remote file, and the connections that fill it."""

    def __init__(self, remote: RemoteFile, folder: Path, patience: Patience, session: requests.Session) -> None:
        self.remote, self.folder, self.patience, self.session = remote, folder, patience, session
        self.partial = folder / (remote.name + PARTIAL)
        self.sidecar = folder / (remote.name + SIDECAR)
        self.received = 0

    def size(self) -> int:
        """Bytes on disk."""
        return self.partial.stat().st_size if self.partial.is_file() else 0

    def discard(self) -> None:
        """Start anew. Data go first: a sidecar without them does no harm."""
        self.partial.unlink(missing_ok=True)
        self.sidecar.unlink(missing_ok=True)

    def finish(self, path: Path) -> None:
        """Give the whole file its name."""
        with self.partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        self.partial.replace(path)
        self.sidecar.unlink(missing_ok=True)

    def run(self, address: str) -> None:
        """Connect until the partial file is whole, waiting longer after each failure."""
        failed, furthest = 0, self.size() if self._known() else 0
        while True:
            try:
                return self._connect(address)
            except BrokenOffError as error:
                # By size on disk: a server that always starts anew would bring bytes for ever and never more of them.
                failed = 1 if self.size() >= furthest + WORTHWHILE else failed + 1
                furthest = max(furthest, self.size())
                if failed >= self.patience.attempts:
                    raise
                pause = min(self.patience.pause * 2 ** (failed - 1), self.patience.longest_pause)
                log(f"{self.remote.name}: {error}; {self.size():,} bytes are here, going on in {pause:.0f} s")
                time.sleep(pause)

    def _known(self) -> _Part | None:
        """What the partial file belongs to, or None where it is of no use."""
        try:
            part = _Part(**read_json(self.sidecar))
        except (FileNotFoundError, InputError, TypeError):
            return None
        if part.md5 != self.remote.md5 or (part.total is not None and self.size() > part.total):
            return None
        return part

    def _connect(self, address: str) -> None:
        """One connection; returns when the partial file is whole."""
        part = self._known()
        start = self.size() if part else 0
        if part and start == part.total:
            return
        with self._ask(address, part, start) as response:
            if response.status_code == 200:
                if start:
                    log(f"{self.remote.name}: the file changed, or the server cannot go on: from the start again")
                self.discard()
                whole = _Part(self.remote.md5, address, _mark(response), _length(response))
                self._receive(response, whole, 0)
                return
            if part and start and (rest := _continued(response, part, address, start)):
                self._receive(response, rest, start)
                return
        if not start:
            raise RefusedError(f"{response.status_code} for a whole file")
        log(f"{self.remote.name}: the file on the server is another one now: from the start again")
        self.discard()
        self._connect(address)

    @contextmanager
    def _ask(self, address: str, part: _Part | None, start: int) -> Iterator[requests.Response]:
        """The answer to a request for the file from byte `start` on."""
        headers = {"User-Agent": f"moldistill/{__version__}", "Accept-Encoding": "identity"}
        if part and start:
            headers["Range"] = f"bytes={start}-"
            if part.mark and part.address == address:
                headers["If-Range"] = part.mark
        try:
            with self.session.get(address, headers=headers, stream=True, timeout=self.patience.timeout) as response:
                _check_status(response)
                yield response
        except requests.exceptions.SSLError as error:
            raise RefusedError(_reason(error)) from error
        except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
            raise BrokenOffError(_reason(error)) from error
        except requests.exceptions.RequestException as error:
            raise RefusedError(_reason(error)) from error

    def _receive(self, response: requests.Response, part: _Part, start: int) -> None:
        """Append a body to the partial file, which has `start` bytes and now is a part of `part`."""
        check_space(self.folder, (part.total or self.remote.size or start) - start, self.remote.name)
        # Before the first byte, so that no data lie there that nobody knows the origin of.
        write_json(self.sidecar, asdict(part))
        log(f"{self.remote.name}: {f'going on after {start:,} bytes' if start else 'fetching'} from {part.address}")
        begun, before = time.monotonic(), self.received
        title = f"{self.remote.name}, bytes"
        with self.partial.open("ab", buffering=0) as stream, progress(title, part.total, done=start) as bar:
            while chunk := _read(response):
                self._write(stream, chunk)
                self.received += len(chunk)
                rate = (self.received - before) / max(time.monotonic() - begun, 1e-3)
                bar.advance(len(chunk), f"{rate / 1e6:.1f} MB/s")
        if part.total is not None and self.size() != part.total:
            raise BrokenOffError(f"the answer ended at {self.size():,} of {part.total:,} bytes")

    def _write(self, stream: FileIO, chunk: bytes) -> None:
        view = memoryview(chunk)
        try:
            while view:
                view = view[stream.write(view) :]
        except OSError as error:
            if error.errno in FULL:
                raise RunError(
                    f"no space left while writing {self.partial}",
                    got=error.strerror,
                    remedy=f"free disk space, then run again: it goes on after the {self.size():,} bytes that are kept",
                ) from error
            raise


def _read(response: requests.Response) -> bytes:
    """What has arrived, at least one byte, empty at the end. As it was sent: archives are not to be decompressed."""
    try:
        return bytes(response.raw.read1(CHUNK, decode_content=False) or b"")
    except urllib3.exceptions.HTTPError as error:
        raise BrokenOffError(_reason(error)) from error


def _check_status(response: requests.Response) -> None:
    """Raise for everything but a file (200), a part of it (206), or a part that does not exist (416)."""
    status = response.status_code
    if status in _PASSING or status >= 500:
        raise BrokenOffError(f"{status} {response.reason}")
    if status not in (200, 206, 416):
        raise RefusedError(f"{status} {response.reason}")
    if status == 200 and response.headers.get("Content-Type", "").startswith("text/html"):
        raise RefusedError("a web page instead of the file; does the network ask for a log-in?")


def _mark(response: requests.Response) -> str | None:
    """What tells this version of a file from others, in a form that If-Range takes: weak ETags are not."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _length(response: requests.Response) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _continued(response: requests.Response, part: _Part, address: str, start: int) -> _Part | None:
    """What the partial file is part of once an answer is appended; None where the answer is not the rest of it."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status_code != 206 or not found or int(found[1]) != start:
        return None
    total = part.total if found[2] == "*" else int(found[2])
    if part.total is not None and total != part.total:
        return None
    mark = _mark(response)
    if part.address == address:
        if mark and part.mark and mark != part.mark:
            return None
        mark = mark or part.mark
    # Marks of two servers say nothing about each other: there the size must do, and at the end the MD5.
    return replace(part, address=address, mark=mark, total=total)


def _reason(error: Exception) -> str:
    """The innermost message of the HTTP libraries, without the names of their objects."""
    cause = error.args[0] if error.args else error
    text = str(getattr(cause, "reason", cause))
    return text.partition("): ")[2] or text
