"""Several processes: how each learns its place, and that together they are one run."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from clipdef_jax import distributed
from clipdef_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOT_SET = {"coordinator_address": None, "num_processes": None, "process_id": None}
GIVEN = {"coordinator_address": "host:1234", "num_processes": 4, "process_id": 3}
VARIABLES = {
    "JAX_COORDINATOR_ADDRESS": "other:99",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}
SLURM = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}


def test_alone_without_a_word():
    assert distributed.resolve(NOT_SET, {}) is None
    # A batch script itself, a single task and a pod of no indexed job are alone as well.
    assert distributed.resolve(NOT_SET, {"SLURM_JOB_ID": "1"}) is None
    assert distributed.resolve(NOT_SET, {"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert distributed.resolve(NOT_SET, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None
    assert distributed.resolve(GIVEN | {"num_processes": 1, "process_id": 0}, {}) is None


def test_flags_go_before_variables_and_these_before_the_cluster():
    everything = VARIABLES | SLURM | KUBERNETES
    source, told = distributed.resolve(GIVEN, everything)
    assert source == "flags"
    assert told["coordinator_address"] == "host:1234"
    assert (told["num_processes"], told["process_id"]) == (4, 3)
    source, told = distributed.resolve(NOT_SET, everything)
    assert source == "JAX_* variables"
    assert (told["num_processes"], told["process_id"]) == (2, 1)
    assert distributed.resolve(NOT_SET, SLURM | KUBERNETES)[0] == "SLURM"
    assert distributed.resolve(NOT_SET, KUBERNETES)[0] == "Kubernetes"


def test_the_only_task_of_a_host_has_all_its_gpus():
    assert distributed.resolve(NOT_SET, SLURM)[1]["local_device_ids"] == []
    shared = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8(x2)"}
    assert "local_device_ids" not in distributed.resolve(NOT_SET, shared)[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"process_id": None}, r"--process_id missing: --coordinator_address, --num_processes"),
        ({"coordinator_address": "host"}, r"--coordinator_address=host: expected HOST:PORT"),
        ({"num_processes": 0}, r"--num_processes=0: expected a positive number"),
        ({"process_id": 4}, r"--process_id=4: expected 0 to 3"),
    ],
)
def test_half_a_place_is_an_error(given, message):
    with pytest.raises(UserError, match=message):
        distributed.resolve(GIVEN | given, {})


# The smoke variant's stages, with less data: what is tested is that they come out alike.
FIELDS = [
    "--config=configs/cleanclip.py:smoke",
    "--config.data.train=emoji:train,size=128,concepts=4",
    "--config.data.test=emoji:test,size=32,concepts=4",
    "--config.attack.rate=0.1",
    "--config.evaluate.during_training=0",
    "--config.evaluate.batch=32",
    "--config.finetune.control=False",
    # The keys' biases have no gradient but rounding, which Adam with its usual 1e-8 makes steps of.
    "--config.pretrain.eps=1e-3",
    "--config.finetune.eps=1e-3",
]


def start(workdir, devices, *more):
    environ = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-m", "clipdef_jax.main", *FIELDS, f"--workdir={workdir}", *more],
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(workdir, port, *more):
    place = (f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2", *more)
    return [start(workdir, 4, *place, f"--process_id={i}") for i in range(2)]


def finish(processes, code=0):
    said = [process.communicate(timeout=280)[0] for process in processes]
    assert [process.returncode for process in processes] == [code] * len(processes), "\n".join(said)
    return said


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The work directory of one process with eight devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    finish([start(workdir, 8, "--expect_devices=8")])
    return workdir


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_same_run(workdir, alone):
    for name in ("poisoned", "cleanclip"):
        ours, theirs = (
            load_file(folder / name / "model" / "model.safetensors") for folder in (workdir, alone)
        )
        assert ours.keys() == theirs.keys()
        for tensor, value in theirs.items():
            np.testing.assert_allclose(ours[tensor], value, atol=1e-6, rtol=0, err_msg=tensor)
        rows = [
            [
                json.loads(line)
                for line in (folder / name / "metrics.jsonl").read_text().splitlines()
            ]
            for folder in (workdir, alone)
        ]
        assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    ours, theirs = (json.loads((f / "summary.json").read_text()) for f in (workdir, alone))
    for ours_row, theirs_row in zip(ours["results"], theirs["results"], strict=True):
        for figure in ("model", "clean_top1", "asr_top1"):
            assert ours_row[figure] == theirs_row[figure]
    manifests = [(f / "poison" / "manifest.jsonl").read_text() for f in (workdir, alone)]
    assert manifests[0] == manifests[1]


def test_two_processes_of_four_devices_are_one_of_eight(tmp_path, alone):
    said = finish(start_two(tmp_path / "run", free_port(), "--expect_devices=8"))
    assert "process 0 of 2 (by flags): 4 of 8 devices" in said[0]
    assert "process 1 of 2 (by flags): 4 of 8 devices" in said[1]
    assert "poisoned" in said[0]
    assert "poisoned" not in said[1]  # One process reports.
    check_same_run(tmp_path / "run", alone)


def test_a_signal_to_one_process_stops_both_and_the_run_goes_on(tmp_path, alone):
    workdir = tmp_path / "run"
    two = start_two(workdir, free_port())
    metrics = workdir / "poisoned" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.exists() and metrics.read_text()):
        assert time.monotonic() < deadline
        assert two[0].poll() is None, two[0].communicate()[0]
        time.sleep(0.05)
    two[1].send_signal(signal.SIGTERM)
    finish(two, code=143)
    assert not (workdir / "summary.json").exists()
    finish(start_two(workdir, free_port()))
    check_same_run(workdir, alone)


def test_another_number_of_devices_than_expected_is_an_error(tmp_path):
    said = finish([start(tmp_path / "run", 2, "--expect_devices=8")], code=2)
    assert "--expect_devices=8, but there are 2" in said[0]
    assert len(said[0].splitlines()) == 1
