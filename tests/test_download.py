"""`moldistill download` against a server on this machine that breaks off, changes its mind and lies."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from moldistill import cli
from moldistill.chem import unpack
from moldistill.chem.download import LOCK, OFFICIAL, Release, download
from moldistill.chem.fetch import fetch
from moldistill.chem.root import SDF_ARCHIVE, SPLIT, TABLE
from moldistill.chem.transfer import PARTIAL, SIDECAR, Patience, RemoteFile
from moldistill.core.artifacts import read_manifest, verify_hashes
from moldistill.core.errors import InputError, MoldistillError, RunError
from moldistill.core.settings import PrepareSettings
from moldistill.data.source import open_source

CONTENT = random.Random(0).randbytes(400_000)
NAME = "data.bin"
MD5 = hashlib.md5(CONTENT).hexdigest()
QUICK = Patience(attempts=3, pause=0.001, timeout=5)
SINGLE = Patience(attempts=1, timeout=5)


@dataclass
class Asked:
    """A request: which path, from which byte (None: the whole file), and how the server answered."""

    path: str
    start: int | None
    if_range: str | None
    encoding: str | None
    status: int = 0
    sent: int = 0


@dataclass
class Served:
    """A file of the server, and its faults.

    cuts: bytes after which the following answers break off. statuses: what the following requests get instead.
    length: Content-Length to claim; 0 for none. stall: bytes after which it sends no more until released.
    """

    content: bytes
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    heeds_if_range: bool = True
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    length: int | None = None
    chunked: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    stall: int | None = None


class Server(ThreadingHTTPServer):
    """Files by path, and the log of what was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, Served] = {}
        self.asked: list[Asked] = []
        self.released = threading.Event()

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed are no news."""

    def remote(self, name: str = NAME, *paths: str, md5: str | None = None) -> RemoteFile:
        """The file `name` at the given paths (its own name, if none); its MD5 is that of the first path's content."""
        addresses = tuple(map(self.address, paths or (name,)))
        content = self.files[(paths or (name,))[0]].content if md5 is None else b""
        return RemoteFile(name, addresses, md5 or hashlib.md5(content).hexdigest())

    def starts(self) -> list[int | None]:
        return [asked.start for asked in self.asked]


class Handler(BaseHTTPRequestHandler):
    """One connection of a `Server`."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        span = self.headers.get("Range")
        start = int(span.removeprefix("bytes=").rstrip("-")) if span else None
        if_range = self.headers.get("If-Range")
        asked = Asked(self.path[1:], start, if_range, self.headers.get("Accept-Encoding"))
        self.server.asked.append(asked)
        file = self.server.files.get(asked.path)
        if file is None or file.statuses:
            asked.status = file.statuses.pop(0) if file else 404
            self.send_response(asked.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        changed = file.heeds_if_range and if_range not in (None, file.etag, file.modified)
        begin = start if start is not None and file.ranges and not changed else 0
        self.answer(asked, file, begin, partial=begin > 0)

    def answer(self, asked: Asked, file: Served, begin: int, *, partial: bool) -> None:
        size = len(file.content)
        asked.status = 416 if begin >= size else 206 if partial else 200
        self.send_response(asked.status)
        if file.etag:
            self.send_header("ETag", file.etag)
        if file.modified:
            self.send_header("Last-Modified", file.modified)
        for key, value in file.headers.items():
            self.send_header(key, value)
        if asked.status == 416:
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if partial:
            self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
        if file.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif file.length != 0:
            self.send_header("Content-Length", str((file.length or size) - begin))
        self.close_connection = True
        self.send_header("Connection", "close")
        self.end_headers()
        self.send_body(asked, file, file.content[begin:])

    def send_body(self, asked: Asked, file: Served, body: bytes) -> None:
        if file.cuts:
            body = body[: file.cuts.pop(0)]
        first = len(body) if file.stall is None else file.stall
        for part in (body[:first], body[first:]):
            if file.chunked and part:
                part = b"%x\r\n%s\r\n" % (len(part), part)
            self.wfile.write(part)
            asked.sent += len(part)
            if file.stall is not None:
                self.server.released.wait(20)
        if file.chunked:
            self.wfile.write(b"0\r\n\r\n")


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other address is reached, whatever a test gets wrong: names of others do not resolve."""
    real = socket.getaddrinfo

    def guarded(host: str, *rest: object, **more: object) -> object:
        if host != "127.0.0.1":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", guarded)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.released.set()
        running.shutdown()
        thread.join()


def is_fetched(folder: Path, content: bytes = CONTENT, name: str = NAME) -> None:
    """The file is there, whole, and nothing else is."""
    assert (folder / name).read_bytes() == content
    assert [path.name for path in folder.iterdir()] == [name]


def refused(error: MoldistillError, *words: str) -> None:
    """The message has these words and a remedy."""
    for word in (*words, "remedy:"):
        assert word in str(error)


# One file


def test_a_whole_file_and_no_second_time(server: Server, tmp_path: Path) -> None:
    server.files[NAME] = Served(CONTENT)
    got = fetch(server.remote(), tmp_path, QUICK)
    assert (got.path, got.address, got.received) == (tmp_path / NAME, server.address(NAME), len(CONTENT))
    is_fetched(tmp_path)
    again = fetch(server.remote(), tmp_path, QUICK)
    assert (again.address, again.received) == (None, 0)
    assert len(server.asked) == 1


@pytest.mark.parametrize("seed", range(4))
def test_breaks_are_gone_on_from_and_no_byte_comes_twice(server: Server, tmp_path: Path, seed: int) -> None:
    cuts = sorted(random.Random(seed).sample(range(len(CONTENT)), 8))
    lengths = np.diff([0, *cuts]).tolist()
    server.files[NAME] = Served(CONTENT, cuts=lengths)
    got = fetch(server.remote(), tmp_path, Patience(attempts=9, pause=0.001))
    is_fetched(tmp_path)
    assert got.received == sum(asked.sent for asked in server.asked) == len(CONTENT)
    assert [asked.start or 0 for asked in server.asked] == [0, *cuts]
    assert [asked.status for asked in server.asked] == [200, *[206] * 8]
    assert {asked.if_range for asked in server.asked[1:]} == {'"one"'}


def test_patience_ends_and_a_later_call_goes_on(server: Server, tmp_path: Path) -> None:
    server.files[NAME] = Served(CONTENT, cuts=[1000, 0, 0, 2000])
    with pytest.raises(RunError) as caught:
        fetch(server.remote(), tmp_path, QUICK)
    refused(caught.value, "could not be fetched", "1,000 bytes that are kept")
    assert len(server.asked) == 3
    assert (tmp_path / (NAME + PARTIAL)).read_bytes() == CONTENT[:1000]
    fetch(server.remote(), tmp_path, QUICK)
    is_fetched(tmp_path)
    assert server.starts() == [None, 1000, 1000, 1000, 3000]


def test_a_server_that_always_breaks_off_does_not_hold_us_for_ever(server: Server, tmp_path: Path) -> None:
    server.files[NAME] = Served(CONTENT, ranges=False, cuts=[300_000] * 50)
    with pytest.raises(RunError):
        fetch(server.remote(), tmp_path, QUICK)
    assert len(server.asked) == QUICK.attempts


@pytest.mark.parametrize("modified", [None, "Mon, 01 Jan 2024 00:00:00 GMT"])
def test_without_a_strong_etag(server: Server, tmp_path: Path, modified: str | None) -> None:
    """If-Range takes a date, but no weak ETag; without either, size and MD5 must do."""
    server.files[NAME] = Served(CONTENT, etag='W/"weak"', modified=modified, cuts=[5000])
    fetch(server.remote(), tmp_path, QUICK)
    is_fetched(tmp_path)
    assert [(asked.start, asked.if_range) for asked in server.asked] == [(None, None), (5000, modified)]


def test_a_server_that_ignores_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.files[NAME] = Served(CONTENT, ranges=False, cuts=[250_000, 100_000])
    fetch(server.remote(), tmp_path, QUICK)
    is_fetched(tmp_path)
    assert [(asked.start, asked.status) for asked in server.asked] == [(None, 200), (250_000, 200), (100_000, 200)]


@pytest.mark.parametrize("heeds", [True, False])
def test_a_file_that_changed_is_not_spliced(server: Server, tmp_path: Path, heeds: bool) -> None:
    """Also where the server does not heed If-Range: its 206 carries another ETag."""
    server.files[NAME] = Served(bytes(400_000), cuts=[1000])
    with pytest.raises(RunError):
        fetch(server.remote(md5=MD5), tmp_path, SINGLE)
    server.files[NAME] = Served(CONTENT, etag='"two"', heeds_if_range=heeds)
    fetch(server.remote(md5=MD5), tmp_path, SINGLE)
    is_fetched(tmp_path)
    assert server.starts() == [None, 1000] + ([] if heeds else [None])


def test_a_file_that_became_shorter(server: Server, tmp_path: Path) -> None:
    server.files[NAME] = Served(bytes(500_000), etag=None, cuts=[450_000])
    with pytest.raises(RunError):
        fetch(server.remote(md5=MD5), tmp_path, SINGLE)
    server.files[NAME] = Served(CONTENT, etag=None)
    fetch(server.remote(md5=MD5), tmp_path, SINGLE)
    is_fetched(tmp_path)
    assert [asked.status for asked in server.asked] == [200, 416, 200]


def test_a_wrong_md5_is_removed_and_named(server: Server, tmp_path: Path) -> None:
    server.files[NAME] = Served(CONTENT)
    wrong = hashlib.md5(b"other").hexdigest()
    with pytest.raises(RunError) as caught:
        fetch(server.remote(md5=wrong), tmp_path, QUICK)
    refused(caught.value, MD5, f"MD5 {wrong}", "removed", "--mirror")
    assert list(tmp_path.iterdir()) == []
    assert len(server.asked) == 1


def test_of_two_addresses_with_different_files_the_right_one_is_taken(server: Server, tmp_path: Path) -> None:
    server.files |= {"good": Served(CONTENT), "bad": Served(bytes(9000))}
    remote = server.remote(NAME, "good", "bad")
    got = fetch(RemoteFile(NAME, remote.addresses[::-1], remote.md5), tmp_path, QUICK)
    assert got.address == server.address("good")
    is_fetched(tmp_path)
    assert server.starts() == [None, None]


def test_a_false_length(server: Server, tmp_path: Path) -> None:
    """Too long a claim is a break, again and again; too short a claim gives a file with a wrong MD5."""
    server.files[NAME] = Served(CONTENT, length=len(CONTENT) + 100)
    with pytest.raises(RunError) as caught:
        fetch(server.remote(), tmp_path, QUICK)
    refused(caught.value, "400,000 bytes that are kept")
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    server.files[NAME] = Served(CONTENT, length=len(CONTENT) - 100)
    with pytest.raises(RunError) as caught:
        fetch(server.remote(), tmp_path, QUICK)
    refused(caught.value, "399,900 bytes: wrong, and removed")


def test_unknown_lengths(server: Server, tmp_path: Path) -> None:
    server.files |= {"chunked": Served(CONTENT, chunked=True), "closed": Served(CONTENT, length=0)}
    for name in server.files:
        fetch(server.remote(name), tmp_path, QUICK)
        assert (tmp_path / name).read_bytes() == CONTENT


def test_an_archive_is_not_decompressed_on_the_way(server: Server, tmp_path: Path) -> None:
    """Some servers send a .gz as compressed content of another type."""
    packed = gzip.compress(CONTENT[:1000])
    server.files[NAME] = Served(packed, headers={"Content-Encoding": "x-gzip"})
    fetch(server.remote(), tmp_path, QUICK)
    is_fetched(tmp_path, packed)
    assert server.asked[0].encoding == "identity"


def test_the_second_address_works(server: Server, tmp_path: Path) -> None:
    server.files["good"] = Served(CONTENT)
    remote = RemoteFile(NAME, (server.address("missing"), server.address("good")), MD5)
    assert fetch(remote, tmp_path, QUICK).address == server.address("good")
    is_fetched(tmp_path)
    assert [asked.status for asked in server.asked] == [404, 200]


@pytest.mark.parametrize("same_size", [True, False])
def test_another_address_goes_on_where_the_first_stopped(server: Server, tmp_path: Path, same_size: bool) -> None:
    other = Served(bytes(900_000), etag='"first"', cuts=[1000, 0])
    if same_size:
        other = Served(CONTENT, etag='"first"', cuts=[1000, 0])
    server.files |= {"good": Served(CONTENT, etag='"second"'), "other": other}
    remote = server.remote(NAME, "good", "other")
    fetch(RemoteFile(NAME, remote.addresses[::-1], remote.md5), tmp_path, Patience(attempts=2, pause=0.001))
    is_fetched(tmp_path)
    asked = [(asked.path, asked.start, asked.if_range) for asked in server.asked]
    assert asked[:3] == [("other", None, None), ("other", 1000, '"first"'), ("good", 1000, None)]
    assert asked[3:] == ([] if same_size else [("good", None, None)])


@pytest.mark.parametrize(
    ("status", "asked", "words"), [(404, 1, "404"), (403, 1, "403"), (503, 3, "503"), (429, 3, "")]
)
def test_no_address_works(server: Server, tmp_path: Path, status: int, asked: int, words: str) -> None:
    """What may pass is asked for again, the rest is not; what was there stays."""
    server.files[NAME] = Served(CONTENT, cuts=[1000])
    with pytest.raises(RunError):
        fetch(server.remote(), tmp_path, SINGLE)
    server.files[NAME].statuses = [status] * 9
    with pytest.raises(RunError) as caught:
        fetch(server.remote(), tmp_path, QUICK)
    refused(caught.value, server.address(NAME), words, "1,000 bytes that are kept")
    assert len(server.asked) == 1 + asked
    assert (tmp_path / (NAME + PARTIAL)).stat().st_size == 1000


def test_passing_failures_pass(server: Server, tmp_path: Path) -> None:
    server.files[NAME] = Served(CONTENT, statuses=[503, 429])
    fetch(server.remote(), tmp_path, QUICK)
    is_fetched(tmp_path)


def test_nobody_listens_and_names_that_do_not_exist(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        remote = RemoteFile(NAME, (f"http://127.0.0.1:{port}/a", "http://no.such.host/b", "htp:/c"), "0" * 32)
        with pytest.raises(RunError) as caught:
            fetch(remote, tmp_path, Patience(attempts=2, pause=0.001))
    refused(caught.value, "Connection refused", "Failed to resolve 'no.such.host'", "htp:/c: ", "check the network")
    assert "object at" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_falls_silent(server: Server, tmp_path: Path) -> None:
    server.files[NAME] = Served(CONTENT, stall=1000)
    with pytest.raises(RunError) as caught:
        fetch(server.remote(), tmp_path, Patience(attempts=1, timeout=0.2))
    refused(caught.value, "timed out", "1,000 bytes that are kept")


def test_a_log_in_page_is_not_taken_for_the_file(server: Server, tmp_path: Path) -> None:
    server.files[NAME] = Served(CONTENT, cuts=[1000])
    with pytest.raises(RunError):
        fetch(server.remote(), tmp_path, SINGLE)
    remote = server.remote()
    server.files[NAME] = Served(b"<html>", ranges=False, headers={"Content-Type": "text/html; charset=utf-8"})
    with pytest.raises(RunError) as caught:
        fetch(remote, tmp_path, QUICK)
    refused(caught.value, "web page", "1,000 bytes that are kept")


@pytest.mark.parametrize("sidecar", [None, "{", "[]", '{"md5": "of another release"}'])
def test_a_partial_file_of_unknown_origin_is_not_gone_on_with(
    server: Server, tmp_path: Path, sidecar: str | None
) -> None:
    server.files[NAME] = Served(CONTENT)
    (tmp_path / (NAME + PARTIAL)).write_bytes(bytes(1000))
    if sidecar is not None:
        (tmp_path / (NAME + SIDECAR)).write_text(sidecar)
    fetch(server.remote(), tmp_path, QUICK)
    is_fetched(tmp_path)
    assert server.starts() == [None]


def test_a_partial_file_that_is_whole_needs_no_server(server: Server, tmp_path: Path) -> None:
    """Killed between the last byte and the check."""
    server.files[NAME] = Served(CONTENT, cuts=[len(CONTENT) - 1])
    with pytest.raises(RunError):
        fetch(server.remote(), tmp_path, SINGLE)
    with (tmp_path / (NAME + PARTIAL)).open("ab") as stream:
        stream.write(CONTENT[-1:])
    fetch(server.remote(), tmp_path, SINGLE)
    is_fetched(tmp_path)
    assert len(server.asked) == 1


def test_another_file_of_that_name_is_not_written_over(server: Server, tmp_path: Path) -> None:
    server.files[NAME] = Served(CONTENT)
    (tmp_path / NAME).write_bytes(b"mine")
    with pytest.raises(InputError) as caught:
        fetch(server.remote(), tmp_path, QUICK)
    refused(caught.value, hashlib.md5(b"mine").hexdigest(), MD5, "4 bytes")
    assert (tmp_path / NAME).read_bytes() == b"mine"
    assert server.asked == []


def test_a_disk_that_is_too_small_is_found_out_first(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files[NAME] = Served(CONTENT)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, len(CONTENT) - 1))
    with pytest.raises(RunError) as caught:
        fetch(server.remote(), tmp_path, QUICK)
    refused(caught.value, "399,999 bytes free", "400,000 bytes", "free 1 bytes")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_on_the_way(server: Server, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk; what was written is gone on from."""
    server.files[NAME] = Served(CONTENT)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        with pytest.raises(RunError) as caught:
            fetch(server.remote(), tmp_path, QUICK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    refused(caught.value, "no space left", "300,000 bytes that are kept")
    fetch(server.remote(), tmp_path, QUICK)
    is_fetched(tmp_path)
    assert server.starts() == [None, 300_000]


# The root


def split_file() -> bytes:
    splits = {"train": [0, 1], "valid": [2], "test-dev": [3], "test-challenge": [4]}
    buffer = io.BytesIO()
    torch.save({name: np.array(rows) for name, rows in splits.items()}, buffer)
    return buffer.getvalue()


TABLE_BYTES = gzip.compress(b"idx,smiles,homolumogap\n0,CO,7.1\n1,CC,8.1\n2,CN,6.1\n3,CF,\n4,CCl,\n", mtime=0)
SPLIT_BYTES = split_file()
SDF_BYTES = random.Random(1).randbytes(200_000)
OFFICIAL_MEMBERS = {
    "pcqm4m-v2/RELEASE_v1.txt": b"1",
    "pcqm4m-v2/raw/data.csv.gz": TABLE_BYTES,
    "pcqm4m-v2/split_dict.pt": SPLIT_BYTES,
    "pcqm4m-v2/mapping/README.md": b"mapping",
}


def zipped(members: dict[str, bytes] | Sequence[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, content)
    return buffer.getvalue()


def damaged() -> bytes:
    """An archive with a changed byte in one of its files, behind a sound directory."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in OFFICIAL_MEMBERS.items():
            archive.writestr(name, content)
    changed = bytearray(buffer.getvalue())
    changed[changed.index(SPLIT_BYTES) + 100] ^= 255
    return bytes(changed)


@pytest.fixture
def release(server: Server) -> Release:
    """A small data set on the server, with the official names."""
    server.files[OFFICIAL.archive.name] = Served(zipped(OFFICIAL_MEMBERS))
    server.files[SDF_ARCHIVE] = Served(SDF_BYTES)
    return Release(server.remote(OFFICIAL.archive.name), server.remote(SDF_ARCHIVE))


def names_in(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_a_root_is_made_and_verified_the_second_time(server: Server, release: Release, tmp_path: Path) -> None:
    root = tmp_path / "root"
    made = download(root, release=release, patience=QUICK)
    assert names_in(root) == {TABLE, SPLIT, SDF_ARCHIVE, "manifest.json"}
    assert [(root / name).read_bytes() for name in (TABLE, SPLIT, SDF_ARCHIVE)] == [TABLE_BYTES, SPLIT_BYTES, SDF_BYTES]
    assert made.changed
    assert made.received == sum(asked.sent for asked in server.asked)
    manifest = read_manifest(root, "root")
    assert manifest.facts["downloaded"][SDF_ARCHIVE] == {
        "address": server.address(SDF_ARCHIVE),
        "md5": release.geometries.md5,
    }
    source = open_source(root, PrepareSettings())
    assert source.sdf == root / SDF_ARCHIVE
    assert source.split.tolist() == [0, 0, 1, 2, 3]
    written = (root / "manifest.json").read_bytes()
    again = download(root, release=release, patience=QUICK)
    assert (again.changed, again.received, len(server.asked)) == (False, 0, 2)
    assert (root / "manifest.json").read_bytes() == written
    (root / "manifest.json").write_bytes(written.replace(b'"schema": ', b'"schema": 9'))
    assert download(root, release=release, patience=QUICK).changed
    assert (root / "manifest.json").read_bytes() == written


def test_geometries_can_come_later(server: Server, release: Release, tmp_path: Path) -> None:
    root = tmp_path / "root"
    download(root, geometry=False, release=release, patience=QUICK)
    assert names_in(root) == {TABLE, SPLIT, "manifest.json"}
    assert open_source(root, PrepareSettings()).sdf is None
    assert not download(root, geometry=False, release=release, patience=QUICK).changed
    assert download(root, release=release, patience=QUICK).changed
    assert set(read_manifest(root).files) == {TABLE, SPLIT, SDF_ARCHIVE}
    assert set(read_manifest(root).facts["downloaded"]) == {OFFICIAL.archive.name, SDF_ARCHIVE}
    assert [asked.path for asked in server.asked] == [OFFICIAL.archive.name, SDF_ARCHIVE]


def test_the_archive_is_kept_if_asked_for_and_used_if_it_is_there(
    server: Server, release: Release, tmp_path: Path
) -> None:
    download(tmp_path / "kept", release=release, keep_archive=True, patience=QUICK)
    archive = tmp_path / "kept" / OFFICIAL.archive.name
    assert archive.is_file()
    by_hand = tmp_path / "by_hand"
    by_hand.mkdir()
    shutil.copy(archive, by_hand)
    shutil.copy(tmp_path / "kept" / SDF_ARCHIVE, by_hand)
    asked = len(server.asked)
    made = download(by_hand, release=release, patience=QUICK)
    assert (made.changed, made.received, len(server.asked)) == (True, 0, asked)
    assert read_manifest(by_hand).identity == read_manifest(tmp_path / "kept").identity


def test_what_is_damaged_is_named_and_what_is_removed_comes_again(
    server: Server, release: Release, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    download(root, release=release, patience=QUICK)
    for name, other in ((TABLE, "SHA-256"), (SDF_ARCHIVE, release.geometries.md5)):
        (root / name).write_bytes(b"damaged")
        with pytest.raises(InputError) as caught:
            download(root, release=release, patience=QUICK)
        refused(caught.value, name, other)
        (root / name).unlink()
        assert download(root, release=release, patience=QUICK).changed
        assert verify_hashes(root) == []
    assert len(server.asked) == 4


def test_a_mirror_is_asked_first(server: Server, release: Release, tmp_path: Path) -> None:
    server.files["mirror/" + SDF_ARCHIVE] = Served(SDF_BYTES)
    download(tmp_path / "root", release=release, mirror=server.address("mirror/"), patience=QUICK)
    archive = OFFICIAL.archive.name
    assert [asked.path for asked in server.asked] == [f"mirror/{archive}", archive, f"mirror/{SDF_ARCHIVE}"]
    for wrong in ("ftp://host/folder", "folder", "http://", "http://[", ""):
        with pytest.raises(InputError) as caught:
            download(tmp_path / "other", release=release, mirror=wrong)
        refused(caught.value, "--mirror")


def test_hostile_names_stay_in_the_archive(server: Server, release: Release, tmp_path: Path) -> None:
    evil = {"../evil": b"x", "/tmp/moldistill-evil": b"x", "a/../../evil": b"x", "raw/data.csv.gz/": b""}
    hidden = {"__MACOSX/pcqm4m-v2/raw/._data.csv.gz": b"x", "..\\raw\\data.csv.gz": b"x", "xsplit_dict.pt": b"x"}
    server.files[OFFICIAL.archive.name] = Served(zipped(evil | OFFICIAL_MEMBERS | hidden))
    release = Release(server.remote(OFFICIAL.archive.name), release.geometries)
    root = tmp_path / "inside" / "root"
    download(root, release=release, patience=QUICK)
    assert names_in(tmp_path) == {f"inside/root/{name}" for name in (TABLE, SPLIT, SDF_ARCHIVE, "manifest.json")}
    assert not Path("/tmp/moldistill-evil").exists()


def test_a_name_that_leads_out_is_not_where_its_content_goes(server: Server, tmp_path: Path) -> None:
    server.files["a.zip"] = Served(zipped({"../raw/data.csv.gz": TABLE_BYTES, "/split_dict.pt": SPLIT_BYTES}))
    release = Release(server.remote("a.zip"), OFFICIAL.geometries)
    download(tmp_path / "inside" / "root", geometry=False, release=release, patience=QUICK)
    assert names_in(tmp_path / "inside") == {f"root/{name}" for name in (TABLE, SPLIT, "manifest.json")}
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        (zipped({"pcqm4m-v2/split_dict.pt": SPLIT_BYTES}), ["no members raw/data.csv.gz", "pcqm4m-v2/split_dict.pt"]),
        (zipped({"raw/data.csv.gz": TABLE_BYTES}), ["no members split_dict.pt"]),
        (zipped([*OFFICIAL_MEMBERS.items(), ("b/split_dict.pt", b"x")]), ["2 members split_dict.pt"]),
        (zipped({}), ["an empty archive"]),
        (b"no zip", ["cannot be unpacked"]),
        (damaged(), ["cannot be unpacked", "Bad CRC-32"]),
        (zipped(OFFICIAL_MEMBERS | {"pcqm4m-v2/split_dict.pt": bytes(10**6)}), ["split_dict.pt is too large"]),
    ],
)
def test_archives_that_are_not_it(
    server: Server, tmp_path: Path, archive: bytes, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "LARGEST", 500_000)
    server.files["a.zip"] = Served(archive)
    with pytest.raises(RunError) as caught:
        download(tmp_path / "root", release=Release(server.remote("a.zip"), OFFICIAL.geometries), patience=QUICK)
    refused(caught.value, *words)
    assert not {SPLIT, "manifest.json"} & names_in(tmp_path / "root")


def test_a_folder_with_something_else_is_left_alone(server: Server, release: Release, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError) as caught:
        download(tmp_path, release=release)
    refused(caught.value, "is not empty", "thesis.tex")
    table = tmp_path / "root" / TABLE
    table.parent.mkdir(parents=True)
    table.write_bytes(b"mine")
    with pytest.raises(InputError) as caught:
        download(tmp_path / "root", release=release, patience=QUICK)
    refused(caught.value, "is not the file of the archive")
    assert table.read_bytes() == b"mine"
    labelled = tmp_path / "labelled"
    labelled.mkdir()
    (labelled / "manifest.json").write_text(json.dumps({"kind": "root", "files": {}, "facts": {"rows": 3}}))
    with pytest.raises(InputError) as caught:
        download(labelled, release=release)
    refused(caught.value, "was not made by download")


def in_a_process(root: Path, release: Release) -> subprocess.Popen[bytes]:
    code = f"""
from pathlib import Path
from moldistill.chem.download import Release, download
from moldistill.chem.transfer import RemoteFile
download(Path({str(root)!r}), release={release!r})
"""
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_second_download_is_refused_and_a_killed_one_gone_on_with(
    server: Server, release: Release, tmp_path: Path
) -> None:
    root, partial = tmp_path / "root", tmp_path / "root" / (SDF_ARCHIVE + PARTIAL)
    server.files[SDF_ARCHIVE].stall = 120_000
    process = in_a_process(root, release)
    try:
        wait_for(lambda: partial.exists() and partial.stat().st_size == 120_000)
        with pytest.raises(InputError) as caught:
            download(root, release=release)
        refused(caught.value, "another download", "is running")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (root / "manifest.json").exists()
    leftover = root / ".split_dict.pt.abcdefgh.partial"  # of an atomic write that was cut off
    leftover.touch()
    server.released.set()
    download(root, release=release, patience=QUICK)
    assert (root / SDF_ARCHIVE).read_bytes() == SDF_BYTES
    assert names_in(root) == {TABLE, SPLIT, SDF_ARCHIVE, "manifest.json"}
    asked = [(asked.path, asked.start, asked.status) for asked in server.asked]
    assert asked == [
        (OFFICIAL.archive.name, None, 200),
        (SDF_ARCHIVE, None, 200),
        (SDF_ARCHIVE, 120_000, 206),
    ]
    assert not (root / LOCK).exists()


def test_what_does_not_fit_is_refused_before_the_first_file(server: Server, release: Release, tmp_path: Path) -> None:
    geometries = RemoteFile(SDF_ARCHIVE, release.geometries.addresses, release.geometries.md5, 10**18)
    with pytest.raises(RunError) as caught:
        download(tmp_path / "root", release=Release(release.archive, geometries))
    refused(caught.value, "not enough space", "1,000,000,000,000,000,000 bytes")
    assert server.asked == []


# The command line


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["moldistill", "download", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_verb_on_a_machine_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--out", tmp_path / "root", "--attempts", 1) == 1
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert said.out == ""
    for address in OFFICIAL.archive.addresses:
        assert f"{address}: Failed to resolve" in said.err
    assert OFFICIAL.archive.md5 in said.err
    assert "run the same command again" in said.err
    assert run(monkeypatch, "--out", tmp_path / "root", "--mirror", "nonsense") == 2
    assert run(monkeypatch, "--out", tmp_path / "root", "--attempts", 0) == 2


def test_the_verb_on_a_finished_root(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    download(root, geometry=False, release=release, patience=QUICK)
    capsys.readouterr()
    assert run(monkeypatch, "--out", root, "--without-geometry", "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["changed"] is False
    assert "there was nothing to do" in said.err
    assert f"next:  moldistill prepare {root} --store store" in said.err


def test_the_official_files() -> None:
    """As the ogb package names them."""
    ogb = pytest.importorskip("ogb")
    source = (Path(ogb.__file__).parent / "lsc" / "pcqm4mv2.py").read_text(encoding="utf-8")
    for fact in (*OFFICIAL.archive.addresses, OFFICIAL.archive.md5):
        assert fact in source
