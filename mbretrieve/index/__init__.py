"""The index: vectors, texts and metadata in one folder on disk, searched by vectors and by words; usable alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbretrieve.index.catalogue import Catalogue
from mbretrieve.index.dense import DenseIndex
from mbretrieve.index.joint import JointIndex
from mbretrieve.index.multivector import MultiVectorIndex
from mbretrieve.index.plan import Effort
from mbretrieve.index.records import Entry, Match
from mbretrieve.index.store import Writer
from mbretrieve.types import Kind

__all__ = [
    "AnyIndex",
    "DenseIndex",
    "Effort",
    "Entry",
    "JointIndex",
    "Match",
    "MultiVectorIndex",
    "Writer",
    "create_index",
    "open_index",
]

AnyIndex = MultiVectorIndex | DenseIndex | JointIndex
KINDS: dict[Kind, type[AnyIndex]] = {"colbert": MultiVectorIndex, "dense": DenseIndex, "joint": JointIndex}


def create_index(
    path: str | Path,
    kind: Kind,
    dim: int,
    identity: Mapping[str, Any] | None = None,
    *,
    bits: int | None = None,
    pooled_dim: int = 0,
) -> AnyIndex:
    """Make an empty index of a kind, see ``VectorIndex.create``. Raises: DataError if something is at ``path``."""
    return KINDS[kind].create(path, dim, identity, bits=bits, pooled_dim=pooled_dim)


def open_index(path: str | Path) -> AnyIndex:
    """Open an index of whichever kind. Raises: IndexFormatError if it is none, is damaged or of a newer format."""
    catalogue = Catalogue.open(Path(path))
    return KINDS[catalogue.kind](path, catalogue)
