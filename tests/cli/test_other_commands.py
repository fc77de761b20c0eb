"""``mbretrieve status``, ``delete``, ``verify``, ``--version`` and ``--help``."""

import contextlib
import io
import json
import os
import pty
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import mbretrieve as package
from mbretrieve.folder import default_index
from tests.cli.conftest import Command, one_line


def test_version_and_help(mbretrieve: Command) -> None:
    assert mbretrieve("--version").out == f"mbretrieve, version {package.__version__}\n"
    shown = mbretrieve("--help")
    assert shown.status == 0
    for name in ("index", "search", "status", "delete", "verify", "repair", "compact"):
        assert re.search(rf"^  {name} ", shown.out, re.MULTILINE)
        described = mbretrieve(name, "--help")
        assert described.status == 0
        assert "--index DIR" in described.out


def test_usage_errors_exit_2(repo: Path, mbretrieve: Command) -> None:
    for arguments in (
        ["search"],
        ["search", "q", "-k", "0"],
        ["search", "q", "--mode", "psychic"],
        ["fly"],
        ["delete"],
    ):
        result = mbretrieve(*arguments)
        assert result.status == 2, arguments
        assert result.out == ""
        assert "Traceback" not in result.err


def test_status_says_what_the_index_holds(indexed: Path, mbretrieve: Command) -> None:
    result = mbretrieve("status", "--json")
    record = json.loads(result.out)
    assert record["roots"] == [str(indexed)]
    assert record["files"] == 3
    assert record["documents"] == len(json.loads(mbretrieve("search", "x", "-k", 999, "--json").out))
    assert record["tokens"] > record["documents"]
    assert record["bytes"] > 2 * record["tokens"]
    assert record["model"]["kind"] == "colbert"
    assert record["changed_files"] == 0
    assert "up to date: yes" in mbretrieve("status", "app").out
    (indexed / "app/net.py").write_text("pass\n")
    assert json.loads(mbretrieve("status", "--json").out)["changed_files"] == 1
    assert "mbretrieve index" in mbretrieve("status").out


def test_status_lists_all_indexes_where_there_is_none(
    indexed: Path, tmp_path: Path, mbretrieve: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mbretrieve("status").out.startswith(f"{indexed}: ")
    assert [record["roots"] for record in json.loads(mbretrieve("status", "--json").out)] == [[str(indexed)]]
    assert "has no index" in one_line(mbretrieve("status", tmp_path))


def test_documents_are_deleted_by_id(indexed: Path, mbretrieve: Command) -> None:
    question = ("search", "read the configuration file", "-k", 1, "--json")
    first = json.loads(mbretrieve(*question).out)[0]["id"]
    assert mbretrieve("delete", first).out == "deleted 1 document\n"
    assert json.loads(mbretrieve(*question).out)[0]["id"] != first
    again = mbretrieve("delete", first)
    assert again.status == 1
    assert "1 of 1 ids are not in" in again.err


def test_an_index_of_more_than_was_named_is_not_deleted(indexed: Path, mbretrieve: Command) -> None:
    error = one_line(mbretrieve("delete", "--all", "--yes", "--path", "docs"))
    assert "docs has no index of its own" in error
    assert mbretrieve("status").status == 0
    index = default_index(indexed)
    assert mbretrieve("delete", "--all", "--yes", "--path", "docs", "--index", index).status == 0
    assert mbretrieve("status").status == 1


def test_a_question_that_nobody_answers_deletes_nothing(
    indexed: Path, mbretrieve: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    result = mbretrieve("delete", "--all")
    assert result.status == 1
    assert "is not deleted: answer with y, or add --yes" in result.err.splitlines()[-1]
    assert mbretrieve("status").status == 0


def test_a_whole_index_is_deleted_after_a_question(
    indexed: Path, cache: Path, mbretrieve: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"n\n")))
    assert mbretrieve("delete", "--all").status == 0
    assert len(list(cache.iterdir())) == 1
    assert mbretrieve("delete", "--all", "--yes").status == 0
    assert list(cache.iterdir()) == []
    assert (indexed / "app/config.py").exists()


def test_deleting_an_index_leaves_other_files_in_its_folder(repo: Path, tmp_path: Path, mbretrieve: Command) -> None:
    index = tmp_path / "my.index"
    mbretrieve("index", repo, "--index", index)
    (index / "notes.txt").write_text("mine")
    assert mbretrieve("delete", "--all", "--yes", "--index", index).status == 0
    assert [path.name for path in index.iterdir()] == ["notes.txt"]


def test_an_index_made_in_python_has_no_paths(repo: Path, tmp_path: Path, mbretrieve: Command) -> None:
    index = tmp_path / "my.index"
    with package.Retriever.create(index, package.ColBERT.from_pretrained()) as retriever:
        retriever.add(
            [
                package.Document("a", "Paris is in France.", {"lang": "en"}),
                package.Document("b", "Rom liegt in Italien."),
            ]
        )
    [hit] = json.loads(mbretrieve("search", "capital of France", "--index", index, "-k", 1, "--json").out)
    assert hit["id"] == "a"
    assert (hit["path"], hit["start_line"], hit["end_line"]) == (None, None, None)
    assert hit["metadata"] == {"lang": "en"}
    shown = mbretrieve("search", "capital of France", "--index", index, "-k", 1)
    assert shown.out.startswith("a  ")
    assert "Paris is in France." in shown.out
    assert mbretrieve("search", "capital of France", "--index", index, "-k", 1, "-l").out == "a\n"
    assert "what was added to it" in mbretrieve("status", "--index", index).out
    assert "in no folder" in one_line(mbretrieve("index", "docs", "--index", index, "--kind", "dense"))
    assert mbretrieve("index", "docs", "--index", index).status == 0
    assert mbretrieve("delete", "b", "--index", index).out == "deleted 1 document\n"
    assert json.loads(mbretrieve("search", "France", "--index", index, "-k", 1, "--json").out)[0]["id"] == "a"


def test_verify_finds_a_changed_byte(indexed: Path, cache: Path, mbretrieve: Command) -> None:
    sound = mbretrieve("verify")
    assert (sound.status, sound.err) == (0, "")
    assert "all sound" in sound.out
    tokens = next(cache.rglob("segments/*/tokens.npy"))
    data = bytearray(tokens.read_bytes())
    data[-1] ^= 1
    tokens.write_bytes(data)
    result = mbretrieve("verify")
    assert result.status == 1
    assert str(tokens) in result.out
    assert result.err == "mbretrieve: `mbretrieve repair` mends what can be mended\n"
    assert "Traceback" not in result.out + result.err


def test_repair_drops_what_is_damaged_and_index_reads_it_again(indexed: Path, cache: Path, mbretrieve: Command) -> None:
    before = json.loads(mbretrieve("search", "x", "-k", 999, "--json").out)
    assert "nothing to repair" in mbretrieve("repair").out
    with contextlib.closing(sqlite3.connect(next(cache.rglob("catalog.sqlite")))) as database, database:
        database.execute("UPDATE contents SET text = 'x' WHERE text LIKE '%def connect%'")
    assert mbretrieve("verify").status == 1
    result = mbretrieve("repair")
    assert (result.status, result.err) == (0, "")
    assert "documents are lost: 'app/net.py" in result.out
    assert mbretrieve("verify").status == 0
    assert json.loads(mbretrieve("status", "--json").out)["changed_files"] == 1
    assert mbretrieve("index", ".").status == 0
    assert json.loads(mbretrieve("search", "x", "-k", 999, "--json").out) == before
    assert json.loads(mbretrieve("status", "--json").out)["changed_files"] == 0


def test_compact_gives_the_disk_back(indexed: Path, mbretrieve: Command) -> None:
    before = json.loads(mbretrieve("search", "bread", "--json").out)
    for flags in ([], ["--retrain"]):
        result = mbretrieve("compact", *flags)
        assert (result.status, result.err) == (0, "")
        assert re.search(r": [0-9.]+ [kM]B before, [0-9.]+ [kM]B now\n$", result.out)
    assert json.loads(mbretrieve("search", "bread", "--json").out) == before
    assert mbretrieve("verify").status == 0


LOADED = """
import sys
from mbretrieve.cli import main
status = main(sys.argv[1:])
print(*sorted(sys.modules), file=sys.stderr)
sys.exit(status)
"""
HEAVY = {
    "torch",
    "faiss",
    "transformers",
    "sentence_transformers",
    "tree_sitter",
    "sklearn",
    "scipy",
    "pandas",
    "bs4",
    "pypdf",
}


def modules(*arguments: str | Path) -> set[str]:
    """Run a command in a process of its own and return the modules it loaded."""
    command = [sys.executable, "-c", LOADED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_commands_load_only_what_they_need(indexed: Path) -> None:
    assert not modules("--help") & (HEAVY | {"numpy", "rich", "sqlite3"})
    assert not modules("search", "--help") & (HEAVY | {"numpy", "rich", "sqlite3"})
    assert not modules("status") & (HEAVY | {"rich"})
    assert not modules("index", ".") & (HEAVY | {"rich"}), "nothing is to be encoded"
    assert not modules("search", "config", "--mode", "lexical") & (HEAVY | {"rich"})
    assert not modules("search", "config") & (HEAVY - {"torch"} | {"rich", "pygments", "huggingface_hub"})


def test_the_reader_may_leave_early(indexed: Path) -> None:
    command = [sys.executable, "-m", "mbretrieve", "search", "config", "-k", "999", "--mode", "lexical"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # as `| head -0` does
        assert process.stderr.read() == ""


def test_an_encoding_that_lacks_characters(indexed: Path) -> None:
    (indexed / "bell.py").write_text("def ring():\n    return '🔔 läutet'\n")
    command = [sys.executable, "-m", "mbretrieve", "search", "ring", "--mode", "lexical"]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "latin-1"}, check=True)
    assert b"\\U0001f514 l\xe4utet" in done.stdout


def test_a_terminal_gets_colours_and_bars_but_no_escapes_of_others(indexed: Path) -> None:
    (indexed / "evil.py").write_text("def evil():\n    '''Ring the \x1b]0;owned\x07 bell.'''\n    return 1\n")
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "mbretrieve", "search", "ring the bell", "-k", "1"]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux's way to say that the other side is closed
                break
            if not piece:
                break
            shown += piece
    os.close(ours)
    assert process.returncode == 0
    assert b"indexing" in shown, "the bar"
    assert b"\x1b[1;35mevil.py:1-3" in shown
    assert b"\\x1b]0;owned\\x07" in shown
    assert b"\x1b]0;" not in shown


def test_a_question_is_answered_without_torch_as_it_is_with_it(indexed: Path, mbretrieve: Command) -> None:
    question = "where is the config file read"
    for options in (), ("--mode", "semantic"), ("--json",), ("-l",):
        assert not modules("search", question, *options) & (HEAVY - {"faiss"})
    assert "torch" in modules("search", question, "--dtype", "bfloat16")

    def found(*options: str) -> list[tuple[str, float]]:
        command = [sys.executable, "-m", "mbretrieve", "search", question, "--json", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [(hit["id"], hit["score"]) for hit in json.loads(done.stdout)]

    light, heavy = found(), found("--dtype", "float32")
    assert [name for name, _ in light] == [name for name, _ in heavy]
    assert [score for _, score in light] == pytest.approx([score for _, score in heavy], abs=1e-4)
