"""Whatever happens to a byte of a store, `doctor --store` finds it; what is cheap to see is seen at every opening."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from manifests import edit_manifest
from moldistill.core.artifacts import MANIFEST, read_manifest, verify_hashes
from moldistill.core.errors import InputError
from moldistill.data.columns import COLUMNS, HEADER
from moldistill.data.store import Store
from moldistill.doctor import Finding, examine

FILES = [*(spec.file for spec in COLUMNS), "flagged.csv"]


@pytest.fixture
def copied(tiny_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_store, tmp_path / "store"))


def finding(store: Path) -> Finding:
    """What `doctor --store` says of the store; the other checks do not depend on it."""
    from moldistill import doctor

    return doctor._guarded(lambda: doctor._store(store))


def flips(content: bytes, places: Iterator[int] | range, random: np.random.Generator) -> Iterator[bytes]:
    for place in places:
        changed = bytearray(content)
        changed[place] ^= int(random.integers(1, 256))
        yield bytes(changed)


@pytest.mark.parametrize("file", FILES)
def test_every_flip_and_truncation_of_a_column_is_found(copied: Path, file: str) -> None:
    path, random = copied / file, np.random.default_rng(0)
    content = path.read_bytes()
    header = range(0, min(HEADER, len(content)), 5)
    inside = random.integers(0, len(content), 40)
    harmed = [*flips(content, header, random), *flips(content, iter(inside.tolist()), random)]
    harmed += [content[: int(length)] for length in random.integers(0, len(content), 20)]
    harmed += [content + b"\0", content[1:], content[::-1], b""]
    for damaged in harmed:
        if damaged == content:  # a palindrome
            continue
        path.write_bytes(damaged)
        found = finding(copied)
        assert found.result == "failed"
        assert file in found.detail
    path.write_bytes(content)
    assert finding(copied).result == "ok"


def test_every_byte_of_the_manifest_counts(copied: Path) -> None:
    path, random = copied / MANIFEST, np.random.default_rng(1)
    content = path.read_bytes()
    for damaged in flips(content, range(len(content)), random):
        path.write_bytes(damaged)
        assert finding(copied).result == "failed", damaged
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        assert finding(copied).result == "failed"
    path.write_bytes(content.replace(b"  ", b" "))  # says the same, but nobody wrote it so
    assert finding(copied).result == "failed"
    assert verify_hashes(copied) == [MANIFEST]
    assert read_manifest(copied).kind == "store"


@pytest.mark.parametrize("file", [*FILES, MANIFEST])
def test_a_missing_file_is_found_at_opening(copied: Path, file: str) -> None:
    (copied / file).unlink()
    with pytest.raises(InputError):
        Store.open(copied)
    assert finding(copied).result == "failed"


def test_facts_that_were_changed_are_found_at_opening(copied: Path) -> None:
    text = (copied / MANIFEST).read_text()
    assert '"rows": 83' in text
    (copied / MANIFEST).write_text(text.replace('"rows": 83', '"rows": 84'))
    with pytest.raises(InputError, match="is damaged"):
        Store.open(copied)


def test_a_store_of_an_older_schema_says_so(copied: Path) -> None:
    edit_manifest(copied, lambda manifest: manifest["facts"].update(store_schema=1))
    with pytest.raises(InputError, match="prepare it again") as caught:
        Store.open(copied)
    assert caught.value.exit_code == 2
    found = finding(copied)
    assert found.result == "failed"
    assert "another version" in found.detail


def test_doctor_reports_a_sound_store(copied: Path) -> None:
    found = examine(copied, start_ray=False)[-1]
    assert (found.name, found.result) == ("store", "ok")
    assert "83 rows, every checksum right" in found.detail
