"""Pairs in: sources, captions, tokens, and the loader that makes batches of them."""

from clipdef_jax.data.source import Concat, Kept, Subset, draw, open

__all__ = ["Concat", "Kept", "Subset", "draw", "open"]
