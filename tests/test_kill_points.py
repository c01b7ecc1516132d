"""A run stopped while it compiles, then killed at three random moments, ends as an unbroken one."""

import random
import signal

import pytest

from clipdef_jax.train import metrics
from tests import kill_points
from tests.kill_points import CHECKPOINT, Moment


@pytest.mark.slow
def test_stopped_and_killed_again_and_again(tmp_path):
    job = kill_points.smallest(tmp_path / "cache")
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    # Nothing is in the cache yet: the first step takes seconds to compile.
    compiling = Moment("compiling", "poisoned/metrics.jsonl", delay=0.5)
    stopped = kill_points.stop(job, broken, compiling, signal.SIGTERM)
    assert stopped.code == 128 + signal.SIGTERM, stopped.printed
    assert "SIGTERM: saving; Ctrl-C stops at once" in stopped.printed
    assert "stopped by SIGTERM; give the same command again to go on" in stopped.printed
    assert [row["step"] for row in metrics.read(broken / "poisoned" / "metrics.jsonl")] == [1]
    assert (broken / "poisoned" / "checkpoints" / "1").is_dir()

    seconds = kill_points.duration(job, whole)
    rng = random.Random()
    moments = [
        Moment("checkpoint", CHECKPOINT, rng.randint(1, 3), rng.uniform(0, 0.05)),
        Moment("work", delay=rng.uniform(0, seconds)),
        Moment("model", "*/.model.unfinished", delay=rng.uniform(0, 0.01)),
    ]
    history = [f"{moment}: {kill_points.stop(job, broken, moment).doing}" for moment in moments]
    job.finish(broken)
    assert kill_points.differences(whole, broken) == [], history
