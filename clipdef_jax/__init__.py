"""Attack, defend and clean CLIP models in JAX."""

__version__ = "0.1.0"
