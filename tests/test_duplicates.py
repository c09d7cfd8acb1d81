"""Molecules that occur more than once: by hand, and against canonical SMILES of every row."""

from __future__ import annotations

import csv
import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem, rdBase

from moldistill.chem.parse import parse_as_written
from moldistill.chem.sample import sample_root
from moldistill.core.errors import InputError
from moldistill.core.vocabulary import FLAGS
from moldistill.data import groups as module
from moldistill.data.duplicates import (
    HEADER,
    MAX_ROWS,
    Duplicates,
    duplicates_summary,
    find_duplicates,
    write_csv,
)
from moldistill.data.groups import canonical_smiles, find_groups
from moldistill.data.identity import row_hashes
from moldistill.data.passes import SPLIT_NAMES
from moldistill.data.store import Store
from stores import augmented, rewritten, smiles_of_root, store_of

ODD = (
    "[H][H]", "[2H]OC", "[Na+].[Cl-]", "[Fe+2]", "*CC*", "[13CH4]", "[CH3]", "[CH2]C", "C[N+](=O)[O-]", "CN(=O)=O",
    "O=Cl(=O)(=O)O", "F/C=C/F", "FC=CF", "C[C@H](N)C(=O)O", "[H]/N=C/C", "c1cc[nH]c1", "c1ccc2c(c1)ccc1ccccc12",
    "FP(F)(F)(F)F", "FS(F)(F)(F)(F)F", "[C-]#[O+]", "[O-][n+]1ccccc1", "C1=CC=CC=CC=C1", "Cl[Pt](Cl)(N)N", "C->[Fe]",
    "F[P@](Cl)(Br)=O", "C[S@](=O)CC", "N[Co@OH6](N)(N)(N)(N)N", "[U]", "[O][O]", "CC=[N]", "OC(=O)/C=C/C(=O)O",
    "C1CC23CCC2(C1)CC3", "C1CC2(CC2)C2(C1)CC2", "C12C3C4C1C5C2C3C45", "[CH3:7]O", "C1CCC2(CC1)CCCC2.Cl.[K+].[OH-]",
    "c1ccc2c(c1)[n-]c1ccccc12", "O=c1cc[nH]c(=O)[nH]1", "c1cc2ccc3cccc4ccc(c1)c2c34", "[Cu+2].[O-]S(=O)(=O)[O-]",
    "C1=CC2=CC=CC=CC2=C1", "B1OB(O1)c1ccccc1", "[SiH3][SiH2][SiH3]", "C/C=C/C=C\\C", "N=[N+]=[N-]", "[H+].[Cl-]",
    "C%10CCCCC%10", "OC1C2OC3C(O)C2C13", "OC1C2OC3C(O)C3C12", "[3H]C([2H])([1H])O", "C1CC1[C@@H](F)[C@H](Cl)Br",
    "F[Si](F)(F)(F)(F)F", "O[Si]123O[Si]3(O1)(O2)O", "C[N](C)(C)(C)C", "O=C1C=CC(=O)c2c1cc[n]2(C)C",
    "c1ccccc1c1cccc1", "CCl(C)C", "c1cccc1.[Na+]", "CC(C)(C)(C)(C)C", "[NH4]C", "C[Br](C)F",
)  # fmt: skip
"""Charges, radicals, isotopes, wildcards, metals, cages, stereo, fragments; the last ones RDKit cannot sanitize."""


def by_canonical_smiles(store: Store) -> dict[tuple[str, str], list[int]]:
    """Rows by molecule, by RDKit alone; rows without atoms are left out."""
    found = defaultdict(list)
    with rdBase.BlockLogs():
        for row in range(len(store)):
            smiles, flag = store.smiles(row), FLAGS[store.flag[row]]
            if flag == "fine":
                key = (flag, Chem.MolToSmiles(Chem.MolFromSmiles(smiles)))
            elif flag == "unsanitized":
                key = (flag, Chem.MolToSmiles(parse_as_written(smiles)[0]))
            else:
                key = ("text", smiles)
            if flag != "empty":
                found[key].append(row)
    return dict(found)


def by_hand(molecules: Sequence[Sequence[int]], store: Store) -> dict[str, object]:
    """The counts of `Duplicates`, one molecule after the other, in plain Python. molecules: rows of each."""
    repeated = [rows for rows in molecules if len(rows) > 1]
    splits = [SPLIT_NAMES[code] for code in store.split]
    names = [name for name in SPLIT_NAMES if name in splits or (name == "none" and -1 in store.split)]
    shared = {one: dict.fromkeys(names, 0) for one in names}
    crossing, contradicting, contradicting_rows, largest = 0, 0, 0, 0.0
    for rows in repeated:
        of = [splits[row] for row in rows]
        for one in set(of):
            for other in set(of):
                shared[one][other] += of.count(one) > 1 if one == other else 1
        crossing += len(set(of)) > 1
        known = [float(store.target[row]) for row in rows if np.isfinite(store.target[row])]
        if known and max(known) - min(known) > 1e-6 + 2**-23 * max(map(abs, known)):
            contradicting, contradicting_rows = contradicting + 1, contradicting_rows + len(rows)
            largest = max(largest, max(known) - min(known))
    return {
        "compared": sum(map(len, molecules)),
        "different": len(molecules),
        "molecules": len(repeated),
        "rows": sum(map(len, repeated)),
        "shared": shared,
        "crossing": crossing,
        "contradicting": contradicting,
        "contradicting_rows": contradicting_rows,
        "largest": largest,
    }


def assert_right(store: Store) -> Duplicates:
    """Groups and counts are those of canonical SMILES of every row."""
    molecules = by_canonical_smiles(store)
    groups = find_groups(store)
    assert [groups.members(group).tolist() for group in range(len(groups))] == sorted(
        rows for rows in molecules.values() if len(rows) > 1
    )
    found = find_duplicates(store)
    for name, value in by_hand(list(molecules.values()), store).items():
        assert getattr(found, name) == value, name
    return found


def labelled(store: Store, found: Duplicates) -> list[tuple[str, float]]:
    return [(molecule.smiles, round(molecule.spread, 9)) for molecule in found.worst]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("OCC", "CCO"),
        ("C1=CC=CC=C1O", "Oc1ccccc1"),
        ("[Na+].[Cl-]", "[Cl-].[Na+]"),
        ("CC(=O)[O-].C[NH3+]", "[NH3+]C.[O-]C(C)=O"),
        ("C[C@H](N)C(=O)O", "N[C@@H](C)C(=O)O"),
        ("F/C=C/F", "F\\C=C\\F"),
        ("[2H]OC", "CO[2H]"),
        ("[CH3]O", "CO"),
        ("C[N+](=O)[O-]", "[O-][N+](C)=O"),
        ("CN(=O)=O", "C[N+](=O)[O-]"),
        ("F[Si](F)(F)(F)(F)F", "[Si](F)(F)(F)(F)(F)F"),
        ("C1CC", "C1CC"),
        ("C" * 300, "C" * 300),
    ],
)
def test_one_molecule_written_twice(tmp_path: Path, one: str, other: str) -> None:
    found = find_duplicates(store_of(tmp_path, [(one, 1.0, "train"), ("CCCC", 1.0, "train"), (other, 1.0, "valid")]))
    assert (found.molecules, found.rows, found.different) == (1, 2, 2)
    assert found.shared["train"] == {"train": 0, "valid": 1}
    assert found.across[0].rows == (0, 2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O"),
        ("C[C@H](N)C(=O)O", "CC(N)C(=O)O"),
        ("F/C=C/F", "F/C=C\\F"),
        ("[13CH4]", "C"),
        ("[2H]OC", "[3H]OC"),
        ("[NH4+].[Cl-]", "N.Cl"),
        ("[CH3]", "C"),
        ("OC=C", "O=CC"),
        ("C1CC23CCC2(C1)CC3", "C1CC2(CC2)C2(C1)CC2"),
        ("C1CC", "CC1C"),
        ("C" * 300, "C" * 301),
        ("", ""),
    ],
)
def test_what_is_not_the_same(tmp_path: Path, one: str, other: str) -> None:
    found = find_duplicates(store_of(tmp_path, [(one, 1.0, "train"), (other, 2.0, "valid")]))
    assert (found.molecules, found.rows, found.crossing, found.contradicting) == (0, 0, 0, 0)
    assert found.worst == found.across == ()


def test_every_figure_of_a_small_store(tmp_path: Path) -> None:
    rows = [
        ("CCO", 1.0, "train"),
        ("OCC", 1.5, "train"),
        ("C(C)O", None, "valid"),
        ("CCN", 2.0, "train"),
        ("NCC", 2.0 + 5e-7, "test-dev"),
        ("CCC", 3.0, "valid"),
        ("CCC", 4.0, "valid"),
        ("CCCC", 1.0, "train"),
        ("CC=O", None, "valid"),
        ("O=CC", None, "test-dev"),
        ("C1CC", 1.0, ""),
        ("C1CC", 1.25, ""),
    ]
    found = find_duplicates(store_of(tmp_path, [(text, target, split or "train") for text, target, split in rows]))
    assert (found.compared, found.different, found.molecules, found.rows) == (12, 6, 5, 11)
    assert found.shared == {
        "train": {"train": 2, "valid": 1, "test-dev": 1},
        "valid": {"train": 1, "valid": 1, "test-dev": 1},
        "test-dev": {"train": 1, "valid": 1, "test-dev": 0},
    }
    assert found.seen["train"] == {"train": 4, "valid": 1, "test-dev": 1}
    assert found.seen["valid"] == {"train": 2, "valid": 2, "test-dev": 1}
    assert (found.contradicting, found.contradicting_rows, found.largest) == (3, 7, 1.0)
    assert [(molecule.smiles, molecule.spread) for molecule in found.worst] == [
        ("CCC", 1.0),
        ("CCO", 0.5),
        ("C1CC", 0.25),
    ]
    assert found.worst[1].rows == (0, 1, 2)
    assert found.worst[1].splits == ("train", "train", "valid")
    assert found.worst[1].targets == (1.0, 1.5, None)
    assert [molecule.smiles for molecule in found.across] == ["CCO", "CCN", "CC=O"]
    assert found.crossing == 3


def test_tolerance_and_number_of_examples(tmp_path: Path) -> None:
    rows = [("CCO", 5.0, "train"), ("OCC", 5.01, "valid"), ("CCN", 5.0, "train"), ("NCC", 5.0000012, "valid")]
    store = store_of(tmp_path, rows)
    assert find_duplicates(store).contradicting == 1, "1e-6 eV and the rounding of 32-bit floats are allowed for"
    assert find_duplicates(store, tolerance=0).contradicting == 2
    assert find_duplicates(store, tolerance=0.02).contradicting == 0
    found = find_duplicates(store, tolerance=0, examples=1)
    assert (len(found.worst), len(found.across), found.contradicting, found.crossing) == (1, 1, 2, 2)
    assert found.worst[0].spread == pytest.approx(0.01)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="tolerance"):
            find_duplicates(store, tolerance=wrong)


def test_32_bit_labels_do_not_contradict_their_source(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).uniform(0.1, 12, 200)
    rows = [(f"{'C' * (place + 1)}O", float(label), "train") for place, label in enumerate(labels)]
    rows += [(f"O{'C' * (place + 1)}", float(np.float32(label)), "train") for place, label in enumerate(labels)]
    found = find_duplicates(store_of(tmp_path, rows))
    assert (found.molecules, found.contradicting) == (200, 0)


def test_rows_of_no_split_and_without_labels(tmp_path: Path) -> None:
    (tmp_path / "bare.csv").write_text("smiles\nCCO\nOCC\nCCN\n")
    from moldistill.core.settings import PrepareSettings
    from moldistill.data.prepare import prepare

    prepare(tmp_path / "bare.csv", tmp_path / "store", PrepareSettings())
    found = find_duplicates(Store.open(tmp_path / "store"))
    assert found.shared == {"none": {"none": 1}}
    assert (found.contradicting, found.largest) == (0, 0.0)


def test_a_molecule_with_many_rows_is_listed_with_its_extremes(tmp_path: Path) -> None:
    rows = [("CCO" if place % 2 else "OCC", 5.0, "train") for place in range(60)]
    rows[30], rows[40], rows[50] = ("CCO", 1.0, "train"), ("CCO", 9.0, "train"), ("OCC", 5.0, "valid")
    molecule = find_duplicates(store_of(tmp_path, rows)).worst[0]
    assert (molecule.occurrences, molecule.spread, len(molecule.rows)) == (60, 8.0, MAX_ROWS)
    assert {30, 40, 50} < set(molecule.rows)
    assert list(molecule.rows) == sorted(molecule.rows)


def test_equal_molecules_have_equal_hashes(tmp_path: Path) -> None:
    """Over the sample and odd molecules, each in four more orders of its atoms."""
    texts = [*ODD, *smiles_of_root(sample_root())]
    rows = [
        (rewritten(text, 7 * place + copy) if copy else text) for place, text in enumerate(texts) for copy in range(5)
    ]
    store = store_of(tmp_path, [(text, None, "train") for text in rows])
    hashes = row_hashes(store)
    assert {FLAGS[flag] for flag in np.unique(store.flag)} == {"fine", "unsanitized"}
    molecules = by_canonical_smiles(store)
    assert sum(len(found) for found in molecules.values() if len(found) >= 5) > 0.98 * len(rows), "hardly any is lost"
    differing = [key for key, found in molecules.items() if len(set(hashes[found].tolist())) != 1]
    assert not differing
    assert store.flag[0] == FLAGS.index("fine")


def test_other_molecules_rarely_have_equal_hashes(tmp_path: Path) -> None:
    """All that differ by more than stereo and isotopes; a few cages and spiro compounds cannot be told apart."""
    store = store_of(tmp_path, [(text, None, "train") for text in smiles_of_root(sample_root())])
    flat = {Chem.MolToSmiles(Chem.MolFromSmiles(store.smiles(row)), isomericSmiles=False) for row in range(len(store))}
    different = len(np.unique(row_hashes(store)))
    assert 0.999 * len(flat) <= different <= len(flat)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_sample_with_repetitions(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 100 + seed)  # chunks do not show in the result
    texts = [*ODD, "", "C1CC", "hello", "C" * 256, *smiles_of_root(sample_root())[:: 2 - seed]]
    found = assert_right(store_of(tmp_path, augmented(texts, seed)))
    assert found.molecules > 500
    assert found.contradicting > 50


@pytest.mark.parametrize("name", ["qm9_2k", "xtb_24k"])
def test_real_sets_with_repetitions(real_data: Path, tmp_path: Path, name: str) -> None:
    texts = smiles_of_root(real_data / name)
    found = assert_right(store_of(tmp_path, [*augmented(texts[::8]), *((text, None, "train") for text in texts)]))
    assert found.molecules >= len(texts[::8])


@pytest.mark.parametrize("same_text", [True, False])
def test_a_set_repeated_forty_times(tmp_path: Path, same_text: bool) -> None:
    molecules = smiles_of_root(sample_root())[:50]
    splits = ("train", "valid", "test-dev", "test-challenge")
    rows = [
        (text if same_text else rewritten(text, 50 * copy + place), float(place), splits[copy % 4])
        for copy in range(40)
        for place, text in enumerate(molecules)
    ]
    found = assert_right(store_of(tmp_path, rows))
    assert (found.compared, found.different, found.molecules, found.rows) == (2000, 50, 50, 2000)
    assert all(value == 50 for row in found.shared.values() for value in row.values())
    assert found.seen["train"]["valid"] == 500
    assert found.contradicting == 0


def test_texts_that_are_equal_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(tmp_path, [(text, None, "train") for text in ["CCO", "OCC", "CCN"] * 20])
    read: list[str] = []

    def counted(smiles: str, flag: int) -> tuple[str, str]:
        read.append(smiles)
        return canonical_smiles(smiles, flag)

    monkeypatch.setattr(module, "canonical_smiles", counted)
    monkeypatch.setattr(module, "ordered_map", map)  # in this process, also where a test before this one started Ray
    assert len(find_groups(store)) == 2
    assert sorted(read) == ["CCO", "OCC"], "CCN has one text, so that there is nothing to ask RDKit"


def test_hashes_that_collide_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(tmp_path, augmented([*ODD, *smiles_of_root(sample_root())[:200]]))
    expected = find_duplicates(store)
    monkeypatch.setattr(module, "row_hashes", lambda store: np.zeros(len(store), np.uint64))
    monkeypatch.setattr(module, "text_hashes", lambda store, rows: np.zeros(len(rows), np.uint64))
    assert find_duplicates(store) == expected


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_ray_tasks_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 50)
    assert_right(store_of(tmp_path, augmented(smiles_of_root(sample_root())[:300])))


def test_the_record_is_json(tmp_path: Path) -> None:
    found = find_duplicates(store_of(tmp_path, augmented(["CCO", "CCN", "C1CC", *ODD])))
    again = json.loads(json.dumps(asdict(found), allow_nan=False))
    assert again["molecules"] == found.molecules
    assert again["across"][0]["rows"] == list(found.across[0].rows)


def test_the_summary_needs_no_manifest(tmp_path: Path) -> None:
    rows = [("CCO", 1.0, "train"), ("OCC", 2.0, "valid"), ("CCN", 1.0, "train"), ("CCN", 1.0, "train")]
    store = store_of(tmp_path, rows)
    (store.path / "manifest.json").unlink()
    facts = duplicates_summary(store.path)
    assert facts == {
        "different": 2,
        "molecules": 2,
        "rows": 4,
        "within": {"train": 1},
        "shared": {"train, valid": 1},
        "crossing": 1,
        "contradicting": 1,
        "contradicting_rows": 2,
        "largest": 1.0,
        "tolerance": 1e-6,
    }
    assert json.loads(json.dumps(facts)) == facts


def test_the_table_has_every_row_of_a_repeated_molecule(tmp_path: Path) -> None:
    store = store_of(tmp_path, augmented(smiles_of_root(sample_root())[:200]))
    groups = find_groups(store)
    write_csv(store, groups, tmp_path / "new" / "duplicates.csv")
    with (tmp_path / "new" / "duplicates.csv").open(encoding="utf-8", newline="") as stream:
        table = list(csv.reader(stream))
    assert tuple(table[0]) == HEADER
    assert [int(line[1]) for line in table[1:]] == groups.rows.tolist()
    assert [int(line[0]) for line in table[1:]] == np.repeat(np.arange(len(groups)), np.diff(groups.starts)).tolist()
    for _, row, source_row, split, target, _, smiles in table[1:]:
        molecule = store.molecule(int(row))
        assert (int(source_row), split, smiles) == (molecule.source_row, molecule.split, molecule.smiles)
        assert (target == "") == bool(np.isnan(molecule.target))
        assert target == "" or float(target) == molecule.target
    with pytest.raises(InputError, match="exists already"):
        write_csv(store, groups, tmp_path / "new" / "duplicates.csv")
    with pytest.raises(InputError, match="cannot be written"):
        write_csv(store, groups, tmp_path / "rows.csv" / "in" / "a" / "file.csv")


@pytest.mark.parametrize(
    ("column", "place", "value", "words"),
    [
        ("atom_offsets", 1, 10**9, "atom_offsets"),
        ("atom_offsets", 0, 1, "begins with 1"),
        ("bond_offsets", 2, -5, "bond_offsets"),
        ("smiles_offsets", 1, 10**12, "smiles_offsets"),
        ("split", 0, 9, "9 in row 0"),
        ("flag", 1, 7, "7 in row 1"),
        ("bonds", (0, 1), 200, "a bond in row 0"),
        ("bonds", (0, 2), 200, "a bond in row 0"),
        ("smiles_bytes", 0, 255, "smiles_bytes"),
    ],
)
def test_damaged_content_is_refused(
    tmp_path: Path, column: str, place: int | tuple[int, int], value: int, words: str
) -> None:
    """What opening does not look at, and compiled code would follow anywhere."""
    store = store_of(tmp_path, [("CCO", 1.0, "train"), ("OCC", 1.0, "valid"), ("C1CC", None, "train")])
    copied = Path(shutil.copytree(store.path, tmp_path / "copy"))
    values = np.lib.format.open_memmap(copied / f"{column}.npy", mode="r+")
    values[place] = value
    values.flush()
    with pytest.raises(InputError, match=words) as caught:
        find_duplicates(Store.open(copied))
    assert "doctor --store" in str(caught.value)
    assert caught.value.exit_code == 2
