"""The preview counts as the run would, leaves the data where it was, and its memory is what autograd keeps."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from mbretrieve.models.colbert import ColBERT
from mbretrieve.models.config import ModernBertConfig
from mbretrieve.models.modernbert import ModernBert
from mbretrieve.training.config import TrainConfig
from mbretrieve.training.data import Batches, documents
from mbretrieve.training.preview import activation_bytes, preview, render


@pytest.fixture(scope="module")
def encoder() -> ColBERT:
    return ColBERT.from_pretrained(device="cpu", dtype="float32")


def test_counts_are_the_runs(tmp_path: Path, encoder: ColBERT) -> None:
    rows = [{"query": f"how to sort list {at}?", "positive": f"def sort{at}(x):\n\x1b[2J  return {'x' * at}"}
            for at in range(300)]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TrainConfig.from_dict(
        {"data": [{"path": str(tmp_path / "a.jsonl")}], "run": {"epochs": 2, "batch_size": 20}}
    )
    batches = Batches(config.data, config.run.batch_size, config.run.seed)
    place = batches.state()
    found = preview(config, encoder, batches)
    assert batches.state() == place
    assert (found.steps, found.examples) == (30, 600)
    texts = [next(batches) for _ in range(30)]
    counted = sum(
        len(prepared.ids)
        for batch in texts
        for frame, side in ((encoder.queries, [e.query for e in batch]), (encoder.documents, documents(batch)))
        for prepared in frame.prepare(side)
    )
    assert found.tokens == pytest.approx(counted, rel=0.1)
    assert (
        found.memory.weights
        == found.memory.optimizer
        == 8 * sum(weight.numel() for weight in (*encoder.backbone.parameters(), *encoder.projection.parameters()))
    )
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(render(found))
    text = console.export_text(styles=False)
    for said in ("30", "600", "a.jsonl", "300", "100.0%", f"query     {texts[0][0].query}", "positive  def sort"):
        assert said in text
    assert "\x1b" not in text


@pytest.mark.parametrize("layer", ["full_attention", "sliding_attention"])
def test_activations_are_what_autograd_keeps(layer: str) -> None:
    config = ModernBertConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=2,
        layer_types=(layer,) * 4,
    )  # fmt: skip
    model = ModernBert(config)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = 512
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.randint(0, 64, (tokens,)), [tokens // 2] * 2).sum()
    assert activation_bytes(config, tokens) == pytest.approx(sum(kept.values()), rel=0.15)


def test_recomputing_keeps_each_layers_input_and_one_layer() -> None:
    config = ModernBertConfig(hidden_size=10, intermediate_size=5, num_hidden_layers=7, num_attention_heads=1)
    assert activation_bytes(config, 3) == 4 * 3 * (7 * 120 + 10)
    assert activation_bytes(config, 3, checkpointing=True) == 4 * 3 * (7 * 10 + 120)
