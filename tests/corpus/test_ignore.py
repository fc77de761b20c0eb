"""The rules of .gitignore, held against git itself."""

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from mbretrieve.corpus.ignore import PathFilter, Rules

TOKENS = [
    *("a", "b", "ab", "c", "a.b", ".", "-", "*", "**", "***", "?", "/", " ", "\\ ", "!", "#", "\\", "\\a", "\\*"),
    *(
        "[ab]",
        "[!a]",
        "[^b]",
        "[a-c]",
        "[c-a]",
        "[]a]",
        "[a-]",
        "[\\]a]",
        "[",
        "[[:alpha:]]",
        "[[:x:]]",
        "[[:]",
        "[!]]",
    ),
]
NAMES = ["a", "b", "ab", "a.b", "c", "]", "*", "-", "abc", "a b", "#a", "!a", "a ", "\\", "b\n"]

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is the oracle")


def tree(rng: random.Random, prefix: str = "", depth: int = 0) -> list[str]:
    paths: list[str] = []
    for name in rng.sample(NAMES, 6):
        nested = depth < 3 and rng.random() < 0.5
        paths += tree(rng, f"{prefix}{name}/", depth + 1) if nested else [prefix + name]
    return paths


def rules(rng: random.Random) -> list[str]:
    lines = []
    for _ in range(rng.randint(1, 5)):
        line = "".join(rng.choice(TOKENS) for _ in range(rng.randint(1, 5)))
        lines.append("!" * (rng.random() < 0.25) + line + "/" * (rng.random() < 0.2) + "\r" * (rng.random() < 0.1))
    return lines


@needs_git
@pytest.mark.parametrize("seed", range(4))
def test_rules_ignore_what_git_ignores(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    paths = tree(rng)
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x")
    ignored_in_all = 0
    for _ in range(40):
        lines = rules(rng)
        (tmp_path / ".gitignore").write_text("\n".join(lines) + "\n", newline="")
        command = ["git", "-c", "core.excludesFile=", "check-ignore", "-z", "--stdin", "--no-index"]
        answer = subprocess.run(command, cwd=tmp_path, input="\0".join(paths).encode(), capture_output=True)
        assert answer.returncode in (0, 1), answer.stderr
        ours = Rules(lines)
        ignored = {path for path in paths if ours.ignores_path(path)}
        assert ignored == set(answer.stdout.decode().split("\0")) - {""}, lines
        ignored_in_all += len(ignored)
    assert ignored_in_all > 100


@pytest.mark.parametrize("line", ["a" + " " * 1_000_000 + "a", "[" * 1_000_000, "[[:" * 1000, "a\0", "\\", "[z-a", "!"])
def test_a_line_that_is_no_pattern_hurts_no_other(line: str) -> None:
    assert Rules([line, "a\t", "b"]).ignores("b", "b", folder=False)
    assert Rules(["*", line]).ignores("b", "b", folder=False)
    assert not Rules([line, "a\t"]).ignores_path("a")


@pytest.mark.parametrize(
    ("include", "exclude", "taken"),
    [
        ([], [], ["a.py", "src/b.py", "src/c.ts", "tests/d.py"]),
        (["*.py"], [], ["a.py", "src/b.py", "tests/d.py"]),
        (["src"], [], ["src/b.py", "src/c.ts"]),
        (["src/", "a.py"], ["*.ts"], ["a.py", "src/b.py"]),
        ([], ["tests/"], ["a.py", "src/b.py", "src/c.ts"]),
        (["/*.py"], [], ["a.py"]),
        (["**/*.py", "!tests"], [], ["a.py", "src/b.py", "tests/d.py"]),  # `**/*.py` still takes the file itself
        (["[*"], [], []),
    ],
)
def test_filters(include: list[str], exclude: list[str], taken: list[str]) -> None:
    paths = ["a.py", "src/b.py", "src/c.ts", "tests/d.py"]
    assert [path for path in paths if PathFilter(include, exclude).takes(path)] == taken
