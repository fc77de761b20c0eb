"""Retrieval with ModernBERT: encode, index, search, evaluate and train, for 8k-token documents and for code."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mbretrieve.errors import MbretrieveError
    from mbretrieve.models import load_encoder
    from mbretrieve.models.colbert import ColBERT
    from mbretrieve.models.dense import DenseEncoder
    from mbretrieve.models.joint import JointEncoder
    from mbretrieve.retriever import Retriever
    from mbretrieve.types import Document, Hit

__version__ = "0.1.0"
__all__ = ["ColBERT", "DenseEncoder", "Document", "Hit", "JointEncoder", "MbretrieveError", "Retriever", "load_encoder"]

# Resolved on first use (PEP 562), so that `mbretrieve --help` does not wait for torch.
_HOME = {
    "ColBERT": "mbretrieve.models.colbert",
    "DenseEncoder": "mbretrieve.models.dense",
    "Document": "mbretrieve.types",
    "Hit": "mbretrieve.types",
    "JointEncoder": "mbretrieve.models.joint",
    "MbretrieveError": "mbretrieve.errors",
    "Retriever": "mbretrieve.retriever",
    "load_encoder": "mbretrieve.models",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mbretrieve' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
