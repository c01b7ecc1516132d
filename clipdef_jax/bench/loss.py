"""What a loss costs: a step with each against one with `clip`; InfoNCE by tiles against dense."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from clipdef_jax import losses, models, sharding
from clipdef_jax.bench import timing, workload
from clipdef_jax.losses.contrastive import symmetric_info_nce
from clipdef_jax.models.clip import CLIP
from clipdef_jax.models.config import NAMED
from clipdef_jax.types import Loss

# At its dearest: a pool beyond the paper's, searched and written in every step.
_SETTINGS: dict[str, dict[str, Any]] = {"roclip": {"pool_size": 65_536, "every": 1}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    parser.add_argument("--model", default="ViT-B/32", choices=sorted(NAMED))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--losses",
        nargs="+",
        default=sorted(losses.BUILTIN),
        choices=sorted(losses.BUILTIN),
        help="default: all",
    )
    parser.add_argument(
        "--rows",
        nargs="*",
        type=int,
        default=[1024, 8192],
        help="batches of InfoNCE alone, of 512 numbers a row",
    )
    parser.add_argument("--repeats", type=int, default=5)


def run(arguments: argparse.Namespace) -> timing.Result:
    """Measures the losses."""
    mesh = sharding.make_mesh()
    clip = models.get(arguments.model, dtype=arguments.dtype)
    cost = {
        name: _flops(clip, losses.get(name, **_SETTINGS.get(name, {})), arguments.batch)
        for name in {"clip", *arguments.losses}
    }
    rows: list[dict[str, Any]] = []
    with jax.set_mesh(mesh):
        plain = workload.Workload(clip, "clip", arguments.batch, mesh)
        for name in arguments.losses:
            if name == "clip":
                continue
            augmentation = "roclip" if name == "roclip" else "autoaugment"
            # One beside the other, not all at once: each holds a model and its moments.
            settings = _SETTINGS.get(name, {})
            other = workload.Workload(clip, name, arguments.batch, mesh, augmentation, **settings)
            seconds = timing.in_turn({"clip": plain, name: other}, arguments.repeats)
            rows.append(
                {
                    "what": " ".join(["step,", name, *(f"{k}={v}" for k, v in settings.items())]),
                    "seconds": statistics.median(seconds[name]),
                    "beside": "step, clip",
                    "its seconds": statistics.median(seconds["clip"]),
                    "ratio": timing.ratio(seconds, name, "clip"),
                    "ratio by FLOPs": cost[name] / cost["clip"],
                    "MiB": None,
                    "its MiB": None,
                }
            )
            del other
    rows += [_info_nce(count, arguments.repeats) for count in arguments.rows]
    title = f"{arguments.model}, batch {arguments.batch}, {arguments.dtype}"
    notes = ["MiB: temporary memory of the compiled value and gradient, on one device"]
    return timing.Result(f"Losses: {title}", rows, notes)


def _flops(clip: CLIP, loss: Loss, rows: int) -> int:
    return workload.model_flops(clip, loss, rows) + workload.loss_flops(clip, loss, rows)


def _info_nce(count: int, repeats: int) -> dict[str, Any]:
    """Measures value and gradient of InfoNCE over unit rows of 512, by tiles and dense."""
    image_rng, text_rng = jax.random.split(jax.random.key(0))
    image, text = (jax.random.normal(rng, (count, 512)) for rng in (image_rng, text_rng))
    image, text = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))

    def dense(image_BxD: jax.Array, text_BxD: jax.Array, log_scale: float) -> jax.Array:
        logits_BxB = jnp.exp(log_scale) * image_BxD @ text_BxD.T
        own_B = jnp.diagonal(logits_BxB)
        both = (jax.nn.logsumexp(logits_BxB, axis=axis) - own_B for axis in (0, 1))
        return jnp.mean(sum(both)) / 2

    functions: dict[str, Callable[..., Any]] = {"tiles": symmetric_info_nce, "dense": dense}
    compiled: dict[str, Any] = {}
    for name, function in functions.items():
        gradient = jax.jit(jax.value_and_grad(function, argnums=(0, 1)))
        compiled[name] = gradient.lower(image, text, 2.6).compile()
    runs = {
        name: lambda program=program: program(image, text, 2.6)
        for name, program in compiled.items()
    }
    seconds = timing.in_turn(runs, repeats)
    memory = {
        name: program.memory_analysis().temp_size_in_bytes / 2**20
        for name, program in compiled.items()
    }
    return {
        "what": f"InfoNCE, {count:,} rows, by tiles",
        "seconds": statistics.median(seconds["tiles"]),
        "beside": "dense",
        "its seconds": statistics.median(seconds["dense"]),
        "ratio": timing.ratio(seconds, "tiles", "dense"),
        "ratio by FLOPs": None,
        "MiB": memory["tiles"],
        "its MiB": memory["dense"],
    }
