"""A folder's index against its laws: it holds what the folder holds, and encodes only what changed."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mbretrieve.corpus import read as reading
from mbretrieve.corpus.records import WalkOptions
from mbretrieve.errors import DataError
from mbretrieve.folder import changes, default_index, find_index, options_of, roots_of, sync
from mbretrieve.models.colbert import ColBERT
from mbretrieve.retriever import Retriever

GREET = "def greet(name):\n    return f'hello {name}'\n"
AREA = "def area(radius):\n    return 3.14159 * radius ** 2\n"
NOTES = "# Bread\n\nKnead the dough.\n\n# Wine\n\nPress the grapes.\n"


@pytest.fixture(scope="module")
def model() -> ColBERT:
    return ColBERT.from_pretrained(dtype="float32")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "project"
    (made / "src").mkdir(parents=True)
    (made / "src" / "shapes.py").write_text(f"{GREET}\n\n{AREA}")
    (made / "notes.md").write_text(NOTES)
    return made


@pytest.fixture
def retriever(model: ColBERT, tmp_path: Path) -> Iterator[Retriever]:
    with Retriever.create(tmp_path / "index", model) as made:
        yield made


def ids(retriever: Retriever) -> set[str]:
    return {document.id for document in retriever.index.scan()}


def write(path: Path, text: str) -> None:
    """Write a file so that its time differs from before, whatever the clock's grain."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def test_first_and_second_run(retriever: Retriever, root: Path) -> None:
    report = sync(retriever, [root])
    assert (report.new, report.changed, report.gone, report.unchanged, report.files) == (2, 0, 0, 0, 2)
    assert report.documents.encoded == len(ids(retriever)) >= 4
    assert changes(retriever.index).count == 0
    again = sync(retriever)
    assert (again.new, again.changed, again.gone, again.unchanged, again.documents.encoded) == (0, 0, 0, 2, 0)
    assert retriever.search(["area of a circle"], k=1)[0][0].metadata["path"] == "src/shapes.py"


def test_moved_lines_are_not_encoded_again(retriever: Retriever, root: Path) -> None:
    sync(retriever, [root])
    before = retriever.search(["area of a circle"], k=1)[0][0]
    write(root / "src" / "shapes.py", f"{GREET}\n\ndef fresh(x):\n    return x + 1\n\n\n{AREA}")
    report = sync(retriever)
    assert (report.changed, report.unchanged) == (1, 1)
    assert report.documents.encoded == 1  # fresh
    after = retriever.search(["area of a circle"], k=1)[0][0]
    assert (after.id, after.text) == (before.id, before.text)
    assert after.metadata["start_line"] == before.metadata["start_line"] + 4  # type: ignore[operator]
    assert retriever.verify() == []


def test_a_touched_file_is_not_read_into_units(retriever: Retriever, root: Path) -> None:
    sync(retriever, [root])
    write(root / "notes.md", NOTES)
    assert changes(retriever.index).count == 1
    report = sync(retriever)
    assert (report.changed, report.documents.unchanged, report.documents.encoded) == (1, 0, 0)
    assert changes(retriever.index).count == 0


def test_what_is_gone_is_dropped(retriever: Retriever, root: Path) -> None:
    sync(retriever, [root])
    (root / "notes.md").unlink()
    write(root / "src" / "shapes.py", GREET)
    report = sync(retriever)
    assert (report.gone, report.changed) == (1, 1)
    assert report.removed >= 3
    assert all(name.startswith("src/shapes.py") for name in ids(retriever))
    assert not any("radius" in document.text for document in retriever.index.scan())


def test_a_file_that_turns_binary_keeps_no_documents(retriever: Retriever, root: Path) -> None:
    sync(retriever, [root])
    (root / "notes.md").write_bytes(bytes(range(256)) * 20)
    report = sync(retriever)
    assert report.skipped.total >= 1
    assert not any(name.startswith("notes.md") for name in ids(retriever))
    assert changes(retriever.index).count == 0  # known to be binary: not opened again
    assert sync(retriever).skipped.total == report.skipped.total


def test_several_roots_are_told_apart(retriever: Retriever, root: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "project"
    other.mkdir(parents=True)
    (other / "notes.md").write_text("# Cheese\n\nLet the milk curdle.\n")
    sync(retriever, [root, other])
    assert roots_of(retriever.index) == {"project/": root, "project-2/": other}
    paths = {str(document.metadata["path"]) for document in retriever.index.scan()}
    assert paths == {"project/notes.md", "project/src/shapes.py", "project-2/notes.md"}


def test_a_later_root_leaves_the_first_one_s_names(retriever: Retriever, root: Path, tmp_path: Path) -> None:
    sync(retriever, [root])
    first = ids(retriever)
    other = tmp_path / "more"
    other.mkdir()
    (other / "notes.md").write_text("# Cheese\n\nLet the milk curdle.\n")
    report = sync(retriever, [other])
    assert report.unchanged == 2
    assert first < ids(retriever)
    assert {"": root, "more/": other} == roots_of(retriever.index)


def test_options_are_remembered_and_may_change(retriever: Retriever, root: Path) -> None:
    sync(retriever, [root], WalkOptions(exclude=("*.md",)))
    assert options_of(retriever.index) == WalkOptions(exclude=("*.md",))
    assert sync(retriever).files == 1
    assert sync(retriever, options=WalkOptions()).new == 1
    report = sync(retriever, options=WalkOptions(unit="document"))
    assert report.changed == 2  # cut anew, though no file changed
    assert [d.text for d in retriever.index.scan(where={"path": "notes.md"})] == [NOTES]


def test_what_changes_said_is_used(retriever: Retriever, root: Path) -> None:
    sync(retriever, [root])
    (root / "new.md").write_text("# Beer\n\nMalt the barley.\n")
    found = changes(retriever.index)
    assert [file.name for file in found.new] == ["new.md"]
    assert sync(retriever, found=found).new == 1


def test_a_root_that_is_gone_is_named(retriever: Retriever, root: Path, tmp_path: Path) -> None:
    sync(retriever, [root])
    root.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="project"):
        changes(retriever.index)
    assert ids(retriever)


def test_an_interrupted_run_goes_on(retriever: Retriever, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(20):
        (root / f"f{i}.py").write_text(f"def function_{i}():\n    return {i}\n")
    monkeypatch.setattr("mbretrieve.retriever.BATCH_DOCUMENTS", 4)
    monkeypatch.setattr("mbretrieve.retriever.COMMIT_TOKENS", 1)
    read = reading.read_documents

    def stop_at_f7(file, options, skipped):  # type: ignore[no-untyped-def]
        if file.name == "f7.py":
            raise KeyboardInterrupt
        return read(file, options, skipped)

    monkeypatch.setattr(reading, "read_documents", stop_at_f7)
    with pytest.raises(KeyboardInterrupt):
        sync(retriever, [root])
    kept = ids(retriever)
    assert kept
    assert retriever.verify() == []
    monkeypatch.setattr(reading, "read_documents", read)
    report = sync(retriever, [root])
    assert kept < ids(retriever)
    assert report.documents.encoded == len(ids(retriever)) - len(kept)


def test_the_nearest_indexed_parent_is_found(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MBRETRIEVE_CACHE", str(tmp_path / "cache"))
    assert find_index(root / "src") is None
    default_index(root).mkdir(parents=True)
    assert find_index(root / "src") == (default_index(root), root)
    default_index(root / "src").mkdir()
    assert find_index(root / "src") == (default_index(root / "src"), root / "src")
    assert default_index(root) != default_index(tmp_path / "elsewhere" / "project")
