"""An ablation from its plan to a finished folder: runs, and after each round of seeds the tables of what there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from moldistill.core.artifacts import MANIFEST, write_json, write_manifest
from moldistill.core.errors import RunError
from moldistill.core.locking import exclusive
from moldistill.delivery.ablation_figures import AblationSummary, TeacherFigures, summarize
from moldistill.delivery.ablation_page import write_markdown, write_page
from moldistill.search.ablate import CONFIG, PLAN, Ended, Prepared, train_all
from moldistill.search.trainable import Runner
from moldistill.trial.run import run_trial

TABLE, MARKDOWN, PAGE = "ablation.json", "ablation.md", "ablation.html"


def run_ablation(
    prepared: Prepared, teachers: Sequence[TeacherFigures] = (), *, runner: Runner = run_trial
) -> AblationSummary:
    """Train every run that is not finished, and write tables and manifest. runner: what trains, ``runner(spec)``.

    The tables are written after each round of seeds, too. RunError where no run of the baseline came to an end.
    """
    out, ended = prepared.out, list[Ended]()
    per_round = len(prepared.plan.arms) * len(prepared.ablation.fractions)
    with exclusive(out / ".lock", f"{out} is being written"):
        (out / MANIFEST).unlink(missing_ok=True)
        for one in train_all(prepared, runner):
            ended.append(one)
            if len(ended) % per_round == 0:
                write_tables(prepared, summarize(prepared, ended, teachers))
        summary = summarize(prepared, ended, teachers)
        write_tables(prepared, summary)
        failed = [run for run in summary.runs if run.reason is not None]
        if not summary.arm(summary.baseline).errors:
            raise RunError(
                f"every run of the baseline '{summary.baseline}' failed",
                got=next((run.reason for run in failed if run.arm == summary.baseline), None),
                remedy=f"look at {out / TABLE}, mend it, and go on with --resume",
            )
        _finish(prepared, summary, len(failed))
    return summary


def _finish(prepared: Prepared, summary: AblationSummary, failed: int) -> None:
    full = [arm for arm in summary.arms if arm.fraction == 1]
    facts = {
        "baseline": summary.baseline,
        "metric": summary.metric,
        "seeds": list(summary.seeds),
        "runs": len(summary.runs),
        "failed": failed,
        "differences": {arm.arm: asdict(found) for arm in full if (found := arm.differences.get("overall"))},
    }
    files = [CONFIG, PLAN, TABLE, MARKDOWN, PAGE]
    write_manifest(prepared.out, "ablation", files=files, inputs=prepared.plan.inputs, facts=facts)


def write_tables(prepared: Prepared, summary: AblationSummary) -> None:
    """JSON, Markdown and HTML of what has ended so far."""
    write_json(prepared.out / TABLE, asdict(summary))
    write_markdown(prepared, summary, prepared.out / MARKDOWN)
    write_page(prepared, summary, prepared.out / PAGE)
