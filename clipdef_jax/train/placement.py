"""Which arrays of a training state are split over the `fsdp` axis of the mesh, and how.

The optimiser's moments have the path of their parameter as a suffix, so they follow it.
"""

from __future__ import annotations

from jax.sharding import PartitionSpec

from clipdef_jax import sharding
from clipdef_jax.train.state import REPLICATED

_WHOLE = PartitionSpec()

# Every matrix along its last axis, the features it makes: the widths of CLIPs are multiples of 64,
# while vocabularies, positions and patches come in any number. What is small stays whole.
FSDP: sharding.Rules = (
    # Counters and the run's key, and what a loss remembers.
    (r"^(step|rng)$|(^|/)(count|mini_step|gradient_step)$", _WHOLE),
    (r"^loss_state(/|$)", _WHOLE),
    (r"(^|/)(log_scale|scale|bias|mean|var|class_embedding)$", _WHOLE),
    # A ResNet's stem: a few thousand numbers.
    (r"/image/conv\d/kernel$", _WHOLE),
    (r"/(conv\d|downsample_conv)/kernel$", PartitionSpec(None, None, None, "fsdp")),
    (r"/patch_embedding$", PartitionSpec(None, None, None, "fsdp")),
    (r"/(kernel|projection|token_embedding|positional_embedding)$", PartitionSpec(None, "fsdp")),
)


def rules_of(fsdp: int) -> sharding.Rules:
    """Returns the rules where `fsdp` devices share one copy of the parameters."""
    return REPLICATED if fsdp == 1 else FSDP
