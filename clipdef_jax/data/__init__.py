"""Pairs in: sources, captions, tokens, and the loader that makes batches of them."""

from clipdef_jax.data.source import Concat, Subset, open

__all__ = ["Concat", "Subset", "open"]
