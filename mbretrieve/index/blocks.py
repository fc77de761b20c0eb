"""The blocks of FAISS's fast-scan lists: how 4-bit codes lie in them, and where a list's blocks lie in a file."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
"""Tokens in one of FAISS's blocks."""
PIECE = 32  # bytes: codes (32 * width) and rows (32 * 8) of a block are both multiples of it
ROW_PIECES = BLOCK * 8 // PIECE

Integers = NDArray[np.int64]
Bytes = NDArray[np.uint8]


class Places(NamedTuple):
    """Where consecutive lists keep their tokens: ``slots`` (tokens,) in blocks of 32, and the pieces of 32 bytes that
    hold the codes (blocks, width) and rows (blocks, 8) of each block."""

    slots: Integers
    codes: Integers
    rows: Integers


def find_places(sizes: Integers, width: int) -> Places:
    """Return where lists of these sizes, one behind the other, keep their tokens with codes of ``width`` bytes."""
    blocks = count_blocks(sizes)
    first_token, first_block = exclusive_sum(sizes)[:-1], exclusive_sum(blocks)[:-1]
    slots = np.arange(sizes.sum()) + np.repeat(first_block * BLOCK - first_token, sizes)
    block = np.arange(blocks.sum())
    # A block's codes stand behind the codes of the blocks before it in its list, and all of the lists before; its rows
    # behind the rows of those before it, and all codes of its list.
    codes = block * width + np.repeat(first_block * ROW_PIECES, blocks)
    rows = block * ROW_PIECES + np.repeat((first_block + blocks) * width, blocks)
    return Places(slots, codes[:, None] + np.arange(width), rows[:, None] + np.arange(ROW_PIECES))


def pack_blocks(codes: Bytes) -> Bytes:
    """Arrange codes (32 b, width) as FAISS's blocks (b, width, 32).

    The 32 bytes for byte c of the codes (sub-quantizers 2c, 2c + 1) hold first the low, then the high nibbles of the
    32 tokens, two in each byte: token t in the low and t + 16 in the high one; t in the order 0, 8, 1, 9, ... 7, 15.
    """
    tokens = codes.reshape(-1, 2, 2, 8, codes.shape[1])  # token = 16 half + 8 eighth + rest
    halves = np.ascontiguousarray(tokens.transpose(1, 0, 4, 3, 2))  # (half, block, byte, rest, eighth)
    low, high = halves
    packed = np.empty((len(tokens), codes.shape[1], 2, 8, 2), dtype=np.uint8)
    packed[:, :, 0] = (low & 15) | (high << 4)
    packed[:, :, 1] = (low >> 4) | (high & 240)
    return packed.reshape(-1, codes.shape[1], BLOCK)


def unpack_blocks(packed: Bytes) -> Bytes:
    """Return the codes (32 b, width) of FAISS's blocks (b, width, 32)."""
    nibbles = packed.reshape(-1, packed.shape[1], 2, 8, 2)
    tokens = np.empty((len(packed), 2, 2, 8, packed.shape[1]), dtype=np.uint8)
    low, high = nibbles[:, :, 0], nibbles[:, :, 1]
    tokens[:, 0] = ((low & 15) | (high << 4)).transpose(0, 3, 2, 1)
    tokens[:, 1] = ((low >> 4) | (high & 240)).transpose(0, 3, 2, 1)
    return tokens.reshape(-1, packed.shape[1])


def count_blocks(sizes: Integers) -> Integers:
    """Return how many blocks hold each of these numbers of tokens."""
    return -(-sizes // BLOCK)


def exclusive_sum(values: Integers) -> Integers:
    """Return the sums of all values before each, and of all: one number more than values."""
    return np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
