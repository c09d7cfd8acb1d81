"""The training loop: a generator that yields after every epoch; its state can be saved and restored in between."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moldistill.core.artifacts import hash_object
from moldistill.core.errors import InputError, RunError
from moldistill.core.records import Batch
from moldistill.core.seeds import named_seed
from moldistill.core.settings import RunSettings
from moldistill.data.batches import epoch_batches
from moldistill.data.plan import batch_count
from moldistill.data.store import Store
from moldistill.data.targets import TargetStore
from moldistill.distill.diagnostics import gradient_shares
from moldistill.distill.objective import Counts, Objective
from moldistill.models.registry import build_model
from moldistill.training.checkpoint import Checkpoint
from moldistill.training.collective import ALONE, Collective
from moldistill.training.evaluate import forward, mean_absolute_error, readable, target_scale
from moldistill.training.optim import AveragedWeights, build_optimizer, learning_rate


@dataclass(frozen=True, slots=True)
class EpochReport:
    """Figures after `epoch` epochs (counted from 1): MAE in eV, losses in training standard deviations.

    `evaluated` says whether the validation errors are among them.
    """

    epoch: int
    metrics: dict[str, float]
    evaluated: bool


@dataclass(slots=True)
class _Sums:
    """Running sums of an epoch."""

    loss: float = 0.0
    steps: int = 0
    terms: dict[str, float] = field(default_factory=dict)

    def add(self, terms: dict[str, Tensor]) -> None:
        self.steps += 1
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + float(value.detach())

    def metrics(self) -> dict[str, float]:
        means = {f"loss_{name}": value / self.steps for name, value in self.terms.items()}
        return {"train_loss": sum(means.values())} | means


class Trainer:
    """Model, objective, optimizer and place in the data of one run on one worker."""

    def __init__(
        self,
        settings: RunSettings,
        store: Store,
        targets: TargetStore | None = None,
        *,
        collective: Collective = ALONE,
        device: torch.device | None = None,
    ) -> None:
        self.settings, self.store, self.targets, self.collective = settings, store, targets, collective
        self.device = device or torch.device("cpu")
        self.rows = training_rows(settings, store, targets)
        self.scale = target_scale(store)
        seed = settings.training.seed
        torch.manual_seed(named_seed(seed, "weights"))
        self.model = build_model(settings.role, settings.model).to(self.device)
        self.objective = Objective(
            settings.distill,
            self.scale,
            width=settings.model.width,
            depth=settings.model.depth,
            summary=targets.summary() if targets is not None else None,
            reduce=collective.sum,
        ).to(self.device)
        self.averaged = AveragedWeights(self.model, settings.training.ema)
        self.optimizer = build_optimizer([self.model, self.objective], settings.optimizer)
        self.parameters = [*self.model.parameters(), *self.objective.parameters()]
        torch.manual_seed(named_seed(seed, "dropout", collective.rank))
        self.epoch = self.step = 0
        self.seconds = 0.0
        self.steps_per_epoch = batch_count(store.size(self.rows), **settings.training.batching)

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the course of the run."""
        targets = self.targets.identity if self.targets is not None else None
        settings = asdict(self.settings) | {"targets": targets}
        return hash_object([settings, self.store.identity, self.collective.world_size])

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.settings.training.epochs * self.steps_per_epoch

    def fit(self) -> Iterator[EpochReport]:
        """Train from where the trainer stands to the last epoch; the state may be saved at every yield."""
        training = self.settings.training
        while self.epoch < training.epochs:
            start = time.process_time()
            metrics = self._epoch()
            self.epoch += 1
            evaluated = self.epoch % training.evaluate_every == 0 or self.epoch == training.epochs
            if evaluated:
                metrics |= self.evaluate()
            self.seconds += time.process_time() - start
            yield EpochReport(self.epoch, metrics | {"epoch": self.epoch, "cpu_seconds": self.seconds}, evaluated)

    def _epoch(self) -> dict[str, float]:
        training, sums = self.settings.training, _Sums()
        self.model.train()
        self.objective.train()
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
            pin=self.device.type == "cuda",
        )
        shares: dict[str, float] = {}
        rate = 0.0
        for batch in batches:
            rate = self._set_rate()
            terms = self._terms(batch.to(self.device, non_blocking=True).widened())
            if sums.steps == 0 and len(terms) > 1:
                shares = gradient_shares(terms, list(self.model.parameters()))
            self._descend(terms)
            sums.add(terms)
        metrics = self._over_workers(sums) | {"learning_rate": rate}
        return metrics | {f"share_{name}": share for name, share in shares.items()}

    def _over_workers(self, sums: _Sums) -> dict[str, float]:
        """Terms are parts of a global mean: their sums over workers are the whole."""
        metrics = sums.metrics()
        values = torch.tensor(list(metrics.values()), dtype=torch.float64, device=self.device)
        return dict(zip(metrics, self.collective.sum(values).tolist(), strict=True))

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        if self.settings.role == "teacher":
            batch = self._noised(batch)
        bf16 = self.settings.training.precision == "bf16"
        counts = Counts.from_tensor(self.collective.sum(Counts.of(batch)))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            output = forward(self.model, self.settings.role, batch)
        terms: dict[str, Tensor] = self.objective(output, batch, counts, self.step / self.total_steps)
        return terms

    def _noised(self, batch: Batch) -> Batch:
        """Gaussian noise on the positions, drawn anew for every step and worker from a seed of its own."""
        noise = self.settings.training.position_noise
        if noise == 0:
            return batch
        seed = named_seed(self.settings.training.seed, "noise", self.step, self.collective.rank)
        generator = torch.Generator().manual_seed(seed)
        shift = torch.randn(batch.positions.shape, generator=generator).to(self.device) * noise
        return Batch(batch.molecules, batch.target, batch.positions + shift, batch.has_positions, batch.teacher)

    def _set_rate(self) -> float:
        rate = learning_rate(self.settings.optimizer, self.step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _descend(self, terms: dict[str, Tensor]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        self.collective.sum_gradients(self.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.optimizer.clip_norm)
        if not bool(norm.isfinite()):
            values = ", ".join(f"{name} {float(value.detach()):g}" for name, value in terms.items())
            raise RunError(
                f"training diverged at step {self.step} (epoch {self.epoch + 1})",
                got=f"a gradient that is not finite; terms: {values}",
                remedy="lower optimizer.learning_rate or the weight of the term that is not finite",
            )
        self.optimizer.step()
        self.averaged.update(self.model, self.step)
        self.step += 1

    def evaluate(self) -> dict[str, float]:
        """MAE in eV of the averaged weights on the splits that the role can read."""
        splits = {"valid_3d_mae": "valid-3d"}
        if self.settings.role == "student":
            splits["valid_mae"] = "valid"
        found = {}
        for name, split in splits.items():
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
        """Everything that the rest of the run depends on."""
        states = {name: part.state_dict() for name, part in self._parts().items()}
        rng = [torch.get_rng_state()]
        if self.device.type == "cuda":
            rng.append(torch.cuda.get_rng_state(self.device))
        return Checkpoint(self.fingerprint, self.epoch, self.step, self.seconds, states, rng)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this run."""
        for name, part in self._parts().items():
            part.load_state_dict(checkpoint.states[name])
        self.epoch, self.step, self.seconds = checkpoint.epoch, checkpoint.step, checkpoint.seconds
        if self.collective.rank == 0:
            torch.set_rng_state(checkpoint.rng[0])
            if self.device.type == "cuda" and len(checkpoint.rng) > 1:
                torch.cuda.set_rng_state(checkpoint.rng[1], self.device)
        else:
            torch.manual_seed(named_seed(self.settings.training.seed, "dropout", self.collective.rank, self.step))


def training_rows(settings: RunSettings, store: Store, targets: TargetStore | None) -> NDArray[np.int64]:
    """Rows to train on: of the split `train`, readable by the role, with a label or (for students) teacher targets."""
    rows: NDArray[np.int64] = readable(store, store.rows("train"), settings.role)
    useful = np.isfinite(store.target[rows])
    if targets is not None:
        useful |= np.isin(rows, targets.rows)
    rows = rows[useful]
    if not len(rows) or not np.isfinite(store.target[rows]).any():
        needs = "labels and positions" if settings.role == "teacher" else "labels"
        raise InputError(
            f"{store.path} has no training rows with {needs}",
            got=f"{len(store.rows('train')):,} rows in the split train",
            expected=f"rows of the split train with {needs}",
            remedy="prepare a source that has them (teachers need the SDF of a root)",
        )
    return rows
