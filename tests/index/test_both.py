"""Meaning and words in one search: what it joins is what the two searches say of the same documents."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbretrieve.index import Entry, create_index
from mbretrieve.index.fusion import weighted_sum
from mbretrieve.index.view import load_view
from mbretrieve.types import JointVectors
from tests.index.packed import tiny

DIM, COUNT = 8, 90
WORDS = ["parse", "lock", "merge", "index", "token", "query", "cache"]


def window(kind: str, random: np.random.Generator) -> Any:
    rows = random.standard_normal((1 if kind == "dense" else 3, DIM)).astype(np.float32)
    return JointVectors(rows, random.standard_normal(DIM).astype(np.float32)) if kind == "joint" else rows


def entries(kind: str) -> list[Entry]:
    """Documents of one to three windows and a few words."""
    random, found = np.random.default_rng(0), []
    for i in range(COUNT):
        text = " ".join(random.choice(WORDS, random.integers(1, 5)))
        windows = [window(kind, random) for _ in range(random.integers(1, 4))]
        found.append(Entry(f"d{i:02}", windows, [(0, 1)] * len(windows), text, "", {"even": i % 2 == 0}))
    return found


def add(semantic: Any, lexical: Any) -> Any:
    return weighted_sum(semantic, lexical, 0.5)


@pytest.mark.parametrize("kind", ["colbert", "dense", "joint"])
@pytest.mark.parametrize("where", [None, {"even": True}, {"even": "nothing"}])
def test_it_joins_what_the_two_searches_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, where: Any
) -> None:
    tiny(monkeypatch)
    random = np.random.default_rng(1)
    with create_index(tmp_path / "index", kind, DIM, {}, pooled_dim=DIM if kind == "joint" else 0) as index:  # type: ignore[arg-type]
        with index.writer() as writer:
            writer.add(entries(kind))
        queries = [window(kind, random) if kind != "dense" else random.standard_normal(DIM) for _ in range(4)]
        texts = ["parse the cache", "nothing", "merge lock merge", "tok"]
        found = index.search_both(queries, texts, 7, add, depth=COUNT, where=where)
        meaning = index.search(queries, COUNT, where=where, exact=True)
        words = index.lexical(texts, COUNT, where=where)
        for matches, by_meaning, by_words in zip(found, meaning, words, strict=True):
            scores = add({m.id: m.score for m in by_meaning}, {m.id: m.score for m in by_words})
            best = sorted(scores.items(), key=lambda one: (-one[1], one[0]))[:7]
            assert [match.id for match in matches] == [id for id, _ in best]
            assert [match.score for match in matches] == pytest.approx([score for _, score in best], abs=1e-5)
            windows = {m.id: m.window for m in by_meaning}
            assert all(match.window == windows[match.id] for match in matches)


@pytest.mark.parametrize("kind", ["colbert", "dense", "joint"])
def test_what_words_find_is_scored_by_meaning_however_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    tiny(monkeypatch)
    random = np.random.default_rng(2)
    rare = Entry("rare", [window(kind, random)], [(0, 1)], "rare")
    with create_index(tmp_path / "index", kind, DIM, {}, pooled_dim=DIM if kind == "joint" else 0) as index:  # type: ignore[arg-type]
        with index.writer() as writer:
            writer.add([*entries(kind), rare])
        query = window(kind, random) if kind != "dense" else random.standard_normal(DIM)
        [exact] = index.search([query], 1, ids=["rare"], exact=True)
        seen: list[Any] = []

        def keep(semantic: Any, lexical: Any) -> Any:
            seen.append((semantic, lexical))
            return {content: float(content in lexical) for content in semantic}

        [[match]] = index.search_both([query], ["rare"], 1, keep, depth=2, effort=index.effort(1))
        assert match.id == "rare"
        [(semantic, lexical)] = seen
        [content] = lexical
        assert semantic[content] == pytest.approx(exact[0].score, abs=1e-4)
        assert len(semantic) <= 3


@given(
    windows=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    seed=st.integers(0, 99),
    most=st.integers(1, 60),
    least=st.integers(0, 12),
)
@settings(max_examples=40, deadline=None)
def test_of_long_documents_only_the_best_are_scored(
    tmp_path_factory: pytest.TempPathFactory, windows: list[int], seed: int, most: int, least: int
) -> None:
    random = np.random.default_rng(seed)
    with create_index(tmp_path_factory.mktemp("long") / "index", "dense", DIM, {}) as index:
        for some in (windows[::2], windows[1::2]):  # two segments
            with index.writer() as writer:
                writer.add(Entry(str(random.random()), [window("dense", random)] * n, [(0, 1)] * n) for n in some)
        view = load_view(index._catalogue)
        contents = np.unique(view.contents(view.every_position))
        contents = contents[random.random(len(contents)) < 0.8]
        scores = random.permutation(len(contents)) / 2
        found = view.contents(view.positions_of_best(contents, scores, most, least))

    counts = dict(zip(range(1, len(windows) + 1), [*windows[::2], *windows[1::2]], strict=True))
    taken, room = [], most
    for place, content in enumerate(contents[np.argsort(-scores)].tolist()):
        room -= counts[content]
        if place >= least and room < 0:
            break
        taken.append(content)
    assert sorted(found.tolist()) == sorted(content for content in taken for _ in range(counts[content]))
