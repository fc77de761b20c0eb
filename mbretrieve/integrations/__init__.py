"""Thin adapters to other libraries, each checked at its own door; nothing else of this package needs them."""
