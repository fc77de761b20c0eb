"""The index alone, with vectors of your own: many a document, or one.

Nothing here loads a model. Up to 131,072 token vectors, or 16,384 dense ones, every one is compared. Of more, tokens
are packed and found by inverted lists, dense vectors along a graph or by lists, and ``effort`` says how far a search
looks. However many there are, they can be written from any iterator, in a bounded memory.
"""

import tempfile
from collections.abc import Iterator

import numpy as np

from mbretrieve.index import DenseIndex, Effort, Entry, MultiVectorIndex


def unit_rows(rows: int, dim: int, seed: int) -> np.ndarray:
    """Stand-ins for what an encoder of yours gives."""
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def entries(count: int) -> Iterator[Entry]:
    """One document after another, as a file or a database would give them: only what is being written is in memory."""
    for i in range(count):
        # One window, of no text: with a text and a span for each window it is searched by words, too.
        yield Entry(f"page {i}", vectors=[unit_rows(20 + i % 100, 32, seed=i)], spans=[(0, 0)])


def main() -> None:
    """Make an index of each kind, change it and search it."""
    with tempfile.TemporaryDirectory() as folder:
        with MultiVectorIndex.create(f"{folder}/tokens.index", dim=32, bits=4) as index:
            pages = [unit_rows(rows=20 + page, dim=32, seed=page) for page in range(100)]
            index.add([f"page {i}" for i in range(100)], pages, [{"chapter": i // 10} for i in range(100)])
            index.add(
                ["page 7"], [pages[7][:5]]
            )  # in the place of the one with its id; what readers hold stays as it was
            index.delete(["page 8", "page 9"])
            query = pages[42][:8]
            for match in index.search([query], k=3)[0]:
                print(f"{match.score:6.2f}  {match.id}")
            [in_chapter] = index.search([query], k=3, where={"chapter": {"lt": 3}})
            print("in the first three chapters:", [match.id for match in in_chapter])
            [thorough] = index.search([query], k=1, effort=Effort(probes=64, tokens=4096, rescore=1000))
            print(
                "looking further:", thorough[0].id, "- every document:", index.search([query], k=1, exact=True)[0][0].id
            )

        with MultiVectorIndex.create(f"{folder}/stream.index", dim=32) as index:
            with index.writer(memory=512 << 20) as writer:  # leaving it commits, all or nothing
                writer.expect(tokens=3000 * 70)  # if it is known: codebooks are then trained on enough of them
                for entry in entries(3000):
                    writer.add([entry])  # writer.commit() in between makes what came so far durable
            status = index.status()
            print(f"streamed: {status['tokens']:,} tokens, {status['bytes_per_token']} bytes each")
            print("found:", index.search([unit_rows(20, 32, seed=0)], k=1)[0][0].id)

        with DenseIndex.create(f"{folder}/dense.index", dim=32) as index:
            index.add([f"note {i}" for i in range(100)], unit_rows(100, 32, seed=1))
            print("one vector each:", [match.id for match in index.search(unit_rows(100, 32, seed=1)[5:6], k=2)[0]])


if __name__ == "__main__":
    main()
