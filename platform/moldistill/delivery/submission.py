"""The files of an OGB-LSC (PCQM4Mv2) submission, with a certificate of what they hold and how it was checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moldistill import __version__
from moldistill.core.artifacts import hash_file, new_folder, read_manifest, write_json, write_manifest, write_text
from moldistill.core.errors import InputError, RunError
from moldistill.core.progress import log
from moldistill.core.vocabulary import TEST_SPLITS
from moldistill.data.store import Store
from moldistill.delivery.checks import (
    FILE_NAMES,
    OFFICIAL_SIZES,
    Check,
    CheckReport,
    Expectation,
    check_array,
    check_submission,
    expectations,
    refuse_failures,
)
from moldistill.delivery.ensemble import EnsembleSummary, load_ensemble
from moldistill.delivery.members import load_predictions

__all__ = ["CheckReport", "SubmissionSummary", "check_submission", "package_versions", "submission"]

PACKAGES = ("numpy", "torch", "rdkit", "ray", "optuna", "safetensors")
"""Packages whose version may matter to the figures."""

Predicted = npt.NDArray[np.float32]


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
    nothing, where a check fails or the store is not the ensemble's.
    """
    summary = load_ensemble(ensemble)
    opened = Store.open(store)
    if opened.identity != summary.store:
        raise InputError(
            f"{ensemble} was not made from {store}",
            got=opened.identity,
            expected=summary.store,
            remedy=f"name its own store, which was at {summary.store_path}",
        )
    arrays: dict[str, Predicted] = {}
    checks: list[Check] = []
    for expected in expectations(opened):
        arrays[expected.split], found = _checked(ensemble, opened, expected)
        checks += found
    refuse_failures(checks, str(ensemble))
    with new_folder(out) as folder:
        hashes, read_back = _write(folder, arrays)
        official = all(len(array) == OFFICIAL_SIZES[split] for split, array in arrays.items())
        report = CheckReport(tuple(hashes), (*checks, *read_back), official)
        certificate = _certificate(ensemble, summary, opened, hashes, arrays, report)
        write_json(folder / "certificate.json", certificate)
        write_text(folder / "certificate.md", _markdown(certificate))
        files = [*hashes, "certificate.json", "certificate.md"]
        inputs = {"store": summary.store, "ensemble": read_manifest(ensemble).identity}
        facts = {"rows": certificate["rows"], "official": official, "warnings": len(report.warnings)}
        write_manifest(folder, "submission", files=files, inputs=inputs, facts=facts)
    for check in report.warnings:
        log(f"warning: {check.split}: {check.detail}")
    log(
        f"submission: {' and '.join(f'{len(array):,} rows of {split}' for split, array in arrays.items())}, all checked"
    )
    return SubmissionSummary(str(out), hashes, {split: len(array) for split, array in arrays.items()}, report)


def _checked(ensemble: Path, store: Store, expected: Expectation) -> tuple[Predicted, list[Check]]:
    """A split's predictions in the order of the split, and what was found about them."""
    values = load_predictions(ensemble, expected.split, store.rows(expected.split))
    rows = expected.source_rows
    wrong = np.flatnonzero(np.diff(rows) <= 0)
    if len(wrong):
        detail = f"source row {rows[wrong[0] + 1]} follows source row {rows[wrong[0]]}"
    else:
        detail = f"source rows {rows[0]:,} to {rows[-1]:,}, ascending, as in the split"
    result = "failed" if len(wrong) else "passed"
    order = Check(expected.split, "order", result, detail)
    return values, [order, *check_array(values, expected)]


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


def package_versions() -> dict[str, str]:
    """Versions of this package and of those that its figures depend on."""
    found = {"moldistill": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _spread(values: npt.NDArray[np.floating[Any]]) -> dict[str, float]:
    quantiles = np.quantile(values.astype(np.float64), [0.0, 0.05, 0.5, 0.95, 1.0])
    names = ("min", "5%", "median", "95%", "max")
    return {name: round(float(value), 4) for name, value in zip(names, quantiles, strict=True)}


def _certificate(
    ensemble: Path,
    summary: EnsembleSummary,
    store: Store,
    hashes: dict[str, str],
    arrays: dict[str, Predicted],
    report: CheckReport,
) -> dict[str, Any]:
    manifest = read_manifest(ensemble, "ensemble")
    valid = load_predictions(ensemble, "valid", store.rows("valid"))
    return {
        "rows": {split: len(array) for split, array in arrays.items()},
        "official_counts": report.official,
        "files": hashes,
        "validation_mae": {**asdict(summary.score), "unit": "eV", "rows": summary.rows_scored_on},
        "validation_mae_of": "validation rows that chose neither members nor weights",
        "best_single_run_mae": asdict(summary.best_single_score),
        "members": [asdict(member) for member in summary.members],
        "parameters": sum(member.parameters for member in summary.members),
        "external_data": "none",
        "store": {"identity": summary.store, "sources": dict(store.manifest.inputs)},
        "split_hash": summary.split_hash,
        "vocabulary": summary.vocabulary,
        "ensemble": manifest.identity,
        "versions": package_versions(),
        "distribution": {"valid": _spread(valid), **{split: _spread(array) for split, array in arrays.items()}},
        "flagged_rows": {split: int(np.count_nonzero(store.flag[store.rows(split)])) for split in TEST_SPLITS},
        "checks": [asdict(check) for check in report.checks],
    }


def _table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> list[str]:
    cells = [head, ["---"] * len(head), *lines]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in cells] + [""]


def _markdown(certificate: dict[str, Any]) -> str:
    """The certificate for people."""
    score, counts, flagged = certificate["validation_mae"], certificate["rows"], certificate["flagged_rows"]
    official = (
        "yes" if certificate["official_counts"] else "no: not the full PCQM4Mv2 tests, the board will refuse them"
    )
    members = [
        (Path(item["path"]).name, f"{item['weight']:.3f}", f"{item['scored_on']:.4f}", item["identity"])
        for item in certificate["members"]
    ]
    checks = [(item["split"], item["name"], item["result"], item["detail"]) for item in certificate["checks"]]
    spread = [(name, *values.values()) for name, values in certificate["distribution"].items()]
    facts = [
        ("validation MAE", f"{score['value']:.4f} eV (95%: {score['low']:.4f} to {score['high']:.4f})"),
        ("estimated on", f"{score['rows']:,} {certificate['validation_mae_of']}"),
        *((f"rows of {split}", f"{count:,}, {flagged[split]} flagged") for split, count in counts.items()),
        ("official counts", official),
        ("parameters", f"{certificate['parameters']:,}"),
        ("external data", certificate["external_data"]),
        ("store", certificate["store"]["identity"]),
        ("ensemble", certificate["ensemble"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in certificate["versions"].items())),
    ]  # fmt: skip
    lines = ["# Certificate of a PCQM4Mv2 submission", "", *_table(("what", "value"), facts)]
    lines += ["## Checks", "", *_table(("split", "check", "result", "detail"), checks)]
    lines += ["## Members", "", *_table(("run", "weight", "MAE (eV)", "identity"), members)]
    lines += ["## Predictions (eV)", "", *_table(("split", "min", "5%", "median", "95%", "max"), spread)]
    lines += ["## Files (SHA-256)", "", *_table(("file", "hash"), list(certificate["files"].items()))]
    return "\n".join(lines)
