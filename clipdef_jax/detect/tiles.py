"""The jitted part of the k-NN search: one panel of points against another, tile by tile.

A tile of squared distances comes out of one matrix product: the squared norms ride along as extra
columns of the factors. The tile is cut into chunks, and of each chunk only the three smallest
distances are kept, as integers whose low bits say which member of the chunk it was. Once a panel
is through, `candidates` looks up the best of them.

Dimensions: P rows of a panel, Q of a block of queries, t columns of a tile, D the embedding,
F = D + 6 the factors, M candidates, K neighbours, E excluded ids.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from clipdef_jax.detect import candidates
from clipdef_jax.detect.panel import FAR, FAR_KEY, Neighbours, Panel, Plan


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
    return candidates.look_up(found, best, queries.rows_PxD, panel, exclude_QxE, plan)


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
        squared_P = candidates.squared_length(panel.rows_PxD - row_D[None, :])
        is_out_P = (panel.ids_P < 0) | (panel.ids_P[:, None] == exclude_E[None, :]).any(1)
        # A query that is not finite has no distances.
        is_out_P |= jnp.isnan(squared_P)
        _, place_M = lax.top_k(-jnp.where(is_out_P, jnp.inf, squared_P), count)
        return jnp.where(is_out_P[place_M], -1, place_M)

    place_QxM = lax.map(places, (queries.rows_PxD, exclude_QxE))
    return candidates.add(found, place_QxM, queries.rows_PxD, panel, exclude_QxE, plan)


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
        some = candidates.look_up(some[0], best, some[1], columns, some[2], plan)
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
        some = candidates.look_up(some[0], best, some[1], rows, some[2], plan)
        return jax.tree.map(lambda x, new: _replace(x, new, j, plan.tile), found, some)

    return lax.fori_loop(0, _tiles_used(columns, plan.tile), column, found)


def _slice(x, number, size):
    return lax.dynamic_slice_in_dim(x, number * size, size)


def _replace(x, new, number, size):
    return lax.dynamic_update_slice_in_dim(x, new, number * size, 0)


def _store(best, new, start):
    return [lax.dynamic_update_slice(x, y, start) for x, y in zip(best, new, strict=True)]
