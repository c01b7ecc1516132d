"""Progress without a terminal: a line at the end, and now and then on the way."""

import pytest

from clipdef_jax import progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text


def test_lines_tell_rate_and_time_left(capsys, monkeypatch):
    clock = iter(range(0, 10_000, 30))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with progress.Progress("poisoned", 10, 4, unit="pairs", per_step=64) as shown:
        shown.update(5, loss=2.5)
        shown.update(10, loss=1.25)
    lines = capsys.readouterr().out.splitlines()
    assert "5/10 steps" in lines[0]
    assert "left  loss 2.500" in lines[0]
    assert "10/10 steps" in lines[-1]
    assert "loss 1.250" in lines[-1]


def test_an_interrupted_bar_claims_nothing(capsys):
    with (
        pytest.raises(KeyboardInterrupt),
        progress.Progress("poisoned", 10, unit="pairs"),
    ):
        raise KeyboardInterrupt
    assert capsys.readouterr().out == ""
