"""Training data: examples from files and the Hub, in batches of one source each.

``Batches`` is the whole of it for a training loop; ``documents``, ``positives`` and ``duplicates`` say what the columns
of a batch's score matrix are, ``shard`` which of it a process takes.
"""

from mbretrieve.training.data.batches import Batches, Share
from mbretrieve.training.data.example import Example, documents, duplicates, positives, shard

__all__ = ["Batches", "Example", "Share", "documents", "duplicates", "positives", "shard"]
