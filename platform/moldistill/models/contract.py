"""What every model promises to the training loop, checked on a model of anybody's registry.

``check_model("student", ModelSettings(name="my-model", width=32, depth=3, heads=4))`` builds the model and returns the
promises that it breaks, in words. Small settings are enough, and take a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from moldistill.core.records import Batch, ModelOutput
from moldistill.core.settings import ModelSettings, Role
from moldistill.models.made_up import made_up_batch, moved, part, reordered, widened
from moldistill.models.registry import build_model

Builder = Callable[[], nn.Module]


def check_model(role: Role, settings: ModelSettings) -> list[str]:
    """The promises that the registered model `settings.name` breaks with these settings; none for a sound model."""
    return broken_promises(partial(build_model, role, settings), role, settings)


def broken_promises(build: Builder, role: Role, settings: ModelSettings) -> list[str]:
    """As `check_model`, of whatever `build` makes. Torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        try:
            subject = Subject.of(build, role, settings)
        except Exception as error:  # whatever a stranger's model may do
            return [f"it can be built and called ({_said(error)})"]
        broken = []
        for promise, kept in PROMISES.items():
            try:
                reason = "" if kept(subject) else promise
            except Exception as error:
                reason = f"{promise} ({_said(error)})"
            if reason:
                broken.append(reason)
    return broken


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@dataclass(frozen=True)
class Subject:
    """A model in evaluation mode, in double precision where it can be, so that symmetry is told from rounding."""

    build: Builder
    role: Role
    settings: ModelSettings
    model: nn.Module
    dtype: torch.dtype

    @classmethod
    def of(cls, build: Builder, role: Role, settings: ModelSettings) -> Subject:
        """Build the model, and call it once."""
        for kind in (torch.float64, torch.float32):
            torch.manual_seed(0)
            subject = cls(build, role, settings, build().to(kind).eval(), kind)
            try:
                subject.run(subject.batch)
            except Exception:
                if kind == torch.float32:
                    raise
            else:
                return subject
        raise AssertionError("unreachable")

    @property
    def batch(self) -> Batch:
        """Six molecules."""
        return made_up_batch(self.dtype)

    def run(self, batch: Batch, model: nn.Module | None = None) -> ModelOutput:
        """The output on what the role may see, as the training loop calls a model."""
        model = self.model if model is None else model
        given: tuple[object, ...] = (batch.molecules,) if self.role == "student" else (batch.molecules, batch.positions)
        if self.role == "teacher" and getattr(model, "hydrogens", False):
            given = (*given, batch.hydrogens)
        output: ModelOutput = model(*given)
        return output

    def near(self, one: Tensor, other: Tensor) -> bool:
        """Whether both are equal but for rounding, and finite."""
        tolerance = 1e-6 if self.dtype == torch.float64 else 2e-3
        return bool(torch.isfinite(one).all()) and torch.allclose(one, other, rtol=tolerance, atol=tolerance)

    def same(self, one: ModelOutput, other: ModelOutput, real: Tensor, places: Tensor | None = None) -> bool:
        """Whether predictions and states are near each other; of atoms, those that are `real`.

        places: of each atom of `other`, its place in `one`, where they differ.
        """

        def alike(mine: Tensor, yours: Tensor) -> bool:
            if places is not None:
                mine = mine.gather(1, places[..., None].expand(-1, -1, mine.shape[2]))
            return self.near(mine[real], yours[:, : real.shape[1]][real])

        atoms = zip(one.atom_states, other.atom_states, strict=True)
        graphs = zip(one.graph_states, other.graph_states, strict=True)
        return (
            self.near(one.prediction, other.prediction)
            and all(self.near(mine, yours) for mine, yours in graphs)
            and all(alike(mine, yours) for mine, yours in atoms)
            and (one.noise is None or other.noise is None or alike(one.noise, other.noise))
        )


def _shapes(subject: Subject) -> bool:
    """Of an output on six molecules."""
    settings, output = subject.settings, subject.run(subject.batch)
    count, atoms = subject.batch.positions.shape[:2]
    return (
        output.prediction.shape == (count,)
        and [state.shape for state in output.graph_states] == [(count, settings.width)] * settings.depth
        and [state.shape for state in output.atom_states] == [(count, atoms, settings.width)] * settings.depth
    )


def _repeats(subject: Subject) -> bool:
    return subject.same(subject.run(subject.batch), subject.run(subject.batch), subject.batch.molecules.real)


def _order(subject: Subject) -> bool:
    batch = subject.batch
    real = batch.molecules.real
    keys = torch.rand(real.shape, generator=torch.Generator().manual_seed(1)).masked_fill(~real, 2.0)
    order = keys.argsort(1)
    return subject.same(subject.run(batch), subject.run(reordered(batch, order)), real, order)


def _padding(subject: Subject) -> bool:
    """Also of gradients, which would take a NaN from a position that counts for nothing."""
    batch, wide = subject.batch, widened(subject.batch, 4)
    before, after = subject.run(batch), subject.run(wide)
    silent = after.noise is None or not bool(after.noise[~wide.molecules.real].any())
    return silent and subject.same(before, after, batch.molecules.real) and not _bad_gradients(subject, wide)


def _neighbours(subject: Subject) -> bool:
    batch = subject.batch
    together = subject.run(batch)
    for place in range(len(batch.target)):
        chosen = slice(place, place + 1)
        alone = part(batch, chosen)
        size = alone.positions.shape[1]
        mine = ModelOutput(
            together.prediction[chosen],
            tuple(state[chosen] for state in together.graph_states),
            tuple(state[chosen, :size] for state in together.atom_states),
            None if together.noise is None else together.noise[chosen, :size],
        )
        if not subject.same(mine, subject.run(alone), alone.molecules.real):
            return False
    return True


def _states_of(output: ModelOutput) -> list[Tensor]:
    """Everything that may enter a loss; what stands in padding does not."""
    noise = [] if output.noise is None else [output.noise]
    return [output.prediction, *output.graph_states, *noise]


def _bad_gradients(subject: Subject, batch: Batch, unreached: bool = False) -> list[str]:
    """Parameters whose gradient is not finite, or, where asked for, missing; and the output, where that is not."""
    model, real = subject.model, batch.molecules.real
    model.zero_grad(set_to_none=True)
    output = subject.run(batch)
    values = [*_states_of(output), *(state[real] for state in output.atom_states)]
    bad = [] if all(bool(torch.isfinite(value).all()) for value in values) else ["output"]
    loss = torch.stack([value.square().sum() for value in ([output.prediction] if unreached else values)]).sum()
    if unreached and output.noise is not None:
        loss = loss + output.noise.square().sum()
    loss.backward()  # type: ignore[no-untyped-call]  # torch's stubs
    for name, parameter in model.named_parameters():
        missing = parameter.grad is None
        if (missing and unreached) or (parameter.grad is not None and not torch.isfinite(parameter.grad).all()):
            bad.append(name)
    return bad


def _gradients(subject: Subject) -> bool:
    """DistributedDataParallel waits for every one of them."""
    bad = _bad_gradients(subject, subject.batch, unreached=True)
    if bad:
        raise ValueError(", ".join(bad))
    return True


def _single_atom(subject: Subject) -> bool:
    return not _bad_gradients(subject, made_up_batch(subject.dtype, [1]))


def _no_molecules(subject: Subject) -> bool:
    """Also backward: a worker that has no molecules of a batch takes the step as all others do."""
    none = part(subject.batch, slice(0, 0))
    output = subject.run(none)
    lengths = [len(value) for value in (*_states_of(output), *output.atom_states)]
    return not any(lengths) and not _bad_gradients(subject, none)


def _coincident(subject: Subject) -> bool:
    batch = subject.batch
    return not _bad_gradients(subject, moved(batch, torch.zeros(3, 3, dtype=subject.dtype), torch.zeros(3)))


def _reloads(subject: Subject) -> bool:
    torch.manual_seed(1)
    other = subject.build().to(subject.dtype).eval()
    other.load_state_dict(subject.model.state_dict())
    batch = subject.batch
    return subject.same(subject.run(batch), subject.run(batch, other), batch.molecules.real)


def _turned(subject: Subject, turn: Tensor) -> bool:
    """Outputs are those of the batch that was not turned and moved, and the noise turns with it."""
    if subject.role == "student":
        return True
    batch, turn = subject.batch, turn.to(subject.dtype)
    here = subject.run(batch)
    there = subject.run(moved(batch, turn, torch.tensor([5.0, -3.0, 40.0], dtype=subject.dtype)))
    if here.noise is not None:
        here = replace(here, noise=here.noise @ turn.T)
    return subject.same(here, there, batch.molecules.real)


def _rotation(subject: Subject) -> bool:
    skew = torch.tensor([[0.0, 0.7, -0.2], [-0.7, 0.0, 1.1], [0.2, -1.1, 0.0]], dtype=torch.float64)
    return _turned(subject, torch.linalg.matrix_exp(skew))


def _reflection(subject: Subject) -> bool:
    return _turned(subject, torch.diag(torch.tensor([1.0, 1.0, -1.0])))


def _reads_geometry(subject: Subject) -> bool:
    """Of the molecules with more than one atom: all of them change when they are stretched."""
    if subject.role == "student":
        return True
    batch = subject.batch
    stretched = moved(batch, 1.3 * torch.eye(3, dtype=subject.dtype), torch.zeros(3))
    change = (subject.run(batch).prediction - subject.run(stretched).prediction).detach().abs()
    return bool((change[batch.molecules.size > 1] > 1e-8).all())


def _keeps_options(subject: Subject) -> bool:
    """Hydrogens and denoising, where a teacher's settings ask for them."""
    if subject.role == "student":
        return True
    settings, noise = subject.settings, subject.run(subject.batch).noise
    reads = bool(getattr(subject.model, "hydrogens", False))
    shape = subject.batch.positions.shape
    return settings.hydrogens == reads and (
        noise is not None and noise.shape == shape if settings.denoising > 0 else noise is None
    )


PROMISES: dict[str, Callable[[Subject], bool]] = {
    "prediction, graph states and atom states have the shapes of the settings": _shapes,
    "in evaluation the same batch gives the same output": _repeats,
    "the order of atoms does not matter": _order,
    "padding leaks into nothing, whatever stands in it": _padding,
    "a molecule does not see its neighbours in the batch": _neighbours,
    "gradients reach every parameter and are finite": _gradients,
    "a molecule of one atom is read": _single_atom,
    "a batch of no molecules is read": _no_molecules,
    "atoms at one place give finite outputs and gradients": _coincident,
    "the state_dict is all that a model knows": _reloads,
    "a rotation or translation changes nothing but turns the noise": _rotation,
    "a reflection changes nothing but mirrors the noise": _reflection,
    "a teacher reads the geometry": _reads_geometry,
    "a teacher has the attribute `hydrogens` and gives noise just when its settings ask for it": _keeps_options,
}
"""Every promise, and its check."""
