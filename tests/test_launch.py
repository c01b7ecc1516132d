"""What can be said of the launch files without the engines they are for."""

import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys

import pytest
import yaml

LAUNCH = pathlib.Path(__file__).resolve().parents[1] / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


def documents(name):
    return list(yaml.safe_load_all((LAUNCH / "k8s" / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.stat(script).st_mode & stat.S_IXUSR
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


def test_there_is_a_script_for_every_engine():
    assert [path.name for path in SCRIPTS] == ["local.sh", "multi_process.sh", "slurm.sbatch"]


def slurm(tmp_path, code):
    """Runs the batch script with stand-ins for srun and scontrol; returns what these were told."""
    for name, exit_code in (("srun", code), ("scontrol", 0)):
        script = f'#!/bin/bash\necho "{name} $@ [$JAX_COMPILATION_CACHE_DIR]"\nexit {exit_code}\n'
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    environ |= {"SLURM_SUBMIT_DIR": "/sub", "SLURM_JOB_NUM_NODES": "4", "SLURM_GPUS_ON_NODE": "8"}
    environ["SLURM_CPUS_PER_TASK"] = "16"
    done = subprocess.run(
        [LAUNCH / "slurm.sbatch", "--config=c.py"],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (143, True)])
def test_slurm_goes_back_into_the_queue_only_when_the_run_was_stopped(tmp_path, code, requeued):
    returned, told = slurm(tmp_path, code)
    assert returned == code
    assert "--expect_devices=32 --config=c.py [/sub/workdir/compiled]" in told
    assert ("scontrol requeue 7" in told) == requeued


def test_slurm_asks_for_one_process_a_node_and_time_to_save():
    text = (LAUNCH / "slurm.sbatch").read_text(encoding="utf-8")
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", text, re.MULTILINE))
    assert options["ntasks-per-node"] == "1"
    assert "--cpus-per-task=" in text.split("srun ")[-1]
    assert options["signal"] == "TERM@180"  # To the processes: with B: it would be the script.
    assert "requeue" in options


def test_jobset_is_one_run_of_indexed_pods():
    (jobset,) = documents("jobset.yaml")
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["spec"]["network"]["enableDNSHostnames"] is True
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"]
    assert job["backoffLimit"] == 0
    # A user's mistake, exit status 2, is not tried again.
    (mistake,) = job["podFailurePolicy"]["rules"]
    assert (mistake["action"], mistake["onExitCodes"]["values"]) == ("FailJob", [2])
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--expect_devices={gpus * job['completions']}" in container["args"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_pods_account_may_read_what_jax_reads():
    account, role, binding = documents("rbac.yaml")
    (jobset,) = documents("jobset.yaml")
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert binding["subjects"][0]["name"] == account["metadata"]["name"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    allowed = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert {("", "pods", "list"), ("", "services", "list"), ("batch", "jobs", "get")} <= allowed


@pytest.mark.parametrize("arguments", [[], ["0"], ["two"]])
def test_multi_process_says_how_it_is_used(arguments):
    done = subprocess.run(
        [LAUNCH / "multi_process.sh", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "usage: " in done.stderr


def test_multi_process_ends_with_the_status_of_the_process_that_fails(tmp_path):
    python = tmp_path / "python"
    # The port is asked of the interpreter; then process 1 fails and process 0 would go on for long.
    python.write_text(
        f'#!/bin/bash\n[[ $1 == -c ]] && exec {sys.executable} "$@"\n'
        "[[ $* == *--process_id=1* ]] && { echo failing; exit 3; }\nexec sleep 60\n"
    )
    python.chmod(0o755)
    done = subprocess.run(
        [LAUNCH / "multi_process.sh", "2", "--config=c.py"],
        env=os.environ | {"PYTHON": str(python)},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 3
    assert "[1] failing" in done.stdout
