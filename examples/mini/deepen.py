"""Layers under a static model, and a head of token vectors: what the joint stage starts with.

    python examples/mini/deepen.py --output mini/deep mini/static mini/pairs/*.jsonl.gz

The matrices by which attention and MLP add to the stream are zero, so that the deep model gives the static one's
vectors, to the last bit, until training moves them. The token head is the principal components of the tokens' states,
each token as often as it comes in the pairs; queries keep the lengths of their vectors, which are term weights.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from texts import read_texts, token_counts
from torch import Tensor

from mbretrieve.errors import DataError, MbretrieveError
from mbretrieve.models.checkpoint import load, save
from mbretrieve.models.config import ModernBertConfig
from mbretrieve.models.modernbert import ModernBert
from mbretrieve.models.settings import Checkpoint, DenseLayer, Settings, Side

_LENGTH = 2.0


def deepened(static: Checkpoint, layers: int, intermediate: int) -> tuple[ModernBertConfig, dict[str, Tensor]]:
    """Return config and weights of a model of ``layers`` layers that computes what one of none does.

    Raises: DataError if the model has layers already.
    """
    if static.config.num_hidden_layers:
        raise DataError(f"the model has {static.config.num_hidden_layers} layers, expected a static one, without any")
    saved = static.config.to_dict()
    del saved["layer_types"]
    sizes = {"num_hidden_layers": layers, "intermediate_size": intermediate, "global_attn_every_n_layers": 3}
    config = ModernBertConfig.from_dict({**saved, **sizes})
    state = ModernBert(config).state_dict()
    for name, tensor in state.items():
        if name.endswith("Wo.weight"):
            tensor.zero_()
    return config, state | {name: tensor.float() for name, tensor in static.backbone.items()}


@torch.no_grad()
def token_head(static: Checkpoint, counts: NDArray[np.int64], width: int) -> Tensor:
    """Return the first principal directions of the tokens' states, each weighted by its count: (width, hidden).

    They are scaled so that a token's vector is ``_LENGTH`` long in the mean: queries keep that length, and with vectors
    ten times as long the first softmax over MaxSim's sums would see one document.
    """
    model = ModernBert(static.config, {name: tensor.float() for name, tensor in static.backbone.items()})
    words = torch.arange(static.config.vocab_size)
    states: Tensor = model(words, [1] * len(words))
    weights = torch.from_numpy(counts).float().sqrt()[:, None]
    directions = torch.linalg.svd(states * weights, full_matrices=False).Vh[:width]
    lengths = (states @ directions.T).norm(dim=1)
    mean = (lengths * torch.from_numpy(counts)).sum() / int(counts.sum())
    head: Tensor = directions * (_LENGTH / mean)
    return head


def main() -> None:
    """Deepen a model and write it as one of late interaction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the static model")
    parser.add_argument("pairs", nargs="+", type=Path, metavar="PAIRS.jsonl.gz", help="where tokens are counted")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--intermediate-size", type=int, default=384)
    parser.add_argument("--dim", type=int, default=128, help="numbers of a token's vector (128)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sample", type=int, default=120_000, help="pairs in which tokens are counted (120,000)")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    static = load(arguments.model)
    config, state = deepened(static, arguments.layers, arguments.intermediate_size)
    counts = token_counts(static.tokenizer, read_texts(arguments.pairs, arguments.sample))
    head = DenseLayer(token_head(static, counts, arguments.dim))
    settings = Settings(queries=Side(length=64, normalize=False), documents=Side(length=512))
    save(Checkpoint(config, state, static.tokenizer, settings, static.limit, (head,)), arguments.output)


if __name__ == "__main__":
    try:
        main()
    except MbretrieveError as error:
        sys.exit(f"deepen.py: {error}")
