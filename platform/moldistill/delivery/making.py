"""The making of an ensemble: what is chosen and measured on which rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moldistill.core.errors import InputError
from moldistill.core.seeds import generator
from moldistill.core.vocabulary import vocabulary_hash
from moldistill.data.store import Store
from moldistill.delivery.calibration import Judged, SizeClass, by_size, calibrate, coverage
from moldistill.delivery.combination import Calibration, Combination
from moldistill.delivery.combiners import Combiner, Sample, library, of_kind
from moldistill.delivery.costs import Asked, asked, costs
from moldistill.delivery.ensemble_summary import EnsembleSummary, Member, Validation
from moldistill.delivery.members import Pool, Rows
from moldistill.delivery.nested import Choice, choose, fit_within
from moldistill.delivery.selection import Floats, bootstrap_means, halves
from moldistill.training.evaluate import target_scale

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Options:
    """What may be asked of an ensemble.

    seed: of the halving, the folds and the bootstrap. max_members: at most so many. combiner: a kind of
    `combiners.library`, or auto for the best of all. budget: seconds of inference for `budget_rows` molecules (None:
    those of the tests). refit: whether the weights that predict are made anew from all labelled validation rows.
    """

    seed: int = 0
    max_members: int = 32
    combiner: str = AUTO
    budget: float | None = None
    budget_rows: int | None = None
    refit: bool = True

    def combiners(self, members: int) -> list[Combiner]:
        """The rules to compare."""
        every = library(members, self.max_members)
        return every if self.combiner == AUTO else of_kind(every, self.combiner)


@dataclass(frozen=True, slots=True)
class Made:
    """Everything that was chosen and measured.

    chosen, scored: places, among the labelled `rows`, of the two halves; measured: of the scored ones that calibrated
    nothing. half, shipped: the combinations that were scored, and that predict. judged: `half` on all rows.
    """

    options: Options
    store: Store
    pool: Pool
    rows: Rows
    sample: Sample
    chosen: Rows
    scored: Rows
    measured: Rows
    choice: Choice
    half: Combination
    shipped: Combination
    judged: Judged
    calibration: Calibration
    cost: Asked | None

    @classmethod
    def of(cls, pool: Pool, store: Store, rows: Rows, target: Floats, options: Options) -> Made:
        sample = Sample(pool.predictions, target, np.asarray(store.size(rows), dtype=np.int64))
        chosen, scored = halves(len(rows), options.seed)
        cost = None
        if options.budget is not None:
            cost = asked(options.budget, options.budget_rows, pool.candidates, store)
        budget = None if cost is None else cost.budget(options.max_members)
        learnt = sample.rows(chosen)
        choice = choose(learnt, options.combiners(len(pool.candidates)), options.seed, budget)
        half = fit_within(choice.combiner, learnt, budget)
        shipped = fit_within(choice.combiner, sample, budget) if options.refit else half
        applied = half.apply(sample.predictions, sample.sizes)
        judged = Judged(applied.value - target, applied.spread, sample.sizes)
        order = generator(options.seed, "ensemble", "calibration").permutation(scored)
        stretch, measured = np.sort(order[: (len(order) + 1) // 2]), np.sort(order[(len(order) + 1) // 2 :])
        shape = Judged(choice.error, choice.spread, choice.sizes)
        calibration = calibrate(shape, judged.rows(stretch))
        return cls(
            options,
            store,
            pool,
            rows,
            sample,
            chosen,
            scored,
            measured,
            choice,
            half,
            shipped,
            judged,
            calibration,
            cost,
        )

    def summary(self) -> EnsembleSummary:
        target, predictions = self.sample.target[self.scored], self.sample.predictions[:, self.scored]
        members = self._members()
        best = int(self.sample.rows(self.chosen).mae.argmin())
        ours, single = np.abs(self.judged.error[self.scored]), np.abs(predictions[best] - target)
        score, best_score, difference = bootstrap_means(np.stack([ours, single, ours - single]), self.options.seed)
        median, limits, sizes = _training(self.store)
        order = [
            place
            for place in np.argsort([-item.weight for item in members], kind="stable")
            if members[place].weight > 0
        ]
        table = self.shipped.class_weights
        return EnsembleSummary(
            seed=self.options.seed,
            store=self.store.identity,
            store_path=str(self.store.path),
            split_hash=self.store.split_hash,
            vocabulary=vocabulary_hash(),
            rows_chosen_on=len(self.chosen),
            rows_scored_on=len(self.scored),
            score=score,
            best_single=members[best].path,
            best_single_score=best_score,
            difference=difference,
            mean_of_all=float(np.abs(predictions.mean(axis=0) - target).mean()),
            median_predictor=float(np.abs(median - target).mean()),
            training_median=median,
            training_range=limits,
            training_sizes=sizes,
            members=tuple(members[place] for place in order),
            passed_over=(*(item for item in members if item.weight == 0), *self._copies(members)),
            combiner=self.choice.combiner.name,
            tried=self.choice.tried,
            combination=self.shipped.kind,
            class_edges=self.shipped.class_edges,
            class_weights=None if table is None else tuple(tuple(row[place] for place in order) for row in table),
            calibration=self.calibration,
            refitted=self.options.refit,
            rows_calibrated_on=len(self.scored) - len(self.measured),
            coverage=coverage(self.calibration, self.judged.rows(self.measured)),
            by_size=self._by_size(),
            budget=None if self.cost is None else self.cost.spending(np.array(self.shipped.weights) > 0),
        )

    def _by_size(self) -> tuple[SizeClass, ...]:
        return by_size(
            self.calibration,
            self.judged.rows(self.scored),
            np.searchsorted(self.scored, self.measured),
            self.options.seed,
        )

    def _members(self) -> list[Member]:
        """Every candidate with its weights, and its MAE on both halves."""
        on_chosen, on_scored = self.sample.rows(self.chosen).mae, self.sample.rows(self.scored).mae
        seconds = None if self.cost is None else self.cost.each
        return [
            Member(
                path=str(item.path),
                identity=item.manifest.identity,
                weight=self.shipped.weights[place],
                chosen_on=float(on_chosen[place]),
                scored_on=float(on_scored[place]),
                parameters=int(item.manifest.facts.get("parameters", 0)),
                scored_weight=self.half.weights[place],
                seconds=None if seconds is None else float(seconds[place]),
                reason="" if self.cost is None else self.cost.reason(place),
            )
            for place, item in enumerate(self.pool.candidates)
        ]

    def _copies(self, members: Sequence[Member]) -> list[Member]:
        """Candidates that predict what an earlier one does."""
        by_path = {item.path: item for item in members}
        return [
            Member(
                str(copy.path),
                copy.manifest.identity,
                0.0,
                by_path[str(first.path)].chosen_on,
                by_path[str(first.path)].scored_on,
                int(copy.manifest.facts.get("parameters", 0)),
                reason=f"predicts what {first.path.name} does, bit for bit",
            )
            for copy, first in self.pool.copies
        ]

    def inference(self) -> dict[str, Any]:
        """Seconds per molecule of reading SMILES and of all members together; how they are known, or why they are not.

        They are facts and no content: two ensembles of equal content may have been timed differently.
        """
        taken = np.flatnonzero(np.array(self.shipped.weights) > 0)
        try:
            found = (
                self.cost.costs if self.cost else costs([self.pool.candidates[place] for place in taken], self.store)
            )
        except InputError as error:
            return {"how": f"not known: {error.what}"}
        members = np.array(found.members)[taken] if self.cost else np.array(found.members)
        seconds = {"featurizing": found.featurizing, "members": float(members.sum())}
        return {"seconds_per_molecule": seconds, "how": found.how, "device": found.device}

    def validation(self, best_single: str) -> Validation:
        """What reports read."""
        best = [str(item.path) for item in self.pool.candidates].index(best_single)
        places = np.arange(len(self.rows))
        return Validation(
            row=self.rows,
            size=self.sample.sizes,
            target=self.sample.target,
            ensemble=self.sample.target + self.judged.error,
            best_single=self.sample.predictions[best],
            scored_on=np.isin(places, self.scored),
            spread=self.judged.spread,
            measured_on=np.isin(places, self.measured),
        )


def _training(store: Store) -> tuple[float, tuple[float, float], tuple[int, int]]:
    """Median and range of the training targets (eV), and range of the training molecules' sizes."""
    rows = store.rows("train")
    target = np.asarray(store.target[rows], dtype=np.float64)
    target = target[np.isfinite(target)]
    sizes = store.size(store.usable(rows))
    limits = (float(target.min()), float(target.max()))
    return target_scale(store).median, limits, (int(sizes.min()), int(sizes.max()))
