"""Exact k-nearest-neighbour search over points that need not fit on the device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from clipdef_jax.detect import candidates, tiles
from clipdef_jax.detect import layout as layouts
from clipdef_jax.detect.layout import Layout, Sizes
from clipdef_jax.detect.panel import Panel, Products, make_panel, no_neighbours
from clipdef_jax.errors import UserError

MAX_NEIGHBOURS = 256
# Bytes a search may hold on each device beside what it was given.
MEMORY = 512 * 2**20
# Rows whose median is the centre. Any centre will do; near the points, products cancel less.
_CENTRE_SAMPLE = 1024

Progress = Callable[[int, int], None]


def knn(
    queries: Any,
    reference: Any,
    k: int,
    *,
    exclude: Any = None,
    products: Products = "float32",
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k nearest reference points of each query, by Euclidean distance.

    The result is exact: distances are those of float32 differences of the rows as given, 0 between
    equal rows, and a query whose neighbours the bounds on rounding leave in doubt is searched
    again, in the end without products. `products`, `memory` and the mesh do not change it.

    The arrays may be NumPy's, memory-mapped files among them, or JAX's. They are read in panels,
    the next one while the last is searched. Where `queries` is the same object as `reference`,
    each product is computed once and serves both of its points. Under `jax.set_mesh` all devices
    of the mesh share the work, and the panels travel around the ring of them.

    A row that is not finite, or whose square overflows, has no neighbours and is nobody's.

    Args:
      queries: (Q, D), any float dtype; read as float32.
      reference: (N, D).
      k: number of neighbours, 1 to 256, at most N.
      exclude: (Q, E) rows of `reference` to leave out for each query, -1 for none. A query that is
        in the reference is left out this way, not by distance 0: data holds exact duplicates.
      products: what the factors of products are rounded to. On an accelerator "tfloat32" and
        "bfloat16" are faster, if the points are spread enough for the bounds to decide.
      memory: bytes to hold on each device at once, beside the arrays given and the result.
      progress: called with the number of steps done and of all steps.

    Returns:
      Distances (Q, k) float32, ascending, and ids (Q, k) int32, ascending among equal distances.
      Where fewer than k points are left, distance inf and id -1.

    Raises:
      UserError: the arrays do not fit one another, or k is out of range.
    """
    exclude = _check(queries, reference, k, exclude, products)
    mesh = _mesh()
    search = _Search(queries, reference, exclude, _centre(reference), mesh)
    sizes = Sizes(
        len(queries), len(reference), reference.shape[1], k, exclude.shape[1], mesh.size, memory
    )
    result = _Result(len(queries), k, progress)
    if queries is reference and mesh.size == 1:
        _search_graph(search, layouts.for_graph(sizes, products), result)
    else:
        layout = layouts.for_search(sizes, products)
        _search_queries(search, layout, np.arange(len(queries)), result)
    for make_layout in (layouts.for_second_search, layouts.for_exhaustive_search):
        in_doubt = np.flatnonzero(~result.is_certain)
        if len(in_doubt):
            layout = make_layout(sizes._replace(queries=len(in_doubt)))
            _search_queries(search, layout, in_doubt, result)
    return result.distances, result.ids


class _Search(NamedTuple):
    """What is searched: the arguments of `knn`, the centre of the points, the mesh."""

    queries: Any
    reference: Any
    exclude: np.ndarray
    centre_D: np.ndarray
    mesh: Mesh

    def panel(self, points: Any, rows: np.ndarray, order: np.ndarray, products: Products) -> Panel:
        """Returns `points[rows]`, in this order on each device, filled up to its length."""
        first, last = int(rows[0]), int(rows[-1]) + 1
        part = points[first:last] if last - first == len(rows) else points[rows]
        if len(part) < len(order):
            pad = jnp.pad if isinstance(part, jax.Array) else np.pad
            part = pad(part, ((0, len(order) - len(part)), (0, 0)))
        ids = _pad(rows, len(order)).astype(np.int32)
        shared = (_share(self.mesh, x) for x in (_float32(part), ids, order))
        return _make_panel(*shared, self.centre_D, self.mesh, products)

    def excluded(self, rows: np.ndarray) -> jax.Array:
        """Returns `exclude[rows]`; a row of -1 leaves out nothing."""
        return _share(self.mesh, np.where(rows[:, None] >= 0, self.exclude[rows], -1))


class _Result:
    """Neighbours on the host, filled in as they are found, and how far the search is."""

    def __init__(self, queries: int, k: int, progress: Progress | None):
        self.distances = np.full((queries, k), np.inf, np.float32)
        self.ids = np.full((queries, k), -1, np.int32)
        self.is_certain = np.ones(queries, bool)
        self._progress = progress
        self._done = self._steps = 0
        self._running: Any = None

    def expect(self, steps: int) -> None:
        """Announces so many steps more."""
        self._steps += steps

    def begun(self, found: Any) -> None:
        """Takes note of a step that computes `found`."""
        self._running = found

    def wait(self) -> None:
        """Waits for the step begun last: one at a time, lest panels pile up on the device."""
        if self._running is not None:
            jax.block_until_ready(self._running)
            self._running = None
            self._done += 1
            if self._progress:
                self._progress(self._done, self._steps)

    def put(self, rows: np.ndarray, found: tuple[jax.Array, ...]) -> None:
        """Takes in what was found for these rows of the queries; -1 stands for none."""
        is_row = rows >= 0
        for mine, new in zip((self.distances, self.ids, self.is_certain), found, strict=True):
            mine[rows[is_row]] = _to_host(new)[is_row]


def _search_queries(search: _Search, layout: Layout, rows: np.ndarray, result: _Result) -> None:
    """Meets the queries `rows` with the whole reference, panel by panel and block by block."""
    blocks = [rows[i : i + layout.block] for i in range(0, len(rows), layout.block)]
    panels = _parts(len(search.reference), layout.panel)
    result.expect(len(blocks) * len(panels))
    as_is = np.arange(layout.block) % (layout.block // search.mesh.size)
    products = layout.plan.products

    def load(part: np.ndarray) -> Panel:
        order = _order(len(part), layout.panel, search.mesh.size, shuffle=not layout.exhaustive)
        return search.panel(search.reference, part, order, products)

    found: list[Any] = [None] * len(blocks)
    coming = load(panels[0])
    for next_part in [*panels[1:], None]:
        panel = coming
        for number, block in enumerate(blocks):
            queries = search.panel(search.queries, block, as_is, products)
            exclude = search.excluded(_pad(block, layout.block))
            result.wait()
            before = found[number] or _start(queries, search.mesh, layout)
            found[number] = _visit(before, queries, panel, exclude, search.mesh, layout)
            result.begun(found[number])
            if number == 0 and next_part is not None:
                coming = load(next_part)
    result.wait()
    for number, block in enumerate(blocks):
        result.put(_pad(block, layout.block), _finish(found[number], search.centre_D, layout))


def _search_graph(search: _Search, layout: Layout, result: _Result) -> None:
    """Meets every pair of panels once; both look for their neighbours in the other."""
    parts = _parts(len(search.reference), layout.panel)
    result.expect(len(parts) * (len(parts) + 1) // 2)
    orders = [_order(len(part), layout.panel, 1, shuffle=True) for part in parts]
    rows_of = [_pad(part, layout.panel)[order] for part, order in zip(parts, orders, strict=True)]
    excluded = [search.excluded(rows) for rows in rows_of]
    found: list[Any] = [None] * len(parts)

    def load(number: int) -> Panel:
        result.wait()
        panel = search.panel(search.reference, parts[number], orders[number], layout.plan.products)
        if found[number] is None:
            found[number] = _start(panel, search.mesh, layout)
        return panel

    for i in range(len(parts)):
        rows = load(i)
        found[i] = _within(found[i], rows, excluded[i], layout.plan)
        result.begun(found[i])
        for j in range(i + 1, len(parts)):
            columns = load(j)
            found[i], found[j] = _cross(
                (found[i], found[j]), (rows, columns), (excluded[i], excluded[j]), layout.plan
            )
            result.begun(found[j])
        result.wait()
        result.put(rows_of[i], _finish(found[i], search.centre_D, layout))
        found[i] = None


def _parts(count: int, size: int) -> list[np.ndarray]:
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]


def _pad(rows: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([rows, np.full(size - len(rows), -1)])


def _order(count: int, size: int, devices: int, shuffle: bool) -> np.ndarray:
    """Returns in which order each device takes its rows: (size,), each device's counted from 0.

    Neighbours often stand together in a data set; shuffled, they fall into different chunks. The
    `size - count` rows without a point stay at the end.
    """
    share = size // devices
    order = np.tile(np.arange(share, dtype=np.int32), devices).reshape(devices, share)
    if shuffle:
        rng = np.random.default_rng(0)
        for device, places in enumerate(order):
            filled = int(np.clip(count - device * share, 0, share))
            places[:filled] = rng.permutation(filled)
    return order.reshape(size)


def _check(queries: Any, reference: Any, k: int, exclude: Any, products: str) -> np.ndarray:
    """Returns the excluded ids as an array; raises `UserError` unless all fits."""
    for name, points in (("queries", queries), ("reference", reference)):
        shape = getattr(points, "shape", type(points).__name__)
        if not isinstance(shape, tuple) or len(shape) != 2 or 0 in shape:
            raise UserError(f"{name}: expected an array (rows, dimensions), got {shape}")
        if not jnp.issubdtype(points.dtype, jnp.floating):
            raise UserError(f"{name}: expected floating point embeddings, got {points.dtype}")
    if queries.shape[1] != reference.shape[1]:
        raise UserError(
            f"queries have {queries.shape[1]} dimensions, the reference {reference.shape[1]}; "
            "both must come from the same model"
        )
    most = min(MAX_NEIGHBOURS, len(reference))
    if not 1 <= k <= most:
        raise UserError(
            f"k={k}: expected 1 to {most} neighbours out of {len(reference)} reference points"
        )
    if products not in get_args(Products):
        raise UserError(f"products={products!r}: expected one of {', '.join(get_args(Products))}")
    if exclude is None:
        return np.full((len(queries), 1), -1, np.int32)
    exclude = np.asarray(exclude)
    if exclude.ndim != 2 or len(exclude) != len(queries) or exclude.dtype.kind not in "iu":
        raise UserError(
            f"exclude: expected integers ({len(queries)}, E), a row for each query, "
            f"got {exclude.dtype} {exclude.shape}"
        )
    return exclude.astype(np.int32)


def _mesh() -> Mesh:
    """Returns the mesh the caller entered, or one of a single device."""
    mesh = jax.sharding.get_mesh()
    if not mesh.empty:
        return mesh
    return jax.make_mesh((1,), ("all",), (AxisType.Auto,), devices=jax.local_devices()[:1])


def _centre(reference: Any) -> np.ndarray:
    sample = np.asarray(_float32(reference[:: -(-len(reference) // _CENTRE_SAMPLE)]))
    sample = sample[np.isfinite(sample).all(axis=1)]
    # A median: a few huge rows must not draw the centre away from all the others.
    return np.median(sample, axis=0) if len(sample) else np.zeros(reference.shape[1], np.float32)


def _float32(points: Any) -> Any:
    return points.astype(jnp.float32) if points.dtype != jnp.float32 else points


def _share(mesh: Mesh, array: Any) -> jax.Array:
    """Returns an array with its rows spread over the devices of the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    if isinstance(array, jax.Array):
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def _to_host(array: jax.Array) -> np.ndarray:
    if array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def _on_each_device(function: Any, mesh: Mesh) -> Any:
    rows = PartitionSpec(mesh.axis_names)
    return jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)


@functools.partial(jax.jit, static_argnames=("mesh", "products"))
def _make_panel(rows, ids, order, centre_D, mesh, products):
    def make(rows, ids, order):
        return make_panel(rows, ids, order, centre_D, products)

    return _on_each_device(make, mesh)(rows, ids, order)


@functools.partial(jax.jit, static_argnames=("mesh", "layout"))
def _start(queries, mesh, layout):
    return _on_each_device(lambda q: no_neighbours(q, layout.plan.neighbours), mesh)(queries)


@functools.partial(jax.jit, static_argnames=("mesh", "layout"), donate_argnums=0)
def _visit(found, queries, panel, exclude, mesh, layout):
    """Lets the panel, a part of it on each device, visit all queries."""
    search = tiles.exhaust if layout.exhaustive else tiles.search
    to_the_next = [(device, (device + 1) % mesh.size) for device in range(mesh.size)]

    def around(found, queries, panel, exclude):
        if mesh.size == 1:
            return search(found, queries, panel, exclude, layout.plan)

        def hop(_, carry):
            found, panel = carry
            coming = lax.ppermute(panel, mesh.axis_names, to_the_next)
            return search(found, queries, panel, exclude, layout.plan), coming

        return lax.fori_loop(0, mesh.size, hop, (found, panel))[0]

    return _on_each_device(around, mesh)(found, queries, panel, exclude)


_within = jax.jit(tiles.within, static_argnames="plan", donate_argnums=0)
_cross = jax.jit(tiles.cross, static_argnames="plan", donate_argnums=0)


@functools.partial(jax.jit, static_argnames="layout")
def _finish(found, centre_D, layout):
    return candidates.finish(found, len(centre_D), layout.plan)
