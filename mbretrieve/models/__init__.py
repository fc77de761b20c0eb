"""The encoders: ModernBERT as one packed stream, checkpoints in every layout, text to vectors."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbretrieve.types import Kind

if TYPE_CHECKING:
    from mbretrieve.models.colbert import ColBERT
    from mbretrieve.models.dense import DenseEncoder
    from mbretrieve.models.joint import JointEncoder
    from mbretrieve.models.workers import EncoderPool


def load_encoder(
    kind: Kind, name: str | Path | None = None, **options: Any
) -> "ColBERT | DenseEncoder | JointEncoder | EncoderPool":
    """Load a model as the encoder of a kind; ``name`` and ``options`` are those of ``from_pretrained``, errors too.

    ``device`` may name several, parted by commas: ``"cuda:0,cuda:1"``. Documents are then encoded by a process each.
    """
    from mbretrieve.models.colbert import ColBERT
    from mbretrieve.models.dense import DenseEncoder
    from mbretrieve.models.joint import JointEncoder
    from mbretrieve.models.workers import EncoderPool, devices

    encoders: dict[Kind, type[ColBERT | DenseEncoder | JointEncoder]] = {
        "colbert": ColBERT,
        "dense": DenseEncoder,
        "joint": JointEncoder,
    }
    if len(names := devices(options.get("device"))) < 2:
        return encoders[kind].from_pretrained(name, **(options | {"device": names[0]} if names else options))
    model = encoders[kind].from_pretrained(name, **options | {"device": names[0]})
    return EncoderPool(model, names, options | {"kind": kind, "name": None if name is None else str(name)})
