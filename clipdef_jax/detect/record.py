"""The training record that "abl" goes by: how well a model tells each pair from others."""

from __future__ import annotations

from typing import Any

import numpy as np

from clipdef_jax.detect.unit import unit_rows


def pair_losses(
    image: Any, text: Any, log_scale: float, *, batch: int, seed: int = 0
) -> np.ndarray:
    """Returns the contrastive loss of each pair in a batch drawn for it.

    The pairs are shuffled and cut into batches, as in training; the loss of a pair is the mean of
    its two cross entropies, image among captions and caption among images.

    Args:
      image: (N, D) features.
      text: (N, D) of their captions.
      log_scale: logarithm of the logits' scale.
      batch: pairs to a batch; the last one is filled up from the first.
      seed: of the shuffling.

    Returns:
      (N,) float32.

    References:
      Li et al. 2021, `Anti-Backdoor Learning <https://arxiv.org/abs/2110.11571>`_, for a
      classifier's loss. This form for pairs is a reconstruction: the paper on detectors in CLIP
      gives none.
    """
    image, text = (unit_rows(np.asarray(x, np.float32)) for x in (image, text))
    losses = np.empty(len(image), np.float32)
    order = np.random.default_rng(seed).permutation(len(image))
    batch = min(batch, len(image))
    for start in range(0, len(image), batch):
        rows = order.take(range(start, start + batch), mode="wrap")
        logits = np.exp(log_scale) * image[rows] @ text[rows].T
        own = np.diagonal(logits)
        rival = np.logaddexp.reduce(logits, axis=0) + np.logaddexp.reduce(logits, axis=1)
        new = len(order[start : start + batch])
        losses[rows[:new]] = (rival / 2 - own)[:new]
    return losses
