"""Eight CPU devices, settled flags, and the shared golden values where they are at hand."""

import atexit
import os
import pathlib
import shutil
import tempfile

# Before jax is imported: a test machine with an accelerator must not hand it to every test.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from absl import flags

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Many tests compile the same program; within one session each is compiled once, whichever of
# pytest's own processes, or of those that tests start, comes to it first.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="clipdef-jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
# grain's workers read absl flags; pytest's own command line is not theirs to parse.
flags.FLAGS.mark_as_parsed()

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def _shared(part: str) -> pathlib.Path:
    path = SHARED / part
    if not path.exists():
        pytest.skip(f"needs ../shared/{part}, which is not here")
    return path


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """The folder of golden values; skips the test where it is missing."""
    return _shared("golden")


@pytest.fixture(scope="session")
def openclipart() -> pathlib.Path:
    """The folder of openclipart webdataset tars; skips the test where it is missing."""
    return _shared("data/openclipart")
