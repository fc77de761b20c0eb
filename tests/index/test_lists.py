"""Inverted lists against FAISS's own and against plain arithmetic: bytes, answers, merging, damage, threads, size."""

import struct
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mbretrieve.errors import IndexFormatError
from mbretrieve.index import lists as module
from mbretrieve.index.lists import Lists, merge_lists, write_lists

ROWS = 120


class Tokens(NamedTuple):
    """What write_lists takes, beside the number of lists and what the codes stand for."""

    lists: int
    assignments: Any
    codes: Any
    rows: Any
    products: Any

    def write(self, path: Path) -> Lists:
        write_lists(path, self.lists, self.assignments, self.codes, self.rows)
        return self.open(path)

    def open(self, path: Path, rows: int = ROWS) -> Lists:
        return Lists(path, self.products, lists=self.lists, tokens=len(self.rows), rows=rows)

    def scores(self, queries: Any, coarse: Any) -> Any:
        """Score every token, (n, tokens), from coarse scores (n, lists), with no quantization of tables."""
        nibbles = np.stack([self.codes & 15, self.codes >> 4], axis=2).reshape(-1, len(self.products))
        decoded = self.products[np.arange(len(self.products)), nibbles].reshape(len(nibbles), queries.shape[1])
        return queries @ decoded.T + coarse[:, self.assignments]


def random_tokens(
    seed: int, count: int = 3000, lists: int = 20, products: int = 4, width: int = 2, rows: int = ROWS
) -> Tokens:
    rng = np.random.default_rng(seed)
    return Tokens(
        lists,
        np.minimum(rng.zipf(1.5, count) - 1, lists - 1).astype(np.uint16),
        rng.integers(0, 256, (count, products // 2), dtype=np.uint8),
        np.sort(rng.integers(0, rows, count)),
        rng.standard_normal((products, 16, width)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def original() -> tuple[Any, Tokens, Any]:
    """FAISS's index of 8,000 vectors, the same tokens for us, and some queries."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((8000, 32)).astype(np.float32)
    index = faiss.IndexIVFPQFastScan(faiss.IndexFlatIP(32), 32, 16, 8, 4, faiss.METRIC_INNER_PRODUCT)
    index.by_residual, index.implem = True, module._RESERVOIR
    index.train(vectors)
    rows = np.sort(rng.integers(0, ROWS, len(vectors)))
    index.add_with_ids(vectors, rows)
    assignments = index.quantizer.search(vectors, 1)[1][:, 0]
    codes = np.empty((len(vectors), 4), dtype=np.uint8)
    index.encode_vectors(
        len(vectors), faiss.swig_ptr(vectors), faiss.swig_ptr(assignments), faiss.swig_ptr(codes), False
    )
    products = faiss.vector_to_array(index.pq.centroids).reshape(8, 16, 4)
    return index, Tokens(16, assignments, codes, rows, products), vectors[:13] + 0.1


@pytest.mark.parametrize("batch", [1, 700, 1 << 18])
def test_every_byte_is_that_of_faiss(
    original: Any, tmp_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH", batch)
    index, tokens, _ = original
    lists = tokens.write(tmp_path / "lists")
    starts, stops = lists.byte_ranges(np.arange(tokens.lists))
    for number, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        size = index.invlists.list_size(number)
        codes = -(-size // 32) * 32 * 4
        assert lists.sizes[number] == size
        assert (lists.file[start : start + codes] == faiss.rev_swig_ptr(index.invlists.get_codes(number), codes)).all()
        rows = lists.file[start + codes : stop].view(np.int64)
        assert (rows[:size] == faiss.rev_swig_ptr(index.invlists.get_ids(number), size)).all()
        assert (rows[size:] == -1).all()
    assert stops[-1] == len(lists.file)


@pytest.mark.parametrize("every_kernel", [None], indirect=True)
@pytest.mark.usefixtures("every_kernel")
@pytest.mark.parametrize("k", [2, 7, 20, 21, 300])
@pytest.mark.parametrize("filtered", [False, True])
def test_answers_are_those_of_faiss(original: Any, tmp_path: Path, k: int, filtered: bool) -> None:
    index, tokens, queries = original
    coarse, probes = index.quantizer.search(queries, 5)
    selected = np.random.default_rng(1).random(ROWS) < 0.5 if filtered else None
    lists = tokens.write(tmp_path / "lists")
    lowest, biases = module._biases(queries, probes, coarse, 8, lists._reach)
    bitmap = np.packbits(np.ones(ROWS, bool) if selected is None else selected, bitorder="little")
    parameters = faiss.SearchParametersIVF(nprobe=7, sel=faiss.IDSelectorBitmap(bitmap) if filtered else None)
    scores, rows = np.empty((13, k), np.float32), np.empty((13, k), np.int64)
    probes7 = np.pad(probes, ((0, 0), (1, 1)), constant_values=-1)
    arrays = [faiss.swig_ptr(array) for array in (probes7, biases, scores, rows)]
    index.search_preassigned_c(13, faiss.swig_ptr(queries), k, *arrays, False, parameters)
    ours = lists.search(queries, probes, coarse, k, selected)
    assert (ours[0] == scores + lowest).all()
    assert (ours[1] == rows).all()


def best_first(found: tuple[Any, Any]) -> tuple[Any, Any]:
    """Order what a search found."""
    scores, rows = found
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


@pytest.mark.usefixtures("every_kernel")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_search_finds_the_best_of_what_it_probes(tmp_path: Path, data: st.DataObject) -> None:
    draw = data.draw
    tokens = random_tokens(
        draw(st.integers(0, 1000)),
        draw(st.sampled_from([0, 1, 31, 32, 33, 500])),
        draw(st.sampled_from([1, 2, 17, 40])),
        draw(st.sampled_from([2, 6, 8])),
        draw(st.sampled_from([1, 2, 4])),
    )
    tokens = tokens._replace(products=tokens.products * np.float32(draw(st.sampled_from([0, 1e-3, 1, 100]))))
    lists = tokens.write(tmp_path / "lists")
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    n, p = draw(st.integers(0, 15)), draw(st.integers(0, tokens.lists))
    queries = rng.standard_normal((n, lists._index.d)).astype(np.float32) * draw(st.sampled_from([0.0, 1.0, 100.0]))
    every_coarse = rng.standard_normal((n, tokens.lists)) * draw(st.sampled_from([0, 1, 100]))
    every_coarse = (every_coarse + draw(st.sampled_from([0, 1000]))).astype(np.float32)
    probes = np.argsort(rng.random((n, tokens.lists)), axis=1)[:, :p]
    coarse = np.take_along_axis(every_coarse, probes, axis=1)
    probes = np.where(rng.random(probes.shape) < 0.2, -1, probes)
    k = draw(st.sampled_from([1, 2, 3, 20, 21, 600]))
    selected = rng.random(ROWS) < draw(st.sampled_from([0.0, 0.01, 0.5, 1.0]))

    all_scores, all_rows = best_first(lists.search(queries, probes, coarse, 600))
    exact = tokens.scores(queries, every_coarse)
    biases = module._biases(queries, probes, coarse, len(tokens.products), lists._reach)[1] if p else coarse
    for i in range(n):
        probed = np.isin(tokens.assignments, probes[i])
        found = all_rows[i] >= 0
        # All tokens of the probed lists come back, with their scores but for the quantization of the table.
        assert sorted(all_rows[i, found]) == sorted(tokens.rows[probed])
        assert (all_scores[i, ~found] == -np.inf).all()
        # Tables are rounded to steps, at most 255 of them and 65,535 in all.
        tables = np.einsum("mew,mw->me", tokens.products, queries[i].reshape(len(tokens.products), -1))
        spans = np.ptp(tables, axis=1)
        step = max(spans.max() / 255, (spans.sum() + np.ptp(biases[i])) / 65535) if p else 0
        off = np.abs(all_scores[i, found] - np.sort(exact[i, probed])[::-1])
        assert off.max(initial=0) <= 1.001 * step * (len(spans) + 1) / 2 + 1e-6 * np.abs(exact[i]).max(initial=0)

    scores, rows = best_first(lists.search(queries, probes, coarse, k, selected))
    passed = (all_rows >= 0) & selected[all_rows]
    for i in range(n):
        expected = np.full(k, -np.inf, np.float32)
        best = all_scores[i, passed[i]][:k]
        expected[: len(best)] = best
        assert (scores[i] == expected).all()
        # At the last score a tie may be cut anywhere; above it the very tokens are known.
        above = scores[i] > (best[-1] if len(best) == k else -np.inf)
        wanted = passed[i] & (all_scores[i] > (best[-1] if len(best) == k else -np.inf))
        assert sorted(zip(scores[i, above], rows[i, above], strict=True)) == sorted(
            zip(all_scores[i, wanted], all_rows[i, wanted], strict=True)
        )
        assert selected[rows[i][rows[i] >= 0]].all()


@pytest.mark.usefixtures("every_kernel")
def test_the_best_token_of_all_is_not_carried_past_sixteen_bits(tmp_path: Path) -> None:
    """Coarse scores far apart leave a table half a step each; rounded up, 32 of them pass what 16 bits hold."""
    products = np.zeros((32, 16, 1), np.float32)
    products[:, 15] = 0.008
    codes = np.array([[0x00] * 16, [0xFF] * 16], np.uint8)
    write_lists(tmp_path / "lists", 2, np.array([0, 1]), codes, np.array([3, 4]))
    lists = Lists(tmp_path / "lists", products, lists=2, tokens=2, rows=5)
    scores, rows = best_first(
        lists.search(np.ones((1, 32), np.float32), np.array([[0, 1]]), np.array([[0, 1000]], np.float32), k=2)
    )
    assert rows.tolist() == [[4, 3]]
    assert scores[0] == pytest.approx([1000.256, 0], abs=0.3)


def test_unpack_gives_back_what_was_written(tmp_path: Path) -> None:
    tokens = random_tokens(1)
    shuffled = np.random.default_rng(0).permutation(len(tokens.rows))
    write_lists(tmp_path / "shuffled", 20, tokens.assignments[shuffled], tokens.codes[shuffled], tokens.rows[shuffled])
    for name, lists in (("lists", tokens.write(tmp_path / "lists")), ("shuffled", tokens.open(tmp_path / "shuffled"))):
        got = lists.unpack(3, 17)
        order = np.argsort(tokens.assignments, kind="stable")
        order = order[(tokens.assignments[order] >= 3) & (tokens.assignments[order] < 17)]
        assert (got.assignments == tokens.assignments[order]).all()
        assert (got.rows == tokens.rows[order]).all()
        if name == "lists":
            assert (got.products == tokens.codes[order]).all()
    assert [len(part) for part in lists.unpack(4, 4)] == [0, 0, 0]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=st.lists(st.sampled_from([0, 1, 40, 900]), min_size=1, max_size=4),
    memory=st.sampled_from([0, 20_000, 1 << 30]),
    seed=st.integers(0, 1000),
    interleaved=st.booleans(),
)
def test_merging_equals_writing_the_union(
    tmp_path: Path, counts: list[int], memory: int, seed: int, interleaved: bool
) -> None:
    rng = np.random.default_rng(seed)
    parts = [random_tokens(seed + i, count) for i, count in enumerate(counts)]
    sources = [part.write(tmp_path / f"source{i}") for i, part in enumerate(parts)]
    everything = ROWS * len(parts)
    new = rng.permutation(everything) if interleaved else np.arange(everything)
    row_maps = np.where(rng.random(everything) < 0.3, -1, new).reshape(len(parts), ROWS)
    merge_lists(tmp_path / "merged", sources, list(row_maps), memory)

    rows = np.concatenate([row_map[part.rows] for row_map, part in zip(row_maps, parts, strict=True)])
    kept = rows >= 0
    write_lists(
        tmp_path / "union",
        20,
        np.concatenate([part.assignments for part in parts])[kept],
        np.concatenate([part.codes for part in parts])[kept],
        rows[kept],
    )
    assert (tmp_path / "merged").read_bytes() == (tmp_path / "union").read_bytes()


def test_merging_keeps_to_its_memory(tmp_path: Path) -> None:
    parts = [random_tokens(i, 150_000, lists=4096, products=32, rows=5000) for i in range(2)]
    parts = [part._replace(assignments=np.arange(150_000) * 7 % 4096) for part in parts]
    sources = []
    for i, part in enumerate(parts):
        write_lists(tmp_path / f"{i}", part.lists, part.assignments, part.codes, part.rows)
        sources.append(part.open(tmp_path / f"{i}", rows=5000))
    row_maps = [np.arange(5000), np.arange(5000) + 5000]
    memory = 4 << 20
    tracemalloc.start()
    try:
        merge_lists(tmp_path / "merged", sources, row_maps, memory)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert memory / 4 < peak < memory + (1 << 18)


DAMAGE = {
    "empty": lambda raw: b"",
    "cut in the header": lambda raw: raw[:100],
    "cut in the sizes": lambda raw: raw[:200],
    "cut at the end": lambda raw: raw[:-1],
    "longer": lambda raw: raw + b"\0",
    "magic": lambda raw: b"x" + raw[1:],
    "version": lambda raw: raw[:8] + b"\7" + raw[9:],
    "width": lambda raw: raw[:12] + b"\7" + raw[13:],
    "lists": lambda raw: raw[:16] + b"\7" + raw[17:],
    "tokens": lambda raw: raw[:24] + b"\7" + raw[25:],
    "a size too large": lambda raw: raw[:128] + struct.pack("<q", 1 << 62) + raw[136:],
    "a size below zero": lambda raw: raw[:128] + struct.pack("<q", -1) + raw[136:],
    "sizes that overflow": lambda raw: raw[:128] + struct.pack("<qqqq", *[1 << 62] * 4) + raw[160:],
    "another sum": lambda raw: raw[:128] + bytes([raw[128] ^ 1]) + raw[129:],
    "a token moved": lambda raw: raw[:128] + struct.pack("<qq", 3000, 0) + bytes(144) + raw[288:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_never_a_crash(tmp_path: Path, damage: str) -> None:
    tokens = random_tokens(2)
    path = tmp_path / "lists"
    tokens.write(path)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(IndexFormatError, match=str(path)):
        tokens.open(path)


@pytest.mark.usefixtures("every_kernel")
@pytest.mark.parametrize("row", [ROWS, 1 << 62, -2])
def test_a_row_that_is_not_there_is_named(tmp_path: Path, row: int) -> None:
    tokens = random_tokens(3)._replace(rows=np.full(3000, row))
    write_lists(tmp_path / "lists", tokens.lists, tokens.assignments, tokens.codes, tokens.rows)
    lists = tokens.open(tmp_path / "lists")
    query = np.ones((1, 8), np.float32), np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32)
    with pytest.raises(IndexFormatError, match="rows that are not among its 120"):
        lists.search(*query, k=5)
    with pytest.raises(IndexFormatError, match="rows that are not among its 120"):
        lists.unpack(0, 20)
    assert (lists.search(*query, k=5, selected=np.ones(ROWS, bool))[1] == -1).all()


@pytest.mark.usefixtures("every_kernel")
def test_what_a_programmer_gets_wrong(tmp_path: Path) -> None:
    lists = random_tokens(4).write(tmp_path / "lists")
    queries, probes, coarse = np.ones((2, 8), np.float32), np.zeros((2, 3), np.int64), np.zeros((2, 3), np.float32)
    for arguments in (
        (queries, probes, coarse, 0),
        (queries[:, :7], probes, coarse, 5),
        (queries, probes, coarse[:, :2], 5),
        (queries, probes[:1], coarse[:1], 5),
        (queries, probes + 20, coarse, 5),
        (queries, probes - 2, coarse, 5),
        (queries, probes, coarse, 5, np.ones(ROWS - 1, bool)),
    ):
        with pytest.raises(ValueError, match=r"expected|there are"):
            lists.search(*arguments)
    other = random_tokens(4, lists=21).write(tmp_path / "other")
    with pytest.raises(ValueError, match="one codebook"):
        merge_lists(tmp_path / "merged", [lists, other], [np.arange(ROWS)] * 2, 1 << 20)


@pytest.mark.usefixtures("every_kernel")
def test_threads_share_one_file_even_after_it_was_removed(tmp_path: Path) -> None:
    tokens = random_tokens(5, 20_000)
    lists = tokens.write(tmp_path / "lists")
    (tmp_path / "lists").unlink()
    rng = np.random.default_rng(0)
    calls: list[tuple[Any, ...]] = []
    for p in range(1, 17):
        probes = np.argsort(rng.random((p, 20)), axis=1)[:, :p]
        queries, coarse = rng.standard_normal((p, 8)).astype(np.float32), rng.random((p, p)).astype(np.float32)
        calls.append((queries, probes, coarse, 10 * p, rng.random(ROWS) < p / 16))
    expected = [lists.search(*call) for call in calls]
    wrong = []

    def work(offset: int) -> None:
        for i in range(200):
            at = (i + offset) % len(calls)
            got = lists.search(*calls[at])
            if not all((ours == theirs).all() for ours, theirs in zip(got, expected[at], strict=True)):
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.skipif(sys.platform != "linux", reason="counts mappings in /proc")
def test_nothing_leaks(tmp_path: Path) -> None:
    tokens = random_tokens(6, 50_000)
    path = tmp_path / "lists"
    tokens.write(path)
    query = np.ones((4, 8), np.float32), np.tile(np.arange(20), (4, 1)), np.zeros((4, 20), np.float32)

    def resident() -> int:
        for _ in range(150):
            tokens.open(path).search(*query, k=500, selected=np.ones(ROWS, bool))
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    resident()
    before = resident()
    assert resident() - before < 2 << 20  # the lists alone, kept 150 times, would be 100 MB
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_lists_beyond_four_gibibytes(tmp_path: Path) -> None:
    """A sparse file: 65,536 lists of 8,000 tokens, whose codes and rows are 0 but for the last list's."""
    last = random_tokens(7, 8000, lists=1, products=2)
    write_lists(tmp_path / "last", 1, last.assignments, last.codes, last.rows)
    raw = (tmp_path / "last").read_bytes()[256:]
    lists = 1 << 16
    path = tmp_path / "lists"
    with path.open("wb") as file:
        file.write(struct.pack("<8sIIQQ", b"mbrlists", 1, 1, lists, lists * 8000).ljust(128, b"\0"))
        file.write(np.full(lists, 8000, "<i8").tobytes())
        assert file.seek((lists - 1) * len(raw), 1) > 1 << 32
        file.write(raw)
    opened = Lists(path, last.products, lists=lists, tokens=lists * 8000, rows=ROWS)
    batch = opened.unpack(lists - 1, lists)
    assert (batch.rows == last.rows).all()
    assert (batch.products == last.codes).all()
    scores, rows = opened.search(
        np.ones((1, 4), np.float32), np.array([[lists - 1, 5]]), np.array([[0, -100]], np.float32), 8001
    )
    assert sorted(rows[0, :8000]) == sorted(last.rows)
    assert rows[0, 8000] == 0
    assert scores[0, 7999] > -50 > scores[0, 8000]


def test_importing_it_does_not_import_faiss() -> None:
    code = "import sys, mbretrieve.index.lists; assert 'faiss' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
