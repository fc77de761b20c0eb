"""A small evaluation set made of Python's own library: a function's first docstring line is sought, its code found."""

import ast
import csv
import heapq
import json
import shlex
import statistics
import textwrap
from pathlib import Path
from types import ModuleType

MODULES = (statistics, textwrap, heapq, shlex, csv)


def functions(module: ModuleType) -> dict[str, tuple[str, str]]:
    """Name -> (the docstring's first line, the code without the docstring)."""
    assert module.__file__
    found = {}
    for node in ast.walk(ast.parse(Path(module.__file__).read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef) and (said := ast.get_docstring(node)) and len(node.body) > 1:
            node.body = node.body[1:]
            found[f"{module.__name__}.{node.name}"] = (said.splitlines()[0], ast.unparse(node))
    return found


def write_set(folder: Path, copies: int = 1) -> Path:
    """Write the set in BEIR layout; every function has a partner that is graded lower, its copies are not relevant."""
    rows = {name: row for module in MODULES for name, row in functions(module).items()}
    names = list(rows)
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w") as corpus:
        for copy in range(copies):
            for name, (_, code) in rows.items():
                text = code if not copy else f"{code}\n# copy {copy}"
                id = name if not copy else f"{name}#{copy}"
                corpus.write(json.dumps({"_id": id, "title": name.split(".")[1], "text": text}) + "\n")
    with (folder / "queries.jsonl").open("w") as queries, (folder / "qrels" / "test.tsv").open("w") as judgements:
        judgements.write("query-id\tcorpus-id\tscore\n")
        for number, (name, (said, _)) in enumerate(rows.items()):
            queries.write(json.dumps({"_id": f"q-{name}", "text": said}) + "\n")
            judgements.write(f"q-{name}\t{name}\t2\n")
            judgements.write(f"q-{name}\t{names[number - 1]}\t1\n")
    return folder
