"""Pairs out of prose alone: a sentence asks for the passage it was taken from (inverse cloze task, arXiv 1906.00300).

    python examples/mini/sentences.py --output mini/pairs/sentences.jsonl.gz mini/pairs/technical_prose.jsonl.gz

Headings are short and share their words with their text; a sentence says something, and its passage says what goes
with that in other words. Of each pair's positive one sentence is drawn, the same one in every run; from nine passages
of ten it is missing, and in front of half of them stands their heading.
"""

import argparse
import gzip
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mbretrieve.errors import MbretrieveError
from mbretrieve.jsonl import read_objects

_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_POINTS_BACK = re.compile(
    r"(?:this|these|that|those|it|they|he|she|for example|see|note|however|also|in addition)\b", re.IGNORECASE
)
_PLAIN = re.compile(r"[A-Za-z]{2,}")
_LEAST_REST = 20  # words of what is left of the passage
_WORDS = range(6, 36)  # of a sentence
_LEAST_PLAIN = 0.7  # share of a sentence's words that are words
_STAYS = 0.1  # share of passages that keep the sentence


def sentence_pair(row: Mapping[str, Any]) -> dict[str, str] | None:
    """Draw a sentence of a row's positive; None if it has none that is prose, or says little besides."""
    text = str(row["positive"])
    sentences = _END.split(text)
    asking = [place for place, sentence in enumerate(sentences) if _is_prose(sentence)]
    if not asking:
        return None
    # Three draws that depend on nothing but the text: which sentence, whether it stays, whether the heading is there.
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=6).digest()
    which, stays, headed = (int.from_bytes(digest[at : at + 2]) / 2**16 for at in (0, 2, 4))
    place = asking[int(which * len(asking))]
    rest = sentences if stays < _STAYS else sentences[:place] + sentences[place + 1 :]
    passage = " ".join(rest)
    if len(passage.split()) < _LEAST_REST:
        return None
    return {"query": sentences[place], "positive": f"{row['query']}\n{passage}" if headed < 0.5 else passage}


def _is_prose(sentence: str) -> bool:
    """Whether a sentence is made of words, and says by itself what it is about."""
    words = sentence.split()
    plain = sum(bool(_PLAIN.fullmatch(word.strip(".,;:()!?"))) for word in words)
    return len(words) in _WORDS and plain > _LEAST_PLAIN * len(words) and not _POINTS_BACK.match(sentence)


def pairs(files: list[Path]) -> Iterator[dict[str, str]]:
    """Yield what the rows of files of pairs give."""
    for path in files:
        for _, row in read_objects(path):
            if (pair := sentence_pair(row)) is not None:
                yield pair


def main() -> None:
    """Draw sentences and write them with their passages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", type=Path, metavar="PAIRS.jsonl.gz")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with gzip.GzipFile(arguments.output, "wb", mtime=0) as out:
        for pair in pairs(arguments.pairs):
            out.write((json.dumps(pair, ensure_ascii=False) + "\n").encode())
            written += 1
    print(f"{arguments.output}: {written:,} pairs")


if __name__ == "__main__":
    try:
        main()
    except MbretrieveError as error:
        sys.exit(f"sentences.py: {error}")
