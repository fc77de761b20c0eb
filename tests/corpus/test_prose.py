"""Prose to sections: whose headings count, which do not, and the law that no line is lost."""

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbretrieve.corpus.html import read_html
from mbretrieve.corpus.lines import MOST_CHARS, MOST_LINES, Unit, pieces, split_lines
from mbretrieve.corpus.prose import split_lines_only, split_markdown, split_rst, split_text
from mbretrieve.corpus.records import SkipFile

SPLITTERS = [split_markdown, split_rst, split_text, split_lines_only]

MARKDOWN = """---
title: not a heading
---
intro

# Guide #
## Install
text
```sh
# not a heading
```
~~~
``` still inside
# nor this
~~~

    # code, indented

Setext
======
body
- item
---
| a |
|---|

### Deep
x
#hashtag
#
last
"""

RST = """=====
Title
=====

intro

Sub
---

text::

  code
  ----

====  ====
a     b
====  ====

Sub 2
-----
A paragraph
of two lines
------------

Deep
~~~~
end
"""


def sections(units: list[Unit]) -> list[tuple[int, str]]:
    return [(unit.start + 1, unit.name) for unit in units]


def test_markdown_is_cut_at_its_headings() -> None:
    units = split_markdown(split_lines(MARKDOWN))
    assert sections(units) == [
        (1, ""),
        (6, "Guide > Install"),  # a heading without text goes with the next
        (19, "Setext"),
        (27, "Setext > Deep"),
        (30, ""),
    ]
    assert [unit.context for unit in units] == ["", "Guide", "", "Setext", ""]


def test_rst_is_cut_at_its_titles() -> None:
    assert sections(split_rst(split_lines(RST))) == [
        (1, "Title"),
        (7, "Title > Sub"),
        (19, "Title > Sub 2"),
        (25, "Title > Sub 2 > Deep"),
    ]


def test_plain_text_is_cut_between_paragraphs() -> None:
    paragraphs = [f"Paragraph {number}.\n" + "It goes on.\n" * 6 + "\n" for number in range(40)]
    lines = split_lines("".join(paragraphs))
    units = split_text(lines)
    assert len(units) > 4
    assert all(lines[unit.start].startswith("Paragraph") for unit in units)


def test_pieces_of_a_section_know_its_heading() -> None:
    units = split_markdown(split_lines("# Top\n\n## Long\n" + "text\n" * 200))
    assert {unit.name for unit in units} == {"Top > Long"}
    assert [unit.context for unit in units] == ["Top"] + ["Top > Long"] * (len(units) - 1)


@pytest.mark.parametrize("splitter", SPLITTERS)
@given(text=st.text(alphabet="ab #=-~`>\n\r|.\u2028\x0c\0", max_size=300))
def test_every_line_is_in_one_unit(splitter, text: str) -> None:
    lines = split_lines(text)
    assert "".join(lines) == text
    assert all(line.count("\n") <= 1 for line in lines)
    units = splitter(lines)
    assert [line for unit in units for line in lines[unit.start : unit.end]] == lines
    assert all(before.end == after.start for before, after in pairwise(units))


@given(lengths=st.lists(st.sampled_from([0, 0, 3, 30, 300, 5000]), max_size=300))
def test_pieces_are_of_a_readable_size(lengths: list[int]) -> None:
    lines = [f"{'x' * length}\n" for length in lengths]
    cuts = list(pieces(lines, 0, len(lines)))
    assert [line for start, end in cuts for line in range(start, end)] == list(range(len(lines)))
    for start, end in cuts:
        assert end - start <= MOST_LINES
        assert end - start == 1 or sum(map(len, lines[start:end])) <= MOST_CHARS


HTML = """<!doctype html>
<html><head><title>My
 page</title><style>x{}</style><script>var a="<h1>no</h1>"</script></head>
<body><p>intro <b>bold</b>text &amp; more&nbsp;&lt;</p>
<h1>Guide</h1>
<h2 id=x>Install <i>it</i></h2><ul><li>one<li>two</ul>
<table><tr><td>a<td>b</table>
<pre>
def f():
    return 1
</pre><h2>Use</h2>run it<br>twice<!-- comment -->
<template>unseen</template></script></div>
<h1>End"""


def test_html_is_what_a_reader_sees_cut_at_its_headings() -> None:
    intro, install, use, end = read_html(HTML)
    assert (intro.text, intro.name, intro.context) == ("intro boldtext & more <", "", "My page")
    assert (intro.start_line, intro.end_line) == (1, 4)
    assert install.name == "Guide > Install it"
    assert install.context == "My page > Guide"
    assert install.text.split("\n\n")[:2] == ["Guide", "Install it"]
    assert "one\ntwo" in install.text
    assert "a\tb" in install.text
    assert "def f():\n    return 1" in install.text
    assert (install.start_line, install.end_line) == (5, 10)
    assert use.text == "Use\nrun it\ntwice"
    assert end.text == "End"
    assert "unseen" not in "".join(passage.text for passage in (intro, install, use, end))


@pytest.mark.parametrize("text", ["<html></html>", "<script>var x", "<!-- only -->", "<svg><text>x"])
def test_html_without_words_is_skipped(text: str) -> None:
    with pytest.raises(SkipFile, match="no text"):
        read_html(text)


@given(text=st.text(alphabet="<>/!-h1pre b&#;=\"'\n", max_size=200))
def test_html_of_any_kind_is_read_or_skipped(text: str) -> None:
    with suppress(SkipFile):
        assert all(passage.text and 1 <= passage.start_line <= passage.end_line for passage in read_html(text))


def test_html_nested_deeper_than_calls() -> None:
    (passage,) = read_html("<div>" * 100_000 + "deep" + "</div>" * 100_000)
    assert passage.text == "deep"


@pytest.mark.parametrize(
    "hostile", ["<a ", "</a ", "<!--", "<![CDATA[", "<svg>", "</object>", "<pre>", " \t", "&", "<", "<h1>"]
)
def test_html_takes_no_time_by_the_square_of_its_length(hostile: str) -> None:
    passages = read_html("<p>seen</p><pre>" + "<svg>" * 50_000 + "</svg>" + hostile * 50_000)
    assert passages[0].text.startswith("seen")
