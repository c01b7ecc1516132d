"""What image views cost, each image, and as a share of a CleanCLIP step."""

from __future__ import annotations

import argparse
import statistics

import jax
import numpy as np

from clipdef_jax import augment, models, sharding
from clipdef_jax.bench import timing, workload
from clipdef_jax.models.config import NAMED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    parser.add_argument("--model", default="ViT-B/32", choices=sorted(NAMED))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)


def run(arguments: argparse.Namespace) -> timing.Result:
    """Measures each built-in view but the void one."""
    mesh = sharding.make_mesh()
    clip = models.get(arguments.model)
    side = clip.config.image_size
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (arguments.batch, side, side, 3), dtype=np.uint8)
    names = sorted(set(augment.BUILTIN) - {"none"})
    with jax.set_mesh(mesh):
        step = workload.Workload(clip, "cleanclip", arguments.batch, mesh, "autoaugment")
        batch = sharding.shard_batch(mesh, {"image": images})["image"]
        key = jax.random.key(0)
        views = {name: jax.jit(augment.get(name)) for name in names}
        runs = {name: lambda view=view: view(key, batch) for name, view in views.items()}
        seconds = timing.in_turn(runs | {"step": step}, arguments.repeats)
    rows = [
        {
            "view": name,
            "ms an image": 1000 * statistics.median(seconds[name]) / arguments.batch,
            "images/s": arguments.batch / statistics.median(seconds[name]),
            "of a step": f"{1 / timing.ratio(seconds, 'step', name):.1%}",
        }
        for name in names
    ]
    note = f"step: cleanclip, {arguments.model}, batch {arguments.batch}, float32, autoaugment"
    return timing.Result(f"Image views at {side} px", rows, [note])
