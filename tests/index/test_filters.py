"""Metadata filters against plain Python, over values of every kind."""

import operator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbretrieve.errors import DataError
from mbretrieve.index import DenseIndex

VALUES = st.one_of(
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**63 - 1, -(2**63), 2**53 + 1, float(2**53), 0.5, 1.0, -0.0]),
    st.sampled_from(["", "a", "ab", "1", "true", "é", "x/y.py", "a'b\"", "日本"]),
)
KEYS = st.sampled_from(["a", "b", "it's"])
COMPARE = {"gte": operator.ge, "gt": operator.gt, "lte": operator.le, "lt": operator.lt}
CONDITIONS = st.one_of(
    VALUES,
    st.lists(VALUES, max_size=3),
    st.dictionaries(
        st.sampled_from(sorted(COMPARE)), VALUES.filter(lambda v: not isinstance(v, bool)), min_size=1, max_size=2
    ),
    st.fixed_dictionaries({"glob": st.sampled_from(["*", "a*", "?", "*.py", ["a", "x*"]])}),
    st.fixed_dictionaries({"not_glob": st.sampled_from(["a*", ["*b", "*'*"]]), "gte": st.just("")}),
)


def kind(value: Any) -> str:
    return "text" if isinstance(value, str) else "bool" if isinstance(value, bool) else "number"


def equal(a: Any, b: Any) -> bool:
    return kind(a) == kind(b) and a == b


def holds(value: Any, condition: Any) -> bool:
    if isinstance(condition, list):
        return any(equal(value, one) for one in condition)
    if not isinstance(condition, dict):
        return equal(value, condition)
    return all(passes(value, word, given_) for word, given_ in condition.items())


def passes(value: Any, word: str, given_: Any) -> bool:
    patterns = given_ if isinstance(given_, list) else [given_]
    if kind(value) != kind(patterns[0]):
        return False
    if word in ("glob", "not_glob"):
        return any(fnmatchcase(value, pattern) for pattern in patterns) == (word == "glob")
    return bool(COMPARE[word](value, given_))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DenseIndex:
    return DenseIndex.create(tmp_path_factory.mktemp("filters") / "index", 1)


@settings(max_examples=60, deadline=None)
@given(
    metadata=st.lists(st.dictionaries(KEYS, VALUES), min_size=1, max_size=6),
    wheres=st.lists(st.dictionaries(KEYS, CONDITIONS, max_size=2), min_size=1, max_size=8),
)
def test_filters_pass_what_python_says(
    index: DenseIndex, metadata: list[dict[str, Any]], wheres: list[dict[str, Any]]
) -> None:
    with index.writer() as writer:
        writer.delete([document.id for document in index.scan()])
    index.add([str(i) for i in range(len(metadata))], np.ones((len(metadata), 1)), metadata)
    for document in index.scan():
        stored, given_ = document.metadata, metadata[int(document.id)]
        assert stored == given_
        assert [type(stored[key]) for key in given_] == [type(value) for value in given_.values()]
    for where in wheres:
        expected = {
            str(i)
            for i, values in enumerate(metadata)
            if all(key in values and holds(values[key], condition) for key, condition in where.items())
        }
        assert {match.id for match in index.search(np.ones((1, 1)), 10, where=where)[0]} == expected
    assert index.verify() == []


BAD = [
    ({"a": {}}, "no operator"),
    ({"a": {"like": "x"}}, "operator 'like'"),
    ({"a": {"gte": True}}, "a string or a number was expected"),
    ({"a": {"gte": [1]}}, "a string or a number was expected"),
    ({"a": {"glob": 3}}, "a string or a list of strings was expected"),
    ({"a": {"glob": []}}, "no pattern"),
    ({"a": None}, "NoneType"),
    ({"a": float("nan")}, "finite"),
    ({"a": 2**70}, "64 bits"),
    ({"a": [[1]]}, "list"),
    ({"a": "\ud800"}, "surrogate"),
    ({3: "x"}, "a string was expected"),
    (["a"], "a mapping"),
    ({"a": list(range(20_000))}, "too many"),
]


@pytest.mark.parametrize(("where", "message"), BAD)
def test_a_filter_that_does_not_parse_is_refused_in_a_line(index: DenseIndex, where: Any, message: str) -> None:
    for search in (lambda: index.search(np.ones((1, 1)), 1, where=where), lambda: index.lexical(["x"], 1, where=where)):
        with pytest.raises(DataError, match=message) as caught:
            search()
        assert "\n" not in str(caught.value)


def test_k_documents_come_back_where_k_pass_however_few_do(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((3000, 8)).astype(np.float32)
    with DenseIndex.create(tmp_path / "index", 8) as dense:
        dense.add([f"{i:04}" for i in range(3000)], vectors, [{"n": i} for i in range(3000)])
        query = random.standard_normal((1, 8))
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        order = np.argsort(-(unit @ query[0]))
        expected = [f"{i:04}" for i in order if i % 1000 in (3, 4, 5)]
        chosen = {"n": [i for i in range(3000) if i % 1000 in (3, 4, 5)]}
        assert [match.id for match in dense.search(query, 5, where=chosen)[0]] == expected[:5]
        assert [match.id for match in dense.search(query, 100, where=chosen)[0]] == expected
        assert [match.id for match in dense.search(query, 5, ids=expected)[0]] == expected[:5]
        assert dense.search(query, 5, ids=[]) == [[]]
