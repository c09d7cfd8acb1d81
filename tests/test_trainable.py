"""A trial's attempts: which are tried again, how it shrinks when memory runs out, and how it is cancelled."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import FileStore

import moldistill.trial.cancel as cancel_module
import moldistill.trial.run as run_module
from moldistill.core.artifacts import read_manifest, write_manifest
from moldistill.core.config import load_run
from moldistill.core.errors import InputError, RunError
from moldistill.core.settings import RunSettings
from moldistill.search.attempts import Job, Stopped, run_job, shrunk
from moldistill.training.checkpoint import load_checkpoint
from moldistill.training.collective import Collective
from moldistill.training.loop import EpochReport, Trainer
from moldistill.trial.cancel import CancelledError, CancelWatch, ask_to_cancel, is_cancelled, withdraw_cancel
from moldistill.trial.fence import Fence, read_attempt
from moldistill.trial.folder import CONFIG, read_metrics
from moldistill.trial.memory import (
    MOST_PARTS,
    TooLargeError,
    in_more_parts,
    is_memory_error,
    known_too_large,
    limit_gpu_memory,
    memory_reason,
    most_parts,
    needs_no_more,
    release_memory,
)
from moldistill.trial.run import run_trial
from moldistill.trial.spec import TrialSpec

METRIC = "valid_mae"


def settings(**training: Any) -> RunSettings:
    return load_run(
        {
            "role": "student",
            "model": {"width": 16, "depth": 1, "heads": 2},
            "training": {"epochs": 4, "batch_size": 16, **training},
        }
    )


def finish(spec: TrialSpec, **metrics: float) -> None:
    spec.out.mkdir(parents=True, exist_ok=True)
    write_manifest(spec.out, "run", files=[], facts={"metrics": metrics})


class Scripted:
    """A runner whose attempts go by a script: an exception to raise, or None to train to the end."""

    def __init__(self, *script: BaseException | None) -> None:
        self.script, self.specs = list(script), list[TrialSpec]()

    def __call__(self, spec: TrialSpec, *, report: Callable[[EpochReport], None]) -> None:
        self.specs.append(spec)
        error = self.script[min(len(self.specs), len(self.script)) - 1]
        spec.out.mkdir(parents=True, exist_ok=True)
        (spec.out / "metrics.jsonl").touch()
        if error is not None:
            raise error
        report(EpochReport(4, {METRIC: 0.5, "train_loss": 0.1}, True))


def job(runner: Any, out: Path, **options: Any) -> Job:
    return Job(3, TrialSpec(options.pop("settings", settings()), out.parent / "store", out), runner, METRIC, **options)


def no_report(metrics: dict[str, Any]) -> None:
    pass


# -- attempts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_crashing_trial_is_tried_again_so_many_times(retries: int, tmp_path: Path) -> None:
    runner = Scripted(ZeroDivisionError("by\n zero"))
    last = run_job(job(runner, tmp_path / "run", retries=retries), no_report)
    assert last["outcome"] == "failed"
    assert last["reason"] == "ZeroDivisionError: by zero"
    assert [attempt["reason"] for attempt in last["attempts"]] == ["ZeroDivisionError: by zero"] * (retries + 1)
    assert all(attempt["seconds"] >= 0 for attempt in last["attempts"])
    assert [spec.resume for spec in runner.specs] == [False] + [True] * retries
    assert "accumulate" not in last


def test_a_trial_that_gets_over_a_crash_keeps_its_reason(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    last = run_job(job(Scripted(RunError("disk full"), None), tmp_path / "run"), seen.append)
    assert last["outcome"] == "complete"
    assert [attempt["reason"] for attempt in last["attempts"]] == ["RunError: disk full"]
    assert (last["epoch"], last[METRIC]) == (4, 0.5)
    assert seen == [{METRIC: 0.5, "train_loss": 0.1, "epoch": 4}]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (InputError("the folder is not there"), "failed"),
        (RunError("training diverged at step 7"), "diverged"),
        (CancelledError("the trial was cancelled"), "cancelled"),
        (Stopped(), "stopped"),
    ],
)
def test_what_would_end_the_same_way_is_not_tried_again(error: Exception, outcome: str, tmp_path: Path) -> None:
    runner = Scripted(error)
    last = run_job(job(runner, tmp_path / "run", retries=5), no_report)
    assert last["outcome"] == outcome
    assert last.get("reason", "") == str(error)
    assert len(runner.specs) == 1
    assert last["attempts"] == []


@pytest.mark.parametrize("metrics", [{METRIC: float("nan")}, {METRIC: 1.0, "train_loss": float("inf")}])
def test_a_metric_that_is_no_number_is_divergence(metrics: dict[str, float], tmp_path: Path) -> None:
    def runner(spec: TrialSpec, *, report: Callable[[EpochReport], None]) -> None:
        report(EpochReport(1, {"train_loss": 1.0, METRIC: 1.0}, True))
        report(EpochReport(2, metrics, True))

    seen: list[dict[str, Any]] = []
    last = run_job(job(runner, tmp_path / "run"), seen.append)
    assert last["outcome"] == "diverged"
    assert "epoch 2" in last["reason"]
    assert [told["epoch"] for told in seen] == [1]


def test_a_run_that_diverges_says_so(tiny_store: Path, tmp_path: Path) -> None:
    """The guard's own words, which `run_job` goes by."""

    def runner(spec: TrialSpec, *, report: Any) -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_, **__: torch.tensor(float("nan")))
            run_trial(spec, report=report)

    spec = TrialSpec(settings(), tiny_store, tmp_path / "run")
    last = run_job(Job(0, spec, runner, METRIC), no_report)
    assert last["outcome"] == "diverged"
    assert "step 0" in last["reason"]


def test_a_trial_that_had_ended_before_is_told_from_its_folder(tmp_path: Path) -> None:
    def runner(spec: TrialSpec, *, report: Any) -> None:
        finish(spec, epoch=4, valid_mae=0.25)

    last = run_job(job(runner, tmp_path / "run"), no_report)
    assert (last["outcome"], last[METRIC], last["epoch"]) == ("complete", 0.25, 4)


def test_all_attempts_of_a_job_are_under_its_claim(tmp_path: Path) -> None:
    """A retry does not take the folder back from another driver."""

    def runner(spec: TrialSpec, *, report: Any) -> None:
        with Fence.claim(spec.out, spec.owner):
            pass
        Fence.claim(spec.out)  # another driver
        raise ZeroDivisionError

    last = run_job(job(runner, tmp_path / "run", retries=5), no_report)
    assert last["outcome"] == "superseded"
    assert len(last["attempts"]) == 1
    attempt = read_attempt(tmp_path / "run")
    assert attempt is not None
    assert attempt.token == 3  # the job's, the runner's, the other driver's


# -- memory -----------------------------------------------------------------------------------------------------------

CUDA_TEXT = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB"
CPU_TEXT = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
)
MONITOR_TEXT = """ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.1, ID: 3f) where the lease (actor ID: 02, name=TrialActor) was running was 30G / 31G"""
KILLED_TEXT = """ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker
unexpectedly exits with a connection error code 2. End of file. There are some potential root causes. (1) The process is
killed by SIGKILL by OOM killer due to high memory usage. (2) ray stop --force is called. (3) The worker is crashed
unexpectedly due to SIGSEGV or other unexpected errors."""


@pytest.mark.parametrize(
    "text", [CUDA_TEXT, CPU_TEXT, MONITOR_TEXT, "std::bad_alloc", "MemoryError: Unable to allocate"]
)
def test_texts_that_say_that_memory_ran_out(text: str) -> None:
    assert memory_reason(text)


@pytest.mark.parametrize(
    "text", [KILLED_TEXT, "the trial's process died (killed, or out of memory?)", "the memory map is damaged", ""]
)
def test_texts_that_do_not(text: str) -> None:
    """A process that was killed: who knows why. It goes on as it was, and ends like an undisturbed one."""
    assert not memory_reason(text)


def test_errors_of_memory() -> None:
    errors = [torch.OutOfMemoryError(CUDA_TEXT), MemoryError(), RuntimeError(CPU_TEXT), TooLargeError("a worker")]
    assert all(map(is_memory_error, [*errors, OSError(12, "Cannot allocate memory")]))
    others = [RuntimeError("shapes do not match"), OSError(28, "No space left on device"), ValueError(CUDA_TEXT)]
    assert not any(map(is_memory_error, others))


def test_a_real_allocation_that_fails_is_one() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_memory_error(raised.value)


def test_what_an_error_holds_is_given_back() -> None:
    def fail() -> None:
        held = torch.zeros(3)
        held.grad = None
        kept.append(weakref.ref(held))
        try:
            raise MemoryError
        except MemoryError as inner:
            raise RuntimeError("out of memory") from inner

    kept: list[weakref.ref[torch.Tensor]] = []
    try:
        fail()
    except RuntimeError as caught:
        error = caught
    gc.collect()
    assert kept[0]() is not None
    release_memory(error)
    assert kept[0]() is None


@pytest.mark.parametrize(
    ("training", "parts"),
    [
        ({}, [1, 2, 4, 8, 16]),
        ({"batch_size": 24, "workers": 2}, [1, 2, 4, 8, 12]),
        ({"batch_size": 1024}, [1, 2, 4, 8, 16, 32, 64]),
        ({"atoms_per_batch": 4096}, [1, 2, 4, 8, 16, 32, 64]),
        ({"batch_size": 1}, [1]),
        ({"accumulate": 3}, [3, 6, 12, 16]),
    ],
)
def test_batches_are_cut_to_single_molecules(training: dict[str, int], parts: list[int], tmp_path: Path) -> None:
    runner = Scripted(torch.OutOfMemoryError(CUDA_TEXT))
    last = run_job(job(runner, tmp_path / "run", settings=settings(**training), retries=0), no_report)
    assert last["outcome"] == "memory"
    assert CUDA_TEXT in last["reason"]
    assert [spec.settings.training.accumulate for spec in runner.specs] == parts
    assert last.get("accumulate", parts[0]) == parts[-1]
    assert len(last["attempts"]) == len(parts)
    assert parts[-1] == most_parts(settings(**training).training) <= MOST_PARTS
    assert in_more_parts(runner.specs[-1].settings) is None


def test_running_out_of_memory_uses_up_no_retry(tmp_path: Path) -> None:
    runner = Scripted(MemoryError(), ZeroDivisionError(), MemoryError(), None)
    last = run_job(job(runner, tmp_path / "run", retries=1), no_report)
    assert last["outcome"] == "complete"
    assert last["accumulate"] == 4
    assert [spec.settings.training.accumulate for spec in runner.specs] == [1, 2, 2, 4]


def test_a_trial_begins_with_the_parts_it_is_told(tmp_path: Path) -> None:
    """By the driver, after Ray ended its process for want of memory; no further than to single molecules."""
    for asked, parts in ((2, 2), (12, 12), (32, 16)):
        runner = Scripted(None)
        last = run_job(job(runner, tmp_path / str(asked), accumulate=asked), no_report)
        assert last["outcome"] == "complete"
        assert runner.specs[0].settings.training.accumulate == last["accumulate"] == parts
    assert shrunk(job(runner, tmp_path / "new", accumulate=2)).accumulate == 4
    assert shrunk(job(runner, tmp_path / "new", settings=settings(accumulate=3))).accumulate == 6
    (tmp_path / "most").mkdir()
    run_module.write_config(tmp_path / "most", settings(accumulate=16))
    runner = Scripted(None)
    assert shrunk(job(runner, tmp_path / "most", accumulate=2)).accumulate == 32
    assert run_job(job(runner, tmp_path / "most", accumulate=32), no_report)["outcome"] == "memory"
    assert not runner.specs


def test_a_run_that_shrinks_ends_like_one_that_had_memory(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails at step 5 with more than four molecules at once, goes on from its checkpoint, and is killed later."""
    whole = run_trial(TrialSpec(settings(), tiny_store, tmp_path / "whole"))
    spec = TrialSpec(settings(checkpoint_seconds=0.0), tiny_store, tmp_path / "run")
    real, steps = Trainer._terms, list[tuple[int, int]]()

    def narrow(trainer: Trainer, batch: Any, *arguments: Any) -> Any:
        if trainer.model.training:  # and not a probe of the gradient
            steps.append((trainer.step, len(batch.target)))
            if trainer.step >= 4 and len(batch.target) > 4:
                raise torch.OutOfMemoryError(CUDA_TEXT)
        return real(trainer, batch, *arguments)

    monkeypatch.setattr(Trainer, "_terms", narrow)

    def killed(metrics: dict[str, Any]) -> None:
        if metrics["epoch"] == 3:
            raise KeyboardInterrupt  # like a death: nothing handles it

    one = Job(0, spec, run_trial, METRIC)
    with pytest.raises(KeyboardInterrupt):
        run_job(one, killed)
    assert [step for step, molecules in steps if molecules > 4] == [0, 1, 2, 3, 4, 4]
    assert load_run(spec.out / CONFIG).training.accumulate == 4
    steps.clear()
    last = run_job(one, no_report)
    assert steps[0] == (9, 4)  # with what memory allowed before it was killed
    assert last["outcome"] == "complete"
    assert last["accumulate"] == 4
    for record, again in zip(read_metrics(whole.path), read_metrics(spec.out), strict=True):
        assert again["train_loss"] == pytest.approx(record["train_loss"], rel=1e-4)
        assert again[METRIC] == pytest.approx(record[METRIC], rel=1e-3)


def test_shares_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", said.append)
    limit_gpu_memory(0.5)
    assert said == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    limit_gpu_memory(0.25)
    limit_gpu_memory(None)
    assert said == [0.25, 1.0]


def test_a_job_hands_its_share_to_the_run(tmp_path: Path) -> None:
    runner = Scripted(None)
    run_job(job(runner, tmp_path / "run", gpu_memory=0.25), no_report)
    assert runner.specs[0].gpu_memory == 0.25


# -- what need not be tried -------------------------------------------------------------------------------------------

TERMS = st.fixed_dictionaries(
    {
        "weight": st.sampled_from([0.0, 1.0]),
        "layers": st.sampled_from(["all", "last", "every 2", "every 3", [1], [2, 4]]),
        "head": st.sampled_from(["linear", "mlp"]),
        "distance": st.sampled_from(["mse", "relational"]),
    }
)


@st.composite
def configurations(draw: st.DrawFn) -> RunSettings:
    """Few values per key, so that two of them are often comparable."""
    role = draw(st.sampled_from(["student", "student", "teacher"]))
    distill: dict[str, Any] = {}
    if role == "student":
        distill = {
            "graph": draw(TERMS),
            "atom": draw(TERMS),
            "pair": {"weight": draw(st.sampled_from([0.0, 1.0])), "bins": draw(st.sampled_from([8, 16]))},
        }
    return load_run(
        {
            "role": role,
            "model": {
                "width": draw(st.sampled_from([16, 32])),
                "depth": draw(st.sampled_from([1, 2])),
                "heads": draw(st.sampled_from([2, 4])),
                "dropout": draw(st.sampled_from([0.0, 0.1])),
                "angles": role == "teacher" and draw(st.booleans()),
            },
            "optimizer": {"learning_rate": draw(st.sampled_from([1e-3, 1e-2]))},
            "training": {
                "batch_size": draw(st.sampled_from([16, 32])),
                "atoms_per_batch": draw(st.sampled_from([None, None, 512, 1024])),
                "accumulate": draw(st.sampled_from([1, 2])),
            },
            "distill": distill,
            "targets": draw(st.sampled_from(["one", "other"])) if role == "student" else None,
        }
    )


@given(configurations())
def test_a_configuration_needs_no_more_than_itself(one: RunSettings) -> None:
    assert needs_no_more(one, one)
    assert known_too_large(one, [one]) == 0


@given(st.lists(configurations(), min_size=3, max_size=12))
def test_what_needs_no_more_is_passed_on(several: list[RunSettings]) -> None:
    below = {(i, j) for i, one in enumerate(several) for j, other in enumerate(several) if needs_no_more(one, other)}
    for i, j in below:
        assert all((i, k) in below for m, k in below if m == j)


CHANGES: Sequence[tuple[str, dict[str, Any]]] = [
    ("more", {"model": {"width": 32}}),
    ("more", {"model": {"depth": 2}}),
    ("more", {"model": {"heads": 4}}),
    ("more", {"model": {"feedforward": 3.0}}),
    ("more", {"model": {"dropout": 0.1}}),
    ("more", {"model": {"walks": 4}}),
    ("more", {"training": {"batch_size": 32}}),
    ("less", {"training": {"accumulate": 2}}),
    ("less", {"training": {"workers": 2}}),
    ("more", {"distill": {"graph": {"weight": 1.0}}}),
    ("more", {"distill": {"pair": {"weight": 1.0}}}),
    ("other", {"model": {"name": "hybrid"}}),
    ("other", {"training": {"precision": "bf16"}}),
    ("other", {"training": {"atoms_per_batch": 4096}}),
    ("other", {"optimizer": {"kind": "schedule_free"}}),
    ("same", {"optimizer": {"learning_rate": 0.01}}),
    ("same", {"training": {"seed": 5, "epochs": 99, "ema": 0.5}}),
    ("same", {"distill": {"graph": {"layers": "last", "head": "mlp"}}}),  # a term without weight
]


@pytest.mark.parametrize(("kind", "change"), CHANGES, ids=[str(change) for _, change in CHANGES])
def test_what_drives_memory(kind: str, change: dict[str, Any]) -> None:
    raw: dict[str, Any] = {
        "role": "student",
        "model": {"width": 16, "depth": 1, "heads": 2},
        "training": {"batch_size": 16},
    }
    base = load_run(raw)
    changed = load_run({**raw, **{key: {**raw.get(key, {}), **value} for key, value in change.items()}})
    ways = (needs_no_more(base, changed), needs_no_more(changed, base))
    assert ways == {"more": (True, False), "less": (False, True), "other": (False, False), "same": (True, True)}[kind]
    assert known_too_large(changed, [changed if kind == "other" else base]) == (None if kind == "less" else 0)


@pytest.mark.parametrize(
    ("one", "other", "no_more"),
    [
        ("last", [3], True),
        ("last", "every 5", True),
        ("every 4", "every 2", True),
        ("every 2", "every 4", False),
        ([1, 2], [3, 4, 5], True),
        ([3, 4, 5], [1, 2], False),
        ([1, 2, 3], "all", True),
        ("all", "every 1", False),
        ("every 2", [1, 2], False),
    ],
)
def test_layers(one: Any, other: Any, no_more: bool) -> None:
    first, second = (
        load_run({"role": "student", "targets": "one", "distill": {"graph": {"weight": 1.0, "layers": layers}}})
        for layers in (one, other)
    )
    assert needs_no_more(first, second) is no_more


# -- cancelling -------------------------------------------------------------------------------------------------------


def test_a_trial_that_is_cancelled_ends_soon_and_safely(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an epoch; continued, once the mark is withdrawn, it ends like one that was left alone."""
    whole = run_trial(TrialSpec(settings(), tiny_store, tmp_path / "whole"))
    spec = TrialSpec(settings(), tiny_store, tmp_path / "run")
    seen = run_module._Saver.after_step

    def after_step(saver: run_module._Saver) -> None:
        seen(saver)
        if saver.trainer.step == 5:
            ask_to_cancel(spec.out)

    monkeypatch.setattr(cancel_module, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(run_module._Saver, "after_step", after_step)
    one = Job(0, spec, run_trial, METRIC)
    last = run_job(one, no_report)
    assert (last["outcome"], last["epoch"], last["attempts"]) == ("cancelled", 1, [])
    checkpoint = load_checkpoint(spec.out)
    assert checkpoint is not None
    assert checkpoint.step == 5

    assert run_job(one, no_report)["outcome"] == "cancelled"  # nobody has withdrawn it
    monkeypatch.setattr(run_module._Saver, "after_step", seen)
    withdraw_cancel(spec.out)
    assert run_job(one, no_report)["outcome"] == "complete"
    for record, again in zip(read_metrics(whole.path), read_metrics(spec.out), strict=True):
        assert {**record, "cpu_seconds": 0} == {**again, "cpu_seconds": 0}
    ask_to_cancel(spec.out)
    assert run_job(one, no_report)["outcome"] == "complete"  # it had ended


def test_a_running_trial_looks_at_least_once_a_second(tiny_store: Path, tmp_path: Path) -> None:
    spec = TrialSpec(settings(epochs=100_000, evaluate_every=100_000), tiny_store, tmp_path / "run")
    threading.Timer(1.0, lambda: ask_to_cancel(spec.out)).start()
    since = time.monotonic()
    last = run_job(Job(0, spec, run_trial, METRIC), no_report)
    assert last["outcome"] == "cancelled"
    assert time.monotonic() - since < 20  # the machine is slow; a look late by one epoch would do, too
    assert load_checkpoint(spec.out) is not None


def test_looks_cost_nothing_between_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, clock = list[float](), [0.0]
    monkeypatch.setattr(cancel_module, "is_cancelled", lambda run: bool(looks.append(clock[0])))
    watch = CancelWatch(tmp_path, now=lambda: clock[0])
    for _ in range(1000):
        clock[0] += 0.01
        watch.after_step()
    assert 18 <= len(looks) <= 20  # in ten seconds
    assert all(later - earlier < 1 for earlier, later in itertools.pairwise(looks))


def test_marks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        ask_to_cancel(tmp_path / "run")
    assert not is_cancelled(tmp_path)
    ask_to_cancel(tmp_path)
    ask_to_cancel(tmp_path)
    assert is_cancelled(tmp_path)
    withdraw_cancel(tmp_path)
    withdraw_cancel(tmp_path)
    assert not is_cancelled(tmp_path)


def _watch_worker(rank: int, folder: Path, rate: float) -> None:
    """One of two workers, of which the second never sees the mark itself; writes down where it stopped."""
    store = FileStore(str(folder / "store"), 2)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    watch = CancelWatch(folder / ("run" if rank == 0 else "nowhere"), Collective(rank, 2))
    for step in range(1, 1_000_000):
        time.sleep(rate)
        if rank == 0 and step == 40:
            ask_to_cancel(folder / "run")
        try:
            watch.after_step()
        except CancelledError:
            (folder / str(rank)).write_text(str(step))
            torch.distributed.barrier()  # who leaves first closes the connection that the other still reads from
            torch.distributed.destroy_process_group()
            return


@pytest.mark.parametrize("rate", [0.0005, 0.02])
def test_workers_stop_at_the_same_step(rate: float, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    context = torch.multiprocessing.get_context("spawn")
    workers = [context.Process(target=_watch_worker, args=(rank, tmp_path, rate)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    first, second = (int((tmp_path / str(rank)).read_text()) for rank in range(2))
    assert first == second
    assert (first - 40) * rate < 2.0


def test_a_finished_run_keeps_its_manifest(tiny_store: Path, tmp_path: Path) -> None:
    spec = TrialSpec(settings(), tiny_store, tmp_path / "run")
    last = run_job(Job(0, spec, run_trial, METRIC), no_report)
    assert last["outcome"] == "complete"
    assert read_manifest(spec.out, "run").facts["metrics"][METRIC] == last[METRIC]
