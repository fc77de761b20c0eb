"""``mbretrieve search``: what it finds, where it looks, how it prints."""

import json
from pathlib import Path

import pytest

from mbretrieve.cli.refresh import FEW_BYTES, FEW_FILES
from mbretrieve.cli.snippet import WHOLE_UNIT
from mbretrieve.index.fusion import weighted_sum
from tests.cli.conftest import Command, one_line

QUESTION = "where is the configuration file read"


def paths(output: str) -> list[str]:
    return [hit["path"] for hit in json.loads(output)]


def test_a_question_finds_its_function(indexed: Path, mbretrieve: Command) -> None:
    result = mbretrieve("search", QUESTION, "-k", 1)
    assert result.status == 0
    head, *lines = result.out.splitlines()
    assert head.startswith("app/config.py:14-")
    assert head.endswith("function read_config")
    assert any(line.startswith(">") for line in lines)
    assert lines[-1].strip(), "no blank lines at the end of a unit"
    assert "     17          return DEFAULTS | parse_pairs(file.read())" in [
        line.replace(">", " ", 1) for line in lines
    ]


@pytest.mark.parametrize("mode", ["hybrid", "semantic", "lexical"])
def test_every_mode_finds_it(indexed: Path, mbretrieve: Command, mode: str) -> None:
    assert mbretrieve("search", "parse pairs", "-k", 1, "-l", "--mode", mode).out == "app/config.py\n"
    assert "parse_pairs" in mbretrieve("search", "parse pairs", "-k", 1, "--mode", mode).out


def test_ranks_can_be_joined_in_the_place_of_scores(indexed: Path, mbretrieve: Command) -> None:
    def scores(mode: str) -> dict[str, float]:
        hits = json.loads(mbretrieve("search", "parse pairs", "-k", 99, "--mode", mode, "--json").out)
        return {hit["id"]: hit["score"] for hit in hits}

    weighted = max(weighted_sum(scores("semantic"), scores("lexical"), 0.1).values())
    for fusion, best in (("weighted", weighted), ("rrf", 1.1 / 61)):
        hits = json.loads(mbretrieve("search", "parse pairs", "-k", 3, "--fusion", fusion, "--json").out)
        assert hits[0]["score"] == pytest.approx(best)
        assert "parse_pairs" in hits[0]["text"]


def test_json_is_the_documented_list(indexed: Path, mbretrieve: Command) -> None:
    result = mbretrieve("search", QUESTION, "-k", 2, "--json")
    hits = json.loads(result.out)
    assert len(hits) == 2
    assert list(hits[0]) == ["id", "score", "path", "start_line", "end_line", "text", "metadata"]
    assert hits[0]["score"] >= hits[1]["score"]
    lines = (indexed / hits[0]["path"]).read_text().splitlines(keepends=True)
    assert "".join(lines[hits[0]["start_line"] - 1 : hits[0]["end_line"]]) == hits[0]["text"]
    assert hits[0]["metadata"]["language"] == "python"


def test_paths_come_once_in_order(indexed: Path, mbretrieve: Command) -> None:
    listed = mbretrieve("search", QUESTION, "-l", "-k", 99).out.split()
    assert listed == list(dict.fromkeys(paths(mbretrieve("search", QUESTION, "--json", "-k", 99).out)))
    assert sorted(listed) == ["app/config.py", "app/net.py", "docs/guide.md"]
    assert mbretrieve("search", QUESTION, "-l", "-k", 2).out.split() == listed[:2], "-k counts files"


def test_k_over_the_corpus_gives_every_unit(indexed: Path, mbretrieve: Command) -> None:
    held = json.loads(mbretrieve("status", "--json").out)["documents"]
    for mode in ("semantic", "hybrid"):
        hits = json.loads(mbretrieve("search", QUESTION, "-k", 10**6, "--json", "--mode", mode).out)
        assert len(hits) == len({hit["id"] for hit in hits}) == held


def test_filters_act_before_ranking(indexed: Path, mbretrieve: Command) -> None:
    def names(*arguments: str) -> set[str]:
        return {h["metadata"]["name"] for h in json.loads(mbretrieve("search", QUESTION, "--json", *arguments).out)}

    assert names("--where", "unit=method") == {"Client.connect", "Client.close"}
    assert names("--where", "unit=method,section", "--where", "language=python") == {"Client.connect", "Client.close"}
    assert names("--where", "start_line>=20", "--where", "language=python") == {"parse_pairs"}
    assert names("--where", "start_line>=14", "--where", "start_line<20") == {"read_config"}
    assert names("-e", r"socket\.create_\w+") == {"Client.connect"}
    assert names("-e", r"^class ", "-k", "1") == {"Client"}
    assert names("--where", "language=cobol") == set()


def test_globs_limit_the_files(indexed: Path, mbretrieve: Command) -> None:
    assert set(paths(mbretrieve("search", QUESTION, "--json", "--include", "*.md").out)) == {"docs/guide.md"}
    assert set(paths(mbretrieve("search", QUESTION, "--json", "--exclude", "app/").out)) == {"docs/guide.md"}
    assert set(paths(mbretrieve("search", QUESTION, "--json", "--include", "*.py", "--exclude", "net.py").out)) == {
        "app/config.py"
    }
    result = mbretrieve("search", QUESTION, "--include", "*.rs")
    assert (result.status, result.out) == (0, "")
    assert "nothing found" in result.err


def test_a_sub_folder_uses_the_index_above_and_is_limited_to_itself(
    indexed: Path, mbretrieve: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(mbretrieve("search", QUESTION, "docs", "-l").out.split()) == {"docs/guide.md"}
    assert set(mbretrieve("search", QUESTION, "app/net.py", "-l").out.split()) == {"app/net.py"}
    monkeypatch.chdir(indexed / "docs")
    assert set(mbretrieve("search", QUESTION, "-l").out.split()) == {"guide.md"}
    outside = mbretrieve("search", QUESTION, indexed, "-k", 1, "-l").out
    assert outside == f"{indexed / 'app/config.py'}\n", "what is outside of the current folder is named in full"


def test_a_stale_index_is_brought_up_to_date_first(indexed: Path, mbretrieve: Command) -> None:
    (indexed / "app/zoo.py").write_text("def feed_elephants():\n    '''Give hay to the elephants.'''\n")
    question = ("search", "feeding the elephants", "-k", 1, "-l")
    stale = mbretrieve(*question, "--no-refresh")
    assert "zoo" not in stale.out
    assert stale.err == ""
    fresh = mbretrieve(*question)
    assert fresh.out == "app/zoo.py\n"
    assert "1 new file" in fresh.err
    assert mbretrieve(*question).err == "", "once is enough"


def test_when_many_files_changed_it_names_the_command(indexed: Path, mbretrieve: Command) -> None:
    for number in range(FEW_FILES + 1):
        (indexed / f"app/extra{number}.py").write_text(f"def extra_{number}(): ...\n")
    result = mbretrieve("search", QUESTION, "-k", 1, "-l")
    assert result.out == "app/config.py\n"
    assert f"{FEW_FILES + 1} new files" in result.err
    assert f"mbretrieve index {indexed}" in result.err


def test_without_an_index_it_names_the_command_that_makes_one(repo: Path, cache: Path, mbretrieve: Command) -> None:
    assert "`mbretrieve index .`" in one_line(mbretrieve("search", QUESTION))
    assert not cache.exists()
    result = mbretrieve("search", QUESTION, "--yes", "-k", 1, "-l")
    assert result.out == "app/config.py\n"
    assert "3 new" in result.err
    assert mbretrieve("search", QUESTION, "-k", 1, "-l").err == ""


def test_another_model_is_refused_with_the_way_out(indexed: Path, mbretrieve: Command) -> None:
    assert "--yes" in one_line(mbretrieve("search", QUESTION, "--kind", "dense"))
    result = mbretrieve("search", QUESTION, "--kind", "dense", "--yes", "-k", 1, "-l")
    assert result.out == "app/config.py\n"
    assert "indexing again" in result.err


def test_a_long_unit_is_shown_around_its_best_lines(indexed: Path, mbretrieve: Command) -> None:
    body = "".join(f"    step_{i} = {i}\n" for i in range(60))
    tail = "".join(f"    later_{i} = {i}\n" for i in range(60))
    text = f"def cook():\n{body}    boil_the_noodles_in_salted_water()\n{tail}"
    (indexed / "cook.py").write_text(text)
    shown = mbretrieve("search", "boil noodles in salted water", "-k", 1).out.splitlines()
    assert shown[0].startswith("cook.py:1-122")
    assert any(line.startswith(">") and "boil_the_noodles" in line for line in shown)
    assert len(shown) < 40
    exact = mbretrieve("search", "boil noodles in salted water", "-k", 1, "-n", 0).out.splitlines()[1:]
    assert all(line.startswith(">") or line == "  ..." for line in exact)


def test_the_help_names_the_bounds(mbretrieve: Command) -> None:
    text = " ".join(mbretrieve("search", "--help").out.split())
    assert f"at most {FEW_FILES} files, of at most {FEW_BYTES // 1000} kB together" in text
    assert f"more than {WHOLE_UNIT} lines" in text


def test_lines_that_match_the_expression_are_marked(indexed: Path, mbretrieve: Command) -> None:
    shown = mbretrieve("search", QUESTION, "-e", "create_connection", "-k", 1).out.splitlines()
    assert any(line.startswith(">") and "create_connection" in line for line in shown)


def test_escape_sequences_never_reach_the_terminal(indexed: Path, mbretrieve: Command) -> None:
    (indexed / "evil.py").write_text("def evil():\n    '''Ring the \x1b]0;owned\x07 bell \u202e.'''\n")
    for arguments in ([], ["--json"], ["-l"]):
        out = mbretrieve("search", "ring the bell", "-k", 1, *arguments).out
        assert out
        assert not set(out) & set("\x1b\x07\u202e")


@pytest.mark.parametrize(
    ("text", "query", "found"),
    [
        ("# מדריך\n\nהחתלה ישנה על השטיח.\n", "החתלה ישנה על השטיח", "השטיח"),
        ("# 猫\n\n猫は一日中ソファで寝ている。\n", "猫 ソファ", "ソファ"),
        ("# Party\n\nThe 🎉 emoji means a celebration.\n", "🎉", "🎉"),
        ("# Straße\r\n\r\nDer Zug fährt über die Brücke.\r\n", "Zug über die Brücke", "Brücke"),
        ("# Nulls\n\nA zebra\x00crossing is for pedestrians.\n", "zebra crossing for pedestrians", "zebra"),
    ],
    ids=["right-to-left", "cjk", "emoji", "crlf", "null-byte"],
)
def test_text_of_every_kind_is_found(indexed: Path, mbretrieve: Command, text: str, query: str, found: str) -> None:
    (indexed / "text.md").write_bytes(text.encode())
    for mode in ("hybrid", "lexical"):
        hits = json.loads(mbretrieve("search", query, "--json", "--mode", mode).out)
        best = [hit for hit in hits if hit["path"] == "text.md"]
        assert best, mode
        assert found in best[0]["text"]
        assert best[0]["text"] in text
