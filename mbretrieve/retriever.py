"""The marriage of a model and an index: documents go in as text, hits come out.

Vectors are made in ``models``, kept and compared in ``index``; here long documents are cut into windows, unchanged text
is recognised, and the two rankings, by meaning and by words, are joined.
"""

import re
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from mbretrieve.cutting import passage, windows_of
from mbretrieve.errors import DataError, ModelError
from mbretrieve.index import AnyIndex, Effort, Entry, Match, create_index, open_index
from mbretrieve.index.catalogue import damaged
from mbretrieve.index.fusion import reciprocal_rank_fusion, weighted_sum
from mbretrieve.index.store import MEMORY, Writer
from mbretrieve.models.lines import line_shares
from mbretrieve.scoring import spares_torch
from mbretrieve.types import Document, Encoder, FloatArray, Hit, ModelIdentity, Progress, Where, as_window, rows_of

Mode = Literal["hybrid", "semantic", "lexical"]
Fusion = Literal["weighted", "rrf"]

BATCH_TOKENS = 1 << 17  # encoded at a time: 64 MiB of float32 vectors at 128 dimensions
BATCH_SHARE = 16  # of the memory for writing, at most: vectors are held as they were made, checked, and as float16
BATCH_DOCUMENTS = 4096
COMMIT_TOKENS = 1 << 20  # at most so much work, or so long, is lost when a run is killed
COMMIT_SECONDS = 20.0
SETTLE_TOKENS = 1 << 17  # a session that encoded fewer is no build
SETTLE_SHARE = 8  # nor is one that encoded less than an eighth of the index: copying the rest would not be worth it
FUSIONS = {"weighted": weighted_sum, "rrf": reciprocal_rank_fusion}
LEXICAL_WEIGHT = 0.1  # see README, "How the ranking was chosen"
DEPTH = 200  # candidates that each ranking gives to fusion, at least
SURE = 8  # a search looks as far as it would for the best of an eighth of them
MARKED_LINES = 3
MARKED_SHARE = 0.5  # a line is marked if it has at least this share of the best line's score


@dataclass(slots=True)
class AddReport:
    """What an ``add`` did, in documents: ``encoded`` are those whose vectors had to be computed, ``reused`` those whose
    text was already there under another id or with other metadata; ``tokens`` counts the token vectors written; ``cut``
    are those of the encoded ones that the model does not read at once, ``windows`` what they became together."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    reused: int = 0
    encoded: int = 0
    tokens: int = 0
    cut: int = 0
    windows: int = 0


@dataclass(slots=True)
class _Batch:
    documents: list[tuple[Document, str | None]] = field(default_factory=list)
    finished: list[tuple[str, dict[str, Any], set[str] | None]] = field(default_factory=list)
    characters: int = 0

    def full(self, tokens: int) -> bool:
        # Two characters a token is fewer than any natural text or code has: the bound holds before tokenizing.
        return len(self.documents) >= BATCH_DOCUMENTS or self.characters >= 2 * tokens


def content_hash(document: Document) -> str:
    """Hash what is encoded of a document: two documents of one hash have the same vectors under one model."""
    digest = blake2b(digest_size=16)
    for part in (document.context, document.text):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


class Session:
    """One writer's work on an index: documents are gathered into batches, encoded, and committed as it goes.

    Nothing that was committed is lost when the process dies; what was not is found missing, and done, by the next run.
    """

    def __init__(self, retriever: "Retriever", writer: Writer, progress: Progress | None, memory: int) -> None:
        self._retriever, self._writer, self._progress = retriever, writer, progress
        self._batch_tokens = min(BATCH_TOKENS, memory // (BATCH_SHARE * 4 * retriever.index.dim))
        self._batch = _Batch()
        self._seen: set[str] = set()
        self._uncommitted_tokens = 0
        self._committed_at = time.monotonic()
        self._tokens_before = int(retriever.index.status()["tokens"])
        self.share = 0.0
        """How much of the session's work has been handed in, 0 to 1, if the caller knows."""
        self.report = AddReport()
        self.removed = 0

    def add(self, document: Document, source: str | None = None) -> None:
        """Add a document, or put it in the place of the one with its id."""
        if document.id in self._seen:
            raise DataError(f"document id {document.id!r} came twice; ids name one document: make them unique")
        self._seen.add(document.id)
        self._batch.documents.append((document, source))
        self._batch.characters += len(document.text) + len(document.context)
        if self._batch.full(self._batch_tokens):
            self.flush()

    def set_settings(self, settings: dict[str, Any]) -> None:
        """Keep named JSON values in the index's catalogue."""
        self._writer.set_settings(settings)

    def finish_source(self, source: str, state: dict[str, Any], keep: set[str] | None) -> None:
        """Record that a source stands at ``state``; those of its documents not in ``keep`` go (None: all stay)."""
        self._batch.finished.append((source, state, keep))

    def delete(self, ids: Collection[str]) -> None:
        """Delete the documents with these ids."""
        self.removed += self._writer.delete(ids)

    def delete_source(self, source: str) -> None:
        """Delete a source and its documents."""
        self.removed += self._writer.delete_source(source)

    def flush(self) -> None:
        """Encode and write what is gathered; commit if enough has come together."""
        batch, self._batch = self._batch, _Batch()
        index, report = self._retriever.index, self.report
        present = {document.id: document for document in index.documents([d.id for d, _ in batch.documents])}
        hashes = {document.id: content_hash(document) for document, _ in batch.documents}
        known = self._writer.known(set(hashes.values()))
        to_encode: list[tuple[Document, str | None]] = []
        for document, source in batch.documents:
            if present.get(document.id) == document:
                report.unchanged += 1
                continue
            if document.id in present:
                report.updated += 1
            else:
                report.added += 1
            if hashes[document.id] in known:
                self._writer.add_same(
                    document.id, hashes[document.id], document.text, document.context, document.metadata, source
                )
                report.reused += 1
            else:
                to_encode.append((document, source))
        tokens = self._encode(to_encode, hashes)
        if self.share:
            self._writer.expect(self._tokens_before + round(report.tokens / self.share))
        for source_name, state, keep in batch.finished:
            if keep is not None:
                self.delete(index.source_ids(source_name) - keep)
            self._writer.set_source(source_name, state)
        if self._progress is not None:
            # A source is a step, and so is a document that has none.
            steps = len(batch.finished) + sum(source is None for _, source in batch.documents)
            self._progress.advance(steps, tokens=tokens)
        self._uncommitted_tokens += tokens
        late = time.monotonic() - self._committed_at > COMMIT_SECONDS
        if self._uncommitted_tokens >= COMMIT_TOKENS or late:
            self.commit()

    def commit(self) -> None:
        """Make what was flushed so far durable, in one transaction."""
        self._writer.commit()
        self._retriever.index.refresh()
        self._uncommitted_tokens = 0
        self._committed_at = time.monotonic()

    def settle(self) -> None:
        """Bring segments together after much work: each costs every search a little."""
        if self.report.tokens < SETTLE_TOKENS:
            return
        status = self._retriever.index.status()
        if status["segments"] > 1 and SETTLE_SHARE * self.report.tokens >= status["tokens"]:
            self._writer.compact()
            self._retriever.index.refresh()

    def _encode(self, documents: Sequence[tuple[Document, str | None]], hashes: dict[str, str]) -> int:
        if not documents:
            return 0
        spans = self._retriever.windows([document for document, _ in documents])
        texts = [
            passage(context, document.text[start:end])
            for (document, _), (context, windows) in zip(documents, spans, strict=True)
            for start, end in windows
        ]
        vectors = iter(self._retriever.model.encode_documents(texts))
        entries = []
        for (document, source), (_, windows) in zip(documents, spans, strict=True):
            rows = [as_window(next(vectors)) for _ in windows]
            entries.append(
                Entry(
                    id=document.id,
                    vectors=rows,
                    spans=windows,
                    text=document.text,
                    context=document.context,
                    metadata=document.metadata,
                    source=source,
                    content_hash=hashes[document.id],
                )
            )
        self._writer.add(entries)
        tokens = sum(len(rows_of(window, "colbert")) for entry in entries for window in entry.vectors)
        several = [len(entry.spans) for entry in entries if len(entry.spans) > 1]
        self.report.cut += len(several)
        self.report.windows += sum(several)
        self.report.encoded += len(entries)
        self.report.tokens += tokens
        return tokens


class Retriever:
    """An index and the model whose vectors it holds. Make one with ``create`` or ``open``; close it, or use ``with``.

    Reading needs no lock and never changes what is read: a search is answered from the generation that was opened (or
    last written by this retriever). ``add`` and ``delete`` take the writer's lock for as long as they run.
    """

    def __init__(self, index: AnyIndex, model: Encoder | None = None, **loading: Any) -> None:
        self.index = index
        self._model = model
        self._likeness: Encoder | None = None
        self._loading = loading

    @classmethod
    def create(cls, path: str | Path, model: Encoder, *, bits: int | None = None) -> Self:
        """Make an index folder at ``path`` for ``model``'s vectors.

        bits: of a dimension of a token's vector, once there are enough of them to be packed: 1, 2, 4 or 8.
        Raises: DataError if there is already something at ``path``, or for other bits.
        """
        identity = model.identity
        index = create_index(
            Path(path), identity.kind, identity.dim, asdict(identity), bits=bits, pooled_dim=identity.pooled_dim
        )
        return cls(index, model)

    @classmethod
    def open(cls, path: str | Path, model: Encoder | None = None, **loading: Any) -> Self:
        """Open an index. Its model is loaded when first needed, with ``loading`` given to ``from_pretrained``.

        Raises: IndexFormatError if it is not an index; ModelError if ``model``, or the model found under the name, is
        another one.
        """
        retriever = cls(open_index(Path(path)), model, **loading)
        if model is not None:
            retriever._check(model.identity)
        return retriever

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the index's files."""
        self.index.close()

    @property
    def identity(self) -> ModelIdentity:
        """The model whose vectors the index holds.

        Raises: ModelError if the index was made of vectors of one's own, with no model that is known here.
        """
        try:
            return ModelIdentity(**self.index.identity)
        except TypeError:
            raise ModelError(
                f"{self.index.path} was made of one's own vectors, by no model that is known here: ask it by vectors, "
                "in Python with `open_index(...).search`"
            ) from None

    @property
    def model(self) -> Encoder:
        """The model, loaded if it is not yet."""
        if self._model is None:
            self._model = self._load()
        return self._model

    @property
    def asking(self) -> Encoder:
        """What encodes questions: the model, or where torch is spared its likeness in numpy, if it has one."""
        if self._model is not None:
            return self._model
        if self._likeness is None and spares_torch() and not any(self._loading.values()):
            from mbretrieve.models.light import LightEncoder

            identity = self.identity
            self._likeness = LightEncoder.load(identity.kind, identity.name, **self._shape)
            if self._likeness is not None:
                self._check(self._likeness.identity)
        return self._likeness or self.model

    @property
    def _shape(self) -> dict[str, Any]:
        identity = self.identity
        return {
            "revision": identity.revision,
            "dim": identity.dim,
            "query_length": identity.query_length,
            "document_length": identity.document_length,
        }

    def _load(self) -> Encoder:
        from mbretrieve.models import load_encoder

        identity = self.identity
        model = load_encoder(identity.kind, identity.name, **self._shape, **self._loading)
        self._check(model.identity)
        return model

    def _check(self, found: ModelIdentity) -> None:
        expected = self.identity
        for name in ("kind", "dim", "document_length", "content_hash"):
            came, wanted = getattr(found, name), getattr(expected, name)
            if came != wanted:
                raise ModelError(
                    f"the index holds vectors of {expected.name} with {name} {wanted}, but the model {found.name} "
                    f"has {came}: open it with the model it was made with, or index again"
                )

    def windows(self, documents: Sequence[Document]) -> list[tuple[str, list[tuple[int, int]]]]:
        """Return for each document the context put before each of its windows, and the windows' character ranges."""
        return windows_of(self.model, documents)

    def add(
        self, documents: Iterable[Document], *, progress: Progress | None = None, memory: int = MEMORY
    ) -> AddReport:
        """Add documents, or put them in the place of those with their ids; read as a stream, committed as it goes.

        A sequence is read in an order of chance, so that the index learns to pack vectors from documents like those
        that follow; of a stream it knows the beginning.
        A document equal to the one stored is left alone; one whose text and context are already in the index is not
        encoded again.
        Raises: DataError for an id that comes twice or metadata that is not a string, number or boolean;
        IndexBusyError if another process writes, or the disk cannot be written.
        """
        with self.writing(progress, memory=memory) as session:
            if isinstance(documents, Sequence):
                for count, at in enumerate(np.random.default_rng(0).permutation(len(documents)).tolist(), start=1):
                    session.share = count / len(documents)
                    session.add(documents[at])
            else:
                for document in documents:
                    session.add(document)
        return session.report

    def delete(self, ids: Iterable[str]) -> int:
        """Delete documents by id; returns how many there were."""
        with self.writing() as session:
            session.delete(set(ids))
        return session.removed

    @contextmanager
    def writing(self, progress: Progress | None = None, *, memory: int = MEMORY) -> Iterator[Session]:
        """Hold the writer's lock for a session, which is flushed and committed at the end, unless an error ended it.

        memory: bytes to work in, about, beside the model.
        """
        with self.index.writer(memory) as writer:
            self.index.refresh()
            session = Session(self, writer, progress, memory)
            yield session
            session.flush()
            session.commit()
            session.settle()

    def search(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        where: Where | None = None,
        ids: Collection[str] | None = None,
        mode: Mode = "hybrid",
        fusion: Fusion = "weighted",
        lexical_weight: float = LEXICAL_WEIGHT,
        effort: Effort | None = None,
        exact: bool = False,
    ) -> list[list[Hit]]:
        """Return for each query its best ``k`` documents (all, if there are fewer), best first.

        where: metadata filter, see ``types.Where``; ids: rank only these documents; both act before ranking. mode: by
        meaning (``semantic``), by words (``lexical``), or both (``hybrid``). fusion, of both: ``weighted``, a sum of
        scores (see ``index.fusion``), or ``rrf``, a sum of reciprocal ranks, those by words times ``lexical_weight``
        in either. effort: how far to look by meaning in an index that is packed or searched by a graph (None: as
        ``index.plan`` has it for its size); exact: score every document by meaning instead.
        Raises: ValueError for k < 1, an unknown mode or fusion; DataError for a filter that does not parse or an empty
        query.
        """
        if k < 1:
            raise ValueError(f"k is {k}; at least 1 was expected")
        if fusion not in FUSIONS:
            raise ValueError(f"fusion is {fusion!r}; {' or '.join(map(repr, FUSIONS))} was expected")
        for query in queries:
            if not query.strip():
                raise DataError("the query is empty: give it at least one word")
        if mode == "lexical":
            found = self.index.lexical(queries, k, where=where, ids=ids)
        elif mode == "semantic":
            vectors = self.asking.encode_queries(queries)
            found = self.index.search(vectors, k, where=where, ids=ids, effort=effort, exact=exact)
        elif mode == "hybrid":
            depth = max(DEPTH, 2 * k)
            # The best few of many candidates matter to fusion: it is not worth the time to be sure of the last of them.
            planned = effort or replace(self.index.effort(max(1, depth // SURE)), sure=k)
            found = self.index.search_both(
                self.asking.encode_queries(queries),
                queries,
                k,
                lambda meaning, words: FUSIONS[fusion](meaning, words, lexical_weight),
                depth=depth,
                where=where,
                ids=ids,
                effort=planned,
                exact=exact,
            )
        else:
            raise ValueError(f"mode is {mode!r}; 'hybrid', 'semantic' or 'lexical' was expected")
        return self._hits(found)

    def _hits(self, found: Sequence[Sequence[Match]]) -> list[list[Hit]]:
        ids = {match.id for matches in found for match in matches}
        documents = {document.id: document for document in self.index.documents(ids)}
        if lost := sorted(ids - documents.keys()):
            raise damaged(self.index.path, f"the document {lost[0]!r} was found and cannot be read")
        return [
            [
                Hit(match.id, match.score, documents[match.id].text, documents[match.id].metadata, match.span)
                for match in matches
            ]
            for matches in found
        ]

    def matching(self, pattern: re.Pattern[str], where: Where | None = None) -> set[str]:
        """Return the ids of the documents in whose text the pattern is found."""
        return {document.id for document in self.index.scan(where=where) if pattern.search(document.text)}

    def highlight(self, query: str, hits: Sequence[Hit]) -> list[list[int]]:
        """Return for each hit the lines of its text that match the query best: up to three numbers from 0, rising."""
        marked = []
        for hit, scores in zip(hits, self._line_scores(query, hits), strict=True):
            first = hit.text.count("\n", 0, hit.span[0])
            best = np.argsort(-scores, kind="stable")[:MARKED_LINES].tolist()
            marked.append(sorted(first + line for line in best if scores[line] > MARKED_SHARE * scores[best[0]]))
        return marked

    def _line_scores(self, query: str, hits: Sequence[Hit]) -> Iterator[FloatArray]:
        """Score the lines of each hit's window, by the vectors that the index has of it: they are not made again."""
        encoder = self.asking
        if self.identity.kind == "dense":  # of which each line has one of its own
            yield from encoder.line_scores(query, [hit.text[slice(*hit.span)] for hit in hits])
            return
        question = rows_of(encoder.encode_queries([query])[0], "colbert")
        kept = self.index.vectors([(hit.id, hit.span) for hit in hits])
        documents = {document.id: document for document in self.index.documents([hit.id for hit in hits])}
        contexts = {document.id: document.context for document in documents.values()}
        # What has one window is not tokenized once more.
        cut = [documents[hit.id] for hit in hits if hit.span != (0, len(hit.text)) and hit.id in documents]
        contexts |= {d.id: context for d, (context, _) in zip(cut, windows_of(encoder, cut), strict=True)}
        for hit, rows in zip(hits, kept, strict=True):
            text = hit.text[slice(*hit.span)]
            whole = passage(contexts.get(hit.id, ""), text)
            spans = encoder.token_spans(whole) - (len(whole) - len(text))
            if rows is not None and len(rows) == len(spans):
                yield line_shares(question, rows, np.maximum(spans, 0), text)  # of the context nothing is left
            else:  # a match by words alone, of more than one window
                yield from encoder.line_scores(query, [text])

    def status(self) -> dict[str, Any]:
        """Return what the index holds and what it costs; loads no model."""
        return self.index.status()

    def verify(self) -> list[str]:
        """Recompute every hash and count of the index; returns what is wrong, one line each (empty: all is well)."""
        return self.index.verify()
