"""Sizes in bytes, as people write and read them."""

import re

from mbretrieve.errors import DataError

_SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([kmgt])(i?)b?", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}
LEAST_MEMORY = 64 << 20
"""An index is not built in less: below, codebooks would be trained on too little."""


def parse_memory(text: str) -> int:
    """Read ``2GiB``, ``512MiB`` or ``1G`` as bytes; without the i, and with a B, the units are powers of 1,000.

    Raises: DataError for what is no size, or is below LEAST_MEMORY.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise DataError(f"--memory {text}: not a size; write a number and a unit, as in 512MiB or 2GiB")
    number, unit, binary = match.groups()
    decimal = not binary and text.strip().lower().endswith("b")
    size = int(float(number) * (1000 if decimal else 1024) ** _POWERS[unit.lower()])
    if size < LEAST_MEMORY:
        raise DataError(f"--memory {text}: too little to build an index in; give {LEAST_MEMORY >> 20}MiB or more")
    return size


def memory_of(text: str | None) -> int:
    """Return the bytes that ``--memory`` names; None: as many as a writer takes by itself. Raises: as parse_memory."""
    from mbretrieve.index.store import MEMORY

    return MEMORY if text is None else parse_memory(text)


def human_size(size: int) -> str:
    """Spell a number of bytes: 17.0 MB."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
