"""The tokenizer: byte-level BPE of code's words, learned from the pairs.

python examples/mini/tokenizer.py --output mini/tokenizer mini/pairs/*.jsonl.gz
"""

import argparse
import sys
from pathlib import Path

from texts import read_texts

from mbretrieve.errors import MbretrieveError
from mbretrieve.training.tokenizer_training import train_tokenizer


def main() -> None:
    """Train the tokenizer and write its folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", type=Path, metavar="PAIRS.jsonl.gz")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--vocab-size", type=int, default=24_576)
    parser.add_argument("--length", type=int, default=8192, help="tokens of the longest text that a model of it takes")
    parser.add_argument("--sample", type=int, default=120_000, help="pairs to learn from (120,000)")
    arguments = parser.parse_args()
    texts = read_texts(arguments.pairs, arguments.sample)
    train_tokenizer(texts, arguments.vocab_size, arguments.length, words="code").save(arguments.output)


if __name__ == "__main__":
    try:
        main()
    except MbretrieveError as error:
        sys.exit(f"tokenizer.py: {error}")
