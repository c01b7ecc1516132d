"""Signals become requests; the second Ctrl-C is not patient."""

import os
import signal
import subprocess
import sys
import time

import pytest

from clipdef_jax import interrupts

PROGRAM = """
import sys, time
from clipdef_jax import interrupts
interrupts.install()
print("ready", flush=True)
try:
    while True:
        time.sleep(0.05)
        if len(sys.argv) == 1:
            interrupts.check()
except interrupts.Interrupted as stop:
    print("stopped by", stop.signum, flush=True)
"""


@pytest.fixture
def program():
    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "ready\n"
        return process

    return start


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_the_next_check(program, signum):
    process = program()
    process.send_signal(signum)
    output, errors = process.communicate(timeout=20)
    assert output == f"stopped by {signum.value}\n"
    assert errors == ""


def test_a_second_ctrl_c_stops_at_once(program):
    process = program("never checks")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors


def test_no_request_no_stop(monkeypatch):
    monkeypatch.setattr(interrupts, "_requested", None)
    interrupts.check()
    assert not interrupts.requested()
    monkeypatch.setattr(interrupts, "_requested", int(signal.SIGTERM))
    assert interrupts.requested()
    with pytest.raises(interrupts.Interrupted):
        interrupts.check()
