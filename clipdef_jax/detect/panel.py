"""What the kernels of the k-NN search work on: panels of points, and the neighbours found so far.

Dimensions: P rows of a panel, Q of a block of queries, D the embedding, F = D + 6 the factors,
M candidates, K neighbours, E excluded ids.
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
