"""The encoders: ModernBERT as one packed stream, checkpoints in every layout, text to vectors."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbretrieve.types import Kind

if TYPE_CHECKING:
    from mbretrieve.models.colbert import ColBERT
    from mbretrieve.models.dense import DenseEncoder
    from mbretrieve.models.joint import JointEncoder


def load_encoder(kind: Kind, name: str | Path | None = None, **options: Any) -> "ColBERT | DenseEncoder | JointEncoder":
    """Load a model as the encoder of a kind; ``name`` and ``options`` are those of ``from_pretrained``, errors too."""
    from mbretrieve.models.colbert import ColBERT
    from mbretrieve.models.dense import DenseEncoder
    from mbretrieve.models.joint import JointEncoder

    encoders: dict[Kind, type[ColBERT | DenseEncoder | JointEncoder]] = {
        "colbert": ColBERT,
        "dense": DenseEncoder,
        "joint": JointEncoder,
    }
    return encoders[kind].from_pretrained(name, **options)
