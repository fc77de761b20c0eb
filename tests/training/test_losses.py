"""losses.py against sentence-transformers' losses on the same vectors, and against the formulas written out."""

from functools import partial
from typing import Any

import pytest
import torch
from sentence_transformers.multi_vector_encoder import losses as multi
from sentence_transformers.sentence_transformer import losses as dense
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from mbretrieve.scoring import cosine, maxsim
from mbretrieve.training.losses import (
    cosine_distillation,
    in_batch_distillation,
    info_nce,
    kl_distillation,
    margin_mse,
    matryoshka,
    relational_distillation,
)

QUERIES, NEGATIVES, DIM = 5, 2, 8
SCALE = 7.0


class Given(nn.Module):
    """What sentence-transformers' losses call a model: here the vectors are given, so that only the loss computes."""

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        return features

    def __getitem__(self, index: int) -> nn.Module:
        return self

    def get_embedding_dimension(self) -> int:
        return DIM


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def batch() -> tuple[Tensor, list[Tensor]]:
    """Queries, and as many columns of documents as there are a positive and negatives."""
    return vectors(QUERIES, DIM), [vectors(QUERIES, DIM, seed=1 + column) for column in range(1 + NEGATIVES)]


def token_batch() -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The same for late interaction: tokens, padded, with masks."""
    sides = []
    for seed, tokens in enumerate([3, 6, 6, 6]):
        mask = torch.arange(tokens) <= torch.arange(QUERIES)[:, None] % tokens
        sides.append({"token_embeddings": vectors(QUERIES, tokens, DIM, seed=seed), "attention_mask": mask})
    return sides[0], sides[1:]


def features(columns: list[Tensor]) -> list[dict[str, Tensor]]:
    return [{"sentence_embedding": column} for column in columns]


def assert_same(ours: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    """The same loss, and the same gradient of it on what it was made of."""
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for one, other in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("negatives", [0, NEGATIVES])
def test_info_nce_is_multiple_negatives_ranking(negatives: int, symmetric: bool) -> None:
    queries, columns = batch()
    columns = columns[: 1 + negatives]
    options: Any = (
        {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"} if symmetric else {}
    )

    def ours() -> Tensor:
        scores = cosine(queries, torch.cat(columns))
        return info_nce(scores, torch.arange(QUERIES), scale=SCALE, symmetric=symmetric)

    theirs = dense.MultipleNegativesRankingLoss(Given(), scale=SCALE, **options)
    assert_same(ours(), theirs(features([queries, *columns]), torch.empty(0)), queries, *columns)
    cached = dense.CachedMultipleNegativesRankingLoss(Given(), scale=SCALE, mini_batch_size=2, **options)
    parts = [list(column.split(2)) for column in (queries, *columns)]
    assert_same(ours(), cached.calculate_loss(parts), queries, *columns)


def late_scores(query: dict[str, Tensor], documents: list[dict[str, Tensor]], dim: int = DIM) -> Tensor:
    """(Q, columns * Q), column after column."""
    return maxsim(
        query["token_embeddings"][..., :dim],
        torch.cat([side["token_embeddings"][..., :dim] for side in documents]),
        query["attention_mask"],
        torch.cat([side["attention_mask"] for side in documents]),
    )


def own(scores: Tensor) -> Tensor:
    """Each query's scores with its own candidates: (Q, columns)."""
    return scores.view(QUERIES, -1, QUERIES).diagonal(dim1=0, dim2=2).T


def tokens_of(query: dict[str, Tensor], documents: list[dict[str, Tensor]]) -> list[Tensor]:
    return [side["token_embeddings"] for side in (query, *documents)]


def test_info_nce_of_late_interaction_is_theirs() -> None:
    query, documents = token_batch()
    ours = info_nce(late_scores(query, documents), torch.arange(QUERIES), scale=SCALE)
    theirs = multi.MultiVectorMultipleNegativesRankingLoss(Given(), scale=SCALE)([query, *documents])
    assert_same(ours, theirs, *tokens_of(query, documents))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_kl_distillation_is_theirs_on_min_max_normalised_scores(scale: float) -> None:
    query, documents = token_batch()
    teacher = vectors(QUERIES, 1 + NEGATIVES, seed=9).detach() * 3 + 5

    def unit(scores: Tensor) -> Tensor:
        low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
        return (scores - low) / (high - low)

    def similarity(q: Tensor, d: Tensor, queries_mask: Tensor, documents_mask: Tensor) -> Tensor:
        return unit(own(late_scores(query, documents)))

    ours = kl_distillation(own(late_scores(query, documents)), teacher, scale=scale)
    # Theirs is multiplied by the temperature's square.
    theirs = multi.MultiVectorDistillKLDivLoss(Given(), similarity_fct=similarity, temperature=1 / scale)
    assert_same(ours, theirs([query, *documents], unit(teacher)) * scale**2, *tokens_of(query, documents))


def test_kl_distillation_of_vectors_is_theirs() -> None:
    queries, columns = batch()
    teacher = torch.tensor([[0.0, 1.0, 0.3]]).repeat(QUERIES, 1)  # of unit range already, as are these similarities
    unit = [torch.tensor([1.0, 0.0, 0.6])[place] + 0 * column.sum(1) for place, column in enumerate(columns)]
    theirs = dense.DistillKLDivLoss(Given(), similarity_fct=lambda _, d: unit[[c is d for c in columns].index(True)])
    theirs_given = theirs.compute_loss_from_embeddings([queries, *columns], teacher)
    torch.testing.assert_close(kl_distillation(torch.stack(unit, dim=1), teacher), theirs_given)


def test_in_batch_distillation_is_the_divergence_of_the_distributions() -> None:
    scores, teacher = vectors(4, 6, seed=1), vectors(4, 6, seed=2).detach()
    ours = in_batch_distillation(scores, teacher, scale=3.0, teacher_scale=5.0)
    student, target = Categorical(logits=3 * scores), Categorical(logits=5 * teacher)
    assert_same(ours, kl_divergence(target, student).mean(), scores)
    same = in_batch_distillation(teacher * 5 + 2, teacher, scale=1.0, teacher_scale=5.0)
    torch.testing.assert_close(same, torch.tensor(0.0), atol=1e-6, rtol=0)


def test_kl_distillation_ignores_the_scales_of_both_sides() -> None:
    scores, teacher = vectors(3, 4), vectors(3, 4, seed=1)
    loss = kl_distillation(scores, teacher)
    torch.testing.assert_close(kl_distillation(scores * 9 - 4, teacher * 0.1 + 2), loss)
    torch.testing.assert_close(kl_distillation(teacher * 5, teacher), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_kl_distillation_of_equal_scores_is_finite() -> None:
    scores = torch.zeros(2, 3, requires_grad=True)
    loss = kl_distillation(scores, torch.ones(2, 3))
    loss.backward()
    assert loss.item() == 0.0
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


def test_margin_mse_is_theirs() -> None:
    teacher = vectors(QUERIES, 1 + NEGATIVES, seed=9).detach()
    queries, columns = batch()
    pairs = torch.stack([(queries * column).sum(1) for column in columns], dim=1)
    theirs = dense.MarginMSELoss(Given())
    assert_same(margin_mse(pairs, teacher), theirs(features([queries, *columns]), teacher), queries, *columns)

    query, documents = token_batch()
    late = multi.MultiVectorMarginMSELoss(Given())([query, *documents], teacher)
    assert_same(margin_mse(own(late_scores(query, documents)), teacher), late, *tokens_of(query, documents))


def test_cosine_distillation_is_theirs() -> None:
    student, teacher = vectors(6, DIM), vectors(6, DIM, seed=1).detach()
    theirs = dense.EmbedDistillLoss(Given(), distance_metric="cosine")
    assert_same(cosine_distillation(student, teacher), theirs(features([student]), teacher), student)


def test_relational_distillation_is_its_formula_and_knows_no_rotation() -> None:
    student, teacher = vectors(4, DIM), vectors(4, 3, seed=1)
    expected = sum(
        (torch.cosine_similarity(student[i], student[j], 0) - torch.cosine_similarity(teacher[i], teacher[j], 0)) ** 2
        for i in range(4)
        for j in range(4)
    )
    assert_same(relational_distillation(student, teacher), torch.as_tensor(expected) / 16, student)
    turned = student @ torch.linalg.qr(vectors(DIM, DIM, seed=2)).Q
    torch.testing.assert_close(relational_distillation(turned, student), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_matryoshka_is_theirs() -> None:
    queries, columns = batch()
    dims, weights = (DIM, 4, 2), (1.0, 0.5, 0.25)
    model = Given()
    theirs = dense.MatryoshkaLoss(model, dense.MultipleNegativesRankingLoss(model, scale=SCALE), dims, weights)
    ours = matryoshka(
        lambda dim: cosine(queries[:, :dim], torch.cat(columns)[:, :dim]),
        lambda scores: info_nce(scores, torch.arange(QUERIES), scale=SCALE),
        dims,
        weights,
    )
    assert_same(ours, theirs(features([queries, *columns]), torch.empty(0)), queries, *columns)


def test_matryoshka_of_late_interaction_is_the_weighted_sum() -> None:
    query, documents = token_batch()

    def loss(scores: Tensor) -> Tensor:
        return info_nce(scores, torch.arange(QUERIES), scale=1.0)

    ours = matryoshka(lambda dim: late_scores(query, documents, dim), loss, (DIM, 4))
    theirs = loss(late_scores(query, documents)) + loss(late_scores(query, documents, 4))
    assert_same(ours, theirs, *tokens_of(query, documents))
    with pytest.raises(ValueError, match="2 dims have 1 weights"):
        matryoshka(lambda dim: late_scores(query, documents, dim), loss, (DIM, 4), (1.0,))


@pytest.mark.parametrize("symmetric", [False, True])
def test_what_is_excluded_is_as_if_it_were_not_there(symmetric: bool) -> None:
    scores = vectors(3, 5)
    excluded = torch.zeros(3, 5, dtype=torch.bool)
    excluded[:, 3] = True
    excluded[0, 0] = True  # the positive itself: it counts all the same
    positives = torch.tensor([0, 1, 4])
    ours = info_nce(scores, positives, scale=2.0, excluded=excluded, symmetric=symmetric)
    kept = info_nce(scores[:, [0, 1, 2, 4]], torch.tensor([0, 1, 3]), scale=2.0, symmetric=symmetric)
    assert_same(ours, kept, scores)


def test_a_document_of_two_queries_is_no_negative_of_either_backwards() -> None:
    scores = vectors(3, 2)
    positives = torch.tensor([0, 0, 1])
    ours = info_nce(scores, positives, scale=1.0, symmetric=True)
    forward = torch.nn.functional.cross_entropy(scores, positives)
    rows = [scores[[0, 2], 0], scores[[1, 2], 0]]
    backward = sum(row.logsumexp(0) - row[0] for row in rows) + scores[:, 1].logsumexp(0) - scores[2, 1]
    assert_same(ours, (forward + backward / 3) / 2, scores)


def test_a_temperature_is_learned() -> None:
    scores, log_scale = vectors(3, 3), torch.tensor(1.5, requires_grad=True)
    info_nce(scores, torch.arange(3), scale=log_scale.exp(), symmetric=True).backward()
    assert log_scale.grad is not None
    step = 1e-3
    either = [
        info_nce(scores, torch.arange(3), scale=float(log_scale.detach().add(by).exp()), symmetric=True)
        for by in (step, -step)
    ]
    torch.testing.assert_close(log_scale.grad, (either[0] - either[1]).detach() / (2 * step), atol=1e-3, rtol=1e-3)
    fixed = kl_distillation(scores, vectors(3, 3, seed=4), scale=2.0)
    torch.testing.assert_close(kl_distillation(scores, vectors(3, 3, seed=4), scale=torch.tensor(2.0)), fixed)


def test_shapes_that_do_not_fit_are_programming_errors() -> None:
    with pytest.raises(ValueError, match=r"positives have shape \(2,\), expected \(3,\)"):
        info_nce(torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64), scale=1.0)
    with pytest.raises(ValueError, match=r"excluded has shape \(3, 3\)"):
        info_nce(torch.zeros(3, 4), torch.arange(3), scale=1.0, excluded=torch.zeros(3, 3, dtype=torch.bool))
    for loss in (kl_distillation, margin_mse, partial(in_batch_distillation, scale=1.0, teacher_scale=1.0)):
        with pytest.raises(ValueError, match="two candidates or more"):
            loss(torch.zeros(3, 1), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="expected the teacher's"):
        cosine_distillation(torch.zeros(3, 4), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="3 rows, expected the teacher's 2"):
        relational_distillation(torch.zeros(3, 4), torch.zeros(2, 5))
