"""What is shown of a hit, and what must never reach a terminal."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbretrieve.cli.printable import printable
from mbretrieve.cli.snippet import LONGEST_LINE, WHOLE_UNIT, runs, snippet
from mbretrieve.types import Hit


def test_a_short_unit_is_shown_whole_and_a_long_one_around_its_best_lines() -> None:
    assert runs(WHOLE_UNIT, {3}, None) == [range(WHOLE_UNIT)]
    assert runs(100, {50}, None) == [range(47, 54)]
    assert runs(100, {10, 90}, 1) == [range(9, 12), range(89, 92)]
    assert runs(100, {10, 14}, 1) == [range(9, 16)], "a gap of one line is shown instead of marked"
    assert runs(100, {10, 15}, 1) == [range(9, 12), range(14, 17)]
    assert runs(5, {2}, 0) == [range(2, 3)]
    assert runs(100, set(), None) == [range(7)], "without a best line the beginning stands in"


@given(st.integers(1, 200), st.sets(st.integers(-5, 220), max_size=6), st.none() | st.integers(0, 30))
def test_runs_hold_every_best_line_once(count: int, best: set[int], context: int | None) -> None:
    found = runs(count, best, context)
    shown = [line for run in found for line in run]
    assert shown == sorted(set(shown))
    assert set(shown) <= set(range(count))
    assert {line for line in best if 0 <= line < count} <= set(shown)
    assert all(after.start - before.stop >= 2 for before, after in pairwise(found))


def test_lines_are_numbered_where_they_are_lines_of_the_file() -> None:
    hit = Hit("a.py::f", 1.0, "one\r\ntwo\r\n", {"start_line": 7, "end_line": 8}, (0, 10))
    assert [(line.number, line.text, line.best) for line in snippet(hit, {1}, None)[0]] == [
        (7, "one", False),
        (8, "two", True),
    ]
    page = Hit("a.pdf::1", 1.0, "one\ntwo\n", {"start_line": 7, "end_line": 7}, (0, 8))
    assert [line.number for line in snippet(page, {1}, None)[0]] == [None, None]


def test_a_line_of_data_does_not_fill_the_screen() -> None:
    hit = Hit("a", 1.0, "x" * 10_000, {}, (0, 1))
    assert len(snippet(hit, set(), None)[0][0].text) < LONGEST_LINE + 5


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("null\x00byte", "null\\x00byte"),
        ("one\ntwo\rthree", "one\\ntwo\\rthree"),
        ("user\u202e\u2066nimda", "user\\u202e\\u2066nimda"),
        ("name\udc80", "name\\udc80"),
        ("tab\tשלם 日本 🎉 é", "tab\tשלם 日本 🎉 é"),
    ],
)
def test_control_characters_are_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_what_is_printed_is_one_encodable_line_without_escapes(text: str) -> None:
    shown = printable(text)
    shown.encode("utf-8")
    assert len((shown + "x").splitlines()) == 1
    assert not any((ord(c) < 32 and c != "\t") or 127 <= ord(c) < 160 for c in shown)
