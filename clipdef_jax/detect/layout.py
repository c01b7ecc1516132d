"""How a search is cut up: sizes of panels, blocks, tiles and chunks for a budget of memory."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax

from clipdef_jax.detect.panel import LOOKED_UP, Plan, Products

# Candidates per neighbour. The more the factors are rounded, the further down the list the bound
# on all that was left out must lie to be of use.
_CANDIDATES: dict[Products, float] = {"float32": 1.5, "tfloat32": 2.0, "bfloat16": 4.0}
_LARGEST_CHUNK = 32
_FLOAT = 4
# Three keys for each chunk.
_KEYS = 12


class Layout(NamedTuple):
    """How a search is cut up.

    Attributes:
      plan: what the kernels are compiled for.
      block: queries at once, on all devices together.
      panel: reference points at once, on all devices together.
      exhaustive: take every distance from differences, none from products.
    """

    plan: Plan
    block: int
    panel: int
    exhaustive: bool = False


class Sizes(NamedTuple):
    """The sizes of a search: (queries, dim) against (reference, dim).

    `excluded` is the number of ids left out for each query, `memory` in bytes per device.
    """

    queries: int
    reference: int
    dim: int
    neighbours: int
    excluded: int
    devices: int
    memory: int


def for_search(sizes: Sizes, products: Products) -> Layout:
    """Returns the layout of queries against a reference."""
    candidates = _candidates(sizes, _CANDIDATES[products])
    return _search(sizes, products, candidates, _chunk(sizes, candidates))


def for_second_search(sizes: Sizes) -> Layout:
    """Returns the layout for queries a first search left in doubt: finer, and deeper."""
    candidates = _candidates(sizes, 8.0)
    return _search(_few(sizes), "float32", candidates, max(1, _chunk(sizes, candidates) // 8))


def for_exhaustive_search(sizes: Sizes) -> Layout:
    """Returns the layout for queries the second search left in doubt too: no bound needed."""
    layout = _search(_few(sizes), "float32", _candidates(sizes, 1.0), 1)
    return layout._replace(exhaustive=True)


def _few(sizes: Sizes) -> Sizes:
    """Returns the sizes of one small block: however many queries are left, one program."""
    return sizes._replace(queries=LOOKED_UP * sizes.devices)


def for_graph(sizes: Sizes, products: Products) -> Layout:
    """Returns the layout of points against themselves, each product computed once."""
    candidates = _candidates(sizes, _CANDIDATES[products])
    chunk = _chunk(sizes, candidates)
    # Keys of two panels against each other, and of one tile's rows; three panels and the factors
    # of two: a panel^2 + b panel = memory.
    a = _KEYS / chunk
    b = _KEYS / chunk * _largest_tile() + 5 * _FLOAT * sizes.dim
    panel = (math.sqrt(b * b + 4 * a * sizes.memory) - b) / (2 * a)
    rows, tile = _cut(sizes.reference, panel, chunk)
    plan = Plan(products, sizes.neighbours, candidates, chunk, tile)
    return Layout(plan, rows, rows)


def _search(sizes: Sizes, products: Products, candidates: int, chunk: int) -> Layout:
    blocks = -(-sizes.queries // (_largest_tile() * sizes.devices))
    block = _round_up(sizes.queries / (blocks * sizes.devices), LOOKED_UP)
    # Panel, its factors, the next panel and its copy on the way in; the keys of a block.
    panel = sizes.memory / (4 * _FLOAT * sizes.dim + _KEYS * block / chunk)
    rows, tile = _cut(sizes.reference / sizes.devices, panel, chunk)
    plan = Plan(products, sizes.neighbours, candidates, chunk, tile)
    return Layout(plan, block * sizes.devices, rows * sizes.devices)


def _candidates(sizes: Sizes, per_neighbour: float) -> int:
    k = sizes.neighbours
    return max(k + 8, math.ceil(per_neighbour * k)) + sizes.excluded


def _chunk(sizes: Sizes, candidates: int) -> int:
    """Returns the chunk size: a query with three neighbours in one chunk is searched twice.

    Of k neighbours on n chunks k^3 / 6n^2 triples are expected: here at most one in 100 queries.
    """
    chunks = max(4 * sizes.neighbours**1.5, 2 * candidates)
    chunk = min(_LARGEST_CHUNK, sizes.reference / sizes.devices / chunks)
    return 2 ** int(math.log2(chunk)) if chunk >= 1 else 1


def _cut(points: float, most: float, chunk: int) -> tuple[int, int]:
    """Returns the rows of a panel and of a tile, so that panels are of one size and at `most`."""
    panels = math.ceil(points / max(most, 8 * chunk))
    in_panel = max(1, points / panels)
    tiles = math.ceil(in_panel / _largest_tile())
    tile = _round_up(in_panel / tiles, max(8 * chunk, LOOKED_UP))
    return tile * tiles, tile


def _round_up(number: float, multiple: int) -> int:
    return max(1, math.ceil(number / multiple)) * multiple


def _largest_tile() -> int:
    """Returns the most columns of distances at once: a tile should stay in a CPU's cache."""
    return 1024 if jax.default_backend() == "cpu" else 8192
