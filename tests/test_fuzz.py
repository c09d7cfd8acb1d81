"""Over 20,000 damaged and invented inputs: nothing crashes, hangs, or loses a row, and fast paths equal slow ones.

A crash would end the test run; a hang, pytest's time limit.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moldistill.chem.blocks import read_blocks
from moldistill.chem.features import smiles_to_graph
from moldistill.chem.placement import Records
from moldistill.chem.reader import read_csv, read_splits
from moldistill.chem.sample import sample_root
from moldistill.chem.sdf import read_sdf
from moldistill.core.errors import InputError
from moldistill.data.chunks import ChunkTask, process
from odd_molecules import HYPERVALENT, ODD, REFUSED
from test_featurize import rows_of, same, table
from test_placement import check, training_rows

ALPHABET = "CNOPSFIBrclnops[]()=#:-+.%@/\\*0123456789H>|$ \t&~!{}"
SMILES_CASES, RECORD_CASES, TABLE_CASES, SDF_CASES, SPLIT_CASES = 14_000, 3_000, 2_500, 800, 300


def mutated(text: str, random: np.random.Generator) -> str:
    """A few characters deleted, inserted, exchanged or repeated."""
    letters = list(text)
    for _ in range(int(random.integers(1, 4))):
        place = int(random.integers(0, len(letters) + 1))
        action = random.integers(0, 5)
        letter = ALPHABET[int(random.integers(0, len(ALPHABET)))]
        if action == 0:
            del letters[place : place + int(random.integers(1, 4))]
        elif action == 1:
            letters.insert(place, letter)
        elif action == 2 and place < len(letters):
            letters[place] = letter
        elif action == 3:
            letters[place:place] = letters[place : place + int(random.integers(1, 12))]
        else:
            other = int(random.integers(0, len(letters) + 1))
            letters[place:place] = letters[other : other + 5]
    return "".join(letters)


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """Bytes changed, cut out, repeated or cut off."""
    data = bytearray(content)
    for _ in range(int(random.integers(1, 5))):
        if not data:
            break
        place = int(random.integers(0, len(data)))
        action = random.integers(0, 6)
        if action == 0:
            data[place] = int(random.integers(0, 256))
        elif action == 1:
            data[place] = b" 0123456789-.CHNOVM\n\r,\"'"[int(random.integers(0, 24))]
        elif action == 2:
            del data[place : place + int(random.integers(1, 40))]
        elif action == 3:
            data[place:place] = data[place : place + int(random.integers(1, 40))]
        elif action == 4:
            data[place:place] = b"\n" if random.integers(0, 2) else b"\r\n"
        else:
            del data[place:]
    return bytes(data)


def check_chunk(smiles: Sequence[str]) -> None:
    """A chunk has a row for each SMILES, equal to what it is by itself."""
    found = process(ChunkTask(0, tuple(smiles), Records.of([None] * len(smiles))))
    assert len(found.flag) == len(found.byte_count) == len(smiles)
    assert found.atom_count.sum() == len(found.atom_features) == len(found.positions)
    assert {note.row for note in found.notes} == set(np.flatnonzero(found.flag).tolist())


def test_mutated_smiles_keep_their_rows_and_equal_the_slow_way() -> None:
    from moldistill.chem.featurize import featurize

    random = np.random.default_rng(0)
    origins = [*ODD, *HYPERVALENT, *[text for text in REFUSED if len(text) < 300], *table(sample_root())[::3]]
    smiles = [mutated(origins[int(random.integers(0, len(origins)))], random) for _ in range(SMILES_CASES)]
    for start in range(0, len(smiles), 500):
        part = smiles[start : start + 500]
        check_chunk(part)
        for text, graph in zip(part, rows_of(featurize(part)), strict=True):
            assert same(graph, smiles_to_graph(text)), text


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(st.text(max_size=40), st.text(ALPHABET, max_size=60)), max_size=10))
def test_any_text_has_its_row(smiles: list[str]) -> None:
    encodable = [text.encode("utf-8", "ignore").decode() for text in smiles]  # as a file in UTF-8 can hold it
    check_chunk(encodable)


def test_mutated_records_equal_the_slow_way() -> None:
    random = np.random.default_rng(1)
    smiles, records = training_rows(sample_root(), 500)
    held = [place for place, record in enumerate(records) if record is not None]
    for _ in range(RECORD_CASES // 250):
        chosen = random.choice(held, 250)
        check([smiles[place] for place in chosen], [damaged(records[place] or b"", random) for place in chosen])


def _outcome(read: Callable[[], object]) -> object:
    """What a reader gives, or the text of what it raises."""
    try:
        return read()
    except InputError as error:
        return str(error)


def _single(path: Path, target: str | None) -> list[tuple[str, str, int]]:
    return [(row.smiles, repr(row.target), row.split) for row in read_csv(path, target)]


def _blocks(path: Path, target: str | None) -> list[tuple[str, str, int]]:
    rows: list[tuple[str, str, int]] = []
    for block in read_blocks(path, target):
        rows += zip(block.smiles, map(repr, block.target.tolist()), block.split.tolist(), strict=True)
    return rows


TABLES = [
    "smiles,homolumogap,split\nCCO,1.5,train\nCC,,valid\nC,nan,\n",
    '\ufeffidx,smiles,homolumogap\r\n0,CCO,1e-3\r\n1,"C,C",-2\r\n\r\n2,C,\r\n',
    'smiles\nCCO\n"C\n\nC"\nCC\n   \n',
    "split,homolumogap,smiles\n" + "train,1.25,CCCO\n" * 30,
    "a,smiles,homolumogap,b\n" + 'x,"C""C",  3.5 ,y\n' * 5,
    "smiles,homolumogap\nCC,1_0\nCC,0x10\nCC,infinity\n",
]


def test_mutated_tables_are_read_alike_fast_and_slowly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    monkeypatch.setattr("moldistill.chem.blocks.BLOCK", 3)
    seen = {str: 0, list: 0}
    for case in range(TABLE_CASES):
        content = TABLES[case % len(TABLES)].encode()
        content = damaged(content, random) if case >= len(TABLES) else content
        path = tmp_path / "a.csv"
        path.write_bytes(gzip.compress(content, 1) if case % 5 == 0 else content)
        target = "homolumogap" if case % 7 == 0 else None
        fast, slow = _outcome(partial(_blocks, path, target)), _outcome(partial(_single, path, target))
        assert fast == slow, content
        seen[type(fast)] += 1
    assert min(seen.values()) > 300, "tables that can be read, and such that cannot"


def test_damaged_archives_of_records_give_records_or_an_error(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    _, records = training_rows(sample_root(), 20)
    plain = b"$$$$\n".join(record or b"" for record in records) + b"$$$$\n"
    path = tmp_path / "a.sdf"
    outcomes = set()
    for case in range(SDF_CASES):
        content = damaged(gzip.compress(plain, 1) if case % 2 else plain, random)
        path.write_bytes(content)
        found = _outcome(lambda: list(read_sdf(path)))
        outcomes.add(type(found))
        if isinstance(found, list) and case % 2 == 0:  # no byte of a plain file is lost but the separators
            assert sum(map(len, found)) <= len(content)
            assert len(found) == sum(line.startswith(b"$$$$") for line in content.split(b"\n"))
    assert outcomes == {str, list}


def test_damaged_splits_are_splits_or_an_error(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    buffer = io.BytesIO()
    torch.save({"train": np.arange(40), "valid": np.arange(40, 60), "test-dev": np.arange(60, 70)}, buffer)
    for _ in range(SPLIT_CASES):
        (tmp_path / "split_dict.pt").write_bytes(damaged(buffer.getvalue(), random))
        found = _outcome(lambda: read_splits(tmp_path / "split_dict.pt", 70))
        assert isinstance(found, str) or (found.shape == (70,) and found.min() >= -1)  # type: ignore[attr-defined]


def test_there_are_more_than_twenty_thousand_cases() -> None:
    assert SMILES_CASES + RECORD_CASES + TABLE_CASES + SDF_CASES + SPLIT_CASES > 20_000


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.text(ALPHABET + ',"é', max_size=20), st.floats(allow_infinity=False)), min_size=1, max_size=8)
)
def test_any_table_that_csv_writes_reads_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, float]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("smiles", "homolumogap"), *rows])
    assert _blocks(path, None) == _single(path, None) == [(text.strip(), repr(value), -1) for text, value in rows]
