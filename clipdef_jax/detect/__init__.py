"""Detectors of poisoned pairs: pure functions of embeddings; a higher score is more suspect."""

from clipdef_jax.detect.cognitive import cognitive_distillation
from clipdef_jax.detect.knn import knn
from clipdef_jax.detect.protocols import FROM_EMBEDDINGS, score_all
from clipdef_jax.detect.scores import METHODS, score

__all__ = ["FROM_EMBEDDINGS", "METHODS", "cognitive_distillation", "knn", "score", "score_all"]
