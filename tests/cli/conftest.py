"""The real command line on the bundled model: in this process where possible, so that torch is imported once."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from mbretrieve.cli import main

FILES = {
    "app/config.py": '''"""Settings of the application."""

DEFAULTS = {
    "host": "localhost",
    "port": 8080,
    "retries": 3,
    "timeout": 30.0,
    "verbose": False,
    "colour": "auto",
    "theme": "dark",
}


def read_config(path):
    """Read the configuration file and fill in the defaults."""
    with open(path) as file:
        return DEFAULTS | parse_pairs(file.read())


def parse_pairs(text):
    """Split lines of name = value into a dictionary."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
''',
    "app/net.py": '''import socket


class Client:
    """Talks to the server over a socket."""

    def connect(self, host, port):
        """Open a TCP connection to the host."""
        self.socket = socket.create_connection((host, port))

    def close(self):
        """Shut the connection down."""
        self.socket.close()
''',
    "docs/guide.md": """# Guide

## Baking bread

Mix flour, water, salt and yeast; let the dough rise for an hour.

## Watering plants

Tomatoes want water every morning, cactuses once a month.
""",
    ".gitignore": "build/\n",
    "build/generated.py": "def generated_code():\n    pass\n",
}


class Result(NamedTuple):
    """What a command gave."""

    status: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("MBRETRIEVE_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv(
        "OMP_NUM_THREADS", "1"
    )  # tests run beside each other: threads that wait for a core burn the others
    return folder


class Pristine(NamedTuple):
    """The small repository as every test finds it, and the cache folder with its index; made once."""

    place: Path
    repo: Path
    cache: Path


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Pristine:
    base = tmp_path_factory.mktemp("pristine")
    made = Pristine(base / "work" / "repo", base / "repo", base / "cache")
    for name, text in FILES.items():
        path = made.repo / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (made.repo / ".git").mkdir()
    shutil.copytree(made.repo, made.place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MBRETRIEVE_CACHE", str(made.cache))
        assert main(["index", str(made.place)]) == 0
    return made


@pytest.fixture
def repo(pristine: Pristine, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small repository, and the current folder. Always in the same place, which an index remembers."""
    shutil.rmtree(pristine.place)
    shutil.copytree(pristine.repo, pristine.place)
    monkeypatch.chdir(pristine.place)
    return pristine.place


@pytest.fixture
def mbretrieve(capfd: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: str | Path) -> Result:
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Result(status, out, err)

    return run


@pytest.fixture
def indexed(repo: Path, cache: Path, pristine: Pristine) -> Path:
    """The small repository, indexed."""
    shutil.copytree(pristine.cache, cache)
    return repo


def one_line(result: Result) -> str:
    """Return the single line of an error that a user can mend."""
    assert result.status == 1, result
    assert result.out == ""
    assert result.err.count("\n") == 1, result.err
    assert result.err.startswith("mbretrieve: ")
    return result.err
