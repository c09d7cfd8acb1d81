"""What `predict` predicts with: the students of a run, an ensemble or an exported folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from moldistill.core.artifacts import MANIFEST, Manifest, hash_file, read_json, read_manifest, verify_hashes
from moldistill.core.config import load_run
from moldistill.core.errors import InputError
from moldistill.core.records import TargetScale
from moldistill.core.settings import RunSettings
from moldistill.core.vocabulary import vocabulary_hash
from moldistill.data.elements import training_elements
from moldistill.data.store import Store
from moldistill.delivery.combination import Combination
from moldistill.delivery.ensemble_summary import load_ensemble
from moldistill.models.registry import build_model
from moldistill.training.checkpoint import WEIGHTS, load_weights
from moldistill.trial.folder import CONFIG
from moldistill.trial.run import load_run_folder

EXPORT = "export"
"""Kind of an exported folder."""

DESCRIPTION = "export.json"
"""What an exported folder says of its members and their combination."""

EXPORT_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Member:
    """A student in evaluation mode. path: where it was read from. facts: of the run that trained it."""

    path: Path
    identity: str
    settings: RunSettings
    model: nn.Module
    scale: TargetScale
    facts: Mapping[str, Any]

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())


@dataclass(frozen=True, slots=True)
class Predictor:
    """Students and how their predictions become one.

    median: value (eV) for what no student can predict. sizes: least and most heavy atoms of the training molecules, 0
    where the least is not known. elements: atomic numbers of the training molecules, None where not known.
    """

    path: Path
    kind: str
    identity: str
    members: tuple[Member, ...]
    combination: Combination
    median: float
    sizes: tuple[int, int]
    elements: tuple[int, ...] | None


def load_predictor(model: Path, store: Path | None = None) -> Predictor:
    """The students of a finished run, ensemble or exported folder, each file checked against its hash.

    store: the store that they were trained on, which knows the training elements; by default where the run says it
    lies, if it still does. An exported folder needs none. Raises InputError for a teacher, a folder of another kind, a
    changed or damaged file, another vocabulary.
    """
    path = model.expanduser().absolute()
    manifest = read_manifest(path)
    if manifest.kind == EXPORT:
        return _exported(path, manifest)
    if manifest.kind == "run":
        member = _student(path)
        sizes = int(manifest.facts.get("smallest_training_molecule", 0)), int(member.facts["largest_training_molecule"])
        found = _elements([member], store)
        single = Combination((1.0,))
        return Predictor(path, "run", manifest.identity, (member,), single, member.scale.median, sizes, found)
    if manifest.kind != "ensemble":
        raise InputError(
            f"{model} cannot predict",
            got=manifest.kind,
            expected="a run, an ensemble or an exported folder",
            remedy="name one of those",
        )
    return _ensemble(path, manifest, store)


def _ensemble(path: Path, manifest: Manifest, store: Path | None) -> Predictor:
    summary = load_ensemble(path)
    members = []
    for item in summary.members:
        place = path / item.path  # which an absolute path replaces
        identity = read_manifest(place, "run").identity
        if identity != item.identity:
            raise InputError(
                f"{place} has changed since it became a member of {path}",
                got=identity,
                expected=item.identity,
                remedy="make the ensemble again",
            )
        members.append(_student(place))
    found = _elements(members, store)
    return Predictor(
        path,
        "ensemble",
        manifest.identity,
        tuple(members),
        summary.rule,
        summary.training_median,
        summary.training_sizes,
        found,
    )


def _student(path: Path) -> Member:
    run = load_run_folder(path)
    facts = run.manifest.facts
    if run.settings.role != "student":
        raise InputError(
            f"{path} is a teacher: it sees 3D geometry, and SMILES have none",
            got=run.settings.role,
            expected="a student, or an ensemble of students",
            remedy="distil it into a student (`cache`, then `train` with targets=…), and predict with that",
        )
    _check_vocabulary(path, facts.get("vocabulary"), "train it again with this version")
    for name in (CONFIG, WEIGHTS):
        if hash_file(path / name) != run.manifest.files[name].sha256:
            raise InputError(f"{path / name} has changed since the run ended", remedy="train the run again")
    return Member(path, run.manifest.identity, run.settings, run.model, run.scale, facts)


def _check_vocabulary(path: Path, found: object, remedy: str) -> None:
    if found != vocabulary_hash():
        raise InputError(
            f"{path} was made with another vocabulary of atom and bond features",
            got=found,
            expected=vocabulary_hash(),
            remedy=remedy,
        )


def _elements(members: list[Member], store: Path | None) -> tuple[int, ...] | None:
    """Atomic numbers of the training molecules, from the runs or their store; None where neither says."""
    told = [member.facts["training_elements"] for member in members if "training_elements" in member.facts]
    if len(told) == len(members):
        return tuple(sorted({int(number) for item in told for number in item}))
    place = store or Path(members[0].facts.get("store_path") or ".")
    expected = members[0].facts.get("store")
    if store is None and not (place / MANIFEST).is_file():
        return None
    try:
        opened = Store.open(place)
    except InputError:
        if store is not None:
            raise
        return None  # another thing lies there by now
    if opened.identity == expected:
        return training_elements(opened)
    if store is None:
        return None
    raise InputError(
        f"{store} is not the store that the model was trained on",
        got=opened.identity,
        expected=expected,
        remedy="name that store, or leave --store out",
    )


def _exported(path: Path, manifest: Manifest) -> Predictor:
    remedy = "export it again, or fetch it again"
    if changed := verify_hashes(path):
        raise InputError(f"{path / changed[0]} has changed since it was exported", remedy=remedy)
    raw = read_json(path / DESCRIPTION)
    try:
        if raw["export_schema"] != EXPORT_SCHEMA:
            got, expected = raw["export_schema"], EXPORT_SCHEMA
            raise InputError(f"{path} is of another version", got=got, expected=expected, remedy=remedy)
        _check_vocabulary(path, raw["vocabulary"], "export it again with this version")
        members = tuple(_exported_member(path / item["folder"], item) for item in raw["members"])
        elements = raw["training_elements"]
        return Predictor(
            path,
            EXPORT,
            manifest.identity,
            members,
            Combination.of(raw, [item["weight"] for item in raw["members"]]),
            float(raw["training_median"]),
            (int(raw["training_sizes"][0]), int(raw["training_sizes"][1])),
            None if elements is None else tuple(map(int, elements)),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path / DESCRIPTION} describes no export", got=repr(error), remedy=remedy) from error


def _exported_member(folder: Path, raw: Mapping[str, Any]) -> Member:
    settings = load_run(folder / CONFIG)
    model = build_model(settings.role, settings.model)
    load_weights(model, folder / WEIGHTS)
    return Member(folder, raw["identity"], settings, model.eval(), TargetScale(**raw["scale"]), raw["facts"])
