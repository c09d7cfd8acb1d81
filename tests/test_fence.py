"""Attempts on a run folder: who may write, what a claim waits for, and a predecessor that wakes up too late."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import moldistill.trial.fence as module
from moldistill.core.artifacts import read_manifest, verify_hashes
from moldistill.core.config import dump_yaml, load_run, to_mapping
from moldistill.core.errors import InputError, RunError
from moldistill.trial.fence import ATTEMPT, Fence, SupersededError, has_begun, read_attempt
from moldistill.trial.folder import read_metrics
from moldistill.trial.run import finish_run, run_trial
from moldistill.trial.spec import TrialSpec

SETTINGS = load_run(
    {
        "role": "student",
        "model": {"width": 16, "depth": 1, "heads": 2},
        "training": {"epochs": 4, "batch_size": 16, "checkpoint_seconds": 0.0},
    }
)


class Fences(RuleBasedStateMachine):
    """Claims and writes in any order, against the rule: the last claim may write, and nobody else."""

    fences = Bundle("fences")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(os.environ["FENCE_TEST_FOLDER"]) / uuid.uuid4().hex
        self.last: Fence | None = None
        self.written: list[int] = []

    @rule(target=fences)
    def claim(self) -> Fence:
        self.last = Fence.claim(self.folder)
        return self.last

    @rule(fence=fences)
    def write(self, fence: Fence) -> None:
        if fence is self.last:
            with fence:
                self.written.append(fence.attempt.token)
        else:
            with pytest.raises(SupersededError, match="another attempt"), fence:
                pytest.fail("the block was entered")

    @rule(target=fences, fence=fences)
    def claim_as_a_part(self, fence: Fence) -> Fence:
        assert self.last is not None
        if fence.owner != self.last.owner:
            with pytest.raises(SupersededError):
                Fence.claim(self.folder, fence.owner)
            return fence
        self.last = Fence.claim(self.folder, fence.owner)
        assert self.last.owner == fence.owner
        return self.last

    @invariant()
    def tokens_ascend(self) -> None:
        assert self.written == sorted(self.written)
        assert self.last is None or read_attempt(self.folder) == self.last.attempt


@pytest.fixture(params=["locks", "no locks"])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With locks, and on a file system that knows none."""
    if request.param == "no locks":

        def refuse(stream: Any, operation: int) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(module.fcntl, "flock", refuse)
    return str(request.param)


def test_only_the_last_claim_may_write(locks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FENCE_TEST_FOLDER", str(tmp_path))
    some = hypothesis_settings(max_examples=30, stateful_step_count=20, deadline=None)
    run_state_machine_as_test(Fences, settings=some)  # type: ignore[no-untyped-call]


def test_errors_of_the_file_system_are_not_taken_for_missing_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(stream: Any, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(module.fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output"):
        Fence.claim(tmp_path)


WRITER = """
import random, sys, time
from pathlib import Path
from moldistill.trial.fence import Fence, SupersededError
run, seed, until = Path(sys.argv[1]), int(sys.argv[2]), time.monotonic() + float(sys.argv[3])
chance, lost = random.Random(seed), 0
while time.monotonic() < until:
    fence = Fence.claim(run)
    try:
        for _ in range(chance.randrange(1, 6)):
            time.sleep(chance.random() * 0.004)
            with fence, (run / "log").open("a") as log:
                for part in ("begin", "end"):
                    log.write(f"{fence.attempt.token} {part}\\n")
                    log.flush()
                    time.sleep(chance.random() * 0.001)
    except SupersededError:
        lost += 1
print(lost)
"""


def test_processes_that_take_the_folder_from_each_other_never_mix(tmp_path: Path) -> None:
    """Four at once: what is written is whole, and nothing of an attempt stands behind what its successor wrote."""
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, str(seed), "2"], stdout=subprocess.PIPE, text=True) for seed in range(4)]
    lost = [int(writer.communicate(timeout=120)[0]) for writer in writers]
    assert sum(lost) > 10  # they did meet
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    tokens = [int(token) for token, _ in lines]
    assert tokens == sorted(tokens)
    assert [part for _, part in lines] == ["begin", "end"] * (len(lines) // 2)
    assert tokens[::2] == tokens[1::2]
    last = read_attempt(tmp_path)
    assert last is not None
    assert last.token >= len(set(tokens))


def test_a_claim_does_not_overtake_a_write(tmp_path: Path) -> None:
    mine, order = Fence.claim(tmp_path), list[str]()

    def claim() -> None:
        Fence.claim(tmp_path)
        order.append("claimed")

    other = threading.Thread(target=claim)
    with mine:
        other.start()
        other.join(0.3)
        assert other.is_alive()
        order.append("written")
    other.join(30)
    assert order == ["written", "claimed"]
    with pytest.raises(SupersededError), mine:
        pass


def test_a_write_that_does_not_end_is_named(tmp_path: Path) -> None:
    mine = Fence.claim(tmp_path)
    with mine, pytest.raises(RunError, match="writing into") as raised:
        Fence.claim(tmp_path, patience=0.1)
    assert f"process {os.getpid()}" in str(raised.value)
    assert read_attempt(tmp_path) == mine.attempt


def test_a_write_that_fails_frees_the_folder(tmp_path: Path) -> None:
    mine = Fence.claim(tmp_path)
    with pytest.raises(ZeroDivisionError), mine:
        raise ZeroDivisionError
    with mine:
        pass
    assert Fence.claim(tmp_path, patience=0.1).attempt.token == 2


def test_a_folder_that_was_removed_is_not_made_again(tmp_path: Path) -> None:
    mine = Fence.claim(tmp_path / "run")
    for path in (tmp_path / "run").iterdir():
        path.unlink()
    with pytest.raises(SupersededError, match="removed"), mine:
        pass
    (tmp_path / "run" / ".fence").unlink(missing_ok=True)
    (tmp_path / "run").rmdir()
    with pytest.raises(SupersededError, match="removed"), mine:
        pass
    assert not (tmp_path / "run").exists()


def test_claims_do_not_make_a_run(tmp_path: Path) -> None:
    assert not has_begun(tmp_path / "run")
    Fence.claim(tmp_path / "run")
    assert not has_begun(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").touch()
    assert has_begun(tmp_path / "run")


@pytest.mark.parametrize("text", ["", "[]", '{"token": 1}', '{"token": 1, "more": 2}'])
def test_a_damaged_record_is_the_users_to_know_of(text: str, tmp_path: Path) -> None:
    (tmp_path / ATTEMPT).write_text(text)
    with pytest.raises(InputError, match=r"attempt\.json"):
        Fence.claim(tmp_path)


# -- runs -------------------------------------------------------------------------------------------------------------


def contents(run: Path) -> dict[str, bytes]:
    """All files of a run but TensorBoard's."""
    files = (path for path in sorted(run.rglob("*")) if path.is_file() and "tensorboard" not in path.parts)
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """The metrics of a run that nobody disturbed, without the time that it took."""
    return metrics(run_trial(TrialSpec(SETTINGS, tiny_store, tmp_path_factory.mktemp("whole") / "run")).path)


def metrics(run: Path) -> list[dict[str, float]]:
    return [{**record, "cpu_seconds": 0.0} for record in read_metrics(run)]


STOPPED = """
import os, signal, sys
from pathlib import Path
import moldistill.trial.run as module, moldistill.trial.ending as ending
from moldistill.core.config import load_run
from moldistill.trial.fence import SupersededError
from moldistill.trial.spec import TrialSpec

place, store, out, config = sys.argv[1:]
seen = module._Saver.after_step, ending.predict_split

def stop():
    os.kill(os.getpid(), signal.SIGSTOP)

def after_step(saver):
    if place == "step" and saver.trainer.step == 6:
        stop()
    seen[0](saver)

def predict_split(*arguments, **options):
    if place == "end":
        stop()
    return seen[1](*arguments, **options)

module._Saver.after_step, ending.predict_split = after_step, predict_split
try:
    module.run_trial(TrialSpec(load_run(config), Path(store), Path(out)))
except SupersededError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.parametrize("place", ["step", "end"])
def test_a_process_that_was_stopped_cannot_touch_what_its_successor_made(
    place: str, whole: list[dict[str, float]], tiny_store: Path, tmp_path: Path
) -> None:
    """Stopped in the middle of training, or while it predicts; its successor finishes the run; then it wakes up."""
    run, config = tmp_path / "run", tmp_path / "settings.yaml"
    config.write_text(dump_yaml(to_mapping(SETTINGS)))
    command = [sys.executable, "-c", STOPPED, place, str(tiny_store), str(run), str(config)]
    predecessor = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        _, status = os.waitpid(predecessor.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        result = run_trial(TrialSpec(SETTINGS, tiny_store, run, resume=True))
        made = contents(run)
        predecessor.send_signal(signal.SIGCONT)
        told, _ = predecessor.communicate(timeout=120)
    finally:
        predecessor.kill()
    assert predecessor.returncode == 7
    assert "another attempt runs this trial" in told
    assert contents(run) == made
    assert not verify_hashes(run)
    assert metrics(result.path) == whole


class Blocked(threading.Thread):
    """A run that stands still where `block` is called, until it is let go; error: what it ended with."""

    def __init__(self, run: Callable[[Callable[[], None]], object]) -> None:
        super().__init__(daemon=True)
        self._run = run
        self.error: BaseException | None = None
        self._reached, self._go = threading.Event(), threading.Event()

    def run(self) -> None:
        try:
            self._run(self._block)
        except BaseException as error:
            self.error = error

    def _block(self) -> None:
        if threading.current_thread() is self:
            self._reached.set()
            assert self._go.wait(120)

    def __enter__(self) -> Blocked:
        self.start()
        assert self._reached.wait(120)
        return self

    def __exit__(self, *_: object) -> None:
        self._go.set()
        self.join(120)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, Callable[[], None]], None]]:
    """Lets a thread call something before its write number k (from 1)."""
    real, counts = Fence.__enter__, dict[int, int]()

    def at(number: int, call: Callable[[], None]) -> None:
        def enter(fence: Fence) -> Fence:
            me = threading.get_ident()
            counts[me] = counts.get(me, 0) + 1
            if counts[me] == number:
                call()
            return real(fence)

        monkeypatch.setattr(Fence, "__enter__", enter)

    yield at
    monkeypatch.setattr(Fence, "__enter__", real)


@pytest.mark.parametrize("write", [1, 2, 5, 9, 17, 22])
def test_a_run_is_superseded_before_any_of_its_writes(
    write: int,
    writes: Callable[[int, Callable[[], None]], None],
    whole: list[dict[str, float]],
    tiny_store: Path,
    tmp_path: Path,
) -> None:
    """Configuration, checkpoints, metrics, weights, predictions: the k-th is refused, and the successor's run whole."""
    spec = TrialSpec(SETTINGS, tiny_store, tmp_path / "run", resume=True)

    def predecessor(block: Callable[[], None]) -> object:
        writes(write, block)
        return run_trial(spec)

    with Blocked(predecessor) as blocked:
        run_trial(spec)
        made = contents(spec.out)
    assert isinstance(blocked.error, SupersededError)
    assert contents(spec.out) == made
    assert metrics(spec.out) == whole


def test_a_run_that_was_stopped_early_is_finished_by_one(tiny_store: Path, tmp_path: Path) -> None:
    """The driver that finishes it takes the folder from a trial that still believes it has it."""
    spec = TrialSpec(SETTINGS, tiny_store, tmp_path / "run")

    def predecessor(block: Callable[[], None]) -> object:
        return run_trial(spec, report=lambda state: block() if state.epoch == 2 else None)

    with Blocked(predecessor) as blocked:
        finish_run(spec)
        made = contents(spec.out)
    assert isinstance(blocked.error, SupersededError)
    assert contents(spec.out) == made
    assert read_manifest(spec.out, "run").facts["epochs"] == 2


def test_a_worker_started_anew_does_not_take_the_folder_back(tiny_store: Path, tmp_path: Path) -> None:
    """Its driver has been superseded meanwhile."""
    owner = Fence.claim(tmp_path / "run").owner
    spec = TrialSpec(SETTINGS, tiny_store, tmp_path / "run", resume=True, owner=owner)
    with pytest.raises(ZeroDivisionError):
        run_trial(spec, report=lambda state: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run_trial(spec, report=lambda state: 1 // 0)  # anew: its driver still has the folder
    Fence.claim(spec.out)
    made = contents(spec.out)
    with pytest.raises(SupersededError):
        run_trial(spec)
    assert contents(spec.out) == made
    run_trial(replace(spec, owner=None))
    assert read_manifest(spec.out, "run").facts["epochs"] == 4
