"""One training step, against a reference written out; test_sharding has it on many devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clipdef_jax import losses, models, sharding
from clipdef_jax.train import optimizer, state, step

TINY = {
    "vocab_size": 64, "context_length": 8, "image_size": 16, "patch_size": 8, "image_width": 16,
    "image_layers": 1, "image_heads": 2, "text_width": 16, "text_layers": 1, "text_heads": 2,
    "embed_dim": 8,
}  # fmt: skip
CLIP = models.get("ViT-Ti/4", **TINY)
RESNET = models.get(
    "RN50", **{**TINY, "image_size": 32, "image_width": 4, "image_layers": (1, 1, 1, 1)}
)


def batch_of(rows, side=16, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (rows, side, side, 3), dtype=np.uint8),
        "text": rng.integers(0, 62, (rows, 8), dtype=np.int32),
        "text_aug": rng.integers(0, 62, (rows, 8), dtype=np.int32),
    }


def invert(key, images):
    return 255 - images


def trained(mesh, clip, loss, batches, lr=1e-2):
    tx = optimizer.make_optimizer(lambda _: jnp.asarray(lr), weight_decay=0.1)
    with jax.set_mesh(mesh):
        now = state.create(clip, loss, tx, 0, mesh)
        train_step = step.make_step(clip, loss, tx, invert, steps_per_epoch=2)
        for batch in batches:
            now, metrics = train_step(now, sharding.shard_batch(mesh, batch))
    return now, metrics


def mesh_of(devices):
    return jax.make_mesh(
        (devices, 1),
        sharding.BATCH_AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
        devices=jax.devices()[:devices],
    )


def test_equals_the_step_written_out():
    mesh, batch = mesh_of(1), batch_of(8)
    loss = losses.get("cleanclip")
    tx = optax.sgd(0.1)
    with jax.set_mesh(mesh):
        before = state.create(CLIP, loss, tx, 0, mesh)
        params = jax.device_get(before.params)
        after, metrics = step.make_step(CLIP, loss, tx, invert, 2)(
            before, sharding.shard_batch(mesh, batch)
        )

    def objective(params):
        def unit(x):
            return x / jnp.sqrt(jnp.sum(x**2, axis=1, keepdims=True))

        image, image_aug = (
            unit(CLIP.encode_image(params, CLIP.preprocess(jnp.asarray(x))))
            for x in (batch["image"], 255 - batch["image"])
        )
        text, text_aug = (unit(CLIP.encode_text(params, batch[x])) for x in ("text", "text_aug"))

        def nce(a, b):
            logits = jnp.exp(params["log_scale"]) * a @ b.T
            return -jnp.mean(jnp.diag(jax.nn.log_softmax(logits, axis=1)))

        clip = (nce(image, text) + nce(text, image)) / 2
        return clip + (nce(image, image_aug) + nce(text, text_aug)) / 2

    value, gradients = jax.jit(jax.value_and_grad(objective))(params)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradients), rtol=1e-5)
    assert_same_update(
        after.params, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), params
    )
    assert int(after.step) == 1


def assert_same_update(got, want, start):
    """Rounding is relative to the largest update: the logit scale multiplies it throughout."""
    moves = jax.tree.map(lambda w, s: float(jnp.max(jnp.abs(w - s))), want, start)
    moved = max(jax.tree.leaves(moves))
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-6, atol=5e-6 * moved)


def test_log_scale_is_clamped():
    now, _ = trained(mesh_of(1), CLIP, losses.get("clip"), [batch_of(8)] * 3, lr=10.0)
    assert 0.0 <= float(now.params["log_scale"]) <= step.MAX_LOG_SCALE


def test_a_loss_sees_its_epoch_state_and_a_fresh_key_each_step():
    seen = []

    class Spy:
        views = ("image", "text", "image_aug")

        def init_state(self, rng, dim):
            return jnp.zeros(dim)

        def __call__(self, embeddings, state, *, log_scale, epoch):
            from clipdef_jax.types import LossOutput

            value = jnp.sum(embeddings["image"] * embeddings["text"])
            return LossOutput(value, state + 1, {"epoch": epoch, "state": state[0]})

    def augment(key, images):
        jax.debug.callback(lambda data: seen.append(tuple(data.tolist())), jax.random.key_data(key))
        return images

    tx = optax.sgd(0.0)
    mesh = mesh_of(1)
    with jax.set_mesh(mesh):
        now = state.create(CLIP, Spy(), tx, 0, mesh)
        train_step = step.make_step(CLIP, Spy(), tx, augment, steps_per_epoch=2)
        epochs = []
        for _ in range(4):
            now, metrics = train_step(now, sharding.shard_batch(mesh, batch_of(4)))
            epochs.append(int(metrics["loss/epoch"]))
    assert epochs == [1, 1, 2, 2]
    np.testing.assert_array_equal(now.loss_state, 4.0)
    assert len(set(seen)) == 4
