"""Helpers of the tests of packed indexes: thresholds at which a few tokens are packed, and what a packed index holds,
read from its files with numpy alone."""

import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mbretrieve.index import Effort, merging, packing, plan, vectors

Windows = list[NDArray[np.float32]]

ALL = Effort(probes=1 << 16, tokens=1 << 16, rescore=1 << 16)
"""An effort that leaves nothing out of an index of these tests."""

TINY = {
    (plan, "EXACT_TOKENS"): 40,
    (plan, "RAW_TOKENS"): 12,
    (plan, "DRIFT_TOKENS"): 24,
    (vectors, "PACK_TOKENS"): 64,
    (packing, "BLOCK_TOKENS"): 16,
    (merging, "FAN"): 3,
    (merging, "SMALLEST"): 32,
    (merging, "LARGEST_RAW"): 256,
}


def tiny(patch: pytest.MonkeyPatch, **others: float) -> None:
    """Let indexes pack, merge and train at sizes that tests reach; ``others`` names values beside TINY's."""
    for (module, name), value in TINY.items():
        patch.setattr(module, name, others.pop(name, value))
    for name, value in others.items():
        [module] = [module for module in (plan, vectors, packing, merging) if hasattr(module, name)]
        patch.setattr(module, name, value)


def held(path: Path) -> dict[str, Windows]:
    """Return each document's windows as an index holds them, (tokens, dim) each: packed ones decoded."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}/catalog.sqlite?mode=ro", uri=True)) as database:
        books = dict(database.execute("SELECT key, name FROM codebooks"))
        found: dict[int, Windows] = {}
        for name, codebook in database.execute("SELECT name, codebook FROM segments"):
            tokens, offsets = _segment(path, name, None if codebook is None else path / "codebooks" / books[codebook])
            table = np.load(path / "segments" / name / "windows.npy").tolist()
            for (content, *_), (start, stop) in zip(table, pairwise(offsets), strict=True):
                found.setdefault(content, []).append(tokens[start:stop])
        return {id: found[content] for id, content in database.execute("SELECT id, content FROM documents ORDER BY id")}


def _segment(path: Path, name: str, codebook: Path | None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    folder = path / "segments" / name
    offsets = np.load(folder / "offsets.npy")
    if codebook is None:
        return np.load(folder / "tokens.npy").astype(np.float32), offsets
    codes, assignments = np.load(folder / "codes.npy"), np.load(folder / "assignments.npy")
    rotated = np.load(codebook / "centroids.npy")[assignments]
    stages, groups, _, width = (residuals := np.load(codebook / "residuals.npy")).shape
    for stage in range(stages):
        for group in range(groups):
            chosen = residuals[stage, group, codes[:, stage * groups + group]]
            rotated[:, group * width : (group + 1) * width] += chosen
    rotated *= 2 ** ((codes[:, -1:].astype(np.float32) - 128) / 128)
    return rotated @ np.load(codebook / "rotation.npy").T, offsets


def score(query: NDArray[Any], windows: Windows) -> float:
    """Return a document's score by definition: that of its best window."""
    return max(float((query @ window.T).max(axis=1).sum()) for window in windows)
