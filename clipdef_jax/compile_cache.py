"""Compiled programs kept on the disk, so that a run started again does not compile again."""

from __future__ import annotations

import logging
import os

from clipdef_jax.data import stored

_log = logging.getLogger(__name__)


def enable() -> None:
    """Keeps compiled programs in the user's cache folder, unless jax was told of another place.

    `JAX_COMPILATION_CACHE_DIR` names another folder and `JAX_ENABLE_COMPILATION_CACHE=false` keeps
    nothing, as jax documents. A folder that cannot be written to costs a warning, no more.
    """
    import jax  # Late: whoever gets a flag wrong need not wait for it.

    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = stored.user_cache("xla")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, os.strerror(13))
    except OSError as error:
        _log.warning("compiled programs are not kept: %s: %s", folder, error.strerror)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
