"""Which files a walk finds, and what it says of the others."""

import os
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mbretrieve.corpus.records import Skipped, WalkOptions
from mbretrieve.corpus.walk import walk
from mbretrieve.errors import DataError
from tests.corpus.test_ignore import needs_git, rules, tree


def found(root: Path, options: WalkOptions | None = None, skipped: Skipped | None = None) -> list[str]:
    if skipped is None:
        skipped = Skipped()
    return [file.name for file in walk(root, options or WalkOptions(), skipped)]


def make(root: Path, *names: str, text: str = "text\n") -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def reasons(root: Path, options: WalkOptions | None = None) -> dict[str, list[str]]:
    skipped = Skipped()
    found(root, options, skipped)
    return skipped.examples


def listed_by_git(folder: Path) -> list[str]:
    command = ["git", "-c", "core.excludesFile=", "ls-files", "-z", "-co", "--exclude-standard"]
    answer = subprocess.run(command, cwd=folder, capture_output=True, check=True)
    return answer.stdout.decode().split("\0")[:-1]


@needs_git
@pytest.mark.parametrize("seed", range(12))
def test_a_walk_finds_what_git_lists(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    make(tmp_path, *tree(rng))
    folders = [tmp_path, *sorted(path for path in tmp_path.rglob("*") if path.is_dir() and ".git" not in path.parts)]
    for folder in rng.sample(folders, min(4, len(folders))):
        (folder / ".gitignore").write_text("\n".join(rules(rng)) + "\n", newline="")
    (tmp_path / ".git" / "info" / "exclude").write_text("c\n!abc\n")
    options = WalkOptions(hidden=True, secrets=True)
    assert sorted(found(tmp_path, options)) == sorted(listed_by_git(tmp_path))
    below = next((path for path in folders[1:] if listed_by_git(path)), None)
    if below is not None:  # a part of the repository: the rules above it count
        assert sorted(found(below, options)) == sorted(listed_by_git(below))


@needs_git
def test_a_worktree_uses_the_rules_of_its_repository(tmp_path: Path) -> None:
    main = make(tmp_path / "main", "a.py")
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", "-C", str(main)]
    for command in (["init", "-q"], ["add", "a.py"], ["commit", "-q", "-m", "x"], ["worktree", "add", "-q", "../tree"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    (main / ".git" / "info" / "exclude").write_text("left.py\n")
    assert found(make(tmp_path / "tree", "left.py", "kept.py")) == ["a.py", "kept.py"]


def test_ignore_files_count_without_git(tmp_path: Path) -> None:
    make(tmp_path, "a.py", "b.log", "sub/b.log", "sub/keep.log")
    (tmp_path / ".gitignore").write_text("*.log\n")
    (tmp_path / "sub" / ".gitignore").write_text("!keep.log\n")
    assert found(tmp_path) == ["a.py", "sub/keep.log"]


def test_our_ignore_file_outranks_gits_and_the_tables(tmp_path: Path) -> None:
    make(tmp_path, "a.py", "b.py", "c.py", "vendor/d.py", ".github/e.py", ".env", "node_modules/f.js")
    (tmp_path / ".gitignore").write_text("b.py\n")
    (tmp_path / ".mbretrieveignore").write_text("c.py\n!b.py\n!vendor/\n!.github\n!.env\n")
    skipped = Skipped()
    assert found(tmp_path, skipped=skipped) == [".github/e.py", "a.py", "b.py", "vendor/d.py"]
    assert skipped.examples["key or environment file"] == [".env"]  # only asking for secrets takes them
    assert skipped.examples["ignored by .mbretrieveignore"] == ["c.py"]


def test_an_inner_repository_begins_its_own_rules(tmp_path: Path) -> None:
    make(tmp_path, ".git/HEAD", "a.log", "inner/.git/HEAD", "inner/a.log", "inner/b.tmp", "outer/a.log")
    (tmp_path / ".gitignore").write_text("*.log\n")
    (tmp_path / "inner" / ".gitignore").write_text("*.tmp\n")
    assert found(tmp_path) == ["inner/a.log"]


def test_naming_an_ignored_or_vendored_folder_is_asking_for_it(tmp_path: Path) -> None:
    make(tmp_path, ".git/HEAD", "build/a.py", "build/node_modules/x/b.js", "build/node_modules/x/node_modules/c.js")
    (tmp_path / ".gitignore").write_text("build/\n*.js\n")
    assert found(tmp_path) == []
    assert found(tmp_path / "build") == ["a.py"]
    assert found(tmp_path / "build" / "node_modules" / "x") == ["b.js"]


def test_what_is_left_out_by_name(tmp_path: Path) -> None:
    make(
        tmp_path,
        *("a.py", ".hidden.py", ".config/b.py", "x.png", "lib.so", "app.min.js", "app.js.map", "yarn.lock", "go.sum"),
        *(
            "node_modules/m/i.js",
            "vendor/v.go",
            "third_party/t.c",
            "py/site-packages/s.py",
            "venv/lib/x.py",
            "env/e.py",
        ),
        *("env/pyvenv.cfg", "pkg/package.json", "pkg/dist/out.js", "cmd/dist/main.go", "cmd/build/build.go"),
        *("rust/Cargo.toml", "rust/target/x.rs", "made/CACHEDIR.TAG", "made/y.py", "__pycache__/z.py"),
        *("search/catalog.sqlite", "search/lock", "search/segments/1/words.txt"),
    )
    (tmp_path / "empty.py").touch()
    skipped = Skipped()
    assert found(tmp_path, skipped=skipped) == [
        *("a.py", "cmd/build/build.go", "cmd/dist/main.go", "pkg/package.json", "rust/Cargo.toml"),
    ]
    assert skipped.counts == {
        "hidden": 2,
        "binary": 2,
        "minified": 2,
        "lock file": 2,
        "vendored": 5,
        "build artefact": 5,
        "index": 1,
        "empty": 1,
    }
    assert skipped.total == 20
    assert "2 binary: lib.so, x.png" in skipped.lines()
    assert ".hidden.py" in found(tmp_path, WalkOptions(hidden=True))


@pytest.mark.parametrize(
    "name",
    [".env", ".env.local", "prod.env", "id_rsa", "id_ed25519", "server.pem", "tls.key", ".netrc", ".npmrc", "a.p12"],
)
def test_secrets_are_left_out_unless_asked(tmp_path: Path, name: str) -> None:
    make(tmp_path, name, "a.py", f"deep/{name}")
    assert found(tmp_path) == found(tmp_path, WalkOptions(hidden=True)) == ["a.py"]
    assert reasons(tmp_path) == {"key or environment file": sorted([name, f"deep/{name}"])}
    assert sorted(found(tmp_path, WalkOptions(secrets=True))) == sorted([name, "a.py", f"deep/{name}"])


@pytest.mark.parametrize("name", ["environment.py", "id_rsa.pub", "keys.py", "env.example", "token.ts", "secrets.py"])
def test_sources_about_secrets_are_no_secrets(tmp_path: Path, name: str) -> None:
    assert found(make(tmp_path, name)) == [name]


def test_include_and_exclude(tmp_path: Path) -> None:
    make(tmp_path, "a.py", "a.ts", "src/b.py", "src/gen/c.py", "docs/d.md")
    assert found(tmp_path, WalkOptions(include=("*.py",))) == ["a.py", "src/b.py", "src/gen/c.py"]
    assert found(tmp_path, WalkOptions(include=("src/",), exclude=("gen/",))) == ["src/b.py"]
    assert found(tmp_path / "src", WalkOptions(exclude=("/gen",))) == ["b.py"]
    assert reasons(tmp_path, WalkOptions(include=("*.py",), exclude=("gen",))) == {
        "not included": ["a.ts", "docs/d.md"],
        "excluded": ["src/gen/"],
    }


def test_sizes(tmp_path: Path) -> None:
    make(tmp_path, "small.py")
    make(tmp_path, "large.py", "rows.jsonl", text="x = 1\n" * 400_000)
    with (tmp_path / "huge.c").open("wb") as file:
        file.truncate(50 << 20)
    assert found(tmp_path) == ["rows.jsonl", "small.py"]
    assert reasons(tmp_path) == {"over the size limit of 2 MiB": ["huge.c", "large.py"]}
    assert found(tmp_path, WalkOptions(max_bytes=4)) == []
    assert found(tmp_path, WalkOptions(max_bytes=60 << 20)) == ["huge.c", "large.py", "rows.jsonl", "small.py"]


def test_symbolic_links(tmp_path: Path) -> None:
    make(tmp_path, "out/o.py", "root/real/a.py", "root/.hid/b.py", "root/.hid/c.py", "root/.hid/.env", "root/z.py")
    root = tmp_path / "root"
    for link, target in {
        "0file": "z.py",
        "0folder": "real",
        "again": "real",
        "broken": "nothing",
        "hidden": ".hid",
        "leaves": "../out",
        "leaves.py": "../out/o.py",
        "real/up": "..",
        "self": "self",
        "secret.txt": ".hid/.env",
        "0real2": ".hid/b.py",
    }.items():
        (root / link).symlink_to(target)
    skipped = Skipped()
    # What is real comes under its own name; a link adds only what nothing else leads to.
    assert found(root, skipped=skipped) == ["real/a.py", "z.py", "0real2", "hidden/c.py"]
    assert skipped.examples == {
        "hidden": [".hid/"],
        "symbolic link to what is read already": [
            "0file",
            "0folder",
            "again",
        ],  # and hidden/b.py: the first three are named
        "broken symbolic link": ["broken"],
        "symbolic link that leaves the root": ["leaves", "leaves.py"],
        "symbolic link that loops": ["real/up", "self"],
        "key or environment file": ["hidden/.env", "secret.txt"],
    }


def test_links_that_lead_to_each_other_end(tmp_path: Path) -> None:
    make(tmp_path, ".a/x.py", ".b/y.py")
    (tmp_path / ".a" / "to_b").symlink_to("../.b")
    (tmp_path / ".b" / "to_a").symlink_to("../.a")
    (tmp_path / "start").symlink_to(".a")
    skipped = Skipped()
    assert found(tmp_path, skipped=skipped) == ["start/x.py", "start/to_b/y.py"]
    assert skipped.examples["symbolic link to what is read already"] == ["start/to_b/to_a"]


def test_a_root_that_is_a_link_is_followed(tmp_path: Path) -> None:
    make(tmp_path, "real/a.py")
    (tmp_path / "link").symlink_to("real")
    assert found(tmp_path / "link") == ["a.py"]


def test_pipes_sockets_and_odd_entries_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.py")
    os.mkfifo(tmp_path / "pipe.py")
    os.mkfifo(tmp_path / ".gitignore")
    (tmp_path / ".mbretrieveignore").mkdir()
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        assert reasons(tmp_path)["not a regular file"] == ["pipe.py", "socket"]
    assert found(tmp_path) == ["a.py"]


def test_odd_names(tmp_path: Path) -> None:
    make(tmp_path, "line\nbreak.py", "\u05e9\u05dc\u05d5\u05dd.py", "sp ace.py", "emoji\N{GRINNING FACE}.py", "-rf.py")
    make(tmp_path, os.fsdecode(b"caf\xe9.py"))
    names = found(tmp_path)
    assert set(names) == {
        *("line\nbreak.py", "\u05e9\u05dc\u05d5\u05dd.py", "sp ace.py", "emoji\N{GRINNING FACE}.py", "-rf.py"),
        "caf\\xe9.py",
    }
    assert all(name.encode() for name in names)
    skipped = Skipped()
    skipped.add("hidden", "line\nbreak \x1b[31m\u202e")
    assert skipped.lines() == ["1 hidden: line\\nbreak \\x1b[31m\\u202e"]


def test_names_that_are_not_utf8_open_their_file(tmp_path: Path) -> None:
    make(tmp_path, os.fsdecode(b"caf\xe9.py"), text="x")
    (only,) = walk(tmp_path, WalkOptions(), Skipped())
    assert only.path.read_text() == "x"


@pytest.fixture
def deep() -> Iterator[Path]:
    """Folders nested deeper than Python's recursion limit, and than the longest path that the system opens.

    Not below tmp_path: pytest could not remove them if this were interrupted.
    """
    here = Path.cwd()
    root = Path(tempfile.mkdtemp())
    os.chdir(root)
    for _ in range(1100):
        Path("dddd").mkdir()
        os.chdir("dddd")
    os.chdir(here)
    yield root
    os.chdir(root)
    for _ in range(1100):
        os.chdir("dddd")
    for _ in range(1100):  # shutil.rmtree calls itself for each level
        os.chdir("..")
        Path("dddd").rmdir()
    os.chdir(here)
    shutil.rmtree(root)


def test_folders_nested_deeper_than_calls(deep: Path) -> None:
    make(deep, "a.py", "e/b.py")
    skipped = Skipped()
    assert found(deep, skipped=skipped) == ["a.py", "e/b.py"]
    assert skipped.counts == {"unreadable": 1}


def test_an_empty_folder_has_no_files(tmp_path: Path) -> None:
    skipped = Skipped()
    assert found(tmp_path, skipped=skipped) == []
    assert (skipped.total, skipped.lines()) == (0, [])


def test_a_file_is_a_root(tmp_path: Path) -> None:
    make(tmp_path, ".env", "vendor/a.min.js", ".gitignore", text="*\n")
    assert found(tmp_path / ".env") == [".env"]
    assert found(tmp_path / "vendor" / "a.min.js") == ["a.min.js"]
    assert found(tmp_path / ".env", WalkOptions(max_bytes=1)) == []


def test_a_root_that_cannot_be_walked_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"nothing cannot be read \(No such file or directory\): name a folder"):
        walk(tmp_path / "nothing", WalkOptions(), Skipped())
    with pytest.raises(DataError, match="neither a folder nor a regular file"):
        walk(tmp_path / "pipe", WalkOptions(), Skipped())


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="unit is 'page'"):
        WalkOptions(unit="page")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_bytes is 0"):
        WalkOptions(max_bytes=0)


def test_the_order_is_that_of_the_names(tmp_path: Path) -> None:
    names = [f"{folder}/{name}.py" for folder in ("b", "a", "a-b", "c/d") for name in ("2", "10", "1")]
    random.Random(0).shuffle(names)
    make(tmp_path, *names)
    assert found(tmp_path) == sorted(names, key=lambda name: name.split("/"))
