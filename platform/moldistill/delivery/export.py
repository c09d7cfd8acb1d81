"""A student or an ensemble as one folder that needs nothing else: to be copied, published, or archived."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moldistill.core.artifacts import MANIFEST, new_folder, read_manifest, write_json, write_manifest, write_text
from moldistill.core.config import dump_yaml, to_mapping
from moldistill.core.errors import InputError
from moldistill.core.progress import log
from moldistill.core.vocabulary import vocabulary_hash
from moldistill.data.predictions import Predictions
from moldistill.data.store import Store
from moldistill.delivery.card import CARD, ErrorClass, card
from moldistill.delivery.ensemble_summary import load_ensemble
from moldistill.delivery.predictor import DESCRIPTION, EXPORT, EXPORT_SCHEMA, Member, Predictor, load_predictor
from moldistill.delivery.selection import bootstrap_means
from moldistill.training.checkpoint import WEIGHTS, save_weights
from moldistill.training.evaluate import errors_by_size
from moldistill.trial.folder import CONFIG, PREDICTIONS

FACTS = ("training_rows", "epochs", "steps", "seconds", "seed", "metrics", "parameters", "python", "torch")
"""What an export keeps of the facts of a member's run: nothing that names a place on a machine."""


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What was written. bytes: of the members' weights. graphs: files of operators, beside the weights."""

    path: str
    members: int
    parameters: int
    bytes: int
    graphs: tuple[str, ...]


def export(model: Path, out: Path, *, store: Path | None = None, graph: str | None = None) -> ExportSummary:
    """Write the students of a run or an ensemble, their combination and a model card into a new folder.

    `predict` loads it without the study, the store or the targets, and gives the same to the bit. store: that they were
    trained on; by default where the run says. It tells the training elements, and a run's errors with intervals.
    graph: `torchscript` or `onnx`: each student also as a graph of plain operators (`portable`), held to the student's
    predictions. Raises InputError for what `load_predictor` refuses, and where a student has no such form.
    """
    predictor = load_predictor(model, store)
    if predictor.kind == EXPORT:
        raise InputError(f"{model} is an export", expected="a run or an ensemble", remedy="copy the folder")
    errors = _errors(predictor, store)
    with new_folder(out) as folder:
        files, graphs = [DESCRIPTION], []
        for place, member in enumerate(predictor.members):
            files += _write_member(member, folder, _name(place))
            if graph is not None:
                from moldistill.delivery.portable import write_graph

                graphs.append(f"{_name(place)}/{write_graph(member, folder / _name(place), graph)}")
        description = _description(predictor, errors)
        write_json(folder / DESCRIPTION, description)
        inputs = {predictor.kind: predictor.identity, "store": str(predictor.members[0].facts["store"])}
        parameters = sum(member.parameters for member in predictor.members)
        facts = {"source": predictor.kind, "members": len(predictor.members), "parameters": parameters}
        # Not among the files that are held to their hashes: its reader is asked to fill in the licence.
        write_text(folder / CARD, card(predictor, errors, graphs))
        write_manifest(folder, EXPORT, files=[*files, *graphs], inputs=inputs, facts=facts | {"graphs": graphs})
        size = sum((folder / name).stat().st_size for name in files if name.endswith(WEIGHTS))
    log(f"exported {len(predictor.members)} students of {parameters:,} parameters, {size / 1e6:.1f} MB of weights")
    return ExportSummary(str(out), len(predictor.members), parameters, size, tuple(graphs))


def _name(place: int) -> str:
    return f"members/{place:03d}"


def _write_member(member: Member, folder: Path, name: str) -> list[str]:
    """Weights and settings; the names of their files."""
    (folder / name).mkdir(parents=True)
    # What it learned from lies on one machine, and nothing that predicts reads it.
    settings = to_mapping(member.settings) | {"targets": None}
    write_text(folder / name / CONFIG, dump_yaml(settings))
    save_weights(member.model, folder / name / WEIGHTS)
    return [f"{name}/{CONFIG}", f"{name}/{WEIGHTS}"]


def _description(predictor: Predictor, errors: Sequence[ErrorClass]) -> dict[str, Any]:
    members = [
        {
            "folder": _name(place),
            "identity": member.identity,
            "weight": weight,
            "scale": asdict(member.scale),
            "facts": {name: member.facts[name] for name in FACTS if name in member.facts},
        }
        for place, (member, weight) in enumerate(zip(predictor.members, predictor.combination.weights, strict=True))
    ]
    facts = predictor.members[0].facts
    return {
        "export_schema": EXPORT_SCHEMA,
        "vocabulary": vocabulary_hash(),
        "source": {"kind": predictor.kind, "identity": predictor.identity},
        "store": facts["store"],
        "split_hash": facts["split_hash"],
        "unit": "eV",
        "training_median": predictor.median,
        "training_sizes": predictor.sizes,
        "training_elements": predictor.elements,
        **predictor.combination.to_mapping(),
        "members": members,
        "errors_by_size": [asdict(item) for item in errors],
    }


def _errors(predictor: Predictor, store: Path | None) -> list[ErrorClass]:
    """Errors on validation rows by size: an ensemble's on those that chose nothing, a run's with intervals if the
    store is at hand.
    """
    largest = predictor.sizes[1]
    if predictor.kind == "ensemble":
        return [
            ErrorClass(item.smallest, item.largest, item.rows, item.mae, item.low, item.high, item.smallest > largest)
            for item in load_ensemble(predictor.path).by_size
        ]
    facts = predictor.members[0].facts
    place = store or Path(facts.get("store_path") or ".")
    identity = read_manifest(place).identity if (place / MANIFEST).is_file() else None
    if identity != facts["store"]:  # without a store, `load_predictor` has refused a wrong one that was named
        found = facts.get("errors_by_size", {}).get("valid", [])
        return [
            ErrorClass(item["smallest"], item["largest"], item["rows"], item["mae"], None, None, item["beyond"])
            for item in found
        ]
    return _measured(predictor.path, Store.open(place), largest)


def _measured(run: Path, store: Store, largest: int) -> list[ErrorClass]:
    path = run / PREDICTIONS / "valid.npz"
    if not path.is_file():
        return []
    saved = Predictions.load(path)
    target = np.asarray(store.target[saved.row])
    sizes, known = store.size(saved.row), np.isfinite(target) & np.isin(saved.row, store.usable(saved.row))
    found = []
    for item in errors_by_size(store, saved, largest):
        inside = known & (sizes >= item.smallest) & (sizes <= item.largest)
        (score,) = bootstrap_means(np.abs(saved.y_pred[inside] - target[inside])[None].astype(np.float64), 0)
        ends = score.low, score.high
        found.append(ErrorClass(item.smallest, item.largest, item.rows, score.value, *ends, item.beyond))
    return found
