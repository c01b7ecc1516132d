"""Figures of a run: one JSON line per step, and TensorBoard events."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax


class MetricsWriter:
    """Writes scalars to `metrics.jsonl` and a TensorBoard event file; process 0 only.

    Attributes:
      last: the last line of those that stay, or {}.

    Args:
      folder: where both files go.
      start: steps already done; later lines of an interrupted run are dropped, not repeated.
    """

    def __init__(self, folder: pathlib.Path, start: int):
        self._active = jax.process_index() == 0
        path = folder / "metrics.jsonl"
        kept = [row for row in read(path) if row["step"] <= start]
        self.last: dict[str, Any] = kept[-1] if kept else {}
        if not self._active:
            return
        import tensorboardX

        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        os.replace(temporary, path)
        self._lines = path.open("a", encoding="utf-8", buffering=1)
        self._events = tensorboardX.SummaryWriter(str(folder), purge_step=start + 1)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            self._lines.close()
            self._events.close()

    def write(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Writes the scalars of a step.

        Args:
          step: batches seen.
          epoch: counted from 1.
          values: names and numbers.
        """
        if not self._active:
            return
        self._lines.write(json.dumps({"step": step, "epoch": epoch, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def flush(self) -> None:
        """Hands to the disk what TensorBoard is to see; lines are there as they are written."""
        if self._active:
            self._events.flush()


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of a `metrics.jsonl`; none if it is missing, a cut last line left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
