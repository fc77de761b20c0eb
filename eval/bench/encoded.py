"""Real text as token vectors on disk, for the benches of the index: encoded once, and what exact search finds in it.

A folder of them holds ``x.npy`` (tokens, dim) float16, ``off.npy`` (functions + 1,) int64, where each function's tokens
begin, ``q.npz``, a (tokens, dim) float32 array for each query, and ``exact.npz``, the best DEEP functions of each query
and their scores.
"""

import gzip
import json
import random
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

QUERIES, DEEP = 300, 100
AT_ONCE = 256  # functions
GROWING = 10**12  # rows: as many as make a header of an array as long as any will be


class Encoded(NamedTuple):
    """A folder of vectors, opened; ``x`` is mapped."""

    folder: Path
    x: np.ndarray
    offsets: np.ndarray
    queries: list[np.ndarray]


class Rows(NamedTuple):
    """Text for one size: functions, and questions about others."""

    functions: list[str]
    questions: list[str]


def read_rows(pairs: Path, sizes: list[int]) -> list[Rows]:
    """Deal the functions of ``code_*.jsonl.gz`` out, shuffled once: no size shares a function with another."""
    files = sorted(pairs.glob("code_*.jsonl.gz"))
    found: dict[str, str] = {}
    for path in files:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                found.setdefault(row["positive"], row["query"])
    rows = list(found.items())
    if len(rows) < QUERIES + sum(sizes):
        raise SystemExit(
            f"{pairs} has {len(rows):,} functions in {len(files)} files; {QUERIES + sum(sizes):,} are needed"
        )
    random.Random(0).shuffle(rows)
    questions = [question for _, question in rows[:QUERIES]]
    ends = [QUERIES]
    for size in sizes:
        ends.append(ends[-1] + size)
    return [Rows([function for function, _ in rows[first:last]], questions) for first, last in pairwise(ends)]


def encode(folder: Path, rows: Rows) -> None:
    """Encode by the bundled model, unless the folder holds it already."""
    if (folder / "off.npy").exists():
        return
    from mbretrieve import ColBERT

    folder.mkdir(parents=True, exist_ok=True)
    model = ColBERT.from_pretrained()
    queries = model.encode_queries(rows.questions)
    np.savez(folder / "q.npz", *queries)
    lengths: list[int] = []
    began = time.perf_counter()
    with (folder / "x.npy").open("wb") as file:
        _write_header(file, GROWING, queries[0].shape[1])
        for first in range(0, len(rows.functions), AT_ONCE):
            vectors = model.encode_documents(rows.functions[first : first + AT_ONCE])
            lengths += map(len, vectors)
            file.write(np.concatenate(vectors).astype("<f2").tobytes())
            print(f"\r{len(lengths):,} functions, {sum(lengths) / (time.perf_counter() - began):,.0f} tokens/s", end="")
        print()
        file.seek(0)
        _write_header(file, sum(lengths), queries[0].shape[1])
    # Last: it says that the others are whole.
    np.save(folder / "off.npy", np.cumsum([0, *lengths], dtype=np.int64))


def _write_header(file: Any, rows: int, dim: int) -> None:
    # numpy leaves room for the number of rows to grow, so that this header is as long as any other.
    np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": (rows, dim)})


def open_encoded(folder: Path) -> Encoded:
    """Open what ``encode`` made."""
    with np.load(folder / "q.npz") as stored:
        queries = [stored[name].astype(np.float32) for name in stored.files[:QUERIES]]
    # Copy on write, because torch warns of arrays that cannot be written.
    return Encoded(folder, np.load(folder / "x.npy", mmap_mode="c"), np.load(folder / "off.npy"), queries)


def exact(encoded: Encoded) -> list[dict[str, float]]:
    """Return each query's best DEEP functions by MaxSim over all float16 vectors, once computed."""
    kept = encoded.folder / "exact.npz"
    if not kept.exists():
        import torch

        from mbretrieve.scoring import maxsim_ragged_batch

        tensors = [torch.from_numpy(query) for query in encoded.queries]
        scores = maxsim_ragged_batch(tensors, torch.from_numpy(encoded.x), torch.from_numpy(encoded.offsets)).numpy()
        best = np.argsort(-scores, axis=1, kind="stable")[:, :DEEP]
        np.savez(kept, best=best, scores=np.take_along_axis(scores, best, axis=1))
    with np.load(kept) as stored:
        return [
            {name(row): float(score) for row, score in zip(rows, scores, strict=True)}
            for rows, scores in zip(stored["best"], stored["scores"], strict=True)
        ]


def exact_p50(encoded: Encoded, queries: int = 5) -> float:
    """Return the median milliseconds of exact search for one query."""
    import torch

    from mbretrieve.scoring import maxsim_ragged_batch

    tokens, offsets = torch.from_numpy(encoded.x), torch.from_numpy(encoded.offsets)
    took = []
    for query in encoded.queries[:queries]:
        began = time.perf_counter()
        maxsim_ragged_batch([torch.from_numpy(query)], tokens, offsets)
        took.append(1000 * (time.perf_counter() - began))
    return float(np.median(took))


def batches(encoded: Encoded, functions: int) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Read so many functions' vectors at a time, with the first one's number: read, not mapped, so as not to count as
    memory of who reads them."""
    offsets, dim = encoded.offsets, encoded.x.shape[1]
    with (encoded.folder / "x.npy").open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        for first in range(0, len(offsets) - 1, functions):
            at = offsets[first : first + functions + 1]
            block = np.frombuffer(file.read(2 * dim * int(at[-1] - at[0])), "<f2").reshape(-1, dim)
            yield first, np.split(block, at[1:-1] - at[0])


def name(row: int) -> str:
    """Return a function's id: ids sort as rows do."""
    return f"{row:09}"
