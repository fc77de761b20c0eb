"""Text into the words that full-text search compares.

An identifier is a word whole and in its parts, accents are folded beside being kept, scripts written without spaces
become pairs of characters, and an emoji is a word. A word holds letters, digits, marks, emoji and underscores only.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

MAX_WORD = 100  # longer runs of letters are data, not words: their beginning is kept
MAX_TERMS = 64  # of a query; the first ones
MIN_PREFIX = 3  # shorter words are not completed: too many words begin so

# Combining marks: Python's \w leaves them out, which would cut words of Indic and Semitic scripts apart.
_MARKS = (
    "\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670"
    "\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u0711\u0730-\u074a\u07a6-\u07b0\u0816-\u082d\u0859-\u085b"
    "\u08d3-\u0903\u093a-\u094f\u0951-\u0957\u0962\u0963\u0981-\u0983\u09bc-\u09cd\u09d7\u09e2\u09e3\u0a01-\u0a03"
    "\u0a3c-\u0a51\u0a70\u0a71\u0a75\u0a81-\u0a83\u0abc-\u0acd\u0ae2\u0ae3\u0b01-\u0b03\u0b3c-\u0b57\u0b62\u0b63\u0b82"
    "\u0bbe-\u0bcd\u0bd7\u0c00-\u0c04\u0c3c-\u0c56\u0c62\u0c63\u0c81-\u0c83\u0cbc-\u0cd6\u0ce2\u0ce3\u0d00-\u0d03"
    "\u0d3b-\u0d4d\u0d57\u0d62\u0d63\u0d81-\u0d83\u0dca-\u0df3\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc"
    "\u0ec8-\u0ecd\u0f18\u0f19\u0f35\u0f37\u0f39\u0f3e\u0f3f\u0f71-\u0f84\u0f86\u0f87\u0f8d-\u0fbc\u102b-\u103e"
    "\u1056-\u1059\u105e-\u1060\u1062-\u1064\u1067-\u106d\u1071-\u1074\u1082-\u108d\u17b4-\u17d3\u17dd\u1ab0-\u1aff"
    "\u1dc0-\u1dff\u20d0-\u20ff\u302a-\u302f\u3099\u309a"
)
_EMOJI = "\u203c\u2049\u2190-\u21ff\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff"
# Han, kana, Hangul, and the South-East Asian scripts that are written without spaces.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003fffd"
)
_INVISIBLE = dict.fromkeys([0xAD, 0x200C, 0x200D, 0xFE0E, 0xFE0F])  # soft hyphen, joiners, variants of emoji
_ASCII_WORD = re.compile(r"\w+", re.ASCII)
_WORD = re.compile(rf"[{_EMOJI}]|\w[\w{_MARKS}]*")
_RUN = re.compile(rf"[{_UNSPACED}]+|[^{_UNSPACED}]+")
_UNSPACED_RUN = re.compile(rf"[{_UNSPACED}]+")
_PART = re.compile(r"[A-Z]+s?(?![a-z])|[A-Z]?[a-z]+|[0-9]+")  # HTTPServer: HTTP, Server; getURLs: get, URLs

_STOP_WORDS = """
a about all also am an and any are as at be because been being but by can could did do does doing for from get had has
have having he her here him his how i if in into is it its just like may me might my no not of on one or our out over
she should so some such than that the their them then there these they this those through to too under up use used
using very was we were what when where which while who why will with would you your
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


def tokenize(text: str) -> list[str]:
    """Return the words of a text to be stored, in order.

    ``HTTPServer2Error`` gives httpserver2error, http, server, 2 and error; ``Café`` gives café and cafe; ``東京都``
    gives 東京, 京都 and 都, so that a search for one character finds it as a whole or as the beginning of a pair.
    """
    return [word for raw in _raw_words(text) for word in _words(raw)]


def content_words(context: str, text: str) -> list[str]:
    """Return the words under which a document is found: its context's and its text's."""
    return tokenize(f"{context}\n{text}")


def query_words(query: str) -> list[str]:
    """Return the words to search for a query, each once, the first MAX_TERMS.

    English stop words are left out where other words remain.
    """
    words = list(dict.fromkeys(word for raw in _raw_words(query) for word in _query_words(raw)))
    return ([word for word in words if word not in STOP_WORDS] or words)[:MAX_TERMS]


def is_beginning(word: str) -> bool:
    """Tell whether a word is also searched as the beginning of others: one character of a script without spaces is."""
    return len(word) >= MIN_PREFIX or (len(word) == 1 and _UNSPACED_RUN.fullmatch(word) is not None)


def _raw_words(text: str) -> Iterator[str]:
    if text.isascii():
        return iter(_ASCII_WORD.findall(text))
    return iter(_WORD.findall(unicodedata.normalize("NFKC", text.translate(_INVISIBLE))))


@lru_cache(maxsize=1 << 16)
def _words(raw: str) -> tuple[str, ...]:
    """Return a raw word and its parts, as they are stored."""
    return tuple(dict.fromkeys(_split(raw, last_alone=True)))


@lru_cache(maxsize=1 << 10)
def _query_words(raw: str) -> tuple[str, ...]:
    """Return a raw word and its parts, as they are searched: a pair of characters says more than its second half."""
    return tuple(dict.fromkeys(_split(raw, last_alone=False)))


def _split(raw: str, *, last_alone: bool) -> Iterator[str]:
    if raw.isascii():
        yield from _identifier(raw)
        return
    for run in _RUN.findall(raw[: 20 * MAX_WORD]):
        if _UNSPACED_RUN.fullmatch(run):
            yield from (run[i : i + 2] for i in range(len(run) - 1))
            if last_alone or len(run) == 1:
                yield run[-1]
            continue
        if whole := run.strip("_").lower()[:MAX_WORD]:
            yield whole
        folded = "".join(c for c in unicodedata.normalize("NFD", run) if not unicodedata.combining(c))
        if folded.isascii():
            yield from _identifier(folded)
        elif folded := folded.strip("_").lower()[:MAX_WORD]:
            yield folded


def _identifier(raw: str) -> Iterator[str]:
    """Yield an ASCII identifier whole and in parts: camelCase, PascalCase, snake_case, digits."""
    if whole := raw.strip("_").lower()[:MAX_WORD]:
        yield whole
        yield from (part.lower() for part in _PART.findall(raw[:MAX_WORD]))
