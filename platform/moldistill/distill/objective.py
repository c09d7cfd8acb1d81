"""The objective: label, soft label, global, local and geometry terms, each weighted and averaged over what it has.

L = |ŷ - y| + w_pred |ŷ - y_T| + w_graph mean_l D(P_l s_l, t_l)
  + w_atom mean_l (1/B) Σ_m c(N_m) Σ_i D(Q_l b_li, a_li) + w_pair CE(binned distances)

Of several teachers, y_T is the mean over those that know the molecule, and the terms of states are means over teachers.

Sums run over this worker's rows and are divided by counts of the global batch: added up over workers, the gradients are
those of one worker with the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moldistill.core.records import Batch, ModelOutput, TargetScale, TeacherTargets
from moldistill.core.settings import DistillSettings, TermSettings
from moldistill.core.shapes import Float
from moldistill.data.targets import TargetSummary
from moldistill.distill.pairs import PairTerm
from moldistill.distill.schedules import weight_at
from moldistill.distill.states import AtomTerm, GraphTerm


@dataclass(frozen=True, slots=True)
class Counts:
    """What the global batch holds: rows with a label, molecules and atoms with targets, molecules with positions."""

    labels: Tensor | float
    molecules: Tensor | float
    atoms: Tensor | float
    positions: Tensor | float

    @staticmethod
    def of(batch: Batch) -> Float[Tensor, "4"]:
        """This worker's part, to be summed over workers."""
        known = torch.zeros_like(batch.has_positions)
        for teacher in batch.teachers:
            known = known | teacher.known
        size = batch.molecules.size
        parts = [
            batch.target.isfinite().sum(),
            known.sum(),
            torch.where(known, size, 0).sum(),
            batch.has_positions.sum(),
        ]
        return torch.stack(parts).float()

    @classmethod
    def from_tensor(cls, summed: Float[Tensor, "4"]) -> Counts:
        """Counts from the sum over workers; each at least 1, so that an absent term is 0 and not NaN."""
        return cls(*summed.clamp(min=1.0).unbind())  # no numbers of Python: a GPU would have to be waited for


class Objective(nn.Module):
    """The terms that `settings` gives a weight, with the projections they learn.

    Student states of width `width` and `depth` layers are compared with each teacher's as `summaries` describe them,
    none where there is no teacher; `reduce` sums a tensor over workers.
    """

    def __init__(
        self,
        settings: DistillSettings,
        scale: TargetScale,
        *,
        width: int,
        depth: int,
        summaries: Sequence[TargetSummary] = (),
        reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        super().__init__()
        self.settings, self.scale = settings, scale
        named: dict[str, TermSettings] = {
            name: getattr(settings, name) for name in ("prediction", "graph", "atom", "pair")
        }
        self.terms = {name: term for name, term in named.items() if term.weight > 0}
        self.teachers = nn.ModuleList(Taught(settings, width, depth, summary, reduce) for summary in summaries)
        self.pair = PairTerm(settings.pair, width) if settings.pair.weight > 0 else None

    def weights(self, progress: float, *, relative: bool = False) -> dict[str, float]:
        """Weight of each term when the share `progress` of all steps is done; `relative` to its settings' own."""
        return {
            name: weight_at(term, progress) / (term.weight if relative else 1.0) for name, term in self.terms.items()
        }

    def forward(self, output: ModelOutput, batch: Batch, counts: Counts, progress: float) -> dict[str, Tensor]:
        """Weighted terms by name (label, prediction, graph, atom, pair); the loss is their sum.

        `progress` is the share of all steps that are done. A term that is switched off is left out.
        """
        weights = self.weights(progress)
        terms = {"label": self._label(output, batch.target) / counts.labels}
        if batch.teachers:
            if "prediction" in weights:
                terms["prediction"] = weights["prediction"] * self._soft_label(output, batch) / counts.molecules
            apart = [self.teachers[teacher.teacher](output, batch, teacher, counts) for teacher in batch.teachers]
            for name in apart[0]:
                together = torch.stack([found[name] for found in apart]).mean()
                terms[name] = weights[name] * together / counts.molecules
        if self.pair is not None:
            terms["pair"] = weights["pair"] * self.pair(output, batch) / counts.positions
        return terms

    def _label(self, output: ModelOutput, target: Float[Tensor, "batch"]) -> Float[Tensor, ""]:
        wanted = (target - self.scale.mean) / self.scale.std
        error = (output.prediction - wanted.nan_to_num()).abs()
        return torch.where(target.isfinite(), error, 0.0).sum()

    def _soft_label(self, output: ModelOutput, batch: Batch) -> Float[Tensor, ""]:
        """Σ over molecules that any teacher knows of the distance to the mean of what those say."""
        known = torch.stack([teacher.known for teacher in batch.teachers])
        told = torch.where(known, torch.stack([teacher.prediction for teacher in batch.teachers]), 0.0).sum(0)
        wanted = (told / known.sum(0).clamp(min=1) - self.scale.mean) / self.scale.std
        return torch.where(known.any(0), (output.prediction - wanted).abs(), 0.0).sum()


class Taught(nn.Module):
    """The terms of states that one teacher gives: sums over this worker's molecules, before weights and counts."""

    def __init__(
        self,
        settings: DistillSettings,
        width: int,
        depth: int,
        summary: TargetSummary,
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.reduce = reduce
        self.graph = GraphTerm(settings.graph, width, depth, summary) if settings.graph.weight > 0 else None
        self.atom = AtomTerm(settings.atom, width, depth, summary) if settings.atom.weight > 0 else None

    def forward(
        self, output: ModelOutput, batch: Batch, teacher: TeacherTargets, counts: Counts
    ) -> dict[str, Float[Tensor, ""]]:
        """The graph and atom terms that have a weight."""
        terms: dict[str, Tensor] = {}
        size = batch.molecules.size
        if self.graph is not None:
            terms["graph"] = self.graph(output.graph_states, teacher)
        if self.atom is not None:
            if self.atom.matcher is not None and self.training:
                assert self.graph is not None  # the settings refuse gradient_matched without a global term
                overall = self.graph.gradient(output.graph_states, teacher)
                self.atom.observe(output.atom_states, teacher, size, overall, self.reduce)
            terms["atom"] = self.atom(output.atom_states, teacher, size, counts.molecules, counts.atoms)
        return terms
