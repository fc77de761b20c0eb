"""Batches that memory is too small for, and what keeps a GPU busy, on a CPU: the arithmetic is the same."""

import time
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from mbretrieve.errors import MbretrieveWarning, ModelError
from mbretrieve.models import encoder, load_encoder
from mbretrieve.models.modernbert import ModernBert
from mbretrieve.models.transfer import ahead
from mbretrieve.retriever import Retriever
from mbretrieve.types import Document, Kind
from tests.models import small
from tests.models.test_workers import KINDS, arrays

TEXTS = [text[:150] for text in small.TEXTS if text] * 6

OUT_OF_MEMORY: dict[str, Callable[[], Exception]] = {
    "CUDA": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CPU": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
    "MPS": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB)."),
}


def model(folder: Path, kind: Kind = "colbert", **options: Any) -> Any:
    made = small.pylate(folder / "model", do_query_expansion=False)
    return load_encoder(kind, made, device="cpu", dtype="float32", **options)


def memory_for(patch: pytest.MonkeyPatch, tokens: int, error: Callable[[], Exception]) -> list[int]:
    """Let the backbone have memory for so many tokens; returns the tokens of each try."""
    tried: list[int] = []
    forward = ModernBert.forward

    def bounded(self: ModernBert, ids: torch.Tensor, *arguments: Any) -> torch.Tensor:
        tried.append(len(ids))
        if len(ids) > tokens:
            raise error()
        return forward(self, ids, *arguments)

    patch.setattr(ModernBert, "forward", bounded)
    return tried


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_where_memory_ends_half_the_tokens_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, error: str
) -> None:
    loaded = model(tmp_path, kind, document_length=64)
    wanted = arrays(kind, loaded.encode_documents(TEXTS))
    tried = memory_for(monkeypatch, 130, OUT_OF_MEMORY[error])
    finished: list[int] = []
    with pytest.warns(MbretrieveWarning, match="memory of cpu ended on a batch of") as said:
        found = loaded.encode_documents(TEXTS, progress=finished.append)
    assert ["memory" in str(one.message) for one in said] == [True], "it is said once"
    small.assert_same_rows(arrays(kind, found), wanted, tolerance=1e-5)
    assert sum(finished) == len(TEXTS)
    failed = [tokens for tokens in tried if tokens > 130]
    assert 0 < len(failed) < 6
    assert all(later <= earlier // 2 for earlier, later in pairwise(failed))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tried.clear()
        again = loaded.encode_documents(TEXTS)
    assert max(tried) <= 130, "what was found holds from now on"
    small.assert_same_rows(arrays(kind, again), wanted, tolerance=1e-5)


def test_one_text_that_does_not_fit_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = model(tmp_path, document_length=64)
    memory_for(monkeypatch, 40, OUT_OF_MEMORY["CUDA"])
    with pytest.warns(MbretrieveWarning), pytest.raises(ModelError) as caught:
        loaded.encode_documents(TEXTS)
    assert "ended on a text of 64 tokens, which cannot be split: load the model with a lower" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_errors_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory_for(monkeypatch, 0, lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        model(tmp_path).encode_documents(TEXTS)


def test_a_call_over_the_bound_is_split_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = model(tmp_path, document_length=64)
    wanted = loaded.encode_documents(TEXTS)
    tried = memory_for(monkeypatch, 1 << 30, OUT_OF_MEMORY["CPU"])
    small.assert_same_rows(loaded.encode_documents(TEXTS, batch_tokens=64), wanted, tolerance=1e-5)
    assert len(tried) > 1
    assert max(tried) <= 64


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_over_its_length_is_cut_and_that_is_said_once(tmp_path: Path, kind: Kind) -> None:
    loaded = model(tmp_path, kind, document_length=32)
    long = " ".join(["word"] * 400)
    with pytest.warns(MbretrieveWarning, match=f"more than {loaded.document_capacity} tokens and is cut there"):
        cut = arrays(kind, loaded.encode_documents(["short", long, long]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.encode_documents([long])
    end = loaded.token_offsets([long])[0][loaded.document_capacity - 1, 1]
    small.assert_same_rows(cut, arrays(kind, loaded.encode_documents(["short", long[:end], long])), tolerance=1e-5)


def test_a_document_over_its_length_is_windowed_as_asked(tmp_path: Path) -> None:
    loaded = model(tmp_path, document_length=32)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MbretrieveWarning)
        with Retriever.create(tmp_path / "index", loaded) as retriever:
            retriever.add([Document("long", "word " * 400 + "lazy dog", {}), Document("short", "a (b) c", {})])
            assert retriever.status()["windows"] > 10
            [hit, *_] = retriever.search(["lazy dog"], k=2, mode="lexical")[0]
            assert hit.id == "long"
            spans = retriever.windows([Document("long", "word " * 400, {})])[0][1]
            assert (spans[0][0], spans[-1][1]) == (0, 5 * 400)


def test_tokens_made_ahead_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = model(tmp_path)
    monkeypatch.setattr(encoder, "_WINDOW_TEXTS", 5)
    monkeypatch.setattr(encoder, "_WINDOW_TOKENS", 20)
    wanted = loaded.encode_documents(TEXTS)
    monkeypatch.setattr(encoder, "_TOKENIZED_AHEAD", {"cpu"})
    found = loaded.encode_documents(TEXTS)
    assert all((a == b).all() for a, b in zip(found, wanted, strict=True))


def test_one_item_is_made_ahead_and_no_more() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            yield number

    for number in ahead(items()):
        until = time.monotonic() + 30
        while len(made) < min(number + 2, 5):
            assert time.monotonic() < until
            time.sleep(0.001)
        assert made == list(range(min(number + 2, 5)))


def test_an_error_made_ahead_comes_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="broken"):
        next(found)
