"""Features as directions."""

from __future__ import annotations

import numpy as np


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Returns rows (N, D) of length 1, of the same float dtype; a zero vector stays what it is."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(norms > 0, norms, 1)
