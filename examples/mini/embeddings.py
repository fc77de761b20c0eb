"""The first weights: a ModernBERT without layers, whose embeddings are a teacher's, rare tokens' the longer.

    python examples/mini/embeddings.py --teacher sentence-transformers/all-MiniLM-L6-v2 --tokenizer mini/tokenizer \
        --output mini/embeddings mini/pairs/*.jsonl.gz

Each token's string is encoded by the teacher; principal components bring the vectors to the hidden size, and the
smooth inverse frequency (SIF, Arora et al., https://openreview.net/forum?id=SyK00v5xx) gives them their lengths. With
``norm_eps`` 1 the norms of ModernBERT leave these lengths almost as they are; the usual 1e-5 would erase them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from teach import Teacher
from texts import read_texts, token_counts
from tokenizers import Tokenizer as Backend
from torch import Tensor

from mbretrieve.errors import MbretrieveError
from mbretrieve.models.checkpoint import save
from mbretrieve.models.config import ModernBertConfig
from mbretrieve.models.modernbert import ModernBert
from mbretrieve.models.settings import Checkpoint, Settings
from mbretrieve.models.tokenizer import Tokenizer

_SIF = 1e-3  # the frequency at which a token has half of its weight
_RMS = 0.3  # of a common token's numbers: small beside norm_eps, so that the norms stay nearly linear


def strings(folder: Path) -> list[str]:
    """Return what each token of a tokenizer's folder stands for; a full stop where that is nothing to be read."""
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    return [backend.decode([token]).strip() or "." for token in range(backend.get_vocab_size())]


def principal(vectors: Tensor, width: int) -> Tensor:
    """Return vectors (n, d) on their first ``width`` principal components: (n, width) of unit length."""
    centred = vectors - vectors.mean(dim=0)
    components = torch.linalg.svd(centred, full_matrices=False).Vh[:width]
    return F.normalize(centred @ components.T, dim=1)


def weighted(vectors: Tensor, counts: NDArray[np.int64]) -> Tensor:
    """Give each token's vector its SIF weight ``a / (a + p)``, and all of them the scale that training starts with.

    Shapes: vectors (n, d), counts (n,) -> (n, d). Rows have mean 0, which a LayerNorm would take off them.
    """
    seen = torch.from_numpy(counts + 1.0).float()
    vectors = vectors * (_SIF / (_SIF + seen / seen.sum()))[:, None]
    vectors = vectors - vectors.mean(dim=1, keepdim=True)
    rms = vectors.square().mean(dim=1).sqrt()
    return vectors * (_RMS / (rms * seen / seen.sum()).sum())


def static_model(tokenizer: Tokenizer, table: Tensor, heads: int) -> Checkpoint:
    """Return a ModernBERT without layers over a table of embeddings, its text vector their mean.

    Special tokens, which say nothing of a text, begin as zeros.
    """
    specials = [tokenizer.token_id(token) for token in tokenizer.roles.values()]
    table = table.index_fill(0, torch.tensor([token for token in specials if token is not None]), 0.0)
    roles = {f"{role}_token_id": tokenizer.role_id(f"{role}_token") for role in ("pad", "cls", "sep")}
    length = tokenizer.model_max_length or 8192
    config = ModernBertConfig.from_dict(
        {
            "model_type": "modernbert",
            "vocab_size": table.shape[0],
            "hidden_size": table.shape[1],
            "num_hidden_layers": 0,
            "num_attention_heads": heads,
            "max_position_embeddings": length,
            "norm_eps": 1.0,
            **roles,
            "bos_token_id": roles["cls_token_id"],
            "eos_token_id": roles["sep_token_id"],
        }
    )
    state = ModernBert(config).state_dict() | {"embeddings.tok_embeddings.weight": table}
    return Checkpoint(config, state, tokenizer, Settings(pooling="mean"), length)


def main() -> None:
    """Encode the vocabulary and write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", type=Path, metavar="PAIRS.jsonl.gz", help="where tokens are counted")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--teacher", required=True, help="a sentence-transformers model, a folder or a name")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--sample", type=int, default=120_000, help="pairs in which tokens are counted (120,000)")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.load(arguments.tokenizer)
    vectors = Teacher(arguments.teacher, 16).encode(strings(arguments.tokenizer))
    counts = token_counts(tokenizer, read_texts(arguments.pairs, arguments.sample))
    table = weighted(principal(torch.from_numpy(vectors).float(), arguments.hidden_size), counts)
    save(static_model(tokenizer, table, arguments.heads), arguments.output)


if __name__ == "__main__":
    try:
        main()
    except MbretrieveError as error:
        sys.exit(f"embeddings.py: {error}")
