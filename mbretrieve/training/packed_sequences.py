"""Greedy sequence packing: texts of any length into sequences of one, so that each step sees as many tokens."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_WASTE = 0.02  # of a sequence: room beyond it is filled with the beginning of a text that is too long for it
_WAITING = 1024  # texts to choose from


class Piece(NamedTuple):
    """A run of one text's own tokens: all of them, or a part of a text that was cut."""

    text: int
    start: int
    length: int


class PackedSequences:
    """An endless stream of packed sequences, each a list of pieces that together fill ``capacity`` tokens but for 2%.

    ``lengths`` (N,) are the texts' own tokens; each piece costs ``overhead`` tokens more (the special ones around it),
    since each is attended to alone. ``order(epoch)`` gives the texts of an epoch, as indices; epochs follow each other
    without a seam. A sequence begins with the text that has waited longest, so that none waits forever and the order
    stays that of ``order``; then the longest of the waiting texts that fits is added, until none does (best fit, as in
    ModernBERT's training). If more than 2% are then free, a text is cut there, and its rest begins the next sequence.
    Texts longer than a sequence are thereby cut, not cut off.
    Raises: ValueError if a piece of one token does not fit, or an epoch has no token.
    """

    def __init__(
        self, lengths: NDArray[np.int64], capacity: int, overhead: int, order: Callable[[int], NDArray[np.int64]]
    ) -> None:
        if capacity <= overhead:
            raise ValueError(f"capacity is {capacity} tokens, expected more than the {overhead} around each text")
        self.lengths, self.capacity, self.overhead, self._order = lengths, capacity, overhead, order
        self._epoch, self._drawn = 0, 0
        self._texts = self._begin_epoch()
        self._arrived = 0
        self._waiting: dict[int, Piece] = {}  # by the number of their arrival, so the first is the oldest
        self._by_length: list[tuple[int, int]] = []  # (length, number) of those that wait
        self._rest: Piece | None = None  # of the text that was cut last

    def __next__(self) -> list[Piece]:
        """Return the next sequence's pieces."""
        self._refill()
        pieces = [self._oldest(self.capacity - self.overhead)]
        room = self.capacity - pieces[0].length - self.overhead
        while (piece := self._fitting(room)) is not None:
            pieces.append(piece)
            room -= piece.length + self.overhead
        return pieces

    def state(self) -> dict[str, Any]:
        """Return where the stream stands, as JSON can say it."""
        waiting = [list(piece) for piece in self._waiting.values()]
        rest = None if self._rest is None else list(self._rest)
        return {"epoch": self._epoch, "drawn": self._drawn, "waiting": waiting, "rest": rest}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken: the next sequence is the one that came next there."""
        self._epoch, self._drawn = int(state["epoch"]), int(state["drawn"])
        self._texts = self._begin_epoch()
        self._waiting.clear()
        self._by_length.clear()
        for piece in state["waiting"]:
            self._wait(Piece(*map(int, piece)))
        self._rest = None if state["rest"] is None else Piece(*map(int, state["rest"]))

    def _begin_epoch(self) -> NDArray[np.int64]:
        texts = self._order(self._epoch)
        if not self.lengths[texts].any():
            raise ValueError("an epoch has no token, expected texts")
        return texts

    def _refill(self) -> None:
        while len(self._waiting) < _WAITING:
            if self._drawn == len(self._texts):
                self._epoch, self._drawn = self._epoch + 1, 0
                self._texts = self._begin_epoch()
            text = int(self._texts[self._drawn])
            self._drawn += 1
            if length := int(self.lengths[text]):
                self._wait(Piece(text, 0, length))

    def _wait(self, piece: Piece) -> None:
        insort(self._by_length, (piece.length, self._arrived))
        self._waiting[self._arrived] = piece
        self._arrived += 1

    def _fitting(self, room: int) -> Piece | None:
        """Take the longest waiting text that fits into what is left of a sequence, or a part of one, or nothing."""
        own = room - self.overhead
        if own < 1:
            return None
        fits = bisect_right(self._by_length, (own, self._arrived)) - 1
        if fits >= 0:
            length, _ = self._by_length[fits]
            fits = bisect_left(self._by_length, (length, -1))  # of equally long ones, that which waited longest
            return self._waiting.pop(self._by_length.pop(fits)[1])
        return self._oldest(own) if room > _WASTE * self.capacity else None

    def _oldest(self, own: int) -> Piece:
        """Take the text that waited longest, or the rest of the one cut last, at most ``own`` tokens of it."""
        piece, self._rest = self._rest, None
        if piece is None:
            number = next(iter(self._waiting))
            piece = self._waiting.pop(number)
            del self._by_length[bisect_left(self._by_length, (piece.length, number))]
        if piece.length > own:
            self._rest = Piece(piece.text, piece.start + own, piece.length - own)
        return piece._replace(length=min(own, piece.length))
