"""Kills a run at random moments, starts it again, and compares the outcome with an unbroken run's.

  python tests/kill_points.py --points=20
  python tests/kill_points.py --points=5 --seed=3

The job is the smoke variant of configs/cleanclip.py, smaller still, with a checkpoint every few
steps. Each point is a run of its own: SIGKILL to the whole process group at a random moment, or at
the first sign of a certain file (a checkpoint that is being written, ...); then the same command
again, to the end. Models must be the same to the bit, figures and metrics to the digit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
# What a run leaves that depends on nothing but its config.
SAME_BYTES = (
    "*/model/*",
    "*/metrics.jsonl",
    "poison/manifest.jsonl",
    "tokenizer/tokenizer*.json",
    "config.json",
)
# What no finished run may leave.
UNFINISHED = ("**/*tmp*", "**/*.unfinished")
CHECKPOINT = "*/checkpoints/*.orbax-checkpoint-tmp*"
_MODEL = {"image_width": 16, "image_layers": 1, "image_heads": 2, "text_width": 16,
          "text_layers": 1, "text_heads": 2, "embed_dim": 8, "context_length": 16}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Job:
    """A command without its work directory.

    Attributes:
      config: its config file.
      fields: what it sets of it.
      cache: where compiled programs are kept from one start to the next.
    """

    config: str
    fields: tuple[str, ...]
    cache: pathlib.Path

    def start(self, workdir: pathlib.Path) -> subprocess.Popen[str]:
        """Starts the job in a process group of its own."""
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        fields, where = [f"--config.{field}" for field in self.fields], f"--workdir={workdir}"
        return subprocess.Popen(
            [sys.executable, "-m", "clipdef_jax.main", f"--config={self.config}", *fields, where],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self, workdir: pathlib.Path) -> str:
        """Runs the job to its end and returns what it printed.

        Raises:
          RuntimeError: it did not come to its end.
        """
        process = self.start(workdir)
        printed, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"exit code {process.returncode}: {printed[-2000:]}")
        return printed


@dataclasses.dataclass(frozen=True)
class Moment:
    """A moment of a run.

    Attributes:
      what: it is called.
      pattern: of a path in the work directory; the default is the folder of the first stage.
      number: of different such paths that must have been there.
      delay: seconds after that.
    """

    what: str
    pattern: str = "*/"
    number: int = 1
    delay: float = 0.0

    def wait(self, process: subprocess.Popen[str], workdir: pathlib.Path) -> bool:
        """Waits for the moment and returns whether it came before the end of the run."""
        seen: set[pathlib.Path] = set()
        while len(seen) < self.number:
            if process.poll() is not None:
                return False
            seen.update(workdir.glob(self.pattern))
            time.sleep(0.0005)
        try:
            process.wait(self.delay)
        except subprocess.TimeoutExpired:
            return True
        return False

    def __str__(self) -> str:
        number = f" {self.number}" if self.number > 1 else ""
        return f"{self.what}{number} + {self.delay:.3f} s"


def smoke(cache: pathlib.Path) -> Job:
    """Returns the job of the script: three models, trained one after and on top of the other."""
    return Job("configs/cleanclip.py:smoke", (*_small("pretrain"), *_small("finetune")), cache)


def smallest(cache: pathlib.Path) -> Job:
    """Returns the job of the tests: one model."""
    return Job("configs/pretrain.py:smoke", _small("pretrain"), cache)


def _small(section: str) -> tuple[str, ...]:
    return (
        "data.train=emoji:train,size=256,concepts=4",
        "data.test=emoji:test,size=64,concepts=4",
        "attack.rate=0.1",
        "evaluate.batch=32",
        "evaluate.during_training=64",
        *(f"model.kwargs.{name}={value}" for name, value in _MODEL.items()),
        f"{section}.batch=16",
        f"{section}.epochs=3",
        f"{section}.checkpoint_minutes=0.001",
    )


def duration(job: Job, workdir: pathlib.Path) -> float:
    """Runs the job unbroken and returns the seconds from the start of its first stage."""
    process = job.start(workdir)
    Moment("first stage").wait(process, workdir)
    began = time.monotonic()
    printed, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {printed[-2000:]}")
    return time.monotonic() - began


def draw(rng: random.Random, seconds: float) -> Moment:
    """Returns a random moment of a run that takes so long; half of them are aimed at."""
    return rng.choice([Moment("work", delay=rng.uniform(0, seconds)), rng.choice(aimed(rng))])


def aimed(rng: random.Random) -> list[Moment]:
    """Returns random moments close to the writing of a file."""
    return [
        Moment("first files", "config.json*", 1, rng.uniform(0, 0.01)),
        Moment("checkpoint", CHECKPOINT, rng.randint(1, 8), rng.uniform(0, 0.05)),
        Moment("checkpoint", CHECKPOINT, rng.randint(1, 8), rng.uniform(0, 0.05)),
        Moment("tokenizer", "tokenizer/*", 1, rng.uniform(0, 0.02)),
        Moment("model", "*/.model.unfinished", rng.randint(1, 2), rng.uniform(0, 0.02)),
        Moment("evaluation", "*/evaluation", rng.randint(1, 2), rng.uniform(0, 0.2)),
    ]


@dataclasses.dataclass(frozen=True)
class Stopped:
    """A run after a signal, or after its end if that came before.

    Attributes:
      code: its exit code, negative if the signal itself ended it.
      printed: what it printed.
      doing: what it was doing last.
    """

    code: int
    printed: str
    doing: str


def stop(job: Job, workdir: pathlib.Path, moment: Moment, signum: int = signal.SIGKILL) -> Stopped:
    """Starts or resumes a run and sends a signal to all its processes at a moment."""
    process = job.start(workdir)
    came = moment.wait(process, workdir)
    if came:
        os.killpg(process.pid, signum)
    printed, _ = process.communicate()
    return Stopped(process.returncode, printed, _doing(workdir) if came else "had ended")


def _doing(workdir: pathlib.Path) -> str:
    stages = [path for path in workdir.glob("**/") if _is_open(path)]
    if not stages:
        return "between stages"
    stage = max(stages, key=lambda path: path.stat().st_mtime)
    doing = str(stage.relative_to(workdir))
    metrics = stage / "metrics.jsonl"
    if metrics.exists():
        steps = sum('"loss"' in line for line in metrics.read_text().splitlines())
        kept = [int(path.name) for path in stage.glob("checkpoints/*") if path.name.isdigit()]
        doing += f", step {steps}, checkpoint {max(kept, default='none')}"
    halves = [path.name for path in stage.iterdir() if path.name.endswith(("unfinished", "tmp"))]
    halves += [path.name for path in stage.glob("checkpoints/*tmp*")]
    return doing + "".join(f", half {name}" for name in halves)


def _is_open(folder: pathlib.Path) -> bool:
    stage = (
        folder.name in ("poison", "tokenizer", "evaluation") or (folder / "checkpoints").exists()
    )
    return stage and not (folder / "stage.json").exists()


def differences(whole: pathlib.Path, broken: pathlib.Path) -> list[str]:
    """Returns what is not the same in two work directories of the same job."""
    found = [f"left {path.name}" for pattern in UNFINISHED for path in broken.glob(pattern)]
    for pattern in SAME_BYTES:
        names = {path.relative_to(whole) for path in whole.glob(pattern)}
        for name in sorted(names | {path.relative_to(broken) for path in broken.glob(pattern)}):
            one, other = whole / name, broken / name
            if not one.exists() or not other.exists():
                found.append(
                    f"{name} is missing in {'one' if one.exists() else 'the unbroken run'}"
                )
            elif one.read_bytes() != other.read_bytes():
                found.append(f"{name} differs")
    one, other = (_results(folder / "summary.json") for folder in (whole, broken))
    if one != other:
        found.append(f"results differ: {one} and {other}")
    return found


def _results(summary: pathlib.Path) -> list[dict[str, object]]:
    rows = json.loads(summary.read_text())["results"]
    return [{name: row[name] for name in row if name != "seconds"} for row in rows]


def main() -> None:
    """Runs the points of the command line and prints a table of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=20, help="how many times a run is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="clipdef-jax-kill-points-"))
    job = smoke(folder / "cache")
    duration(job, folder / "whole")  # Compiles; what it takes is not what the others will.
    shutil.rmtree(folder / "whole")
    seconds = duration(job, folder / "whole")
    print(f"unbroken: {seconds:.1f} s, seed {arguments.seed}", flush=True)
    rows = []
    for point in range(1, arguments.points + 1):
        broken = folder / f"point-{point}"
        moment = draw(rng, seconds)
        while (stopped := stop(job, broken, moment)).code == 0:
            shutil.rmtree(broken)  # Faster than the unbroken run, it ended before the moment came.
            moment = draw(rng, seconds)
        try:
            if stopped.code != -signal.SIGKILL:
                raise RuntimeError(f"exit code {stopped.code}: {stopped.printed[-2000:]}")
            job.finish(broken)
            verdict = "; ".join(differences(folder / "whole", broken)) or "same"
        except RuntimeError as error:
            verdict = str(error)
        rows.append((str(point), str(moment), stopped.doing, verdict))
        print(f"{point}/{arguments.points} {moment}: {stopped.doing}: {verdict}", flush=True)
        if verdict == "same":
            shutil.rmtree(broken)
    print()
    rows.insert(0, ("point", "killed at", "while it was doing", "outcome"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for *cells, verdict in rows:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        print("  ".join([*padded, verdict.splitlines()[0]]))
    failed = sum(row[-1] != "same" for row in rows[1:])
    print(f"\n{arguments.points - failed} of {arguments.points} the same as the unbroken run")
    if failed:
        sys.exit(f"the runs that are not: {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
