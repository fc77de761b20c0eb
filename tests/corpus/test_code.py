"""Source code to units: the law that no line is lost or taken twice, and what each language's units are."""

import sysconfig
from itertools import pairwise
from pathlib import Path

import pytest
import tree_sitter
from hypothesis import given, settings
from hypothesis import strategies as st

from mbretrieve.corpus import code
from mbretrieve.corpus.code import split_code
from mbretrieve.corpus.formats import code_language
from mbretrieve.corpus.languages import LANGUAGES, Language, grammar
from mbretrieve.corpus.lines import MOST_CHARS, MOST_LINES, Unit, split_lines
from tests.corpus.samples import SAMPLES

STANDARD_LIBRARY = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py"))


def language_of(name: str) -> Language:
    language = code_language(name, "")
    assert language is not None
    return language


def split(name: str, text: str) -> list[tuple[Unit, str]]:
    """Split a text, hold it to the law, and return each unit with its text."""
    lines = split_lines(text)
    units = split_code(text, lines, language_of(name))
    if lines:
        assert (units[0].start, units[-1].end) == (0, len(lines))
    assert all(unit.start < unit.end for unit in units)
    assert all(before.end == after.start for before, after in pairwise(units))
    texts = ["".join(lines[unit.start : unit.end]) for unit in units]
    assert "".join(texts) == text
    return list(zip(units, texts, strict=True))


@pytest.mark.parametrize("name", SAMPLES)
def test_each_language_gives_its_units(name: str) -> None:
    found = [unit for unit, _ in split(name, SAMPLES[name].text)]
    assert [(unit.kind, unit.name) for unit in found] == SAMPLES[name].units
    contexts = {unit.name: unit.context.rpartition("\n")[2] for unit in found}
    assert {unit: contexts[unit] for unit in SAMPLES[name].contexts} == SAMPLES[name].contexts


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_the_table_names_only_what_the_grammar_has(language: Language) -> None:
    loaded = grammar(language)
    kinds = {loaded.node_kind_for_id(number) for number in range(loaded.node_kind_count)}
    named = language.functions | set(language.scopes) | language.leading | language.wrappers | language.bodiless
    assert named | set(language.assigned) | language.function_values | language.object_values <= kinds
    fields = {loaded.field_name_for_id(number) for number in range(1, loaded.field_count + 1)}
    assert {name for held in language.assigned.values() for name in (held.name, held.value)} <= fields


def test_every_language_has_a_sample() -> None:
    assert {language_of(name) for name in SAMPLES} == set(LANGUAGES)


@pytest.mark.parametrize("path", STANDARD_LIBRARY[::3], ids=lambda path: path.name)
def test_the_standard_library_is_cut_without_losing_a_line(path: Path) -> None:
    for unit, text in split(path.name, path.read_text("utf-8")):
        if unit.kind in ("block", "class"):
            assert unit.end - unit.start <= MOST_LINES + 4  # the closing lines of what it holds may follow
            assert len(text) <= MOST_CHARS + 500


def test_functions_of_the_standard_library_are_found_by_name() -> None:
    path = Path(sysconfig.get_path("stdlib")) / "textwrap.py"
    units = split(path.name, path.read_text("utf-8"))
    found = {unit.name: text for unit, text in reversed(units)}
    assert found["dedent"].startswith("def dedent(text):")
    assert found["TextWrapper.fill"].lstrip().startswith("def fill(self, text):")
    assert found["TextWrapper"].startswith("class TextWrapper:")


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_broken_source_loses_nothing(name: str, data: st.DataObject) -> None:
    text = SAMPLES[name].text
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    junk = data.draw(st.text(alphabet="{}()[]\"'`;:#/*\\\n\r\t\0 aé\u2028x\u202e", max_size=30))
    split(name, text[:start] + junk + text[end:])
    split(name, text[start:end])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SAMPLES)), st.text(max_size=200))
def test_any_text_at_all_keeps_its_lines(name: str, text: str) -> None:
    split(name, text)


@pytest.mark.parametrize("name", SAMPLES)
def test_line_ends_change_no_unit(name: str) -> None:
    text = SAMPLES[name].text
    unix = [(unit.start, unit.end, unit.kind, unit.name) for unit, _ in split(name, text)]
    assert [(u.start, u.end, u.kind, u.name) for u, _ in split(name, text.replace("\n", "\r\n"))] == unix
    assert [(u.start, u.end, u.kind, u.name) for u, _ in split(name, text.rstrip("\n"))][:-1] == unix[:-1]


def test_a_null_byte_does_not_end_the_file() -> None:
    found = split("a.py", "def first():\n    return '\0'\n\ndef second():\n    return 2\n")
    assert [unit.name for unit, _ in found] == ["first", "second"]
    assert "\0" in found[0][1]


def test_what_belongs_to_a_function_is_in_its_unit() -> None:
    texts = {unit.name: text for unit, text in split("shape.py", SAMPLES["shape.py"].text)}
    assert texts["area"].startswith("# About area.\n@cache\n@other(\n    1,\n)\ndef area(r):\n    def helper():")
    assert texts["Shape.name"].startswith("    # Said of name.\n    @property\n")
    assert 'colour = "red"' in texts["Shape.name"]  # one line between methods is no unit


def test_long_functions_are_one_unit_and_know_their_signature() -> None:
    body = "".join(f"    total += {number}\n" for number in range(500))
    (unit, text), *rest = split("a.py", f"def count(\n    total: int,\n) -> int:\n{body}")
    assert not rest
    assert (unit.kind, unit.end) == ("function", 503)
    assert unit.context == "def count( total: int, ) -> int"
    assert text.endswith("total += 499\n")


def test_tables_are_cut_at_readable_sizes() -> None:
    rows = "".join(f'    {{"key": {number}, "value": [{number}, {number}]}},\n' for number in range(1000))
    units = [unit for unit, _ in split("a.py", f"TABLE = [\n{rows}]\n")]
    assert len(units) >= 1000 / MOST_LINES
    assert all(unit.end - unit.start <= MOST_LINES + 1 for unit in units)


def test_a_parse_that_takes_too_long_leaves_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "def f():\n    return 1\n" * 20_000
    monkeypatch.setattr(code, "PARSE_SECONDS", -1e9)
    assert {unit.kind for unit, _ in split("a.py", text)} == {"block"}
    monkeypatch.undo()
    monkeypatch.setattr(code, "PARSE_BYTES", len(text) // 2)
    kinds = [unit.kind for unit, _ in split("a.py", text)]
    assert kinds[:9000] == ["function"] * 9000
    assert kinds[-1] == "block"
    assert len(kinds) < 12_000


@pytest.mark.parametrize("opening", ["(", "[", "{", "if x:\n ", "<a\n", "func(){", "/*", '"'])
@pytest.mark.parametrize("name", ["a.py", "a.ts", "a.cpp", "a.cs"])
def test_deep_nesting_is_survived(name: str, opening: str) -> None:
    split(name, opening * 20_000)


def test_grammars_load_with_this_tree_sitter() -> None:
    assert all(isinstance(grammar(language), tree_sitter.Language) for language in LANGUAGES)
