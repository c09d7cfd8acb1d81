"""What `stats` says of a store: by hand, against plain Python, and on the command line."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from moldistill.chem.sample import sample_root
from moldistill.cli import main
from moldistill.core.errors import InputError
from moldistill.core.settings import PrepareSettings
from moldistill.core.vocabulary import FLAGS
from moldistill.data import passes
from moldistill.data.duplicates import find_duplicates
from moldistill.data.groups import find_groups
from moldistill.data.prepare import prepare
from moldistill.data.stats import StoreStats, store_stats
from moldistill.data.store import Store
from moldistill.verbs import sections as rendering
from moldistill.verbs.sections import Section, bar, count_of, percent, plain, printable
from moldistill.verbs.stats_view import sections
from stores import augmented, smiles_of_root, store_of

ROWS = [
    ("CCO", 1.0, "train"),
    ("CCCN", 2.0, "train"),
    ("CCCCCl", None, "train"),  # without a label: not a training molecule
    ("C1CC", 9.0, "train"),  # refused
    ("CCCC", 4.0, "valid"),
    ("CCCCC", 1.0, "valid"),
    ("CCS", None, "test-dev"),
    ("CCCCCBr", None, "test-dev"),
    ("*CC", None, "test-dev"),
    ("F[Si](F)(F)(F)(F)F", 3.0, "test-challenge"),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return store_of(tmp_path_factory.mktemp("stats"), ROWS)


def test_splits_flags_and_targets(small: Store) -> None:
    found = store_stats(small)
    assert {name: split.rows for name, split in found.splits.items()} == {
        "train": 4,
        "valid": 2,
        "test-dev": 3,
        "test-challenge": 1,
    }
    assert found.splits["train"].flags["refused"] == 1
    assert (found.whole.rows, found.whole.with_graph, found.whole.with_positions) == (10, 9, 0)
    assert found.whole.flags == dict(zip(FLAGS, (8, 1, 1, 0, 0), strict=True))
    valid = found.splits["valid"].target
    assert valid is not None
    assert (valid.known, valid.mean, valid.std, valid.median, valid.min, valid.max) == (2, 2.5, 1.5, 2.5, 1.0, 4.0)
    assert valid.median_error == 1.5, "the training median is 1.5: of the labelled rows with a graph"
    assert found.splits["test-dev"].target is None
    assert found.rdkit == small.manifest.facts["rdkit"]
    assert found.duplicates is None


def test_sizes_elements_and_what_lies_outside(small: Store) -> None:
    found = store_stats(small)
    train = found.splits["train"].sizes
    assert train is not None
    assert (train.mean, train.median, train.smallest, train.largest) == (4.0, 4, 3, 5)
    assert train.histogram["1-5"] == 3
    assert found.largest_training_molecule == 4
    assert found.splits["train"].outside is None
    outside = {name: split.outside for name, split in found.splits.items() if split.outside is not None}
    assert {name: (one.larger, one.foreign, one.either) for name, one in outside.items()} == {
        "valid": (1, 0, 1),
        "test-dev": (1, 3, 3),
        "test-challenge": (1, 1, 1),
    }
    assert outside["test-dev"].elements == {"S": 1, "Br": 1, "other": 1}
    assert outside["test-challenge"].elements == {"F": 1, "Si": 1}
    assert found.elements["C"].molecules == 8
    assert found.elements["F"].atoms == 6
    assert found.elements["Cl"].share == pytest.approx(1 / 9)
    assert next(iter(found.elements)) == "C"


def test_a_store_without_training_molecules(tmp_path: Path) -> None:
    (tmp_path / "bare.csv").write_text("smiles\nCCO\nC1CC\n")
    prepare(tmp_path / "bare.csv", tmp_path / "store", PrepareSettings())
    found = store_stats(Store.open(tmp_path / "store"))
    assert list(found.splits) == ["none"]
    assert found.largest_training_molecule is None
    assert found.whole.target is found.whole.outside is None
    text = plain(list(sections(found)))
    assert "No row has a known target." in text
    assert "There is no training molecule." in text


def test_a_store_without_any_molecule(tmp_path: Path) -> None:
    store = store_of(tmp_path, [("C1CC", 1.0, "train"), ("C1CC", 2.0, "valid")])
    found = store_stats(store, find_groups(store))
    assert found.whole.sizes is None
    assert found.elements == {}
    text = plain(list(sections(found)))
    assert "contradicting labels: 1 of 1 molecules" in text


def assert_counted(store: Store, found: StoreStats) -> None:
    """Against one molecule after the other."""
    molecules = [store.molecule(row) for row in range(len(store))]
    for name, split in found.splits.items():
        chosen = [one for one in molecules if (one.split or "none") == name]
        assert split.flags == dict.fromkeys(FLAGS, 0) | Counter(one.flag for one in chosen)
        assert split.with_positions == sum(one.positions is not None for one in chosen)
        sizes = [len(one.atom_features) for one in chosen if len(one.atom_features)]
        assert split.sizes is not None
        assert sum(split.sizes.histogram.values()) == len(sizes) == split.with_graph
        assert (split.sizes.smallest, split.sizes.largest) == (min(sizes), max(sizes))
        assert split.sizes.mean == pytest.approx(np.mean(sizes))
        known = [one.target for one in chosen if np.isfinite(one.target)]
        assert (0 if split.target is None else split.target.known) == len(known)
        if split.target is not None:
            assert split.target.median == np.median(known)
            assert split.target.std == pytest.approx(np.std(known))
    numbers = Counter(number for one in molecules for number in set(one.atom_features[:, 0].tolist()))
    assert sorted(numbers.values()) == sorted(element.molecules for element in found.elements.values())
    assert sum(element.atoms for element in found.elements.values()) == len(store.atom_features)


def test_figures_against_one_molecule_after_the_other(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "BLOCK", 17)  # blocks do not show in the result
    store = Store.open(tiny_store)
    found = store_stats(store)
    assert_counted(store, found)
    assert dict(found.alignment) == store.manifest.facts["alignment"]
    for name in ("mean", "std", "median", "min", "max", "known"):
        assert getattr(found.splits["train"].target, name) == pytest.approx(store.manifest.facts["target"][name])
    total = sum(entry.size for name, entry in store.manifest.files.items() if name.endswith(".npy"))
    assert sum(found.bytes_per_row.values()) * len(store) == pytest.approx(total)
    bigger = store_of(tmp_path, augmented(smiles_of_root(sample_root())[::5]))
    assert_counted(bigger, store_stats(bigger))


def test_blocks_do_not_show_in_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(tmp_path, augmented(smiles_of_root(sample_root())[:100]))
    whole = find_duplicates(store)
    monkeypatch.setattr(passes, "BLOCK", 13)
    assert find_duplicates(store) == whole


@pytest.mark.parametrize("name", ["qm9_2k", "xtb_24k"])
def test_real_sets(real_data: Path, tmp_path: Path, name: str) -> None:
    prepare(real_data / name, tmp_path / "store", PrepareSettings(limit=2500))
    store = Store.open(tmp_path / "store")
    assert_counted(store, store_stats(store))


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def stats(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs the verb in this process, in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moldistill", "stats", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def repeated(tmp_path: Path) -> Store:
    rows = [("CCO", 1.0, "train"), ("OCC", 2.0, "valid"), ("CCN", 1.0, "train"), ("[OH3+].[Cl-]", 1.0, "test-dev")]
    return store_of(tmp_path, [*rows, ("C(=O)[O-]", 1.0, "train"), ("[O-]C=O", None, "test-dev")])


def test_the_verb_prints_tables(stats: Command, repeated: Store) -> None:
    code, out, _ = stats(repeated.path)
    assert code == 0
    for words in ("splits", "target, eV", "atoms per molecule", "elements", "beyond the training molecules", "storage"):
        assert f"\n{words}\n" in out
    assert "6 rows compared: 4 different molecules. Of these, 2 occur more than once, in 4 rows; 2 are in" in out
    assert "valid: rows whose molecule is in train, too: 1 (100.0%)" in out
    assert "contradicting labels: 1 of 1 molecules" in out
    assert "the largest difference is 1 eV" in out
    assert "O=C[O-]" in out, "brackets are no markup"
    assert "\x1b" not in out
    assert all(line == line.rstrip() for line in out.splitlines())


def test_the_verb_prints_one_json_value(stats: Command, repeated: Store) -> None:
    code, out, _ = stats(repeated.path, "--json")
    assert code == 0
    groups = find_groups(repeated)
    assert json.loads(out) == json.loads(json.dumps(asdict(store_stats(repeated, groups)), allow_nan=False))
    assert json.loads(out)["duplicates"]["crossing"] == 2
    code, out, _ = stats(repeated.path, "--json", "--no-duplicates")
    assert json.loads(out)["duplicates"] is None
    _, out, _ = stats(repeated.path, "--json", "--tolerance", "1")
    assert json.loads(out)["duplicates"]["contradicting"] == 0


def test_without_duplicates_none_are_looked_for(stats: Command, repeated: Store) -> None:
    code, out, _ = stats(repeated.path, "--no-duplicates")
    assert code == 0
    assert "contradicting" not in out


def test_the_verb_writes_a_table(stats: Command, repeated: Store, tmp_path: Path) -> None:
    code, _, err = stats(repeated.path, "--csv", "duplicates.csv")
    assert code == 0
    assert "wrote duplicates.csv" in err
    with (tmp_path / "duplicates.csv").open(encoding="utf-8") as stream:
        assert [row["row"] for row in csv.DictReader(stream)] == ["0", "1", "4", "5"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["STORE", "--csv", "there.csv"], ["there.csv exists already"]),
        (["STORE", "--csv", "folder"], ["folder is a folder"]),
        (["STORE", "--csv", "there.csv/in.csv"], ["cannot be written"]),
        (["STORE", "--csv", "new.csv", "--no-duplicates"], ["--csv lists duplicates"]),
        (["STORE", "--tolerance", "nan"], ["tolerance"]),
        (["STORE", "--tolerance", "-1"], ["tolerance"]),
        (["none"], ["none does not exist"]),
        (["folder"], ["has no manifest.json"]),
        ([], ["STORE"]),
    ],
)
def test_wrong_input_is_refused(
    stats: Command, repeated: Store, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "there.csv").touch()
    (tmp_path / "folder").mkdir()
    code, out, err = stats(*(repeated.path if word == "STORE" else word for word in arguments))
    assert code == 2
    assert all(word in err for word in words), err
    assert "Traceback" not in err
    assert "{" not in out


def test_damaged_content_is_refused(stats: Command, repeated: Store, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(repeated.path, tmp_path / "copy"))
    column = np.lib.format.open_memmap(copied / "atom_offsets.npy", mode="r+")
    column[1] = 10**6
    column.flush()
    with pytest.raises(InputError, match="is damaged"):
        store_stats(Store.open(copied))
    code, out, err = stats(copied, "--no-duplicates", "--json")
    assert (code, out) == (2, "")
    assert "1000000 entries in row 0" in err
    assert "Traceback" not in err


def test_a_terminal_gets_rich_tables(
    repeated: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rendering, "is_interactive", lambda: True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TERM", "xterm")
    rendering.show(list(sections(store_stats(repeated, find_groups(repeated)))))
    out = capsys.readouterr().out
    assert "━" in out or "─" in out
    assert "O=C[O-]" in out
    assert "█" in out


def test_cells() -> None:
    assert [percent(*pair) for pair in ((0, 9), (1, 3), (1, 10**6), (5, 0), (3, 3))] == [
        "0.0%",
        "33.3%",
        "<0.1%",
        "-",
        "100.0%",
    ]
    assert count_of(1500, 3000) == "1,500 (50.0%)"
    assert count_of(0, 3000) == "0"
    assert bar(10, 10).count("█") == len(bar(1, 10**6)) == 24
    assert bar(1, 10**6).strip() == "█"
    assert bar(0, 0).strip() == ""
    assert printable("C\x1b[2J\nC") == "C?[2J?C"
    assert len(printable("C" * 300)) == 60
    assert plain([Section("title", (), [["a", "1"], ["long", "2"]], ("note",))]) == "title\na     1\nlong  2\nnote\n"
