"""Terms between states: global on the graph token, local on the atoms, at chosen layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from moldistill.core.errors import InputError
from moldistill.core.layers import Layers, named_layers
from moldistill.core.records import TeacherTargets
from moldistill.core.settings import AtomTermSettings, StateTermSettings
from moldistill.core.shapes import Bool, Float, Int
from moldistill.data.targets import StateStatistics, TargetSummary
from moldistill.distill.distances import channel_distance, relational_distance
from moldistill.distill.normalization import GradientMatcher, normalize_states, size_weights
from moldistill.models.fused import Linear


def chosen_layers(layers: Layers, summary: TargetSummary) -> list[int]:
    """Places of the wanted teacher layers among those that were kept; of all and of every K-th, those that there are.

    InputError for a layer that the cache did not keep.
    """
    wanted = named_layers(layers, summary.depth)
    if layers == "last":
        wanted = summary.layers[-1:]
    elif isinstance(layers, str):
        wanted = tuple(layer for layer in wanted if layer in summary.layers)
    missing = [layer for layer in wanted if layer not in summary.layers]
    if missing or not wanted:
        raise InputError(
            "distill: these layers are not in the teacher's targets",
            got=missing or layers,
            expected=f"some of {list(summary.layers)}",
            remedy="change `layers`, or cache the teacher again with them",
        )
    return [summary.layers.index(layer) for layer in wanted]


def partner(teacher_layer: int, teacher_depth: int, student_depth: int) -> int:
    """Student layer (counted from 1) at the same relative depth as a teacher's layer (counted from 1)."""
    return max(1, round(teacher_layer * student_depth / teacher_depth))


def partners(settings: StateTermSettings, chosen: Sequence[int], teacher_depth: int, depth: int) -> list[int]:
    """The student's layer for each chosen teacher layer: as the settings say, else at the same relative depth.

    InputError where the settings name another number of layers, or one that the student has not.
    """
    named = settings.student_layers
    if named is None:
        return [partner(layer, teacher_depth, depth) for layer in chosen]
    if len(named) != len(chosen) or max(named) > depth:
        raise InputError(
            "distill: student_layers do not fit",
            got=list(named),
            expected=f"{len(chosen)} layers (one for each of the teacher's {list(chosen)}), from 1 to {depth}",
            remedy="change `student_layers`, or remove the key: layers then meet at the same relative depth",
        )
    return list(named)


def projection(head: str, width: int, out: int) -> nn.Module:
    """The learned map from student to teacher states."""
    if head == "linear":
        return Linear(width, out)
    return nn.Sequential(Linear(width, width), nn.GELU(), Linear(width, out))


class _StateTerm(nn.Module):
    """Layers, projections and statistics that both kinds of term share."""

    def __init__(
        self, settings: StateTermSettings, width: int, depth: int, summary: TargetSummary, statistics: StateStatistics
    ) -> None:
        super().__init__()
        self.settings = settings
        self.places = chosen_layers(settings.layers, summary)
        chosen = [summary.layers[place] for place in self.places]
        self.partners = partners(settings, chosen, summary.depth, depth)
        self.projections = nn.ModuleList(projection(settings.head, width, summary.width) for _ in self.places)
        for name in ("mean", "std", "whitening"):
            self.register_buffer(name, getattr(statistics, name), persistent=False)

    def pairs(
        self,
        student: tuple[Tensor, ...],
        teacher: Float[Tensor, "layers *rest width"],
        real: Bool[Tensor, "*rest"],
    ) -> list[tuple[Tensor, Tensor]]:
        """Projected and normalized student and teacher states of each chosen layer, both 0 where not `real`.

        Whatever stands there, even NaN, must not reach a distance: 0 times its derivative would still be NaN.
        """
        statistics = StateStatistics(self.get_buffer("mean"), self.get_buffer("std"), self.get_buffer("whitening"))
        found = []
        for place, layer, project in zip(self.places, self.partners, self.projections, strict=True):
            ours = project(torch.where(real[..., None], student[layer - 1], 0.0)).float()
            theirs = torch.where(real[..., None], teacher[place], 0.0)
            found.append(normalize_states(self.settings.features, ours, theirs, statistics, place))
        return found

    def gradient_norm(self, distance: Callable[[Tensor, Tensor], Tensor], pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Norm per state of the distance's derivative with respect to the student's side, a mean over layers."""
        norms = []
        with torch.enable_grad():
            for ours, theirs in pairs:
                free = ours.detach().requires_grad_()
                (slope,) = torch.autograd.grad(distance(free, theirs).sum(), free)
                norms.append(slope.norm(dim=-1))
        return torch.stack(norms).mean(0)


class GraphTerm(_StateTerm):
    """Σ over known molecules of mean_l D(P_l s_l, t_l)."""

    def __init__(self, settings: StateTermSettings, width: int, depth: int, summary: TargetSummary) -> None:
        super().__init__(settings, width, depth, summary, summary.graph)

    def distance(self, known: Bool[Tensor, "batch"], ours: Tensor, theirs: Tensor) -> Float[Tensor, "batch"]:
        """D per molecule; `relational` compares the molecules of this worker's batch with each other."""
        if self.settings.distance == "relational":
            return relational_distance(ours, theirs, known)
        return channel_distance(self.settings.distance, ours, theirs)

    def forward(self, states: tuple[Tensor, ...], teacher: TeacherTargets) -> Float[Tensor, ""]:
        """The sum over this worker's molecules."""
        per_layer = [
            self.distance(teacher.known, *pair) for pair in self.pairs(states, teacher.graph_states, teacher.known)
        ]
        return torch.where(teacher.known, torch.stack(per_layer).mean(0), 0.0).sum()

    def gradient(self, states: tuple[Tensor, ...], teacher: TeacherTargets) -> Float[Tensor, "known"]:
        """Gradient norm with respect to the projected state, of each known molecule."""
        with torch.no_grad():
            pairs = self.pairs(states, teacher.graph_states, teacher.known)
        norms = self.gradient_norm(lambda ours, theirs: self.distance(teacher.known, ours, theirs), pairs)
        return norms[teacher.known]


class AtomTerm(_StateTerm):
    """Σ over known molecules of mean_l c(N) Σ_i D(Q_l b_li, a_li)."""

    def __init__(self, settings: AtomTermSettings, width: int, depth: int, summary: TargetSummary) -> None:
        super().__init__(settings, width, depth, summary, summary.atoms)
        self.scheme = settings
        self.mean_atoms = summary.mean_atoms
        matched = settings.normalization == "gradient_matched"
        self.matcher = GradientMatcher(settings.share) if matched else None

    def distance(self, real: Bool[Tensor, "batch atoms"], ours: Tensor, theirs: Tensor) -> Float[Tensor, "batch atoms"]:
        """D per atom; `relational` compares the atoms of a molecule with each other."""
        if self.settings.distance == "relational":
            return relational_distance(ours, theirs, real)
        return channel_distance(self.settings.distance, ours, theirs)

    def per_molecule(
        self, states: tuple[Tensor, ...], teacher: TeacherTargets, size: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch"]:
        """mean_l Σ_i D of each molecule; padding and unknown molecules count nothing."""
        real = self._real(states[0], teacher, size)
        per_layer = [self.distance(real, *pair) for pair in self.pairs(states, teacher.atom_states, real)]
        return torch.where(real, torch.stack(per_layer).mean(0), 0.0).sum(-1)

    def forward(
        self,
        states: tuple[Tensor, ...],
        teacher: TeacherTargets,
        size: Int[Tensor, "batch"],
        molecules: Tensor | float,
        atoms: Tensor | float,
    ) -> Float[Tensor, ""]:
        """The sum over this worker's molecules; `molecules` and `atoms` count the global batch."""
        distance = self.per_molecule(states, teacher, size)
        if self.matcher is not None:
            weights = self.matcher(size)
        else:
            weights = size_weights(self.scheme, size, molecules=molecules, atoms=atoms, mean_atoms=self.mean_atoms)
        total: Tensor = (weights * distance).sum()
        return total

    def observe(
        self,
        states: tuple[Tensor, ...],
        teacher: TeacherTargets,
        size: Int[Tensor, "batch"],
        overall: Float[Tensor, "known"],
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        """Let the gradient matcher see this batch; `reduce` sums over workers."""
        assert self.matcher is not None
        real = self._real(states[0], teacher, size)
        with torch.no_grad():
            pairs = self.pairs(states, teacher.atom_states, real)
        norms = self.gradient_norm(lambda ours, theirs: self.distance(real, ours, theirs), pairs)
        local = torch.where(real, norms, 0.0).sum(-1)[teacher.known]
        self.matcher.observe(size[teacher.known], local, overall, reduce)

    @staticmethod
    def _real(state: Tensor, teacher: TeacherTargets, size: Int[Tensor, "batch"]) -> Bool[Tensor, "batch atoms"]:
        places = torch.arange(state.shape[1], device=state.device)
        real: Tensor = (places < size[:, None]) & teacher.known[:, None]
        return real
