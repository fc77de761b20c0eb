"""A teacher's vectors of pairs, made once, for ``teacher_vectors`` in a recipe.

    python examples/mini/teach.py --teacher sentence-transformers/all-MiniLM-L6-v2 --output mini/teacher mini/pairs/*.gz

Of pairs/NAME.jsonl.gz, OUTPUT/NAME gets queries.npy and positives.npy, (rows, dim) float16 in the rows' order; what is
there already is not made again. A GPU is used if there is one.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mbretrieve.errors import MbretrieveError
from mbretrieve.jsonl import read_objects
from mbretrieve.training.data.vectors import NAMES

_AT_ONCE = 8192  # texts: sorted by length among so many
_BATCH = 128


class Teacher:
    """A sentence-transformers model that reads the first ``length`` tokens of a text."""

    def __init__(self, name: str, length: int) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(name, trust_remote_code=False, model_kwargs={"dtype": torch.bfloat16})
        self._model.max_seq_length = length

    def encode(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """Encode texts: (n, dim) of unit length."""
        vectors = self._model.encode(
            list(texts), batch_size=_BATCH, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False
        )
        found: NDArray[np.float16] = vectors.float().cpu().numpy().astype(np.float16)
        return found


def teach(teacher: Teacher, pairs: Path, folder: Path, column: str, name: str) -> int:
    """Write one side's vectors of a file of pairs; return how many."""
    rows = (row for _, row in read_objects(pairs))
    parts = []
    while texts := [row[column] for row in islice(rows, _AT_ONCE)]:
        parts.append(teacher.encode(texts))
    folder.mkdir(parents=True, exist_ok=True)
    whole = np.concatenate(parts)
    draft = folder / f".{name}.npy"
    np.save(draft, whole)
    draft.rename(folder / f"{name}.npy")  # half a file is never taken for one
    return len(whole)


def main() -> None:
    """Encode each file's queries and positives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", type=Path, metavar="PAIRS.jsonl.gz")
    parser.add_argument("--teacher", required=True, help="a sentence-transformers model, a folder or a name")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--length", type=int, default=128, help="tokens of a text that the teacher reads (128)")
    arguments = parser.parse_args()
    teacher = Teacher(arguments.teacher, arguments.length)
    for pairs in arguments.pairs:
        folder = arguments.output / pairs.name.removesuffix(".gz").removesuffix(".jsonl")
        for column, name in zip(("query", "positive"), NAMES, strict=True):
            if not (folder / f"{name}.npy").is_file():
                start = time.perf_counter()
                count = teach(teacher, pairs, folder, column, name)
                print(f"{folder / name}: {count:,} texts, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    try:
        main()
    except MbretrieveError as error:
        sys.exit(f"teach.py: {error}")
