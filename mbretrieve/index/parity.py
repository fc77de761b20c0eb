"""Parity: the XOR of some blocks of a file, from which any one of them follows if the others are there.

Which one is damaged is said by its checksum, so that one parity block is enough to restore it.
"""

import numpy as np

GROUP = 256
"""Blocks that share a parity block, at most: 4 MiB of a file, so that its parity takes 0.4% of it. One block for all of
a large file would restore hardly more than a small file's; one for every few would make the catalogue grow."""


class Parity:
    """The parity of a file's blocks, ``rows`` (groups, bytes): block i is in group i % groups. Neighbours are then in
    different ones, and a stretch of a large file is restored that is as many blocks long as it has groups."""

    def __init__(self, size: int, block: int) -> None:
        """Begin with no block of a file of ``size`` bytes in blocks of ``block``, the last perhaps shorter."""
        self.rows = np.zeros((-(-size // (block * GROUP)), min(size, block)), dtype=np.uint8)

    def add(self, number: int, data: bytes) -> None:
        """Add a block's bytes; those that its group has more count as 0. Added again, it is taken away."""
        self.rows[self.group(number), : len(data)] ^= np.frombuffer(data, dtype=np.uint8)

    def group(self, number: int) -> int:
        """Return the group of a block."""
        return number % len(self.rows)

    def begin(self, parity: bytes) -> bool:
        """Begin with the parity of all blocks instead; returns whether it can be this file's."""
        if len(parity) != self.rows.nbytes:
            return False
        self.rows[:] = np.frombuffer(parity, dtype=np.uint8).reshape(self.rows.shape)
        return True
