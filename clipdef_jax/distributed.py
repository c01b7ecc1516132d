"""Start-up of a run of several processes, on one host or on many.

A process learns its place from the first of these that says something:
  the flags --coordinator_address, --num_processes and --process_id;
  the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID;
  SLURM, in a step of several tasks;
  Kubernetes, in a pod of an indexed Job, as those of a JobSet are.
With none of them the run has one process, and nothing is started.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any, NoReturn

from absl import flags

from clipdef_jax.errors import UserError
from clipdef_jax.progress import console

_FLAGS = (
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0, in every process."),
    flags.DEFINE_integer("num_processes", None, "Processes of the run."),
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0."),
)
_EXPECT = flags.DEFINE_integer(
    "expect_devices", None, "Devices of all processes together; the run stops if it finds others."
)

# Seconds until processes that do not find each other give up: hosts start minutes apart.
TIMEOUT = 300
# Seconds at the end of a failed process for the others to fail of the same.
_PARTING = 5

Place = tuple[str, dict[str, Any]]


def start() -> None:
    """Joins the processes of the run if there are several, and counts the devices.

    Raises:
      UserError: the place of this process is only half given, the others are not found, or there
        are not as many devices as expected.
    """
    place = resolve({flag.name: flag.value for flag in _FLAGS}, os.environ)
    if place is not None:
        _join(*place)
    if _EXPECT.value is not None:
        _check_devices(_EXPECT.value)


def resolve(given: Mapping[str, Any], environ: Mapping[str, str]) -> Place | None:
    """Returns where the place of this process is told, and what `jax.distributed` is to be told.

    Args:
      given: the three flags by name, None where they are not set.
      environ: the environment variables.

    Returns:
      None for a run of one process.

    Raises:
      UserError: one or two of the three flags, or of the variables, are missing.
    """
    told = {f"--{name}": value for name, value in given.items()}
    if any(value is not None for value in told.values()):
        return _explicit("flags", told)
    told = {f"JAX_{name.upper()}": environ.get(f"JAX_{name.upper()}") for name in given}
    cluster = _cluster(environ)
    # A cluster tells what the variables leave out.
    if all(told.values()) or (any(told.values()) and cluster is None):
        return _explicit("JAX_* variables", told)
    return cluster


def leave(code: int) -> NoReturn:
    """Ends this process; one that fails alone does not wait for the others to say goodbye."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        timer = threading.Timer(_PARTING, os._exit, [code])
        timer.daemon = True
        timer.start()
    sys.exit(code)


def _explicit(source: str, told: Mapping[str, Any]) -> Place | None:
    missing = [name for name, value in told.items() if value in (None, "")]
    if missing:
        raise UserError(f"{', '.join(missing)} missing: {', '.join(told)} belong together")
    (address_name, address), (count_name, count), (index_name, index) = told.items()
    if not re.fullmatch(r".+:\d+", address):
        raise UserError(f"{address_name}={address}: expected HOST:PORT of process 0")
    if not re.fullmatch(r"0*[1-9]\d*", str(count)):
        raise UserError(f"{count_name}={count}: expected a positive number of processes")
    if not re.fullmatch(r"\d+", str(index)) or int(index) >= int(count):
        raise UserError(f"{index_name}={index}: expected 0 to {int(count) - 1}")
    if int(count) == 1:
        return None
    return source, {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(index),
        "cluster_detection_method": "deactivate",
    }


def _cluster(environ: Mapping[str, str]) -> Place | None:
    if int(environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        told: dict[str, Any] = {"cluster_detection_method": "slurm"}
        # jax gives each task the one GPU of its rank on the host. A host's only task has them all:
        # that is what an empty list says.
        alone = re.fullmatch(r"1(\(x\d+\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
        if alone and "JAX_LOCAL_DEVICE_IDS" not in environ:
            told["local_device_ids"] = []
        return "SLURM", told
    if "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ:
        return "Kubernetes", {"cluster_detection_method": "k8s"}
    return None


def _join(source: str, told: dict[str, Any]) -> None:
    import jax

    # It would take SIGTERM for itself; the processes agree on when to stop by `processes.Vote`.
    jax.config.update("jax_enable_preemption_service", False)
    place = f"{told['process_id']} of {told['num_processes']}, " if "process_id" in told else ""
    # jax aborts with a stack trace where this says what to look at.
    watchdog = threading.Timer(TIMEOUT, _give_up, [f"{place}by {source}", told])
    watchdog.daemon = True
    watchdog.start()
    # There is nothing to save yet, and a handler in Python would not run while this waits.
    signals = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(signum, signal.SIG_DFL) for signum in signals]
    try:
        jax.distributed.initialize(initialization_timeout=TIMEOUT + 60, **told)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(_what_failed(source, error)) from None
    finally:
        watchdog.cancel()
        for signum, handler in zip(signals, handlers, strict=True):
            signal.signal(signum, handler)
    console.quiet = jax.process_index() > 0
    print(
        f"process {jax.process_index()} of {jax.process_count()} (by {source}): "
        f"{jax.local_device_count()} of {jax.device_count()} devices",
        flush=True,
    )


def _give_up(place: str, told: Mapping[str, Any]) -> None:
    address = told.get("coordinator_address", "the coordinator")
    print(
        f"error: process {place}: not all processes met at {address} in {TIMEOUT} s; check that "
        "each was started, that all name the same address, a host they can all reach, and that no "
        "firewall or proxy closes its port",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def _what_failed(source: str, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "RPC server" in reason:
        return f"process 0 cannot listen at the coordinator's port ({reason}): use a free port"
    if source == "Kubernetes":
        return (
            f"Kubernetes does not tell this pod its place ({reason}): install the package "
            "'kubernetes' and give the pod the service account of launch/k8s/rbac.yaml, or set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        )
    return f"the processes cannot be joined by {source}: {reason}"


def _check_devices(expected: int) -> None:
    import jax

    found = jax.device_count()
    if found != expected:
        raise UserError(
            f"--expect_devices={expected}, but there are {found} ({jax.devices()[0].device_kind}): "
            f"{jax.process_count()} process(es) with {jax.local_device_count()} here; check that "
            "every process was started and that jax sees the accelerators"
        )
