"""The training loop: a generator that yields after every epoch; its state can be saved after every step."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor

from moldistill.core.artifacts import hash_object
from moldistill.core.records import Batch
from moldistill.core.seeds import named_seed
from moldistill.core.settings import RunSettings
from moldistill.data.batches import epoch_batches
from moldistill.data.plan import batch_count
from moldistill.data.store import Store
from moldistill.data.targets import TargetStore
from moldistill.data.teachers import TeacherSet
from moldistill.distill.objective import Counts, Objective
from moldistill.models.registry import build_model
from moldistill.training.checkpoint import Checkpoint
from moldistill.training.collective import ALONE, Collective
from moldistill.training.evaluate import (
    MEASURED,
    forward,
    mean_absolute_error,
    target_scale,
    training_rows,
    wants_hydrogens,
)
from moldistill.training.noise import denoising_loss, noised
from moldistill.training.optim import AveragedWeights, build_optimizer, learning_rate
from moldistill.training.probe import Probe, is_due
from moldistill.training.steps import EpochSums, FiniteGuard, exact_kernels, parts


@dataclass(frozen=True, slots=True)
class EpochReport:
    """Figures after `epoch` epochs (counted from 1): MAE in eV, losses in training standard deviations.

    `evaluated` says whether the validation errors are among them.
    """

    epoch: int
    metrics: dict[str, float]
    evaluated: bool


AfterStep = Callable[[], None]

HELD_LOW = 0.1
"""Share of its weight below which a schedule holds a term back, so that its gradient tells nothing."""

NOT_THE_COURSE = (
    "workers",
    "min_workers",
    "accumulate",
    "cpus_per_worker",
    "device",
    "max_failures",
    "budget_seconds",
    "checkpoint_every",
    "checkpoint_seconds",
    "keep_checkpoints",
)
"""Training settings that may differ when a run is resumed: they change nothing, or no more than rounding."""


class Trainer:
    """Model, objective, optimizer and place in the data of one run on one worker."""

    def __init__(
        self,
        settings: RunSettings,
        store: Store,
        targets: TargetStore | TeacherSet | None = None,
        *,
        collective: Collective = ALONE,
        device: torch.device | None = None,
    ) -> None:
        self.settings, self.store, self.collective = settings, store, collective
        self.targets = TeacherSet.of(targets)
        self.device = device or torch.device("cpu")
        self.rows = training_rows(settings, store, self.targets)
        self.scale = target_scale(store)
        seed = settings.training.seed
        torch.manual_seed(named_seed(seed, "weights"))
        self.model = build_model(settings.role, settings.model).to(self.device)
        self.objective = Objective(
            settings.distill,
            self.scale,
            width=settings.model.width,
            depth=settings.model.depth,
            summaries=self.targets.summaries() if self.targets is not None else (),
            reduce=collective.sum,
        ).to(self.device)
        self.averaged = AveragedWeights(self.model, settings.training.ema)
        self.optimizer = build_optimizer([self.model, self.objective], settings.optimizer)
        self.parameters = [*self.model.parameters(), *self.objective.parameters()]
        self.guard = FiniteGuard(self.device, self.optimizer)
        self.epoch = self.step = 0
        self.seconds = 0.0
        self.now: Callable[[], float] = time.perf_counter if self.device.type == "cuda" else time.process_time
        self._since: float | None = None
        self.sums = EpochSums()
        self.probe: Probe | None = None
        self.steps_per_epoch = batch_count(store.size(self.rows), **settings.training.batching)
        # Compiled once per run; shapes change from batch to batch. The weights stay those of `model`.
        compiled = settings.training.compile == "always"
        self.called = cast(torch.nn.Module, torch.compile(self.model, dynamic=True)) if compiled else self.model

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the course of the run."""
        settings = asdict(self.settings) | {"targets": self.targets.identity if self.targets is not None else None}
        settings["training"] = {key: value for key, value in settings["training"].items() if key not in NOT_THE_COURSE}
        return hash_object([settings, self.store.identity])

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.settings.training.total_steps(self.steps_per_epoch)

    def fit(self, after_step: AfterStep | None = None) -> Iterator[EpochReport]:
        """Train from where the trainer stands to the last step; a report after every epoch, the last may be cut short.

        The state may be saved at every yield, and in `after_step`, which is called after every step.
        """
        training = self.settings.training
        while self.step < self.total_steps or self.sums.steps:  # a checkpoint may lie before the last report
            self._since = self.now()
            with exact_kernels(training.deterministic):
                self.run_epoch(after_step)
                ends = self.step == self.total_steps
                report = self.close_epoch(evaluate=ends or (self.epoch + 1) % training.evaluate_every == 0)
            yield report

    def close_epoch(self, *, evaluate: bool) -> EpochReport:
        """End the epoch under way where it stands, and report on it."""
        self._train_mode(False)
        metrics = self.sums.metrics()
        self.epoch, self.sums = self.epoch + 1, EpochSums()
        if evaluate:
            metrics |= self.evaluate()
        self.seconds, self._since = self._spent(), None
        return EpochReport(self.epoch, metrics | {"epoch": self.epoch, "cpu_seconds": self.seconds}, evaluate)

    def _spent(self) -> float:
        """Seconds of training so far, those of the epoch under way included."""
        return self.seconds + (self.now() - self._since if self._since is not None else 0.0)

    def run_epoch(self, after_step: AfterStep | None = None) -> None:
        """The rest of the epoch, from the batch where the trainer stands."""
        training, begun = self.settings.training, self.epoch * self.steps_per_epoch
        self._train_mode(True)
        batches = epoch_batches(
            self.store,
            self.rows,
            **training.batching,
            seed=training.seed,
            epoch=self.epoch,
            shuffle=True,
            rank=self.collective.rank,
            world_size=self.collective.world_size,
            targets=self.targets,
            start=self.step - begun,
            pin=self.device.type == "cuda",
            hydrogens=wants_hydrogens(self.model),
        )
        for batch in itertools.islice(batches, self.total_steps - self.step):
            self.take_step(batch.to(self.device, non_blocking=True))
            if self.sums.steps == 1 and self.collective.leads and is_due(self.epoch, self.steps_per_epoch):
                self.sums.shares = self.shares()
            if after_step is not None:
                after_step()
        self.guard.check()

    def _train_mode(self, training: bool) -> None:
        """Dropout on or off; a schedule-free optimizer exchanges the weights that move for their mean."""
        self._dropping(training)
        if self.settings.optimizer.kind == "schedule_free":
            cast(Any, self.optimizer).train() if training else cast(Any, self.optimizer).eval()
            if not training:
                self.averaged.take(self.model)

    def _dropping(self, on: bool) -> None:
        self.model.train(on)
        self.objective.train(on)

    def take_step(self, batch: Batch) -> None:
        """One step of the optimizer on this worker's part of a global batch, which lies on the device."""
        rate = self._set_rate()
        # Drawn from the place, not from a stream: a run goes on in the middle of an epoch as if nothing had been.
        torch.manual_seed(named_seed(self.settings.training.seed, "dropout", self.step, self.collective.rank))
        counts = Counts.from_tensor(self.collective.sum(Counts.of(batch)))
        self.optimizer.zero_grad(set_to_none=True)
        names: tuple[str, ...] = ()
        values = torch.zeros(0, device=self.device)
        for part in parts(batch, self.settings.training.accumulate):
            if not len(part.target) and self.collective.world_size == 1:
                continue
            terms = self._terms(part.widened(), counts, self.called)
            stacked = torch.stack(list(terms.values()))
            stacked.sum().backward()  # type: ignore[no-untyped-call]
            values = stacked.detach() if not names else values + stacked.detach()
            names = tuple(terms)
        self._descend(names, values, rate)

    def shares(self) -> dict[str, float]:
        """What each term has of the gradient, see `Probe.shares`; terms that their schedule holds low are left out."""
        weights = self.objective.weights(self.step / self.total_steps, relative=True)

        def terms(batch: Batch, counts: Counts) -> dict[str, Tensor]:
            found = self._terms(batch, counts, self.model)
            return {name: term for name, term in found.items() if weights.get(name, 1.0) >= HELD_LOW}

        if not self.objective.terms and not self.settings.model.denoising:  # the label is alone
            return {}
        self.probe = self.probe or Probe(self.store, self.rows, self.targets, self.settings.training.seed)
        self._dropping(False)
        found = self.probe.shares(
            terms, list(self.model.parameters()), hydrogens=wants_hydrogens(self.model), device=self.device
        )
        self._dropping(True)
        return found

    def _terms(self, batch: Batch, counts: Counts, model: torch.nn.Module) -> dict[str, Tensor]:
        training, weight = self.settings.training, self.settings.model.denoising
        noise: Tensor | None = None
        if self.settings.role == "teacher" and training.position_noise > 0:
            batch, noise = noised(batch, std=training.position_noise, seed=training.seed, epoch=self.epoch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=training.precision == "bf16"):
            output = forward(model, self.settings.role, batch)
        terms: dict[str, Tensor] = self.objective(output, batch, counts, self.step / self.total_steps)
        if noise is not None and output.noise is not None:
            error = denoising_loss(output.noise, noise, batch, training.position_noise)
            terms["denoising"] = weight * error / counts.positions
        return terms

    def _set_rate(self) -> float:
        rate = learning_rate(self.settings.optimizer, self.step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _descend(self, names: Sequence[str], values: Tensor, rate: float) -> None:
        """The optimizer's step on the gradients that are there; `values` are the terms of this worker's part."""
        values = self.collective.sum_gradients(self.parameters, values)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.optimizer.clip_norm)
        self.guard.see(norm, self.step, names, values)
        self.optimizer.step()
        if self.settings.optimizer.kind == "adamw":
            self.averaged.update(self.model, self.step)
        self.sums.add(names, values, rate)
        self.step += 1

    def evaluate(self) -> dict[str, float]:
        """MAE in eV of the averaged weights on the splits that the role can read."""
        found = {}
        for name, split in MEASURED[self.settings.role].items():
            error = mean_absolute_error(
                self.averaged.model,
                self.store,
                split,
                role=self.settings.role,
                scale=self.scale,
                device=self.device,
                collective=self.collective,
                atoms_per_batch=self.settings.training.atoms_per_batch,
            )
            if error is not None:
                found[name] = error
        return found

    def _parts(self) -> dict[str, torch.nn.Module | torch.optim.Optimizer]:
        return {
            "model": self.model,
            "averaged": self.averaged.model,
            "objective": self.objective,
            "optimizer": self.optimizer,
        }

    def checkpoint(self) -> Checkpoint:
        """Everything that the rest of the run depends on. RunError where a gradient was not finite."""
        self.guard.check()
        states = {name: part.state_dict() for name, part in self._parts().items()}
        return Checkpoint(self.fingerprint, self.epoch, self.step, self._spent(), states, self.sums.state())

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this run."""
        for name, part in self._parts().items():
            part.load_state_dict(checkpoint.states[name])
        self.epoch, self.step, self.seconds = checkpoint.epoch, checkpoint.step, checkpoint.seconds
        self.sums = EpochSums.of(checkpoint.sums, self.device)
