"""From the keys of a panel's chunks to neighbours: the best are looked up and measured again.

A distance is taken from the difference of the rows as they were given: `|x|^2 + |y|^2 - 2xy` loses
all digits of a small distance, a difference none.

What was not looked up is bounded from below: by the smallest chunk left out, and by the third
smallest of each chunk taken. If that bound lies above the k-th distance by more than a product
can err, the k nearest of the panel are among those found; `finish` tells.

Dimensions: Q rows of a block of queries, D the embedding, W chunks of a row of tiles, M candidates,
K neighbours, E excluded ids.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from clipdef_jax.detect.panel import FAR, FAR_KEY, FRACTION_BITS, LOOKED_UP, NO_ID, Neighbours, Plan


def look_up(found, best, rows_QxD, panel, exclude_QxE, plan):
    """Returns the neighbours after the best of a panel's chunks were looked up.

    Args:
      found: the neighbours before.
      best: three (Q, W) arrays of keys, as `_three_smallest` gives them.
      rows_QxD: the queries as they were given.
      panel: the points.
      exclude_QxE: ids to leave out, -1 for none.
      plan: sizes.
    """
    place_QxM, bound_Q = _candidates(best, plan)
    found = found._replace(bound_Q=jnp.minimum(found.bound_Q, bound_Q))
    return add(found, place_QxM, rows_QxD, panel, exclude_QxE, plan)


def add(found, place_QxM, rows_QxD, panel, exclude_QxE, plan):
    """Returns the neighbours after the points at these places joined them.

    Whatever the search, this is compiled for the same shapes: the last bit of a sum depends on how
    its terms are laid out, and the order of two near equals on that bit.
    """
    missing = plan.candidates - place_QxM.shape[1]
    place_QxM = jnp.pad(place_QxM, ((0, 0), (0, missing)), constant_values=-1)

    def one(args):
        squared_K, ids_K, row_D, exclude_E, place_M = args
        ids_M = panel.ids_P.at[place_M].get(mode="clip")
        squared_M = squared_length(panel.rows_PxD.at[place_M].get(mode="clip") - row_D[None, :])
        is_out_M = (place_M < 0) | (ids_M < 0) | (ids_M[:, None] == exclude_E[None, :]).any(1)
        squared_M = jnp.where(is_out_M, jnp.inf, squared_M)
        ids_M = jnp.where(jnp.isinf(squared_M), NO_ID, ids_M)
        squared, ids = lax.sort(
            (jnp.concatenate([squared_K, squared_M]), jnp.concatenate([ids_K, ids_M])), num_keys=2
        )
        return squared[: len(squared_K)], ids[: len(ids_K)]

    squared_QxK, ids_QxK = lax.map(
        one,
        (found.squared_QxK, found.ids_QxK, rows_QxD, exclude_QxE, place_QxM),
        batch_size=LOOKED_UP,
    )
    return found._replace(squared_QxK=squared_QxK, ids_QxK=ids_QxK)


def finish(found: Neighbours, dim: int, plan: Plan) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns distances (Q, K), ids (Q, K), -1 for none, and whether they are certain (Q,).

    Let x be a query and y, at distance d, a point that was left out, both from the centre. The
    product errs by at most gamma (|x| + |y|)^2, with gamma = n 2^-24 for n roundings in whatever
    order, and |y| <= |x| + d: were d at most the k-th distance, the error would be at most what
    that distance in place of d gives. Rounded factors add 2 (2u + u^2) |x| |y|, u being half a
    unit in the last place.
    """
    furthest_Q = found.squared_QxK[:, -1]
    reach_Q = found.norm_Q + jnp.sqrt(furthest_Q)
    # Product, norms, centring and the looked up distance itself: dim + 8 roundings each at most.
    slack_Q = 4 * (dim + 8) * 2.0**-24 * (found.norm_Q + reach_Q) ** 2
    if plan.products != "float32":
        half_unit = 2.0 ** -(FRACTION_BITS[plan.products] + 1)
        slack_Q += 4.1 * half_unit * found.norm_Q * reach_Q
    is_certain_Q = (found.bound_Q > furthest_Q + slack_Q) | (found.bound_Q >= FAR)
    ids_QxK = jnp.where(found.ids_QxK == NO_ID, -1, found.ids_QxK)
    return jnp.sqrt(found.squared_QxK), ids_QxK, is_certain_Q


def squared_length(x):
    """Returns the sum of squares over the last axis, summed in an order that vectorises."""
    x = x * x
    while x.shape[-1] > 32 and x.shape[-1] % 2 == 0:
        x = x[..., : x.shape[-1] // 2] + x[..., x.shape[-1] // 2 :]
    return jnp.sum(x, axis=-1)


def _candidates(best, plan):
    """Returns the places (Q, M) in the panel to look up, and a bound (Q,) on all others."""
    lanes = plan.tile // plan.chunk
    chunks = best[0].shape[1]
    count = min(plan.candidates, chunks)
    chunk_QxM = _smallest(best[0], count)
    first, second, third = (_take(key_QxW, chunk_QxM) for key_QxW in best)
    left_out_Q = jnp.min(third, axis=1)
    if count < chunks:
        left_out_Q = jnp.minimum(left_out_Q, jnp.max(first, axis=1))
    key_Qx2M = jnp.concatenate([first, second], axis=1)
    which_QxM = _smallest(key_Qx2M, count)
    key_QxM = _take(key_Qx2M, which_QxM)
    left_out_Q = jnp.minimum(left_out_Q, jnp.max(key_QxM, axis=1))
    chunk_QxM = _take(jnp.concatenate([chunk_QxM, chunk_QxM], axis=1), which_QxM)
    member_QxM = key_QxM & np.int32(plan.chunk - 1)
    place_QxM = (chunk_QxM // lanes * plan.chunk + member_QxM) * lanes + chunk_QxM % lanes
    # Without the member's number a key is no larger than the distance it stands for.
    bound_Q = lax.bitcast_convert_type(left_out_Q & np.int32(-plan.chunk), jnp.float32)
    return jnp.where(key_QxM >= FAR_KEY, -1, place_QxM), bound_Q


def _smallest(key_QxW, count):
    """Returns the places (Q, count) of the smallest keys, in no order.

    Long rows are thinned out first: the smallest lie in those groups whose smallest are smallest.
    """
    queries, width = key_QxW.shape
    group = 1
    while width % (2 * group) == 0 and 4 * group * group * count <= width:
        group *= 2
    if group == 1:
        return lax.top_k(-lax.bitcast_convert_type(key_QxW, jnp.float32), count)[1]
    key_QxGxW = key_QxW.reshape(queries, group, width // group)
    lane_QxM = _smallest(jnp.min(key_QxGxW, axis=1), count)
    few_QxGM = _take(key_QxGxW, lane_QxM[:, None, :]).reshape(queries, group * count)
    which_QxM = _smallest(few_QxGM, count)
    return which_QxM // count * (width // group) + _take(lane_QxM, which_QxM % count)


def _take(x, places):
    return jnp.take_along_axis(x, places, axis=-1, mode="promise_in_bounds")
