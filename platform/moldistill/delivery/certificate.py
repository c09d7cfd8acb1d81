"""The certificate of a submission: what the files hold, what made them, and what the leaderboard asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import ks_2samp

import moldistill
from moldistill import __version__
from moldistill.core.artifacts import MANIFEST, Manifest, hash_file, hash_object, read_manifest
from moldistill.core.errors import InputError
from moldistill.core.vocabulary import TEST_SPLITS
from moldistill.data.store import Store
from moldistill.delivery.board import external_data, form, hardware
from moldistill.delivery.checks import Check, CheckReport
from moldistill.delivery.ensemble_summary import EnsembleSummary
from moldistill.training.checkpoint import WEIGHTS

PACKAGES = ("numpy", "torch", "rdkit", "ray", "optuna", "safetensors", "scipy")
"""Packages whose version may matter to the figures."""

LIMIT_SECONDS = 4 * 3600
"""What OGB-LSC allows for predicting both tests from raw SMILES on one GPU or CPU."""

DRIFT = 0.1
"""Distance of Kolmogorov and Smirnov from validation beyond which a test's predictions are remarked upon."""

QUANTILES = {"min": 0.0, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "max": 1.0}

Predicted = npt.NDArray[np.float32]


def package_versions() -> dict[str, str]:
    """Versions of this package and of those that its figures depend on."""
    found = {"moldistill": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def code_hash() -> str:
    """Hash (32 hex digits) of the installed package's files, compiled ones left out."""
    root = Path(moldistill.__file__).parent
    files = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return hash_object({path.relative_to(root).as_posix(): hash_file(path) for path in files})


def drift_checks(arrays: Mapping[str, Predicted], valid: Predicted) -> tuple[dict[str, dict[str, float]], list[Check]]:
    """Quantiles (eV) of each split, and how far each test's predictions are distributed from those of valid."""
    table, found = {"valid": _spread(valid)}, []
    for split, values in arrays.items():
        tested = ks_2samp(values, valid, method="asymp")
        distance, chance = float(tested.statistic), float(tested.pvalue)
        table[split] = _spread(values) | {"KS distance": round(distance, 4), "KS p": float(f"{chance:.3g}")}
        far = distance > DRIFT and chance < 1e-6
        detail = f"Kolmogorov-Smirnov distance {distance:.4f} from the predictions for valid (p {chance:.2g})"
        found.append(Check(split, "distribution", "warning" if far else "passed", detail))
    return table, found


def _spread(values: Predicted) -> dict[str, float]:
    found = np.quantile(values.astype(np.float64), list(QUANTILES.values()))
    return {name: round(float(value), 4) for name, value in zip(QUANTILES, found, strict=True)}


def inference(manifest: Manifest, rows: int) -> tuple[dict[str, Any], list[Check]]:
    """Seconds for both tests from SMILES with all members, and whether the leaderboard's limit holds them.

    From what the ensemble measured when it was made, so that the same ensemble gives the same certificate. seconds is
    None, with the reason, where its members could not be timed.
    """
    found = manifest.facts.get("inference") or {"how": "not known: made by a version that did not time its members"}
    each = found.get("seconds_per_molecule")
    if each is None:
        return {"seconds": None, "rows": rows, "how": found["how"]}, []
    featurizing, members = each["featurizing"] * rows, each["members"] * rows
    told = {
        "seconds": featurizing + members,
        "featurizing_seconds": featurizing,
        "rows": rows,
        "how": f"predicted from members {found['how']}",
        "device": found["device"],
    }
    detail = f"{told['seconds']:,.0f} s predicted for {rows:,} molecules, the leaderboard allows {LIMIT_SECONDS:,} s"
    result = "passed" if told["seconds"] <= LIMIT_SECONDS else "warning"
    return told, [Check("both tests", "inference time", result, detail)]


def models(summary: EnsembleSummary, folder: Path) -> list[dict[str, Any]]:
    """The members with their weight and the SHA-256 of their weights' file, where the run is at hand.

    Raises InputError for a member that is no longer the run that was taken.
    """
    found = []
    for item in summary.members:
        digest = None
        if (Path(item.path) / MANIFEST).is_file():
            manifest = read_manifest(Path(item.path), "run")
            if manifest.identity != item.identity:
                raise InputError(
                    f"{item.path} has changed since it became a member of {folder}",
                    got=manifest.identity,
                    expected=item.identity,
                    remedy="make the ensemble again",
                )
            entry = manifest.files.get(WEIGHTS)
            digest = None if entry is None else entry.sha256
        found.append(asdict(item) | {"weights_sha256": digest})
    return found


def build(
    summary: EnsembleSummary,
    ensemble: Path,
    store: Store,
    hashes: Mapping[str, str],
    arrays: Mapping[str, Predicted],
    report: CheckReport,
    told: Mapping[str, Any],
    distribution: Mapping[str, Any],
) -> dict[str, Any]:
    """The certificate, as JSON."""
    parameters = sum(member.parameters for member in summary.members)
    data = external_data(store, report.official)
    return {
        "rows": {split: len(array) for split, array in arrays.items()},
        "official_counts": report.official,
        "files": dict(hashes),
        "validation_mae": {**asdict(summary.score), "unit": "eV", "rows": summary.rows_scored_on},
        "validation_mae_of": "validation rows that chose neither members, weights nor combiner",
        "weights_of": "all labelled validation rows" if summary.refitted else "the choosing half",
        "combiner": summary.combiner,
        "best_single_run_mae": asdict(summary.best_single_score),
        "coverage": [asdict(item) for item in summary.coverage],
        "members": models(summary, ensemble),
        "combination": summary.rule.to_mapping(),
        "parameters": parameters,
        "external_data": data[0] or "to be said by you: " + data[1],
        "inference": dict(told),
        "hardware": hardware(),
        "store": {"identity": summary.store, "sources": dict(store.manifest.inputs)},
        "split_hash": summary.split_hash,
        "vocabulary": summary.vocabulary,
        "ensemble": read_manifest(ensemble, "ensemble").identity,
        "versions": package_versions(),
        "code": code_hash(),
        "distribution": dict(distribution),
        "flagged_rows": {split: int(np.count_nonzero(store.flag[store.rows(split)])) for split in TEST_SPLITS},
        "checks": [asdict(check) for check in report.checks],
        "form": [asdict(answer) for answer in form(summary, told, parameters, data)],
    }


def _table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> list[str]:
    cells = [head, ["---"] * len(head), *lines]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in cells] + [""]


def markdown(certificate: Mapping[str, Any]) -> str:
    """The certificate for people."""
    score, counts, flagged = certificate["validation_mae"], certificate["rows"], certificate["flagged_rows"]
    official = (
        "yes" if certificate["official_counts"] else "no: not the full PCQM4Mv2 tests, the board will refuse them"
    )
    members = [
        (
            Path(item["path"]).name,
            f"{item['weight']:.3f}",
            f"{item['scored_on']:.4f}",
            item["identity"],
            item["weights_sha256"] or "",
        )
        for item in certificate["members"]
    ]
    checks = [(item["split"], item["name"], item["result"], item["detail"]) for item in certificate["checks"]]
    columns = (*QUANTILES, "KS distance")
    spread = [(name, *(values.get(key, "") for key in columns)) for name, values in certificate["distribution"].items()]
    answers = [(item["question"], item["answer"] or "**yours to say**", item["note"]) for item in certificate["form"]]
    facts = [
        ("validation MAE", f"{score['value']:.4f} eV (95%: {score['low']:.4f} to {score['high']:.4f})"),
        ("estimated on", f"{score['rows']:,} {certificate['validation_mae_of']}"),
        ("combiner", f"{certificate['combiner']}; weights from {certificate['weights_of']}"),
        *((f"rows of {split}", f"{count:,}, {flagged[split]} flagged") for split, count in counts.items()),
        ("official counts", official),
        ("store", certificate["store"]["identity"]),
        ("split", certificate["split_hash"]),
        ("ensemble", certificate["ensemble"]),
        ("code", certificate["code"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in certificate["versions"].items())),
    ]  # fmt: skip
    lines = ["# Certificate of a PCQM4Mv2 submission", "", *_table(("what", "value"), facts)]
    lines += ["## For the leaderboard's form", "", *_table(("question", "answer", "note"), answers)]
    lines += ["## Checks", "", *_table(("split", "check", "result", "detail"), checks)]
    lines += ["## Members", "", *_table(("run", "weight", "MAE (eV)", "identity", "weights (SHA-256)"), members)]
    lines += ["## Predictions (eV)", "", *_table(("split", *columns), spread)]
    lines += ["## Data (SHA-256)", "", *_table(("file", "hash"), list(certificate["store"]["sources"].items()))]
    lines += ["## Files (SHA-256)", "", *_table(("file", "hash"), list(certificate["files"].items()))]
    return "\n".join(lines)
