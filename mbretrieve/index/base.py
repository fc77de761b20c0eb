"""What both kinds of index do: make and open a folder, read one generation of it, search, filter, and hand out a writer."""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from mbretrieve.errors import DataError, IndexBusyError, IndexFormatError
from mbretrieve.index.catalogue import FILE, FORMAT, Catalogue, checksum, create_catalogue, damaged
from mbretrieve.index.filters import compile_where
from mbretrieve.index.records import Entry, Match, check_rows
from mbretrieve.index.segments import segment_bytes
from mbretrieve.index.store import Writer
from mbretrieve.index.verify import verify
from mbretrieve.index.view import Found, Integers, Ranked, View, load_view
from mbretrieve.index.words import match_expression
from mbretrieve.types import Document, Kind, Metadata, Where

GROUP_SCORES = 1 << 24  # scores held at a time (64 MiB): more queries are answered in groups
SCAN_ROWS = 1000


class VectorIndex(ABC):
    """An index on disk, opened at one generation: what others commit later is seen after ``refresh``.

    Several threads may read through one object. Use ``with``, or ``close`` it.
    """

    kind: ClassVar[Kind]

    def __init__(self, path: str | Path, catalogue: Catalogue) -> None:
        self.path = Path(path)
        self._catalogue = catalogue
        self._loaded: View | None = None

    @classmethod
    def create(cls, path: str | Path, dim: int, identity: Mapping[str, Any] | None = None) -> Self:
        """Make an empty index for vectors of ``dim`` numbers; ``identity`` (JSON values) says what made them.

        Raises: DataError if there is already something at ``path``; IndexBusyError if it cannot be written.
        """
        create_catalogue(Path(path), cls.kind, dim, identity or {})
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open an index at its newest generation.

        Raises: IndexFormatError if it is not an index of this kind, is damaged, or was written in a newer format.
        """
        catalogue = Catalogue.open(Path(path))
        if catalogue.kind != cls.kind:
            catalogue.close()
            raise IndexFormatError(
                f"{path} is a {catalogue.kind} index; a {cls.kind} index was expected: use open_index"
            )
        return cls(path, catalogue)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the index's files."""
        self._loaded = None
        self._catalogue.close()

    def refresh(self) -> bool:
        """Go to the newest generation; returns whether it is another one."""
        before = self.generation
        self._catalogue.refresh()
        if self.generation == before:
            return False
        self._loaded = None
        return True

    @property
    def generation(self) -> int:
        """How many commits made what this object sees."""
        return self._catalogue.generation

    @property
    def dim(self) -> int:
        """The vectors' dimension."""
        return self._catalogue.dim

    @property
    def identity(self) -> dict[str, Any]:
        """What ``create`` was told of the model."""
        return self._catalogue.identity

    @property
    def settings(self) -> dict[str, Any]:
        """What ``Writer.set_settings`` keeps."""
        return self._catalogue.settings

    def __len__(self) -> int:
        [(count,)] = self._catalogue.rows("SELECT count(*) FROM documents")
        return int(count)

    # Writing

    @contextmanager
    def writer(self) -> Iterator[Writer]:
        """Hold the one writer's lock; leaving the block commits, and this object then sees what was written.

        Raises: IndexBusyError if another process writes, or the folder cannot be written.
        """
        try:
            with Writer(self.path) as writer:
                yield writer
        finally:
            self.refresh()

    def add(
        self,
        ids: Sequence[str],
        vectors: Sequence[NDArray[Any]] | NDArray[Any],
        metadata: Sequence[Metadata] | None = None,
    ) -> None:
        """Add documents by their vectors alone, each in the place of the one with its id if there is one; commits.

        vectors: for each document a (tokens, dim) array, or in a dense index one (dim,) row of an (n, dim) array.
        Raises: DataError naming an id, IndexBusyError; nothing is then written.
        """
        if len(ids) != len(vectors) or (metadata is not None and len(metadata) != len(ids)):
            raise ValueError(f"{len(ids)} ids, {len(vectors)} vectors and metadata for {len(metadata or ids)}")
        entries = [
            Entry(id, [self._one_window(rows)], [(0, 0)], metadata={} if metadata is None else metadata[i])
            for i, (id, rows) in enumerate(zip(ids, vectors, strict=True))
        ]
        with self.writer() as writer:
            writer.add(entries)

    def delete(self, ids: Collection[str]) -> int:
        """Delete documents by id, and commit; returns how many there were."""
        with self.writer() as writer:
            return writer.delete(ids)

    # Searching

    def search(
        self,
        queries: Sequence[NDArray[Any]] | NDArray[Any],
        k: int,
        *,
        where: Where | None = None,
        ids: Collection[str] | None = None,
    ) -> list[list[Match]]:
        """Return for each query the best ``k`` documents (all, if there are fewer), best first, equal scores by id.

        A document scores as its best window. ``where`` (see ``filters.compile_where``) and ``ids`` restrict what is ranked.
        Raises: ValueError for k < 1; DataError for a query of another dim or a filter that does not parse.
        """
        _check_k(k)
        checked = self._queries(queries)
        view = self._view()
        allowed = self._allowed(where, ids)
        documents = np.arange(len(view.keys)) if allowed is None else np.searchsorted(view.keys, allowed[:, 0])
        positions = view.positions(documents)
        if not len(positions):
            return [[] for _ in checked]
        group = max(1, GROUP_SCORES // len(positions))
        results: list[list[Match]] = []
        for first in range(0, len(checked), group):
            found = self._candidates(view, checked[first : first + group], positions, k)
            results += self._matches(view, [view.best(one, documents, k) for one in found], k)
        return results

    def score(
        self, queries: Sequence[NDArray[Any]] | NDArray[Any], ids: Sequence[Collection[str]]
    ) -> list[list[Match]]:
        """Score for each query the documents named for it, exactly; best first, unknown ids left out."""
        checked = self._queries(queries)
        if len(checked) != len(ids):
            raise ValueError(f"{len(checked)} queries and {len(ids)} collections of ids")
        view = self._view()
        keys = self._keys({id for some in ids for id in some})
        ranked: list[list[Ranked]] = []
        for query, some in zip(checked, ids, strict=True):
            wanted = sorted({keys[id] for id in some if id in keys})
            documents = np.searchsorted(view.keys, np.array(wanted, dtype=np.int64))
            positions = view.positions(documents)
            [scores] = self._score_windows(view, [query], positions)
            ranked.append(view.best(Found(positions, scores), documents, max(1, len(documents))))
        return self._matches(view, ranked, max(map(len, ids), default=0))

    def lexical(
        self,
        queries: Sequence[str],
        k: int,
        *,
        where: Where | None = None,
        ids: Collection[str] | None = None,
    ) -> list[list[Match]]:
        """Return for each query the best ``k`` of the documents that share a word with it, by BM25, best first.

        Words are those of ``words.tokenize`` in context and text; a word also finds those that begin with it.
        Raises: ValueError for k < 1; DataError for a filter that does not parse.
        """
        _check_k(k)
        allowed = self._allowed(where, ids)
        return [self._by_words(query, k, allowed) for query in queries]

    def _by_words(self, query: str, k: int, allowed: Integers | None) -> list[Match]:
        expression = match_expression(query)
        if expression is None:
            return []
        rows = self._catalogue.rows("SELECT rowid, -bm25(words) FROM words WHERE words MATCH ?", (expression,))
        contents = np.array([row[0] for row in rows], dtype=np.int64)
        scores = np.array([row[1] for row in rows], dtype=np.float64)
        if allowed is not None:
            here = np.isin(contents, allowed[:, 1])
            contents, scores = contents[here], scores[here]
        if k < len(scores):  # every content has a document, so the best k documents have the best k contents
            here = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]
            contents, scores = contents[here], scores[here]
        best = dict(zip(contents.tolist(), scores.tolist(), strict=True))
        pairs = self._catalogue.to_integers(
            self._catalogue.rows_among("SELECT key, content FROM documents WHERE content", best), columns=2
        )
        if allowed is not None:
            pairs = pairs[np.isin(pairs[:, 0], allowed[:, 0])]
        names = self._names(pairs[:, 0].tolist())
        spans: dict[int, tuple[int, int]] = {}
        for content, start, stop in self._catalogue.rows_among(
            "SELECT content, start, stop FROM windows WHERE content", best
        ):
            before = spans.get(content, (start, stop))
            spans[content] = min(start, before[0]), max(stop, before[1])
        matches = [Match(names[key], best[content], -1, spans[content]) for key, content in pairs.tolist()]
        return sorted(matches, key=_best_first)[:k]

    # Reading

    def documents(self, ids: Collection[str]) -> list[Document]:
        """Return the documents with these ids, in their order; unknown ids are left out."""
        keys = self._keys(dict.fromkeys(ids))
        found = {document.id: document for document in self._documents(list(keys.values()))}
        return [found[id] for id in dict.fromkeys(ids) if id in found]

    def scan(self, *, where: Where | None = None) -> Iterator[Document]:
        """Yield all documents, or those that pass a filter, a thousand read at a time."""
        allowed = self._allowed(where, None)
        keys = (
            self._catalogue.integers("SELECT key FROM documents ORDER BY key", columns=1)
            if allowed is None
            else allowed
        )
        for first in range(0, len(keys), SCAN_ROWS):
            yield from self._documents(keys[first : first + SCAN_ROWS, 0].tolist())

    def known(self, content_hashes: Collection[str]) -> set[str]:
        """Return those of the content hashes whose vectors are here, for ``Writer.add_same``."""
        return self._catalogue.known(content_hashes)

    def sources(self) -> dict[str, dict[str, Any]]:
        """Return the state of every source."""
        rows = self._catalogue.rows("SELECT name, state, checksum FROM sources ORDER BY name")
        if any(checksum(name, state) != sum for name, state, sum in rows):
            raise damaged(self.path, "the state of a source was changed")
        return {name: json.loads(state) for name, state, _ in rows}

    def source_ids(self, source: str) -> set[str]:
        """Return the ids of a source's documents."""
        return {id for (id,) in self._catalogue.rows("SELECT id FROM documents WHERE source = ?", (source,))}

    def status(self) -> dict[str, Any]:
        """Return what the index holds and how large it is; reads no vectors."""
        [(segments, windows, tokens)] = self._catalogue.rows(
            "SELECT count(*), coalesce(sum(live_rows), 0), coalesce(sum(live_tokens), 0) FROM segments"
        )
        [(sources,)] = self._catalogue.rows("SELECT count(*) FROM sources")
        sizes = {"segments": segment_bytes(self.path)}
        sizes["catalogue"] = sum(path.stat().st_size for path in self.path.glob(f"{FILE}*"))
        return {
            "path": str(self.path),
            "format": FORMAT,
            "kind": self.kind,
            "dim": self.dim,
            "generation": self.generation,
            "documents": len(self),
            "windows": windows,
            "tokens": tokens,
            "segments": segments,
            "sources": sources,
            "bytes": {**sizes, "total": sum(sizes.values())},
            "identity": self.identity,
            "settings": self.settings,
        }

    def verify(self) -> list[str]:
        """Recompute every hash and count; returns what is wrong, one line each (empty: all is well)."""
        return verify(self._catalogue)

    # What the kinds differ in

    @abstractmethod
    def _one_window(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return what ``add`` was given for a document as its one window's (tokens, dim) array."""

    def _queries(self, queries: Sequence[NDArray[Any]] | NDArray[Any]) -> list[NDArray[np.float32]]:
        """Check queries and return each as a (tokens, dim) float32 array."""
        return [check_rows(f"query {i}", self._one_window(rows), self.dim) for i, rows in enumerate(queries)]

    @abstractmethod
    def _score_windows(
        self, view: View, queries: list[NDArray[np.float32]], positions: Integers
    ) -> NDArray[np.float32]:
        """Score some windows (P,) for each query, exactly: (Q, P)."""

    def _candidates(self, view: View, queries: list[NDArray[np.float32]], positions: Integers, k: int) -> list[Found]:
        """Return for each query windows among ``positions`` that hold the best windows of the best ``k`` documents."""
        return [Found(positions, scores) for scores in self._score_windows(view, queries, positions)]

    # Helpers

    def _view(self) -> View:
        for _ in range(10):
            view = self._loaded
            if view is not None:
                return view
            try:
                self._loaded = load_view(self._catalogue)
            except FileNotFoundError as error:
                # A writer dropped a segment before this reader, which has searched nothing yet, could map it.
                if not self.refresh():
                    raise IndexFormatError(
                        f"{error.filename} is missing: restore it from a copy, or index again"
                    ) from None
        raise IndexBusyError(f"{self.path} is rewritten faster than it can be opened: try again")

    def _allowed(self, where: Where | None, ids: Collection[str] | None) -> Integers | None:
        """Return (n, 2) key and content of the documents that pass, by key; None if nothing restricts them."""
        if where is None and ids is None:
            return None
        select, parameters = compile_where(where or {})
        allowed = self._catalogue.integers(
            f"SELECT key, content FROM documents WHERE key IN ({select}) ORDER BY key", parameters, columns=2
        )
        if ids is None:
            return allowed
        return allowed[np.isin(allowed[:, 0], list(self._keys(ids).values()))]

    def _keys(self, ids: Collection[str]) -> dict[str, int]:
        rows = self._catalogue.rows_among("SELECT id, key FROM documents WHERE id", ids)
        return dict(rows)

    def _names(self, keys: Collection[int]) -> dict[int, str]:
        """Return documents' ids by key, their rows checked."""
        rows = self._catalogue.rows_among(
            "SELECT key, id, content, source, metadata, checksum FROM documents WHERE key", keys
        )
        for _, *fields, sum in rows:
            if checksum(*fields) != sum:
                raise damaged(self.path, f"the row of document {fields[0]!r} was changed")
        return {row[0]: row[1] for row in rows}

    def _documents(self, keys: Collection[int]) -> list[Document]:
        names = self._names(keys)
        rows = self._catalogue.rows_among(
            "SELECT documents.key, metadata, hash, context, text, contents.checksum FROM documents"
            " JOIN contents ON contents.key = documents.content WHERE documents.key",
            keys,
        )
        for key, _, *fields, sum in rows:
            if checksum(*fields) != sum:
                raise damaged(self.path, f"the text of document {names[key]!r} was changed")
        by_key = {
            key: Document(names[key], text, json.loads(metadata), context)
            for key, metadata, _, context, text, _ in rows
        }
        if missing := set(names) - set(by_key):
            raise damaged(self.path, f"document {names[min(missing)]!r} has no text")
        return [by_key[key] for key in keys if key in by_key]

    def _matches(self, view: View, ranked: list[list[Ranked]], k: int) -> list[list[Match]]:
        chosen = np.unique(
            np.array([[one.document, one.position] for some in ranked for one in some]).reshape(-1, 2), axis=0
        )
        names = self._names(view.keys[np.unique(chosen[:, 0])].tolist())
        view.check(np.unique(chosen[:, 1]))
        return [
            sorted(
                (
                    Match(
                        names[int(view.keys[document])],
                        score,
                        int(view.window[position]),
                        (int(view.span[position, 0]), int(view.span[position, 1])),
                    )
                    for document, score, position in some
                ),
                key=_best_first,
            )[:k]
            for some in ranked
        ]


def _best_first(match: Match) -> tuple[float, str]:
    return -match.score, match.id


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; at least 1 was expected")
