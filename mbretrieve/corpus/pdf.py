"""PDF to passages, a page each, by pypdf."""

import io
import logging
import time

from mbretrieve.corpus.lines import Passage
from mbretrieve.corpus.records import SkipFile

PAGES = 5000
SECONDS = 120.0  # for one file; looked at between pages
_PAGE_CHARS = 100_000  # a page of print has some 5,000; more comes from a broken or hostile file


def read_pdf(data: bytes) -> list[Passage]:
    """Return the text of each page that has any, with its number in ``extra["page"]``; lines count through them.

    A page that cannot be read is passed over; so is what lies beyond the limits of pages and of time.
    Raises: SkipFile if the file is no PDF, is encrypted, or has no text (a scan).
    """
    import pypdf

    # It warns of every irregularity on the way; what matters comes as an error.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    reader = pypdf.PdfReader(io.BytesIO(data), strict=False)
    if reader.is_encrypted and not reader.decrypt(""):
        raise SkipFile("encrypted", "a PDF with a password")
    title = _title(reader)
    deadline = time.monotonic() + SECONDS
    passages: list[Passage] = []
    failure = "a scan without a text layer?"
    line = 1
    for number in range(min(len(reader.pages), PAGES)):
        if time.monotonic() > deadline:
            failure = f"not done after {SECONDS:.0f} seconds"
            break
        try:
            text = reader.pages[number].extract_text()[:_PAGE_CHARS].strip()
        except Exception as error:  # pypdf meets hostile files with whatever its own code trips over
            failure = f"{type(error).__name__}: {error}"
            continue
        if text:
            name = f"page {number + 1}"
            last = line + text.count("\n")
            passages.append(Passage(text, line, last, "section", name, title, {"page": number + 1}))
            line = last + 2  # with a blank line between
    if not passages:
        raise SkipFile("no text", failure)
    return passages


def _title(reader: "pypdf.PdfReader") -> str:  # type: ignore[name-defined]  # noqa: F821
    try:
        return " ".join((reader.metadata.title or "").split())
    except Exception:  # a title is welcome, not needed
        return ""
