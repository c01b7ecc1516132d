"""CLIP models: their shapes, their weights, and the way in and out of checkpoints."""

from clipdef_jax.models.clip import CLIP, get, split_statistics
from clipdef_jax.models.config import NAMED, CLIPConfig

__all__ = ["CLIP", "NAMED", "CLIPConfig", "get", "split_statistics"]
