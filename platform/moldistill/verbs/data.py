"""Verbs that make data and say what it is: label, download, prepare, stats."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from moldistill.core.progress import log
from moldistill.verbs.common import Json, Out, done, print_json


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


def download(
    out: Annotated[Path, typer.Option("--out", help="Folder of the root; new, empty, or begun by download.")],
    without_geometry: Annotated[
        bool, typer.Option("--without-geometry", help="Leave out the SDF of 1.6 GB: students need none, teachers do.")
    ] = False,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Folder of a server that has the same files; it is tried first.")
    ] = None,
    keep_archive: Annotated[
        bool, typer.Option("--keep-archive", help="Keep pcqm4m-v2.zip once it is unpacked.")
    ] = False,
    attempts: Annotated[
        int, typer.Option(min=1, help="Connections to an address that may fail in a row before it gives up.")
    ] = 6,
    as_json: Json = False,
) -> None:
    """Fetch the official files of PCQM4Mv2 into a root for `prepare`. Run it again after a stop: it goes on.

    Example: moldistill download --out pcqm4m-v2
    """
    from moldistill.chem.download import download as run_download
    from moldistill.chem.transfer import Patience

    summary = run_download(
        out,
        geometry=not without_geometry,
        mirror=mirror,
        keep_archive=keep_archive,
        patience=Patience(attempts=attempts),
    )
    following = f"moldistill prepare {out} --store store"
    if summary.changed:
        done(summary, as_json, out, following)
        return
    if as_json:
        print_json(summary)
    log(f"{out} is complete and was verified: there was nothing to do")
    log(f"next:  {following}")


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
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default as many as pay, or those of the Ray cluster.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn a source into a memory-mapped store. Stopped or killed, the same command goes on where it was.

    Example: moldistill prepare sample --store store
    """
    from moldistill.chem.sample import resolve_source
    from moldistill.core.config import build
    from moldistill.core.settings import PrepareSettings
    from moldistill.data.prepare import prepare as run_prepare

    raw = {"valid_3d": valid_3d, "limit": limit, "target": target, "unit": unit, "seed": seed}
    settings = build(PrepareSettings, raw, "prepare")
    manifest = run_prepare(resolve_source(str(source)), store, settings, processes=processes)
    facts = manifest.facts
    following = f"moldistill predict RUN {source} --out predictions.csv"
    if facts["target"]["known"]:
        has_geometry = facts["alignment"]["same order"] + facts["alignment"]["matched"] > 0
        role = "teacher" if has_geometry else "student"
        following = f"moldistill train {role}-small --store {store} --out {role}"
    done(manifest, as_json, store, following)


def stats(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder that `prepare` wrote.")],
    duplicates: Annotated[
        bool, typer.Option("--duplicates/--no-duplicates", help="Also look for molecules that occur more than once.")
    ] = True,
    listing: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write every row of a repeated molecule; a new file.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Difference of a molecule's labels (eV) that is no contradiction yet.")
    ] = 1e-6,
    as_json: Json = False,
) -> None:
    """Say what a store holds: sizes, elements, targets, molecules unlike those of training, duplicates, contradictions.

    Example: moldistill stats store
    """
    from moldistill.core.cluster import cluster
    from moldistill.core.errors import InputError
    from moldistill.data.duplicates import check_csv, check_tolerance, write_csv
    from moldistill.data.groups import find_groups
    from moldistill.data.stats import store_stats
    from moldistill.data.store import Store
    from moldistill.verbs.sections import show
    from moldistill.verbs.stats_view import sections

    check_tolerance(tolerance)
    if listing is not None:
        if not duplicates:
            raise InputError("--csv lists duplicates", got="--no-duplicates", remedy="leave one of the two out")
        check_csv(listing)
    opened = Store.open(store)
    with cluster() if duplicates and os.environ.get("RAY_ADDRESS") else nullcontext():
        groups = find_groups(opened) if duplicates else None
    found = store_stats(opened, groups, tolerance=tolerance)
    if as_json:
        print_json(found)
    else:
        show(list(sections(found)))
    if listing is not None and groups is not None:
        write_csv(opened, groups, listing)
        log(f"wrote {listing}")
