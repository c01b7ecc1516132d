"""Several processes as one run: who writes, and what all agree on.

Every process runs the same program on its share of each batch. Only the first one writes the run's
files and the others read them, so the work directory must be on a file system that all share. With
one process everything here is what it would be without.

jax is imported inside the functions: the command line is checked before it is needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from clipdef_jax.errors import UserError

if TYPE_CHECKING:
    import jax

T = TypeVar("T")

# Sizes of messages are rounded up to this, so that few programs are compiled for them.
_BLOCK = 4096


def several() -> bool:
    """Whether the run has more than one process."""
    import jax

    # Without a start-up there is one: no need to wake the devices for that.
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes and reports."""
    import jax

    return not several() or jax.process_index() == 0


def require_one(job: str) -> None:
    """Refuses several processes for a job that has not learnt to share its work.

    Raises:
      UserError: there are several.
    """
    if several():
        raise UserError(f"{job} runs in one process: start it without a launcher")


def on_first(body: Callable[[], Any]) -> Any:
    """Runs `body` in the first process while the others wait for what it returns.

    All processes must get here, in the same order.

    Args:
      body: returns something JSON can hold; what it leaves in files is there for all afterwards.

    Returns:
      What it returned, in every process.

    Raises:
      UserError: it raised one: in every process.
    """
    if not several():
        return body()
    outcome: dict[str, Any] = {}
    if is_first():
        try:
            outcome = {"value": body()}
        except UserError as error:
            outcome = {"error": str(error)}
    outcome = _broadcast(outcome)
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["value"]


def in_turn(body: Callable[[], T]) -> T:
    """Runs `body` in the first process, then in the others: they find the files it has left."""
    made: list[T] = []
    on_first(lambda: made.append(body()))
    return made[0] if made else body()


class Vote:
    """One question to all processes, asked at every step; they all get the same answer.

    It is the largest of what they said, so a zero is "no". With several processes it is that of
    the step before: the devices work it out behind the step itself and nobody waits for it.

    Args:
      mesh: all devices.
    """

    def __init__(self, mesh: jax.sharding.Mesh):
        self._mesh = mesh
        self._pending: Any = None

    def __call__(self, *ballot: int) -> tuple[int, ...]:
        """Casts this process's numbers; returns the largest of each, zeros at the first time."""
        if not several():
            return ballot
        before, self._pending = self._pending, self._count(ballot)
        return (0,) * len(ballot) if before is None else tuple(np.asarray(before).tolist())

    def _count(self, ballot: tuple[int, ...]) -> jax.Array:
        import jax

        from clipdef_jax import sharding

        rows = np.tile(np.asarray(ballot, np.int32), (len(self._mesh.local_devices), 1))
        cast = sharding.shard_batch(self._mesh, {"ballot": rows})["ballot"]
        return jax.jit(_largest, out_shardings=sharding.replicated(self._mesh))(cast)


def _largest(ballots: jax.Array) -> jax.Array:
    return ballots.max(0)


def _broadcast(value: Any) -> Any:
    """Returns the first process's value, as JSON has it, in every process."""
    from jax.experimental import multihost_utils

    text = json.dumps(value).encode() if is_first() else b""
    size = -(-int(multihost_utils.broadcast_one_to_all(np.int32(len(text)))) // _BLOCK) * _BLOCK
    sent = np.frombuffer(text.ljust(size), np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(sent).tobytes())
