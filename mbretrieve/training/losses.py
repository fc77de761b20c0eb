"""Training losses: functions of score matrices and of vectors, never of models.

Scores are float32 and differentiable, from ``scoring`` or any other source; each loss is a scalar. A score matrix has a
query a row. ``scale`` is 1 / temperature: a number, or a tensor of one number that is learned with the model.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def info_nce(
    scores: Tensor,
    positives: Tensor,
    *,
    scale: float | Tensor,
    excluded: Tensor | None = None,
    symmetric: bool = False,
) -> Tensor:
    """Tell each query's positive from all other columns: ``mean_q(log sum_d exp(scale s[q, d]) - scale s[q, p_q])``.

    InfoNCE (van den Oord et al., https://arxiv.org/abs/1807.03748) with the negatives of the batch (Karpukhin et al.,
    https://arxiv.org/abs/2004.04906); hard negatives are further columns. With ``symmetric`` half of the loss is that
    of the other direction, each positive's query told from all queries, as in CLIP (https://arxiv.org/abs/2103.00020).

    Shapes: scores (Q, D), positives (Q,) int64, the column of each query's positive; excluded (Q, D) bool or None: True
    where a column is no negative of a query, such as another copy of its positive. Its own positive always counts.
    Raises: ValueError if the shapes do not fit.
    """
    queries, columns = scores.shape
    if positives.shape != (queries,):
        raise ValueError(f"positives have shape {tuple(positives.shape)}, expected ({queries},), one a query")
    if excluded is not None and excluded.shape != scores.shape:
        raise ValueError(f"excluded has shape {tuple(excluded.shape)}, expected the scores' {tuple(scores.shape)}")
    own = F.one_hot(positives, columns).bool()  # (Q, D)
    logits = scores * scale
    if excluded is not None:
        logits = logits.masked_fill(excluded & ~own, -torch.inf)
    loss = F.cross_entropy(logits, positives)
    if not symmetric:
        return loss
    # One row a positive, one column a query. A document that is the positive of two queries has two rows; in neither is
    # the other query a negative.
    each = torch.arange(queries, device=scores.device)
    shared = (positives[:, None] == positives) & (each[:, None] != each)
    backward = logits[:, positives].T.masked_fill(shared, -torch.inf)  # (Q, Q)
    return (loss + F.cross_entropy(backward, each)) / 2


def kl_distillation(scores: Tensor, teacher: Tensor, *, scale: float | Tensor = 1.0) -> Tensor:
    """Rank a query's candidates as the teacher does: ``mean_q KL(softmax(scale t'[q]) || softmax(scale s'[q]))``.

    ``x'`` is a row brought to the range from 0 to 1, ``(x - min) / (max - min)``: a teacher's scores and a sum of
    similarities have scales of their own. JaColBERTv2.5 (Clavie, https://arxiv.org/abs/2407.20750).

    Shapes: scores and teacher (Q, N), N candidates a query, two or more. Raises: ValueError if the shapes do not fit.
    """
    _check_candidates(scores, teacher)
    student = F.log_softmax(_unit_range(scores) * scale, dim=1)
    target = F.log_softmax(_unit_range(teacher.detach()) * scale, dim=1)
    return F.kl_div(student, target, reduction="batchmean", log_target=True)


def in_batch_distillation(scores: Tensor, teacher: Tensor, *, scale: float | Tensor, teacher_scale: float) -> Tensor:
    """See a batch as the teacher does: ``mean_q KL(softmax(teacher_scale t[q]) || softmax(scale s[q]))``.

    The teacher's scores of all pairs of a batch stand in for labels, so that what it holds to be an answer too is no
    longer pushed away. TCT-ColBERT (Lin et al., https://arxiv.org/abs/2010.11386). Unlike ``kl_distillation`` the
    scores stay as they are: the range of a batch's scores is that of its farthest texts, which says nothing.

    Shapes: scores and teacher (Q, N), two columns or more. Raises: ValueError if the shapes do not fit.
    """
    _check_candidates(scores, teacher)
    target = F.log_softmax(teacher.detach() * teacher_scale, dim=1)
    return F.kl_div(F.log_softmax(scores * scale, dim=1), target, reduction="batchmean", log_target=True)


def margin_mse(scores: Tensor, teacher: Tensor) -> Tensor:
    """Keep the teacher's margins: ``mean_(q, n) ((s[q, 0] - s[q, n]) - (t[q, 0] - t[q, n]))^2``, n from 1.

    Margin-MSE (Hofstaetter et al., https://arxiv.org/abs/2010.02666).

    Shapes: scores and teacher (Q, N), the positive in column 0. Raises: ValueError if the shapes do not fit.
    """
    _check_candidates(scores, teacher)
    teacher = teacher.detach()
    return F.mse_loss(scores[:, :1] - scores[:, 1:], teacher[:, :1] - teacher[:, 1:])


def cosine_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Point where the teacher points: ``mean_i (1 - cos(student[i], teacher[i]))``.

    EmbedDistill (Kim et al., https://arxiv.org/abs/2301.12005), with the cosine for its distance.

    Shapes: student and teacher (n, dim), of one dim (a head may bring the student to the teacher's).
    Raises: ValueError if the shapes do not fit.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's shape is {tuple(student.shape)}, expected the teacher's {tuple(teacher.shape)}"
        )
    return (1 - F.cosine_similarity(student, teacher.detach(), dim=1)).mean()


def relational_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Keep the teacher's similarities between texts: ``mean_(i, j) (cos(s_i, s_j) - cos(t_i, t_j))^2``.

    The similarity loss of Jasper and Stella (Zhang et al., https://arxiv.org/abs/2412.19048): of any teacher's width.

    Shapes: student (n, dim), teacher (n, teacher's dim). Raises: ValueError if there is not one row each a text.
    """
    if len(student) != len(teacher):
        raise ValueError(f"the student has {len(student)} rows, expected the teacher's {len(teacher)}")
    ours, theirs = F.normalize(student, dim=1), F.normalize(teacher.detach(), dim=1)
    return F.mse_loss(ours @ ours.T, theirs @ theirs.T)


def matryoshka(
    score: Callable[[int], Tensor],
    loss: Callable[[Tensor], Tensor],
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Train prefixes of the vectors to serve alone: ``sum_k weights[k] * loss(score(dims[k]))``.

    Matryoshka representations (Kusupati et al., https://arxiv.org/abs/2205.13147). ``score(dim)`` makes the scores from
    the first ``dim`` numbers of each vector, of a text's or of a token's; ``weights`` are 1 if not given.
    Raises: ValueError if there is no dim, or not one weight a dim.
    """
    weights = [1.0] * len(dims) if weights is None else weights
    if not dims or len(weights) != len(dims):
        raise ValueError(f"{len(dims)} dims have {len(weights)} weights, expected at least one dim and a weight each")
    return torch.stack([weight * loss(score(dim)) for dim, weight in zip(dims, weights, strict=True)]).sum()


def _unit_range(scores: Tensor) -> Tensor:
    """Bring each row to the range from 0 to 1; a row of one value to zeros, without dividing by 0."""
    low, high = scores.aminmax(dim=1, keepdim=True)
    spread = high - low
    return (scores - low) / spread.masked_fill(spread == 0, 1.0)


def _check_candidates(scores: Tensor, teacher: Tensor) -> None:
    if scores.shape != teacher.shape or scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(
            f"scores have shape {tuple(scores.shape)} and the teacher's {tuple(teacher.shape)}, "
            "expected the same of both, (queries, candidates), with two candidates or more"
        )
