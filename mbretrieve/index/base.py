"""What all kinds of index do: make and open a folder, search and read one generation of it, hand out a writer."""

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from mbretrieve.errors import IndexFormatError
from mbretrieve.index import plan
from mbretrieve.index.answers import all_passing, matches
from mbretrieve.index.arrays import best_of, distinct, is_among
from mbretrieve.index.catalogue import FILE, FORMAT, Catalogue, Integers, checksum, create_catalogue, damaged
from mbretrieve.index.files import folder_bytes
from mbretrieve.index.lexical import search_contents, search_words
from mbretrieve.index.plan import Effort
from mbretrieve.index.reading import keys_by_id, named, passing, read_documents, scan_documents
from mbretrieve.index.records import Entry, Match
from mbretrieve.index.repair import repair
from mbretrieve.index.segments import CODEBOOKS, LISTS, NEIGHBORS, SEGMENTS
from mbretrieve.index.store import MEMORY, Writer
from mbretrieve.index.verify import verify
from mbretrieve.index.view import Found, Ranked, View, load_view
from mbretrieve.types import Document, JointVectors, Kind, Metadata, Progress, Where

GROUP_SCORES = 1 << 24  # scores held at a time (64 MiB): more queries are answered in groups

Query = TypeVar("Query")
"""A query that was checked, as a kind of index scores it."""
Join = Callable[[Mapping[int, float], Mapping[int, float]], Mapping[int, float]]
"""Two rankings of one query to one: scores by meaning and by words, as ``fusion`` has them."""
Vectors = NDArray[Any] | JointVectors
"""A query or document as a caller has it: a (tokens, dim) array, in a dense index (dim,), in a joint one both."""


class VectorIndex(ABC, Generic[Query]):
    """An index on disk, opened at one generation: what others commit later is seen after ``refresh``.

    Several threads may read through one object; a search that runs during a ``refresh`` ends on its old generation.
    Use ``with``, or ``close`` it.
    """

    kind: ClassVar[Kind]

    def __init__(self, path: str | Path, catalogue: Catalogue) -> None:
        self.path = Path(path)
        self._catalogue = catalogue
        self._loaded: tuple[Catalogue, View] | None = None
        self._switching = threading.RLock()

    @classmethod
    def create(
        cls,
        path: str | Path,
        dim: int,
        identity: Mapping[str, Any] | None = None,
        *,
        bits: int | None = None,
        pooled_dim: int = 0,
    ) -> Self:
        """Make an empty index for vectors of ``dim`` numbers; ``identity`` (JSON values) says what made them.

        bits: a dimension of a packed vector has so many, 1, 2, 4 or 8; if not given, as many as lose nearly nothing.
        pooled_dim: of a joint index, the numbers of the vector that stands beside a window's tokens'.
        Raises: DataError if there is already something at ``path``; IndexBusyError if it cannot be written.
        """
        create_catalogue(Path(path), cls.kind, dim, identity or {}, cls._bits(bits), pooled_dim)
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
        with self._switching:
            newest = Catalogue.open(self.path)
            if newest.generation == self.generation:
                newest.close()
                return False
            # The old one is not closed here: another thread may be reading it, and the last to let go closes it.
            self._catalogue, self._loaded = newest, None
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
    def writer(self, memory: int = MEMORY) -> Iterator[Writer]:
        """Hold the one writer's lock; leaving the block commits, and this object then sees what was written.

        memory: bytes to work in, about, however much is written.
        Raises: IndexBusyError if another process writes, or the folder cannot be written.
        """
        try:
            with Writer(self.path, memory) as writer:
                yield writer
        finally:
            self.refresh()

    def add(
        self,
        ids: Sequence[str],
        vectors: Sequence[Vectors] | NDArray[Any],
        metadata: Sequence[Metadata] | None = None,
    ) -> None:
        """Add documents by their vectors alone, each in the place of the one with its id if there is one; commits.

        vectors: for each document a (tokens, dim) array, in a dense index one (dim,) row of an (n, dim) array, in a
        joint index ``JointVectors``.
        Raises: DataError naming an id, IndexBusyError; nothing is then written.
        """
        if len(ids) != len(vectors) or (metadata is not None and len(metadata) != len(ids)):
            more = "" if metadata is None else f", metadata for {len(metadata)}"
            raise ValueError(f"{len(ids)} ids, {len(vectors)} vectors{more}: as many of each were expected")
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

    def compact(self, *, retrain: bool = False, memory: int = MEMORY, progress: Progress | None = None) -> None:
        """Bring all vectors into as few segments as can be, and give back the disk that nothing needs; commits.

        See ``Writer.compact``. Raises: IndexBusyError.
        """
        with self.writer(memory) as writer:
            writer.compact(retrain=retrain, progress=progress)

    # Searching

    def search(
        self,
        queries: Sequence[Vectors] | NDArray[Any],
        k: int,
        *,
        where: Where | None = None,
        ids: Collection[str] | None = None,
        effort: Effort | None = None,
        exact: bool = False,
    ) -> list[list[Match]]:
        """Return for each query the best ``k`` documents (all, if there are fewer), best first; equal scores by id.

        A document scores as its best window; ``where`` (``filters.compile_where``) and ``ids`` limit what is ranked.
        effort: how far to look in what is packed (None: as ``plan.TABLE`` says); exact: score every document instead.
        Raises: ValueError for k < 1; DataError for a query of another dim or a filter that does not parse.
        """
        _check_k(k)
        checked = self._queries(queries)
        catalogue, view = self._snapshot()
        passed = passing(catalogue, where, ids)
        contents = None if passed is None else distinct(passed[:, 1])
        positions = view.positions(contents)
        if not len(positions):
            return [[] for _ in checked]
        group = max(1, GROUP_SCORES // len(positions))
        results: list[list[Match]] = []
        for first in range(0, len(checked), group):
            some = checked[first : first + group]
            if exact:
                found = [Found(positions, scores) for scores in self._score_windows(view, some, positions)]
            else:
                found = self._candidates(view, some, positions, k, effort)
            ranked = [view.best(one, k) for one in found]
            results += matches(catalogue, view, ranked, [passed] * len(ranked), k)
        return all_passing(catalogue, where, ids, results)

    def search_both(
        self,
        queries: Sequence[Vectors] | NDArray[Any],
        texts: Sequence[str],
        k: int,
        join: Join,
        *,
        depth: int,
        where: Where | None = None,
        ids: Collection[str] | None = None,
        effort: Effort | None = None,
        exact: bool = False,
    ) -> list[list[Match]]:
        """Return for each query, by its vectors and its text, the best ``k`` documents by what ``join`` makes of their
        scores by meaning and by words; equal scores by id.

        Joined are the best ``depth`` by meaning and the best half as many by words, each with its score by meaning, and
        the one by words if it is among the best ``depth`` by these. By words fewer are, but ``k``, where they are long:
        so many as have ``effort.rescore`` windows together, unless ``exact``. A match spans the window that is best by
        meaning. For the rest: ``search``.
        """
        _check_k(k)
        checked = self._queries(queries)
        catalogue, view = self._snapshot()
        passed = passing(catalogue, where, ids)
        positions = view.positions(None if passed is None else distinct(passed[:, 1]))
        if not len(positions):
            return [[] for _ in checked]
        ranked: list[list[Ranked]] = []
        for query, text in zip(checked, texts, strict=True):
            worded, scores = search_contents(catalogue, text, depth, passed)
            best = best_of(scores, depth)
            worded, scores = worded[best], scores[best]
            first = best_of(scores, max(1, depth // 2))
            also = worded[first]
            if exact:
                found = Found(positions, self._score_windows(view, [query], positions)[0])
            else:
                most = (effort or self.effort(depth)).rescore
                near = view.positions_of_best(also, scores[first], most, k)
                [found] = self._candidates(view, [query], positions, depth, effort, near)
            by = view.by_content(found)
            chosen = best_of(by.scores, depth) | is_among(by.contents, also)
            contents, has_words = by.contents[chosen], is_among(by.contents[chosen], worded)
            words = scores[np.searchsorted(worded, contents[has_words])]
            joined = join(
                dict(zip(contents.tolist(), by.scores[chosen].tolist(), strict=True)),
                dict(zip(contents[has_words].tolist(), words.tolist(), strict=True)),
            )
            final = np.full(len(by.contents), -np.inf)
            final[chosen] = [joined[content] for content in contents.tolist()]
            ranked.append(by.ranked(best_of(final, k) & chosen, final))
        return all_passing(catalogue, where, ids, matches(catalogue, view, ranked, [passed] * len(ranked), k))

    def effort(self, k: int) -> Effort:
        """Return how far ``search`` goes for the best ``k`` documents if it is not told."""
        _, view = self._snapshot()
        return plan.effort(view.packed_tokens, k)

    def score(self, queries: Sequence[Vectors] | NDArray[Any], ids: Sequence[Collection[str]]) -> list[list[Match]]:
        """Score for each query the documents named for it, exactly; best first, unknown ids left out."""
        checked = self._queries(queries)
        if len(checked) != len(ids):
            raise ValueError(f"{len(checked)} queries and {len(ids)} collections of ids")
        catalogue, view = self._snapshot()
        there = named(catalogue, {id for some in ids for id in some})
        ranked: list[list[Ranked]] = []
        passed: list[Integers | None] = []
        for query, some in zip(checked, ids, strict=True):
            documents = np.array([there[id] for id in set(some) if id in there], dtype=np.int64).reshape(-1, 2)
            positions = view.positions(distinct(documents[:, 1]))
            [scores] = self._score_windows(view, [query], positions)
            ranked.append(view.best(Found(positions, scores), max(1, len(positions))))
            passed.append(documents)
        return matches(catalogue, view, ranked, passed, max(map(len, ids), default=0))

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
        catalogue = self._catalogue
        passed = passing(catalogue, where, ids)
        return all_passing(catalogue, where, ids, [search_words(catalogue, query, k, passed) for query in queries])

    # Reading

    def documents(self, ids: Collection[str]) -> list[Document]:
        """Return the documents with these ids, in their order; unknown ids are left out."""
        catalogue = self._catalogue
        keys = keys_by_id(catalogue, dict.fromkeys(ids))
        found = read_documents(catalogue, [keys[id] for id in dict.fromkeys(ids) if id in keys])
        if [document.id for document in found] != [id for id in dict.fromkeys(ids) if id in keys]:
            raise damaged(self.path, "the index of ids was changed")
        return found

    def vectors(self, windows: Sequence[tuple[str, tuple[int, int]]]) -> list[NDArray[np.float32] | None]:
        """Return the vectors of windows, named by a document's id and the characters that they span: (rows, dim) each,
        as compression left them where they are packed; of a joint index its tokens'. None: there is no such window."""
        catalogue, view = self._snapshot()
        there = named(catalogue, {id for id, _ in windows})
        contents = distinct(np.array([content for _, content in there.values()], dtype=np.int64))
        positions = view.positions(contents)
        found = {
            (window.content, (window.start, window.stop)): position
            for position, window in zip(positions.tolist(), view.windows(positions), strict=True)
        }
        some = [found.get((there[id][1], span)) if id in there else None for id, span in windows]
        view.check(distinct(np.array([position for position in some if position is not None], dtype=np.int64)))
        return [None if position is None else view.kept(position) for position in some]

    def scan(self, *, where: Where | None = None) -> Iterator[Document]:
        """Yield all documents, or those that pass a filter, a thousand read at a time."""
        return scan_documents(self._catalogue, where)

    def known(self, content_hashes: Collection[str]) -> set[str]:
        """Return those of the content hashes whose vectors are here, for ``Writer.add_same``."""
        return self._catalogue.known(content_hashes)

    def sources(self) -> dict[str, dict[str, Any]]:
        """Return the state of every source."""
        rows = self._catalogue.rows("SELECT name, state, checksum FROM sources ORDER BY name")
        if any(checksum(name, state) != kept for name, state, kept in rows):
            raise damaged(self.path, "the state of a source was changed")
        return {name: json.loads(state) for name, state, _ in rows}

    def source_ids(self, source: str) -> set[str]:
        """Return the ids of a source's documents."""
        return {id for (id,) in self._catalogue.rows("SELECT id FROM documents WHERE source = ?", (source,))}

    def status(self) -> dict[str, Any]:
        """Return what the index holds and how large it is; reads no vectors.

        ``searched``: how many tokens, or windows where these have a dense vector, are compared with each query (flat),
        and how many are found along a graph or by inverted lists.
        """
        [(segments, windows, tokens, packed)] = self._catalogue.rows(
            "SELECT count(*), coalesce(sum(live_rows), 0), coalesce(sum(live_tokens), 0),"
            " coalesce(sum(live_tokens) FILTER (WHERE codebook IS NOT NULL), 0) FROM segments"
        )
        by_tokens = self.kind == "colbert"
        counted = "live_tokens" if by_tokens else "live_rows"
        [(graph, lists)] = self._catalogue.rows(
            f"SELECT coalesce(sum({counted}) FILTER (WHERE files.name = ?), 0),"  # noqa: S608 - a constant
            f" coalesce(sum({counted}) FILTER (WHERE files.name = ?), 0)"
            " FROM segments JOIN files ON folder = segments.name",
            (NEIGHBORS, LISTS),
        )
        [(sources,)] = self._catalogue.rows("SELECT count(*) FROM sources")
        codebooks = self._catalogue.codebooks()
        sizes = {name: folder_bytes(self.path / name) for name in (SEGMENTS, CODEBOOKS)}
        stored = sum(sizes.values())
        sizes["catalogue"] = sum(path.stat().st_size for path in self.path.glob(f"{FILE}*"))
        return {
            "path": str(self.path),
            "format": FORMAT,
            "kind": self.kind,
            "dim": self.dim,
            "pooled_dim": self._catalogue.layout.pooled_dim,
            "generation": self.generation,
            "documents": len(self),
            "windows": windows,
            "tokens": tokens,
            "segments": segments,
            "packed_tokens": packed,
            "searched": {"flat": (tokens if by_tokens else windows) - graph - lists, "graph": graph, "lists": lists},
            "bits": self._catalogue.bits,
            "lists": [book.lists for book in codebooks],
            "bytes_per_token": round(stored / tokens, 1) if tokens else 0.0,
            "sources": sources,
            "bytes": {**sizes, "total": sum(sizes.values())},
            "identity": self.identity,
            "settings": self.settings,
        }

    def verify(self) -> list[str]:
        """Recompute every hash and count; returns what is wrong, one line each (empty: all is well)."""
        return verify(self._catalogue)

    def repair(self, memory: int = MEMORY) -> list[str]:
        """Mend what is damaged, and commit; returns what was done and what is lost, a line each (empty: all is well).

        Documents whose vectors, text or row are damaged are dropped. Raises: IndexFormatError if the catalogue cannot
        be read; IndexBusyError.
        """
        try:
            return repair(self.path, memory)
        finally:
            self.refresh()

    # What the kinds differ in

    def _one_window(self, vectors: Any) -> Any:
        """Return what ``add`` was given for a document as its one window has it."""
        return vectors

    @abstractmethod
    def _query(self, name: str, query: Any) -> Query:
        """Check a query. Raises: DataError starting with ``name``."""

    def _queries(self, queries: Sequence[Any] | NDArray[Any]) -> list[Query]:
        """Check queries."""
        return [self._query(f"query {i}", self._one_window(query)) for i, query in enumerate(queries)]

    @abstractmethod
    def _score_windows(self, view: View, queries: list[Query], positions: Integers) -> NDArray[np.float32]:
        """Score some windows (P,) for each query, exactly: (Q, P)."""

    @abstractmethod
    def _candidates(
        self,
        view: View,
        queries: list[Query],
        positions: Integers,
        k: int,
        effort: Effort | None,
        also: Integers | None = None,
    ) -> list[Found]:
        """Return for each query windows among ``positions`` that are thought to hold the best windows of the best ``k``
        contents, of no fewer contents than there are; and those at some other positions."""

    @classmethod
    @abstractmethod
    def _bits(cls, bits: int | None) -> int | None:
        """Return how many bits a dimension of a packed vector is to have. Raises: DataError if it cannot."""

    # Helpers

    def _with(self, view: View, query: Query, found: Found, also: Integers | None) -> Found:
        """Return what was found for a query, and the windows at some other positions."""
        missing = found.without(also)
        return found.joined(Found(missing, self._score_windows(view, [query], missing)[0])) if len(missing) else found

    def _snapshot(self) -> tuple[Catalogue, View]:
        """Return the generation to search: its catalogue, and its windows and mapped segments."""
        with self._switching:
            while self._loaded is None:
                try:
                    self._loaded = self._catalogue, load_view(self._catalogue)
                except FileNotFoundError as error:
                    # A writer dropped a segment before this reader, which has searched nothing yet, could map it.
                    if not self.refresh():
                        raise IndexFormatError(
                            f"{error.filename} is missing: run `mbretrieve repair`, restore it from a copy, "
                            "or index again"
                        ) from None
            return self._loaded


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; at least 1 was expected")
