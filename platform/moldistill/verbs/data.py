"""Verbs that make data: label, prepare."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from moldistill.verbs.common import Json, Out, done


def label(
    source: Annotated[Path, typer.Argument(metavar="SMILES.csv", help="CSV with the column smiles; gzip or not.")],
    out: Out,
    seed: Annotated[int, typer.Option(min=0, help="Seed of conformers and splits.")] = 0,
    charges: Annotated[
        str, typer.Option(help="keep computes ions with their charge, refuse leaves them out.")
    ] = "keep",
    max_heavy_atoms: Annotated[int, typer.Option(min=1, help="Larger molecules are left out, with the reason.")] = 100,
    shuffle_sdf_atoms: Annotated[
        int | None, typer.Option(min=0, help="Seed; half of the SDF records get another atom order, as real data have.")
    ] = None,
    keep_test_labels: Annotated[
        bool, typer.Option("--keep-test-labels", help="Also write test_labels.csv.gz.")
    ] = False,
    origin: Annotated[str, typer.Option(help="A line on where the molecules come from, kept in the manifest.")] = "",
    as_json: Json = False,
) -> None:
    """Give own molecules a 3D structure (ETKDGv3, MMFF94) and a GFN1-xTB HOMO-LUMO gap: a root for `prepare`.

    Example: moldistill label molecules.csv --out root
    """
    from moldistill.chem.label import label as run_label
    from moldistill.chem.label_input import SplitShares
    from moldistill.chem.xtb import LabelSettings
    from moldistill.core.config import build

    raw = {"seed": seed, "charges": charges, "max_heavy_atoms": max_heavy_atoms, "shuffle_sdf_atoms": shuffle_sdf_atoms}
    settings = build(LabelSettings, raw, "label")
    summary = run_label(
        source,
        out,
        settings=settings,
        shares=SplitShares(seed=seed),
        keep_test_labels=keep_test_labels,
        origin=origin,
    )
    done(summary, as_json, out, f"moldistill prepare {out} --store store")


def prepare(
    source: Annotated[
        Path, typer.Argument(metavar="ROOT|CSV", help="A root in PCQM4Mv2's layout, or a CSV of SMILES.")
    ],
    store: Annotated[Path, typer.Option("--store", help="Folder to write; new or empty.")],
    valid_3d: Annotated[float, typer.Option(help="Share of training rows kept aside to judge teachers.")] = 0.05,
    limit: Annotated[int | None, typer.Option(help="Take a seeded sample of about N rows.")] = None,
    target: Annotated[str | None, typer.Option(help="Column of the target in a CSV.")] = None,
    unit: Annotated[str, typer.Option(help="Its unit: ev, hartree, kcal/mol, kj/mol, none.")] = "ev",
    seed: Annotated[int, typer.Option(help="Seed of the sample and of valid-3d.")] = 0,
    as_json: Json = False,
) -> None:
    """Turn a source into a memory-mapped store.

    Example: moldistill prepare sample --store store
    """
    from moldistill.chem.sample import resolve_source
    from moldistill.core.cluster import cluster
    from moldistill.core.config import build
    from moldistill.core.settings import PrepareSettings
    from moldistill.data.prepare import prepare as run_prepare

    raw = {"valid_3d": valid_3d, "limit": limit, "target": target, "unit": unit, "seed": seed}
    settings = build(PrepareSettings, raw, "prepare")
    with cluster() if os.environ.get("RAY_ADDRESS") else nullcontext():  # one process is fast enough without a cluster
        manifest = run_prepare(resolve_source(str(source)), store, settings)
    facts = manifest.facts
    following = f"moldistill predict RUN {source} --out predictions.csv"
    if facts["target"]["known"]:
        has_geometry = facts["alignment"]["same order"] + facts["alignment"]["matched"] > 0
        role = "teacher" if has_geometry else "student"
        following = f"moldistill train {role}-small --store {store} --out {role}"
    done(manifest, as_json, store, following)
