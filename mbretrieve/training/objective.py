"""What a step makes small: from the representations of its texts to scores, and from scores to one loss.

A step's texts are numbered: its queries from 0, and its documents in the order of the examples, each one's positive
first and its negatives behind it. Numbers, not places, say what belongs together, so that the loss does not depend on
how the texts were cut into micro-batches or spread over processes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mbretrieve.errors import DataError
from mbretrieve.scoring import cosine, maxsim_packed
from mbretrieve.training import losses
from mbretrieve.training.config import TrainConfig
from mbretrieve.training.data import Example, duplicates
from mbretrieve.training.gathering import summed
from mbretrieve.training.student import Encoded, Student
from mbretrieve.types import Head

_LEAST_NORM = 1e-12  # F.normalize's
_MOST_SCALE = 100.0  # CLIP's bound of a learned scale
_RIDGE = 1e-3  # of the sum of the vectors' squares, added to each direction's own


class Teacher(Protocol):
    """What gives the vectors that embedding distillation learns."""

    @property
    def dim(self) -> int:
        """The numbers in each vector."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Encode texts: (n, dim) float32."""


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """What is known of a step's texts beside the texts, by their numbers.

    ``starts`` (Q + 1,) int64: the documents of query q are ``starts[q]`` to ``starts[q + 1]``, its positive first;
    ``excluded`` (Q, D) bool: documents that are no negatives of a query; ``scores`` the teacher's for each query's
    documents, or None; ``vectors`` (Q, 2, dim) float32, the teacher's of each query and its positive, or None.
    """

    starts: Tensor
    excluded: Tensor
    scores: list[tuple[float, ...]] | None
    vectors: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Representations:
    """All that was made of some texts of a step, in parts that lie one behind the other, and which texts' they are.

    ``query_rows`` and ``document_rows`` count each text's rows; ``query_ids`` and ``document_ids`` are the texts'
    numbers, in the order in which they lie. ``query_teacher`` (Q, dim) and ``document_teacher`` (D, dim) are the
    teacher's vectors for them, or None.
    """

    parts: Sequence[Encoded]
    query_rows: list[int]
    document_rows: list[int]
    query_ids: list[int]
    document_ids: list[int]
    query_teacher: Tensor | None = None
    document_teacher: Tensor | None = None


def targets(examples: Sequence[Example]) -> Targets:
    """Number the texts of a step. Raises: DataError if some examples have a teacher's scores and others none."""
    counts = torch.tensor([0, *(1 + len(example.negatives) for example in examples)])
    excluded = torch.from_numpy(duplicates(examples))
    scores = [example.scores for example in examples if example.scores is not None]
    if scores and len(scores) < len(examples):
        raise DataError(
            f"{len(scores)} of {len(examples)} examples of a batch have teacher scores, expected all or none"
        )
    vectors = [torch.from_numpy(example.vectors) for example in examples if example.vectors is not None]
    # All examples are of one source, so that all have vectors or none.
    return Targets(counts.cumsum(0), excluded, scores or None, torch.stack(vectors) if vectors else None)


class Objective(nn.Module):
    """The loss of a recipe, with the parameters it learns beside the model's: temperatures, the map to a teacher."""

    def __init__(self, config: TrainConfig, student: Student, teacher_dim: int | None = None) -> None:
        super().__init__()
        self.config = config.loss
        self._distils = teacher_dim is not None
        self._copies_vectors = self._distils and self.config.distillation_weight > 0
        self._check(student)
        self._weights: dict[Head, float] = {}
        if student.late:
            self._weights["colbert"] = config.loss.late_weight if student.pooled else 1.0
        if student.pooled:
            self._weights["dense"] = config.loss.dense_weight if student.late else 1.0
        self._widths: dict[Head, int] = {"colbert": student.width, "dense": student.pooled_width}
        self._normalizes: dict[Head, tuple[bool, bool]] = {kind: student.normalizes(kind) for kind in self._weights}
        for kind in self._weights:
            scale = torch.tensor(-math.log(config.temperature(kind)))
            if config.loss.learn_temperature:
                self.register_parameter(f"log_scale_{kind}", nn.Parameter(scale))
            else:
                self.register_buffer(f"log_scale_{kind}", scale, persistent=False)
        mapped = self._copies_vectors and config.loss.distillation == "cosine"
        self.to_teacher = nn.Linear(student.pooled_width, teacher_dim, bias=False) if mapped and teacher_dim else None
        if self.to_teacher is not None:
            nn.init.zeros_(self.to_teacher.weight)  # until it is fitted to the first vectors

    @property
    def spans_examples(self) -> bool:
        """Whether the loss of one example depends on the others of its step: else it is a mean over examples."""
        return self.config.name == "infonce" or self._distils

    def scale(self, kind: Head) -> Tensor:
        """1 / temperature, as it is now."""
        scale: Tensor = getattr(self, f"log_scale_{kind}").exp()
        return scale.clamp(max=_MOST_SCALE) if self.config.learn_temperature else scale

    def forward(self, found: Representations, wanted: Targets) -> Tensor:
        """Return the loss of a step, a scalar: each head's, weighted, at each width, and distillation."""
        parts = [weight * self._head(kind, found, wanted) for kind, weight in self._weights.items()]
        if self._copies_vectors and _is_taught(found, wanted):
            parts.append(self.config.distillation_weight * self._distillation(found, wanted))
        return torch.stack(parts).sum()

    def _check(self, student: Student) -> None:
        if self._copies_vectors and not student.pooled:
            raise DataError(
                "a teacher gives a vector a text, and kind is 'colbert', with one a token: expected dense or joint, "
                "or loss.distillation_weight = 0 and loss.in_batch_weight, to learn its similarities"
            )
        widest = max(student.width if student.late else 0, student.pooled_width if student.pooled else 0)
        if wide := [width for width in self.config.matryoshka if width > widest]:
            raise DataError(f"loss.matryoshka has {wide[0]}, expected widths up to the vectors' {widest}")

    def _head(self, kind: Head, found: Representations, wanted: Targets) -> Tensor:
        """One head's loss at the recipe's widths and at its own."""
        full = self._widths[kind]
        weights = dict(zip(self.config.matryoshka, self.config.matryoshka_weights, strict=False))
        widths = [*(width for width in self.config.matryoshka if width < full), full]
        if self.config.name == "infonce":
            score = partial(self._all_scores, kind, found)
            loss = partial(self._contrastive, kind, found, wanted)
        else:
            score = partial(self._own_scores, kind, found, wanted)
            loss = partial(self._taught, kind, found, wanted)
        return losses.matryoshka(score, loss, widths, [weights.get(width, 1.0) for width in widths])

    def _sides(self, kind: Head, found: Representations, width: int) -> tuple[Tensor, Tensor]:
        """The first ``width`` numbers of one head's queries and documents, scaled as they are when searched."""
        queries, documents = (
            _unit_rows(width, side) if scaled else _joined(part[:, :width] for part in side)
            for side, scaled in zip(_of_head(kind, found), self._normalizes[kind], strict=True)
        )
        return queries, documents

    def _all_scores(self, kind: Head, found: Representations, width: int) -> Tensor:
        """Every query with every document, (Q, D), as they lie."""
        queries, documents = self._sides(kind, found, width)
        if kind == "dense":
            return cosine(queries, documents)
        return maxsim_packed(queries, found.query_rows, documents, found.document_rows)

    def _contrastive(self, kind: Head, found: Representations, wanted: Targets, scores: Tensor) -> Tensor:
        device = scores.device
        queries, documents = torch.tensor(found.query_ids), torch.tensor(found.document_ids)
        positives, scale = _positives(found, wanted).to(device), self.scale(kind).to(device)
        excluded = wanted.excluded[queries][:, documents].to(device)
        loss = losses.info_nce(scores, positives, scale=scale, excluded=excluded, symmetric=self.config.symmetric)
        if self.config.in_batch_weight and _is_taught(found, wanted):
            asked, answers = _teachers(found, wanted, device)
            if wanted.vectors is not None:
                scores = scores[:, positives]
            teacher, teacher_scale = cosine(asked, answers), 1 / self.config.teacher_temperature
            soft = losses.in_batch_distillation(scores, teacher, scale=scale, teacher_scale=teacher_scale)
            loss = loss + self.config.in_batch_weight * soft
        return loss

    def _own_scores(self, kind: Head, found: Representations, wanted: Targets, width: int) -> Tensor:
        """Each query with its own documents, (Q, N), the positive first."""
        queries, documents = self._sides(kind, found, width)
        dense = kind == "dense"
        query_texts = torch.split(queries, [1] * len(queries) if dense else found.query_rows)
        document_texts = torch.split(documents, [1] * len(documents) if dense else found.document_rows)
        places = {number: place for place, number in enumerate(found.document_ids)}
        rows = []
        for number, query in zip(found.query_ids, query_texts, strict=True):
            own = range(int(wanted.starts[number]), int(wanted.starts[number + 1]))
            texts = [document_texts[places[document]] for document in own]
            lengths, all_rows = [len(text) for text in texts], torch.cat(texts)
            rows.append(cosine(query, all_rows) if dense else maxsim_packed(query, [len(query)], all_rows, lengths))
        if len({row.shape[1] for row in rows}) > 1:
            raise DataError(
                f"loss.name is {self.config.name!r} and the examples of a batch have unlike numbers of negatives: "
                "set data.negatives"
            )
        return torch.cat(rows)

    def _taught(self, kind: Head, found: Representations, wanted: Targets, scores: Tensor) -> Tensor:
        if wanted.scores is None:
            raise DataError(f"loss.name is {self.config.name!r}, and the examples have no teacher scores")
        teacher = torch.tensor([wanted.scores[number] for number in found.query_ids]).to(scores)
        if self.config.name == "kl":
            return losses.kl_distillation(scores, teacher, scale=self.scale(kind))
        return losses.margin_mse(scores * self.scale(kind), teacher)

    def _distillation(self, found: Representations, wanted: Targets) -> Tensor:
        queries, documents = (_joined(side) for side in _of_head("dense", found))
        if wanted.vectors is not None:
            documents = documents[_positives(found, wanted).to(documents.device)]
        student = torch.cat([queries, documents])
        teacher = torch.cat(_teachers(found, wanted, documents.device))
        if self.config.distillation == "relational":
            return losses.relational_distillation(student, teacher)
        if self.to_teacher is None:
            return losses.cosine_distillation(student, teacher)
        if not self.to_teacher.weight.any():
            fit_map(self.to_teacher, student, teacher)
        return losses.cosine_distillation(self.to_teacher(student), teacher)


@torch.no_grad()
def fit_map(to_teacher: nn.Linear, student: Tensor, teacher: Tensor) -> None:
    """Give a linear map the weights that bring a student's vectors (n, dim) nearest to the teacher's (n, its dim).

    By least squares with a little ridge, over the vectors of all processes. A random map takes hundreds of steps to
    come as near, and what it asks of the student until then is noise.
    """
    vectors, wanted = F.normalize(student.detach().double(), dim=1), teacher.double()
    products, targets = summed(vectors.T @ vectors), summed(vectors.T @ wanted)
    products.diagonal().add_(_RIDGE * products.trace())
    to_teacher.weight.copy_(torch.linalg.solve(products, targets).T)


def _is_taught(found: Representations, wanted: Targets) -> bool:
    return wanted.vectors is not None or found.query_teacher is not None


def _teachers(found: Representations, wanted: Targets, device: torch.device) -> tuple[Tensor, Tensor]:
    """The teacher's vectors of the queries and of the documents; made beforehand, of each query's positive only."""
    if wanted.vectors is not None:
        queries, positives = wanted.vectors[torch.tensor(found.query_ids)].to(device).unbind(1)
        return queries, positives
    if found.query_teacher is None or found.document_teacher is None:
        raise ValueError("the texts of the step have no teacher's vectors")
    return found.query_teacher, found.document_teacher


def _of_head(kind: Head, found: Representations) -> tuple[list[Tensor], list[Tensor]]:
    """The parts of one head's queries, and those of its documents."""
    late = kind == "colbert"
    queries = [part.query_rows if late else part.query_vectors for part in found.parts]
    documents = [part.document_rows if late else part.document_vectors for part in found.parts]
    return [part for part in queries if part is not None], [part for part in documents if part is not None]


def _unit_rows(width: int, parts: Sequence[Tensor]) -> Tensor:
    """Bring the first ``width`` numbers of rows to unit length, end to end: parts (n_i, dim) -> (sum n_i, width)."""
    joined: Tensor = _UnitRows.apply(width, *parts)  # type: ignore[no-untyped-call]
    return joined


class _UnitRows(torch.autograd.Function):
    """``F.normalize`` and ``cat`` in one: each would hold the vectors of a large batch once more for the backward."""

    @staticmethod
    def forward(ctx: Any, width: int, *parts: Tensor) -> Tensor:
        joined = parts[0].new_empty(sum(map(len, parts)), width)
        norms = joined.new_empty(len(joined), 1)
        sizes = [len(part) for part in parts]
        for part, rows, norm in zip(parts, torch.split(joined, sizes), torch.split(norms, sizes), strict=True):
            torch.linalg.vector_norm(part[:, :width], dim=1, keepdim=True, out=norm)
            torch.div(part[:, :width], norm.clamp_(min=_LEAST_NORM), out=rows)
        ctx.save_for_backward(joined, norms)
        ctx.sizes, ctx.dim = sizes, parts[0].shape[1]
        return joined

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        joined, norms = ctx.saved_tensors
        out: list[Tensor | None] = [None]
        for rows, norm, above in zip(*(torch.split(whole, ctx.sizes) for whole in (joined, norms, grad)), strict=True):
            along = (above * rows).sum(dim=1, keepdim=True)
            own = grad.new_zeros(len(rows), ctx.dim)
            torch.addcmul(above, rows, along, value=-1, out=own[:, : rows.shape[1]]).div_(norm)
            out.append(own)
        return tuple(out)


def _joined(parts: Iterable[Tensor]) -> Tensor:
    held = list(parts)
    return torch.cat(held) if len(held) > 1 else held[0]


def _positives(found: Representations, wanted: Targets) -> Tensor:
    """Return where each query's positive lies among the documents: (Q,) int64."""
    documents = torch.tensor(found.document_ids)
    place = torch.full((int(wanted.starts[-1]),), -1)
    place[documents] = torch.arange(len(documents))
    return place[wanted.starts[torch.tensor(found.query_ids)]]
