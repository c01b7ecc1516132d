"""CLIP models: their shapes, their weights, and the way in and out of checkpoints."""

from clipdef_jax.models.clip import CLIP, get, split_statistics
from clipdef_jax.models.config import NAMED, CLIPConfig
from clipdef_jax.models.weights import load, save

__all__ = ["CLIP", "NAMED", "CLIPConfig", "get", "load", "save", "split_statistics"]
