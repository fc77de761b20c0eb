"""``mbretrieve bench encode``: what it writes is what was asked for, and what bad input gets."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from mbretrieve.models.source import locate
from tests.cli.conftest import Command, one_line

ROW = {"work", "engine", "dtype", "tokens_per_second", "share_of_roofline", "largest_batch"}
SHORT = ("--seconds", "0.05", "--batch-tokens", "1024")


def figures(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def test_beside_its_peers(tmp_path: Path, mbretrieve: Command) -> None:
    out = tmp_path / "out.json"
    done = mbretrieve("bench", "encode", "--work", "mixed", "--peers", "--device", "cpu", *SHORT, "--json", out)
    assert done.status == 0, done
    record = figures(out)
    assert record["machine"]["device"] == "cpu"
    assert record["left_out"] == {}
    rows = record["rows"]
    assert {row["engine"] for row in rows} == {"mbretrieve", "transformers", "sentence-transformers"}
    assert {(row["engine"], row["dtype"]) for row in rows} >= {
        ("transformers", "float32"),
        ("sentence-transformers", "float32"),
    }
    for row in rows:
        assert row.keys() >= ROW
        assert (row["work"], row["largest_batch"]) == ("mixed", None)
        assert row["tokens_per_second"] == pytest.approx(
            row["tokens"] / sorted(row["seconds"])[len(row["seconds"]) // 2], rel=0.5
        )
        assert row["share_of_roofline"] == pytest.approx(
            row["gflops"] / record["roofline_gflops"][row["dtype"]], rel=0.01
        )
        assert row["least_cosine"] > 0.999
        assert row["tokens"] >= 4 * 16
    assert (record["model"]["name"], record["model"]["layers"]) == ("mbretrieve/mini-v3", 4)
    assert (
        record["command"]
        == "mbretrieve bench encode --device cpu --work mixed --seconds 0.05 --batch-tokens 1024 --peers"
    )
    assert {"versions", "date", "measured"} <= record.keys()
    assert str(tmp_path) not in json.dumps(record), "no path of this machine"
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "sentence-transformers float32" in done.out
    assert "GFLOP/s" in done.out


def test_peers_that_are_not_installed_are_named(
    tmp_path: Path, mbretrieve: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("transformers", "sentence_transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    out = tmp_path / "out.json"
    done = mbretrieve("bench", "encode", "--work", "512-variable,mixed", "--peers", *SHORT, "--json", out)
    assert done.status == 0, done
    record = figures(out)
    assert {row["engine"] for row in record["rows"]} == {"mbretrieve"}
    dtypes = {row["dtype"] for row in record["rows"]}
    assert "int8" in dtypes
    assert len(dtypes) == 2
    assert sorted((row["work"], row["dtype"]) for row in record["rows"]) == sorted(
        (work, dtype) for work in ("512-variable", "mixed") for dtype in dtypes
    )
    assert record["left_out"].keys() == {"transformers", "sentence-transformers"}
    assert "left out: transformers" in done.out


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """The bundled model, of 2,048 positions."""
    folder = tmp_path / "short"
    shutil.copytree(locate(None).folder, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}), "utf-8")
    return folder


def test_without_works_it_is_all_that_the_model_can_do(tmp_path: Path, short: Path, mbretrieve: Command) -> None:
    out = tmp_path / "out.json"
    assert mbretrieve("bench", "encode", "--model", short, *SHORT, "--json", out).status == 0
    record = figures(out)
    works = [row["work"] for row in record["rows"] if row["dtype"] != "int8"]
    assert works == [row["work"] for row in record["rows"] if row["dtype"] == "int8"]
    assert works == ["512-fixed", "512-variable", "mixed"]
    assert record["left_out"].keys() == {"8192-fixed", "8192-variable"}
    assert record["rows"][0]["tokens"] % 512 == 0


def test_in_the_dtypes_that_are_named(tmp_path: Path, mbretrieve: Command) -> None:
    out = tmp_path / "out.json"
    work = ("--work", "512-fixed,512-variable", "--dtype", "float32, bfloat16")
    done = mbretrieve("bench", "encode", *work, "--device", "cpu", *SHORT, "--json", out)
    assert done.status == 0, done
    record = figures(out)
    assert [(row["work"], row["dtype"]) for row in record["rows"]] == [
        (work, dtype) for work in ("512-fixed", "512-variable") for dtype in ("float32", "bfloat16")
    ]
    assert record["roofline_gflops"].keys() == {"float32", "bfloat16"}
    assert "--dtype 'float32, bfloat16'" in record["command"]
    assert all(row["share_of_peak"] is None for row in record["rows"])
    speeds = {(row["work"], row["dtype"]): row["tokens_per_second"] for row in record["rows"]}
    ratios = {(one["size"], one["engine"], one["dtype"]): one["ratio"] for one in record["variable_to_fixed"]}
    assert ratios == {
        (512, "mbretrieve", dtype): pytest.approx(speeds["512-variable", dtype] / speeds["512-fixed", dtype], rel=1e-3)
        for dtype in ("float32", "bfloat16")
    }
    assert "512 tokens, variable over fixed lengths: mbretrieve float32: " in done.out
    assert "times: how many times as fast as the line's engine mbretrieve float32 is" in done.out
    assert "of peak" not in done.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--work", "tiny"), "work is 'tiny', expected some of 512-fixed,512-variable,8192-fixed,8192-variable,mixed"),
        (("--work", ","), "no work is named"),
        (("--model", "mbretrieve/mini-v3", "--shapes", "base"), "expected one of them"),
        (("--model", "no/such/folder"), "there is no folder"),
        (("--device", "nonsense"), "expected a torch device"),
        (("--dtype", "float64"), "dtype is 'float64', expected some of bfloat16,float16,float32,int8"),
        (("--dtype", ","), "expected some of"),
        (("--json", "no-such-folder/out.json"), "is no folder"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], said: str, mbretrieve: Command) -> None:
    assert said in one_line(mbretrieve("bench", "encode", *arguments))


def test_a_work_longer_than_the_model_reads_is_one_line(short: Path, mbretrieve: Command) -> None:
    done = mbretrieve("bench", "encode", "--model", short, "--work", "mixed,8192-fixed")
    assert "expected at most 2048, the positions of this model" in one_line(done)
