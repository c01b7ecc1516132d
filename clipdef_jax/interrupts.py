"""Ctrl-C and SIGTERM as requests: honoured at the next safe point, where work can be saved."""

from __future__ import annotations

import signal
from types import FrameType

_requested: int | None = None


class Interrupted(Exception):
    """The user or the cluster asked the run to stop; everything is saved.

    Args:
      signum: SIGINT or SIGTERM.
    """

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


def install() -> None:
    """Makes SIGINT and SIGTERM set a request; a second SIGINT stops at once."""
    signal.signal(signal.SIGINT, _handle)
    signal.signal(signal.SIGTERM, _handle)


def _handle(signum: int, frame: FrameType | None) -> None:
    global _requested
    if _requested is not None and signum == signal.SIGINT:
        signal.default_int_handler(signum, frame)
    _requested = signum


def requested() -> bool:
    """Whether the run was asked to stop."""
    return _requested is not None


def check() -> None:
    """Raises `Interrupted` if the run was asked to stop."""
    if _requested is not None:
        raise Interrupted(_requested)
