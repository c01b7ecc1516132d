"""Ctrl-C and SIGTERM stop a run at once, except where there is a state to be saved first.

Every file of a run is written whole or written again, so between them it may stop anywhere. Inside
`deferred` a signal is a request that waits for `check`.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from clipdef_jax.progress import console

_requested: int | None = None
_deferring = False


class Interrupted(BaseException):
    """The user or the cluster asked the run to stop; everything is saved.

    Like KeyboardInterrupt it is no Exception: nobody is to take it for a failure of their own.

    Args:
      signum: SIGINT or SIGTERM.
    """

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


def install() -> None:
    """Makes SIGINT and SIGTERM interrupt the run; a Ctrl-C after either kills it.

    Python runs handlers on the main thread, between two of its own instructions; jax lets it while
    it compiles, too. A compilation is waited for nevertheless: one that is left running brings
    the process down at its exit, and with the wrong code.
    """
    signal.signal(signal.SIGINT, _handle)
    signal.signal(signal.SIGTERM, _handle)


def _handle(signum: int, frame: FrameType | None) -> None:
    global _requested
    if _requested is None:
        _requested = signum
        if not _deferring:
            raise Interrupted(signum)
        # Not print: the signal may have come in the middle of one.
        os.write(2, f"\n{signal.Signals(signum).name}: saving; Ctrl-C stops at once\n".encode())
    elif signum == signal.SIGINT:
        console.show_cursor()  # A progress bar hides it.
        os._exit(128 + signum)


def requested() -> int:
    """Returns the signal that asked the run to stop, 0 if there was none."""
    return _requested or 0


def check(signum: int | None = None) -> None:
    """Raises `Interrupted` if the run was asked to stop.

    Args:
      signum: the signal that all processes of a run agreed on, or 0; None: this process's own.
    """
    if asked := requested() if signum is None else signum:
        raise Interrupted(asked)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within, a signal waits for `check`, at the latest for the end of the outermost block."""
    global _deferring
    if not _deferring:
        check()  # What is raised at once can get lost, as in a callback from C.
    before, _deferring = _deferring, True
    try:
        yield
    finally:
        _deferring = before
    if not _deferring:
        check()
