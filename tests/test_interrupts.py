"""Signals stop at once, or at the next check where they are deferred; a second Ctrl-C is final."""

import signal
import subprocess
import sys

import pytest

from clipdef_jax import interrupts

PROGRAM = """
import contextlib, sys, time
from clipdef_jax import interrupts

interrupts.install()
try:
    with interrupts.deferred() if "deferred" in sys.argv else contextlib.nullcontext():
        print("ready", flush=True)
        while not interrupts.requested() or "deaf" in sys.argv:
            time.sleep(0.01)
        print("requested", flush=True)
        if "checks" in sys.argv:
            interrupts.check()
        print("end of the block", flush=True)
except interrupts.Interrupted as stop:
    print("stopped by", stop.signum, flush=True)
"""


@pytest.fixture
def program():
    processes = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["deaf"], []),
        (["deferred", "checks"], ["requested"]),
        (["deferred"], ["requested", "end of the block"]),
    ],
)
def test_a_signal_stops_at_once_or_when_it_may(program, signum, arguments, lines):
    process = program(*arguments)
    process.send_signal(signum)
    output, errors = process.communicate(timeout=20)
    assert output.splitlines() == [*lines, f"stopped by {signum.value}"]
    said = f"{signum.name}: saving; Ctrl-C stops at once"
    assert errors.split("\n") == (["", said, ""] if lines else [""])


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_after_a_signal_kills(program, first):
    process = program("deferred", "deaf")
    process.send_signal(first)
    assert process.stderr.readline() == "\n"
    assert process.stderr.readline().startswith(f"{first.name}: saving")
    process.send_signal(signal.SIGTERM)  # Engines may send it more than once.
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.3)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert (output, errors) == ("", "")


def test_no_request_no_stop(monkeypatch):
    monkeypatch.setattr(interrupts, "_requested", None)
    interrupts.check()
    assert not interrupts.requested()
    monkeypatch.setattr(interrupts, "_requested", int(signal.SIGTERM))
    assert interrupts.requested()
    with pytest.raises(interrupts.Interrupted):
        interrupts.check()


def test_nobody_takes_an_interruption_for_a_failure():
    assert not issubclass(interrupts.Interrupted, Exception)


def test_a_failure_inside_a_block_is_not_hidden_by_a_request(monkeypatch):
    monkeypatch.setattr(interrupts, "_requested", None)

    def fails():
        interrupts._handle(signal.SIGTERM, None)
        raise ValueError("what went wrong")

    with pytest.raises(ValueError, match="what went wrong"), interrupts.deferred():
        fails()


def test_a_request_that_got_lost_is_met_at_the_next_block(monkeypatch):
    monkeypatch.setattr(interrupts, "_requested", int(signal.SIGTERM))
    with pytest.raises(interrupts.Interrupted), interrupts.deferred():
        raise AssertionError("the block was entered")


def test_a_block_within_a_block_leaves_signals_deferred(monkeypatch):
    monkeypatch.setattr(interrupts, "_requested", None)
    with interrupts.deferred():
        with interrupts.deferred():
            pass
        interrupts._handle(signal.SIGTERM, None)
        monkeypatch.setattr(interrupts, "_requested", None)
    with pytest.raises(interrupts.Interrupted):
        interrupts._handle(signal.SIGTERM, None)
