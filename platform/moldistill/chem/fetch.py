"""Fetch one file: from several addresses, with what an earlier call left, and only with the right MD5."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

from moldistill.chem.transfer import SIDECAR, BrokenOffError, Patience, RefusedError, RemoteFile, Transfer
from moldistill.core.errors import InputError, RunError
from moldistill.core.progress import log


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file with the right MD5. address: where it came from, None if it was there. received: bytes of this call."""

    path: Path
    address: str | None
    received: int


def fetch(remote: RemoteFile, folder: Path, patience: Patience | None = None) -> Fetched:
    """Fetch `remote` into `folder`, going on with what an earlier call left there; a right file is not fetched again.

    Raises InputError where another file has its name, RunError where no address gives the right file or the disk is
    full. What arrived stays for the next call, unless its MD5 is wrong.
    """
    path = folder / remote.name
    if path.exists():
        if (got := hash_md5(path)) != remote.md5:
            raise InputError(
                f"{path} is there, but it is another file or damaged",
                got=f"MD5 {got}, {path.stat().st_size:,} bytes",
                expected=f"MD5 {remote.md5}",
                remedy="move it away or remove it, then run again",
            )
        log(f"{path} is there, and its MD5 is right")
        path.with_name(remote.name + SIDECAR).unlink(missing_ok=True)
        return Fetched(path, None, 0)
    failures = []
    wrong = False
    with requests.Session() as session:
        transfer = Transfer(remote, folder, patience or Patience(), session)
        for address in remote.addresses:
            try:
                transfer.run(address)
                got = hash_md5(transfer.partial)
                if got == remote.md5:
                    transfer.finish(path)
                    return Fetched(path, address, transfer.received)
                failure = f"MD5 {got}, {transfer.size():,} bytes: wrong, and removed"
                transfer.discard()
                wrong = True
            except (BrokenOffError, RefusedError) as error:
                failure = str(error)
            log(f"{address}: {failure}")
            failures.append(f"{address}: {failure}")
    raise _failure(remote, failures, wrong, transfer.size())


def hash_md5(path: Path) -> str:
    """MD5 (hex) of a file's content: a check against damage, as the data's authors give it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _failure(remote: RemoteFile, failures: Sequence[str], wrong: bool, kept: int) -> RunError:
    remedy = "check the network and HTTPS_PROXY, or name another server with --mirror; then run the same command again"
    if wrong:
        remedy = "run again; if the MD5 stays wrong, the server has another file: name another one with --mirror"
    if kept:
        remedy += f" (it goes on after the {kept:,} bytes that are kept)"
    got = ("\n" + " " * 12).join(failures)
    return RunError(
        f"{remote.name} could not be fetched", got=got, expected=f"a file with MD5 {remote.md5}", remedy=remedy
    )
