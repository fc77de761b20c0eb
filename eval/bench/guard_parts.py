"""What the guard measures: each part is something that has to stay fast, in turns with something steady that does not
depend on this project, and gives the seconds of the steady over those of the part, round by round: higher is better.

Texts and vectors are drawn at random, always the same, so that no figure moves because a file did.
"""

import json
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cold_search
import lexical
import maxsim
import numpy as np
import torch
import train_peers
from numpy.typing import NDArray

from mbretrieve.bench import flops
from mbretrieve.bench.roofline import products
from mbretrieve.bench.shapes import SHAPES, write_model
from mbretrieve.bench.turns import take_turns
from mbretrieve.bench.works import Documents, documents, words
from mbretrieve.index import Entry, MultiVectorIndex
from mbretrieve.index.catalogue import Catalogue
from mbretrieve.index.codebooks import train_codebook
from mbretrieve.index.lexical import search_words
from mbretrieve.models.colbert import ColBERT
from mbretrieve.models.encoder import BATCH_TOKENS
from mbretrieve.models.projection import Layer
from mbretrieve.models.source import locate
from mbretrieve.training.loop import Loop
from mbretrieve.training.setup import prepare

Task = Callable[[], object]
Rounds = dict[str, list[float]]
"""By the name of a ratio, its value in each round."""


class Limit(NamedTuple):
    """At most so many rounds of a part count; neither side of it runs on after so many seconds."""

    rounds: int
    seconds: float


DIM, QUERY_TOKENS = 128, 32
CONTENTS, TOKENS_EACH = 2000, 100  # enough for an index to be packed
ASKED = 12  # questions a round
BASE_LAYERS = 3  # of ModernBERT-base's shapes: the others are the same work again
BATCH, WORDS_EACH = 32, 120  # of training


def against(name: str, steady: Task, part: Task, limit: Limit, work: float = 1.0) -> Rounds:
    """Time both in turns; ``work`` is how much of the steady's work the part's is."""
    took = take_turns({"steady": steady, "part": part}, limit.seconds, limit.rounds)
    pairs = zip(reversed(took["steady"]), reversed(took["part"]), strict=False)  # one may have run out of time
    return {name: [work * one / other for one, other in pairs]}


def encoding(limit: Limit) -> Rounds:
    """Share of the roofline (as ``mbretrieve bench encode`` has it): short and long documents, two shapes."""
    small = locate(None).folder
    with tempfile.TemporaryDirectory() as place:
        base = Path(place) / "base"
        write_model(base, replace(SHAPES["base"], num_hidden_layers=BASE_LAYERS, layer_types=()))
        mixed = np.random.default_rng(0).integers(16, 513, 24).tolist()
        found = _share("encode, bundled model, 16-512 tokens", small, mixed, limit)
        found |= _share("encode, bundled model, 8,192 tokens", small, [8192], limit)
        found |= _share("encode, base shapes, 16-512 tokens", base, mixed[:8], limit)
        return found | _share("encode, base shapes, 4,096 tokens", base, [4096], limit)


def _share(name: str, folder: Path, lengths: list[int], limit: Limit) -> Rounds:
    model = ColBERT.from_pretrained(folder, device="cpu", document_length=max(lengths))
    made: Documents = documents(model, words(model, folder), lengths)
    config = model.backbone.config
    head = [tuple(reversed(layer.linear.weight.shape)) for layer in model.projection if isinstance(layer, Layer)]
    bare, operations = products(config, BATCH_TOKENS, model.dtype, model.device)
    work = flops.documents(config, head, made.lengths) / operations
    return against(name, bare, partial(model.encode_documents, made.texts), limit, work)


def reranking(limit: Limit) -> Rounds:
    """MaxSim with 1,000 documents against the bare product of all tokens."""
    found: Rounds = {}
    for name in (
        "1,000 documents of 300 tokens, 2 bits",
        "1,000 documents of 8 to 592 tokens, float16",
        "40 documents of 8,192 tokens, float16",
    ):
        bare, scoring = maxsim.tasks(maxsim.CASES[name], DIM)
        found |= against(f"maxsim, {name}", bare, scoring, limit)
    return found


def searching(limit: Limit) -> Rounds:
    """Search of a packed index against the bare product of all its tokens; by words against SQLite's FTS5; and packing
    tokens against the same product."""
    random = np.random.default_rng(0)
    vectors = _clustered(random, CONTENTS * TOKENS_EACH)
    entries = [
        Entry(f"{number:05}", [rows], [(0, len(text))], text)
        for number, (rows, text) in enumerate(zip(np.split(vectors, CONTENTS), _texts(random, CONTENTS), strict=True))
    ]
    near = random.integers(0, len(vectors), (ASKED, QUERY_TOKENS))
    queries = [_unit(vectors[rows] + 0.05 * random.standard_normal((QUERY_TOKENS, DIM)).astype("f4")) for rows in near]
    tokens, asked = torch.from_numpy(vectors), torch.from_numpy(queries[0])
    out = torch.empty(len(tokens), QUERY_TOKENS)
    bare = partial(torch.mm, tokens, asked.T, out=out)
    with tempfile.TemporaryDirectory() as place:
        with MultiVectorIndex.create(Path(place) / "index", DIM) as index:
            with index.writer() as writer:
                writer.expect(len(vectors))
                writer.add(entries)
            if not index.status()["packed_tokens"]:
                raise SystemExit("the index of the guard is not packed: give it more tokens")

            def search() -> None:
                for query in queries:
                    index.search([query], 10)

            found = against("packed search, 200,000 tokens", bare, search, limit, ASKED)
            book = train_codebook(vectors[: 1 << 14], 512, bits=2)
            some = book.rotate(vectors[: 1 << 13])

            def pack() -> None:
                assigned = book.assign(some)
                book.pack_products(some, assigned)
                book.encode(some, assigned)

            found |= against("packing, 8,192 tokens", bare, pack, limit)
        return found | _by_words(Path(place) / "index", random, limit)


def _by_words(index: Path, random: np.random.Generator, limit: Limit) -> Rounds:
    asked = [" ".join(text.split()[:6]) for text in _texts(random, ASKED)]
    with (
        tempfile.TemporaryDirectory() as place,
        closing(Catalogue.open(index)) as catalogue,
        closing(lexical.fts5_of(catalogue, Path(place) / "fts5.sqlite")) as fts5,
    ):
        ranked = "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank LIMIT 200"

        def theirs() -> None:
            for text in asked:
                fts5.execute(ranked, (lexical.expression(text),)).fetchall()

        def ours() -> None:
            for text in asked:
                search_words(catalogue, text, 200, None)

        return against("search by words, 2,000 texts", theirs, ours, limit)


def training(limit: Limit) -> Rounds:
    """A step's gradients against the bare products of a forward and a backward, which is twice the forward."""
    random = np.random.default_rng(0)
    pairs = zip(_texts(random, 8 * BATCH), _texts(random, 8 * BATCH), strict=True)
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "pairs.jsonl"
        rows = [{"query": " ".join(query.split()[:10]), "positive": text} for query, text in pairs]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        run = prepare(train_peers.recipe(data, BATCH, 10, 16384), Path(place) / "out", False, print)
        loop = Loop(run, print)
        step = loop.next_step()
        lengths = [len(text.ids) for _, text in (*step.queries, *step.documents)]
        config = run.student.backbone.config
        bare, operations = products(config, BATCH_TOKENS, torch.bfloat16, torch.device("cpu"))
        work = 3 * flops.documents(config, [], lengths) / operations
        return against("training step, bundled model", bare, partial(loop.gradients, step), limit, work)


def starting(limit: Limit) -> Rounds:
    """A cold search against the imports of what a search of before had to import."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "texts"
        folder.mkdir()
        for number, text in enumerate(_texts(np.random.default_rng(0), 50)):
            (folder / f"{number}.txt").write_text(text, "utf-8")
        environment = cold_search.indexed(folder, f"{place}/cache")
        run = cold_search.commands(folder)
        tasks = {name: partial(cold_search.seconds, run[name], environment) for name in ("imports", "search")}
        return against("cold search", tasks["imports"], tasks["search"], limit)


def _texts(random: np.random.Generator, count: int) -> list[str]:
    """Texts of words that fall as they do in language: few are frequent (Zipf)."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = ["".join(random.choice(letters, random.integers(3, 9))) for _ in range(5000)]
    chosen = np.minimum(random.zipf(1.2, (count, WORDS_EACH)), len(vocabulary)) - 1
    return [" ".join(vocabulary[place] for place in row) for row in chosen]


def _clustered(random: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Unit vectors about some thousand subjects, as token vectors are."""
    subjects = random.standard_normal((2000, DIM), dtype=np.float32)
    return _unit(subjects[random.integers(0, 2000, count)] + 0.5 * random.standard_normal((count, DIM), dtype="f4"))


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


PARTS: tuple[Callable[[Limit], Rounds], ...] = (encoding, reranking, searching, training, starting)
