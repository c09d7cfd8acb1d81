"""OGB's vocabulary of atom and bond features, as published in `ogb.utils.features`.

A test holds each list to the installed ogb package. `misc` takes whatever is not named.
"""

from __future__ import annotations

import hashlib
import itertools

ATOM_FEATURES = (
    "atomic_num",
    "chirality",
    "degree",
    "formal_charge",
    "num_hydrogens",
    "num_radical_electrons",
    "hybridization",
    "is_aromatic",
    "is_in_ring",
)
ATOM_SIZES = (119, 5, 12, 12, 10, 6, 6, 2, 2)
"""Number of values of each atom feature."""

BOND_FEATURES = ("bond_type", "bond_stereo", "is_conjugated")
BOND_SIZES = (5, 6, 2)
"""Number of values of each bond feature."""

CHIRALITY = ("CHI_UNSPECIFIED", "CHI_TETRAHEDRAL_CW", "CHI_TETRAHEDRAL_CCW", "CHI_OTHER", "misc")
HYBRIDIZATION = ("SP", "SP2", "SP3", "SP3D", "SP3D2", "misc")
BOND_TYPE = ("SINGLE", "DOUBLE", "TRIPLE", "AROMATIC", "misc")
BOND_STEREO = ("STEREONONE", "STEREOZ", "STEREOE", "STEREOCIS", "STEREOTRANS", "STEREOANY")

BOND_CODES = 1 + BOND_SIZES[0] * BOND_SIZES[1] * BOND_SIZES[2]
"""Number of bond codes: 0 for "no bond", then one per combination of type, stereo and conjugation."""

UNREACHABLE = 255
"""Entry of the shortest-path matrix for atoms of different fragments."""

MAX_ATOMS = 255
"""Molecules above this many heavy atoms are kept in the store, flagged, without a graph."""

SPLITS = ("train", "valid", "test-dev", "test-challenge", "valid-3d")
"""Names of the splits; the store's `split` column holds the index, -1 for none."""

TEST_SPLITS = ("test-dev", "test-challenge")


def bond_code(bond_type: int, stereo: int, conjugated: int) -> int:
    """The code of a bond with these feature indices, in 1 .. BOND_CODES - 1."""
    return 1 + (bond_type * BOND_SIZES[1] + stereo) * BOND_SIZES[2] + conjugated


BOND_FEATURES_OF_CODE = (
    (0, 0, 0),
    *itertools.product(*(range(size) for size in BOND_SIZES)),
)
"""Feature indices (type, stereo, conjugation) of each bond code; zeros for code 0, which is no bond."""


def vocabulary_hash() -> str:
    """Hash of everything that gives the feature columns their meaning."""
    text = repr(
        (ATOM_FEATURES, ATOM_SIZES, BOND_FEATURES, BOND_SIZES, CHIRALITY, HYBRIDIZATION, BOND_TYPE, BOND_STEREO)
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


FLAGS = ("fine", "unsanitized", "refused", "too large", "empty")
"""Names of the store's `flag` values. `fine` and `unsanitized` rows have a graph; models are given no others."""

FLAGS_WITH_GRAPH = (0, 1)
