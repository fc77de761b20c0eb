"""Which model a checkpoint is to its caller: its kind, its lengths and dim as asked for, and the hash of what it is."""

from dataclasses import replace
from typing import Any

from mbretrieve.errors import ModelError
from mbretrieve.models.checkpoint import content_hash, view
from mbretrieve.models.settings import Saved, Weight
from mbretrieve.models.source import Source
from mbretrieve.types import Kind, ModelIdentity


def identify(
    saved: Saved[Weight],
    source: Source,
    kind: Kind,
    *,
    dim: int | None,
    query_length: int | None,
    document_length: int | None,
) -> tuple[Saved[Weight], ModelIdentity]:
    """See a checkpoint as a kind of encoder with the lengths and the dim asked for (None: as saved), and name it.

    Raises: ModelError for lengths or a dim beyond the model's.
    """
    saved = _with_lengths(view(saved, kind), query_length, document_length)
    width = saved.projection[-1].weight.shape[0] if saved.projection else saved.config.hidden_size
    if dim is not None and not 0 < dim <= width:
        raise ModelError(f"dim is {dim}, expected 1 to {width}, which this model's vectors have")
    model: Any = saved
    return saved, ModelIdentity(
        kind=kind,
        name=source.name,
        revision=source.revision,
        content_hash=content_hash(model),
        dim=dim or width,
        query_length=saved.settings.queries.length or saved.limit,
        document_length=saved.settings.documents.length or saved.limit,
        pooled_dim=saved.config.hidden_size if kind == "joint" else 0,
    )


def _with_lengths(saved: Saved[Weight], query_length: int | None, document_length: int | None) -> Saved[Weight]:
    """Put the caller's lengths in the place of the saved ones; a fixed query expansion is as long as the query."""
    settings = saved.settings
    for name, length in (("query_length", query_length), ("document_length", document_length)):
        if length is not None and length < 1:
            raise ModelError(f"{name} is {length}, expected at least 1")
    if document_length is not None:
        settings = replace(settings, documents=replace(settings.documents, length=document_length))
    if query_length is not None:
        settings = replace(settings, queries=replace(settings.queries, length=query_length))
        expansion = settings.expansion
        if expansion is not None and expansion.minimum and query_length < expansion.length:
            raise ModelError(
                f"query_length is {query_length}, expected the {expansion.length} to which queries are filled, or more"
            )
        if expansion is not None and not expansion.minimum:
            settings = replace(settings, expansion=replace(expansion, length=query_length))
    return replace(saved, settings=settings)
