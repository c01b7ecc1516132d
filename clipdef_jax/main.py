"""Attack, defend and clean CLIP models.

  python -m clipdef_jax.main --config=configs/cleanclip.py
  python -m clipdef_jax.main --config=configs/cleanclip.py:smoke --config.loss.kwargs.symmetric=True

A run that was stopped goes on where it was when the same command is given again.
"""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from clipdef_jax import allocator, compile_cache, distributed, interrupts, jobs, plugins
from clipdef_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The job: a file of configs/, with a variant after a colon. Its fields are set with "
    "--config.FIELD=VALUE.",
    lock_config=False,
    accept_new_attributes=True,
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run's files go; default: a folder of workdir/ named by the config."
)
flags.adopt_module_key_flags(distributed)


def _parse(argv: list[str]) -> list[str]:
    with _one_line_errors():
        if not any(argument.lstrip("-").startswith("help") for argument in argv[1:]):
            jobs.config_argument(argv)
        return app.parse_flags_with_usage(argv)


def main(argv: Sequence[str]) -> None:
    """Runs the job; a user's mistake is one line, an interruption keeps what was done."""
    interrupts.install()
    logging.set_verbosity(logging.WARNING)
    with _one_line_errors():
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}; flags look like --config.seed=1")
        argument = jobs.config_argument(sys.argv)
        flag, config = flags.FLAGS["config"], _CONFIG.value
        pristine, overrides = flag.parser.parse(argument), [*config_flags.get_override_values(flag)]
        jobs.check_overrides(pristine, overrides)
        jobs.drop_stale_kwargs(config, pristine, overrides)
        allocator.keep_freed_memory()
        distributed.start()  # jax starts only here, once the flags are known to be right.
        compile_cache.enable()
        workdir = jobs.open_workdir(_WORKDIR.value, argument, config)
        command = shlex.join(["python", "-m", "clipdef_jax.main", *sys.argv[1:]])
        plugins.resolve("job", config.job, {})(config, workdir, command=command)
        interrupts.check()  # What is raised within a callback from C can get lost.


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        distributed.leave(2)
    except interrupts.Interrupted as stop:
        name = signal.Signals(stop.signum).name
        print(f"\nstopped by {name}; give the same command again to go on", file=sys.stderr)
        distributed.leave(128 + stop.signum)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
