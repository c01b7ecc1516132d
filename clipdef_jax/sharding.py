"""Where arrays live: the mesh, the sharding of a batch, and rules for parameters."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from clipdef_jax.errors import UserError

# The first rule whose pattern is found in a parameter's path decides. Paths look like
# "params/image/blocks_0/mlp/up/kernel"; optimiser moments repeat the path of their parameter.
Rules = Sequence[tuple[str, PartitionSpec]]

# The batch is sharded over those of these mesh axes that exist, in this order.
BATCH_AXES = ("data", "fsdp")


def make_mesh(fsdp: int = 1) -> Mesh:
    """Returns the mesh of all devices: `data` x `fsdp`, the batch being split over both.

    Args:
      fsdp: number of devices that share one copy of the parameters.

    Raises:
      UserError: the devices cannot be divided into groups of `fsdp`.
    """
    devices = jax.device_count()
    if fsdp < 1 or devices % fsdp:
        raise UserError(
            f"fsdp={fsdp} does not divide the {devices} devices; "
            f"use one of {[n for n in range(1, devices + 1) if devices % n == 0]}"
        )
    return jax.make_mesh((devices // fsdp, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def batch_axes() -> tuple[str, ...]:
    """Returns the axes that split a batch on the mesh entered with `jax.set_mesh`.

    Axes of one device are left out, so there is none where there is nothing to split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)


def batch_spec() -> PartitionSpec:
    """Returns the partition of an array that is split like a batch on the mesh entered."""
    axes = batch_axes()
    return PartitionSpec(axes) if axes else PartitionSpec()


def batch_devices(rows: int) -> int:
    """Returns the number of devices that share a batch of `rows` on the mesh entered.

    Raises:
      UserError: they cannot have equal shares.
    """
    mesh, axes = jax.sharding.get_abstract_mesh(), batch_axes()
    devices = math.prod(mesh.shape[axis] for axis in axes)
    if rows % devices:
        raise UserError(
            f"a batch of {rows} cannot be shared by the {devices} devices of mesh axes "
            f"{'x'.join(axes)}: take a multiple of {devices}"
        )
    return devices


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def whole(tree: Any) -> Any:
    """Returns the arrays, to be held whole by every device of the mesh entered; under `jax.jit`.

    Their gradients come back whole and summed over all devices.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec())


def shard_batch(mesh: Mesh, local: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Turns this process's rows of a batch into arrays sharded over all devices.

    Args:
      mesh: the mesh.
      local: arrays (rows, ...); the processes' rows follow one another in the global batch.

    Raises:
      UserError: the rows do not divide evenly among this process's devices.
    """
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    processes = mesh.size // len(mesh.local_devices)
    for name, array in local.items():
        rows = len(array) * processes
        if rows % mesh.size:
            raise UserError(
                f"batch of {rows} ({name!r}) is not divisible by {mesh.size} devices; use a "
                f"multiple of {mesh.size}"
            )
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in local.items()
    }


def place(mesh: Mesh, rules: Rules, tree: Any) -> Any:
    """Returns the arrays where the rules put them; every process holds all of them beforehand."""

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree, by_rules(mesh, rules, tree))


def by_rules(mesh: Mesh, rules: Rules, tree: Any) -> Any:
    """Returns the tree of shardings that the rules give the (abstract) arrays of `tree`.

    Args:
      mesh: the mesh.
      rules: pairs of a regular expression and a PartitionSpec; the first that is found in an
        array's path wins.
      tree: arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      UserError: an array matches no rule, or its shape does not divide as its rule says.
    """

    def choose(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, spec in rules:
            if re.search(pattern, name):
                sharding = NamedSharding(mesh, spec)
                try:
                    sharding.shard_shape(leaf.shape)
                except ValueError as error:
                    raise UserError(
                        f"parameter {name} {leaf.shape}: rule {pattern!r} -> {spec} does not fit "
                        f"the mesh {dict(mesh.shape)}; use another mesh.fsdp ({error})"
                    ) from None
                return sharding
        raise UserError(
            f"parameter {name} {leaf.shape} matches none of the sharding rules "
            f"{[pattern for pattern, _ in rules]}; end the rules with ('.*', PartitionSpec())"
        )

    return jax.tree_util.tree_map_with_path(choose, tree)
