"""Memory that runs out: how it is recognised, what is given back, in how many parts to go on, and who need not try."""

from __future__ import annotations

import gc
import re
import traceback
from collections.abc import Sequence
from dataclasses import replace

import torch

from moldistill.core.errors import RunError
from moldistill.core.settings import (
    AtomTermSettings,
    PairTermSettings,
    RunSettings,
    StateTermSettings,
    TermSettings,
    TrainingSettings,
)

MOST_PARTS = 64
"""Parts of a batch beyond which a run is not cut further: what does not fit then will not fit."""

# `out of memory?`, as one may say of a process that died, is a guess.
_SIGNS = re.compile(
    r"out of memory(?!\?)|can't allocate memory|cannot allocate memory|DefaultCPUAllocator|OutOfMemoryError|MemoryError"
    r"|\bbad_alloc\b|low on memory|CUBLAS_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)


class TooLargeError(RunError):
    """A run that does not fit into memory, as a worker of Ray Train has it told."""


def memory_reason(text: str) -> bool:
    """Whether the text of an error, or Ray's word on a process that it killed, says that memory ran out."""
    return _SIGNS.search(text) is not None


def is_memory_error(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on a GPU or in the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | TooLargeError):
        return True
    return isinstance(error, RuntimeError | OSError) and memory_reason(str(error))


def release_memory(error: BaseException) -> None:
    """Give back what a run that failed still holds: the tensors in the frames of its error, and PyTorch's reserves."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def limit_gpu_memory(share: float | None) -> None:
    """Let this process's tensors take no more than a share of its GPU's memory (None: all); without a GPU nothing.

    What CUDA itself takes, some hundred megabytes per process, comes on top.
    """
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share if share is not None else 1.0)


def most_parts(training: TrainingSettings) -> int:
    """The most parts that a worker's batches are cut into: single molecules, and no more than MOST_PARTS."""
    if training.atoms_per_batch is not None:
        return MOST_PARTS
    return min(MOST_PARTS, -(-training.batch_size // training.workers))


def in_more_parts(settings: RunSettings) -> RunSettings | None:
    """The same run with batches in twice as many parts, which need half the memory; None where they are at the end."""
    training, most = settings.training, most_parts(settings.training)
    if training.accumulate >= most:
        return None
    return replace(settings, training=replace(training, accumulate=min(2 * training.accumulate, most)))


def known_too_large(settings: RunSettings, failed: Sequence[RunSettings]) -> int | None:
    """Which of the configurations that ran out of memory needs no more than `settings`, by its place; None if none.

    What fails for the smaller will fail for the larger: it need not be tried.
    """
    return next((place for place, one in enumerate(failed) if needs_no_more(one, settings)), None)


def needs_no_more(one: RunSettings, other: RunSettings) -> bool:
    """Whether `one` needs no more memory than `other`, as can be told key by key; False where it cannot be told.

    Equal must be role, model, optimizer, precision, compilation, device, the targets, and how distilled terms compare
    states. No larger may be width, depth, heads, feed-forward, kernels, walks and paths of the model, the batch (of the
    same kind), and of each term its layers or bins; nothing may be added: hydrogens, angles, denoising, noise, dropout,
    a term. No fewer may be workers and parts (`accumulate`) that share a batch. All else does not matter.
    """
    same, amounts = _same(one) == _same(other), zip(_amounts(one), _amounts(other), strict=True)
    if not same or any(mine > theirs for mine, theirs in amounts):
        return False
    if one.target_folders and one.target_folders != other.target_folders:
        return False
    mine, theirs = one.distill, other.distill
    pairs = ((mine.prediction, theirs.prediction), (mine.graph, theirs.graph), (mine.atom, theirs.atom))
    return all(_term_no_more(*pair) for pair in (*pairs, (mine.pair, theirs.pair)))


def _same(settings: RunSettings) -> tuple[object, ...]:
    training = settings.training
    return (
        settings.role,
        settings.model.name,
        settings.optimizer.kind,
        training.precision,
        training.compile,
        training.device,
        training.atoms_per_batch is None,
        settings.distill.teachers,
    )


def _amounts(settings: RunSettings) -> tuple[float, ...]:
    model, training = settings.model, settings.training
    return (
        model.width,
        model.depth,
        model.heads,
        model.feedforward,
        model.kernels,
        model.walks,
        model.max_path,
        model.hydrogens,
        model.angles,
        model.denoising > 0,
        model.dropout > 0,
        training.position_noise > 0,
        training.atoms_per_batch or training.batch_size,
        -training.accumulate,
        -training.workers,
    )


def _term_no_more(one: TermSettings, other: TermSettings) -> bool:
    if one.weight == 0:
        return True
    if other.weight == 0:
        return False
    if isinstance(one, PairTermSettings) and isinstance(other, PairTermSettings):
        return one.bins <= other.bins
    if not isinstance(one, StateTermSettings) or not isinstance(other, StateTermSettings):
        return True
    if isinstance(one, AtomTermSettings) and isinstance(other, AtomTermSettings):
        matched = [term.normalization == "gradient_matched" for term in (one, other)]
        if matched[0] > matched[1]:
            return False
    alike = (one.distance, one.features) == (other.distance, other.features)
    return alike and (one.head == "linear" or other.head == "mlp") and _layers_no_more(one.layers, other.layers)


def _layers_no_more(one: str | tuple[int, ...], other: str | tuple[int, ...]) -> bool:
    """Whether `one` names no more layers than `other`, of a model of any depth."""
    if one == other or one == "last" or other == "all":
        return True
    if isinstance(one, str) or isinstance(other, str):
        steps = [int(layers.split()[1]) for layers in (one, other) if isinstance(layers, str) and " " in layers]
        return len(steps) == 2 and steps[0] >= steps[1]
    return len(one) <= len(other)
