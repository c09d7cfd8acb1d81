"""Settings that the layers read: frozen dataclasses, one per concern, with their bounds beside them.

`core.config` builds strict YAML schemas from these classes, so that a bound or a default stands in one place.
This module imports nothing outside the standard library and `core`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from moldistill.core.layers import Layers, check_layers

Role = Literal["teacher", "student"]
Distance = Literal["mse", "smooth_l1", "l1", "cosine", "relational"]
FeatureScheme = Literal["none", "layer_norm", "standardize", "whiten", "unit"]
SizeScheme = Literal["sum", "molecule_mean", "coordinated", "power", "batch_mean", "dataset_mean", "gradient_matched"]
Shape = Literal["constant", "linear", "cosine", "warmup", "decay"]

ROOMY = 256
"""Atoms that always hold a molecule: larger ones have no graph in a store (`vocabulary.MAX_ATOMS`)."""


def bounded(
    default: Any, *, gt: float | None = None, ge: float | None = None, lt: float | None = None, le: float | None = None
) -> Any:
    """A field whose value must lie within the bounds."""
    bounds = {name: value for name, value in (("gt", gt), ("ge", ge), ("lt", lt), ("le", le)) if value is not None}
    return field(default=default, metadata=bounds)


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """A model of the registry.

    walks: return probabilities of random walks of up to so many steps join the atom tokens (0: none).
    Of teachers alone: kernels (Gaussian distance kernels); hydrogens (whether they are atoms, too); angles (whether
    pairs also know the angles at their atoms); denoising (weight of predicting the noise on the positions, which
    training.position_noise must then give).
    """

    name: str = "transformer"
    width: int = bounded(128, ge=8, le=2048)
    depth: int = bounded(6, ge=1, le=48)
    heads: int = bounded(8, ge=1, le=64)
    feedforward: float = bounded(2.0, gt=0, le=8)
    dropout: float = bounded(0.0, ge=0, lt=1)
    max_path: int = bounded(16, ge=1, le=254)
    walks: int = bounded(0, ge=0, le=32)
    kernels: int = bounded(32, ge=2, le=512)
    hydrogens: bool = False
    angles: bool = False
    denoising: float = bounded(0.0, ge=0, le=100)

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW with a linear warm-up over the share `warmup` of all steps, then a cosine to `final` × learning_rate.

    kind schedule_free: AdamW without a decay of the rate (arXiv 2405.15682); `final` and training.ema are not read, for
    its own mean of the weights is what is evaluated and kept.
    """

    kind: Literal["adamw", "schedule_free"] = "adamw"
    learning_rate: float = bounded(1e-3, gt=0, le=1)
    weight_decay: float = bounded(0.01, ge=0, le=10)
    beta1: float = bounded(0.9, ge=0, lt=1)
    beta2: float = bounded(0.98, ge=0, lt=1)
    clip_norm: float = bounded(1.0, gt=0)
    warmup: float = bounded(0.05, ge=0, lt=1)
    final: float = bounded(0.01, ge=0, le=1)


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How long, how, and on what a model is trained.

    Length: epochs; or steps (of the optimizer), which takes their place; or budget_seconds of training (of process CPU
    time, on a GPU of elapsed time), which a short trial turns into steps, once, at the start of the run.

    Batches: batch_size (molecules) is global: workers share it. atoms_per_batch, where given, takes its place, and
    batch_size is not read: as many molecules as keep the largest of them times their number within this many atoms, all
    workers together. accumulate: parts into which each worker cuts its batches, to need less memory.

    ema is the decay of the averaged weights, which are evaluated and kept. position_noise is the standard deviation (Å)
    of Gaussian noise on a teacher's training positions.

    precision auto: bf16 where the hardware multiplies it faster (GPU, AMX). compile: torch.compile; auto: for runs that
    a short trial foresees to take more than half an hour. deterministic: only kernels that repeat to the bit, on a GPU,
    too.

    A checkpoint is written every checkpoint_every epochs, and within an epoch every checkpoint_seconds (elapsed);
    keep_checkpoints of them stay. min_workers: how few workers may go on when no more can be had.

    folds: training rows are in so many parts (`core.hashing.fold_of`), and those of part `fold` (from 0) are left out.
    """

    epochs: int = bounded(20, ge=1, le=100_000)
    steps: int | None = bounded(None, ge=1)
    budget_seconds: float | None = bounded(None, gt=0)
    batch_size: int = bounded(64, ge=1, le=65_536)
    atoms_per_batch: int | None = bounded(None, ge=ROOMY)
    accumulate: int = bounded(1, ge=1, le=1024)
    seed: int = bounded(0, ge=0)
    folds: int | None = bounded(None, ge=2, le=100)
    fold: int = bounded(0, ge=0)
    ema: float = bounded(0.99, ge=0, lt=1)
    position_noise: float = bounded(0.0, ge=0, le=1)
    evaluate_every: int = bounded(1, ge=1)
    checkpoint_every: int = bounded(1, ge=1)
    checkpoint_seconds: float = bounded(300.0, ge=0)
    keep_checkpoints: int = bounded(2, ge=1, le=100)
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    compile: Literal["never", "auto", "always"] = "never"
    deterministic: bool = False
    workers: int = bounded(1, ge=1, le=4096)
    min_workers: int | None = bounded(None, ge=1)
    cpus_per_worker: int = bounded(1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_failures: int = bounded(2, ge=0)

    def __post_init__(self) -> None:
        if self.atoms_per_batch is not None and self.atoms_per_batch < ROOMY * self.workers:
            raise ValueError(
                f"atoms_per_batch {self.atoms_per_batch} is shared by {self.workers} workers, and each needs {ROOMY}: "
                f"give {ROOMY * self.workers} or more, or fewer workers"
            )
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is above workers {self.workers}")
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} is not below folds {self.folds}: they count from 0")

    @property
    def awaits_budget(self) -> bool:
        """Whether the number of steps is still to be found from a budget of seconds."""
        return self.budget_seconds is not None and self.steps is None

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps of the whole run."""
        return self.steps if self.steps is not None else self.epochs * steps_per_epoch

    @property
    def batching(self) -> dict[str, int]:
        """What `data.batches.epoch_batches` cuts batches by."""
        if self.atoms_per_batch is not None:
            return {"atoms_per_batch": self.atoms_per_batch}
        return {"batch_size": self.batch_size}


@dataclass(frozen=True, slots=True)
class TermSettings:
    """Weight of a loss term, and its schedule over training."""

    weight: float = bounded(0.0, ge=0, le=1000)
    schedule: Shape = "constant"
    until: float = bounded(0.2, gt=0, le=1)


@dataclass(frozen=True, slots=True)
class StateTermSettings(TermSettings):
    """A term between student and teacher states.

    layers: of the teacher: `all`, `last`, `every K` (each K-th, the last among them), or a list that counts from 1.
    student_layers: the student's layer for each of them; without it, the one at the same relative depth.
    head: the map from student to teacher states, `linear` or `mlp` (one hidden layer of the student's width).
    """

    layers: Layers = "all"
    student_layers: tuple[int, ...] | None = None
    head: Literal["linear", "mlp"] = "linear"
    distance: Distance = "smooth_l1"
    features: FeatureScheme = "standardize"

    def __post_init__(self) -> None:
        check_layers(self.layers)
        if self.student_layers is not None and (not self.student_layers or min(self.student_layers) < 1):
            raise ValueError(f"student_layers {list(self.student_layers)}: expected whole numbers from 1")


@dataclass(frozen=True, slots=True)
class AtomTermSettings(StateTermSettings):
    """The local term: how its weight falls with molecule size N.

    normalization: scheme for c(N), see `distill.normalization`. power: exponent p of the schemes `power` and
    `dataset_mean`. share: local gradient over global gradient that `gradient_matched` holds to.
    """

    normalization: SizeScheme = "coordinated"
    power: float = bounded(1.0, ge=-1, le=4)
    share: float = bounded(0.5, gt=0, le=100)


@dataclass(frozen=True, slots=True)
class PairTermSettings(TermSettings):
    """The geometry term: predict the binned 3D distance of each pair of atoms from the student's states."""

    bins: int = bounded(16, ge=2, le=256)
    max_distance: float = bounded(10.0, gt=0, le=100)


@dataclass(frozen=True, slots=True)
class DistillSettings:
    """Weights of the distillation terms beside the label's, which has weight 1.

    teachers: with several targets, each step learns from all of them (`averaged`: soft labels, and terms of states), or
    from one that is drawn (`sampled`).
    """

    prediction: TermSettings = field(default_factory=TermSettings)
    graph: StateTermSettings = field(default_factory=StateTermSettings)
    atom: AtomTermSettings = field(default_factory=AtomTermSettings)
    pair: PairTermSettings = field(default_factory=PairTermSettings)
    teachers: Literal["averaged", "sampled"] = "averaged"

    def __post_init__(self) -> None:
        matched = self.atom.weight > 0 and self.atom.normalization == "gradient_matched"
        if matched and self.graph.weight == 0:
            raise ValueError(
                "atom.normalization gradient_matched is relative to the global term: give graph.weight a value"
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether any term reads teacher targets (the pair term reads positions of the store)."""
        return self.prediction.weight > 0 or self.graph.weight > 0 or self.atom.weight > 0


def folders_of(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Folders that a key names: none, one, or a list."""
    return (value,) if isinstance(value, str) else tuple(value or ())


@dataclass(frozen=True, slots=True)
class RunSettings:
    """One training run. `targets` is the folder that `cache` wrote, for a distilled student, or a list of them."""

    role: Role = "student"
    model: ModelSettings = field(default_factory=ModelSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    targets: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.role == "teacher" and (self.distill.needs_teacher or self.distill.pair.weight > 0):
            raise ValueError("a teacher is not distilled: set every distill weight to 0, or role: student")
        if self.role == "teacher" and self.targets is not None:
            raise ValueError("a teacher reads no targets: remove the key, or set role: student")
        self._check_geometry()

    @property
    def target_folders(self) -> tuple[str, ...]:
        """Folders of the targets, none to many."""
        return folders_of(self.targets)

    def _check_geometry(self) -> None:
        model = self.model
        asked = [name for name in ("hydrogens", "angles", "denoising") if getattr(model, name)]
        if self.role == "student" and asked:
            raise ValueError(f"model.{asked[0]} is for teachers: a student sees no geometry")
        if model.denoising > 0 and self.training.position_noise == 0:
            raise ValueError("model.denoising predicts the noise on positions: set training.position_noise above 0")


@dataclass(frozen=True, slots=True)
class PrepareSettings:
    """How a source becomes a store. valid_3d is the share of training rows with positions that nothing trains on."""

    limit: int | None = bounded(None, ge=1)
    valid_3d: float = bounded(0.05, ge=0, le=0.5)
    seed: int = bounded(0, ge=0)
    target: str | None = None
    unit: Literal["ev", "hartree", "kcal/mol", "kj/mol", "none"] = "ev"


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """The whole way. `source`: `sample`, a root in PCQM4Mv2's layout, or a CSV of SMILES.

    teacher, student: run settings (`base` names a preset or a file). search: `space` names a search space; further keys
    replace those of the space.
    """

    source: str = "sample"
    prepare: PrepareSettings = field(default_factory=PrepareSettings)
    teacher: Mapping[str, Any] = field(default_factory=lambda: {"base": "teacher-tiny"})
    student: Mapping[str, Any] = field(default_factory=lambda: {"base": "student-tiny"})
    search: Mapping[str, Any] = field(default_factory=lambda: {"space": "smoke"})
