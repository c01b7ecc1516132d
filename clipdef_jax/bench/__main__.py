"""Measures how fast the parts are, against their rivals, in one run.

  python -m clipdef_jax.bench train --model=RN50 --batch=16
  python -m clipdef_jax.bench loss --json=loss.json

Machines differ and are seldom quiet: read the ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import importlib
import pathlib
import sys

from absl import flags

from clipdef_jax import allocator
from clipdef_jax.bench import timing
from clipdef_jax.errors import UserError

_BENCHMARKS = {
    "train": "a training step: rate, utilisation, memory, compilation; PyTorch beside it",
    "loss": "a step with each loss against one with `clip`; InfoNCE by tiles against dense",
    "augment": "image views, and their share of a CleanCLIP step",
    "detect": "exact neighbours beside FAISS; SLOF beside the released code's way",
    "data": "reading, decoding, triggers and captions; PyTorch's DataLoader beside it",
}


def main() -> None:
    """Runs the benchmark that the command line names, prints its table and writes its JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m clipdef_jax.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, text in _BENCHMARKS.items():
        options = names.add_parser(name, help=text, description=text)
        options.add_argument("--json", type=pathlib.Path, help="also write the figures here")
        module = importlib.import_module(f"clipdef_jax.bench.{name}")
        module.add_arguments(options)
        options.set_defaults(run=module.run)
    arguments = parser.parse_args()
    # As in a run; but a rival in the same process is to run as its users have it.
    if not timing.installed("torch"):
        allocator.keep_freed_memory()
    flags.FLAGS.mark_as_parsed()  # grain reads absl's flags, of which there are none here.
    try:
        result = arguments.run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    result.show()
    if arguments.json:
        result.write(arguments.json, sys.argv[1:])


if __name__ == "__main__":
    main()
