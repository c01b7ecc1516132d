"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import Any

import rich.console
import rich.progress

console = rich.console.Console(highlight=False)
# Seconds between lines where there is no terminal to redraw a bar on.
_LINE_EVERY = 20.0


class Progress:
    """Shows how far the work is, its rate and the time left.

    Args:
      title: what is being done.
      total: number of steps.
      start: steps already done.
      unit: what a step handles, for the rate.
      per_step: how many of them.
    """

    def __init__(self, title: str, total: int, start: int = 0, *, unit: str, per_step: int = 1):
        self._title, self._total, self._unit, self._per_step = title, total, unit, per_step
        self._first = self._done = start
        self._began = self._shown = time.monotonic()
        self._text = ""
        self.seconds = 0.0
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("  {task.description:<12}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[rate]}"),
            rich.progress.TimeRemainingColumn(compact=True),
            rich.progress.TextColumn("{task.fields[text]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, completed=start, rate="", text="")

    def __enter__(self) -> Progress:
        self._bar.start()
        self._began = self._shown = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.seconds = time.monotonic() - self._began
        self._bar.stop()
        if kind is None:
            console.print(
                f"  {self._title:<12} {self._done}/{self._total} steps  {self._rate()}  "
                f"{duration(self.seconds)}  {self._text}".rstrip()
            )

    def update(self, done: int, **figures: Any) -> None:
        """Shows that `done` steps are done, with a few current figures."""
        self._done = done
        self._text = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
        self._bar.update(self._task, completed=done, rate=self._rate(), text=self._text)
        now = time.monotonic()
        if not console.is_terminal and now - self._shown > _LINE_EVERY:
            left = (now - self._began) / max(done - self._first, 1) * (self._total - done)
            console.print(
                f"  {self._title:<12} {done}/{self._total} steps  {self._rate()}  "
                f"{duration(left)} left  {self._text}"
            )
            self._shown = now

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-9)
        return f"{(self._done - self._first) * self._per_step / seconds:,.0f} {self._unit}/s"

    def note(self, text: str) -> None:
        """Prints a remark under the bar."""
        console.print(f"  {'':<12} [dim]{text}[/dim]")


def duration(seconds: float) -> str:
    """Returns seconds as people read them: "42 s", "3 min 05 s", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
