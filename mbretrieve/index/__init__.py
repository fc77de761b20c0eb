"""The index: vectors, texts and metadata in one folder on disk, searched by vectors and by words; usable alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbretrieve.index.catalogue import Catalogue
from mbretrieve.index.dense import DenseIndex
from mbretrieve.index.multivector import MultiVectorIndex
from mbretrieve.index.plan import Effort
from mbretrieve.index.records import Entry, Match
from mbretrieve.index.store import Writer
from mbretrieve.types import Kind

__all__ = ["DenseIndex", "Effort", "Entry", "Match", "MultiVectorIndex", "Writer", "create_index", "open_index"]

KINDS: dict[Kind, type[MultiVectorIndex] | type[DenseIndex]] = {"colbert": MultiVectorIndex, "dense": DenseIndex}


def create_index(
    path: str | Path, kind: Kind, dim: int, identity: Mapping[str, Any] | None = None, *, bits: int | None = None
) -> MultiVectorIndex | DenseIndex:
    """Make an empty index of a kind. Raises: DataError if there is already something at ``path``."""
    return KINDS[kind].create(path, dim, identity, bits=bits)


def open_index(path: str | Path) -> MultiVectorIndex | DenseIndex:
    """Open an index of whichever kind. Raises: IndexFormatError if it is none, is damaged or of a newer format."""
    catalogue = Catalogue.open(Path(path))
    return KINDS[catalogue.kind](path, catalogue)
