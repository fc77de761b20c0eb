"""The model in training gives what the finished model gives, of every kind and start."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import small

from mbretrieve.errors import ModelError
from mbretrieve.models.card import TrainingFacts
from mbretrieve.models.colbert import ColBERT
from mbretrieve.models.dense import DenseEncoder
from mbretrieve.training.config import ModelConfig
from mbretrieve.training.student import Student, starting_point

TEXTS = ["search the index!", "a", "merge; sort, and merge again " * 9, "one two three four five six"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {"pylate": small.pylate(base / "pylate"), "bare": small.bare(base / "bare")}


def student(folder: Path | str, **settings: Any) -> Student:
    torch.manual_seed(0)
    config = ModelConfig(start=str(folder), **settings)
    saved, name = starting_point(config)
    made = Student(saved, config.kind, name=name, dtype=torch.float32, checkpointing=config.gradient_checkpointing)
    return made.eval()


SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "as saved": ("pylate", {}),
    "lengths": ("pylate", {"query_length": 9, "document_length": 12}),
    "no expansion": ("pylate", {"expansion": "none", "normalize_queries": False}),
    "minimum": ("pylate", {"expansion": "minimum", "query_length": 40}),
    "bare": ("bare", {"dim": 12, "document_length": 40}),
    "bare with markers": (
        "bare",
        {"query_marker": "[Q] ", "document_marker": "[NEW]", "expansion": "fixed", "query_length": 20},
    ),
    "prompts": ("bare", {"query_prompt": "ask: ", "document_prompt": "find "}),
    "dense": ("bare", {"kind": "dense", "query_prompt": "ask: "}),
    "dense, first token": ("bare", {"kind": "dense", "pooling": "cls", "dim": 8}),
    "joint": ("pylate", {"kind": "joint", "expansion": "none"}),
    "joint from a bare one": ("bare", {"kind": "joint", "dim": 16}),
    "joint, bundled": ("bundled", {"kind": "joint"}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_representations_are_those_of_the_saved_model(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    start, settings = SETTINGS[name]
    trained = student(folders.get(start, start), **settings)
    queries, documents = trained.queries.prepare(TEXTS), trained.documents.prepare(TEXTS)
    batch = trained.micro_batch(list(enumerate(queries)), list(enumerate(documents)))
    with torch.no_grad():
        found = trained.encoded(trained(batch))
    trained.save(tmp_path / "saved", TrainingFacts())
    sides = [(batch.query_ids, batch.query_rows, 0), (batch.document_ids, batch.document_rows, 1)]
    if trained.late:
        loaded = ColBERT.from_pretrained(tmp_path / "saved", device="cpu", dtype="float32")
        want = [loaded.encode_queries(TEXTS), loaded.encode_documents(TEXTS)]
        for ids, rows, side in sides:
            packed = (found.query_rows, found.document_rows)[side]
            assert packed is not None
            if trained.normalizes("colbert")[side]:
                packed = torch.nn.functional.normalize(packed, dim=1)
            for number, part in zip(ids, packed.split(rows), strict=True):
                np.testing.assert_allclose(part.numpy(), want[side][number], atol=1e-5)
    if trained.pooled:
        dense = DenseEncoder.from_pretrained(tmp_path / "saved", device="cpu", dtype="float32")
        vectors = [dense.encode_queries(TEXTS), dense.encode_documents(TEXTS)]
        for ids, _, side in sides:
            ours = (found.query_vectors, found.document_vectors)[side]
            assert ours is not None
            np.testing.assert_allclose(
                torch.nn.functional.normalize(ours, dim=1).numpy(), vectors[side][ids], atol=1e-5
            )


def test_an_encoder_of_the_student_shares_its_weights(folders: dict[str, Path]) -> None:
    trained = student(folders["pylate"])
    encoder = trained.encoder(dtype=torch.float32)
    before = encoder.encode_documents(TEXTS[:1])[0]
    with torch.no_grad():
        trained.backbone.final_norm.weight.mul_(torch.linspace(0.5, 2.0, small.HIDDEN))
    assert np.abs(encoder.encode_documents(TEXTS[:1])[0] - before).max() > 1e-3
    assert isinstance(trained.encoder("dense"), DenseEncoder)


def test_a_new_marker_is_one_token_with_a_row_of_its_own(folders: dict[str, Path]) -> None:
    trained = student(folders["bare"], query_marker="[NEWQ]", document_marker="[NEWD]", dim=8)
    ids = [trained.queries.prepare(["a"])[0].ids[1], trained.documents.prepare(["a"])[0].ids[1]]
    assert len(set(ids)) == 2
    assert max(ids) < trained.backbone.config.vocab_size


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "joint"}, "expansion"),
        ({"kind": "joint", "expansion": "none", "pooling": "cls"}, "mean"),
        ({"query_length": 3}, "query_length"),
        ({"document_length": 100_000}, "positions"),
    ],
)
def test_what_a_model_cannot_be_is_said(settings: dict[str, Any], words: str, folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=words):
        student(folders["pylate"], **settings)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="'bert'"):
        student(tmp_path)
