"""From tokenized texts to what a step guesses: packed sequences, masked, and cut into micro-batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbretrieve.errors import DataError
from mbretrieve.models.tokenizer import ROLES, Tokenizer
from mbretrieve.training.masking import mask_tokens
from mbretrieve.training.packed_sequences import PackedSequences, Piece
from mbretrieve.training.pretrain_config import PhaseConfig, PretrainConfig
from mbretrieve.training.schedule import batch_size_at
from mbretrieve.training.token_store import TokenStore


@dataclass(frozen=True, slots=True, eq=False)
class MaskedSequence:
    """A packed sequence to learn from: T tokens of B texts, M of them to be guessed.

    ``inputs`` (T,) int64, masked; ``lengths`` tokens a text; ``chosen`` (M,) int64, places in ``inputs``; ``labels``
    (M,) int64, what stood there.
    """

    inputs: NDArray[np.int64]
    lengths: list[int]
    chosen: NDArray[np.int64]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Sequences that go through the model at once, as ``MaskedLanguageModel.forward`` takes them."""

    inputs: Tensor
    lengths: list[int]
    chosen: Tensor
    labels: Tensor


class PhaseSteps:
    """The steps of one phase: which sequences each has, what is masked in them; the same for the same seed.

    Masks are drawn from (seed, phase, step, sequence) alone: they depend on no process and nothing of them is saved.
    """

    def __init__(
        self, config: PretrainConfig, index: int, store: TokenStore, tokenizer: Tokenizer, ranks: int = 1
    ) -> None:
        self.phase, self._config, self._index, self._store, self._ranks = (
            config.phase[index],
            config,
            index,
            store,
            ranks,
        )
        self._prefix, self._suffix = tokenizer.prefix, tokenizer.suffix
        mask = tokenizer.role_id("mask_token")
        if mask is None:
            raise DataError("the tokenizer names no mask_token, expected one: nothing can be masked without it")
        self._mask: int = mask
        special = {*self._prefix, *self._suffix, *(tokenizer.role_id(role) for role in ROLES)}
        self._ordinary = np.array([token for token in range(tokenizer.size) if token not in special], dtype=np.int64)
        _check_batches(self.phase, ranks)
        overhead = len(self._prefix) + len(self._suffix)
        self.packed = PackedSequences(store.lengths, self.phase.length, overhead, self._order)

    def draw(self, step: int) -> list[list[Piece]]:
        """Return the pieces of all sequences of a step (of all processes); steps are drawn in order."""
        return [next(self.packed) for _ in range(batch_size(self.phase, step, self._ranks))]

    def masked(self, step: int, number: int, pieces: Sequence[Piece]) -> MaskedSequence:
        """Fetch and mask one of a step's sequences by its number in the step."""
        own = [self._store.tokens(piece.text, piece.start, piece.length) for piece in pieces]
        parts = [part for tokens in own for part in (self._prefix, tokens, self._suffix)]
        ids = np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
        generator = np.random.default_rng([self._config.run.seed, self._index, step, number])
        inputs, chosen = mask_tokens(ids, self._ordinary, self._mask, generator, self._config.run.mask_rate)
        lengths = [len(tokens) + len(self._prefix) + len(self._suffix) for tokens in own]
        return MaskedSequence(inputs, lengths, np.flatnonzero(chosen), ids[chosen])

    def state(self) -> dict[str, Any]:
        """Return where the data stands behind the last step drawn."""
        return self.packed.state()

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Return an epoch's texts: each source's as often as it says, shuffled all together."""
        generator = np.random.default_rng([self._config.run.seed, self._index, epoch])
        texts = []
        for source in self._config.text:
            if self.phase.texts and source.title not in self.phase.texts:
                continue
            own = np.arange(self._store.sources[source.title].start, self._store.sources[source.title].stop)
            whole, part = divmod(source.repeat, 1)
            texts += [own] * int(whole) + [generator.choice(own, round(part * len(own)), replace=False)]
        return generator.permutation(np.concatenate(texts))


def batch_size(phase: PhaseConfig, step: int, ranks: int = 1) -> int:
    """Return how many sequences a phase's step has, over all processes, a multiple of their number."""
    first = phase.first_batch_size or phase.batch_size
    return batch_size_at(
        step, phase.total_steps, first=first, full=phase.batch_size, warmup=phase.batch_warmup, multiple=ranks
    )


def micro_batches(sequences: Sequence[MaskedSequence], budget: int, device: torch.device) -> list[MicroBatch]:
    """Put sequences together, at most ``budget`` tokens a micro-batch, a longer sequence alone."""
    groups: list[list[MaskedSequence]] = []
    room = 0
    for sequence in sequences:
        if not groups or len(sequence.inputs) > room:
            groups.append([])
            room = budget
        groups[-1].append(sequence)
        room -= len(sequence.inputs)
    return [_joined(group, device) for group in groups]


def _joined(group: Sequence[MaskedSequence], device: torch.device) -> MicroBatch:
    starts = np.cumsum([0, *(len(sequence.inputs) for sequence in group)])
    chosen = [sequence.chosen + start for sequence, start in zip(group, starts, strict=False)]

    def tensor(parts: Sequence[NDArray[np.int64]]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(device, non_blocking=True)

    return MicroBatch(
        inputs=tensor([sequence.inputs for sequence in group]),
        lengths=[length for sequence in group for length in sequence.lengths],
        chosen=tensor(chosen),
        labels=tensor([sequence.labels for sequence in group]),
    )


def _check_batches(phase: PhaseConfig, ranks: int) -> None:
    for name, size in (
        ("batch_size", phase.batch_size),
        ("first_batch_size", phase.first_batch_size or phase.batch_size),
    ):
        if size % ranks:
            raise DataError(f"phase {phase.name!r}: {name} is {size}, expected a multiple of the {ranks} processes")
