"""``mbretrieve eval``: what it writes and prints, how it goes on after a kill, and what bad input gets."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command, one_line
from tests.evaluation.sets import write_set


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("data") / "library")


def lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines(keepends=True)


def read(path: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return fields


def test_bm25_writes_what_it_prints(data: Path, tmp_path: Path, mbretrieve: Command) -> None:
    out = tmp_path / "out"
    done = mbretrieve("eval", "--suite", data, "--model", "bm25", "--output", out)
    assert done.status == 0, done
    result = read(out / "bm25" / "library" / "library.json")
    assert result["task"] == "library"
    assert result["model"] == "bm25"
    figure = f"{result['metrics']['ndcg@10']:.4f}"
    assert figure in done.out
    assert figure in (out / "bm25" / "library" / "report.md").read_text()
    assert {"search", "index", "p50_ms", "p95_ms"} <= result["timing"].keys()
    assert result["index"]["bytes"] > 0
    assert {"date", "versions", "machine", "system", "data", "peak_memory_bytes"} <= result["provenance"].keys()
    assert result["provenance"]["data"][0]["checksum"]
    assert str(data.parent) not in json.dumps(result), "no path of this machine"
    made = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    folder = "bm25/library"
    assert made == {
        *(f"{folder}/{name}" for name in ("library.json", "library.run", "report.md", "tasks.png")),
        "library-latency.png",
        "library-size.png",
    }


def test_a_model_with_its_exact_twin(data: Path, tmp_path: Path, mbretrieve: Command) -> None:
    arguments = ("eval", "--suite", data, "--kind", "dense", "--dtype", "float32", "--exact", "--output", tmp_path)
    done = mbretrieve(*arguments)
    assert done.status == 0, done
    path = tmp_path / "mini-v3-dense" / "library" / "library.json"
    result = read(path)
    gap = result["exact_metrics"]["ndcg@10"] - result["metrics"]["ndcg@10"]
    assert f"exact {result['exact_metrics']['ndcg@10']:.4f}, gap {gap:+.4f}" in done.err
    assert abs(gap) < 1e-3
    assert result["index"]["recall@10"] > 0.99
    model = result["provenance"]["system"]["model"]
    assert (model["name"], model["kind"], model["document_length"]) == ("mini-v3", "dense", 512)
    assert len(model["content_hash"]) == 32
    assert result["provenance"]["system"]["dtype"] == "float32"
    before = path.stat().st_mtime_ns
    again = mbretrieve(*arguments)
    assert again.status == 0
    assert again.out == done.out, "a finished task is not run again"
    assert path.stat().st_mtime_ns == before
    other = mbretrieve(*arguments, "--document-length", "100")
    assert other.status == 1
    assert "document_length was 512 and is 100" in other.err


def test_a_folder_named_like_a_suite_is_not_that_suite(tmp_path: Path, mbretrieve: Command) -> None:
    write_set(tmp_path / "beir" / "SciFact")
    write_set(tmp_path / "beir" / "other")
    done = mbretrieve("eval", "--suite", tmp_path / "beir", "--model", "bm25", "--output", tmp_path / "out")
    assert "beir-folder (mean of 2)" in done.out
    partial = mbretrieve(
        "eval", "--suite", "beir", "--data-dir", tmp_path / "beir", "--tasks", "scifact,other", "--model", "bm25"
    )
    assert "no task 'other'" in one_line(partial)


def test_a_partial_suite_says_so(tmp_path: Path, mbretrieve: Command) -> None:
    write_set(tmp_path / "data" / "scifact")
    arguments = ("eval", "--suite", "beir", "--data-dir", tmp_path / "data", "--model", "bm25", "--output", tmp_path)
    done = mbretrieve(*arguments, "--tasks", "SciFact")
    assert done.status == 0, done
    assert "mean of 1 of 15 tasks" in done.out
    assert "BEIR (mean of" not in done.out
    assert "not the published set" in done.out
    write_set(tmp_path / "data" / "nfcorpus")
    assert "mean of 2 of 15 tasks" in mbretrieve(*arguments, "--tasks", "NFCorpus").out, "the earlier run's with it"


def test_a_missing_set_is_one_line_and_the_others_run(
    tmp_path: Path, mbretrieve: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_set(tmp_path / "data" / "scifact")
    done = mbretrieve(
        "eval", "--suite", "beir", "--tasks", "SciFact,NFCorpus", "--data-dir", tmp_path / "data", "--model", "bm25",
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert done.status == 1
    assert [line for line in done.err.splitlines() if "NFCorpus" in line and "DIR/nfcorpus" in line]
    assert done.err.count("\n") == 2
    assert "mean of 1 of 15 tasks" in done.out


def test_list_names_every_suite(mbretrieve: Command) -> None:
    done = mbretrieve("eval", "--list")
    assert done.status == 0
    for name in ("beir", "mldr", "codesearchnet", "stackoverflow-qa", "coir", "nanobeir", "longembed", "cosqa"):
        assert re.search(rf"\b{name} ", done.out), name
    assert "mteb/scifact@d56462d0" in done.out
    assert "CQADupstackRetrieval (12 parts)" in done.out


def test_compare(data: Path, tmp_path: Path, mbretrieve: Command) -> None:
    for options in (["--model", "bm25"], ["--mode", "lexical"]):
        assert mbretrieve("eval", "--suite", data, "--output", tmp_path, *options).status == 0
    a, b = (tmp_path / name / "library" / "library.json" for name in ("bm25", "lexical"))
    done = mbretrieve("eval", "compare", a, b, "--suite", data, "--worst", "3")
    assert done.status == 0, done
    assert f"{read(a)['metrics']['ndcg@10']:.4f}  bm25" in done.out
    assert re.search(r"p = [\d.e-]+ \(paired bootstrap\)", done.out)
    assert re.search(r"B wins \d+ queries, loses \d+, ties \d+", done.out)
    worst = [line for line in done.out.splitlines() if "q-" in line]
    assert 0 < len(worst) <= 3
    texts = {row["_id"]: row["text"] for row in map(json.loads, lines(data / "queries.jsonl"))}
    for line in worst:
        query = next(word for word in line.split() if word.startswith("q-"))
        assert texts[query][:100].strip() in line
    without = mbretrieve("eval", "compare", a, b, "--test", "t-test")
    assert without.status == 0
    assert "--suite or --data-dir" in without.err
    other = read(b)
    other["provenance"]["data"][0]["checksum"] = "0"
    b.write_text(json.dumps(other))
    assert "different data" in one_line(mbretrieve("eval", "compare", a, b))


# Killed


def test_a_killed_run_goes_on_and_gives_the_same(tmp_path: Path, cache: Path) -> None:
    """SIGKILL while documents are encoded; the next run finishes, with the figures of one that was left alone."""
    data = write_set(tmp_path / "library", copies=3)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def command(output: str) -> list[str]:
        words = ["eval", "--suite", data, "--exact", "--dtype", "float32", "--output", tmp_path / output]
        return [sys.executable, "-m", "mbretrieve", *map(str, words)]

    with subprocess.Popen(command("killed"), env=environment, stdout=subprocess.DEVNULL) as process:
        work = tmp_path / "killed" / "mini-v3-colbert" / "library" / ".unfinished"
        deadline = time.monotonic() + 60
        while not list(work.glob("*/*/index/lock")) and time.monotonic() < deadline:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    result = tmp_path / "killed" / "mini-v3-colbert" / "library" / "library.json"
    assert work.is_dir()
    assert not result.exists()
    for output in ("killed", "whole"):
        subprocess.run(command(output), env=environment, check=True, capture_output=True)
    whole = read(tmp_path / "whole" / "mini-v3-colbert" / "library" / "library.json")
    for name in ("metrics", "exact_metrics", "per_query"):
        assert read(result)[name] == whole[name]
    assert not work.exists()


# Bad input


Spoil = Callable[[Path], None]


def append(name: str, text: str) -> Spoil:
    def spoil(folder: Path) -> None:
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write(text)

    return spoil


def empty(folder: Path) -> None:
    (folder / "corpus.jsonl").write_text("")


def repeat(folder: Path) -> None:
    path = folder / "corpus.jsonl"
    path.write_text("".join([*lines(path), lines(path)[0]]))


def unknown(folder: Path) -> None:
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nnobody\tx\t1\n")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (empty, r"corpus\.jsonl is empty"),
        (repeat, r"corpus\.jsonl:81: id 'statistics\.\w+' comes a second time"),
        (append("corpus.jsonl", "{not json}\n"), r"corpus\.jsonl:81: not a line of JSON"),
        (append("queries.jsonl", '{"_id": 3, "text": "x"}\n'), r"queries\.jsonl:81: expected"),
        (append("qrels/test.tsv", "q\td\tmuch\n"), r"test\.tsv:162: "),
        (unknown, r"no query has a judgement"),
    ],
)
def test_a_set_that_cannot_be_used(tmp_path: Path, mbretrieve: Command, spoil: Spoil, said: str) -> None:
    spoil(write_set(tmp_path / "library"))
    line = one_line(mbretrieve("eval", "--suite", tmp_path / "library", "--model", "bm25", "--output", tmp_path / "o"))
    assert re.search(said, line), line


def test_unknown_ids_in_judgements_are_counted_and_said(tmp_path: Path, mbretrieve: Command) -> None:
    spoil = append("qrels/test.tsv", "q-heapq.merge\tnowhere\t1\nnobody\theapq.merge\t1\n")
    spoil(write_set(tmp_path / "library"))
    done = mbretrieve("eval", "--suite", tmp_path / "library", "--model", "bm25", "--output", tmp_path)
    assert done.status == 0
    assert "1 judged queries have no text and are left out" in done.out
    assert "1 judgements name documents that are not in the corpus" in done.out


def test_unknown_names_get_the_nearest(tmp_path: Path, data: Path, mbretrieve: Command) -> None:
    assert "nearest are beir" in one_line(mbretrieve("eval", "--suite", "bier"))
    assert "nearest are SciFact" in one_line(mbretrieve("eval", "--suite", "beir", "--tasks", "scifacts"))
    (tmp_path / "no-set").mkdir()
    assert "not in BEIR layout" in one_line(mbretrieve("eval", "--suite", tmp_path / "no-set"))
    assert "no folder nowhere" in one_line(mbretrieve("eval", "--suite", data, "--model", "./nowhere")).replace(
        "./", ""
    )


def test_usage(data: Path, tmp_path: Path, mbretrieve: Command) -> None:
    assert mbretrieve("eval").status == 2
    assert mbretrieve("eval", "--suite", data, "--mode", "telepathic").status == 2
    line = one_line(mbretrieve("eval", "--suite", data, "--model", "bm25", "--mode", "hybrid", "--output", tmp_path))
    assert "leave --mode out" in line
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "options", "command"),
    [
        ("beir.datasets.data_loader", ["--model", "bm25"], 'pip install "mbretrieve[eval]"'),
        ("bm25s", ["--model", "bm25"], 'pip install "mbretrieve[eval]"'),
        ("sentence_transformers", ["--model", "bm25", "--rerank", "x/y"], 'pip install "mbretrieve[rerank]"'),
    ],
)
def test_a_suite_without_its_extra(
    data: Path,
    tmp_path: Path,
    mbretrieve: Command,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    options: list[str],
    command: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert command in one_line(mbretrieve("eval", "--suite", data, "--output", tmp_path, *options))


def test_results_without_pictures_where_matplotlib_is_missing(
    data: Path, tmp_path: Path, mbretrieve: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = mbretrieve("eval", "--suite", data, "--model", "bm25", "--output", tmp_path)
    assert done.status == 0
    assert 'pip install "mbretrieve[eval]"' in done.err
    assert (tmp_path / "bm25" / "library" / "report.md").is_file()


def test_a_result_of_another_schema_version(data: Path, tmp_path: Path, mbretrieve: Command) -> None:
    arguments = ("eval", "--suite", data, "--model", "bm25", "--output", tmp_path)
    assert mbretrieve(*arguments).status == 0
    path = tmp_path / "bm25" / "library" / "library.json"
    path.write_text(json.dumps(read(path) | {"schema": 99}))
    assert "schema version 99" in one_line(mbretrieve(*arguments))
    assert "schema version 99" in one_line(mbretrieve("eval", "compare", path, path))


def test_another_split_has_its_own_folder_and_is_not_compared_with_this_one(
    data: Path, tmp_path: Path, mbretrieve: Command
) -> None:
    folder = tmp_path / "library"
    shutil.copytree(data, folder)
    judged = lines(folder / "qrels" / "test.tsv")
    (folder / "qrels" / "dev.tsv").write_text("".join(judged[:21]))
    arguments = ("eval", "--suite", folder, "--model", "bm25", "--output", tmp_path)
    assert mbretrieve(*arguments).status == 0
    assert mbretrieve(*arguments, "--split", "test").status == 0
    done = mbretrieve(*arguments, "--split", "dev")
    assert done.status == 0, done
    assert "library, split dev" in done.out
    test, dev = (tmp_path / "bm25" / name / "library.json" for name in ("library", "library-dev"))
    assert (read(test)["split"], read(dev)["split"]) == ("", "dev")
    assert [read(path)["provenance"]["data"][0]["split"] for path in (test, dev)] == ["test", "dev"]
    assert len(read(dev)["per_query"]) == 10
    assert "of different splits, its own and dev" in one_line(mbretrieve("eval", "compare", test, dev))
    assert mbretrieve("eval", "compare", dev, dev, "--suite", folder).status == 0
    unknown = mbretrieve(*arguments, "--split", "train")
    assert unknown.status == 1
    assert "no qrels/train.tsv (found: dev.tsv, test.tsv): expected one of these splits" in unknown.err


def test_help_loads_nothing_heavy() -> None:
    check = (
        "import sys; from mbretrieve.cli import main; main(['eval', '--help']); "
        "sys.exit(bool({'torch', 'faiss', 'numpy', 'beir', 'datasets', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for option in ("--suite", "--tasks", "--data-dir", "--model", "--kind", "--mode", "--exact", "--output", "--list"):
        assert option in done.stdout


def test_bits_of_what_has_none_are_refused(data: Path, mbretrieve: Command) -> None:
    for arguments in (["--model", "bm25"], ["--mode", "lexical"], ["--kind", "dense"]):
        assert "leave --bits out" in one_line(mbretrieve("eval", "--suite", data, "--bits", 4, *arguments))
