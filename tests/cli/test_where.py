"""``--where``: what parses, what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbretrieve.cli.where import parse_where
from mbretrieve.errors import DataError


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([], {}),
        (["lang=en"], {"lang": "en"}),
        (["lang = en"], {"lang": "en"}),
        (["lang=en,fr"], {"lang": ["en", "fr"]}),
        (["year=2000"], {"year": 2000}),
        (['year="2000"'], {"year": "2000"}),
        (["score=-1.5"], {"score": -1.5}),
        (["draft=true"], {"draft": True}),
        (['name="a, b",c'], {"name": ["a, b", "c"]}),
        (["year>=2000", "year<2010"], {"year": {"gte": 2000, "lt": 2010}}),
        (["year>2000", "lang=en"], {"year": {"gt": 2000}, "lang": "en"}),
        (["name=a b"], {"name": "a b"}),
        (['name=""'], {"name": ""}),
    ],
)
def test_what_parses(conditions: list[str], expected: dict[str, Any]) -> None:
    assert parse_where(conditions) == expected


@pytest.mark.parametrize(
    "conditions",
    [
        *([one] for one in ("", "lang", "lang=", "=en", "a==b", "a!=b", "a=b,", "a=,b", 'a="b', "a>1,2")),
        *([one, two] for one, two in (("a=1", "a=2"), ("a=1", "a>2"), ("a>1", "a=2"), ("a>1", "a>2"))),
    ],
    ids=" ".join,
)
def test_what_does_not_parse_is_one_line(conditions: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        parse_where(conditions)
    assert str(caught.value).startswith("--where")
    assert "\n" not in str(caught.value)


VALUES = st.booleans() | st.integers(-(10**15), 10**15) | st.text(st.characters(exclude_characters='"'))


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_a_value_comes_back_as_it_was_written(values: list[Any]) -> None:
    spelled = ",".join(f'"{value}"' if isinstance(value, str) else str(value).lower() for value in values)
    assert parse_where([f"key={spelled}"]) == {"key": values[0] if len(values) == 1 else values}
