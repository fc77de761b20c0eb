"""Two trainings of one model as one: the weighted mean of their weights (WiSE-FT, https://arxiv.org/abs/2109.01903).

    python examples/mini/average.py --output mini/v2 mini/joint=0.4 mini/harder=0.6

What the second was trained on since, the mean keeps nearly all of; what it unlearned elsewhere comes back. Saved in
float16, as the bundled model is.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mbretrieve.errors import DataError, MbretrieveError
from mbretrieve.models.checkpoint import load, save
from mbretrieve.models.settings import Checkpoint


def averaged(models: Sequence[tuple[Checkpoint, float]], document_length: int) -> Checkpoint:
    """Return the mean of models of one shape, float16, with the last one's settings, for documents of so many tokens.

    Raises: DataError if the weights do not add up to 1, or the models are not of one shape.
    """
    if abs(sum(weight for _, weight in models) - 1) > 1e-6:
        raise DataError(f"the weights add up to {sum(weight for _, weight in models):g}, expected 1")
    last, _ = models[-1]
    for model, _ in models:
        if model.config != last.config or len(model.projection) != len(last.projection):
            raise DataError("the models have unlike shapes, expected trainings of one model")

    def mean(tensors: Sequence[Tensor]) -> Tensor:
        weighted = [weight * tensor.float() for tensor, (_, weight) in zip(tensors, models, strict=True)]
        return torch.stack(weighted).sum(dim=0).half()

    backbone = {name: mean([model.backbone[name] for model, _ in models]) for name in last.backbone}
    projection = tuple(
        replace(layer, weight=mean([model.projection[place].weight for model, _ in models]))
        for place, layer in enumerate(last.projection)
    )
    settings = replace(last.settings, documents=replace(last.settings.documents, length=document_length))
    return replace(last, backbone=backbone, projection=projection, settings=settings)


def main() -> None:
    """Average models and write the mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="FOLDER=WEIGHT")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--document-length", type=int, default=512, help="tokens of a document (512)")
    arguments = parser.parse_args()
    try:
        named = [(folder, float(weight)) for folder, _, weight in (model.rpartition("=") for model in arguments.models)]
    except ValueError:
        parser.error(f"models are {' '.join(arguments.models)}; FOLDER=WEIGHT was expected of each, as mini/joint=0.4")
    models = [(load(Path(folder)), weight) for folder, weight in named]
    save(averaged(models, arguments.document_length), arguments.output)


if __name__ == "__main__":
    try:
        main()
    except MbretrieveError as error:
        sys.exit(f"average.py: {error}")
