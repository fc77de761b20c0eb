"""Each example runs on the bundled model and prints what it says it does."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
EXPECTED = {
    "code_search.py": ["files", "rag.py:", "prompt"],
    "documents.py": ["harbour-report", "characters", "breakwater was paid for by a loan"],
    "own_vectors.py": [
        "8.00  page 42",
        "looking further: page 42 - every document: page 42",
        "streamed: 208,500 tokens",
        "found: page 0",
        "['note 5',",
    ],
    "rag.py": ["[1] (page 12) Employees have 25 days of leave", "Question: how many vacation days"],
}


def test_every_example_is_listed() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_example_runs(name: str) -> None:
    done = subprocess.run([sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for text in EXPECTED[name]:
        assert text in done.stdout
