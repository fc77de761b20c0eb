"""From a bare backbone to a retriever: data, losses, the loop, pre-training."""
