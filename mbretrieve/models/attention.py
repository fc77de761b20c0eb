"""Attention over a packed stream: what a batch looks like to a kernel, the kernels, and the table that chooses one.

A stream is the texts of a batch one after another, without padding: queries, keys and values are (T, heads, head_dim).
A token attends within its own text; in a sliding layer only to keys at a distance of at most ``window``.
"""

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

# A group of texts that share one padded SDPA call may hold this share of padding: measured on CPU, a call of its own
# for each of many short texts costs more than the padding does.
_PADDING = 0.25
# Texts from this length on get a call of their own.
_LONG = 512


class Group(NamedTuple):
    """Texts of like length that take one padded SDPA call.

    ``tokens`` (n, L) int64 holds positions in the stream (0 where padded), ``bias`` is None or (n, 1, 1 or L, L).
    """

    tokens: Tensor
    bias: Tensor | None


class PackedBatch:
    """The shape of one packed batch, and what kernels derive from it, made once and used by every layer.

    ``lengths`` are the texts' lengths in stream order. ``attended`` (T,) bool or None: a token that is False is
    nobody's key, though it is a query itself. Raises: ValueError if a length is below 1.
    """

    def __init__(
        self, lengths: Sequence[int], *, device: torch.device, dtype: torch.dtype, attended: Tensor | None = None
    ) -> None:
        if not lengths or min(lengths) < 1:
            raise ValueError(
                f"lengths are {list(lengths)[:5]}..., expected at least one text, each of at least 1 token"
            )
        self.lengths = list(lengths)
        self.device, self.dtype = device, dtype
        self.attended = attended
        self.tokens, self.longest = sum(self.lengths), max(self.lengths)
        self._bands: dict[int, Tensor] = {}

    @cached_property
    def bounds(self) -> Tensor:
        """Where texts start and end in the stream, (B + 1,) int32: what varlen kernels call cu_seqlens."""
        return F.pad(self._lengths.cumsum(0), (1, 0)).to(torch.int32).to(self.device)

    @cached_property
    def text_of(self) -> Tensor:
        """Which text each token belongs to, (T,) int64."""
        return torch.repeat_interleave(torch.arange(len(self.lengths)), self._lengths).to(self.device)

    @cached_property
    def positions(self) -> Tensor:
        """Each token's place in its text, (T,) int64."""
        starts = self._lengths.cumsum(0) - self._lengths
        return (torch.arange(self.tokens) - starts.repeat_interleave(self._lengths)).to(self.device)

    @cached_property
    def _lengths(self) -> Tensor:
        return torch.tensor(self.lengths)

    def narrowed(self, window: int | None) -> int | None:
        """Return the window, or None where it is no limit because every text fits into it."""
        return None if window is None or window >= self.longest - 1 else window

    def bias(self, allowed: Tensor) -> Tensor:
        """Return 0 where ``allowed``, else -inf: SDPA would make the same of a bool mask again in every layer."""
        return torch.zeros(allowed.shape, dtype=self.dtype, device=self.device).masked_fill_(~allowed, float("-inf"))

    @cached_property
    def groups(self) -> list[Group]:
        """All texts, in groups of like length, longest first."""
        groups: list[Group] = []
        order = sorted(range(len(self.lengths)), key=lambda text: -self.lengths[text])
        members: list[int] = []
        real = 0
        for text in order:
            length = self.lengths[text]
            if members and not self._joins(members, real, length):
                groups.append(self._group(members))
                members, real = [], 0
            members.append(text)
            real += length
        groups.append(self._group(members))
        return groups

    def _joins(self, members: list[int], real: int, length: int) -> bool:
        widest = self.lengths[members[0]]
        return widest < _LONG and widest * (len(members) + 1) * (1 - _PADDING) <= real + length

    def _group(self, members: list[int]) -> Group:
        lengths = self._lengths[members]  # (n,)
        starts = (self._lengths.cumsum(0) - self._lengths)[members]
        offsets = torch.arange(int(lengths.max()))
        real = offsets < lengths[:, None]  # (n, L)
        index = torch.where(real, starts[:, None] + offsets, 0).to(self.device)
        allowed = real.to(self.device)
        if self.attended is not None:
            allowed = allowed & self.attended[index]
        return Group(index, None if bool(allowed.all()) else self.bias(allowed[:, None, None, :]))

    @cached_property
    def ungroup(self) -> Tensor | None:
        """Where each token's row stands in the groups' padded rows put end to end, (T,) int64; None if in order."""
        index = torch.cat([group.tokens.flatten() for group in self.groups])
        if torch.equal(index, torch.arange(self.tokens, device=self.device)):
            return None
        padded = torch.cat([self._real(group) for group in self.groups])
        place = torch.empty(self.tokens, dtype=torch.int64, device=self.device)
        rows = torch.arange(len(index), device=self.device)
        place[index[padded]] = rows[padded]
        return place

    def _real(self, group: Group) -> Tensor:
        """Padding points at token 0: a slot is real if it is the text's own start plus its offset."""
        offsets = torch.arange(group.tokens.shape[1], device=self.device)
        return (group.tokens == group.tokens[:, :1] + offsets).flatten()

    def band(self, window: int) -> Tensor:
        """The mask of a sliding layer in blocks: see ``_banded``. Returns (blocks, 1, block, block + 2 window)."""
        if window not in self._bands:
            block = _block(window)
            blocks = -(-self.tokens // block)
            tail = blocks * block - self.tokens
            # -1 on both sides of a comparison: padded rows see padded keys, so that no row of theirs is empty.
            queries = F.pad(self.text_of, (0, tail), value=-1).view(blocks, block, 1)
            keys = self.text_of if self.attended is None else self.text_of.masked_fill(~self.attended, -2)
            keys = F.pad(keys, (window, tail + window), value=-1).unfold(0, block + 2 * window, block).unsqueeze(1)
            offset = torch.arange(block + 2 * window, device=self.device) - torch.arange(
                block, device=self.device
            ).unsqueeze(1)  # key slot j of a block is at distance j - window - i from query i
            near = (offset >= 0) & (offset <= 2 * window)
            self._bands[window] = self.bias(((queries == keys) & near).unsqueeze(1))
        return self._bands[window]


def _block(window: int) -> int:
    """As many queries a block as the window is wide: half of the keys a block reads are then its own."""
    return max(64, 2 * window)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, window: int | None, dropout: float) -> Tensor:
    """torch's scaled_dot_product_attention, on any device and in any dtype."""
    if window is not None:
        return _banded(query, key, value, batch.band(window), window, dropout)
    rows = []
    for index, bias in batch.groups:
        n, length = index.shape
        if n == 1:
            start = int(index[0, 0])
            q, k, v = (x[start : start + length].unsqueeze(0) for x in (query, key, value))
        else:
            q, k, v = query[index], key[index], value[index]  # (n, L, heads, head_dim)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        rows.append(out.transpose(1, 2).flatten(0, 1))  # (n * L, heads, head_dim)
    joined = rows[0] if len(rows) == 1 else torch.cat(rows)
    return joined if batch.ungroup is None else joined[batch.ungroup]


def _banded(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, window: int, dropout: float) -> Tensor:
    """Sliding attention as one SDPA call over blocks of the stream.

    A block's queries read the block's keys and ``window`` more on each side; ``unfold`` gives these overlapping keys as
    a view, and ``bias`` hides those of other texts.
    """
    blocks, _, block, span = bias.shape
    tail = blocks * block - len(query)
    q = F.pad(query, (0, 0, 0, 0, 0, tail)).view(blocks, block, *query.shape[1:])  # (blocks, block, heads, head_dim)
    k, v = (
        F.pad(x, (0, 0, 0, 0, window, tail + window)).unfold(0, span, block).permute(0, 1, 3, 2) for x in (key, value)
    )  # (blocks, heads, span, head_dim)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=bias, dropout_p=dropout)
    return out.transpose(1, 2).flatten(0, 1)[: len(query)]


def _flash(query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, window: int | None, dropout: float) -> Tensor:
    """flash-attn's varlen kernel; its window bounds are inclusive, as ours are."""
    from flash_attn import flash_attn_varlen_func

    result: Tensor = flash_attn_varlen_func(
        query,
        key,
        value,
        cu_seqlens_q=batch.bounds,
        cu_seqlens_k=batch.bounds,
        max_seqlen_q=batch.longest,
        max_seqlen_k=batch.longest,
        dropout_p=dropout,
        window_size=(-1, -1) if window is None else (window, window),
    )
    return result


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, window: int | None, dropout: float
) -> Tensor:
    """torch's own varlen kernel, with the same bounds. It has no dropout; the table sends it none."""
    assert dropout == 0
    from torch.nn.attention.varlen import varlen_attn

    result = varlen_attn(
        query,
        key,
        value,
        batch.bounds,
        batch.bounds,
        batch.longest,
        batch.longest,
        window_size=(-1, -1) if window is None else (window, window),
    )
    assert isinstance(result, Tensor)
    return result


class Case(NamedTuple):
    """What a kernel must be able to do: the row to look for in the table."""

    device: str
    capability: tuple[int, int]
    dtype: torch.dtype
    head_dim: int
    unattended: bool
    dropout: bool


Attend = Callable[[Tensor, Tensor, Tensor, PackedBatch, int | None, float], Tensor]


class Kernel(NamedTuple):
    """A way to attend and what it is for; ``installed`` is asked once, and only when the rest fits."""

    name: str
    attend: Attend
    serves: Callable[[Case], bool]
    installed: Callable[[], bool]


def _on_ampere(case: Case) -> bool:
    """Both varlen kernels are FlashAttention-2: CUDA from capability 8.0, 16-bit floats, heads of up to 256 in eights,
    and no key mask."""
    return (
        case.device == "cuda"
        and case.capability >= (8, 0)
        and case.dtype in (torch.float16, torch.bfloat16)
        and case.head_dim % 8 == 0
        and case.head_dim <= 256
        and not case.unattended
    )


@cache
def _has_flash() -> bool:
    return find_spec("flash_attn") is not None


@cache
def _has_varlen() -> bool:
    """torch got varlen attention before it got its window: ask for the argument, not for a version."""
    if find_spec("torch.nn.attention.varlen") is None:
        return False
    from inspect import signature

    from torch.nn.attention.varlen import varlen_attn

    return "window_size" in signature(varlen_attn).parameters


# The first row that serves a case and is installed.
KERNELS = (
    Kernel("flash-attn varlen", _flash, _on_ampere, _has_flash),
    Kernel("torch varlen", _varlen, lambda case: _on_ampere(case) and not case.dropout, _has_varlen),
    Kernel("banded SDPA", _sdpa, lambda _: True, lambda: True),
)


def choose(case: Case) -> Kernel:
    """Return the fastest kernel that serves the case."""
    return next(kernel for kernel in KERNELS if kernel.serves(case) and kernel.installed())


def attend(
    query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, *, window: int | None = None, dropout: float = 0.0
) -> Tensor:
    """Attend within each text: ``out[i] = sum_j softmax_j(query[i] @ key[j] / sqrt(head_dim)) value[j]``.

    j runs over the attended tokens of i's text, and with ``window`` only over those with ``|i - j| <= window``;
    a token that has no such key gets zeros. Shapes: (T, heads, head_dim) each, the result too, in the same dtype.
    """
    device = query.device
    case = Case(
        device=device.type,
        capability=torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0),
        dtype=query.dtype,
        head_dim=query.shape[-1],
        unattended=batch.attended is not None,
        dropout=dropout > 0,
    )
    return choose(case).attend(query, key, value, batch, batch.narrowed(window), dropout)
