"""Checkpoints of a run: written whole or not at all, read back from the newest that is sound."""

from __future__ import annotations

import logging
import os
import pathlib
import textwrap
from typing import Any

import jax
from orbax.checkpoint.experimental import v1 as ocp

from clipdef_jax.errors import UserError
from clipdef_jax.train.state import TrainState

_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run; the last two are kept.

    Args:
      folder: where they are; made if missing.
      data: what the order of the batches depends on (seed, batch size, number of records, ...);
        with the step it is the whole state of the data iterator. Stored in every checkpoint.
    """

    def __init__(self, folder: str | os.PathLike[str], data: dict[str, Any]):
        self._folder = pathlib.Path(folder).resolve()
        self._data = data
        self._damaged: list[int] = []
        policies = ocp.training.preservation_policies
        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
            preservation_policy=policies.LatestN(2),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            cleanup_tmp_directories=True,
        )

    def save(self, state: TrainState) -> None:
        """Writes the state under its step, unless it is there already."""
        step = int(state.step)
        # The run has gone on from the one before: these would only count among the two kept.
        while self._damaged:
            self._checkpointer.delete(self._damaged.pop(), missing_ok=True)
        if any(found.step == step for found in self._checkpointer.checkpoints):
            return
        data = self._data | {"next_step": step}
        self._checkpointer.save_checkpointables(step, {"state": state, "data": data}, force=True)

    def restore(self, abstract: TrainState) -> TrainState | None:
        """Returns the newest state that can be read, None where there is none.

        An unreadable checkpoint is named in a warning and the one before is taken.

        Args:
          abstract: the state's structure, as `jax.ShapeDtypeStruct`s with the shardings wanted;
            they need not be the ones it was written under.

        Raises:
          UserError: checkpoints exist and none can be read, or they belong to other data.
        """
        failures = []
        for found in reversed(self._checkpointer.checkpoints):
            try:
                loaded = self._checkpointer.load_checkpointables(
                    found.step, {"state": abstract, "data": None}
                )
            except Exception as error:  # Whatever a damaged file makes orbax raise.
                reason = _reason(error)
                failures.append(f"step {found.step}: {reason}")
                self._damaged.append(found.step)
                _log.warning(
                    "checkpoint %s cannot be read (%s); trying the one before",
                    self._folder / str(found.step),
                    reason,
                )
                continue
            expected = self._data | {"next_step": found.step}
            if loaded["data"] != expected:
                there = loaded["data"]
                changed = [
                    f"{name} was {there.get(name)}, is {value}"
                    for name, value in expected.items()
                    if there.get(name) != value
                ]
                raise UserError(
                    f"{self._folder}: checkpoint of other data: {', '.join(changed)}; "
                    "use another --workdir"
                )
            return loaded["state"]
        if failures:
            raise UserError(
                f"no checkpoint in {self._folder} can be read ({'; '.join(failures)}); "
                "delete the folder to start afresh"
            )
        return None

    def close(self) -> None:
        """Waits for what is being written."""
        self._checkpointer.close()


def _reason(error: BaseException) -> str:
    """Returns what an error began with, in one line: orbax wraps it in pages of its own state."""
    while cause := error.__cause__ or (not error.__suppress_context__ and error.__context__):
        error = cause
    return f"{type(error).__name__}: {textwrap.shorten(str(error), 200)}"


def abstract_of(state: TrainState) -> TrainState:
    """Returns shapes, dtypes and shardings of a state."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
