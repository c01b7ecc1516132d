"""Everything a run carries from step to step, and how it comes into being on a mesh."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, PartitionSpec

from clipdef_jax import sharding
from clipdef_jax.errors import UserError
from clipdef_jax.models import head
from clipdef_jax.models.clip import CLIP
from clipdef_jax.train import views
from clipdef_jax.types import Loss

REPLICATED: sharding.Rules = ((".*", PartitionSpec()),)


@struct.dataclass
class TrainState:
    """The state of a run; what a step takes (and donates) and gives back.

    Attributes:
      step: batches seen, int32 scalar.
      params: the model's parameters, batch statistics included, and "head" for a loss that wants
        "logits".
      opt_state: the optimiser's state.
      loss_state: the loss's own state.
      reference: parameters that the run began with, for a loss that compares; else ().
      rng: key of the run; a step folds its number into it.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    loss_state: Any
    reference: Any
    rng: jax.Array


def create(
    clip: CLIP,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    *,
    params: Any = None,
    classes: int = 0,
    rules: sharding.Rules = REPLICATED,
) -> TrainState:
    """Returns the state before the first step, each array where the rules put it.

    Args:
      clip: the model.
      loss: the loss.
      optimizer: the optimiser, started afresh.
      seed: seeds the parameters, the loss state and the run's key.
      mesh: where the state lives.
      params: parameters to start from; None draws new ones. A head among them stays behind: a
        loss that wants "logits" gets a fresh one, and no other trains it.
      classes: that the head is to tell apart.
      rules: path of an array to its partition.

    Raises:
      UserError: an array matches no rule, or the loss compares with a model that is not given.
    """
    compares = any(view in views.REFERENCES for view in loss.views)
    if compares and params is None:
        raise UserError(
            f"loss {type(loss).__name__} repairs a trained model: it compares with the one that "
            "the run begins with, and there is none"
        )

    def init(params: Any) -> TrainState:
        model_rng, loss_rng, run_rng = jax.random.split(jax.random.key(seed), 3)
        if params is None:
            params = clip.init(model_rng)
        params = {name: value for name, value in params.items() if name != "head"}
        if "logits" in loss.views:
            params["head"] = head.init(classes, clip.config.embed_dim)
        weights, _ = split_trained(params, loss.views)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(weights),
            loss_state=loss.init_state(loss_rng, clip.config.embed_dim),
            # A copy: the step writes over the parameters it is given.
            reference=jax.tree.map(jnp.copy, params) if compares else (),
            # Raw key data: checkpoints and donation see a plain array.
            rng=jax.random.key_data(run_rng),
        )

    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(init, params)
        # A loss's pools of embeddings are split as the batches that are written to them.
        pools = (r"^loss_state/\w*pool$", sharding.batch_spec())
        placed = sharding.by_rules(mesh, (pools, *rules), abstract)
        return jax.jit(init, out_shardings=placed)(params)


def split_trained(params: Any, names: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits parameters into what a loss trains and what stays.

    `weights | rest` gives the parameters back.

    Args:
      params: the model's parameters.
      names: the views of the loss.

    Returns:
      What gradients change; and batch statistics, and towers that no view runs through: the
      optimiser would decay them.
    """
    idle = {"batch_stats", "image", "text"} - views.towers_of(names)
    weights = {name: value for name, value in params.items() if name not in idle}
    return weights, {name: value for name, value in params.items() if name in idle}
