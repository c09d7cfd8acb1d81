"""A preparation that is killed, cut off, or run twice at a time ends in the same store, byte for byte."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from moldistill.chem.sample import sample_root
from moldistill.core.errors import InputError, RunError
from moldistill.core.locking import exclusive
from moldistill.core.settings import PrepareSettings
from moldistill.data import building as building_module
from moldistill.data import prepare as module
from moldistill.data.building import FLAGGED, LEDGER, LOCK, PLAN, STORE, Line, work_folder
from moldistill.data.chunks import ChunkColumns, ChunkTask, process
from moldistill.data.columns import COLUMNS, Piece
from moldistill.data.store import Store

INTERRUPTED = Path(__file__).with_name("interrupted.py")


class StopError(Exception):
    """Stands for whatever ends a process."""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 10)


@pytest.fixture
def whole(tiny_root: Path, tmp_path: Path) -> dict[str, bytes]:
    """Files of an undisturbed store, made under the name that the disturbed ones have."""
    module.prepare(tiny_root, tmp_path / "apart" / "store", PrepareSettings())
    return contents(tmp_path / "apart" / "store")


def stopped(root: Path, out: Path, chunks: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preparation of which `chunks` chunks were done when `error` came."""
    count = iter(range(100))

    def counted(task: ChunkTask) -> ChunkColumns:
        if next(count) == chunks:
            raise error
        return process(task)

    with monkeypatch.context() as patch:
        patch.setattr(module, "process", counted)
        with pytest.raises(type(error)):
            module.prepare(root, out, PrepareSettings())


def test_kill_minus_nine_at_twenty_random_moments(tmp_path: Path) -> None:
    command: list[str | Path] = [sys.executable, INTERRUPTED, sample_root(), tmp_path, "20", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    reached = json.loads(done.stdout.splitlines()[-1])["reached"]
    assert len(reached) == 20
    assert len(set(reached)) > 5, "kills must fall at different moments"
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"], "nothing may stay behind"


@pytest.mark.parametrize("chunks", [0, 1, 5, 8])
def test_what_was_done_is_not_done_again(
    tiny_root: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, chunks: int
) -> None:
    stopped(tiny_root, tmp_path / "store", chunks, StopError(), monkeypatch)
    assert not (tmp_path / "store").exists(), "a store being written must not be taken for a finished one"
    firsts: list[int] = []
    monkeypatch.setattr(module, "process", lambda task: firsts.append(task.first) or process(task))
    module.prepare(tiny_root, tmp_path / "store", PrepareSettings())
    assert firsts == [10 * chunk for chunk in range(chunks, 9)]
    assert contents(tmp_path / "store") == whole


def test_a_stop_after_all_chunks_and_one_before_the_last_step(
    tiny_root: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mark_valid_3d", "write_manifest"):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *_, **__: (_ for _ in ()).throw(StopError()))
            with pytest.raises(StopError):
                module.prepare(tiny_root, tmp_path / "store", PrepareSettings())
    with monkeypatch.context() as patch:
        patch.setattr(building_module, "publish", lambda *_: (_ for _ in ()).throw(StopError()))
        with pytest.raises(StopError):
            module.prepare(tiny_root, tmp_path / "store", PrepareSettings())
    assert not (tmp_path / "store").exists()
    monkeypatch.setattr(module, "process", lambda task: pytest.fail("nothing was left to do"))
    module.prepare(tiny_root, tmp_path / "store", PrepareSettings())
    assert contents(tmp_path / "store") == whole


def _zero(path: Path) -> None:
    """What a machine that loses power may leave: a length that was written, bytes that were not."""
    size = path.stat().st_size
    with path.open("r+b") as stream:
        stream.truncate(size - size // 3)
        stream.truncate(size)


def _cut(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size * 2 // 3)


def _grow(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"left over from a chunk that never ended")


FILES = [spec.file for spec in COLUMNS if spec.name not in ("row", "split", "target")] + [FLAGGED, f"../{LEDGER}"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", [_zero, _cut, _grow, Path.unlink])
def test_what_is_not_whole_on_disk_is_done_again(
    tiny_root: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, file: str, harm: object
) -> None:
    stopped(tiny_root, tmp_path / "store", 7, StopError(), monkeypatch)
    harm(work_folder(tmp_path / "store") / STORE / file)  # type: ignore[operator]
    module.prepare(tiny_root, tmp_path / "store", PrepareSettings())
    assert contents(tmp_path / "store") == whole


def test_the_work_of_other_settings_is_begun_anew(
    tiny_root: Path,
    tmp_path: Path,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopped(tiny_root, tmp_path / "store", 7, StopError(), monkeypatch)
    module.prepare(tiny_root, tmp_path / "store", PrepareSettings(seed=1))
    assert "is discarded" in capsys.readouterr().err
    assert contents(tmp_path / "store")["split.npy"] != whole["split.npy"]


def test_a_changed_source_is_begun_anew(tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a.csv"
    source.write_text("smiles\n" + "CCO\n" * 50)
    stopped(source, tmp_path / "store", 3, StopError(), monkeypatch)
    source.write_text("smiles\n" + "CCN\n" * 50)
    module.prepare(source, tmp_path / "store", PrepareSettings())
    assert {Store.open(tmp_path / "store").smiles(row) for row in range(50)} == {"CCN"}


def test_two_writers_of_one_store(tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_folder(tmp_path / "store")

    def second(task: ChunkTask) -> ChunkColumns:
        command = [sys.executable, "-m", "moldistill", "prepare", tiny_root, "--store", tmp_path / "store"]
        if task.first == 20:
            other = subprocess.run(command, capture_output=True, text=True, check=False)
            assert other.returncode == 2
            assert "is being prepared already" in other.stderr
            assert "Traceback" not in other.stderr
        return process(task)

    monkeypatch.setattr(module, "process", second)
    module.prepare(tiny_root, tmp_path / "store", PrepareSettings())
    assert len(Store.open(tmp_path / "store")) == 83
    assert not work.exists()


def test_a_lock_is_free_when_its_holder_is_gone(tmp_path: Path) -> None:
    with exclusive(tmp_path / "deep" / "lock", "busy"):
        with pytest.raises(InputError, match="busy"), exclusive(tmp_path / "deep" / "lock", "busy"):
            pass
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    (tmp_path / "deep" / "lock").touch()  # left by a process that was killed
    with exclusive(tmp_path / "deep" / "lock", "busy"):
        pass
    assert not (tmp_path / "deep" / "lock").exists()


def test_a_full_disk_can_be_gone_on_from(
    tiny_root: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = building_module.Building.append
    calls = iter(range(100))

    def full(build: building_module.Building, *rest: object) -> None:
        if next(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(build, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(building_module.Building, "append", full)
        with pytest.raises(RunError, match="no space left"):
            module.prepare(tiny_root, tmp_path / "store", PrepareSettings())
    assert (work_folder(tmp_path / "store") / PLAN).is_file()
    module.prepare(tiny_root, tmp_path / "store", PrepareSettings())
    assert contents(tmp_path / "store") == whole


def test_a_wrong_source_leaves_nothing_and_other_errors_keep_the_work(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(tiny_root, tmp_path / "store", 3, InputError("the source is wrong"), monkeypatch)
    assert not work_folder(tmp_path / "store").exists()
    stopped(tiny_root, tmp_path / "store", 3, KeyboardInterrupt(), monkeypatch)
    assert work_folder(tmp_path / "store").exists()


def test_a_source_that_cannot_be_read_just_now_keeps_the_work(
    tiny_root: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from moldistill.chem import sdf

    real = sdf._records

    def failing(path: Path, stream: object) -> Iterator[bytes]:
        for number, record in enumerate(real(path, stream)):  # type: ignore[arg-type]
            if number == 35:
                raise OSError(errno.EIO, "Input/output error")
            yield record

    monkeypatch.setattr("moldistill.chem.blocks.BLOCK", 10)
    with monkeypatch.context() as patch:
        patch.setattr(sdf, "_records", failing)
        with pytest.raises(RunError, match="cannot be read"):
            module.prepare(tiny_root, tmp_path / "store", PrepareSettings())
    firsts: list[int] = []
    monkeypatch.setattr(module, "process", lambda task: firsts.append(task.first) or process(task))
    module.prepare(tiny_root, tmp_path / "store", PrepareSettings())
    assert firsts[0] > 0
    assert contents(tmp_path / "store") == whole


def test_places_that_cannot_be_written_are_refused(tiny_root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be"):
        module.prepare(tiny_root, Path("/proc/nowhere/store"), PrepareSettings())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        module.prepare(tiny_root, tmp_path / "file" / "store", PrepareSettings())
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    module.prepare(tiny_root, tmp_path / "link", PrepareSettings())
    assert len(Store.open(tmp_path / "there")) == 83


def test_a_finished_store_is_left_as_it_is(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = module.prepare(tiny_root, tmp_path / "store", PrepareSettings())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()}
    shutil.copytree(tmp_path / "store", work_folder(tmp_path / "store"))  # as if killed after the last step
    assert module.prepare(tiny_root, tmp_path / "store", PrepareSettings()) == first
    assert "is that store already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()} == before
    assert not work_folder(tmp_path / "store").exists()
    with pytest.raises(InputError, match="is not empty"):
        module.prepare(tiny_root, tmp_path / "store", PrepareSettings(valid_3d=0.2))


@pytest.mark.ray
def test_ray_tasks_go_on_with_what_one_process_left(
    tiny_root: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    def alone(*_: object) -> Iterator[ChunkColumns]:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(module, "ordered_map", alone)
        with pytest.raises(AssertionError):
            module.prepare(tiny_root, tmp_path / "store", PrepareSettings(), processes=2)
    with monkeypatch.context() as patch:
        count = iter(range(100))
        patch.setattr(module, "process", lambda task: process(task) if next(count) < 4 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            module.prepare(tiny_root, tmp_path / "store", PrepareSettings(), processes=1)
    module.prepare(tiny_root, tmp_path / "store", PrepareSettings(), processes=2)
    assert contents(tmp_path / "store") == whole


def test_lines_of_the_ledger_read_back() -> None:
    line = Line(10, (9, 0, 1, 0, 0), (3, 4, 0, 0), {"flag.npy": Piece(10, 0xFFFFFFFF), FLAGGED: Piece(0, 0)})
    assert Line.parse(line.text()) == line
    for length in range(len(line.text()) - 1):
        assert Line.parse(line.text()[:length]) is None
    for text in ("", "[]", "{}", "1", '[1, 2, 3, {"a": 1}]', "[1, [1], [1], 7]", "null"):
        assert Line.parse(text) is None


def test_the_folder_of_a_lock_that_vanishes_is_made_again(tmp_path: Path) -> None:
    with exclusive(tmp_path / "work" / LOCK, "busy"):
        shutil.rmtree(tmp_path / "work")
    with exclusive(tmp_path / "work" / LOCK, "busy"):
        assert (tmp_path / "work" / LOCK).exists()
    assert np.all([not path.is_file() for path in (tmp_path / "work").iterdir()])
