"""``mbretrieve index``: what is encoded, what is kept, what is said."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mbretrieve as package
from tests.cli.conftest import Command, one_line


def encoded(output: str) -> int:
    """Read the number of encoded units out of the report."""
    return int(output.split("units: ")[1].split(" encoded")[0])


def test_the_report_counts_files_and_units(repo: Path, mbretrieve: Command) -> None:
    result = mbretrieve("index", repo)
    assert result.status == 0
    assert "3 files: 3 new, 0 changed, 0 gone, 0 unchanged" in result.out
    assert encoded(result.out) >= 7
    assert result.err == ""


def test_indexing_again_encodes_nothing(indexed: Path, mbretrieve: Command) -> None:
    result = mbretrieve("index", indexed)
    assert "0 new, 0 changed, 0 gone, 3 unchanged" in result.out
    assert encoded(result.out) == 0


def test_an_index_inside_its_own_folder_does_not_read_itself(repo: Path, mbretrieve: Command) -> None:
    assert "3 files: 3 new" in mbretrieve("index", ".", "--index", "found").out
    result = mbretrieve("search", "configuration", "--index", "found", "-l")
    assert (result.status, result.err) == (0, "")
    assert "up to date: yes" in mbretrieve("status", "--index", "found").out


def test_a_touched_file_is_not_encoded_again(indexed: Path, mbretrieve: Command) -> None:
    os.utime(indexed / "app/config.py", (1, 1))
    result = mbretrieve("index", indexed)
    assert "0 new, 1 changed, 0 gone, 2 unchanged" in result.out
    assert encoded(result.out) == 0


def test_moved_lines_are_not_encoded_again(indexed: Path, mbretrieve: Command) -> None:
    path = indexed / "app/config.py"
    before = {
        hit["metadata"]["name"]: hit for hit in json.loads(mbretrieve("search", "config", "-k", 99, "--json").out)
    }
    path.write_text("# a new first line\n# and a second\n" + path.read_text())
    result = mbretrieve("index", indexed)
    assert encoded(result.out) == 1, "only the head of the file has another text"
    after = {hit["metadata"]["name"]: hit for hit in json.loads(mbretrieve("search", "config", "-k", 99, "--json").out)}
    for name in ("read_config", "parse_pairs"):
        assert after[name]["start_line"] == before[name]["start_line"] + 2
        assert after[name]["text"] == before[name]["text"]


def test_a_moved_file_is_encoded_again_because_its_path_is_read(indexed: Path, mbretrieve: Command) -> None:
    (indexed / "docs/guide.md").rename(indexed / "docs/garden.md")
    result = mbretrieve("index", indexed)
    assert "1 new, 0 changed, 1 gone, 2 unchanged" in result.out
    assert encoded(result.out) > 0
    assert "docs/guide.md" not in mbretrieve("search", "plants", "-l").out


def test_what_is_gone_is_dropped(indexed: Path, mbretrieve: Command) -> None:
    (indexed / "app/net.py").unlink()
    result = mbretrieve("index", indexed)
    assert "0 new, 0 changed, 1 gone, 2 unchanged" in result.out
    assert encoded(result.out) == 0
    assert "net.py" not in mbretrieve("search", "open a socket", "-l").out


def test_what_is_left_out_is_counted_and_named(repo: Path, mbretrieve: Command) -> None:
    (repo / "image.dat").write_bytes(b"\x00\x01\x02" * 1000)
    result = mbretrieve("index", repo)
    assert "left out: 1 hidden, 1 ignored by git, 1 binary" in result.out
    assert "image.dat" not in result.out
    assert "image.dat" in mbretrieve("index", repo, "--show-skipped").out


def test_each_path_gets_an_index_of_its_own(repo: Path, cache: Path, mbretrieve: Command) -> None:
    assert mbretrieve("index", "app", "docs").status == 0
    assert sorted(path.name.rsplit("-", 1)[0] for path in cache.iterdir()) == ["app", "docs"]
    assert mbretrieve("search", "water the plants", "docs", "-l").out == "docs/guide.md\n"
    one_line(mbretrieve("search", "water the plants"))


def test_several_paths_go_into_one_named_index(repo: Path, cache: Path, tmp_path: Path, mbretrieve: Command) -> None:
    index = tmp_path / "my.index"
    assert mbretrieve("index", "app", "docs", "--index", index).status == 0
    assert not cache.exists()
    assert mbretrieve("search", "water the plants", "--index", index, "-l").out.startswith("docs/guide.md\n")
    assert mbretrieve("search", "water", "app", "--index", index, "-l").out.split() == [
        "app/net.py",
        "app/config.py",
    ] or (
        set(mbretrieve("search", "water", "app", "--index", index, "-l").out.split()) <= {"app/net.py", "app/config.py"}
    )
    third = repo / "more"
    third.mkdir()
    (third / "sea.md").write_text("# Ships\n\nBoats sail across the ocean.\n")
    assert "1 new, 0 changed, 0 gone, 3 unchanged" in mbretrieve("index", third, "--index", index).out
    assert mbretrieve("search", "boats on the ocean", "--index", index, "-l").out.startswith("more/sea.md\n")


def test_what_the_model_does_not_read_at_once_becomes_windows(repo: Path, mbretrieve: Command) -> None:
    before = json.loads(mbretrieve("status", "--index", indexed_at(repo, mbretrieve), "--json").out)
    assert before["windows"] == before["documents"]
    for number, chapters in ((1, 40), (2, 90)):
        lines = [
            f"Chapter {chapter} of {number}: the keeper of the lighthouse counts ships." for chapter in range(chapters)
        ]
        (repo / f"docs/long{number}.txt").write_text("\n".join(lines))
    done = mbretrieve("index", repo, "--unit", "document")
    found = re.search(r"  windows: 2 units longer than the model reads at once became (\d+) windows\n", done.out)
    assert found, done.out
    record = json.loads(mbretrieve("status", "--json").out)
    assert record["windows"] == record["documents"] - 2 + int(found[1])
    assert f"windows:    {record['windows']:,};" in mbretrieve("status").out
    assert "windows:" not in mbretrieve("index", repo).out


def indexed_at(repo: Path, mbretrieve: Command) -> str:
    """Index the folder; return where its index is."""
    done = mbretrieve("index", repo, "--unit", "document")
    assert "windows:" not in done.out, "every file is short"
    return str(json.loads(mbretrieve("status", "--json").out)["index"])


def test_one_file_can_be_indexed(repo: Path, mbretrieve: Command) -> None:
    assert "1 files: 1 new" in mbretrieve("index", "docs/guide.md").out
    assert mbretrieve("search", "bread", "docs/guide.md", "-l").out == "docs/guide.md\n"


def test_another_kind_indexes_again_and_says_so(indexed: Path, cache: Path, mbretrieve: Command) -> None:
    result = mbretrieve("index", indexed, "--kind", "dense")
    assert result.status == 0
    assert "indexing again" in result.err
    assert "3 new" in result.out
    assert [path.name for path in cache.iterdir()] == [f"repo-{cache_name(cache)}"], "nothing is left beside it"
    assert json.loads(mbretrieve("status", "--json").out)["model"]["kind"] == "dense"
    assert mbretrieve("search", "read the configuration file", "-k", 1, "-l").out == "app/config.py\n"
    assert encoded(mbretrieve("index", indexed).out) == 0, "the kind is remembered"


def cache_name(cache: Path) -> str:
    return next(cache.iterdir()).name.rsplit("-", 1)[1]


def test_another_model_indexes_again_and_says_so(indexed: Path, tmp_path: Path, mbretrieve: Command) -> None:
    model = tmp_path / "model"
    shutil.copytree(Path(package.__file__).parent / "assets/mini-v3", model)
    assert encoded(mbretrieve("index", indexed, "--model", model).out) == 0, "the same weights under another name"
    head = load_file(model / "1_Dense/model.safetensors")
    save_file(
        {name: np.ascontiguousarray(weight[::-1]) for name, weight in head.items()}, model / "1_Dense/model.safetensors"
    )
    result = mbretrieve("index", indexed, "--model", model)
    assert result.status == 0
    assert "indexing again" in result.err
    assert "3 new" in result.out
    assert str(model) in mbretrieve("status").out
    assert mbretrieve("search", "read the configuration file", "-k", 1, "-l").out == "app/config.py\n"


def test_the_choice_of_files_is_remembered(repo: Path, mbretrieve: Command) -> None:
    mbretrieve("index", repo, "--include", "*.py")
    assert "2 files: 0 new, 0 changed, 0 gone, 2 unchanged" in mbretrieve("index", repo).out
    result = mbretrieve("index", repo, "--include", "*.py", "--exclude", "net.py")
    assert "1 files: 0 new, 0 changed, 1 gone, 1 unchanged" in result.out


def test_text_is_cut_by_section_or_by_document(repo: Path, mbretrieve: Command) -> None:
    mbretrieve("index", "docs")
    sections = json.loads(mbretrieve("search", "bread", "docs", "--json").out)
    assert {hit["metadata"]["unit"] for hit in sections} == {"section"}
    assert "1 changed" in mbretrieve("index", "docs", "--unit", "document").out
    whole = json.loads(mbretrieve("search", "bread", "docs", "--json").out)
    assert [hit["metadata"]["unit"] for hit in whole] == ["document"]
    assert whole[0]["text"] == (repo / "docs/guide.md").read_text()


@pytest.mark.parametrize("name", ["größe.py", "日本語.py", "with space.py", "new\nline.py", "-dash.py"])
def test_odd_file_names(repo: Path, mbretrieve: Command, name: str) -> None:
    (repo / name).write_text("def blow_the_whistle():\n    '''Blow the whistle loudly.'''\n")
    assert mbretrieve("index", repo).status == 0
    hits = json.loads(mbretrieve("search", "blow the whistle", "-k", 1, "--json").out)
    assert hits[0]["metadata"]["name"] == "blow_the_whistle"
    assert mbretrieve("search", "blow the whistle", "-k", 1, "-l").out == name.replace("\n", "\\n") + "\n"


def test_several_devices_give_the_index_that_one_gives(tmp_path: Path, mbretrieve: Command) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(40):  # together more than a batch: less is not handed to other processes
        lines = [f"Chapter {number}, line {line}: the keeper of the lighthouse counts ships." for line in range(25)]
        (folder / f"{number}.txt").write_text("\n".join(lines))
    found = []
    for device in ("cpu", "cpu,cpu"):
        place = tmp_path / device
        done = mbretrieve("index", folder, "--index", place, "--device", device, "--dtype", "float32")
        assert (done.status, done.err) == (0, "")
        assert "40 new" in done.out
        asked = ("search", "who counts ships in chapter 7", "--index", place, "-k", 40, "--mode", "semantic", "--json")
        found.append({hit["id"]: hit["score"] for hit in json.loads(mbretrieve(*asked).out)})
    assert found[0].keys() == found[1].keys()
    assert all(found[1][id] == pytest.approx(score, abs=1e-3) for id, score in found[0].items())


def test_a_device_that_is_not_here_is_named(repo: Path, mbretrieve: Command) -> None:
    assert "device is 'nonsense', expected a torch device" in one_line(
        mbretrieve("index", repo, "--device", "nonsense,cpu")
    )
