"""Writes are whole or not at all, manifests tell damage, and no output folder harms another's."""

from __future__ import annotations

import errno
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from manifests import edit_manifest
from moldistill.core.artifacts import (
    atomic_path,
    check_out,
    hash_object,
    new_folder,
    read_manifest,
    verify_hashes,
    write_json,
    write_manifest,
    write_text,
)
from moldistill.core.errors import InputError, RunError
from moldistill.core.seeds import generator, named_seed


def artifact(folder: Path) -> Path:
    folder.mkdir()
    (folder / "data.txt").write_text("twelve bytes")
    write_manifest(folder, "store", files=["data.txt"], inputs={"source": "abc"}, facts={"rows": 3})
    return folder


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    with pytest.raises(ValueError, match="stop"), atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise ValueError("stop")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no space left"), atomic_path(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    code = f"""
import os, signal
from pathlib import Path
from moldistill.core.artifacts import atomic_path
with atomic_path(Path({str(tmp_path / "file")!r})) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_text() == "old"


def test_manifest_round_trip_and_identity(tmp_path: Path) -> None:
    one, two = artifact(tmp_path / "one"), artifact(tmp_path / "two")
    assert read_manifest(one, "store").facts == {"rows": 3}
    assert read_manifest(one).identity == read_manifest(two).identity
    (two / "data.txt").write_text("twelve bytez")
    assert read_manifest(two).identity == read_manifest(one).identity, "cheap checks do not read content"
    assert verify_hashes(two) == ["data.txt"]
    assert verify_hashes(one) == []


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "data.txt").write_text("cut"), "is damaged"),
        (lambda folder: (folder / "data.txt").unlink(), "missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "is not a manifest"),
        (lambda folder: (folder / "manifest.json").write_text("[1]"), "is not a manifest"),
    ],
)
def test_damage_is_told(harm, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = artifact(tmp_path / "store")
    harm(folder)
    with pytest.raises(InputError, match=message):
        read_manifest(folder, "store")


def test_other_kinds_schemas_and_missing_folders_are_refused(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "store")
    with pytest.raises(InputError, match="is not a run"):
        read_manifest(folder, "run")
    with pytest.raises(InputError, match="does not exist"):
        read_manifest(tmp_path / "none", "store")
    edit_manifest(folder, lambda manifest: manifest.update(schema=99))
    with pytest.raises(InputError, match="another schema version"):
        read_manifest(folder, "store")


def test_output_folders(tmp_path: Path) -> None:
    assert check_out(tmp_path / "new") == tmp_path / "new"
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        check_out(tmp_path / "file")
    with pytest.raises(InputError, match="is not empty"):
        check_out(tmp_path)
    run = artifact(tmp_path / "run")
    with pytest.raises(InputError, match="lies inside"):
        check_out(run / "deep" / "out")


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), new_folder(tmp_path / "out") as folder:
        (folder / "part").touch()
        raise ValueError("stop")
    assert not list(tmp_path.iterdir())
    with new_folder(tmp_path / "out") as folder:
        (folder / "part").touch()
        assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["part"]


def test_errors_survive_pickling_with_everything_they_say() -> None:
    error = InputError("wrong", got=3, expected="four", remedy="count again")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is InputError
    assert str(again) == str(error) == "wrong\n  got:      3\n  expected: four\n  remedy:   count again"


def test_hashes_and_seeds_do_not_depend_on_order_or_machine(tmp_path: Path) -> None:
    assert hash_object({"a": 1, "b": 2}) == hash_object({"b": 2, "a": 1})
    assert named_seed(0, "epoch", 3) == 693637507253400143, "the same on every machine, or no run could be repeated"
    assert named_seed(0, "epoch", 3) != named_seed(0, "epoch", 4) != named_seed(1, "epoch", 4)
    assert np.array_equal(generator(7, "x").random(4), generator(7, "x").random(4))
    write_json(tmp_path / "value.json", {"b": 1, "a": 2})
    assert (tmp_path / "value.json").read_text() == '{\n  "b": 1,\n  "a": 2\n}\n'
