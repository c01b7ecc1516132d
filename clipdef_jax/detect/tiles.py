"""The jitted part of the k-NN search: one panel of points against another, tile by tile.

A tile of squared distances comes out of one matrix product: the squared norms ride along as extra
columns of the factors. The tile is cut into chunks, and of each chunk only the three smallest
distances are kept, as integers whose low bits say which member of the chunk it was. Once a panel
is through, the best of these are looked up and their distances taken again, from differences of
the rows as they were given: `|x|^2 + |y|^2 - 2xy` loses all digits of a small distance, a
difference none.

What was not looked up is bounded from below: by the smallest chunk left out, and by the third
smallest of each chunk taken. If that bound lies above the k-th distance by more than a product
can err, the k nearest of the panel are among those found; `finish` tells.

Dimensions: P rows of a panel, Q of a block of queries, D the embedding, F = D + 6 the factors,
W chunks of a row of tiles, M candidates, K neighbours, E excluded ids.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Products = Literal["float32", "tfloat32", "bfloat16"]
# Bits of the fraction that a format keeps; a product of rounded rows is exact up to its sum.
FRACTION_BITS: dict[Products, int] = {"float32": 23, "tfloat32": 10, "bfloat16": 7}

# Stands for "no point": above any squared distance, and its low bits are free.
FAR = np.float32(2.0**127)
FAR_KEY = np.int32(FAR.view(np.int32))
# Stands for "no id" while ids are compared: it comes after every other.
NO_ID = np.int32(2**31 - 1)
# Queries whose candidates are looked up at once, so that these rows stay in a CPU's cache. Blocks
# of queries and tiles of a graph are multiples of it.
LOOKED_UP = 128


class Panel(NamedTuple):
    """Points in the order they are searched in, with the factors of their products.

    Attributes:
      rows_PxD: the points as they were given, float32.
      factors_PxF: centred and rounded points, three addends of the squared norm, three ones.
      ids_P: int32 ids, -1 where there is no point.
    """

    rows_PxD: jax.Array
    factors_PxF: jax.Array
    ids_P: jax.Array


class Neighbours(NamedTuple):
    """The nearest points so far of a block of queries.

    Attributes:
      squared_QxK: squared distances, ascending; inf where there is none.
      ids_QxK: their ids, ascending among equals; `NO_ID` where there is none.
      bound_Q: no point that was left out is nearer than this, by its product.
      norm_Q: the distance of the query from the centre.
    """

    squared_QxK: jax.Array
    ids_QxK: jax.Array
    bound_Q: jax.Array
    norm_Q: jax.Array


class Plan(NamedTuple):
    """What a search is compiled for.

    Attributes:
      products: format that the factors of the products are rounded to.
      neighbours: K.
      candidates: M, how many points of a panel are looked up for each query.
      chunk: points of which the three nearest are kept; a power of two.
      tile: columns, and in a graph rows, of distances at once; a multiple of `chunk`.
    """

    products: Products
    neighbours: int
    candidates: int
    chunk: int
    tile: int


def make_panel(
    rows_PxD: jax.Array,
    ids_P: jax.Array,
    order_P: jax.Array,
    centre_D: jax.Array,
    products: Products,
) -> Panel:
    """Returns the points in another order, ready to be multiplied.

    A row that is not finite, or whose squares overflow, becomes no point.
    """
    rows_PxD, ids_P = rows_PxD[order_P], ids_P[order_P]
    centred_PxD = rows_PxD - centre_D[None, :]
    norm_P = jnp.sum(centred_PxD * centred_PxD, axis=1)
    # Far enough below FAR for the largest sum of a tile to stay finite.
    ids_P = jnp.where(norm_P < FAR / 16, ids_P, -1)
    is_point_Px1 = (ids_P >= 0)[:, None]
    bits = FRACTION_BITS[products]
    rounded_PxD = lax.reduce_precision(jnp.where(is_point_Px1, centred_PxD, 0), 8, bits)
    rest_Px1 = jnp.where(is_point_Px1, norm_P[:, None], FAR)
    addends = []
    for _ in range(3):
        addends.append(lax.reduce_precision(rest_Px1, 8, bits))
        rest_Px1 = rest_Px1 - addends[-1]
    ones_Px3 = jnp.ones((len(norm_P), 3), jnp.float32)
    factors_PxF = jnp.concatenate([rounded_PxD, *addends, ones_Px3], axis=1)
    dtype = jnp.bfloat16 if products == "bfloat16" else jnp.float32
    return Panel(rows_PxD, factors_PxF.astype(dtype), ids_P)


def no_neighbours(queries: Panel, neighbours: int) -> Neighbours:
    """Returns the neighbours of a block of queries before the first panel."""
    shape = (len(queries.ids_P), neighbours)
    dim = queries.rows_PxD.shape[1]
    squared_norm_Q = queries.factors_PxF[:, dim : dim + 3].astype(jnp.float32).sum(1)
    return Neighbours(
        jnp.full(shape, jnp.inf),
        jnp.full(shape, NO_ID),
        jnp.full(shape[0], FAR),
        jnp.sqrt(squared_norm_Q),
    )


def search(
    found: Neighbours, queries: Panel, panel: Panel, exclude_QxE: jax.Array, plan: Plan
) -> Neighbours:
    """Returns the neighbours of a block of queries after one more panel of reference points."""
    left_QxF = _left(queries.factors_PxF)
    lanes = plan.tile // plan.chunk

    def step(t, best):
        right_txF = _slice(panel.factors_PxF, t, plan.tile)
        squared_Qxt = _squared_distances(left_QxF, right_txF, plan)
        return _store(best, _three_smallest(squared_Qxt, plan.chunk, axis=1), (0, t * lanes))

    chunks = len(panel.ids_P) // plan.chunk
    nothing = [jnp.full((len(queries.ids_P), chunks), FAR_KEY)] * 3
    best = lax.fori_loop(0, _tiles_used(panel, plan.tile), step, nothing)
    return _look_up(found, best, queries.rows_PxD, panel, exclude_QxE, plan)


def cross(
    found: tuple[Neighbours, Neighbours],
    panels: tuple[Panel, Panel],
    excluded: tuple[jax.Array, jax.Array],
    plan: Plan,
) -> tuple[Neighbours, Neighbours]:
    """Returns the neighbours of two panels after each was the other's reference."""
    rows, columns = panels
    row_found, best = _both_ways(found[0], rows, columns, excluded[0], plan, diagonal=False)
    return row_found, _down(found[1], best, columns, rows, excluded[1], plan)


def within(found: Neighbours, panel: Panel, exclude_PxE: jax.Array, plan: Plan) -> Neighbours:
    """Returns the neighbours of a panel after it was its own reference; each point is its own."""
    found, best = _both_ways(found, panel, panel, exclude_PxE, plan, diagonal=True)
    return _down(found, best, panel, panel, exclude_PxE, plan)


def exhaust(
    found: Neighbours, queries: Panel, panel: Panel, exclude_QxE: jax.Array, plan: Plan
) -> Neighbours:
    """Returns the neighbours after one more panel, every distance taken from differences.

    Certain whatever the points, and many times slower than `search`. The panel's points must come
    in the order of their ids: then equal distances are found in that order.
    """
    count = min(plan.candidates, len(panel.ids_P))

    def places(args):
        row_D, exclude_E = args
        squared_P = _squared_length(panel.rows_PxD - row_D[None, :])
        is_out_P = (panel.ids_P < 0) | (panel.ids_P[:, None] == exclude_E[None, :]).any(1)
        # A query that is not finite has no distances.
        is_out_P |= jnp.isnan(squared_P)
        _, place_M = lax.top_k(-jnp.where(is_out_P, jnp.inf, squared_P), count)
        return jnp.where(is_out_P[place_M], -1, place_M)

    place_QxM = _pad(lax.map(places, (queries.rows_PxD, exclude_QxE)), plan.candidates)
    return _add(found, place_QxM, queries.rows_PxD, panel, exclude_QxE)


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


def _left(factors_QxF):
    """Returns the factors for the left of a product: what meets a norm is a one."""
    dim = factors_QxF.shape[1] - 6
    point, norm, ones = jnp.split(factors_QxF, (dim, dim + 3), axis=1)
    return jnp.concatenate([-2 * point, ones, norm], axis=1)


def _squared_distances(left_rxF, right_cxF, plan):
    """Returns a tile of squared distances, good to the rounding of a product."""
    precision = {
        "float32": lax.Precision.HIGHEST,
        "tfloat32": lax.Precision.HIGH,
        "bfloat16": lax.Precision.DEFAULT,
    }[plan.products]
    return lax.dot_general(
        left_rxF,
        right_cxF,
        (((1,), (1,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def _three_smallest(squared, chunk, axis):
    """Returns the smallest, second and third of each chunk, the member's number in the low bits.

    The members of a chunk lie `size / chunk` apart, so that neighbouring lanes of a vector unit
    work on neighbouring chunks. Integers order as the floats they were, these being positive.
    """
    bits = lax.bitcast_convert_type(jnp.clip(squared, 0, FAR), jnp.int32)
    parts = jnp.split(bits & np.int32(-chunk), chunk, axis)
    first, second, third = parts[0], *(jnp.full_like(parts[0], FAR_KEY) for _ in range(2))
    for member, part in enumerate(parts[1:], start=1):
        part = part | np.int32(member)
        third = jnp.minimum(third, jnp.maximum(second, part))
        second = jnp.minimum(second, jnp.maximum(first, part))
        first = jnp.minimum(first, part)
    return first, second, third


def _tiles_used(panel, tile):
    """Returns how many tiles hold points: the last panel may be short."""
    numbers_P = jnp.arange(1, len(panel.ids_P) + 1)
    return (jnp.max(jnp.where(panel.ids_P >= 0, numbers_P, 0)) + tile - 1) // tile


def _both_ways(found, rows, columns, exclude_PxE, plan, diagonal):
    """Meets every tile once: rows look up their neighbours; returns what columns need for theirs.

    On the diagonal, where both panels are one, a tile left of it is its mirror image's columns.
    """
    tile, lanes = plan.tile, plan.tile // plan.chunk
    chunks = len(columns.ids_P) // plan.chunk
    nothing = [jnp.full((tile, chunks), FAR_KEY)] * 3

    def row(i, carry):
        found, column_best = carry
        left_txF = _left(_slice(rows.factors_PxF, i, tile))

        def column(j, carry):
            best, column_best = carry
            right_txF = _slice(columns.factors_PxF, j, tile)
            squared_txt = _squared_distances(left_txF, right_txF, plan)
            best = _store(best, _three_smallest(squared_txt, plan.chunk, axis=1), (0, j * lanes))
            down = _three_smallest(squared_txt, plan.chunk, axis=0)
            if diagonal:
                down = [jnp.where(i == j, FAR_KEY, key) for key in down]
            return best, _store(column_best, down, (i * lanes, j * tile))

        used = _tiles_used(columns, tile)
        best, column_best = lax.fori_loop(
            i if diagonal else 0, used, column, (nothing, column_best)
        )
        some = jax.tree.map(lambda x: _slice(x, i, tile), (found, rows.rows_PxD, exclude_PxE))
        some = _look_up(some[0], best, some[1], columns, some[2], plan)
        return jax.tree.map(lambda x, new: _replace(x, new, i, tile), found, some), column_best

    column_nothing = [jnp.full((chunks, len(columns.ids_P)), FAR_KEY)] * 3
    return lax.fori_loop(0, _tiles_used(rows, tile), row, (found, column_nothing))


def _down(found, column_best, columns, rows, exclude_PxE, plan):
    """Returns the neighbours of the columns among the rows."""

    def column(j, found):
        some = jax.tree.map(
            lambda x: _slice(x, j, plan.tile), (found, columns.rows_PxD, exclude_PxE)
        )
        best = [lax.dynamic_slice_in_dim(x, j * plan.tile, plan.tile, 1).T for x in column_best]
        some = _look_up(some[0], best, some[1], rows, some[2], plan)
        return jax.tree.map(lambda x, new: _replace(x, new, j, plan.tile), found, some)

    return lax.fori_loop(0, _tiles_used(columns, plan.tile), column, found)


def _slice(x, number, size):
    return lax.dynamic_slice_in_dim(x, number * size, size)


def _replace(x, new, number, size):
    return lax.dynamic_update_slice_in_dim(x, new, number * size, 0)


def _store(best, new, start):
    return [lax.dynamic_update_slice(x, y, start) for x, y in zip(best, new, strict=True)]


def _look_up(found, best, rows_QxD, panel, exclude_QxE, plan):
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
    return _add(found, place_QxM, rows_QxD, panel, exclude_QxE)


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
    place_QxM = _pad(jnp.where(key_QxM >= FAR_KEY, -1, place_QxM), plan.candidates)
    return place_QxM, lax.bitcast_convert_type(left_out_Q, jnp.float32)


def _pad(place_QxM, count):
    return jnp.pad(place_QxM, ((0, 0), (0, count - place_QxM.shape[1])), constant_values=-1)


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


def _add(found, place_QxM, rows_QxD, panel, exclude_QxE):
    """Returns the neighbours after the points at these places joined them.

    Whatever the search, this is compiled for the same shapes: the last bit of a sum depends on how
    its terms are laid out, and the order of two near equals on that bit.
    """

    def one(args):
        squared_K, ids_K, row_D, exclude_E, place_M = args
        ids_M = panel.ids_P.at[place_M].get(mode="clip")
        squared_M = _squared_length(panel.rows_PxD.at[place_M].get(mode="clip") - row_D[None, :])
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


def _squared_length(x):
    """Returns the sum of squares over the last axis, summed in an order that vectorises."""
    x = x * x
    while x.shape[-1] > 32 and x.shape[-1] % 2 == 0:
        x = x[..., : x.shape[-1] // 2] + x[..., x.shape[-1] // 2 :]
    return jnp.sum(x, axis=-1)
