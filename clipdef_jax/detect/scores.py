"""The detectors: from embeddings to a score for each pair; a higher one is more suspect.

Source: Huang et al. 2025, "Detecting Backdoor Samples in Contrastive Language Image Pretraining".

The density ratios are defined where points coincide, too. A ratio of distances is held within
2^-20 and 2^20, 0/0 is 1 (both as dense), and a local intrinsic dimensionality is at most 4,096, and
0 where all neighbours coincide with the point: so no score is NaN or infinite.

Dimensions: N pairs, Q queries, R reference points, K neighbours, D the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from clipdef_jax.detect.cognitive import cognitive_distillation
from clipdef_jax.detect.knn import MAX_NEIGHBOURS, MEMORY, knn
from clipdef_jax.errors import UserError

BY_NEIGHBOURS = ("kdist", "slof", "dao", "dao_log", "lid")
METHODS = (*BY_NEIGHBOURS, "iforest", "clip_score", "abl", "cd")

_LARGEST_RATIO = 2.0**20
_LARGEST_DIMENSION = 4096.0
_TREES = 100
_TREE_POINTS = 256
_ABL_EPOCHS = 10


class Density(NamedTuple):
    """How dense the reference is around each of its points.

    Attributes:
      kdist_R: distance of the k-th nearest other point.
      lid_R: local intrinsic dimensionality.
    """

    kdist_R: np.ndarray
    lid_R: np.ndarray


class Neighbourhood(NamedTuple):
    """Where queries stand in a reference: all that the methods of `BY_NEIGHBOURS` ask for.

    Attributes:
      distances_QxK: distances of the nearest reference points, ascending.
      ids_QxK: their rows in the reference.
      density: of the reference.
    """

    distances_QxK: np.ndarray
    ids_QxK: np.ndarray
    density: Density


def score(
    image: Any,
    text: Any = None,
    *,
    method: str,
    k: int = 16,
    losses: Any = None,
    encode: Callable[[Any], Any] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Returns how suspect each pair is, the given pairs being the whole reference set.

    The queries are the images. An image leaves out itself and its own caption as neighbours, a
    reference point leaves out itself.

    Args:
      image: (N, D) image embeddings, float; before normalisation, in the paper. For "cd" pixels
        (N, H, W, C) in [0, 1].
      text: (N, D) embeddings of their captions: they join the reference set.
      method: a name of `METHODS`: "kdist", "slof", "dao", "dao_log", "lid" (the paper has k=64
        there, 16 elsewhere), "iforest", "clip_score", "abl", "cd".
      k: number of neighbours, of the first five.
      losses: the training record of "abl": (epochs, N) or (N,) CLIP loss of each pair.
      encode: the model of "cd": maps pixels (B, H, W, C) to embeddings (B, D), under jit.
      seed: of what is drawn by "iforest" and "cd".

    Returns:
      (N,) float32, finite.

    Raises:
      UserError: the method is unknown or lacks an argument; arrays do not fit one another or are
        not finite; there are no k other points.
    """
    if method not in METHODS:
        raise UserError(f"detector {method!r}: expected one of {', '.join(METHODS)}")
    if method == "abl":
        return _abl(losses, len(image))
    if method == "cd":
        if encode is None:
            raise UserError("detector 'cd' needs the model: pass encode=, pixels to embeddings")
        return -cognitive_distillation(image, encode, seed=seed)
    image = _as_points("image", image)
    if text is not None:
        text = _as_points("text", text)
        check_alike(image, text)
    if method == "clip_score":
        return clip_score(image, text)
    points = image if text is None else np.concatenate([image, text])
    if method == "iforest":
        return isolation_forest(points, seed)(image)
    check_k([method], k, len(image), has_text=text is not None)
    return by_neighbours(method, among(points, len(image), k))[: len(image)]


def by_neighbours(method: str, hood: Neighbourhood) -> np.ndarray:
    """Returns the scores (Q,) float32 of queries, by a method of `BY_NEIGHBOURS`.

    With r_j the distance of the j-th neighbour o_j of x: "kdist" is r_k(x); "lid" minus one over
    the mean of ln(r_j / r_k); "slof" the mean of r_k(x) / r_k(o_j); "dao" the logarithm of the mean
    of that ratio to the power lid(o_j), "dao_log" the mean of its logarithm.

    References:
      Schubert et al. 2014, `Local outlier detection reconsidered` (simplified local outlier
      factor); Anderberg et al. 2024, `Dimensionality-Aware Outlier Detection
      <https://arxiv.org/abs/2401.05453>`_; Amsaleg et al. 2015, `Estimating Local Intrinsic
      Dimensionality` (the maximum likelihood estimate).
    """
    kdist_Q = hood.distances_QxK[:, -1]
    if method == "kdist":
        return kdist_Q.astype(np.float32)
    if method == "lid":
        return _lid(hood.distances_QxK).astype(np.float32)
    ratio_QxK = _ratio(kdist_Q[:, None], hood.density.kdist_R[hood.ids_QxK])
    if method == "slof":
        return ratio_QxK.mean(axis=1).astype(np.float32)
    power_QxK = hood.density.lid_R[hood.ids_QxK] * np.log(ratio_QxK)
    if method == "dao_log":
        return power_QxK.mean(axis=1).astype(np.float32)
    largest_Q = power_QxK.max(axis=1)
    mean_Q = np.exp(power_QxK - largest_Q[:, None]).mean(axis=1)
    return (largest_Q + np.log(mean_Q)).astype(np.float32)


def among(
    points: Any, pairs: int, k: int, *, memory: int = MEMORY, progress: Any = None
) -> Neighbourhood:
    """Returns where all points stand among themselves.

    Args:
      points: (N, D) images, or (2N, D) images followed by their captions in the same order. The
        two of a pair are no neighbours of each other as queries, though as reference points.
      pairs: N.
      k: number of neighbours.
      memory: as in `knn`.
      progress: as in `knn`.

    Raises:
      UserError: a point is not finite.
    """
    own = np.arange(len(points))
    has_partner = len(points) > pairs
    found = knn(
        points, points, k + has_partner, exclude=own[:, None], memory=memory, progress=progress
    )
    _check_found(points, found[1])
    distances, ids = found
    density = _density(distances[:, :k])
    if has_partner:
        partner = (own + pairs) % len(points)
        # Stable: the others keep their order, the partner goes last if it is there at all.
        order = np.argsort(ids == partner[:, None], axis=1, kind="stable")[:, :k]
        distances, ids = (np.take_along_axis(x, order, axis=1) for x in found)
    return Neighbourhood(distances, ids, density)


def density_of(reference: Any, k: int) -> Density:
    """Returns how dense a reference is around its points, each left out for itself."""
    own = np.arange(len(reference))
    # As queries and with two columns, as `against` has them: one program serves both.
    exclude = np.stack([own, np.full_like(own, -1)], axis=1)
    distances, ids = knn(reference[:], reference, k, exclude=exclude)
    _check_found(reference, ids)
    return _density(distances)


def against(
    queries: Any,
    reference: Any,
    density: Density,
    k: int,
    exclude: np.ndarray,
    *,
    memory: int = MEMORY,
) -> Neighbourhood:
    """Returns where queries stand in a reference of known density.

    Args:
      queries: (Q, D).
      reference: (R, D).
      density: of the reference, for the same k.
      k: number of neighbours.
      exclude: (Q, E) rows of the reference that are no neighbours of a query, -1 for none.
      memory: as in `knn`.

    Raises:
      UserError: a query is not finite.
    """
    distances, ids = knn(queries, reference, k, exclude=exclude, memory=memory)
    _check_found(queries, ids)
    return Neighbourhood(distances, ids, density)


def clip_score(image_NxD: np.ndarray, text_NxD: np.ndarray | None) -> np.ndarray:
    """Returns minus the cosine (N,) of image and caption; 0 if either is the zero vector."""
    if text_NxD is None:
        raise UserError("detector 'clip_score' compares image and caption: pass text= too")
    image, text = (x.astype(np.float64) for x in (image_NxD, text_NxD))
    norms_N = np.linalg.norm(image, axis=1) * np.linalg.norm(text, axis=1)
    product_N = (image * text).sum(axis=1)
    cosine_N = np.divide(product_N, norms_N, out=np.zeros_like(norms_N), where=norms_N > 0)
    return -cosine_N.astype(np.float32)


def isolation_forest(reference: Any, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from queries (Q, D) to their scores (Q,) by trees over a reference."""
    # Here, as its import takes a second.
    from sklearn.ensemble import IsolationForest

    rng = np.random.default_rng(seed)
    # No more are ever looked at.
    most = min(len(reference), _TREES * _TREE_POINTS)
    seen = reference[np.sort(rng.choice(len(reference), most, replace=False))]
    forest = IsolationForest(
        n_estimators=_TREES, max_samples=min(_TREE_POINTS, most), random_state=seed
    ).fit(seen)
    # scikit-learn gives outliers low scores.
    return lambda queries_QxD: -forest.score_samples(queries_QxD).astype(np.float32)


def check_alike(image: Any, text: Any) -> None:
    """Raises `UserError` unless there is one image and one text embedding for each pair."""
    if image.shape != text.shape:
        raise UserError(
            f"image embeddings are {image.shape}, text embeddings {text.shape}: expected one of "
            "each for every pair, from the same model"
        )


def check_k(methods: Iterable[str], k: int, pairs: int, *, has_text: bool) -> None:
    """Raises `UserError` unless every point of so many pairs has k others to be compared with."""
    # A query leaves out its pair; its partner is searched for, too, and then dropped.
    others = 2 * (pairs - 1) if has_text else pairs - 1
    most = min(others, MAX_NEIGHBOURS - 1)
    for method in methods:
        least = 2 if method in ("lid", "dao", "dao_log") else 1
        if not least <= k <= most:
            raise UserError(
                f"detector {method!r} with k={k}: expected {least} to {max(most, 0)}, as many as "
                f"each of {pairs} pairs has others to be compared with; give more pairs or "
                "another k"
            )


def check_finite(name: str, points: np.ndarray, first: int = 0) -> None:
    """Raises `UserError` naming the first row that is not finite; rows count from `first`."""
    is_bad = ~np.isfinite(points).all(axis=1)
    if is_bad.any():
        raise UserError(
            f"{name}: {is_bad.sum()} of {len(points)} rows are not finite, the first is row "
            f"{first + np.argmax(is_bad)}; leave them out"
        )


def _as_points(name: str, points: Any) -> np.ndarray:
    """Returns embeddings as (N, D) float32; raises `UserError` unless that is what they are."""
    points = np.asarray(points)
    if points.ndim != 2 or 0 in points.shape:
        raise UserError(f"{name} embeddings are {points.shape}, expected (pairs, dimensions)")
    points = points.astype(np.float32, copy=False)
    check_finite(f"{name} embeddings", points)
    return points


def _check_found(points: Any, ids: np.ndarray) -> None:
    """Raises `UserError` if a point found too few neighbours."""
    missing = np.flatnonzero((ids < 0).any(axis=1))
    if len(missing):
        found = int((ids[missing[0]] >= 0).sum())
        raise UserError(
            f"embedding {missing[0]} of {len(points)} has {found} neighbours of {ids.shape[1]}: "
            "it, or too many others, are not finite or too large to be squared; leave these out"
        )


def _density(distances_RxK: np.ndarray) -> Density:
    return Density(distances_RxK[:, -1], _lid(distances_RxK))


def _lid(distances_QxK: np.ndarray) -> np.ndarray:
    """Returns -1 / mean of ln(r_j / r_k); 0 where all k neighbours are at distance 0."""
    ratio_QxK = _ratio(distances_QxK, distances_QxK[:, -1:])
    mean_Q = -np.log(ratio_QxK).mean(axis=1)
    lid_Q = 1 / np.maximum(mean_Q, 1 / _LARGEST_DIMENSION)
    return np.where(distances_QxK[:, -1] > 0, lid_Q, 0.0)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Returns above / below in float64, within 2^-20 and 2^20; 1 where both are 0."""
    above, below = np.broadcast_arrays(np.float64(above), np.float64(below))
    ratio = np.where(above > 0, _LARGEST_RATIO, 1.0)
    np.divide(above, below, out=ratio, where=below > 0)
    return np.clip(ratio, 1 / _LARGEST_RATIO, _LARGEST_RATIO)


def _abl(losses: Any, pairs: int) -> np.ndarray:
    """Returns minus the mean loss over the first epochs: poisoned pairs are learnt first."""
    if losses is None:
        raise UserError("detector 'abl' needs the training record: pass losses=, (epochs, pairs)")
    losses = np.atleast_2d(np.asarray(losses, np.float64))
    if losses.ndim != 2 or losses.shape[1] != pairs:
        raise UserError(f"losses are {losses.shape}, expected (epochs, {pairs}): one for each pair")
    check_finite("losses of pairs", losses.T)
    return -losses[:_ABL_EPOCHS].mean(axis=0).astype(np.float32)
