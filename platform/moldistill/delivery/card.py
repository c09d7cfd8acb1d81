"""The model card of an exported folder: what the students were trained on, how well they do, where they end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moldistill import __version__
from moldistill.core.vocabulary import MAX_ATOMS
from moldistill.delivery.engine import symbol
from moldistill.delivery.predictor import Member, Predictor

CARD = "README.md"


@dataclass(frozen=True, slots=True)
class ErrorClass:
    """MAE (eV) of molecules of `smallest` to `largest` heavy atoms, with its 95% interval where it is known.

    beyond: larger than every training molecule.
    """

    smallest: int
    largest: int
    rows: int
    mae: float
    low: float | None
    high: float | None
    beyond: bool


def card(predictor: Predictor, errors: Sequence[ErrorClass], graphs: Sequence[str]) -> str:
    """Markdown."""
    parts = [
        _head(predictor),
        _training(predictor),
        _errors(predictor, errors),
        _limits(predictor),
        _use(graphs),
        _reader(),
    ]
    return "\n\n".join(parts) + "\n"


def _head(predictor: Predictor) -> str:
    count, total = len(predictor.members), sum(member.parameters for member in predictor.members)
    what = "a student" if count == 1 else f"an ensemble of {count} students"
    return (
        f"# HOMO-LUMO gaps from SMILES\n\n"
        f"This is {what} ({total:,} parameters) that predicts a molecule's target, in eV, from its SMILES alone, made "
        f"by moldistill {__version__}. It was trained as a 2D student; no geometry is needed."
    )


def _training(predictor: Predictor) -> str:
    facts = predictor.members[0].facts
    lines = [
        "## What it was trained on",
        "",
        f"- Store `{facts['store']}`, split `{facts['split_hash']}`, vocabulary `{facts['vocabulary']}` (content "
        "hashes). No other data was used by moldistill.",
        f"- {predictor.kind} `{predictor.identity}`",
        "",
        "| student | weight | parameters | training rows | epochs | steps | seed | distilled |",
        "|---|---|---|---|---|---|---|---|",
    ]
    weights = predictor.combination.weights
    lines += [_member(member, weight) for member, weight in zip(predictor.members, weights, strict=True)]
    if predictor.combination.kind == "median":
        lines += ["", "The prediction is the median of the students with a weight."]
    elif predictor.combination.class_weights is not None:
        lines += ["", "The weights depend on the molecule's size: see `class_weights` in `export.json`."]
    return "\n".join(lines)


def _member(member: Member, weight: float) -> str:
    model, facts = member.settings.model, member.facts
    numbers = [f"{facts[name]:,}" if name in facts else "" for name in ("training_rows", "epochs", "steps")]
    cells = [
        f"{model.name}, width {model.width}, depth {model.depth}",
        f"{weight:.3f}",
        f"{member.parameters:,}",
        *numbers,
        str(facts.get("seed", "")),
        "yes" if member.settings.distill.needs_teacher else "no",
    ]
    return f"| {' | '.join(cells)} |"


def _errors(predictor: Predictor, errors: Sequence[ErrorClass]) -> str:
    if not errors:
        return "## Errors\n\nNo labelled validation rows were at hand when this was exported."
    chosen = (
        "validation rows that chose neither members nor weights"
        if predictor.kind == "ensemble"
        else "validation rows; where they chose this run among others, that makes the figures a little too good"
    )
    rows = sum(item.rows for item in errors)
    mean = sum(item.rows * item.mae for item in errors) / rows
    lines = [
        "## Errors",
        "",
        f"Mean absolute error {mean:.4f} eV on {rows:,} {chosen}.",
        "",
        "| heavy atoms | rows | MAE (eV) | 95% interval |",
        "|---|---|---|---|",
    ]
    for item in errors:
        span = f"{item.smallest} to {item.largest}" + (", larger than in training" if item.beyond else "")
        ends = "" if item.low is None or item.high is None else f"{item.low:.4f} to {item.high:.4f}"
        lines.append(f"| {span} | {item.rows:,} | {item.mae:.4f} | {ends} |")
    calibration = predictor.combination.calibration
    if calibration is not None:
        levels = ", ".join(f"{level:.0%}" for level in calibration.levels)
        lines += ["", f"`predict` also gives intervals (columns low and high), calibrated for {levels}."]
    return "\n".join(lines)


def _limits(predictor: Predictor) -> str:
    low, high = predictor.sizes
    sizes = f"{low} to {high}" if low else f"at most {high}"
    elements = (
        "not known: the store was not at hand when this was exported"
        if predictor.elements is None
        else ", ".join(symbol(number) for number in predictor.elements)
    )
    return "\n".join(
        (
            "## Limits",
            "",
            f"- Sizes: the training molecules have {sizes} heavy atoms; beyond that the model extrapolates.",
            f"- Elements of the training molecules: {elements}.",
            f"- Molecules of more than {MAX_ATOMS} heavy atoms, and SMILES that RDKit refuses, are given the training "
            f"median, {predictor.median:.4f} eV. `predict` names them, and those outside of the training molecules, in "
            "the column `reason`.",
            "- Unit: eV, if the store was prepared with the unit of its source. Molecules are taken as they are "
            "written: no salts are stripped, no tautomers chosen.",
            "- Conformers of a molecule have one SMILES and are given one value.",
        )
    )


def _use(graphs: Sequence[str]) -> str:
    lines = ["## How to use it", "", "```bash", "moldistill predict FOLDER molecules.csv --out predictions.csv", "```"]
    if graphs:
        lines += [
            "",
            f"Without moldistill's models: {', '.join(f'`{name}`' for name in graphs)}. Inputs are 64-bit integers, "
            "padded to the largest molecule of the batch: `size` [batch]; `atom_features` [batch, atoms, 9] in OGB's "
            "order (padding 0); `shortest_paths` [batch, atoms, atoms] in bonds (255 where unreachable, and in "
            "padding); `bond_codes` [batch, atoms, atoms] (0 for no bond, else 2 * (6 * type + stereo) + "
            "conjugation + 1, of OGB's indices). The output is eV. Weights of the members are in `export.json`.",
        ]
    return "\n".join(lines)


def _reader() -> str:
    return "\n".join(
        (
            "## To be filled in by whoever publishes it",
            "",
            "- Licence:",
            "- Intended use:",
            "- Contact:",
        )
    )
