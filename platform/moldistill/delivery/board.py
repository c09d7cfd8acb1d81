"""What the leaderboard of OGB-LSC asks in its form, as far as it can be known here."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moldistill import __version__
from moldistill.core.artifacts import MANIFEST, read_manifest
from moldistill.data.store import Store
from moldistill.delivery.ensemble_summary import EnsembleSummary

OFFICIAL_ORIGIN = "PCQM4Mv2 of OGB-LSC"
"""What the manifest of a root says that `download` made."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A field of the leaderboard's form; answer None: only the user knows."""

    question: str
    answer: str | None
    note: str = ""


def hardware() -> str:
    """GPU, if PyTorch can use one, and processor with its number of cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(names) or torch.get_num_threads()
    processor = f"{names[0] if names else platform.processor() or platform.machine()} ({cores} logical cores)"
    return f"{torch.cuda.get_device_name()}, {processor}" if torch.cuda.is_available() else processor


def external_data(store: Store, official: bool) -> tuple[str | None, str]:
    """The answer, or None where the user must know; and what is known."""
    source = store.manifest.facts.get("source") or {}
    files = ", ".join(f"{name} (SHA-256 {digest[:12]}…)" for name, digest in store.manifest.inputs.items())
    root = Path(str(source.get("path", ""))).parent.parent
    if source.get("kind") == "root" and (root / MANIFEST).is_file():
        manifest = read_manifest(root, "root")
        same = {Path(name).name: entry.sha256 for name, entry in manifest.files.items()}
        unchanged = all(same.get(name) == digest for name, digest in store.manifest.inputs.items())
        if unchanged and manifest.facts.get("origin") == OFFICIAL_ORIGIN:
            return "none", f"everything was made from PCQM4Mv2's own files, {files}; graphs by RDKit"
        origin = manifest.facts.get("origin") or "their root does not say where they are from"
        return None, f"the store was made from {files}: {origin}"
    counts = "with PCQM4Mv2's numbers of rows" if official else "not with PCQM4Mv2's numbers of rows"
    return None, f"the store was made from {files}, {counts}; whose files these are is not recorded"


def form(
    summary: EnsembleSummary, told: Mapping[str, Any], parameters: int, data: tuple[str | None, str]
) -> list[Answer]:
    """What the leaderboard asks, as far as it can be known here."""
    seconds, score = told["seconds"], summary.score
    names = f"{len(summary.members)} members, {summary.combiner}"
    took = None if seconds is None else f"{seconds:,.0f} s ({seconds / 3600:.2f} h) for {told['rows']:,} molecules"
    return [
        Answer("Method", None, f"an ensemble of students ({names})"),
        Answer("Team and contact", None),
        Answer("Paper", None),
        Answer("Code", None, f"moldistill {__version__}"),
        Answer(
            "Validation MAE",
            f"{score.value:.4f} eV",
            f"95% interval {score.low:.4f} to {score.high:.4f}, on {summary.rows_scored_on:,} rows of valid that chose "
            "neither members, weights nor combiner",
        ),
        Answer("Parameters", f"{parameters:,}", "of all members together"),
        Answer("Hardware", hardware(), "of this machine: say it if another one trained the members"),
        Answer("Inference time of both tests", took, str(told["how"])),
        Answer("External data", data[0], data[1]),
        Answer("Labels of valid", "trained no model; they choose members, combiner and weights"),
    ]  # fmt: skip
