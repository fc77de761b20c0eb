"""Measure search by words on an index: its time, what it reads, what its bounds lose, and FTS5 beside it in one run.

``python eval/bench/lexical.py INDEX --queries FILE.jsonl --json OUT``. FTS5 ranks all rows that have any of the words,
or any beginning with one, and gives the best k row ids; search by words makes documents of its best k too. Times are
those of the one thread's processor, the least of three runs of a query: the machine may be at work elsewhere.
"""

import argparse
import json
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from machine import provenance, write

from mbretrieve.index.catalogue import Catalogue
from mbretrieve.index.lexical import LIMITS, Limits, plan, score, search_words
from mbretrieve.index.words import content_words, is_beginning, query_words

UNBOUNDED = Limits(completed=1 << 60, completions=1 << 60, postings=1 << 60)
FTS5 = "CREATE VIRTUAL TABLE words USING fts5(tokens, content='', tokenize=\"ascii tokenchars '_'\")"


def fts5_of(catalogue: Catalogue, file: Path) -> sqlite3.Connection:
    """Put the words of all contents into an FTS5 table of their own."""
    database = sqlite3.connect(file, isolation_level=None)
    database.execute("PRAGMA synchronous = OFF")
    database.execute(FTS5)
    database.execute("BEGIN")
    contents = catalogue.stream("SELECT key, context, text FROM contents")
    rows = ((key, " ".join(content_words(context, text))) for key, context, text in contents)
    database.executemany("INSERT INTO words (rowid, tokens) VALUES (?, ?)", rows)
    database.execute("COMMIT")
    return database


def expression(query: str) -> str:
    """Return the FTS5 expression for any of a query's words and any word that begins with one."""
    return " OR ".join(
        term for word in query_words(query) for term in [f'"{word}"'] + [f'"{word}" *'] * is_beginning(word)
    )


def timed(function: Callable[[], Any], runs: int = 3) -> tuple[float, Any]:
    """Return the milliseconds of the fastest run, and what it returned."""
    least = float("inf")
    for _ in range(runs):
        start = time.thread_time()
        result = function()
        least = min(least, time.thread_time() - start)
    return 1000 * least, result


def spread(values: list[float], digits: int = 2) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), digits) for p in (50, 95)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("index", type=Path)
    parser.add_argument("--queries", type=Path, required=True, help='JSON lines with "text"')
    parser.add_argument("--most", type=int, default=1000, help="queries, drawn at random")
    parser.add_argument("-k", type=int, default=200, help="documents a query; hybrid search asks for 200")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    k = arguments.k

    texts = [json.loads(line)["text"] for line in arguments.queries.read_text("utf-8").splitlines() if line.strip()]
    order = np.random.default_rng(0).permutation(len(texts))[: arguments.most]
    queries = [text for text in (texts[i] for i in order) if query_words(text)]
    times: dict[str, list[float]] = {"bounded": [], "unbounded": [], "fts5": []}
    words, read, scored = [], [], []
    overlaps: dict[int, list[float]] = {10: [], k: []}
    with tempfile.TemporaryDirectory() as folder, closing(Catalogue.open(arguments.index)) as catalogue:
        [(contents, postings)] = catalogue.rows(
            "SELECT (SELECT count(*) FROM contents), (SELECT sum(postings) FROM runs)"
        )
        [(size,)] = catalogue.rows("SELECT sum(length(word) + length(data) + 8) FROM postings")
        with closing(fts5_of(catalogue, Path(folder) / "fts5.sqlite")) as fts5:
            [(fts5_size,)] = fts5.execute("SELECT sum(length(block)) FROM words_data").fetchall()
            first, _ = timed(lambda: search_words(catalogue, queries[0], k, None), runs=1)
            for query in queries:
                took, found = timed(lambda: search_words(catalogue, query, k, None))  # noqa: B023 - called at once
                times["bounded"].append(took)
                took, ideal = timed(lambda: search_words(catalogue, query, k, None, UNBOUNDED))  # noqa: B023
                times["unbounded"].append(took)
                ranked = "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?"
                took, _ = timed(lambda: fts5.execute(ranked, (expression(query), k)).fetchall())  # noqa: B023
                times["fts5"].append(took)
                terms = plan(catalogue, query_words(query), LIMITS)
                words.append(len(query_words(query)))
                read.append(sum(term.postings for term in terms))
                scored.append(int(np.count_nonzero(score(catalogue, terms, k, None, LIMITS.postings))))
                for depth, values in overlaps.items():
                    best = {match.id for match in ideal[:depth]}
                    if best:
                        values.append(len(best & {match.id for match in found[:depth]}) / len(best))
    milliseconds = {name: spread(values) for name, values in times.items()}
    result = {
        "contents": contents,
        "postings": postings,
        "bytes": {"postings": size, "fts5": fts5_size},
        "queries": len(queries),
        "k": k,
        "limits": LIMITS._asdict(),
        "milliseconds": milliseconds | {"first": round(first, 2)},
        "fts5_by_bounded": {
            name: round(milliseconds["fts5"][name] / value, 2) for name, value in milliseconds["bounded"].items()
        },
        "words": spread(words, 0),
        "postings_read": spread(read, 0),
        "contents_scored": spread(scored, 0),
        "overlap_with_unbounded": {str(depth): round(float(np.mean(values)), 4) for depth, values in overlaps.items()},
    }
    write(result | {"sqlite": sqlite3.sqlite_version} | provenance("numpy"), arguments.json)


if __name__ == "__main__":
    main()
