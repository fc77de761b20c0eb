"""Which format a file is in: its name, else the first line of a script, says."""

import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from mbretrieve.corpus.html import read_html
from mbretrieve.corpus.languages import BY_FILE_NAME, BY_INTERPRETER, BY_SUFFIX, Language
from mbretrieve.corpus.lines import Passage, Unit
from mbretrieve.corpus.notebook import read_notebook
from mbretrieve.corpus.prose import split_markdown, split_rst, split_text

_SHEBANG = re.compile(r"#!\s*(?:\S*/)?([^/\s]+)(?:[ \t]+(.*))?")

# Prose whose lines are kept: name of the format, how its lines are cut.
PROSE: dict[str, tuple[str, Callable[[Sequence[str]], list[Unit]]]] = {
    **dict.fromkeys((".md", ".markdown", ".mdown", ".mdx", ".qmd", ".rmd"), ("markdown", split_markdown)),
    **dict.fromkeys((".rst", ".rest"), ("restructuredtext", split_rst)),
    **dict.fromkeys((".txt", ".text"), ("text", split_text)),
}
PROSE_FILE_NAMES = frozenset({"README", "LICENSE", "COPYING", "AUTHORS", "CONTRIBUTING", "CHANGELOG", "NEWS", "NOTICE"})

# Formats whose text is taken out of what surrounds it.
EXTRACTED: dict[str, tuple[str, Callable[[str], list[Passage]]]] = {
    **dict.fromkeys((".html", ".htm", ".xhtml"), ("html", read_html)),
    ".ipynb": ("jupyter", read_notebook),
}

# What has a name, for `--where language=...`, but no grammar here: it is cut by lines.
_NAMES = {
    **dict.fromkeys((".yaml", ".yml"), "yaml"),
    **dict.fromkeys((".json", ".json5", ".jsonc", ".geojson"), "json"),
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonl.gz"), "jsonl"),
    **dict.fromkeys((".css", ".scss", ".sass", ".less"), "css"),
    **dict.fromkeys((".kt", ".kts"), "kotlin"),
    **dict.fromkeys((".ex", ".exs"), "elixir"),
    **dict.fromkeys((".erl", ".hrl"), "erlang"),
    **dict.fromkeys((".clj", ".cljs", ".cljc"), "clojure"),
    **dict.fromkeys((".ml", ".mli"), "ocaml"),
    **dict.fromkeys((".f", ".f90", ".f95", ".for"), "fortran"),
    **dict.fromkeys((".pl", ".pm"), "perl"),
    **dict.fromkeys((".ps1", ".psm1"), "powershell"),
    **dict.fromkeys((".tf", ".hcl"), "hcl"),
    **dict.fromkeys((".mk", ".mak"), "make"),
    **dict.fromkeys((".tex", ".sty", ".bib"), "latex"),
    **dict.fromkeys((".adoc", ".asciidoc"), "asciidoc"),
    **dict.fromkeys((".xml", ".xsd", ".xsl", ".xslt"), "xml"),
    **{f".{name}": name for name in ("toml", "ini", "sql", "swift", "scala", "lua", "dart", "zig", "vue", "svelte")},
    **{f".{name}": name for name in ("proto", "graphql", "cmake", "org", "groovy", "csv", "tsv")},
    **dict.fromkeys((".m", ".mm"), "objective-c"),
    **dict(zip((".r", ".jl", ".hs", ".fs"), ("r", "julia", "haskell", "fsharp"), strict=True)),
}
_NAMED_FILES = {"makefile": "make", "gnumakefile": "make", "dockerfile": "dockerfile", "cmakelists.txt": "cmake"}


def suffix_of(name: str) -> str:
    """Return the last suffix of a file name, in lower case."""
    return PurePosixPath(name).suffix.lower()


def is_jsonl(name: str) -> bool:
    """Tell whether a file is JSON lines, packed or not."""
    return name.lower().endswith((".jsonl", ".ndjson", ".jsonl.gz"))


def prose(name: str) -> tuple[str, Callable[[Sequence[str]], list[Unit]]] | None:
    """Return the name of a format of prose and how its lines are cut; None if the file is no prose."""
    if PurePosixPath(name).name in PROSE_FILE_NAMES:
        return "text", split_text
    return PROSE.get(suffix_of(name))


def code_language(name: str, text: str) -> Language | None:
    """Return the programming language of a file, if it is one that is cut by its grammar."""
    path = PurePosixPath(name)
    if language := BY_FILE_NAME.get(path.name) or BY_SUFFIX.get(path.suffix.lower()):
        return language
    if path.suffix or not (shebang := _SHEBANG.match(text)):
        return None
    program, arguments = shebang[1], (shebang[2] or "").split()
    if program == "env":
        program = next((word for word in arguments if not word.startswith("-") and "=" not in word), "")
    return BY_INTERPRETER.get(program) or BY_INTERPRETER.get(program.rstrip("0123456789."))


def language_name(name: str) -> str:
    """Return what to call the language of a text that is cut by lines."""
    lowered = PurePosixPath(name).name.lower()
    return _NAMED_FILES.get(lowered) or _NAMES.get(suffix_of(name), "text")
