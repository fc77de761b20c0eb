"""Similarity of vectors, and of padded token matrices: the formulas as they are written."""

from collections.abc import Sequence

import torch
from torch import Tensor


def maxsim(queries: Tensor, documents: Tensor, query_mask: Tensor, document_mask: Tensor) -> Tensor:
    """Score every query against every document: ``out[q, d] = sum_i max_j queries[q, i] @ documents[d, j]``.

    The late interaction of ColBERT (Khattab and Zaharia, SIGIR 2020, equation 3). Differentiable.

    Shapes: queries (Q, I, dim), documents (D, J, dim), masks (Q, I) and (D, J) bool -> (Q, D) float32.
    Padding is excluded from the max, not zeroed: a zero would beat a negative similarity.
    Raises: ValueError if the dims differ or a document has no real token.
    """
    check_dims(queries, documents)
    if not bool(document_mask.any(dim=1).all()):
        raise ValueError("a document has no real token: MaxSim is the maximum over its tokens")
    similarities = torch.einsum("qih,djh->qdij", queries, documents).float()  # (Q, D, I, J)
    best = similarities.masked_fill(~document_mask[None, :, None, :], -torch.inf).amax(dim=3)  # (Q, D, I)
    return best.masked_fill(~query_mask[:, None, :], 0.0).sum(dim=2)


def cosine(queries: Tensor, documents: Tensor) -> Tensor:
    """Cosine similarity of every query with every document: ``q @ d / (|q| |d|)``, or 0 for a zero vector.

    Shapes: queries (Q, dim), documents (D, dim) -> (Q, D) float32. Differentiable.
    Raises: ValueError if the dims differ.
    """
    check_dims(queries, documents)
    normalize = torch.nn.functional.normalize
    return normalize(queries.float(), dim=-1) @ normalize(documents.float(), dim=-1).T


def check_dims(queries: Tensor, documents: Tensor) -> None:
    """Raise ValueError unless queries and documents have one dim."""
    if queries.shape[-1] != documents.shape[-1]:
        raise ValueError(f"queries have dim {queries.shape[-1]}, documents have dim {documents.shape[-1]}")


def stack(queries: Sequence[Tensor], documents: Tensor) -> Tensor:
    """Return the tokens of all queries end to end, (sum I, dim) float32: dim and device are those of the documents.

    Raises: ValueError if the dims differ, or a query has no token.
    """
    for query in queries:
        check_dims(query, documents)
    if any(len(query) == 0 for query in queries):
        raise ValueError("a query has no token: MaxSim is a sum over its tokens")
    there = [query.to(documents.device, torch.float32) for query in queries]
    return torch.cat([torch.empty((0, documents.shape[1]), device=documents.device), *there])
