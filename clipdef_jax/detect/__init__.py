"""Detectors of poisoned pairs: so far the search for neighbours they rest on."""

from clipdef_jax.detect.knn import knn

__all__ = ["knn"]
