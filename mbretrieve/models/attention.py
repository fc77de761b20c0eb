"""Attention over a packed stream: what a batch looks like to a kernel, the kernels, and the table that chooses one.

A stream is the texts of a batch one after another, without padding: queries, keys and values are (T, heads, head_dim).
A token attends within its own text; in a sliding layer only to keys at a distance of at most ``window``.
"""

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from importlib.util import find_spec
from inspect import signature
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mbretrieve.models.tiles import Tiles, attend_tiles, cut_tiles
from mbretrieve.models.transfer import to_device

# SDPA's CPU kernel reads keys in tiles: in bfloat16, 255 keys take it 1.5 times as long as 256, one of them masked.
_TILE = 16


class Run(NamedTuple):
    """Neighbours of one length in the stream: they share an SDPA call, which reads them as views of the stream.

    A text's keys are taken up to whole tiles: ``span`` of them, the last ``span - length`` being other texts', masked.
    """

    start: int
    texts: int
    length: int

    @property
    def span(self) -> int:
        """How many keys a text's queries read."""
        return -(-self.length // _TILE) * _TILE

    def queries(self, stream: Tensor) -> Tensor:
        """Cut the run out of a stream (T, heads, head_dim), as (texts, heads, length, head_dim)."""
        cut = stream[self.start : self.start + self.texts * self.length]
        return cut.view(self.texts, self.length, *stream.shape[1:]).transpose(1, 2)

    def keys(self, stream: Tensor) -> Tensor:
        """The same for keys or values: (texts, heads, span, head_dim)."""
        tokens = (self.texts - 1) * self.length + self.span
        cut = stream[self.start : self.start + tokens]
        if len(cut) < tokens:  # the stream ends with this run
            cut = _padded(cut, 0, tokens - len(cut))
        return cut.unfold(0, self.span, self.length).transpose(2, 3)


class PackedBatch:
    """The shape of one packed batch, and what kernels derive from it: made once, used by every layer.

    ``lengths`` are the texts' lengths in tokens, in stream order. ``attended`` is (T,) bool or None: a token that is
    False is nobody's key, though it is a query itself. ``dtype`` is that of the queries, keys and values.
    Raises: ValueError if there is no text or a length is below 1.
    """

    def __init__(
        self, lengths: Sequence[int], *, device: torch.device, dtype: torch.dtype, attended: Tensor | None = None
    ) -> None:
        if not lengths or min(lengths) < 1:
            raise ValueError(
                f"{len(lengths)} lengths, one below 1: expected at least one text, each of 1 token or more"
            )
        self.device, self.dtype, self.attended = device, dtype, attended
        self.tokens, self.longest = sum(lengths), max(lengths)
        self.lengths = torch.tensor(lengths)
        self._tiles: dict[int | None, Tiles] = {}
        self._masks: dict[int | None, list[Tensor | None]] = {}
        self._bands: dict[int, Tensor] = {}
        self.runs: list[Run] = []
        start = 0
        for length, same in groupby(lengths):
            self.runs.append(Run(start, len(list(same)), length))
            start += self.runs[-1].texts * length

    @cached_property
    def bounds(self) -> Tensor:
        """Where texts start and end in the stream, (B + 1,) int32: what varlen kernels call cu_seqlens."""
        return to_device(F.pad(self.lengths.cumsum(0), (1, 0)).to(torch.int32), self.device)

    @cached_property
    def text_of(self) -> Tensor:
        """Which text each token belongs to, (T,) int64."""
        return self._by_token(torch.arange(len(self.lengths), device=self.device))

    @cached_property
    def positions(self) -> Tensor:
        """Each token's place in its text, (T,) int64."""
        return torch.arange(self.tokens, device=self.device) - self._by_token(self.bounds[:-1].long())

    def _by_token(self, of_texts: Tensor) -> Tensor:
        """Repeat what each text has for each of its tokens: (B,) -> (T,).

        Made on the device, of the bounds alone: they are all that is copied to it, whatever the tokens. Told how many
        there will be, it does not make the host wait to hear it.
        """
        return of_texts.repeat_interleave(self.bounds.diff(), output_size=self.tokens)

    def tiles(self, window: int | None) -> Tiles:
        """How the stream is cut where gradients are needed and no flash kernel serves."""
        if window not in self._tiles:
            self._tiles[window] = cut_tiles(self.lengths.tolist(), window, self.attended, self.device)
        return self._tiles[window]

    def masks(self, window: int | None) -> list[Tensor | None]:
        """For each run the mask of its SDPA call, (texts or 1, 1, length or 1, span); None where all is attended."""
        if window not in self._masks:
            self._masks[window] = [self._mask(run, window) for run in self.runs]
        return self._masks[window]

    def _mask(self, run: Run, window: int | None) -> Tensor | None:
        place = torch.arange(run.span, device=self.device)
        allowed = (place < run.length).view(1, 1, 1, run.span)
        if self.attended is not None:
            own = self.attended[run.start : run.start + run.texts * run.length].view(run.texts, 1, 1, run.length)
            allowed = F.pad(own, (0, run.span - run.length))
        if window is not None and window < run.length - 1:
            allowed = allowed & ((place - place[: run.length, None]).abs() <= window)
        elif self.attended is None and run.span == run.length:
            return None
        return self._bias(allowed)

    def band(self, window: int) -> Tensor:
        """The mask of a sliding layer cut into blocks (see ``_in_blocks``), (blocks, 1, block, block + 2 window)."""
        if window not in self._bands:
            block, span = _block(window)
            blocks = -(-self.tokens // block)
            tail = blocks * block - self.tokens
            # The padding on both sides counts as one more text, -1, so that padded queries have keys to attend to.
            queries = F.pad(self.text_of, (0, tail), value=-1).view(blocks, block, 1)
            keys = self.text_of if self.attended is None else self.text_of.masked_fill(~self.attended, -2)
            keys = F.pad(keys, (window, tail + window), value=-1).unfold(0, span, block).unsqueeze(1)
            # Key slot j of a block lies j - window - i tokens after query i.
            place = torch.arange(span, device=self.device)
            near = (place - window - place[:block, None]).abs() <= window
            self._bands[window] = self._bias(((queries == keys) & near).unsqueeze(1))
        return self._bands[window]

    def _bias(self, allowed: Tensor) -> Tensor:
        """0 where allowed, -inf elsewhere: of a bool mask SDPA would make the same again in every layer."""
        return torch.zeros(allowed.shape, dtype=self.dtype, device=self.device).masked_fill_(~allowed, float("-inf"))


def _block(window: int) -> tuple[int, int]:
    """How many queries a block has and how many keys it reads: twice as many, so that half of them are its own."""
    block = max(64, 2 * window)
    return block, block + 2 * window


def _sdpa(query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, window: int | None, dropout: float) -> Tensor:
    """torch's scaled_dot_product_attention: any device, any dtype, any mask.

    Measured on CPU, a call for each run is as fast as padded groups are, from texts of 32 tokens on. A sliding layer is
    cut into blocks once a text is longer than the keys that a block reads.
    """
    if window is not None and batch.longest > _block(window)[1]:
        return _in_blocks(query, key, value, batch.band(window), window, dropout)
    out = []
    for run, mask in zip(batch.runs, batch.masks(window), strict=True):
        q, k, v = run.queries(query), run.keys(key), run.keys(value)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        out.append(mixed.transpose(1, 2).flatten(0, 1))
    return out[0] if len(out) == 1 else torch.cat(out)


def _in_blocks(query: Tensor, key: Tensor, value: Tensor, band: Tensor, window: int, dropout: float) -> Tensor:
    """Sliding attention as one SDPA call over blocks of the stream.

    A block's queries read the block's keys and ``window`` more on each side; ``unfold`` gives these overlapping keys as
    a view, and ``band`` hides those of other texts.
    """
    blocks, _, block, span = band.shape
    tail = blocks * block - len(query)
    q = _padded(query, 0, tail).view(blocks, block, *query.shape[1:]).transpose(1, 2)
    k, v = (_padded(x, window, tail + window).unfold(0, span, block).transpose(2, 3) for x in (key, value))
    # q: (blocks, heads, block, head_dim); k and v: (blocks, heads, span, head_dim)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=band, dropout_p=dropout)
    return mixed.transpose(1, 2).flatten(0, 1)[: len(query)]


def _padded(stream: Tensor, before: int, after: int) -> Tensor:
    """Add rows of zeros at both ends. F.pad would fill the whole of the new stream first, to no purpose."""
    rows = stream.new_zeros(max(before, after), *stream.shape[1:])
    return torch.cat((rows[:before], stream, rows[:after]))


def _by_tiles(
    query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, window: int | None, dropout: float
) -> Tensor:
    """Attention written out, with a backward of its own. It has no dropout; the table sends it none."""
    assert dropout == 0
    return attend_tiles(query, key, value, batch.tiles(window))


def _flash(query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, window: int | None, dropout: float) -> Tensor:
    """flash-attn's varlen kernel; its window bounds are inclusive, as ours are."""
    from flash_attn import flash_attn_varlen_func

    mixed: Tensor = flash_attn_varlen_func(
        query,
        key,
        value,
        cu_seqlens_q=batch.bounds,
        cu_seqlens_k=batch.bounds,
        max_seqlen_q=batch.longest,
        max_seqlen_k=batch.longest,
        dropout_p=dropout,
        window_size=_bounds(window),
    )
    return mixed


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, window: int | None, dropout: float
) -> Tensor:
    """torch's own varlen kernel, with the same bounds. It has no dropout; the table sends it none."""
    from torch.nn.attention.varlen import varlen_attn

    assert dropout == 0
    mixed = varlen_attn(
        query,
        key,
        value,
        cu_seq_q=batch.bounds,
        cu_seq_k=batch.bounds,
        max_q=batch.longest,
        max_k=batch.longest,
        window_size=_bounds(window),
    )
    assert isinstance(mixed, Tensor)
    return mixed


def _bounds(window: int | None) -> tuple[int, int]:
    """How far to look left and right, in FlashAttention's words: -1 is without limit."""
    return (-1, -1) if window is None else (window, window)


class Case(NamedTuple):
    """What is asked of a kernel: the key of the table."""

    device: str
    capability: tuple[int, int]
    dtype: torch.dtype
    head_dim: int
    unattended: bool
    dropout: bool
    learning: bool


Attend = Callable[[Tensor, Tensor, Tensor, PackedBatch, int | None, float], Tensor]


class Kernel(NamedTuple):
    """A way to attend and the cases it serves; ``installed`` is asked only where it would serve."""

    name: str
    attend: Attend
    serves: Callable[[Case], bool]
    installed: Callable[[], bool]


def _flash_serves(case: Case) -> bool:
    """FlashAttention-2: CUDA from capability 8.0, 16-bit floats, heads of up to 256 in eights, no key mask."""
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
    """torch had varlen attention before it had the window: ask for the argument, not for a version."""
    if find_spec("torch.nn.attention.varlen") is None:
        return False
    # Here, not above: this module pulls in torch._dynamo, which a search on a CPU should not wait for.
    from torch.nn.attention.varlen import varlen_attn

    return "window_size" in signature(varlen_attn).parameters


KERNELS = (
    Kernel("flash-attn varlen", _flash, _flash_serves, _has_flash),
    Kernel("torch varlen", _varlen, lambda case: _flash_serves(case) and not case.dropout, _has_varlen),
    Kernel("tiles", _by_tiles, lambda case: case.learning and not case.dropout, lambda: True),
    Kernel("banded SDPA", _sdpa, lambda _: True, lambda: True),
)


@cache
def choose(case: Case) -> Kernel:
    """Return the table's first kernel that serves the case and is installed."""
    return next(kernel for kernel in KERNELS if kernel.serves(case) and kernel.installed())


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    batch: PackedBatch,
    *,
    window: int | None = None,
    dropout: float = 0.0,
    training: bool = False,
) -> Tensor:
    """Attend within each text: ``out[i] = sum_j softmax_j(query[i] @ key[j] / sqrt(head_dim)) value[j]``.

    j runs over the attended tokens of i's text, and with ``window`` only over those with ``|i - j| <= window``;
    a token without any such key gets zeros. ``training``: take the kernel that gradients need even where none are asked
    for, so that a forward with and one without them round alike.
    Shapes: (T, heads, head_dim) each, and the result, in the same dtype.
    """
    device = query.device
    case = Case(
        device=device.type,
        capability=torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0),
        dtype=query.dtype,
        head_dim=query.shape[-1],
        unattended=batch.attended is not None,
        dropout=dropout > 0,
        learning=training or (torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))),
    )
    # A window that no text fills is no limit: the global kernel then needs no mask.
    limit = None if window is None or window >= batch.longest - 1 else window
    return choose(case).attend(query, key, value, batch, limit, dropout)
