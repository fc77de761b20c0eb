"""Bytes of a file to text, and its hash."""

import hashlib
import os
import stat
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from mbretrieve.corpus.leave_out import byte_limit
from mbretrieve.corpus.records import SkipFile, SourceFile, WalkOptions

_CHUNK = 1 << 20
# The longest first: UTF-32's mark begins with UTF-16's.
_MARKS = (
    (BOM_UTF32_LE, "utf-32-le"),
    (BOM_UTF32_BE, "utf-32-be"),
    (BOM_UTF8, "utf-8"),
    (BOM_UTF16_LE, "utf-16-le"),
    (BOM_UTF16_BE, "utf-16-be"),
)
# A text may hold a few null bytes or control characters, of a short one even half; machine code is full of them.
_MOST_NULS = 0.01
_MOST_CONTROLS = 0.1
_ALWAYS_ALLOWED = 8
_MOST_LEGACY = 0.3  # at most so many bytes beyond ASCII in a text that is not UTF-8
_CONTROLS = bytes({*range(32)} - {*b"\t\n\v\f\r\x1b"})


@contextmanager
def opened(file: SourceFile) -> Iterator[BinaryIO]:
    """Open a file for reading bytes; SkipFile if that fails, or if it is a regular file no more.

    O_NONBLOCK, because opening a pipe that has taken the file's place since the walk would wait for a writer for ever.
    """
    try:
        handle = os.open(file.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as stream:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise SkipFile("not a regular file")
            yield stream
    except FileNotFoundError:
        raise SkipFile("unreadable", "gone since the folder was walked") from None
    except OSError as error:
        raise SkipFile("unreadable", error.strerror or str(error)) from None


def read_bytes(file: SourceFile, options: WalkOptions) -> bytes:
    """Read a file whole; SkipFile if it cannot be read or has grown over its limit since the walk."""
    limit = byte_limit(file.name, options.max_bytes)
    with opened(file) as stream:
        data = stream.read(-1 if limit is None else limit + 1)
    if limit is not None and len(data) > limit:
        raise SkipFile("over the size limit", "it has grown since the folder was walked")
    return data


def content_hash(file: SourceFile) -> str:
    """Return the BLAKE2b hash of a file's bytes, 32 hexadecimal digits, read in pieces. Raises: SkipFile."""
    digest = hashlib.blake2b(digest_size=16)
    with opened(file) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def decode(data: bytes) -> str:
    """Return the text of a file: UTF-8, UTF-16 or UTF-32 with a byte order mark (taken off), else Windows-1252.

    Windows-1252 is for a source file with a few old accents in its comments, which should not be lost: it needs bytes
    that are mostly ASCII (its five undefined bytes are read as Latin-1). A few null bytes are text; line ends stay.
    Raises: SkipFile if the bytes are binary or in no encoding that can be told.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return data[len(mark) :].decode(encoding)
            except UnicodeDecodeError as error:
                raise SkipFile("not decodable", f"marked {encoding}: {error.reason} at byte {error.start}") from None
    controls = len(data) - len(data.translate(None, _CONTROLS))
    most_nuls, most_controls = (max(share * len(data), _ALWAYS_ALLOWED) for share in (_MOST_NULS, _MOST_CONTROLS))
    if data.count(0) > most_nuls or controls > most_controls:
        raise SkipFile("binary")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return _decode_legacy(data)


def _decode_legacy(data: bytes) -> str:
    beyond_ascii = len(data) - len(data.translate(None, bytes(range(128, 256))))
    if 0 in data or beyond_ascii > _MOST_LEGACY * len(data):
        raise SkipFile("not decodable", "neither UTF-8 nor mostly ASCII")
    return "".join(_LEGACY[byte] for byte in data) if beyond_ascii else data.decode("ascii")


_LEGACY = [bytes([byte]).decode("cp1252", "replace") for byte in range(256)]
_LEGACY = [chr(byte) if char == "\N{REPLACEMENT CHARACTER}" else char for byte, char in enumerate(_LEGACY)]
