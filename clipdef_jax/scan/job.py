"""The job that looks for poisoned pairs: embed -> score -> flag -> report.

Each stage leaves its files in the work directory. Embeddings are kept shard by shard, so a scan
that was stopped goes on with the shard it was in. Another threshold needs no stage but the last.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import tempfile
import warnings
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.markup import escape

import clipdef_jax
from clipdef_jax import detect, interrupts, parts, processes, sharding
from clipdef_jax.data import stored
from clipdef_jax.data.loader import Loader
from clipdef_jax.detect import encode
from clipdef_jax.detect.embeddings import Embeddings
from clipdef_jax.detect.protocols import FROM_EMBEDDINGS
from clipdef_jax.detect.threshold import BY
from clipdef_jax.errors import UserError
from clipdef_jax.jobs import run_stage, words, write_json
from clipdef_jax.parts import Model, Run
from clipdef_jax.progress import Progress, console
from clipdef_jax.scan import outcome
from clipdef_jax.scan.estimate import estimate
from clipdef_jax.scan.gallery import Scanned
from clipdef_jax.scan.material import open_material
from clipdef_jax.types import Source


def run(config: ConfigDict, workdir: pathlib.Path, *, command: str) -> dict[str, Any]:
    """Scans a source, or a folder of embeddings, and leaves scores, lists and a report.

    Args:
      config: a job with the sections `embed`, `score`, `flag`, `report` and `clean`; see
        `configs/detect.py`.
      workdir: the scan's folder.
      command: the command line, for the report.

    Returns:
      The summary, as in `summary.json`; of a dry run, which writes nothing, the estimate.

    Raises:
      UserError: a mistake in the config or the data, or files of another run in the folder.
      Interrupted: the scan was asked to stop; what was done is saved.
    """
    processes.require_one("a scan")
    methods = _check(config)
    mesh = sharding.make_mesh(config.mesh.fsdp)
    with jax.set_mesh(mesh):
        if config.dry_run:
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder)
                job = Run(config, path, mesh, parts.unreadable_list(path))
                return estimate(job, open_material(job, {}), methods)
        return _run(Run(config, workdir, mesh, parts.unreadable_list(workdir)), methods, command)


def _run(job: Run, methods: tuple[str, ...], command: str) -> dict[str, Any]:
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)"
    console.print(f"[bold]clipdef_jax {clipdef_jax.__version__}[/bold]  {devices}  {job.workdir}")
    seconds: dict[str, float] = {}
    notes: list[str] = []
    material = open_material(job, seconds)
    if material.model is None or material.source is None:
        folder = pathlib.Path(job.config.embed.folder)
    else:
        folder = _embed(job, material.source, material.model, seconds)
    found = Embeddings(folder)
    scores = _score(job, found, methods, seconds, notes)
    return outcome.conclude(
        job,
        Scanned(found, scores, material.source, material.attack_plan),
        seconds=seconds,
        notes=notes,
        command=command,
    )


def _check(config: ConfigDict) -> tuple[str, ...]:
    """Returns the detectors, the one that flags first; raises `UserError` at a mistake."""
    methods = words(config.score.methods)
    for method in methods:
        if method not in FROM_EMBEDDINGS:
            raise UserError(
                f"score.methods: {method!r} is no detector that goes by embeddings; expected some "
                f"of {', '.join(FROM_EMBEDDINGS)}"
            )
    if config.flag.method not in methods:
        raise UserError(
            f"flag.method={config.flag.method!r} is not among score.methods={','.join(methods)}; "
            "flag by one of these"
        )
    if config.flag.by not in BY:
        raise UserError(f"flag.by={config.flag.by!r}: expected one of {', '.join(BY)}")
    for name, fields in (("embed", config.embed), ("clean", config.clean)):
        for field in ("batch", "records_per_shard", "records_per_tar"):
            if field in fields and fields[field] < 1:
                raise UserError(f"{name}.{field}={fields[field]}: expected 1 or more")
    if config.embed.dtype not in ("float32", "float16"):
        raise UserError(f"embed.dtype={config.embed.dtype!r}: expected float32 or float16")
    return (config.flag.method, *(m for m in methods if m != config.flag.method))


def _embed(job: Run, source: Source, model: Model, seconds: dict[str, float]) -> pathlib.Path:
    config, folder = job.config, job.workdir / "embeddings"
    _claim(
        folder / "made.json",
        {
            "checkpoint": config.init,
            "parameters": _fingerprint(model),
            "source": config.data.train,
            "records": len(source),
        },
    )

    def body() -> dict[str, Any]:
        with Progress("embedding", len(source), unit="pairs") as progress:

            def on_records(done: int) -> None:
                interrupts.check()
                progress.update(done)

            encode.encode(
                Loader(source, model.tokenizer, model.clip.config.image_size),
                model.clip,
                model.params,
                folder,
                mesh=job.mesh,
                batch=config.embed.batch,
                records_per_shard=config.embed.records_per_shard,
                dtype=config.embed.dtype,
                workers=config.data.workers,
                on_skip=job.unreadable.add,
                on_records=on_records,
            )
        return {}

    result, done = run_stage(folder, body)
    seconds["embed"] = result["seconds"]
    heading("embed", f"{len(source):,} pairs by {config.init}", done)
    return folder


def _claim(path: pathlib.Path, made: dict[str, Any]) -> None:
    """Checks that a folder's embeddings are made like this, or are to be made yet.

    Raises:
      UserError: they are made otherwise.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, made)
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    for name, value in made.items():
        if there.get(name) != value:
            raise UserError(
                f"{path.parent} holds embeddings of another run: {name} was {there.get(name)!r}, "
                f"is {value!r}; use another --workdir"
            )


def _fingerprint(model: Model) -> str:
    """Returns what tells a model's parameters from those of any other one."""
    found = hashlib.sha256(repr(model.clip.config).encode())
    for leaf in jax.tree.leaves(model.params):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()[:16]


def _score(
    job: Run,
    found: Embeddings,
    methods: tuple[str, ...],
    seconds: dict[str, float],
    notes: list[str],
) -> dict[str, np.ndarray]:
    folder, digest = job.workdir / "scores", found.digest()
    settings = job.config.score.to_dict()
    settings.pop("methods")

    def body() -> dict[str, Any]:
        spent = {"knn": 0.0}
        found.check_finite()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with Progress("scoring", len(found), unit="pairs") as progress:

                def on_step(done: int, steps: int) -> None:
                    interrupts.check()
                    progress.update(len(found) * done // steps)

                scores = detect.score_all(
                    found.image,
                    found.text,
                    methods=methods,
                    seed=job.config.seed,
                    progress=on_step,
                    seconds=spent,
                    **settings,
                )
        for method, values in scores.items():
            stored.save_array(folder / f"{method}.npy", values)
        said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
        return {
            "embeddings": digest,
            "pairs": len(found),
            "warnings": said,
            "knn": round(spent["knn"], 2),
        }

    result, done = run_stage(folder, body)
    if result["embeddings"] != digest:
        raise UserError(
            f"{folder} holds scores of other embeddings than those that are there now "
            f"({result['pairs']:,} pairs then, {len(found):,} now); use another --workdir"
        )
    scores = {}
    for method in methods:
        path = folder / f"{method}.npy"
        try:
            scores[method] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: {error}; delete the folder to score again") from None
        if scores[method].shape != (len(found),):
            raise UserError(
                f"{path} holds {scores[method].shape} scores, the embeddings are of {len(found)} "
                "pairs: it belongs to another run; delete the folder to score again"
            )
    seconds["knn"] = result["knn"]
    seconds["score"] = round(result["seconds"] - result["knn"], 2)
    notes += result["warnings"]
    heading("score", f"{len(found):,} pairs by {', '.join(methods)}", done)
    return scores


def heading(stage: str, text: str, done: bool) -> None:
    """Prints what a stage has done."""
    said = f"[bold cyan]{stage:<9}[/bold cyan] {escape(text)}{' [dim](done before)[/dim]' * done}"
    console.print(said)
