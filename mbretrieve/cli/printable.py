"""Text of unknown origin made fit for a terminal."""

import unicodedata

# Cc: escape sequences would move the cursor, rename the window or answer in the user's name. Cs: cannot be encoded.
# The bidirectional controls reorder what is read ("Trojan Source", CVE-2021-42574); right-to-left letters need none.
_UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """Return the text with every control character but the tab spelled as its escape (``\\x1b``); line feeds too."""
    if text.isprintable():  # true of most lines, and fast
        return text
    return "".join(_spell(character) for character in text)


def _spell(character: str) -> str:
    if character == "\t" or not (unicodedata.category(character) in _UNPRINTABLE or character in _BIDI):
        return character
    return character.encode("unicode_escape").decode("ascii")
