"""The masked-language model against transformers': the same logits, loss and gradients, from either's files."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, ModernBertForMaskedLM
from transformers import ModernBertConfig as TheirConfig

from mbretrieve import ColBERT
from mbretrieve.errors import ModelError
from mbretrieve.models.card import TrainingFacts
from mbretrieve.models.config import ModernBertConfig
from mbretrieve.models.files import read_json
from mbretrieve.models.tokenizer import Tokenizer
from mbretrieve.training.masked_lm import MaskedLanguageModel, cross_entropy_sum
from tests.models import small
from tests.models.oracle import SMALL

LENGTHS = [7, 30, 1, 51]


def random_model(**changes: object) -> ModernBertForMaskedLM:
    torch.manual_seed(0)
    model = ModernBertForMaskedLM(TheirConfig(**{**SMALL, **changes}, attn_implementation="sdpa")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2).add_(1.0 if parameter.ndim == 1 else 0.0)
    return model


def ours(model: ModernBertForMaskedLM) -> MaskedLanguageModel:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return MaskedLanguageModel(ModernBertConfig.from_dict(model.config.to_dict()), state)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, SMALL["vocab_size"], (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("changes", [{}, {"norm_bias": True, "attention_bias": True, "mlp_bias": True}])
def test_loss_and_gradients_are_transformers(ids: torch.Tensor, changes: dict) -> None:
    theirs = random_model(**changes)
    mine = ours(theirs)
    chosen = torch.rand(len(ids), generator=torch.Generator().manual_seed(2)) < 0.3
    loss = torch.zeros(())
    for text, wanted in zip(ids.split(LENGTHS), chosen.split(LENGTHS), strict=True):
        logits = theirs(text[None]).logits[0]
        loss = loss + F.cross_entropy(logits[wanted], text[wanted], reduction="sum")
    (loss / 10).backward()
    got = mine(ids, torch.tensor(LENGTHS), chosen.nonzero()[:, 0], ids[chosen])
    (got / 10).backward()
    torch.testing.assert_close(got, loss, rtol=1e-5, atol=1e-4)
    expected = dict(theirs.named_parameters())
    for name, parameter in mine.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-4)


def test_a_saved_model_is_transformers_and_ours_and_a_retriever(ids: torch.Tensor, tmp_path: Path) -> None:
    torch.manual_seed(3)
    size = small.tokenizer(tmp_path / "tokenizer")
    config = ModernBertConfig.from_dict({**SMALL, "model_type": "modernbert", "vocab_size": size + 4})
    model = MaskedLanguageModel(config).eval()
    model.save(tmp_path / "saved", Tokenizer.load(tmp_path / "tokenizer"), TrainingFacts())
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "saved")
    assert type(theirs) is ModernBertForMaskedLM
    with torch.no_grad():
        got = model.logits(ids, torch.tensor(LENGTHS))
        for text, rows in zip(ids.split(LENGTHS), got.split(LENGTHS), strict=True):
            torch.testing.assert_close(rows, theirs(text[None]).logits[0], rtol=1e-4, atol=1e-5)
    saved = read_json(tmp_path / "saved" / "config.json")
    again = MaskedLanguageModel(ModernBertConfig.from_dict(saved), load_file(tmp_path / "saved" / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(again.eval().logits(ids, torch.tensor(LENGTHS)), got)
    assert (saved["pad_token_id"], saved["cls_token_id"]) == (3, 1)
    card = (tmp_path / "saved" / "README.md").read_text("utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert f"| parameters | {sum(p.numel() for p in theirs.parameters()):,} |" in card
    assert ColBERT.from_pretrained(tmp_path / "saved", dtype="float32").encode_documents(["a text"])[0].shape[1] == 48


@pytest.mark.parametrize("rows", [0, 1, 1024, 2500])
def test_the_chunked_loss_is_cross_entropy(rows: int) -> None:
    torch.manual_seed(4)
    hidden, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((rows, 8), (30, 8), (30,)))
    labels = torch.randint(30, (rows,))
    grads = []
    for loss_of in (cross_entropy_sum, lambda h, w, b, y: F.cross_entropy(F.linear(h, w, b), y, reduction="sum")):
        leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight, bias)]
        loss = loss_of(*leaves, labels)
        (3 * loss).backward()
        grads.append([loss.detach().double(), *(leaf.grad for leaf in leaves)])
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-4)


def test_a_head_of_another_kind_is_refused() -> None:
    config = ModernBertConfig.from_dict({**SMALL, "model_type": "modernbert", "decoder_bias": False})
    with pytest.raises(ModelError, match="decoder_bias is False, expected True"):
        MaskedLanguageModel(config)
