"""What `stats` shows of a store, section by section."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from moldistill.data.duplicates import Duplicates, Repeated
from moldistill.data.stats import SplitStats, StoreStats
from moldistill.verbs.sections import BAR, Section, bar, count_of, energy, percent, printable

SHOWN = 5
"""Molecules of each kind, and rows of a molecule, that are shown; --json has more, --csv all."""

ELEMENTS = 20
"""Elements that are shown."""

ALL = "all rows"


def sections(stats: StoreStats) -> Iterator[Section]:
    """What there is to show, in order."""
    yield _overview(stats)
    yield _splits(stats)
    yield from _targets(stats)
    yield from _sizes(stats)
    yield from _elements(stats)
    yield from _outside(stats)
    yield _storage(stats)
    if stats.duplicates is not None:
        yield from _duplicates(stats, stats.duplicates)


def _overview(stats: StoreStats) -> Section:
    whole, source = stats.whole, stats.source
    cases = ", ".join(f"{name} {count:,}" for name, count in stats.alignment.items() if count)
    rows = [
        ["rows", f"{stats.rows:,}"],
        ["with a graph", count_of(whole.with_graph, stats.rows)],
        ["with geometry", count_of(whole.with_positions, stats.rows)],
        ["SDF records", cases or "none"],
        ["source", f"{source.get('kind', 'unknown')} {source.get('path', '')}".strip()],
        ["RDKit", stats.rdkit],
        ["identity", stats.identity],
    ]
    return Section(f"store {stats.path}", (), rows)


def _splits(stats: StoreStats) -> Section:
    flags = [name for name, count in stats.whole.flags.items() if count]
    return Section(
        "splits",
        ("split", "rows", "share", "with geometry", *flags),
        [
            [
                name,
                f"{split.rows:,}",
                percent(split.rows, stats.rows),
                f"{split.with_positions:,}",
                *(f"{split.flags[flag]:,}" for flag in flags),
            ]
            for name, split in _with_whole(stats)
        ],
        notes=("Rows that are neither fine nor unsanitized have no graph.",) if len(flags) > 2 else (),
    )


def _targets(stats: StoreStats) -> Iterator[Section]:
    rows = [
        [
            name,
            f"{target.known:,}",
            *(energy(value) for value in (target.mean, target.std, target.median, target.min, target.max)),
            energy(target.median_error),
        ]
        for name, split in _with_whole(stats)
        if (target := split.target) is not None
    ]
    if rows:
        header = ("split", "known", "mean", "std", "median", "min", "max", "MAE of training median")
        yield Section("target, eV", header, rows)
    else:
        yield Section("target", (), [], notes=("No row has a known target.",))


def _sizes(stats: StoreStats) -> Iterator[Section]:
    known = [(name, split.sizes) for name, split in _with_whole(stats) if split.sizes is not None]
    if not known:
        return
    whole = known[-1][1]
    classes = [name for name, count in whole.histogram.items() if count]
    most = max(whole.histogram.values())
    figures: tuple[tuple[str, Callable[[int], str]], ...] = (
        ("mean", lambda place: f"{known[place][1].mean:.1f}"),
        ("median", lambda place: str(known[place][1].median)),
        ("smallest", lambda place: str(known[place][1].smallest)),
        ("largest", lambda place: str(known[place][1].largest)),
    )
    rows = [[title, *(figure(place) for place in range(len(known))), bar(0, 1)] for title, figure in figures]
    rows += [
        [
            name,
            *(percent(sizes.histogram[name], sum(sizes.histogram.values())) for _, sizes in known),
            bar(whole.histogram[name], most),
        ]
        for name in classes
    ]
    yield Section("atoms per molecule", ("", *(name for name, _ in known), "".ljust(BAR)), rows, bars=True)


def _elements(stats: StoreStats) -> Iterator[Section]:
    if not stats.elements:
        return
    most = max(element.molecules for element in stats.elements.values())
    rows = [
        [
            symbol,
            f"{element.atoms:,}",
            f"{element.molecules:,}",
            percent(element.share, 1),
            bar(element.molecules, most),
        ]
        for symbol, element in list(stats.elements.items())[:ELEMENTS]
    ]
    rest = list(stats.elements)[ELEMENTS:]
    notes = (f"and {len(rest)} more: {', '.join(rest)}",) if rest else ()
    yield Section("elements", ("element", "atoms", "molecules", "share", "".ljust(BAR)), rows, notes, bars=True)


def _outside(stats: StoreStats) -> Iterator[Section]:
    largest = stats.largest_training_molecule
    if largest is None:
        yield Section("beyond the training molecules", (), [], notes=("There is no training molecule.",), alarm=True)
        return
    rows, notes = [], []
    for name, split in stats.splits.items():
        if (outside := split.outside) is None:
            continue
        counts = (outside.larger, outside.foreign, outside.either)
        rows.append([name, *(count_of(count, split.with_graph) for count in counts)])
        if outside.elements:
            named = ", ".join(f"{symbol} {count:,}" for symbol, count in outside.elements.items())
            notes.append(f"{name}: molecules by element that training lacks: {named}")
    if rows:
        header = ("split", f"more than {largest} atoms", "an element that training lacks", "either")
        alarm = any(split.outside is not None and split.outside.either for split in stats.splits.values())
        yield Section("beyond the training molecules", header, rows, notes, alarm=alarm)


def _storage(stats: StoreStats) -> Section:
    total = sum(stats.bytes_per_row.values())
    rows = [
        [name, f"{size:,.1f}", f"{size * stats.rows / 1e6:,.1f}", bar(size, max(total, 1))]
        for name, size in (*stats.bytes_per_row.items(), ("total", total))
    ]
    return Section("storage", ("columns", "bytes per row", "MB", "".ljust(BAR)), rows, bars=True)


def _duplicates(stats: StoreStats, found: Duplicates) -> Iterator[Section]:
    notes = [
        f"{found.compared:,} rows compared: {found.different:,} different molecules. Of these, {found.molecules:,} "
        f"occur more than once, in {found.rows:,} rows; {found.crossing:,} are in several splits."
    ]
    names = list(found.shared)
    for name, row in found.seen.get("train", {}).items():
        if name != "train" and row:
            notes.append(f"{name}: rows whose molecule is in train, too: {count_of(row, stats.splits[name].rows)}")
    rows = [[one, *(f"{found.shared[one][other]:,}" for other in names)] for one in names] if found.molecules else []
    yield Section(
        "molecules that two splits share (on the diagonal: more than once in the split)",
        ("", *names),
        rows,
        notes,
        alarm=found.crossing > 0,
    )
    if found.across:
        title = f"molecules in several splits: {min(SHOWN, len(found.across))} of {found.crossing:,}"
        yield _listed(title, found.across)
    if found.contradicting:
        title = f"contradicting labels: {min(SHOWN, len(found.worst))} of {found.contradicting:,} molecules"
        yield _listed(
            title,
            found.worst,
            f"Labels of {found.contradicting:,} molecules, in {found.contradicting_rows:,} rows, differ by more than "
            f"{found.tolerance:g} eV; the largest difference is {found.largest:.6g} eV.",
        )
    else:
        yield Section("contradicting labels", (), [], (f"None: no two differ by more than {found.tolerance:g} eV.",))


def _listed(title: str, molecules: Sequence[Repeated], *notes: str) -> Section:
    rows = []
    for molecule in molecules[:SHOWN]:
        named = list(zip(molecule.rows, molecule.splits, molecule.targets, strict=True))
        for place, (row, split, target) in enumerate(named[:SHOWN]):
            first = place == 0
            rows.append(
                [
                    printable(molecule.smiles) if first else "",
                    f"{molecule.spread:.6g}" if first else "",
                    str(row),
                    split,
                    energy(target),
                ]
            )
        if molecule.occurrences > len(named[:SHOWN]):
            rows.append(["", "", f"and {molecule.occurrences - len(named[:SHOWN]):,} more", "", ""])
    return Section(title, ("molecule", "difference, eV", "row", "split", "target, eV"), rows, notes, alarm=True)


def _with_whole(stats: StoreStats) -> list[tuple[str, SplitStats]]:
    return [*stats.splits.items(), (ALL, stats.whole)]
