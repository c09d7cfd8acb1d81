"""The files of an OGB-LSC (PCQM4Mv2) submission, with a certificate of what they hold and how it was checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moldistill.core.artifacts import (
    hash_file,
    new_folder,
    read_manifest,
    verify_hashes,
    write_json,
    write_manifest,
    write_text,
)
from moldistill.core.errors import InputError, RunError
from moldistill.core.progress import log
from moldistill.data.store import Store
from moldistill.delivery.certificate import (
    Predicted,
    build,
    drift_checks,
    inference,
    markdown,
    models,
    package_versions,
)
from moldistill.delivery.checks import (
    FILE_NAMES,
    OFFICIAL_SIZES,
    Check,
    CheckReport,
    check_array,
    check_submission,
    expectations,
    refuse_failures,
)
from moldistill.delivery.ensemble_summary import EnsembleSummary, load_ensemble
from moldistill.delivery.members import load_predictions
from moldistill.delivery.split_proof import prove_split

__all__ = ["CheckReport", "SubmissionSummary", "check_submission", "package_versions", "submission"]


@dataclass(frozen=True, slots=True)
class SubmissionSummary:
    """What was written: SHA-256 of each file by name, rows by split, and every check."""

    path: str
    files: dict[str, str]
    rows: dict[str, int]
    report: CheckReport


def submission(ensemble: Path, store: Path, out: Path) -> SubmissionSummary:
    """Check an ensemble's test predictions and write them as OGB's evaluator does, with a certificate.

    `y_pred` is float32, one value (eV) per row of the split, in the split's order. Raises InputError, and writes
    nothing, where a check fails, a file of the ensemble or one of its members has changed, or the store is not its own.
    """
    summary, opened = _opened(ensemble, store)
    arrays: dict[str, Predicted] = {}
    checks: list[Check] = []
    wanted = expectations(opened)
    checks += prove_split(opened, summary.split_hash)
    for expected in wanted:
        arrays[expected.split] = load_predictions(ensemble, expected.split, opened.rows(expected.split))
        checks += check_array(arrays[expected.split], expected)
    refuse_failures(checks, str(ensemble))
    valid = load_predictions(ensemble, "valid", opened.rows("valid"))
    distribution, drift = drift_checks(arrays, valid)
    told, timed = inference(read_manifest(ensemble, "ensemble"), sum(map(len, arrays.values())))
    with new_folder(out) as folder:
        hashes, read_back = _write(folder, arrays)
        official = all(len(array) == OFFICIAL_SIZES[split] for split, array in arrays.items())
        report = CheckReport(tuple(hashes), (*checks, *drift, *timed, *read_back), official)
        certificate = build(summary, ensemble, opened, hashes, arrays, report, told, distribution)
        write_json(folder / "certificate.json", certificate)
        write_text(folder / "certificate.md", markdown(certificate))
        files = [*hashes, "certificate.json", "certificate.md"]
        inputs = {"store": summary.store, "ensemble": read_manifest(ensemble).identity}
        facts = {"rows": certificate["rows"], "official": official, "warnings": len(report.warnings)}
        write_manifest(folder, "submission", files=files, inputs=inputs, facts=facts)
    for check in report.warnings:
        log(f"warning: {check.split}: {check.detail}")
    counts = " and ".join(f"{len(array):,} rows of {split}" for split, array in arrays.items())
    log(f"submission: {counts}, all checked; certificate.md has the leaderboard's form filled in")
    return SubmissionSummary(str(out), hashes, {split: len(array) for split, array in arrays.items()}, report)


def _opened(ensemble: Path, store: Path) -> tuple[EnsembleSummary, Store]:
    """The ensemble and its store, after checking that they belong together and that no file has changed."""
    summary = load_ensemble(ensemble)
    if changed := verify_hashes(ensemble):
        raise InputError(
            f"{ensemble / changed[0]} has changed since the ensemble was made",
            got=f"{len(changed)} files with another hash: {', '.join(changed)}",
            remedy="make the ensemble again",
        )
    opened = Store.open(store)
    if opened.identity != summary.store:
        raise InputError(
            f"{ensemble} was not made from {store}",
            got=opened.identity,
            expected=summary.store,
            remedy=f"name its own store, which was at {summary.store_path}",
        )
    models(summary, ensemble)
    return summary, opened


def _write(folder: Path, arrays: dict[str, Predicted]) -> tuple[dict[str, str], list[Check]]:
    """Write the files and read them back; SHA-256 by name, and a check each."""
    hashes, checks = {}, []
    for split, array in arrays.items():
        file = folder / FILE_NAMES[split]
        # The same call as ogb.lsc.PCQM4Mv2Evaluator.save_test_submission.
        np.savez_compressed(file, y_pred=array)
        with np.load(file, allow_pickle=False) as content:
            if not np.array_equal(content["y_pred"], array):
                raise RunError(f"{file.name} does not hold what was written to it", remedy="check the disk")
        hashes[file.name] = hash_file(file)
        checks.append(Check(split, "read back", "passed", f"{file.name} holds the same {len(array):,} numbers"))
    return hashes, checks
