"""A cached step against a plain one, on a real backbone with dropout, single vectors and late interaction."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from mbretrieve.models.config import ModernBertConfig
from mbretrieve.models.modernbert import ModernBert
from mbretrieve.scoring import cosine, maxsim
from mbretrieve.training.gradcache import cached_backward
from mbretrieve.training.losses import info_nce

# Queries are the first two micro-batches, their documents the others; texts of any length.
LENGTHS = [[3, 5, 2], [4], [7, 9], [20, 1]]
QUERIES, VOCABULARY, DIM = 4, 50, 8


class Model(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = ModernBertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            local_attention=4,
            initializer_range=0.3,
            embedding_dropout=dropout,
            mlp_dropout=dropout,
            attention_dropout=dropout,
        )
        self.backbone, self.head = ModernBert(config), nn.Linear(16, DIM)
        self.log_scale = nn.Parameter(torch.tensor(0.5))

    def tokens(self, place: int) -> Tensor:
        ids = torch.randint(VOCABULARY, (sum(LENGTHS[place]),), generator=torch.Generator().manual_seed(place))
        states: Tensor = self.head(self.backbone(ids, LENGTHS[place]))
        return states

    def vectors(self, place: int) -> Tensor:
        return pooled(self.tokens(place), LENGTHS[place])

    def both(self, place: int) -> tuple[Tensor, ...]:
        rows = self.tokens(place)
        return pooled(rows, LENGTHS[place]), rows

    def dense_loss(self, found: list[Tensor]) -> Tensor:
        rows = torch.cat(found)
        scores = cosine(rows[:QUERIES], rows[QUERIES:])
        return info_nce(scores, torch.arange(QUERIES), scale=self.log_scale.exp(), symmetric=True)

    def late_loss(self, found: list[Tensor]) -> Tensor:
        sides = [padded(found[:2], LENGTHS[:2]), padded(found[2:], LENGTHS[2:])]
        scores = maxsim(sides[0][0], sides[1][0], sides[0][1], sides[1][1])
        return info_nce(scores, torch.arange(QUERIES), scale=self.log_scale.exp())

    def joint_loss(self, found: list[tuple[Tensor, ...]]) -> Tensor:
        return self.dense_loss([pair[0] for pair in found]) + self.late_loss([pair[1] for pair in found])

    def gradients(self) -> dict[str, Tensor]:
        found = {name: parameter.grad for name, parameter in self.named_parameters()}
        self.zero_grad()
        return {name: grad for name, grad in found.items() if grad is not None}


def pooled(rows: Tensor, lengths: list[int]) -> Tensor:
    return torch.stack([text.mean(0) for text in rows.split(lengths)])


def padded(found: list[Tensor], lengths: list[list[int]]) -> tuple[Tensor, Tensor]:
    counts = [count for some in lengths for count in some]
    rows = nn.utils.rnn.pad_sequence(list(torch.cat(found).split(counts)), batch_first=True)
    return rows, torch.arange(rows.shape[1]) < torch.tensor(counts)[:, None]


KINDS: list[tuple[str, str]] = [("vectors", "dense_loss"), ("tokens", "late_loss"), ("both", "joint_loss")]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("encode", "loss"), KINDS)
def test_a_cached_step_equals_a_plain_step(encode: str, loss: str, dropout: float) -> None:
    model = Model(dropout).train()
    torch.manual_seed(1)
    plain = getattr(model, loss)([getattr(model, encode)(place) for place in range(len(LENGTHS))])
    plain.backward()
    expected, after = model.gradients(), torch.rand(1)
    torch.manual_seed(1)
    cached = cached_backward(getattr(model, encode), len(LENGTHS), getattr(model, loss))
    assert not cached.requires_grad
    torch.testing.assert_close(cached, plain.detach(), atol=1e-5, rtol=0)
    assert torch.equal(torch.rand(1), after)  # as many random numbers drawn, as it seems from outside
    found = model.gradients()
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize(("encode", "loss"), KINDS)
def test_under_autocast_every_parameter_gets_its_gradient(encode: str, loss: str) -> None:
    model = Model()
    with torch.autocast("cpu", torch.bfloat16):
        plain = getattr(model, loss)([getattr(model, encode)(place) for place in range(len(LENGTHS))])
        plain.backward()
        expected = model.gradients()
        cached = cached_backward(getattr(model, encode), len(LENGTHS), getattr(model, loss))
    torch.testing.assert_close(cached, plain.detach())
    found = model.gradients()
    assert found.keys() == expected.keys()
    for name, grad in found.items():  # summed up in another order, of bfloat16 numbers
        assert torch.cosine_similarity(grad.flatten(), expected[name].flatten(), dim=0) > 0.999, name


def test_a_single_micro_batch_is_encoded_once() -> None:
    model, calls = Model(), []

    def encode(place: int) -> Tensor:
        calls.append(place)
        return model.vectors(place)

    cached_backward(encode, 1, lambda found: found[0].pow(2).sum())
    assert calls == [0]
    expected = model.gradients()
    model.vectors(0).pow(2).sum().backward()
    for name, grad in model.gradients().items():
        torch.testing.assert_close(expected[name], grad)


def test_only_the_last_backward_is_synchronised_and_one_graph_lives_at_a_time() -> None:
    model, events = Model(), list[str]()

    @contextmanager
    def no_sync() -> Iterator[None]:
        events.append("off")
        yield
        events.append("on")

    def encode(place: int) -> Tensor:
        events.append(f"{'graph' if torch.is_grad_enabled() else 'look'} {place}")
        return model.vectors(place)

    cached_backward(encode, 3, lambda found: torch.cat(found).pow(2).sum(), no_sync)
    assert events[:3] == ["look 0", "look 1", "look 2"]
    assert events[3:] == ["off", "graph 0", "on", "off", "graph 1", "on", "graph 2"]


def test_what_the_loss_does_not_use_changes_nothing() -> None:
    model = Model()
    cached_backward(model.both, len(LENGTHS), lambda found: model.dense_loss([pair[0] for pair in found]))
    half = model.gradients()
    cached_backward(model.vectors, len(LENGTHS), model.dense_loss)
    for name, grad in model.gradients().items():
        torch.testing.assert_close(half[name], grad, atol=1e-6, rtol=1e-5)


def test_no_micro_batch_is_a_programming_error() -> None:
    encode: Callable[[int], Tensor] = Model().vectors
    with pytest.raises(ValueError, match="count is 0"):
        cached_backward(encode, 0, lambda found: found[0].sum())
