"""The objective: label, soft label, global, local and geometry terms, each weighted and averaged over what it has.

L = |ŷ - y| + w_pred |ŷ - y_T| + w_graph mean_l D(P_l s_l, t_l)
  + w_atom mean_l (1/B) Σ_m c(N_m) Σ_i D(Q_l b_li, a_li) + w_pair CE(binned distances)

Sums run over this worker's rows and are divided by counts of the global batch: added up over workers, the gradients are
those of one worker with the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moldistill.core.records import Batch, ModelOutput, TargetScale, TeacherTargets
from moldistill.core.settings import DistillSettings
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
        known = batch.teacher.known if batch.teacher is not None else torch.zeros_like(batch.has_positions)
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

    Student states of width `width` and `depth` layers are compared with the teacher's as `summary` describes them;
    `summary` is None where there is no teacher; `reduce` sums a tensor over workers.
    """

    def __init__(
        self,
        settings: DistillSettings,
        scale: TargetScale,
        *,
        width: int,
        depth: int,
        summary: TargetSummary | None,
        reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        super().__init__()
        self.settings, self.scale = settings, scale
        self.reduce = reduce
        self.graph: GraphTerm | None = None
        self.atom: AtomTerm | None = None
        if summary is not None:
            if settings.graph.weight > 0:
                self.graph = GraphTerm(settings.graph, width, depth, summary)
            if settings.atom.weight > 0:
                self.atom = AtomTerm(settings.atom, width, depth, summary)
        self.pair = PairTerm(settings.pair, width) if settings.pair.weight > 0 else None

    def forward(self, output: ModelOutput, batch: Batch, counts: Counts, progress: float) -> dict[str, Tensor]:
        """Weighted terms by name (label, prediction, graph, atom, pair); the loss is their sum.

        `progress` is the share of all steps that are done. A term that is switched off is left out.
        """
        terms = {"label": self._label(output, batch.target) / counts.labels}
        if batch.teacher is not None:
            terms |= self._teacher_terms(output, batch, batch.teacher, counts, progress)
        if self.pair is not None:
            weight = weight_at(self.settings.pair, progress)
            terms["pair"] = weight * self.pair(output, batch) / counts.positions
        return terms

    def _label(self, output: ModelOutput, target: Float[Tensor, "batch"]) -> Float[Tensor, ""]:
        wanted = (target - self.scale.mean) / self.scale.std
        error = (output.prediction - wanted.nan_to_num()).abs()
        return torch.where(target.isfinite(), error, 0.0).sum()

    def _teacher_terms(
        self, output: ModelOutput, batch: Batch, teacher: TeacherTargets, counts: Counts, progress: float
    ) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        if self.settings.prediction.weight > 0:
            wanted = (teacher.prediction - self.scale.mean) / self.scale.std
            error = torch.where(teacher.known, (output.prediction - wanted).abs(), 0.0).sum()
            terms["prediction"] = weight_at(self.settings.prediction, progress) * error / counts.molecules
        if self.graph is not None:
            weight = weight_at(self.settings.graph, progress)
            terms["graph"] = weight * self.graph(output.graph_states, teacher) / counts.molecules
        if self.atom is not None:
            weight = weight_at(self.settings.atom, progress)
            if self.atom.matcher is not None and self.training:
                assert self.graph is not None  # the settings refuse gradient_matched without a global term
                overall = self.graph.gradient(output.graph_states, teacher)
                self.atom.observe(output.atom_states, teacher, batch.molecules.size, overall, self.reduce)
            local = self.atom(output.atom_states, teacher, batch.molecules.size, counts.molecules, counts.atoms)
            terms["atom"] = weight * local / counts.molecules
        return terms
