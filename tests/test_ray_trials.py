"""Trials of a search as groups of Ray Train workers: the same results, the scheduler's decisions, and faults."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray import cloudpickle
from ray.util.placement_group import placement_group_table
from safetensors.torch import load_file

import moldistill.trial.ray_train as module
from moldistill.core.config import load_run
from moldistill.core.settings import RunSettings
from moldistill.search.trainable import Job, Stopped, TrialActor, run_job
from moldistill.training.loop import EpochReport
from moldistill.trial.cancel import ask_to_cancel
from moldistill.trial.channel import Channel
from moldistill.trial.fence import Fence, read_attempt
from moldistill.trial.folder import CONFIG, read_metrics
from moldistill.trial.ray_train import release_workers, run_trial_under_ray
from moldistill.trial.run import run_trial
from moldistill.trial.spec import TrialSpec
from weights import check_equal_within_rounding

METRIC = "valid_mae"
EPOCHS = 6


def settings(**training: Any) -> RunSettings:
    return load_run(
        {
            "role": "student",
            "model": {"width": 16, "depth": 2, "heads": 2},
            "training": {"epochs": EPOCHS, "batch_size": 16, **training},
        }
    )


def metrics(run: Path) -> list[dict[str, float]]:
    return [{**record, "cpu_seconds": 0.0} for record in read_metrics(run)]


# -- the channel, without Ray -----------------------------------------------------------------------------------------


def state(epoch: int) -> EpochReport:
    return EpochReport(epoch, {METRIC: 1.0}, True)


def test_a_question_waits_for_its_own_answer() -> None:
    """That of a worker that died is answered into the void; once closed, all are told no."""

    async def talk() -> list[bool]:
        channel = Channel()
        assert await channel.next(0.01) is None
        dead = asyncio.create_task(channel.ask(state(1)))
        assert await channel.next(1.0) == state(1)
        alive = asyncio.create_task(channel.ask(state(1)))
        await channel.go_on()
        assert await dead
        assert not alive.done()
        assert await channel.next(1.0) == state(1)
        waiting = asyncio.create_task(channel.ask(state(2)))
        await asyncio.sleep(0)
        await channel.close()
        return [await alive, await waiting, await channel.ask(state(3)), await channel.is_open()]

    assert asyncio.run(talk()) == [False] * 4


# -- groups of workers ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inline(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_trial(TrialSpec(settings(), tiny_store, tmp_path_factory.mktemp("inline") / "run")).path


def free_cpus() -> float:
    return float(ray.available_resources().get("CPU", 0.0))


def until(true: Callable[[], bool], seconds: float = 120.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.2)
    return False


@pytest.fixture
def all_is_released(ray_cluster: None) -> Iterator[None]:
    """Behind the test the cluster is as free as before it."""
    assert until(lambda: free_cpus() == 4)
    yield
    assert until(lambda: free_cpus() == 4)
    groups = placement_group_table().values()
    assert not [group for group in groups if group["state"] != "REMOVED"]


@pytest.fixture
def patched_workers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Lets each worker call a function before it trains."""

    def patch_with(patch: Callable[[], None]) -> None:
        real = module._worker

        def worker(config: dict[str, Any]) -> None:
            patch()
            real(config)

        monkeypatch.setattr(module, "_worker", worker)
        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module

    return patch_with


@pytest.mark.ray
@pytest.mark.usefixtures("all_is_released")
class TestGroups:
    """`run_trial_under_ray` as the runner of a job."""

    def test_one_worker_is_inline_to_the_bit(self, inline: Path, tiny_store: Path, tmp_path: Path) -> None:
        told: list[dict[str, Any]] = []
        spec = TrialSpec(settings(), tiny_store, tmp_path / "run")
        last = run_job(Job(0, spec, run_trial_under_ray, METRIC), told.append)
        assert last["outcome"] == "complete"
        assert metrics(spec.out) == metrics(inline)
        assert [one["epoch"] for one in told] == list(range(1, EPOCHS + 1))
        assert [one[METRIC] for one in told] == [record[METRIC] for record in read_metrics(inline)]
        one, other = load_file(inline / "weights.safetensors"), load_file(spec.out / "weights.safetensors")
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert not list(spec.out.glob(".failure*"))
        assert not list(spec.out.glob(".placement-group*"))

    def test_a_killed_worker_costs_nothing(
        self, inline: Path, tiny_store: Path, tmp_path: Path, patched_workers: Callable[[Callable[[], None]], None]
    ) -> None:
        """Killed -9 in the middle of an epoch; nothing shrinks."""
        marker = tmp_path / "killed"

        def patch() -> None:
            import moldistill.trial.run as run_module

            seen = run_module._Saver.after_step

            def fatal(saver: run_module._Saver) -> None:
                if saver.trainer.step == 8 and not marker.exists():
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                seen(saver)

            run_module._Saver.after_step = fatal  # type: ignore[method-assign]

        patched_workers(patch)
        spec = TrialSpec(settings(checkpoint_seconds=0.0), tiny_store, tmp_path / "run")
        told: list[dict[str, Any]] = []
        last = run_job(Job(0, spec, run_trial_under_ray, METRIC), told.append)
        assert marker.exists()
        assert last["outcome"] == "complete"
        assert "accumulate" not in last
        assert metrics(spec.out) == metrics(inline)
        assert [one["epoch"] for one in told] == list(range(1, EPOCHS + 1))

    def test_two_workers_shrink_together_when_one_has_too_little_memory(
        self, inline: Path, tiny_store: Path, tmp_path: Path, patched_workers: Callable[[Callable[[], None]], None]
    ) -> None:
        """The second worker alone runs out of memory, in the second epoch, with more than four molecules at once."""

        def patch() -> None:
            from moldistill.training.loop import Trainer

            seen = Trainer._terms

            def narrow(trainer: Trainer, batch: Any, *rest: Any) -> Any:
                if trainer.collective.rank == 1 and trainer.step >= 4 and len(batch.target) > 4:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
                return seen(trainer, batch, *rest)

            Trainer._terms = narrow  # type: ignore[method-assign]

        patched_workers(patch)
        spec = TrialSpec(settings(workers=2), tiny_store, tmp_path / "run")
        last = run_job(Job(0, spec, run_trial_under_ray, METRIC), lambda _: None)
        assert last["outcome"] == "complete"
        assert last["accumulate"] == 2
        assert ["ran out of memory" in attempt["reason"] for attempt in last["attempts"]] == [True]
        assert load_run(spec.out / CONFIG).training.accumulate == 2
        check_equal_within_rounding(inline, spec.out)

    def test_two_workers_are_cancelled_together(self, tiny_store: Path, tmp_path: Path) -> None:
        spec = TrialSpec(settings(workers=2, epochs=100_000, evaluate_every=10), tiny_store, tmp_path / "run")
        last = run_job(Job(0, spec, run_trial_under_ray, METRIC), lambda told: ask_to_cancel(spec.out))
        assert last["outcome"] == "cancelled"
        assert list((spec.out / "checkpoint").glob("step-*.pt"))

    def test_a_trial_that_is_superseded_does_not_take_the_folder_back(self, tiny_store: Path, tmp_path: Path) -> None:
        """Two workers, whom Ray Train would start anew."""
        spec = TrialSpec(settings(workers=2), tiny_store, tmp_path / "run")
        other: list[Fence] = []

        def report(told: dict[str, Any]) -> None:
            if not other:
                other.append(Fence.claim(spec.out))

        last = run_job(Job(0, spec, run_trial_under_ray, METRIC), report)
        assert last["outcome"] == "superseded"
        assert last["attempts"] == []
        assert read_attempt(spec.out) == other[0].attempt

    def test_a_diverged_metric_ends_the_workers(self, tiny_store: Path, tmp_path: Path) -> None:
        """`run_job` finds it, where the report arrives."""

        def runner(spec: TrialSpec, *, report: Any) -> None:
            def spoil(one: EpochReport) -> None:
                report(replace(one, metrics={**one.metrics, METRIC: float("nan")}) if one.epoch == 2 else one)

            run_trial_under_ray(spec, report=spoil)

        spec = TrialSpec(settings(workers=2), tiny_store, tmp_path / "run")
        last = run_job(Job(0, spec, runner, METRIC), lambda _: None)
        assert last["outcome"] == "diverged"
        assert len(read_metrics(spec.out)) == 2

    def test_wrong_input_is_told_as_it_is(self, tiny_store: Path, tmp_path: Path) -> None:
        spec = TrialSpec(settings(), tiny_store, tmp_path / "run")
        run_job(Job(0, spec, run_trial_under_ray, METRIC), stop_at(1))
        other = replace(spec, settings=settings(seed=5))
        last = run_job(Job(0, other, run_trial_under_ray, METRIC), lambda _: None)
        assert last["outcome"] == "failed"
        assert "was made with other settings" in last["reason"]
        assert last["attempts"] == []


def stop_at(epoch: int) -> Callable[[dict[str, Any]], None]:
    """The scheduler's decision."""

    def report(told: dict[str, Any]) -> None:
        if told["epoch"] == epoch:
            raise Stopped

    return report


@pytest.mark.ray
@pytest.mark.usefixtures("all_is_released")
def test_a_stopped_group_frees_its_resources_for_the_actors_next_job(
    inline: Path, tiny_store: Path, tmp_path: Path
) -> None:
    """As Tune does it: an actor without CPUs, stopped at epoch 2 of 6, and reused; groups of 2 × 2 CPUs of 4."""
    run_settings = settings(workers=2, cpus_per_worker=2)
    first, second = (
        Job(number, TrialSpec(run_settings, tiny_store, tmp_path / str(number)), run_trial_under_ray, METRIC)
        for number in range(2)
    )
    actor = ray.remote(num_cpus=0)(TrialActor).remote({"job": first})
    for epoch in (1, 2):
        assert ray.get(actor.train.remote())["epoch"] == epoch
    time.sleep(1.0)
    assert len(read_metrics(first.spec.out)) == 2  # the workers wait for the decision
    assert until(lambda: free_cpus() == 0)  # Ray tells of it with a delay
    assert ray.get(actor.reset.remote({"job": second}))
    assert len(read_metrics(first.spec.out)) == 2
    assert until(lambda: free_cpus() == 4)
    results = [ray.get(actor.train.remote()) for _ in range(EPOCHS)]
    assert [result["epoch"] for result in results] == list(range(1, EPOCHS + 1))
    last = ray.get(actor.train.remote())
    assert (last["done"], last["outcome"]) == (True, "complete")
    check_equal_within_rounding(inline, second.spec.out)
    ray.get(actor.stop.remote())
    ray.kill(actor)


@pytest.mark.ray
@pytest.mark.usefixtures("all_is_released")
def test_an_actor_that_is_killed_takes_its_workers_along(tiny_store: Path, tmp_path: Path) -> None:
    """And what goes on with the trial has the folder for itself."""
    spec = TrialSpec(settings(workers=2, epochs=100_000), tiny_store, tmp_path / "run")
    actor = ray.remote(num_cpus=0)(TrialActor).remote({"job": Job(0, spec, run_trial_under_ray, METRIC)})
    ray.get(actor.train.remote())
    assert list(spec.out.glob(".placement-group-*"))
    ray.kill(actor)
    release_workers(spec.out)
    assert until(lambda: free_cpus() == 4)
    release_workers(spec.out)
    last = run_job(Job(0, spec, run_trial, METRIC), stop_at(5))
    assert (last["outcome"], last["epoch"]) == ("stopped", 5)
    assert [record["epoch"] for record in read_metrics(spec.out)] == [1, 2, 3, 4, 5]


def test_shares_of_gpus_reach_the_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """NCCL refuses two workers on one GPU: they send their sums by Gloo."""
    spec = TrialSpec(settings(workers=2, cpus_per_worker=3), tmp_path, tmp_path)
    for gpus, resources, backend in (
        (None, {"CPU": 3}, None),
        (0.0, {"CPU": 3}, None),
        (0.25, {"CPU": 3, "GPU": 0.25}, "gloo"),
        (2.0, {"CPU": 3, "GPU": 2.0}, None),
    ):
        scaling, torch_config = module._group(replace(spec, gpus=gpus))
        assert scaling.num_workers == 2
        assert scaling.use_gpu == ("GPU" in resources)
        assert scaling.resources_per_worker == resources
        assert torch_config.backend == backend
    monkeypatch.setattr(module, "choose_device", lambda _: torch.device("cuda"))
    assert module._group(spec)[0].resources_per_worker == {"CPU": 3, "GPU": 1}


def test_the_channel_is_polled_while_workers_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray: what `report` raises closes the channel, waits for the workers, and is raised then."""
    from moldistill.trial.channel import Workers, answer

    asked: queue.Queue[EpochReport] = queue.Queue()
    closed, said = threading.Event(), list[str]()

    class Remote:
        def __init__(self, call: Callable[..., Any]) -> None:
            self.remote = call

    class Fake:
        next = Remote(lambda seconds: asked.get(timeout=5) if not closed.is_set() else None)
        go_on = Remote(lambda: said.append("yes"))
        close = Remote(lambda: (said.append("no"), closed.set()))

    def work() -> None:
        asked.put(state(1))
        asked.put(state(2))
        closed.wait(10)
        said.append("ended")

    def report(told: EpochReport) -> None:
        if told.epoch == 2:
            raise Stopped

    monkeypatch.setattr(ray, "get", lambda value: value)
    with pytest.raises(Stopped):
        answer(Fake, report, Workers(work))
    assert said == ["yes", "no", "ended"]
