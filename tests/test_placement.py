"""Which arrays of a state are split over the fsdp axis: for every model there is, by rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clipdef_jax import losses, models, sharding
from clipdef_jax.errors import UserError
from clipdef_jax.models.config import NAMED
from clipdef_jax.train import checkpoint, optimizer, placement, state
from tests.test_checkpoint import DATA, assert_same
from tests.test_step import CLIP, TINY, mesh_of

# All that an optimiser of ours may hold: moments, clipping, accumulated gradients.
TX = optimizer.make_optimizer(
    optimizer.warmup_cosine(0.1, 1, 10), weight_decay=0.1, clip_norm=1.0, accumulate=2
)


@functools.cache
def abstract_state(name):
    clip = models.get(name)

    def init():
        params = clip.init(jax.random.key(0))
        weights, _ = models.clip.split_statistics(params)
        return state.TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=TX.init(weights),
            loss_state=(),
            reference=(),
            rng=jax.random.key_data(jax.random.key(0)),
        )

    return jax.eval_shape(init)


@pytest.mark.parametrize("fsdp", [2, 4, 8])
@pytest.mark.parametrize("name", NAMED)
def test_every_model_is_split_evenly(name, fsdp):
    mesh = sharding.make_mesh(fsdp)
    abstract = abstract_state(name)
    placed = sharding.by_rules(mesh, placement.rules_of(fsdp), abstract)
    arrays = list(zip(jax.tree.leaves(abstract), jax.tree.leaves(placed), strict=True))
    total = sum(leaf.size for leaf, _ in arrays)
    held = sum(np.prod(where.shard_shape(leaf.shape)) for leaf, where in arrays)
    # What stays whole is little beside what is split.
    assert held <= total / fsdp + 0.02 * total


def test_moments_are_split_as_their_parameters():
    placed = sharding.by_rules(
        sharding.make_mesh(4), placement.rules_of(4), abstract_state("ViT-Ti/8")
    )
    found = [
        where.spec
        for path, where in jax.tree_util.tree_leaves_with_path(placed)
        if jax.tree_util.keystr(path, simple=True, separator="/").endswith("text/token_embedding")
    ]
    # The parameter, Adam's two moments, the accumulated gradient.
    assert found == [P(None, "fsdp")] * 4


def test_without_fsdp_everything_is_whole():
    placed = sharding.by_rules(sharding.make_mesh(), placement.rules_of(1), abstract_state("RN-Ti"))
    assert all(where.is_fully_replicated for where in jax.tree.leaves(placed))


def test_a_width_that_does_not_divide_is_named():
    odd = models.get("ViT-Ti/4", **{**TINY, "embed_dim": 10})
    with pytest.raises(UserError, match=r"image/projection \(16, 10\).*use another mesh.fsdp"):
        state.create(
            odd, losses.get("clip"), TX, 0, sharding.make_mesh(4), rules=placement.rules_of(4)
        )


@pytest.mark.parametrize("devices", [1, 2])
def test_written_split_over_eight_devices_resumes_on_fewer(tmp_path, devices):
    def created(mesh, fsdp, seed):
        rules = placement.rules_of(fsdp)
        return state.create(CLIP, losses.get("clip"), TX, seed, mesh, rules=rules)

    written = created(sharding.make_mesh(4), 4, seed=5)
    assert not written.params["image"]["projection"].is_fully_replicated
    writer = checkpoint.Checkpoints(tmp_path / "c", DATA)
    writer.save(written)
    writer.close()
    reader = checkpoint.Checkpoints(tmp_path / "c", DATA)
    restored = reader.restore(checkpoint.abstract_of(created(mesh_of(devices), 1, seed=0)))
    reader.close()
    assert_same(jax.device_get(restored), jax.device_get(written))
    assert all(len(leaf.sharding.device_set) == devices for leaf in jax.tree.leaves(restored))
