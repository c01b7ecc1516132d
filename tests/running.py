"""Jobs run on some of the devices, whatever there are."""

import pytest

from clipdef_jax import jobs, sharding
from tests.test_step import mesh_of


def run_on(devices, body, config, workdir):
    """Runs a job's function as its command would, on this many devices; returns its summary."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sharding, "make_mesh", lambda fsdp: mesh_of(devices))
        folder = jobs.open_workdir(str(workdir), "job.py", config)
        return body(config, folder, command="test")
